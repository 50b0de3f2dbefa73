/*!
Fully connected layers on packed activations with packed weights.

The input keeps its pixel-aligned words (flattening moves nothing), and a unit's weights have the same
gaps: `[units][words of the input]`. K counts true features. Unpacked, the order of features is HWC.
*/

use crate::ArgumentError;
use crate::arch::differing;
use crate::bits::{bit, check_padding_bits};
use crate::error::check_length;
use crate::kernel::Facts;
use crate::shape::{MAX_ELEMENTS, Shape};

/// The weights of a fully connected layer on a packed input, validated: shared by both families.
#[derive(Debug, Clone, Copy)]
pub struct Dense<'a> {
    input: Shape,
    output: Shape,
    weights: &'a [u32],
}

impl<'a> Dense<'a> {
    /// `weights` holds `units * input.words()` words.
    ///
    /// # Errors
    /// [`ArgumentError`] naming the argument that does not fit.
    pub fn new(input: Shape, units: usize, weights: &'a [u32]) -> Result<Self, ArgumentError> {
        let output = Shape::new(1, 1, units)?;
        if units as u64 * (input.words() as u64 * 32) > MAX_ELEMENTS as u64 {
            return Err(ArgumentError::TooLarge { argument: "weights", limit: MAX_ELEMENTS });
        }
        check_length("weights", units * input.words(), weights.len())?;
        Ok(Self { input, output, weights })
    }

    pub(crate) fn check_contents(&self) -> Result<(), ArgumentError> {
        check_padding_bits("weights", self.weights, self.input.channels())
    }

    /// Units.
    pub fn units(&self) -> usize {
        self.output.channels()
    }

    /// Features, K.
    pub fn features(&self) -> usize {
        self.input.elements()
    }

    /// Shape of the output: one pixel, a channel for each unit.
    pub fn output(&self) -> &Shape {
        &self.output
    }

    /// What an operator on this layer is.
    pub(crate) fn facts(&self) -> Facts {
        let macs = self.units() as u64 * self.features() as u64;
        Facts { output: self.output, macs, has_pool: false }
    }

    pub(crate) fn input(&self) -> &Shape {
        &self.input
    }

    pub(crate) fn check_input(&self, input: &[u32]) -> Result<(), ArgumentError> {
        check_length("input", self.input.words(), input.len())
    }

    /// The accumulator by its definition, one product at a time.
    pub(crate) fn reference(&self, input: &[u32], unit: usize) -> i32 {
        let words = self.input.pixel_words();
        let mut acc = 0;
        for (pixel, weights) in input.chunks_exact(words).zip(self.filter(unit).chunks_exact(words)) {
            for channel in 0..self.input.channels() {
                acc += if bit(pixel, channel) == bit(weights, channel) { 1 } else { -1 };
            }
        }
        acc
    }

    /// The accumulator from counted bits.
    #[inline(always)]
    pub(crate) fn optimized(&self, input: &[u32], unit: usize) -> i32 {
        self.features() as i32 - 2 * differing(self.filter(unit), input) as i32
    }

    pub(crate) fn filter(&self, unit: usize) -> &'a [u32] {
        let words = self.input.words();
        &self.weights[unit * words..(unit + 1) * words]
    }
}
