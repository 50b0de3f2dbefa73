//! The whole of it in one call: start a board, load a model, run images, collect what came back.

use std::{ops::ControlFlow, path::Path};

use crate::{Board, BoardInfo, DeployError, Opened, Options, Session};

/// What came back from a board.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BenchRun {
    /// What the board says about itself.
    pub info: BoardInfo,
    /// The model's sizes on the board.
    pub model: Opened,
    /// Number of images.
    pub images: usize,
    /// `model.output_bytes` for each image, image after image.
    pub outputs: Vec<u8>,
    /// `model.operators` counts for each image, image after image.
    pub counts: Vec<u64>,
    /// The sum over operators for each image.
    pub totals: Vec<u64>,
    /// The deepest that the stack went over all images, in bytes.
    pub stack_bytes: u32,
}

/// Runs `count` images, which lie one after the other in `images`, through a model on a board.
///
/// `progress` is told how many of how many images are done, after each image and every few dozen
/// milliseconds in between; `Break` stops the run.
///
/// # Errors
///
/// Whatever [`Session`] fails with. Nothing is left running.
pub fn bench(
    board: &Board,
    runner: &Path,
    model: &[u8],
    images: &[u8],
    count: usize,
    options: Options,
    progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<BenchRun, DeployError> {
    let mut session = Session::open(board, runner, options, &mut || progress(0, count))?;
    let opened = session.load_model(model, &mut || progress(0, count))?;
    let size = opened.input_bytes as usize;
    if size.checked_mul(count) != Some(images.len()) {
        return Err(DeployError::ImagesInvalid {
            board: board.name,
            count,
            got: images.len(),
            expected: size,
        });
    }
    let mut run = BenchRun {
        info: session.info().clone(),
        model: opened,
        images: count,
        outputs: Vec::new(),
        counts: Vec::new(),
        totals: Vec::new(),
        stack_bytes: 0,
    };
    for index in 0..count {
        let image = &images[index * size..][..size];
        let one = session.run_image(image, index + 1, count, &mut || progress(index, count))?;
        run.outputs.extend_from_slice(&one.output);
        run.counts.extend_from_slice(&one.counts);
        run.totals.push(one.total);
        run.stack_bytes = run.stack_bytes.max(one.stack_bytes);
        if progress(index + 1, count).is_break() && index + 1 < count {
            return Err(DeployError::Interrupted {
                board: board.name,
                step: crate::Step::Image { number: index + 2, count },
            });
        }
    }
    Ok(run)
}
