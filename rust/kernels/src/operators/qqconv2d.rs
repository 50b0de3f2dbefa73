/*!
Convolution of 8-bit activations with 8-bit weights, to packed activations.

Weights are i8 in HWC order, `[output channels][kernel height][kernel width][channels]`; the scale of a
channel's weights belongs to its rule. [`Affine`] says what an input byte means.

Real weights that 8 bits would change too much may be i16 ([`QqConv2d::new_wide`]): the first layer of a BNN is
small, and an error there flips bits all the way down.
*/

use crate::ArgumentError;
use crate::arch::{byte_dot, byte_dot_wide, bytes_of_mut};
use crate::epilogue::{Pool, Rules};
use crate::error::check_length;
use crate::kernel::{Facts, Kernel, Run};
use crate::methods::byte_pairs::PairLayer;
pub use crate::methods::bytes::Affine;
use crate::methods::bytes::{ByteFilters, Gathered, reference_accumulator, scratch_words};
use crate::methods::conv::{self, ConvLayer};
use crate::shape::Conv2dGeometry;

/// The weights of a [`QqConv2d`].
#[derive(Debug, Clone, Copy)]
pub enum Weights<'a> {
    /// 8-bit.
    Byte(&'a [i8]),
    /// 16-bit.
    Wide(&'a [i16]),
}

/// An 8-bit convolution, validated.
#[derive(Debug, Clone, Copy)]
pub struct QqConv2d<'a> {
    layer: ConvLayer<'a>,
    affine: Affine,
    channel_adds: &'a [i32],
    weights: Weights<'a>,
}

impl<'a> QqConv2d<'a> {
    /// `weights` holds `output channels * geometry.products()` values.
    ///
    /// # Errors
    /// [`ArgumentError`] naming the argument that does not fit the geometry; [`ArgumentError::Overflow`] for
    /// `input meaning` where some accumulator could leave `i32`.
    pub fn new(
        geometry: Conv2dGeometry,
        affine: Affine,
        weights: &'a [i8],
        rules: Rules<'a>,
        pool: Option<Pool<'a>>,
    ) -> Result<Self, ArgumentError> {
        Self::on_layer(&ConvLayer::new(geometry, rules, pool)?, affine, &[], Weights::Byte(weights))
    }

    /// As [`new`](Self::new), with 16-bit weights. That no accumulator leaves `i32` depends on their values, so
    /// [`check_contents`](Self::check_contents) says it.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn new_wide(
        geometry: Conv2dGeometry,
        affine: Affine,
        weights: &'a [i16],
        rules: Rules<'a>,
        pool: Option<Pool<'a>>,
    ) -> Result<Self, ArgumentError> {
        Self::on_layer(&ConvLayer::new(geometry, rules, pool)?, affine, &[], Weights::Wide(weights))
    }

    /// As [`new`](Self::new), [`new_wide`](Self::new_wide) and [`with_channel_adds`](Self::with_channel_adds), for a
    /// layer that is there already.
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
        let (got, largest) = match weights {
            Weights::Byte(weights) => (weights.len(), 128),
            Weights::Wide(weights) => (weights.len(), 1),
        };
        check_length("weights", geometry.output().channels() * geometry.products(), got)?;
        affine.check(channel_adds, geometry, largest)?;
        Ok(Self { layer: *layer, affine, channel_adds, weights })
    }

    /// Gives each input channel an offset of its own, in place of `affine.add`, which is 0: an input byte q
    /// of channel c means `mul * q + channel_adds[c]`. An empty slice changes nothing.
    ///
    /// # Errors
    /// [`ArgumentError`] naming `channel adds` or `input add`; [`ArgumentError::Overflow`] as [`new`](Self::new).
    pub fn with_channel_adds(self, channel_adds: &'a [i32]) -> Result<Self, ArgumentError> {
        let weight = if matches!(self.weights, Weights::Byte(_)) { 128 } else { 1 };
        self.affine.check(channel_adds, &self.layer.geometry, weight)?;
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

    /// Whether weights are 16-bit.
    pub(crate) fn is_wide(&self) -> bool {
        matches!(self.weights, Weights::Wide(_))
    }

    pub(crate) fn weight(&self, filter: usize, tap: usize, channel: usize) -> i32 {
        let geometry = &self.layer.geometry;
        let at = filter * geometry.products() + tap * geometry.input().channels() + channel;
        match self.weights {
            Weights::Byte(weights) => i32::from(weights[at]),
            Weights::Wide(weights) => i32::from(weights[at]),
        }
    }

    /// Four-byte words of window at the beginning of the scratch.
    fn window_words(&self) -> usize {
        self.layer.geometry.products().div_ceil(4)
    }

    /// Words of scratch behind the window.
    fn rest_words(&self) -> usize {
        match self.paired() {
            Some(paired) => paired.scratch_words(),
            None => {
                scratch_words(&self.layer.geometry, self.affine, self.channel_adds)
                    + self.layer.epilogue().veto_words()
            }
        }
    }

    /// The parts of the scratch.
    fn parted<'s>(
        &self,
        scratch: &'s mut [u32],
    ) -> Result<(&'s mut [[u8; 4]], &'s mut [u32]), ArgumentError> {
        check_length("scratch", self.scratch_words(), scratch.len())?;
        let (window, rest) = scratch.split_at_mut(self.window_words());
        Ok((bytes_of_mut(window), rest))
    }

    /// The layer with four windows at a time, where its numbers fit.
    fn paired(&self) -> Option<PairLayer<'_>> {
        match self.weights {
            Weights::Byte(weights)
                if PairLayer::fits(self.affine, self.channel_adds, self.layer.geometry.products()) =>
            {
                let Self { ref layer, affine, channel_adds, .. } = *self;
                Some(PairLayer { layer, affine, channel_adds, weights })
            }
            _ => None,
        }
    }
}

impl Kernel for QqConv2d<'_> {
    type Input = u8;

    fn facts(&self) -> Facts {
        self.layer.facts()
    }

    fn scratch_words(&self) -> usize {
        self.window_words() + self.rest_words()
    }

    fn input_gap(&self) -> Option<usize> {
        self.paired().map(|paired| paired.image_gap())
    }

    fn check_contents(&self) -> Result<(), ArgumentError> {
        if let Weights::Wide(weights) = self.weights {
            let largest = self.affine.largest(self.channel_adds);
            for filter in weights.chunks_exact(self.layer.geometry.products()) {
                let sum: i64 = filter.iter().map(|&w| i64::from(w).abs()).sum();
                if sum.saturating_mul(largest) > i64::from(i32::MAX) {
                    return Err(ArgumentError::Overflow { argument: "weights" });
                }
            }
        }
        self.layer.epilogue().check_contents()
    }
}

/// Gathers each window once, and four of them together where the meaning of a byte fits 16 bits. The output may lie over the
/// image there: with 8-bit weights, at least four a filter.
impl Run<u32> for QqConv2d<'_> {
    fn reference(&self, input: &[u8], output: &mut [u32]) -> Result<(), ArgumentError> {
        let geometry = &self.layer.geometry;
        check_length("input", geometry.input().elements(), input.len())?;
        let weight = |filter, tap, channel| self.weight(filter, tap, channel);
        let acc = |y, x, filter| {
            reference_accumulator(geometry, (self.affine, self.channel_adds), input, weight, (y, x, filter))
        };
        self.layer.reference(acc, output)
    }

    fn optimized(&self, input: &[u8], output: &mut [u32], scratch: &mut [u32]) -> Result<(), ArgumentError> {
        let geometry = &self.layer.geometry;
        check_length("input", geometry.input().elements(), input.len())?;
        let (window, scratch) = self.parted(scratch)?;
        if let Some(paired) = self.paired() {
            return paired.convolve(input, output, window, scratch);
        }
        let (scratch, veto) = scratch.split_at_mut(scratch.len() - self.layer.epilogue().veto_words());
        let filters = Filters { weights: self.weights, products: geometry.products() };
        let meaning = (self.affine, self.channel_adds);
        let mut gathered = Gathered::new(geometry, meaning, filters, input, window, scratch);
        conv::convolve(&self.layer, &mut gathered, output, veto)
    }

    fn optimized_over_input(
        &self,
        memory: &mut [u32],
        gap: usize,
        scratch: &mut [u32],
    ) -> Result<(), ArgumentError> {
        let (window, scratch) = self.parted(scratch)?;
        match self.paired() {
            Some(paired) => paired.convolve_over_image(memory, gap, window, scratch),
            None => Err(ArgumentError::Value { argument: "weights" }),
        }
    }
}

/// The weights, a filter at a time. One type for both widths, so that there is one copy of the walk.
struct Filters<'a> {
    weights: Weights<'a>,
    products: usize,
}

impl ByteFilters for Filters<'_> {
    #[inline]
    fn dot(&self, filter: usize, window: &[[u8; 4]]) -> i32 {
        let range = filter * self.products..(filter + 1) * self.products;
        match self.weights {
            Weights::Byte(weights) => byte_dot(window.as_flattened(), &weights[range]),
            Weights::Wide(weights) => byte_dot_wide(window.as_flattened(), &weights[range]),
        }
    }

    fn bias(&self, _filter: usize) -> i32 {
        0
    }
}
