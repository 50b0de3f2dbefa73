/*!
Convolution of 8-bit activations with 8-bit weights, to packed activations.

Weights are i8 in HWC order, `[output channels][kernel height][kernel width][channels]`; the scale of a
channel's weights belongs to its rule. [`Affine`] says what an input byte means.
*/

use crate::ArgumentError;
use crate::arch::byte_dot;
pub use crate::bytes::Affine;
use crate::bytes::{ByteFilters, Gathered, reference_accumulator, scratch_words};
use crate::conv::{self, ConvLayer};
use crate::error::check_length;
use crate::rule::{Pool, Rules};
use crate::shape::{Conv2dGeometry, Shape};

/// An 8-bit convolution, validated.
#[derive(Debug, Clone, Copy)]
pub struct QqConv2d<'a> {
    layer: ConvLayer<'a>,
    affine: Affine,
    weights: &'a [i8],
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
        check_length("weights", geometry.output().channels() * geometry.products(), weights.len())?;
        affine.check(&geometry, 128)?;
        Ok(Self { layer: ConvLayer::new(geometry, rules, pool)?, affine, weights })
    }

    /// Scans the parameters: unused bits of rules and pool are 0. Lengths were checked by [`new`](Self::new);
    /// whoever reads parameters from elsewhere (a model file) calls this once, not at every run.
    ///
    /// # Errors
    /// [`ArgumentError::PaddingBits`] naming the argument.
    pub fn check_contents(&self) -> Result<(), ArgumentError> {
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

    pub(crate) fn affine(&self) -> Affine {
        self.affine
    }

    pub(crate) fn weight(&self, filter: usize, tap: usize, channel: usize) -> i8 {
        let geometry = &self.layer.geometry;
        self.weights[filter * geometry.products() + tap * geometry.input().channels() + channel]
    }

    /// `u32` words of scratch that [`optimized`](Self::optimized) needs beside its window: see
    /// [`window_words`](Self::window_words).
    pub fn scratch_words(&self) -> usize {
        scratch_words(&self.layer.geometry, self.affine) + self.layer.veto_words()
    }

    /// Four-byte words of window that [`optimized`](Self::optimized) needs.
    pub fn window_words(&self) -> usize {
        self.layer.geometry.products().div_ceil(4)
    }

    /// The definition, one product at a time. `input` holds the u8 image (HWC), `output` a packed plane.
    ///
    /// # Errors
    /// [`ArgumentError::Length`] naming the slice.
    pub fn reference(&self, input: &[u8], output: &mut [u32]) -> Result<(), ArgumentError> {
        let geometry = &self.layer.geometry;
        check_length("input", geometry.input().elements(), input.len())?;
        let channels = geometry.input().channels();
        let weight = |filter: usize, tap: usize, channel: usize| {
            i32::from(self.weights[filter * geometry.products() + tap * channels + channel])
        };
        let acc = |y, x, filter| reference_accumulator(geometry, self.affine, input, weight, (y, x, filter));
        conv::reference(&self.layer, acc, output)
    }

    /// Gathers each window once.
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
        let (scratch, veto) = scratch.split_at_mut(self.scratch_words() - self.layer.veto_words());
        let filters = ByteWeights { weights: self.weights, products: geometry.products() };
        let mut gathered = Gathered::new(geometry, self.affine, filters, input, window, scratch);
        conv::convolve(&self.layer, &mut gathered, output, veto)
    }
}

struct ByteWeights<'a> {
    weights: &'a [i8],
    products: usize,
}

impl ByteFilters for ByteWeights<'_> {
    const NEEDS_TOTAL: bool = false;

    #[inline(always)]
    fn dot(&self, filter: usize, window: &[[u8; 4]], _total: u32) -> i32 {
        let weights = &self.weights[filter * self.products..(filter + 1) * self.products];
        byte_dot(window.as_flattened(), weights)
    }

    fn bias(&self, _filter: usize) -> i32 {
        0
    }
}
