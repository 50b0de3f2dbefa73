/*!
What all operators share: what they make of their input, what they need for it, and how they run.

An operator is validated when it is built. [`Run`] is apart from [`Kernel`] because a fully connected layer with integer
output runs to any of three types.
*/

use crate::ArgumentError;
use crate::shape::Shape;

/// What an operator is, whatever it computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Shape of the output, after the fused pool where there is one.
    pub output: Shape,
    /// Multiply-accumulates, counting taps in the padding; 0 for an operator without weights.
    pub macs: u64,
    /// Whether a max-pool is fused into the operator.
    pub has_pool: bool,
}

/// An operator.
pub trait Kernel {
    /// Elements of the input: bytes, or words of packed signs.
    type Input;

    /// What the operator is.
    fn facts(&self) -> Facts;

    /// Shape of the output, after the fused pool where there is one.
    fn output(&self) -> Shape {
        self.facts().output
    }

    /// Multiply-accumulates, counting taps in the padding.
    fn macs(&self) -> u64 {
        self.facts().macs
    }

    /// Whether a max-pool is fused into the operator.
    fn has_pool(&self) -> bool {
        self.facts().has_pool
    }

    /// `u32` words of scratch that [`Run::optimized`] needs. Their contents don't matter.
    fn scratch_words(&self) -> usize {
        0
    }

    /// Bytes that the input must begin behind the output, a multiple of 4, where the output may overwrite it row by row
    /// ([`Run::optimized_over_input`]); `None` where it may not.
    fn input_gap(&self) -> Option<usize> {
        None
    }

    /// As [`input_gap`](Self::input_gap), as many as cost few instructions more than with the input apart.
    fn preferred_input_gap(&self) -> Option<usize> {
        self.input_gap()
    }

    /// Scans the parameters for what lengths don't tell: unused bits that are set, values out of their range. Whoever reads
    /// parameters from elsewhere (a model file) calls this once, not at every run.
    ///
    /// # Errors
    /// [`ArgumentError::PaddingBits`], [`ArgumentError::Value`] or [`ArgumentError::Overflow`] naming the argument.
    fn check_contents(&self) -> Result<(), ArgumentError>;
}

/// An operator that writes elements `T`: `u32` words of packed signs, or integers.
pub trait Run<T>: Kernel {
    /// The definition, one product at a time.
    ///
    /// # Errors
    /// [`ArgumentError::Length`] naming the slice.
    fn reference(&self, input: &[Self::Input], output: &mut [T]) -> Result<(), ArgumentError>;

    /// The same numbers, fast. `scratch` holds [`scratch_words`](Kernel::scratch_words) words.
    ///
    /// # Errors
    /// [`ArgumentError::Length`] naming the slice; [`ArgumentError::Value`] for a layout of weights that was left out of the
    /// build.
    fn optimized(
        &self,
        input: &[Self::Input],
        output: &mut [T],
        scratch: &mut [u32],
    ) -> Result<(), ArgumentError>;

    /// As [`optimized`](Self::optimized), with the output over the input: `memory` begins with the output, and holds the input
    /// from byte `gap` on, at least [`input_gap`](Kernel::input_gap). Rows of the output overwrite rows of the input that are
    /// done with.
    ///
    /// # Errors
    /// [`ArgumentError::Length`] naming the slice; [`ArgumentError::Value`] where the operator can't run so, or not with this gap.
    fn optimized_over_input(
        &self,
        memory: &mut [T],
        gap: usize,
        scratch: &mut [u32],
    ) -> Result<(), ArgumentError> {
        let _ = (memory, gap, scratch);
        Err(ArgumentError::Value { argument: "gap" })
    }
}
