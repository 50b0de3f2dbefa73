/*!
Fully connected layer on packed activations, to 8-, 16- or 32-bit integers: the last layer of a BNN.

An accumulator becomes its unit's fixed-point number: see [`Requantization`].
*/

use crate::ArgumentError;
use crate::arch::{LANES, Line};
use crate::epilogue::{Output, Requantization};
use crate::error::check_length;
use crate::methods::dense::Dense;
use crate::shape::Shape;

/// A fully connected layer with integer output, validated.
#[derive(Debug, Clone, Copy)]
pub struct BbqFc<'a> {
    dense: Dense<'a>,
    requantization: Requantization<'a>,
}

impl<'a> BbqFc<'a> {
    /// Joins weights and requantization.
    ///
    /// # Errors
    /// [`ArgumentError::Length`] where the units disagree.
    pub fn new(dense: Dense<'a>, requantization: Requantization<'a>) -> Result<Self, ArgumentError> {
        check_length("mul", dense.units(), requantization.units())?;
        Ok(Self { dense, requantization })
    }

    /// Scans the parameters: unused bits are 0, and no accumulator in `-K..=K` takes `|acc * mul + add|` to
    /// 2^62. Lengths were checked by [`new`](Self::new); whoever reads parameters from elsewhere (a model
    /// file) calls this once, not at every run.
    ///
    /// # Errors
    /// [`ArgumentError::PaddingBits`] or [`ArgumentError::Overflow`] naming the argument.
    pub fn check_contents(&self) -> Result<(), ArgumentError> {
        self.dense.check_contents()?;
        let largest = self.dense.features() as u64;
        (0..self.dense.units()).try_for_each(|unit| self.requantization.check_bound(unit, largest))
    }

    /// Units, the length of the output.
    pub fn units(&self) -> usize {
        self.dense.units()
    }

    /// Shape of the output: one pixel, a channel for each unit.
    pub fn output(&self) -> &Shape {
        self.dense.output()
    }

    /// Multiply-accumulates.
    pub fn macs(&self) -> u64 {
        self.dense.macs()
    }

    pub(crate) fn dense(&self) -> &Dense<'a> {
        &self.dense
    }

    /// The outputs for accumulators in lanes, as [`BlockLayer::accumulators`] writes them.
    ///
    /// # Errors
    /// [`ArgumentError::Length`] naming the slice.
    ///
    /// [`BlockLayer::accumulators`]: crate::host::blocks::BlockLayer::accumulators
    pub fn requantize<T: Output>(
        &self,
        accumulators: &[Line],
        output: &mut [T],
    ) -> Result<(), ArgumentError> {
        check_length("accumulators", self.dense.units().div_ceil(LANES), accumulators.len())?;
        check_length("output", self.dense.units(), output.len())?;
        for (unit, value) in output.iter_mut().enumerate() {
            *value = self.requantization.apply(unit, accumulators[unit / LANES].0[unit % LANES] as i32);
        }
        Ok(())
    }

    /// The definition, one product at a time. `input` is a packed plane, `output` one value a unit.
    ///
    /// # Errors
    /// [`ArgumentError::Length`] naming the slice.
    pub fn reference<T: Output>(&self, input: &[u32], output: &mut [T]) -> Result<(), ArgumentError> {
        self.run(input, output, |unit| self.dense.reference(input, unit))
    }

    /// Counts differing bits with a carry-save tree.
    ///
    /// # Errors
    /// [`ArgumentError::Length`] naming the slice.
    pub fn optimized<T: Output>(&self, input: &[u32], output: &mut [T]) -> Result<(), ArgumentError> {
        self.run(input, output, |unit| self.dense.optimized(input, unit))
    }

    #[inline(always)]
    fn run<T: Output>(
        &self,
        input: &[u32],
        output: &mut [T],
        acc: impl Fn(usize) -> i32,
    ) -> Result<(), ArgumentError> {
        self.dense.check_input(input)?;
        check_length("output", self.dense.units(), output.len())?;
        for (unit, value) in output.iter_mut().enumerate() {
            *value = self.requantization.apply(unit, acc(unit));
        }
        Ok(())
    }
}
