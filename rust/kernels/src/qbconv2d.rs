/*!
Convolution of 8-bit activations with 1-bit weights, to packed activations: the first layer of a BNN.

An input byte q means the integer `mul * q + add`, so that images normalised as `x / 127.5 - 1` are exact
as `2 q - 255`; the scale that is left (1/255 here) belongs to the rules. Taps outside the image contribute
0, the zero of the *meaning* and not of the byte:

```text
acc = sum over taps inside of w * (mul * q + add)
    = mul * (2 S - T) + add * (2 N - M)
```

with S the sum of the bytes whose weight is +1, T the sum of all bytes, N the number of weights +1 and M
that of all weights, each over the taps inside. S costs one pass per output channel; T one per pixel; the
second term changes only with the border class of the pixel, and only exists where `add` is not 0.
*/

use crate::ArgumentError;
use crate::arch::portable::{byte_mask_dot, byte_sum};
use crate::bits::{bit, check_padding_bits};
use crate::conv::{self, Accumulate, ConvLayer};
use crate::error::check_length;
use crate::rule::{Pool, Rules};
use crate::shape::{Conv2dGeometry, Shape};

/// Integer meaning of an input byte q: `mul * q + add`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Affine {
    /// Factor, at least 1.
    pub mul: i32,
    /// Offset.
    pub add: i32,
}

/// Weights of +1 and -1, in one of two layouts.
#[derive(Debug, Clone, Copy)]
pub enum Weights<'a> {
    /// Canonical: packed as a pixel of the input is, `[output channels][taps][words]`.
    Packed(&'a [u32]),
    /// One byte a weight in HWC order, 0xFF for +1 and 0x00 for -1, first byte lowest, each filter padded
    /// with 0x00 to whole words: `[output channels][words]`.
    ByteMask(&'a [u32]),
}

impl Weights<'_> {
    /// Words of one filter in the byte-mask layout.
    pub fn byte_mask_words(geometry: &Conv2dGeometry) -> usize {
        geometry.products().div_ceil(4)
    }
}

/// Rewrites canonical weights in the byte-mask layout.
///
/// # Errors
/// [`ArgumentError::Length`] naming the slice.
pub fn to_byte_mask(
    geometry: &Conv2dGeometry,
    packed: &[u32],
    masks: &mut [u32],
) -> Result<(), ArgumentError> {
    let (channels, words) = (geometry.input().channels(), geometry.input().pixel_words());
    let filters = geometry.output().channels();
    check_length("packed", filters * geometry.filter_words(), packed.len())?;
    check_length("masks", filters * Weights::byte_mask_words(geometry), masks.len())?;
    masks.fill(0);
    let per_filter = Weights::byte_mask_words(geometry);
    for (filter, masks) in
        packed.chunks_exact(geometry.filter_words()).zip(masks.chunks_exact_mut(per_filter))
    {
        for (tap, pixel) in filter.chunks_exact(words).enumerate() {
            for channel in (0..channels).filter(|&c| bit(pixel, c)) {
                let at = tap * channels + channel;
                masks[at / 4] |= 0xFF << (8 * (at % 4));
            }
        }
    }
    Ok(())
}

/// An 8-bit-input convolution, validated.
#[derive(Debug, Clone, Copy)]
pub struct QbConv2d<'a> {
    layer: ConvLayer<'a>,
    affine: Affine,
    weights: Weights<'a>,
}

impl<'a> QbConv2d<'a> {
    /// `weights` holds `output channels * geometry.filter_words()` words where packed, or
    /// `output channels * Weights::byte_mask_words(geometry)` in the byte-mask layout.
    ///
    /// # Errors
    /// [`ArgumentError`] naming the argument that does not fit the geometry; [`ArgumentError::Overflow`] for
    /// `input meaning` where some accumulator could leave `i32`.
    pub fn new(
        geometry: Conv2dGeometry,
        affine: Affine,
        weights: Weights<'a>,
        rules: Rules<'a>,
        pool: Option<Pool<'a>>,
    ) -> Result<Self, ArgumentError> {
        let filters = geometry.output().channels();
        match weights {
            Weights::Packed(packed) => {
                check_length("weights", filters * geometry.filter_words(), packed.len())?;
            }
            Weights::ByteMask(masks) => {
                let words = Weights::byte_mask_words(&geometry);
                check_length("weights", filters * words, masks.len())?;
            }
        }
        if affine.mul < 1 {
            return Err(ArgumentError::Value { argument: "input mul" });
        }
        // |acc| <= products * max |mul q + add|; each partial term is below the sum of both magnitudes.
        let largest = 255 * i64::from(affine.mul) + i64::from(affine.add).abs();
        if largest > i64::from(i32::MAX) || largest * geometry.products() as i64 > i64::from(i32::MAX) {
            return Err(ArgumentError::Overflow { argument: "input meaning" });
        }
        Ok(Self { layer: ConvLayer::new(geometry, rules, pool)?, affine, weights })
    }

    /// Scans the parameters: unused bits are 0, mask bytes 0x00 or 0xFF. Lengths were checked by [`new`](Self::new); whoever reads
    /// parameters from elsewhere (a model file) calls this once, not at every run.
    ///
    /// # Errors
    /// [`ArgumentError::PaddingBits`] or [`ArgumentError::Value`] naming the argument.
    pub fn check_contents(&self) -> Result<(), ArgumentError> {
        let geometry = &self.layer.geometry;
        match self.weights {
            Weights::Packed(packed) => check_padding_bits("weights", packed, geometry.input().channels())?,
            Weights::ByteMask(masks) => {
                check_masks(masks, Weights::byte_mask_words(geometry), geometry.products())?;
            }
        }
        self.layer.check_contents()
    }

    /// Shape of the output, after the fused pool where there is one.
    pub fn output(&self) -> &Shape {
        self.layer.output()
    }

    /// Whether a max-pool is fused into the convolution.
    pub fn has_pool(&self) -> bool {
        self.layer.pool.is_some()
    }

    /// `u32` words of scratch that [`optimized`](Self::optimized) needs beside its window: see
    /// [`window_words`](Self::window_words).
    pub fn scratch_words(&self) -> usize {
        let sums = if self.affine.add == 0 { 0 } else { self.layer.geometry.output().channels() };
        sums + self.layer.veto_words()
    }

    /// Four-byte words of window that [`optimized`](Self::optimized) needs.
    pub fn window_words(&self) -> usize {
        Weights::byte_mask_words(&self.layer.geometry)
    }

    fn weight_is_plus(&self, filter: usize, tap: usize, channel: usize) -> bool {
        let geometry = &self.layer.geometry;
        match self.weights {
            Weights::Packed(packed) => {
                let words = geometry.input().pixel_words();
                bit(&packed[filter * geometry.filter_words() + tap * words..], channel)
            }
            Weights::ByteMask(masks) => {
                let at = tap * geometry.input().channels() + channel;
                let word = masks[filter * Weights::byte_mask_words(geometry) + at / 4];
                (word >> (8 * (at % 4))) & 0xFF != 0
            }
        }
    }

    /// The definition, one product at a time. `input` holds the u8 image (HWC), `output` a packed plane.
    ///
    /// # Errors
    /// [`ArgumentError::Length`] naming the slice.
    pub fn reference(&self, input: &[u8], output: &mut [u32]) -> Result<(), ArgumentError> {
        check_length("input", self.layer.geometry.input().elements(), input.len())?;
        conv::reference(&self.layer, |y, x, filter| self.accumulator_at(input, y, x, filter), output)
    }

    fn accumulator_at(&self, input: &[u8], y: usize, x: usize, filter: usize) -> i32 {
        let geometry = &self.layer.geometry;
        let (sliding, channels) = (geometry.sliding(), geometry.input().channels());
        let [kernel_height, kernel_width] = sliding.window().kernel;
        let mut acc = 0;
        for tap_y in 0..kernel_height {
            for tap_x in 0..kernel_width {
                let (Some(y), Some(x)) = (sliding.input_at(0, y, tap_y), sliding.input_at(1, x, tap_x))
                else {
                    continue;
                };
                for channel in 0..channels {
                    let q = input[(y * geometry.input().width() + x) * channels + channel];
                    let value = self.affine.mul * i32::from(q) + self.affine.add;
                    let plus = self.weight_is_plus(filter, tap_y * kernel_width + tap_x, channel);
                    acc += if plus { value } else { -value };
                }
            }
        }
        acc
    }

    /// Gathers each window once and adds its bytes four at a time. Weights in the canonical layout take
    /// the reference's arithmetic, product by product.
    ///
    /// # Errors
    /// [`ArgumentError::Length`] naming the slice.
    pub fn optimized(
        &self,
        input: &[u8],
        output: &mut [u32],
        window: &mut [[u8; 4]],
        scratch: &mut [u32],
    ) -> Result<(), ArgumentError> {
        let geometry = &self.layer.geometry;
        check_length("input", geometry.input().elements(), input.len())?;
        check_length("window", self.window_words(), window.len())?;
        check_length("scratch", self.scratch_words(), scratch.len())?;
        let (sums, veto) = scratch.split_at_mut(self.scratch_words() - self.layer.veto_words());
        match self.weights {
            Weights::Packed(_) => {
                let mut direct = Direct { operator: self, input, at: (0, 0) };
                conv::convolve(&self.layer, &mut direct, output, veto)
            }
            Weights::ByteMask(masks) => {
                window.fill([0; 4]);
                let mut gathered = Gathered {
                    geometry,
                    affine: self.affine,
                    masks,
                    input,
                    window,
                    sums,
                    total: 0,
                    border_class: None,
                };
                conv::convolve(&self.layer, &mut gathered, output, veto)
            }
        }
    }
}

/// Every byte of a filter is 0x00 or 0xFF, and 0x00 beyond the last weight.
fn check_masks(masks: &[u32], words: usize, weights: usize) -> Result<(), ArgumentError> {
    for filter in masks.chunks_exact(words) {
        for (at, byte) in filter.iter().flat_map(|word| word.to_le_bytes()).enumerate() {
            match byte {
                0 => {}
                0xFF if at < weights => {}
                0xFF => return Err(ArgumentError::PaddingBits { argument: "weights" }),
                _ => return Err(ArgumentError::Value { argument: "weights" }),
            }
        }
    }
    Ok(())
}

/// Accumulators straight from the image, for weights in the canonical layout.
struct Direct<'a> {
    operator: &'a QbConv2d<'a>,
    input: &'a [u8],
    at: (usize, usize),
}

impl Accumulate for Direct<'_> {
    fn seek(&mut self, y: usize, x: usize) {
        self.at = (y, x);
    }

    fn accumulator(&self, channel: usize) -> i32 {
        self.operator.accumulator_at(self.input, self.at.0, self.at.1, channel)
    }
}

/// The taps inside the image of a pixel, as (first row, end row, first column, end column).
type BorderClass = (usize, usize, usize, usize);

/// The bytes of one pixel's window, in the order of a filter's bytes; 0 outside the image.
struct Gathered<'a> {
    geometry: &'a Conv2dGeometry,
    affine: Affine,
    masks: &'a [u32],
    input: &'a [u8],
    window: &'a mut [[u8; 4]],
    /// `add * (2 N - M)` of each output channel in two's complement, for the current border class.
    sums: &'a mut [u32],
    /// T, the sum of all bytes of the window.
    total: u32,
    border_class: Option<BorderClass>,
}

impl Gathered<'_> {
    /// Fills the taps of `class` from `row(tap_y) -> first byte of the first tap inside`.
    fn enter(&mut self, class: BorderClass) {
        if self.border_class == Some(class) {
            return;
        }
        self.border_class = Some(class);
        self.window.fill([0; 4]);
        if self.affine.add == 0 {
            return;
        }
        // N is the dot product of the masks with a window of ones.
        let (first_y, end_y, first_x, end_x) = class;
        let channels = self.geometry.input().channels();
        let kernel_width = self.geometry.sliding().window().kernel[1];
        let bytes = self.window.as_flattened_mut();
        for tap_y in first_y..end_y {
            let at = tap_y * kernel_width * channels;
            bytes[at + first_x * channels..at + end_x * channels].fill(1);
        }
        let weights = ((end_y - first_y) * (end_x - first_x) * channels) as i32;
        for (sum, masks) in self.sums.iter_mut().zip(self.masks.chunks_exact(self.window.len())) {
            let plus = byte_mask_dot(self.window, masks) as i32;
            *sum = (self.affine.add * (2 * plus - weights)) as u32;
        }
    }
}

impl Accumulate for Gathered<'_> {
    fn seek(&mut self, y: usize, x: usize) {
        let (input, sliding) = (self.geometry.input(), self.geometry.sliding());
        let window = sliding.window();
        let channels = input.channels();
        let (first_y, end_y) = sliding.taps_inside(0, y);
        let (first_x, end_x) = sliding.taps_inside(1, x);
        // Taps outside were zeroed when this border class was entered, and stay so within it.
        self.enter((first_y, end_y, first_x, end_x));
        let bytes = self.window.as_flattened_mut();
        for tap_y in first_y..end_y {
            let row =
                (y * window.strides[0] + tap_y * window.dilation[0] - window.padding[0]) * input.width();
            let at = tap_y * window.kernel[1] * channels;
            if window.dilation[1] == 1 && end_x > first_x {
                let from = (row + x * window.strides[1] + first_x - window.padding[1]) * channels;
                let len = (end_x - first_x) * channels;
                let to = at + first_x * channels;
                bytes[to..to + len].copy_from_slice(&self.input[from..from + len]);
            } else {
                for tap_x in first_x..end_x {
                    let column = x * window.strides[1] + tap_x * window.dilation[1] - window.padding[1];
                    let (from, to) = ((row + column) * channels, at + tap_x * channels);
                    bytes[to..to + channels].copy_from_slice(&self.input[from..from + channels]);
                }
            }
        }
        self.total = byte_sum(self.window);
    }

    #[inline(always)]
    fn accumulator(&self, channel: usize) -> i32 {
        let words = self.window.len();
        let plus = byte_mask_dot(self.window, &self.masks[channel * words..(channel + 1) * words]);
        let acc = self.affine.mul * (2 * plus as i32 - self.total as i32);
        if self.affine.add == 0 { acc } else { acc + self.sums[channel] as i32 }
    }
}
