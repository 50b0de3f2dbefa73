/*!
Convolution of 8-bit activations with 1-bit weights, to packed activations: the first layer of a BNN.

Against a weight byte of 0xFF (+1) the distance of an input byte is `255 - q`, against 0x00 (-1) it is `q`. With N weights
of +1, the sum of w * q is 255 N less the sum of the distances, which `byte_mask` adds up four at a
time. [`Affine`] says what a byte means.
*/

use crate::ArgumentError;
use crate::bits::{bit, check_padding_bits};
use crate::epilogue::{Pool, Rules};
use crate::error::check_length;
use crate::layouts::byte_mask;
use crate::layouts::pixel_sums::SumShape;
use crate::methods::byte_mask::MaskedLayer;
pub use crate::methods::bytes::Affine;
use crate::methods::bytes::reference_accumulator;
use crate::methods::conv::{self, Accumulate, ConvLayer};
use crate::methods::pixel_sums::SumLayer;
use crate::shape::{Conv2dGeometry, Shape};

/// Weights of +1 and -1, in one of three layouts.
#[derive(Debug, Clone, Copy)]
pub enum Weights<'a> {
    /// Canonical: packed as a pixel of the input is, `[output channels][taps][words]`.
    Packed(&'a [u32]),
    /// One byte a weight: see [`byte_mask`](crate::layouts::byte_mask).
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

    /// Scans the parameters: unused bits are 0, mask bytes 0x00 or 0xFF. Lengths were checked by
    /// [`new`](Self::new); whoever reads parameters from elsewhere (a model file) calls this once, not at
    /// every run.
    ///
    /// # Errors
    /// [`ArgumentError::PaddingBits`] or [`ArgumentError::Value`] naming the argument.
    pub fn check_contents(&self) -> Result<(), ArgumentError> {
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
        self.layer.check_contents()
    }

    /// Shape of the output, after the fused pool where there is one.
    pub fn output(&self) -> &Shape {
        self.layer.output()
    }

    /// Multiply-accumulates, counting taps in the padding.
    pub fn macs(&self) -> u64 {
        self.layer.geometry.macs()
    }

    /// Whether a max-pool is fused into the convolution.
    pub fn has_pool(&self) -> bool {
        self.layer.pool.is_some()
    }

    /// Shapes, rules and pool.
    pub(crate) fn layer(&self) -> &ConvLayer<'a> {
        &self.layer
    }

    /// Factor of an input byte.
    pub(crate) fn mul(&self) -> i32 {
        self.affine.mul
    }

    /// Offset of an input byte of `channel`.
    pub(crate) fn add(&self, _channel: usize) -> i32 {
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

    /// `u32` words of scratch that [`optimized`](Self::optimized) needs beside its window: see
    /// [`window_words`](Self::window_words).
    pub fn scratch_words(&self) -> usize {
        match self.weights {
            Weights::Packed(_) => self.layer.veto_words(),
            Weights::ByteMask(masks) => self.masked(masks).scratch_words(),
            Weights::PixelSums(sums) => {
                self.summed(sums).map_or(self.layer.veto_words(), |layer| layer.scratch_words())
            }
        }
    }

    /// Four-byte words of window that [`optimized`](Self::optimized) needs.
    pub fn window_words(&self) -> usize {
        match self.weights {
            Weights::Packed(_) => 0,
            Weights::PixelSums(sums) => self.summed(sums).map_or(0, |layer| layer.line_words()),
            Weights::ByteMask(masks) => self.masked(masks).window_words(),
        }
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

    /// The definition, one product at a time. `input` holds the u8 image (HWC), `output` a packed plane.
    ///
    /// # Errors
    /// [`ArgumentError::Length`] naming the slice.
    pub fn reference(&self, input: &[u8], output: &mut [u32]) -> Result<(), ArgumentError> {
        check_length("input", self.layer.geometry.input().elements(), input.len())?;
        conv::reference(&self.layer, |y, x, filter| self.accumulator_at(input, y, x, filter), output)
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

    /// Gathers each window once and takes its bytes four at a time, or adds up sums of pixels from a table. Weights in the
    /// canonical layout, and sums that may not fit 16 bits, take the reference's arithmetic, product by product.
    ///
    /// # Errors
    /// [`ArgumentError::Length`] naming the slice.
    #[inline(never)]
    pub fn optimized(
        &self,
        input: &[u8],
        output: &mut [u32],
        window: &mut [[u8; 4]],
        scratch: &mut [u32],
    ) -> Result<(), ArgumentError> {
        check_length("input", self.layer.geometry.input().elements(), input.len())?;
        check_length("window", self.window_words(), window.len())?;
        check_length("scratch", self.scratch_words(), scratch.len())?;
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

    /// Bytes that the image must begin behind the beginning of the output for
    /// [`optimized_over_image`](Self::optimized_over_image), a multiple of 4; `None` where the layer can't run so: that takes
    /// weights as sums of pixels, no veto, and pooled rows that don't overlap.
    pub fn image_gap(&self) -> Option<usize> {
        match self.weights {
            Weights::PixelSums(sums) => self.summed(sums)?.image_gap(),
            Weights::Packed(_) | Weights::ByteMask(_) => None,
        }
    }

    /// As [`image_gap`](Self::image_gap), with some rows more in between: few instructions more than with the image apart.
    pub fn preferred_image_gap(&self) -> Option<usize> {
        match self.weights {
            Weights::PixelSums(sums) => self.summed(sums)?.preferred_image_gap(),
            Weights::Packed(_) | Weights::ByteMask(_) => None,
        }
    }

    /// As [`optimized`](Self::optimized), with the output over the image: `memory` begins with the output, and holds the
    /// image from byte `gap` on, at least [`image_gap`](Self::image_gap). Rows of the output overwrite rows of the image that
    /// are done with.
    ///
    /// # Errors
    /// [`ArgumentError::Length`] naming the slice; [`ArgumentError::Value`] where the layer can't run so, or not with this gap.
    #[inline(never)]
    pub fn optimized_over_image(
        &self,
        memory: &mut [u32],
        gap: usize,
        window: &mut [[u8; 4]],
        scratch: &mut [u32],
    ) -> Result<(), ArgumentError> {
        check_length("window", self.window_words(), window.len())?;
        check_length("scratch", self.scratch_words(), scratch.len())?;
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
