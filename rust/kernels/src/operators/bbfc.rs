/*!
Fully connected layer on packed activations, to packed activations.

[`Dense`] says how input and weights lie. An accumulator becomes a bit by its unit's rule.
*/

use crate::ArgumentError;
use crate::bits::words_for;
use crate::epilogue::Rules;
use crate::error::check_length;
pub use crate::methods::dense::Dense;
use crate::shape::Shape;

/// A fully connected layer with packed output, validated.
#[derive(Debug, Clone, Copy)]
pub struct BbFc<'a> {
    dense: Dense<'a>,
    rules: Rules<'a>,
}

impl<'a> BbFc<'a> {
    /// `rules` has one rule a unit ([`Grid::Channel`](crate::epilogue::Grid::Channel)).
    ///
    /// # Errors
    /// [`ArgumentError`] naming the argument that does not fit.
    pub fn new(dense: Dense<'a>, rules: Rules<'a>) -> Result<Self, ArgumentError> {
        rules.check(dense.output(), dense.output())?;
        Ok(Self { dense, rules })
    }

    /// Scans the parameters: unused bits are 0. Lengths were checked by [`new`](Self::new); whoever reads
    /// parameters from elsewhere (a model file) calls this once, not at every run.
    ///
    /// # Errors
    /// [`ArgumentError::PaddingBits`] naming the argument.
    pub fn check_contents(&self) -> Result<(), ArgumentError> {
        self.dense.check_contents()?;
        self.rules.check_contents()
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

    pub(crate) fn rules(&self) -> &Rules<'a> {
        &self.rules
    }

    /// The definition, one product at a time. `input` is a packed plane, `output` holds
    /// `words_for(units)` words.
    ///
    /// # Errors
    /// [`ArgumentError::Length`] naming the slice.
    pub fn reference(&self, input: &[u32], output: &mut [u32]) -> Result<(), ArgumentError> {
        self.run(input, output, |unit| self.dense.reference(input, unit))
    }

    /// Counts differing bits with a carry-save tree.
    ///
    /// # Errors
    /// [`ArgumentError::Length`] naming the slice.
    pub fn optimized(&self, input: &[u32], output: &mut [u32]) -> Result<(), ArgumentError> {
        self.run(input, output, |unit| self.dense.optimized(input, unit))
    }

    #[inline(always)]
    fn run(
        &self,
        input: &[u32],
        output: &mut [u32],
        acc: impl Fn(usize) -> i32,
    ) -> Result<(), ArgumentError> {
        self.dense.check_input(input)?;
        check_length("output", words_for(self.dense.units()), output.len())?;
        output.fill(0);
        for unit in 0..self.dense.units() {
            let bit = self.rules.get(self.rules.pixel(0, 0), unit).apply(acc(unit));
            output[unit / 32] |= u32::from(bit) << (unit % 32);
        }
        Ok(())
    }
}
