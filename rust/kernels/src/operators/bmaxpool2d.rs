/*!
Max-pool of packed activations.

The maximum of signs is the OR of their bits. Where a falling chain (gamma < 0) stood between the pool and
the sign, the stored bits must be pooled with AND instead; `use_and` says so for each channel. Padding taps
are skipped: they count as 0 for OR and as 1 for AND.
*/

use crate::ArgumentError;
use crate::bits::{bit, check_padding_bits, lane_mask};
use crate::error::check_length;
use crate::kernel::{Facts, Kernel, Run};
use crate::shape::{Shape, Sliding, Window};

/// A binary max-pool, validated.
#[derive(Debug, Clone, Copy)]
pub struct BMaxPool2d<'a> {
    input: Shape,
    output: Shape,
    sliding: Sliding,
    use_and: Option<&'a [u32]>,
}

impl<'a> BMaxPool2d<'a> {
    /// `use_and` holds the packed bits of one pixel; `None` is OR for every channel.
    ///
    /// # Errors
    /// [`ArgumentError`] naming the argument that does not fit.
    pub fn new(input: Shape, window: Window, use_and: Option<&'a [u32]>) -> Result<Self, ArgumentError> {
        let sliding = Sliding::new(input.height(), input.width(), window)?;
        let output = Shape::new(sliding.output_height(), sliding.output_width(), input.channels())?;
        if let Some(use_and) = use_and {
            check_length("use_and", input.pixel_words(), use_and.len())?;
        }
        Ok(Self { input, output, sliding, use_and })
    }

    fn check(&self, input: &[u32], output: &[u32]) -> Result<(), ArgumentError> {
        check_length("input", self.input.words(), input.len())?;
        check_length("output", self.output.words(), output.len())
    }
}

impl Kernel for BMaxPool2d<'_> {
    type Input = u32;

    fn facts(&self) -> Facts {
        Facts { output: self.output, macs: 0, has_pool: false }
    }

    fn check_contents(&self) -> Result<(), ArgumentError> {
        self.use_and.map_or(Ok(()), |bits| check_padding_bits("use_and", bits, self.input.channels()))
    }
}

/// A word of channels at a time: `AND x = NOT OR NOT x`, so flip the AND channels, OR, and flip back.
impl Run<u32> for BMaxPool2d<'_> {
    fn reference(&self, input: &[u32], output: &mut [u32]) -> Result<(), ArgumentError> {
        self.check(input, output)?;
        output.fill(0);
        let words = self.input.pixel_words();
        let [kernel_height, kernel_width] = self.sliding.window().kernel;
        for y in 0..self.output.height() {
            for x in 0..self.output.width() {
                for channel in 0..self.input.channels() {
                    let use_and = self.use_and.is_some_and(|bits| bit(bits, channel));
                    let mut pooled = use_and;
                    for tap_y in 0..kernel_height {
                        for tap_x in 0..kernel_width {
                            let at = (self.sliding.input_at(0, y, tap_y), self.sliding.input_at(1, x, tap_x));
                            let (Some(y), Some(x)) = at else { continue };
                            let value = bit(&input[(y * self.input.width() + x) * words..], channel);
                            pooled = if use_and { pooled && value } else { pooled || value };
                        }
                    }
                    let at = (y * self.output.width() + x) * words + channel / 32;
                    output[at] |= u32::from(pooled) << (channel % 32);
                }
            }
        }
        Ok(())
    }

    fn optimized(
        &self,
        input: &[u32],
        output: &mut [u32],
        _scratch: &mut [u32],
    ) -> Result<(), ArgumentError> {
        self.check(input, output)?;
        let words = self.input.pixel_words();
        let window = self.sliding.window();
        for (pixel, pooled) in output.chunks_exact_mut(words).enumerate() {
            let (y, x) = (pixel / self.output.width(), pixel % self.output.width());
            let (first_y, end_y) = self.sliding.taps_inside(0, y);
            let (first_x, end_x) = self.sliding.taps_inside(1, x);
            for (word, pooled) in pooled.iter_mut().enumerate() {
                let flip = self.use_and.map_or(0, |bits| bits[word]) & lane_mask(self.input.channels(), word);
                let mut any = 0;
                for tap_y in first_y..end_y {
                    let row = y * window.strides[0] + tap_y * window.dilation[0] - window.padding[0];
                    for tap_x in first_x..end_x {
                        let column = x * window.strides[1] + tap_x * window.dilation[1] - window.padding[1];
                        any |= input[(row * self.input.width() + column) * words + word] ^ flip;
                    }
                }
                *pooled = any ^ flip;
            }
        }
        Ok(())
    }
}
