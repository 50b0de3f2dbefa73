/*!
Pointwise (1 x 1) convolution of packed activations with packed weights, to packed activations.

A window is one pixel, which lies in the input as its filter lies in the weights: nothing is gathered.
Weights are `[output channels][words]`, packed as a pixel of the input is.
*/

use crate::ArgumentError;
use crate::arch::differing;
use crate::bits::{bit, check_padding_bits};
use crate::epilogue::{Pool, Rules};
use crate::error::check_length;
use crate::kernel::{Facts, Kernel, Run};
use crate::methods::conv::{self, Accumulate, ConvLayer};
use crate::shape::Conv2dGeometry;

/// A pointwise convolution, validated.
#[derive(Debug, Clone, Copy)]
pub struct BbPointwiseConv2d<'a> {
    layer: ConvLayer<'a>,
    weights: &'a [u32],
}

impl<'a> BbPointwiseConv2d<'a> {
    /// `weights` holds `output channels * geometry.filter_words()` words; the kernel is 1 x 1 without
    /// padding.
    ///
    /// # Errors
    /// [`ArgumentError`] naming the argument that does not fit the geometry; [`ArgumentError::Value`] for a
    /// kernel that is not 1 x 1 or has padding.
    pub fn new(
        geometry: Conv2dGeometry,
        weights: &'a [u32],
        rules: Rules<'a>,
        pool: Option<Pool<'a>>,
    ) -> Result<Self, ArgumentError> {
        Self::on_layer(&ConvLayer::new(geometry, rules, pool)?, weights)
    }

    /// As [`new`](Self::new), for a layer that is there already.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    #[inline(always)]
    pub fn on_layer(layer: &ConvLayer<'a>, weights: &'a [u32]) -> Result<Self, ArgumentError> {
        let geometry = &layer.geometry;
        let window = geometry.sliding().window();
        if window.kernel != [1, 1] {
            return Err(ArgumentError::Value { argument: "kernel" });
        }
        if window.padding != [0; 4] {
            return Err(ArgumentError::Value { argument: "padding" });
        }
        check_length("weights", geometry.output().channels() * geometry.filter_words(), weights.len())?;
        Ok(Self { layer: *layer, weights })
    }

    /// Shapes, rules and pool.
    pub(crate) fn layer(&self) -> &ConvLayer<'a> {
        &self.layer
    }

    /// Word `at` of a filter.
    pub(crate) fn filter_word(&self, filter: usize, at: usize) -> u32 {
        self.weights[filter * self.layer.geometry.filter_words() + at]
    }

    /// The pixel of the input under pixel (y, x) of the convolution's plane.
    fn pixel<'i>(&self, input: &'i [u32], y: usize, x: usize) -> &'i [u32] {
        let geometry = &self.layer.geometry;
        let [stride_y, stride_x] = geometry.sliding().window().strides;
        let words = geometry.input().pixel_words();
        let at = (y * stride_y * geometry.input().width() + x * stride_x) * words;
        &input[at..at + words]
    }
}

impl Kernel for BbPointwiseConv2d<'_> {
    type Input = u32;

    fn facts(&self) -> Facts {
        self.layer.facts()
    }

    fn scratch_words(&self) -> usize {
        self.layer.epilogue().veto_words()
    }

    fn check_contents(&self) -> Result<(), ArgumentError> {
        check_padding_bits("weights", self.weights, self.layer.geometry.input().channels())?;
        self.layer.epilogue().check_contents()
    }
}

/// Counts the bits in which a pixel and a filter differ.
impl Run<u32> for BbPointwiseConv2d<'_> {
    fn reference(&self, input: &[u32], output: &mut [u32]) -> Result<(), ArgumentError> {
        let shape = *self.layer.geometry.input();
        check_length("input", shape.words(), input.len())?;
        let acc = |y: usize, x: usize, filter: usize| {
            let pixel = self.pixel(input, y, x);
            let weights = &self.weights[filter * shape.pixel_words()..];
            (0..shape.channels()).map(|c| if bit(pixel, c) == bit(weights, c) { 1 } else { -1 }).sum()
        };
        self.layer.reference(acc, output)
    }

    fn optimized(&self, input: &[u32], output: &mut [u32], scratch: &mut [u32]) -> Result<(), ArgumentError> {
        check_length("input", self.layer.geometry.input().words(), input.len())?;
        check_length("scratch", self.scratch_words(), scratch.len())?;
        let channels = self.layer.geometry.input().channels() as i32;
        let mut pixels = Pixels { operator: self, input, weights: self.weights, channels, pixel: &[] };
        conv::convolve(&self.layer, &mut pixels, output, scratch)
    }
}

/// What an accumulator needs, at hand: the walk's loop over channels begins anew for each pixel.
struct Pixels<'o, 'i> {
    operator: &'o BbPointwiseConv2d<'o>,
    input: &'i [u32],
    weights: &'o [u32],
    channels: i32,
    pixel: &'i [u32],
}

impl Accumulate for Pixels<'_, '_> {
    fn seek(&mut self, y: usize, x: usize) {
        self.pixel = self.operator.pixel(self.input, y, x);
    }

    #[inline(always)]
    fn accumulator(&self, channel: usize) -> i32 {
        let words = self.pixel.len();
        let filter = &self.weights[channel * words..][..words];
        self.channels - 2 * differing(filter, self.pixel) as i32
    }
}
