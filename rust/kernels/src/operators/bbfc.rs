/*!
Fully connected layer on packed activations, to packed activations.

[`Dense`] says how input and weights lie. An accumulator becomes a bit by its unit's rule.
*/

use crate::ArgumentError;
use crate::epilogue::{Epilogue, Rules};
use crate::kernel::{Facts, Kernel, Run};
pub use crate::methods::dense::Dense;

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

    pub(crate) fn dense(&self) -> &Dense<'a> {
        &self.dense
    }

    pub(crate) fn rules(&self) -> &Rules<'a> {
        &self.rules
    }
}

impl Kernel for BbFc<'_> {
    type Input = u32;

    fn facts(&self) -> Facts {
        self.dense.facts()
    }

    fn check_contents(&self) -> Result<(), ArgumentError> {
        self.dense.check_contents()?;
        self.rules.check_contents()
    }
}

/// Counts differing bits with a carry-save tree.
impl Run<u32> for BbFc<'_> {
    fn reference(&self, input: &[u32], output: &mut [u32]) -> Result<(), ArgumentError> {
        self.dense.check_input(input)?;
        self.rules.finish(|unit| self.dense.reference(input, unit), output)
    }

    fn optimized(
        &self,
        input: &[u32],
        output: &mut [u32],
        _scratch: &mut [u32],
    ) -> Result<(), ArgumentError> {
        self.dense.check_input(input)?;
        self.rules.finish(|unit| self.dense.optimized(input, unit), output)
    }
}
