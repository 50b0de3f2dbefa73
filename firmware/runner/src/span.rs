//! Counting: one span an operator, the counter restarted at its beginning.
//!
//! A free-running counter would make a span flake by one tick with the phase it starts at; restarted,
//! the same code always gives the same count. What a span counts beyond its content is measured once,
//! with two loops of known lengths, and subtracted. (An empty span would not do: QEMU's timer shows
//! its first tick at once and the second on time, so an empty span reads a tick that a longer one
//! does not have.) Sums are over operators: what the layer walk does between them is in no figure.

use core::arch::asm;
use core::sync::atomic::{Ordering, compiler_fence};

use cbin_nn_model::Observer;

use crate::Board;

/// Iterations of the shorter calibrating loop: 4000 instructions, a whole number of ticks on every
/// board so far.
const CALIBRATION: u32 = 2000;

/// A board's counter and its overhead.
pub struct Spans<B> {
    /// The board.
    pub board: B,
    /// Ticks that a span has beyond its content.
    overhead: u32,
}

impl<B: Board> Spans<B> {
    /// Calibrates the counter.
    pub fn new(board: B) -> Self {
        let mut spans = Self { board, overhead: 0 };
        // The first pass may meet cold caches; the second is what a run sees.
        for _ in 0..2 {
            spans.overhead = 0;
            // Of a span `a + b n` with n iterations, the overhead is a.
            let once = spans.ticks_of_loop(CALIBRATION);
            let twice = spans.ticks_of_loop(2 * CALIBRATION);
            spans.overhead = (2 * once).saturating_sub(twice);
        }
        spans
    }

    /// Begins a span.
    #[inline(always)]
    fn begin(&mut self) {
        // The fences keep the compiler from moving an operator's loads and stores out of its span.
        compiler_fence(Ordering::SeqCst);
        self.board.restart();
        compiler_fence(Ordering::SeqCst);
    }

    /// Ticks since [`Self::begin`], the overhead subtracted.
    #[inline(always)]
    fn end(&mut self) -> u32 {
        compiler_fence(Ordering::SeqCst);
        let ticks = self.board.ticks();
        compiler_fence(Ordering::SeqCst);
        ticks.saturating_sub(self.overhead)
    }

    /// Ticks as the board's unit.
    fn units(ticks: u32) -> u64 {
        u64::from(ticks) * u64::from(B::UNITS_PER_TICK)
    }

    /// Counts a loop of `iterations` (at least 1) times two instructions.
    pub fn spin(&mut self, iterations: u32) -> u64 {
        Self::units(self.ticks_of_loop(iterations.max(1)))
    }

    /// Ticks of a span that holds `iterations` times two instructions and nothing else.
    #[inline(never)]
    fn ticks_of_loop(&mut self, iterations: u32) -> u32 {
        self.begin();
        // SAFETY: counts a register down to zero; no memory, no stack.
        unsafe {
            asm!(
                "2:",
                "subs {count}, {count}, #1",
                "bne 2b",
                count = inout(reg) iterations => _,
                options(nomem, nostack),
            );
        }
        self.end()
    }

    /// An observer that writes each operator's count to `counts`.
    pub fn observe<'a>(&'a mut self, counts: &'a mut [[u32; 2]]) -> Recorder<'a, B> {
        Recorder { spans: self, counts, total: 0 }
    }
}

/// Records one run's counts.
pub struct Recorder<'a, B> {
    spans: &'a mut Spans<B>,
    /// Little-endian halves of a `u64` for each operator.
    counts: &'a mut [[u32; 2]],
    /// Sum over operators.
    pub total: u64,
}

impl<B: Board> Observer for Recorder<'_, B> {
    #[inline(always)]
    fn before(&mut self, _index: usize) {
        self.spans.begin();
    }

    #[inline(always)]
    fn after(&mut self, index: usize, _output: &[u8]) {
        let units = Spans::<B>::units(self.spans.end());
        self.total += units;
        if let Some(count) = self.counts.get_mut(index) {
            *count = [units as u32, (units >> 32) as u32];
        }
    }
}
