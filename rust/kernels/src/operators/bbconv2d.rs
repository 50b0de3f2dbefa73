/*!
Convolution of packed activations with packed weights, to packed activations.

Weights lie packed as a pixel of the input is, for a kernel that counts the bits in which a window and a filter
differ; or by output channel, for one that counts 32 output channels at once ([`Weights`]).
*/

use crate::ArgumentError;
use crate::arch::{differing, differing_inside};
use crate::bits::{bit, check_padding_bits, lane_mask};
use crate::epilogue::{Pool, Rules};
use crate::error::check_length;
use crate::kernel::{Facts, Kernel, Run};
use crate::layouts::by_output_channel::GroupShape;
use crate::methods::by_output_channel as vertical;
use crate::methods::conv::{self, Accumulate, ConvLayer};
use crate::shape::{Conv2dGeometry, Padding};

/// Weights of +1 and -1, in one of two layouts.
#[derive(Debug, Clone, Copy)]
pub enum Weights<'a> {
    /// Canonical: packed as a pixel of the input is, `[output channels][kernel height][kernel width][words]`.
    Packed(&'a [u32]),
    /// By output channel: see [`by_output_channel`](crate::layouts::by_output_channel).
    ByOutputChannel(&'a [u32]),
}

/// The layout by output channel of a layer's weights.
pub fn group_shape(geometry: &Conv2dGeometry) -> GroupShape {
    let kernel = geometry.sliding().window().kernel;
    GroupShape::new(geometry.output().channels(), kernel, geometry.input().channels())
}

/// A binary convolution, validated.
#[derive(Debug, Clone, Copy)]
pub struct BbConv2d<'a> {
    layer: ConvLayer<'a>,
    padding: Padding,
    weights: Weights<'a>,
}

impl<'a> BbConv2d<'a> {
    /// `weights` holds `output channels * geometry.filter_words()` words where packed, or those of its
    /// [`group_shape`].
    ///
    /// # Errors
    /// [`ArgumentError`] naming the argument that does not fit the geometry.
    pub fn new(
        geometry: Conv2dGeometry,
        padding: Padding,
        weights: Weights<'a>,
        rules: Rules<'a>,
        pool: Option<Pool<'a>>,
    ) -> Result<Self, ArgumentError> {
        Self::on_layer(&ConvLayer::new(geometry, rules, pool)?, padding, weights)
    }

    /// As [`new`](Self::new), for a layer that is there already.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    #[inline(always)]
    pub fn on_layer(
        layer: &ConvLayer<'a>,
        padding: Padding,
        weights: Weights<'a>,
    ) -> Result<Self, ArgumentError> {
        let geometry = &layer.geometry;
        let (expected, got) = match weights {
            Weights::Packed(packed) => (geometry.output().channels() * geometry.filter_words(), packed.len()),
            Weights::ByOutputChannel(groups) => (group_shape(geometry).words(), groups.len()),
        };
        check_length("weights", expected, got)?;
        if let Weights::ByOutputChannel(_) = weights {
            vertical::scratch_words(layer, padding)?;
        }
        Ok(Self { layer: *layer, padding, weights })
    }

    /// Shapes, rules and pool.
    pub(crate) fn layer(&self) -> &ConvLayer<'a> {
        &self.layer
    }

    pub(crate) fn padding(&self) -> Padding {
        self.padding
    }

    /// Word `at` of a canonical filter.
    pub(crate) fn filter_word(&self, filter: usize, at: usize) -> u32 {
        let geometry = &self.layer.geometry;
        let (words, width) = (geometry.input().pixel_words(), geometry.sliding().window().kernel[1]);
        match self.weights {
            Weights::Packed(packed) => packed[filter * geometry.filter_words() + at],
            Weights::ByOutputChannel(groups) => {
                let (tap, first) = (at / words, at % words * 32);
                let tap = [tap / width, tap % width];
                let channels = first..(first + 32).min(geometry.input().channels());
                channels.fold(0, |bits, channel| {
                    let plus = group_shape(geometry).is_plus(groups, filter, tap, channel);
                    bits | (u32::from(plus) << (channel - first))
                })
            }
        }
    }

    fn weight_is_plus(&self, filter: usize, tap: [usize; 2], channel: usize) -> bool {
        let geometry = &self.layer.geometry;
        match self.weights {
            Weights::Packed(packed) => {
                let tap = tap[0] * geometry.sliding().window().kernel[1] + tap[1];
                bit(
                    &packed[filter * geometry.filter_words() + tap * geometry.input().pixel_words()..],
                    channel,
                )
            }
            Weights::ByOutputChannel(groups) => group_shape(geometry).is_plus(groups, filter, tap, channel),
        }
    }

    /// [`Run::optimized`] for packed weights.
    #[inline(never)]
    fn packed(
        &self,
        weights: &[u32],
        input: &[u32],
        output: &mut [u32],
        scratch: &mut [u32],
    ) -> Result<(), ArgumentError> {
        let geometry = &self.layer.geometry;
        check_length("scratch", self.scratch_words(), scratch.len())?;
        let (window, rest) = scratch.split_at_mut(geometry.filter_words());
        let (inside, veto) = rest.split_at_mut(geometry.filter_words());
        let mut gathered = Gathered {
            geometry,
            padding: self.padding,
            weights,
            input,
            window,
            inside,
            products: 0,
            border: false,
        };
        conv::convolve(&self.layer, &mut gathered, output, veto)
    }
}

impl Kernel for BbConv2d<'_> {
    type Input = u32;

    fn facts(&self) -> Facts {
        self.layer.facts()
    }

    fn scratch_words(&self) -> usize {
        match self.weights {
            Weights::Packed(_) => 2 * self.layer.geometry.filter_words() + self.layer.epilogue().veto_words(),
            // `new` has seen that it is no error.
            Weights::ByOutputChannel(_) => vertical::scratch_words(&self.layer, self.padding).unwrap_or(0),
        }
    }

    fn check_contents(&self) -> Result<(), ArgumentError> {
        let geometry = &self.layer.geometry;
        match self.weights {
            Weights::Packed(packed) => check_padding_bits("weights", packed, geometry.input().channels())?,
            Weights::ByOutputChannel(groups) => group_shape(geometry).check_contents(groups)?,
        }
        self.layer.epilogue().check_contents()
    }
}

/// Packed weights: gathers each window once and counts differing bits with a carry-save tree. Weights by
/// output channel: counts 32 channels at once in vertical counters.
impl Run<u32> for BbConv2d<'_> {
    fn reference(&self, input: &[u32], output: &mut [u32]) -> Result<(), ArgumentError> {
        let geometry = &self.layer.geometry;
        check_length("input", geometry.input().words(), input.len())?;
        let (sliding, words) = (geometry.sliding(), geometry.input().pixel_words());
        let [kernel_height, kernel_width] = sliding.window().kernel;
        let acc = |y: usize, x: usize, channel: usize| {
            let mut acc = 0;
            for tap_y in 0..kernel_height {
                for tap_x in 0..kernel_width {
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
                        acc += if plus == self.weight_is_plus(channel, [tap_y, tap_x], c) { 1 } else { -1 };
                    }
                }
            }
            acc
        };
        self.layer.reference(acc, output)
    }

    fn optimized(&self, input: &[u32], output: &mut [u32], scratch: &mut [u32]) -> Result<(), ArgumentError> {
        let geometry = &self.layer.geometry;
        check_length("input", geometry.input().words(), input.len())?;
        let weights = match self.weights {
            Weights::Packed(packed) if cfg!(feature = "bbconv2d-canonical") => packed,
            Weights::ByOutputChannel(groups) if cfg!(feature = "bbconv2d-by-output-channel") => {
                return vertical::convolve(&self.layer, self.padding, groups, input, output, scratch);
            }
            _ => return Err(ArgumentError::Value { argument: "weights layout" }),
        };
        self.packed(weights, input, output, scratch)
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
