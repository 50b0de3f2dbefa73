//! Models that own their bytes, and many images on all cores.

use alloc::sync::Arc;
use core::num::NonZero;
use std::sync::{Mutex, OnceLock, PoisonError};

use rayon::ThreadPool;

use crate::aligned::AlignedBytes;
use crate::host::{HostLayers, HostModel, Instructions};
use crate::{FormatError, Model, NoObserver, RunError};

/// Most threads of a batch, whatever is asked for.
pub const MAX_THREADS: usize = 1024;
/// Most images that a thread takes at once.
const MAX_BLOCK: usize = 64;

/// Which of an operator's two kernels a batch runs. Both give the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// The definition, one product at a time.
    Reference,
    /// The fastest for the model's [`Instructions`]: with the portable ones, what a board runs.
    Optimized,
}

/// A checked model with its bytes. Cheap to clone; shared between threads.
#[derive(Debug, Clone)]
pub struct OwnedModel {
    bytes: Arc<AlignedBytes>,
    layers: Arc<HostLayers>,
    images_between_looks: usize,
}

impl OwnedModel {
    /// Copies and checks `bytes`, for the best instructions of this CPU.
    ///
    /// # Errors
    /// [`FormatError`], as [`Model::new_checked`].
    pub fn new(bytes: &[u8]) -> Result<Self, FormatError> {
        Self::with_instructions(bytes, Instructions::best())
    }

    /// As [`new`](Self::new), with a choice of instructions.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_instructions(bytes: &[u8], instructions: Instructions) -> Result<Self, FormatError> {
        let bytes = AlignedBytes::copy_of(bytes);
        let model = Model::new_checked(&bytes)?;
        let layers = HostLayers::new(&model, instructions);
        // Multiply-accumulates in some tenths of a second.
        let macs = if instructions == Instructions::PORTABLE { 5_000_000_000 } else { 100_000_000_000 };
        // A pooling layer has no multiply-accumulates; the bytes it moves stand for them.
        let work = model.macs() + 8 * (model.input_bytes() + model.arena_bytes()) as u64;
        let images_between_looks = usize::try_from(macs / work).unwrap_or(usize::MAX).max(cores());
        Ok(Self { bytes: Arc::new(bytes), layers: Arc::new(layers), images_between_looks })
    }

    /// The view over the bytes.
    pub fn view(&self) -> Model<'_> {
        Model::new_unchecked(&self.bytes).expect("the bytes were checked when they were copied")
    }

    /// The file's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What the model runs with.
    pub fn instructions(&self) -> Instructions {
        self.layers.instructions()
    }

    /// The layers in the layout of the host.
    pub fn host_layers(&self) -> &HostLayers {
        &self.layers
    }

    /// Images of a batch between two looks at whether to go on (Ctrl-C, say): some tenths of a second of work
    /// with the optimized kernels on one core, and no fewer than keep the cores busy.
    pub fn images_between_looks(&self) -> usize {
        self.images_between_looks
    }

    /// Runs a batch: `images` holds n inputs one after the other, `outputs` takes n outputs. Images are
    /// spread over `threads` threads (0: one a core; never more than images or [`MAX_THREADS`]), the calling
    /// one among them; each has working memory of its own, allocated once.
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
        let threads = if threads == 0 { cores() } else { threads }.min(count).min(MAX_THREADS);
        // Small enough that no thread waits long for the last one.
        let block = (count / (8 * threads)).clamp(1, MAX_BLOCK);
        let host = HostModel::new(model, &self.layers);
        let blocks = images.chunks(block * input).zip(outputs.chunks_mut(block * output));
        let start = || self.layers.workspace(&model);
        share(blocks, threads, start, |workspace, (images, outputs)| {
            images.chunks_exact(input).zip(outputs.chunks_exact_mut(output)).try_for_each(
                |(image, output)| match kernel {
                    Kernel::Optimized => host.run(image, output, workspace, &mut NoObserver),
                    Kernel::Reference => {
                        model.run_reference(image, output, workspace.arena(), &mut NoObserver)
                    }
                },
            )
        })
    }
}

/// Does `each` of `items` on `threads` threads, the calling one among them: every thread makes a state with
/// `start`, then takes one item after the other. A thread that fails stops, and one of the errors is returned.
fn share<T, S, E: Send>(
    items: impl Iterator<Item = T> + Send,
    threads: usize,
    start: impl Fn() -> S + Sync,
    each: impl Fn(&mut S, T) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let items = Mutex::new(items);
    let failure = Mutex::new(None);
    // A function, so that the lock is let go at its end: the head of a `while let` holds it for the whole body.
    let next = || locked(&items).next();
    let work = || {
        let mut state = start();
        while let Some(item) = next() {
            if let Err(error) = each(&mut state, item) {
                *locked(&failure) = Some(error);
                return;
            }
        }
    };
    match pool(threads - 1) {
        Some(pool) => pool.in_place_scope(|scope| {
            scope.spawn_broadcast(|_, _| work());
            work();
        }),
        None => work(),
    }
    failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Cores that this process may use. Asked once: Linux takes longer to say so than a small model to run.
fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, NonZero::get))
}

/// `helpers` threads beside the calling one, or `None` for none of them. The last pool is kept, since starting
/// threads takes as long as a few images; it belongs to its process, since a fork has no threads. Where no
/// threads are to be had, the calling one does all the work.
fn pool(helpers: usize) -> Option<Arc<ThreadPool>> {
    static LAST: Mutex<Option<(u32, Arc<ThreadPool>)>> = Mutex::new(None);
    if helpers == 0 {
        return None;
    }
    let process = std::process::id();
    let mut last = locked(&LAST);
    if let Some((owner, pool)) = &*last
        && *owner == process
        && pool.current_num_threads() == helpers
    {
        return Some(pool.clone());
    }
    let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(helpers).build().ok()?);
    if let Some((owner, inherited)) = last.replace((process, pool.clone()))
        && owner != process
    {
        // Its threads are the parent's.
        core::mem::forget(inherited);
    }
    Some(pool)
}

#[cfg(test)]
mod tests {
    use core::time::Duration;
    use std::sync::{Condvar, Mutex};

    use super::{locked, share};

    #[test]
    #[cfg_attr(miri, ignore = "rayon's pools look like leaks to Miri")]
    fn all_threads_are_at_work_at_once() {
        const THREADS: usize = 3;
        let (started, changed) = (Mutex::new(0), Condvar::new());
        let result = share(
            0..THREADS,
            THREADS,
            || (),
            |(), _| {
                // No item ends before all have begun.
                let mut started = locked(&started);
                *started += 1;
                changed.notify_all();
                let wait = changed.wait_timeout_while(started, Duration::from_secs(60), |n| *n < THREADS);
                if wait.unwrap().1.timed_out() { Err("the items waited for each other") } else { Ok(()) }
            },
        );
        assert_eq!(result, Ok(()));
    }

    #[test]
    fn an_error_ends_the_work() {
        let done = Mutex::new(Vec::new());
        let result = share(
            0..10,
            1,
            || (),
            |(), item| {
                locked(&done).push(item);
                if item == 3 { Err(item) } else { Ok(()) }
            },
        );
        assert_eq!((result, done.into_inner().unwrap()), (Err(3), vec![0, 1, 2, 3]));
    }
}
