//! The whole of it in one call: start a board, load a model, run images, collect what came back.

use std::{ops::ControlFlow, path::Path};

use crate::{Board, BoardInfo, DeployError, Event, Opened, Options, Session};

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
    /// Whether the figures are a simulator's.
    pub simulated: bool,
}

/// How far a benchmark has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// The board is being flashed.
    Flash(Event),
    /// So many images are done.
    Images(usize),
}

/// Runs `count` images, which lie one after the other in `images`, through a model on a board.
///
/// `progress` is told how far the flashing has come, then how many images are done: after each image and
/// every few dozen milliseconds in between. `Break` stops the run.
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
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<BenchRun, DeployError> {
    let mut session =
        Session::open_for(board, runner, model, options, &mut |event| told(progress, event, 0))?;
    run_images(&mut session, images, count, progress)
}

/// Runs images through the model that is open on the board; otherwise as [`bench()`].
///
/// # Errors
///
/// When no model is open, the images have the wrong size, or the board fails.
pub fn run_images(
    session: &mut Session,
    images: &[u8],
    count: usize,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<BenchRun, DeployError> {
    let board = session.board().name;
    let Some(opened) = session.opened() else {
        return Err(DeployError::Misuse {
            board,
            reason: "no model is loaded; load one before running images",
        });
    };
    let size = opened.input_bytes as usize;
    if size.checked_mul(count) != Some(images.len()) {
        return Err(DeployError::ImagesInvalid { board, count, got: images.len(), expected: size });
    }
    let mut run = BenchRun {
        info: session.info().clone(),
        model: opened,
        images: count,
        outputs: Vec::new(),
        counts: Vec::new(),
        totals: Vec::new(),
        stack_bytes: 0,
        simulated: session.simulated(),
    };
    for index in 0..count {
        let image = &images[index * size..][..size];
        let watch = &mut |event| told(progress, event, index);
        let one = session.run_image(image, index + 1, count, watch)?;
        run.outputs.extend_from_slice(&one.output);
        run.counts.extend_from_slice(&one.counts);
        run.totals.push(one.total);
        run.stack_bytes = run.stack_bytes.max(one.stack_bytes);
        if progress(Progress::Images(index + 1)).is_break() && index + 1 < count {
            return Err(DeployError::Interrupted {
                board,
                step: crate::Step::Image { number: index + 2, count },
            });
        }
    }
    Ok(run)
}

/// Passes on what a session's watch is told.
fn told(
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    event: Option<Event>,
    images: usize,
) -> ControlFlow<()> {
    progress(event.map_or(Progress::Images(images), Progress::Flash))
}
