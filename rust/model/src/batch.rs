//! Models that own their bytes, and many images on all cores.

use alloc::sync::Arc;
use alloc::vec::Vec;

use rayon::prelude::*;

use crate::aligned::AlignedBytes;
use crate::{FormatError, Model, NoObserver, RunError};

/// Most threads of a batch, whatever is asked for.
pub const MAX_THREADS: usize = 1024;

/// Which of an operator's two kernels a batch runs. Both give the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// The definition, one product at a time.
    Reference,
    /// What a board runs.
    Optimized,
}

/// A checked model with its bytes. Cheap to clone; shared between threads.
#[derive(Debug, Clone)]
pub struct OwnedModel {
    bytes: Arc<AlignedBytes>,
}

impl OwnedModel {
    /// Copies and checks `bytes`.
    ///
    /// # Errors
    /// [`FormatError`], as [`Model::new_checked`].
    pub fn new(bytes: &[u8]) -> Result<Self, FormatError> {
        let bytes = AlignedBytes::copy_of(bytes);
        Model::new_checked(&bytes)?;
        Ok(Self { bytes: Arc::new(bytes) })
    }

    /// The view over the bytes.
    pub fn view(&self) -> Model<'_> {
        Model::new_unchecked(&self.bytes).expect("the bytes were checked when they were copied")
    }

    /// The file's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Images of a batch between two looks at whether to go on (Ctrl-C, say): some tenths of a second of work
    /// with the optimized kernels on one core, and no fewer than keep the cores busy.
    pub fn images_between_looks(&self) -> usize {
        const WORK: u64 = 5_000_000_000;
        let model = self.view();
        // A pooling layer has no multiply-accumulates; the bytes it moves stand for them.
        let work = model.macs() + 8 * (model.input_bytes() + model.arena_bytes()) as u64;
        usize::try_from(WORK / work).unwrap_or(usize::MAX).max(rayon::current_num_threads())
    }

    /// Runs a batch: `images` holds n inputs one after the other, `outputs` takes n outputs. Images are
    /// spread over `threads` threads (0: one a core; never more than images or [`MAX_THREADS`]); each thread
    /// has one arena.
    ///
    /// # Errors
    /// [`RunError`] naming the argument.
    pub fn run_batch(&self, images: &[u8], outputs: &mut [u8], threads: usize) -> Result<(), RunError> {
        self.run_batch_with(Kernel::Optimized, images, outputs, threads)
    }

    /// As [`run_batch`](Self::run_batch), with a choice of kernel.
    ///
    /// # Errors
    /// As [`run_batch`](Self::run_batch).
    pub fn run_batch_with(
        &self,
        kernel: Kernel,
        images: &[u8],
        outputs: &mut [u8],
        threads: usize,
    ) -> Result<(), RunError> {
        let model = self.view();
        let (input, output) = (model.input_bytes(), model.output_bytes());
        let count = images.len() / input;
        for (argument, expected, got) in
            [("input", count * input, images.len()), ("output", count * output, outputs.len())]
        {
            if expected != got {
                return Err(RunError::Length { argument, expected, got });
            }
        }
        if count == 0 {
            return Ok(());
        }
        let threads = threads.min(count).min(MAX_THREADS);
        let run_one = |arena: &mut Vec<u32>, image: &[u8], output: &mut [u8]| match kernel {
            Kernel::Optimized => model.run(image, output, arena, &mut NoObserver),
            Kernel::Reference => model.run_reference(image, output, arena, &mut NoObserver),
        };
        let mut run = || {
            images.par_chunks_exact(input).zip(outputs.par_chunks_exact_mut(output)).try_for_each_init(
                || alloc::vec![0u32; model.arena_bytes() / 4],
                |arena, (image, output)| run_one(arena, image, output),
            )
        };
        match threads {
            0 => run(),
            1 => {
                let mut arena = alloc::vec![0u32; model.arena_bytes() / 4];
                images
                    .chunks_exact(input)
                    .zip(outputs.chunks_exact_mut(output))
                    .try_for_each(|(image, output)| run_one(&mut arena, image, output))
            }
            // A pool that can't be built (no threads to be had) is no reason to fail: run on the global one.
            _ => match rayon::ThreadPoolBuilder::new().num_threads(threads).build() {
                Ok(pool) => pool.install(&mut run),
                Err(_) => run(),
            },
        }
    }
}
