/*!
Convolution of 8-bit activations with 1-bit weights, to packed activations: the first layer of a BNN.

Against a weight byte of 0xFF (+1) the distance of an input byte is `255 - q`, against 0x00 (-1) it is `q`. With N weights
of +1, the sum of w * q is 255 N less the sum of the distances, which `byte_mask` adds up four at a
time. [`Affine`] says what a byte means.
*/

use crate::ArgumentError;
use crate::arch::bytes_of_mut;
use crate::bits::{bit, check_padding_bits};
use crate::epilogue::{Pool, Rules};
use crate::error::check_length;
use crate::kernel::{Facts, Kernel, Run};
use crate::layouts::byte_mask;
use crate::layouts::pixel_sums::SumShape;
use crate::methods::byte_mask::MaskedLayer;
pub use crate::methods::bytes::Affine;
use crate::methods::bytes::reference_accumulator;
use crate::methods::conv::{self, Accumulate, ConvLayer};
use crate::methods::pixel_sums::SumLayer;
use crate::shape::Conv2dGeometry;

/// Weights of +1 and -1, in one of three layouts.
#[derive(Debug, Clone, Copy)]
pub enum Weights<'a> {
    /// Canonical: packed as a pixel of the input is, `[output channels][taps][words]`.
    Packed(&'a [u32]),
    /// One byte a weight: see [`byte_mask`].
    ByteMask(&'a [u32]),
    /// Lists of signed sums: see [`pixel_sums`](crate::layouts::pixel_sums).
    PixelSums(&'a [u32]),
}

/// An 8-bit-input convolution, validated.
#[derive(Debug, Clone, Copy)]
pub struct QbConv2d<'a> {
    layer: ConvLayer<'a>,
    affine: Affine,
    channel_adds: &'a [i32],
    weights: Weights<'a>,
}

impl<'a> QbConv2d<'a> {
    /// `weights` holds `output channels * geometry.filter_words()` words where packed, or
    /// `output channels * byte_mask::filter_words` as byte masks, or `output channels *
    /// SumShape::filter_words` as sums.
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
        Self::on_layer(&ConvLayer::new(geometry, rules, pool)?, affine, &[], weights)
    }

    /// As [`new`](Self::new) and [`with_channel_adds`](Self::with_channel_adds), for a layer that is there already.
    ///
    /// # Errors
    /// As theirs.
    #[inline(always)]
    pub fn on_layer(
        layer: &ConvLayer<'a>,
        affine: Affine,
        channel_adds: &'a [i32],
        weights: Weights<'a>,
    ) -> Result<Self, ArgumentError> {
        let geometry = &layer.geometry;
        let filters = geometry.output().channels();
        match weights {
            Weights::Packed(packed) => {
                check_length("weights", filters * geometry.filter_words(), packed.len())?;
            }
            Weights::ByteMask(masks) => {
                let words = byte_mask::filter_words(geometry);
                check_length("weights", filters * words, masks.len())?;
            }
            Weights::PixelSums(sums) => {
                let shape = SumShape::of(geometry).ok_or(ArgumentError::Value { argument: "weights" })?;
                check_length("weights", filters * shape.filter_words(), sums.len())?;
            }
        }
        affine.check(channel_adds, geometry, 1)?;
        Ok(Self { layer: *layer, affine, channel_adds, weights })
    }

    /// Gives each input channel an offset of its own, in place of `affine.add`, which is 0: an input byte q
    /// of channel c means `mul * q + channel_adds[c]`. An empty slice changes nothing.
    ///
    /// # Errors
    /// [`ArgumentError`] naming `channel adds` or `input add`; [`ArgumentError::Overflow`] as [`new`](Self::new).
    pub fn with_channel_adds(self, channel_adds: &'a [i32]) -> Result<Self, ArgumentError> {
        self.affine.check(channel_adds, &self.layer.geometry, 1)?;
        Ok(Self { channel_adds, ..self })
    }

    /// Shapes, rules and pool.
    pub(crate) fn layer(&self) -> &ConvLayer<'a> {
        &self.layer
    }

    /// Factor of an input byte.
    pub(crate) fn mul(&self) -> i32 {
        self.affine.mul
    }

    /// Offset of an input byte, where it is one for all channels.
    pub(crate) fn add(&self) -> i32 {
        self.affine.add
    }

    /// The offset of each input channel, or an empty slice.
    pub(crate) fn channel_adds(&self) -> &'a [i32] {
        self.channel_adds
    }

    fn masked(&self, masks: &'a [u32]) -> MaskedLayer<'_> {
        MaskedLayer { layer: &self.layer, affine: self.affine, channel_adds: self.channel_adds, masks }
    }

    /// The layer of sums; `None` where they may not fit 16 bits, or the shape is another.
    fn summed(&self, sums: &'a [u32]) -> Option<SumLayer<'_>> {
        SumLayer::new(&self.layer, self.affine, self.channel_adds, sums)
    }

    /// Whether the layer has a fast kernel for weights as sums of pixels, where they are stored so.
    pub fn fits_sums(&self) -> bool {
        self.summed(&[]).is_some()
    }

    /// Words of scratch: four-byte words of window, and the rest.
    fn parts(&self) -> (usize, usize) {
        let canonical = (0, self.layer.epilogue().veto_words());
        match self.weights {
            Weights::Packed(_) => canonical,
            Weights::ByteMask(masks) => {
                let layer = self.masked(masks);
                (layer.window_words(), layer.scratch_words())
            }
            Weights::PixelSums(sums) => {
                self.summed(sums).map_or(canonical, |layer| (layer.line_words(), layer.scratch_words()))
            }
        }
    }

    /// The parts of the scratch.
    fn parted<'s>(
        &self,
        scratch: &'s mut [u32],
    ) -> Result<(&'s mut [[u8; 4]], &'s mut [u32]), ArgumentError> {
        let (window, rest) = self.parts();
        check_length("scratch", window + rest, scratch.len())?;
        let (window, rest) = scratch.split_at_mut(window);
        Ok((bytes_of_mut(window), rest))
    }

    pub(crate) fn weight_is_plus(&self, filter: usize, tap: usize, channel: usize) -> bool {
        let geometry = &self.layer.geometry;
        match self.weights {
            Weights::Packed(packed) => {
                let words = geometry.input().pixel_words();
                bit(&packed[filter * geometry.filter_words() + tap * words..], channel)
            }
            Weights::ByteMask(masks) => byte_mask::is_plus(geometry, masks, filter, tap, channel),
            Weights::PixelSums(sums) => SumShape::of(geometry).is_some_and(|shape| {
                let words = shape.filter_words();
                shape.weight_is_plus(&sums[filter * words..][..words], tap, channel)
            }),
        }
    }

    fn accumulator_at(&self, input: &[u8], y: usize, x: usize, filter: usize) -> i32 {
        let weight = |filter, tap, channel| if self.weight_is_plus(filter, tap, channel) { 1 } else { -1 };
        reference_accumulator(
            &self.layer.geometry,
            (self.affine, self.channel_adds),
            input,
            weight,
            (y, x, filter),
        )
    }
}

impl Kernel for QbConv2d<'_> {
    type Input = u8;

    fn facts(&self) -> Facts {
        self.layer.facts()
    }

    fn scratch_words(&self) -> usize {
        let (window, rest) = self.parts();
        window + rest
    }

    fn input_gap(&self) -> Option<usize> {
        match self.weights {
            Weights::PixelSums(sums) => self.summed(sums)?.image_gap(),
            Weights::Packed(_) | Weights::ByteMask(_) => None,
        }
    }

    fn preferred_input_gap(&self) -> Option<usize> {
        match self.weights {
            Weights::PixelSums(sums) => self.summed(sums)?.preferred_image_gap(),
            Weights::Packed(_) | Weights::ByteMask(_) => None,
        }
    }

    fn check_contents(&self) -> Result<(), ArgumentError> {
        let geometry = &self.layer.geometry;
        match self.weights {
            Weights::Packed(packed) => check_padding_bits("weights", packed, geometry.input().channels())?,
            Weights::ByteMask(masks) => {
                byte_mask::check_contents(geometry, masks)?;
            }
            Weights::PixelSums(sums) => {
                SumShape::of(geometry).map_or(Ok(()), |shape| shape.check_contents(sums))?;
            }
        }
        self.layer.epilogue().check_contents()
    }
}

/// Gathers each window once and takes its bytes four at a time, or adds up sums of pixels from a table. Weights in the
/// canonical layout, and sums that may not fit 16 bits, take the reference's arithmetic, product by product. The output may lie
/// over the image where weights are sums of pixels, without a veto, and pooled rows don't overlap.
impl Run<u32> for QbConv2d<'_> {
    fn reference(&self, input: &[u8], output: &mut [u32]) -> Result<(), ArgumentError> {
        check_length("input", self.layer.geometry.input().elements(), input.len())?;
        self.layer.reference(|y, x, filter| self.accumulator_at(input, y, x, filter), output)
    }

    #[inline(never)]
    fn optimized(&self, input: &[u8], output: &mut [u32], scratch: &mut [u32]) -> Result<(), ArgumentError> {
        check_length("input", self.layer.geometry.input().elements(), input.len())?;
        let (window, scratch) = self.parted(scratch)?;
        match self.weights {
            Weights::Packed(_) if cfg!(feature = "qbconv2d-canonical") => {}
            Weights::ByteMask(masks) if cfg!(feature = "qbconv2d-byte-mask") => {
                return self.masked(masks).convolve(input, output, window, scratch);
            }
            Weights::PixelSums(sums) if cfg!(feature = "qbconv2d-pixel-sums") => {
                if let Some(layer) = self.summed(sums)
                    && let Some(filters) = layer.filters()
                {
                    return layer.convolve(filters, input, output, window, scratch);
                }
                // Sums that don't fit 16 bits, which no converter writes.
                if cfg!(not(feature = "qbconv2d-canonical")) {
                    return Err(ArgumentError::Value { argument: "weights layout" });
                }
            }
            _ => return Err(ArgumentError::Value { argument: "weights layout" }),
        }
        let mut direct = Direct { operator: self, input, at: (0, 0) };
        conv::convolve(&self.layer, &mut direct, output, scratch)
    }

    #[inline(never)]
    fn optimized_over_input(
        &self,
        memory: &mut [u32],
        gap: usize,
        scratch: &mut [u32],
    ) -> Result<(), ArgumentError> {
        let (window, scratch) = self.parted(scratch)?;
        if let Weights::PixelSums(sums) = self.weights
            && cfg!(feature = "qbconv2d-pixel-sums")
            && let Some(layer) = self.summed(sums)
            && let Some(filters) = layer.filters()
        {
            return layer.convolve_over_image(filters, memory, gap, window, scratch);
        }
        Err(ArgumentError::Value { argument: "weights layout" })
    }
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
