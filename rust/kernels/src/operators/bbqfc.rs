/*!
Fully connected layer on packed activations, to 8-, 16- or 32-bit integers: the last layer of a BNN.

An accumulator becomes its unit's fixed-point number: see [`Requantization`].
*/

use crate::ArgumentError;
use crate::epilogue::{Epilogue, Output, Requantization};
use crate::error::check_length;
use crate::kernel::{Facts, Kernel, Run};
use crate::methods::dense::Dense;

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

    /// Units, the length of the output.
    pub fn units(&self) -> usize {
        self.dense.units()
    }

    pub(crate) fn requantization(&self) -> &Requantization<'a> {
        &self.requantization
    }

    pub(crate) fn dense(&self) -> &Dense<'a> {
        &self.dense
    }
}

impl Kernel for BbqFc<'_> {
    type Input = u32;

    fn facts(&self) -> Facts {
        self.dense.facts()
    }

    fn check_contents(&self) -> Result<(), ArgumentError> {
        self.dense.check_contents()?;
        // Accumulators are in -K..=K.
        let largest = self.dense.features() as u64;
        (0..self.dense.units()).try_for_each(|unit| self.requantization.check_bound(unit, largest))
    }
}

/// Counts differing bits with a carry-save tree.
impl<T: Output> Run<T> for BbqFc<'_> {
    fn reference(&self, input: &[u32], output: &mut [T]) -> Result<(), ArgumentError> {
        self.dense.check_input(input)?;
        self.requantization.finish(|unit| self.dense.reference(input, unit), output)
    }

    fn optimized(&self, input: &[u32], output: &mut [T], _scratch: &mut [u32]) -> Result<(), ArgumentError> {
        self.dense.check_input(input)?;
        self.requantization.finish(|unit| self.dense.optimized(input, unit), output)
    }
}
