/*!
Depthwise convolution of packed activations with packed weights, to packed activations: each output channel
sees its own input channel alone.

Weights are `[kernel height][kernel width][words]`, one packed pixel a tap. 32 channels are counted at once in
a vertical counter: word b of it holds bit b of each channel's count, and adding a word of ones is a ripple of
half adders that ends, on average, after two.
*/

use crate::ArgumentError;
use crate::bbconv2d::Padding;
use crate::bits::{bit, check_padding_bits, lane_mask};
use crate::conv::{self, Accumulate, ConvLayer};
use crate::error::check_length;
use crate::rule::{Pool, Rules};
use crate::shape::{Conv2dGeometry, Shape};

/// Bits of a vertical counter: enough for any number of taps that fits `u32`.
const fn planes(taps: usize) -> usize {
    (usize::BITS - taps.leading_zeros()) as usize
}

/// A depthwise convolution, validated.
#[derive(Debug, Clone, Copy)]
pub struct BbDepthwiseConv2d<'a> {
    layer: ConvLayer<'a>,
    padding: Padding,
    weights: &'a [u32],
}

impl<'a> BbDepthwiseConv2d<'a> {
    /// `weights` holds `geometry.filter_words()` words; output channels equal input channels.
    ///
    /// # Errors
    /// [`ArgumentError`] naming the argument that does not fit the geometry; [`ArgumentError::Value`] for
    /// `output channels` that are not the input's.
    pub fn new(
        geometry: Conv2dGeometry,
        padding: Padding,
        weights: &'a [u32],
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
        weights: &'a [u32],
    ) -> Result<Self, ArgumentError> {
        let geometry = &layer.geometry;
        if geometry.input().channels() != geometry.output().channels() {
            return Err(ArgumentError::Value { argument: "output channels" });
        }
        check_length("weights", geometry.filter_words(), weights.len())?;
        Ok(Self { layer: *layer, padding, weights })
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

    /// The packed weights of a tap.
    pub(crate) fn tap(&self, tap: usize) -> &'a [u32] {
        let words = self.layer.geometry.input().pixel_words();
        &self.weights[tap * words..(tap + 1) * words]
    }

    /// Multiply-accumulates of the whole layer, counting taps in the padding.
    pub fn macs(&self) -> u64 {
        let geometry = &self.layer.geometry;
        geometry.output().elements() as u64 * geometry.sliding().window().taps() as u64
    }

    /// Words of scratch that [`optimized`](Self::optimized) needs.
    pub fn scratch_words(&self) -> usize {
        self.counter_words() + self.layer.veto_words()
    }

    fn counter_words(&self) -> usize {
        let geometry = &self.layer.geometry;
        geometry.input().pixel_words() * planes(geometry.sliding().window().taps())
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
                    let plus = match (sliding.input_at(0, y, tap_y), sliding.input_at(1, x, tap_x)) {
                        (Some(y), Some(x)) => {
                            bit(&input[(y * geometry.input().width() + x) * words..], channel)
                        }
                        _ if self.padding == Padding::Zero => continue,
                        _ => true,
                    };
                    let weight = bit(&self.weights[(tap_y * kernel_width + tap_x) * words..], channel);
                    acc += if plus == weight { 1 } else { -1 };
                }
            }
            acc
        };
        conv::reference(&self.layer, acc, output)
    }

    /// Counts 32 channels at a time.
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
        let (counters, veto) = scratch.split_at_mut(self.counter_words());
        let planes = planes(geometry.sliding().window().taps());
        let mut counted = Counted { operator: self, input, counters, planes, taps: 0 };
        conv::convolve(&self.layer, &mut counted, output, veto)
    }
}

/// The counts of differing bits of one pixel, `planes` words for each word of channels.
struct Counted<'a> {
    operator: &'a BbDepthwiseConv2d<'a>,
    input: &'a [u32],
    counters: &'a mut [u32],
    planes: usize,
    /// Taps that count: inside the image, or all with one-padding.
    taps: i32,
}

impl Accumulate for Counted<'_> {
    fn seek(&mut self, y: usize, x: usize) {
        let geometry = &self.operator.layer.geometry;
        let (input, sliding) = (geometry.input(), geometry.sliding());
        let window = sliding.window();
        let words = input.pixel_words();
        let one = self.operator.padding == Padding::One;
        let (first_y, end_y) = sliding.taps_inside(0, y);
        let (first_x, end_x) = sliding.taps_inside(1, x);
        let inside = (end_y - first_y) * (end_x - first_x);
        self.taps = if one { window.taps() } else { inside } as i32;
        self.counters.fill(0);
        let [kernel_height, kernel_width] = window.kernel;
        let (rows, columns) =
            if one { (0..kernel_height, 0..kernel_width) } else { (first_y..end_y, first_x..end_x) };
        for tap_y in rows {
            for tap_x in columns.clone() {
                let weights = &self.operator.weights[(tap_y * kernel_width + tap_x) * words..][..words];
                let is_inside = (first_y..end_y).contains(&tap_y) && (first_x..end_x).contains(&tap_x);
                let at = if is_inside {
                    let row = y * window.strides[0] + tap_y * window.dilation[0] - window.padding[0];
                    let column = x * window.strides[1] + tap_x * window.dilation[1] - window.padding[1];
                    Some((row * input.width() + column) * words)
                } else {
                    None
                };
                for (word, weights) in weights.iter().enumerate() {
                    let pixel = at.map_or(lane_mask(input.channels(), word), |at| self.input[at + word]);
                    let mut carry = pixel ^ weights;
                    for plane in &mut self.counters[word * self.planes..(word + 1) * self.planes] {
                        if carry == 0 {
                            break;
                        }
                        (*plane, carry) = (*plane ^ carry, *plane & carry);
                    }
                }
            }
        }
    }

    fn accumulator(&self, channel: usize) -> i32 {
        let planes = &self.counters[channel / 32 * self.planes..][..self.planes];
        let lane = channel % 32;
        let differing = planes.iter().rev().fold(0, |count, plane| 2 * count + ((plane >> lane) & 1) as i32);
        self.taps - 2 * differing
    }
}
