/*!
Convolution of packed activations with packed weights, to packed activations.

Weights are `[output channels][kernel height][kernel width][words]`, packed as a pixel of the input is.
*/

use crate::ArgumentError;
use crate::arch::{differing, differing_inside};
use crate::bits::{bit, check_padding_bits, lane_mask};
use crate::conv::{self, Accumulate, ConvLayer};
use crate::error::check_length;
use crate::rule::{Pool, Rules};
use crate::shape::{Conv2dGeometry, Shape};

/// What a tap outside the image contributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// Nothing: the padding is zero (the default of Keras and PyTorch).
    Zero,
    /// Its weight: the padding is +1 (`pad_values=1` in Larq).
    One,
}

/// A binary convolution, validated.
#[derive(Debug, Clone, Copy)]
pub struct BbConv2d<'a> {
    layer: ConvLayer<'a>,
    padding: Padding,
    weights: &'a [u32],
}

impl<'a> BbConv2d<'a> {
    /// `weights` holds `output channels * geometry.filter_words()` words.
    ///
    /// # Errors
    /// [`ArgumentError`] naming the argument that does not fit the geometry.
    pub fn new(
        geometry: Conv2dGeometry,
        padding: Padding,
        weights: &'a [u32],
        rules: Rules<'a>,
        pool: Option<Pool<'a>>,
    ) -> Result<Self, ArgumentError> {
        check_length("weights", geometry.output().channels() * geometry.filter_words(), weights.len())?;
        Ok(Self { layer: ConvLayer::new(geometry, rules, pool)?, padding, weights })
    }

    /// Scans the parameters: unused bits are 0. Lengths were checked by [`new`](Self::new); whoever reads
    /// parameters from elsewhere (a model file) calls this once, not at every run.
    ///
    /// # Errors
    /// [`ArgumentError::PaddingBits`] naming the argument.
    pub fn check_contents(&self) -> Result<(), ArgumentError> {
        check_padding_bits("weights", self.weights, self.layer.geometry.input().channels())?;
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

    /// Shapes, rules and pool.
    pub(crate) fn layer(&self) -> &ConvLayer<'a> {
        &self.layer
    }

    pub(crate) fn padding(&self) -> Padding {
        self.padding
    }

    /// Word `at` of a filter.
    pub(crate) fn filter_word(&self, filter: usize, at: usize) -> u32 {
        self.weights[filter * self.layer.geometry.filter_words() + at]
    }

    /// Words of scratch that [`optimized`](Self::optimized) needs.
    pub fn scratch_words(&self) -> usize {
        2 * self.layer.geometry.filter_words() + self.layer.veto_words()
    }

    /// The definition, one product at a time. `input` and `output` are packed planes.
    ///
    /// # Errors
    /// [`ArgumentError::Length`] naming the slice.
    pub fn reference(&self, input: &[u32], output: &mut [u32]) -> Result<(), ArgumentError> {
        let geometry = &self.layer.geometry;
        check_length("input", geometry.input().words(), input.len())?;
        let (sliding, words) = (geometry.sliding(), geometry.input().pixel_words());
        let [kernel_height, kernel_width] = sliding.window().kernel;
        let acc = |y: usize, x: usize, channel: usize| {
            let mut acc = 0;
            for tap_y in 0..kernel_height {
                for tap_x in 0..kernel_width {
                    let tap = (channel * kernel_height + tap_y) * kernel_width + tap_x;
                    let weights = &self.weights[tap * words..(tap + 1) * words];
                    let pixel = match (sliding.input_at(0, y, tap_y), sliding.input_at(1, x, tap_x)) {
                        (Some(y), Some(x)) => {
                            let at = (y * geometry.input().width() + x) * words;
                            Some(&input[at..at + words])
                        }
                        _ if self.padding == Padding::Zero => continue,
                        _ => None,
                    };
                    for c in 0..geometry.input().channels() {
                        let plus = pixel.is_none_or(|pixel| bit(pixel, c));
                        acc += if plus == bit(weights, c) { 1 } else { -1 };
                    }
                }
            }
            acc
        };
        conv::reference(&self.layer, acc, output)
    }

    /// Gathers each window once and counts differing bits with a carry-save tree.
    ///
    /// # Errors
    /// [`ArgumentError::Length`] naming the slice.
    pub fn optimized(
        &self,
        input: &[u32],
        output: &mut [u32],
        scratch: &mut [u32],
    ) -> Result<(), ArgumentError> {
        let geometry = &self.layer.geometry;
        check_length("input", geometry.input().words(), input.len())?;
        check_length("scratch", self.scratch_words(), scratch.len())?;
        let (window, rest) = scratch.split_at_mut(geometry.filter_words());
        let (inside, veto) = rest.split_at_mut(geometry.filter_words());
        let mut gathered = Gathered {
            geometry,
            padding: self.padding,
            weights: self.weights,
            input,
            window,
            inside,
            products: 0,
            border: false,
        };
        conv::convolve(&self.layer, &mut gathered, output, veto)
    }
}

/// The words of one pixel's window, in the order of a filter's words.
struct Gathered<'a> {
    geometry: &'a Conv2dGeometry,
    padding: Padding,
    weights: &'a [u32],
    input: &'a [u32],
    window: &'a mut [u32],
    /// All ones where the word of `window` comes from inside the image, else 0; only kept at the border.
    inside: &'a mut [u32],
    products: i32,
    border: bool,
}

impl Accumulate for Gathered<'_> {
    fn seek(&mut self, y: usize, x: usize) {
        let (input, sliding) = (self.geometry.input(), self.geometry.sliding());
        let window = sliding.window();
        let words = input.pixel_words();
        let [kernel_height, kernel_width] = window.kernel;
        let (first_y, end_y) = sliding.taps_inside(0, y);
        let (first_x, end_x) = sliding.taps_inside(1, x);
        let taps = (end_y - first_y) * (end_x - first_x);
        let border = taps != window.taps();
        self.border = border && self.padding == Padding::Zero;
        if border {
            match self.padding {
                Padding::Zero => {
                    self.window.fill(0);
                    self.inside.fill(0);
                }
                Padding::One => {
                    for pixel in self.window.chunks_exact_mut(words) {
                        for (word, bits) in pixel.iter_mut().enumerate() {
                            *bits = lane_mask(input.channels(), word);
                        }
                    }
                }
            }
        }
        let counted = if self.border { taps } else { window.taps() };
        self.products = (counted * input.channels()) as i32;
        for tap_y in first_y..end_y {
            let row =
                (y * window.strides[0] + tap_y * window.dilation[0] - window.padding[0]) * input.width();
            let at = tap_y * kernel_width;
            let (start, end) = ((at + first_x) * words, (at + end_x) * words);
            if window.dilation[1] == 1 && end_x > first_x {
                let from = (row + x * window.strides[1] + first_x - window.padding[1]) * words;
                self.window[start..end].copy_from_slice(&self.input[from..from + (end - start)]);
            } else {
                for tap_x in first_x..end_x {
                    let column = x * window.strides[1] + tap_x * window.dilation[1] - window.padding[1];
                    let from = (row + column) * words;
                    let to = (at + tap_x) * words;
                    self.window[to..to + words].copy_from_slice(&self.input[from..from + words]);
                }
            }
            if self.border {
                self.inside[start..end].fill(u32::MAX);
            }
        }
        debug_assert_eq!(self.window.len(), kernel_height * kernel_width * words);
    }

    #[inline(always)]
    fn accumulator(&self, channel: usize) -> i32 {
        let len = self.window.len();
        let filter = &self.weights[channel * len..(channel + 1) * len];
        let differing = match self.border {
            true => differing_inside(filter, self.window, self.inside),
            false => differing(filter, self.window),
        };
        self.products - 2 * differing as i32
    }
}
