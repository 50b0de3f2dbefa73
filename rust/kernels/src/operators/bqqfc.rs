/*!
Fully connected layer on packed activations with 8-bit weights, to 8-, 16- or 32-bit integers: the last layer
of a BNN whose head was trained with real weights.

```text
acc = sum over features of w * x,    x = +1 for a bit of 1, -1 for a bit of 0
```

Weights are i8, `[units][features]`, features in HWC order without gaps; the scale of a unit's weights belongs
to its [`Requantization`].
*/

use crate::ArgumentError;
use crate::bits::bit;
use crate::epilogue::{Epilogue, Output, Requantization};
use crate::error::check_length;
use crate::kernel::{Facts, Kernel, Run};
use crate::shape::{MAX_ELEMENTS, Shape};

/// A fully connected layer with 8-bit weights and integer output, validated.
#[derive(Debug, Clone, Copy)]
pub struct BqqFc<'a> {
    input: Shape,
    output: Shape,
    weights: &'a [i8],
    requantization: Requantization<'a>,
}

impl<'a> BqqFc<'a> {
    /// `weights` holds `units * input.elements()` values.
    ///
    /// # Errors
    /// [`ArgumentError`] naming the argument that does not fit; [`ArgumentError::Overflow`] for `weights` where
    /// some accumulator could leave `i32`.
    pub fn new(
        input: Shape,
        units: usize,
        weights: &'a [i8],
        requantization: Requantization<'a>,
    ) -> Result<Self, ArgumentError> {
        let output = Shape::new(1, 1, units)?;
        if units as u64 * input.elements() as u64 > MAX_ELEMENTS as u64 {
            return Err(ArgumentError::TooLarge { argument: "weights", limit: MAX_ELEMENTS });
        }
        check_length("weights", units * input.elements(), weights.len())?;
        if input.elements() as u64 * 128 > i32::MAX as u64 {
            return Err(ArgumentError::Overflow { argument: "weights" });
        }
        check_length("mul", units, requantization.units())?;
        Ok(Self { input, output, weights, requantization })
    }

    /// Units, the length of the output.
    pub fn units(&self) -> usize {
        self.output.channels()
    }

    /// Features, K.
    pub fn features(&self) -> usize {
        self.input.elements()
    }

    fn filter(&self, unit: usize) -> &'a [i8] {
        let features = self.features();
        &self.weights[unit * features..(unit + 1) * features]
    }

    /// One copy for all types of output.
    #[inline(never)]
    fn accumulator(&self, input: &[u32], weights: &[i8], words: usize) -> i32 {
        let mut acc = 0;
        let weights = weights.chunks_exact(self.input.channels());
        for (pixel, weights) in input.chunks_exact(words).zip(weights) {
            for (&word, weights) in pixel.iter().zip(weights.chunks(32)) {
                // w where the bit is 1, -w where it is 0: XOR with 0 or -1, less the same.
                for (at, &weight) in weights.iter().enumerate() {
                    let flip = ((word >> at) & 1) as i32 - 1;
                    acc += (i32::from(weight) ^ flip) - flip;
                }
            }
        }
        acc
    }
}

impl Kernel for BqqFc<'_> {
    type Input = u32;

    fn facts(&self) -> Facts {
        let macs = self.units() as u64 * self.features() as u64;
        Facts { output: self.output, macs, has_pool: false }
    }

    fn check_contents(&self) -> Result<(), ArgumentError> {
        (0..self.units()).try_for_each(|unit| {
            let largest = self.filter(unit).iter().map(|w| u64::from(w.unsigned_abs())).sum();
            self.requantization.check_bound(unit, largest)
        })
    }
}

/// Turns each weight by its bit without a branch, word by word.
impl<T: Output> Run<T> for BqqFc<'_> {
    fn reference(&self, input: &[u32], output: &mut [T]) -> Result<(), ArgumentError> {
        check_length("input", self.input.words(), input.len())?;
        let (channels, words) = (self.input.channels(), self.input.pixel_words());
        let acc = |unit| {
            let weights = self.filter(unit);
            let mut acc = 0;
            for pixel in 0..self.input.pixels() {
                for channel in 0..channels {
                    let sign = if bit(&input[pixel * words..], channel) { 1 } else { -1 };
                    acc += sign * i32::from(weights[pixel * channels + channel]);
                }
            }
            acc
        };
        self.requantization.finish(acc, output)
    }

    fn optimized(&self, input: &[u32], output: &mut [T], _scratch: &mut [u32]) -> Result<(), ArgumentError> {
        check_length("input", self.input.words(), input.len())?;
        let words = self.input.pixel_words();
        self.requantization.finish(|unit| self.accumulator(input, self.filter(unit), words), output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bit_of_one_is_plus_one() {
        let requantization = Requantization::new(&[1], &[10], &[], 0).unwrap();
        let layer = BqqFc::new(Shape::new(1, 2, 2).unwrap(), 1, &[1, 20, -100, 127], requantization).unwrap();
        let mut out = [0i32];
        // Pixels (+1, -1) and (-1, -1): 1 - 20 + 100 - 127 + 10.
        layer.optimized(&[0b01, 0b00], &mut out, &mut []).unwrap();
        assert_eq!(out, [-36]);
        layer.reference(&[0b01, 0b00], &mut out).unwrap();
        assert_eq!(out, [-36]);
    }
}
