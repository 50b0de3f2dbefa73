/*!
Epilogues: what becomes of an accumulator.

| module | accumulators become |
|---|---|
| [`rule`] | bits, by an interval each |
| [`pool`] | bits, by the rules of all accumulators under a max-pool |
| `binarization` | bits of a convolution: rules, and a pool where there is one |
| [`fixed`] | fixed-point integers of 8, 16 or 32 bits |
*/

pub(crate) mod binarization;
pub mod fixed;
pub mod pool;
pub mod rule;

pub(crate) use binarization::Binarization;
pub use fixed::{MAX_SHIFT, Output, Requantization, round_half_even};
pub use pool::Pool;
pub use rule::{Grid, Rule, Rules};

use crate::ArgumentError;
use crate::bits::words_for;
use crate::error::check_length;

/// What becomes of the accumulators of one pixel, a unit each: elements `T` of the output.
pub(crate) trait Epilogue<T> {
    /// Elements of the output.
    fn output_len(&self) -> usize;

    /// Writes the output for the accumulators `acc(unit)`.
    fn write(&self, acc: impl Fn(usize) -> i32, output: &mut [T]);

    /// As [`write`](Self::write), for an output of unknown length.
    ///
    /// # Errors
    /// [`ArgumentError::Length`] naming `output`.
    #[inline(always)]
    fn finish(&self, acc: impl Fn(usize) -> i32, output: &mut [T]) -> Result<(), ArgumentError> {
        check_length("output", self.output_len(), output.len())?;
        self.write(acc, output);
        Ok(())
    }
}

/// Packed bits, by the rules of the first pixel.
impl Epilogue<u32> for Rules<'_> {
    fn output_len(&self) -> usize {
        words_for(self.channels())
    }

    #[inline(always)]
    fn write(&self, acc: impl Fn(usize) -> i32, output: &mut [u32]) {
        output.fill(0);
        for unit in 0..self.channels() {
            output[unit / 32] |= u32::from(self.get(0, unit).apply(acc(unit))) << (unit % 32);
        }
    }
}

/// Fixed-point integers.
impl<T: Output> Epilogue<T> for Requantization<'_> {
    fn output_len(&self) -> usize {
        self.units()
    }

    #[inline(always)]
    fn write(&self, acc: impl Fn(usize) -> i32, output: &mut [T]) {
        for (unit, value) in output.iter_mut().enumerate() {
            *value = self.apply(unit, acc(unit));
        }
    }
}
