/*!
What the convolution families share: the layer, and the walk over output pixels.

A family brings its accumulators. The naive reference asks for the accumulator of one element at a time,
by its definition. The optimized [`convolve`] asks an [`Accumulate`] to gather a pixel's window once, and then
for the channels it still needs. The walk itself is compiled once for all families: what it calls for each pixel
and each word of output channels goes through a table of functions ([`Pixel`]), what is called for each channel
does not.
*/

use crate::ArgumentError;
use crate::bits::lane_mask;
use crate::epilogue::{Binarization, Pool, Rules};
use crate::error::check_length;
use crate::kernel::Facts;
use crate::shape::{Conv2dGeometry, Shape};

/// A convolution, whatever its weights: shapes, and what becomes of its accumulators.
#[derive(Debug, Clone, Copy)]
pub struct ConvLayer<'a> {
    pub(crate) geometry: Conv2dGeometry,
    pub(crate) rules: Rules<'a>,
    pub(crate) pool: Option<Pool<'a>>,
    output: Shape,
}

impl<'a> ConvLayer<'a> {
    /// The convolution's rules and pool on the planes of `geometry`.
    ///
    /// # Errors
    /// [`ArgumentError`] naming the argument that does not fit the geometry.
    pub fn new(
        geometry: Conv2dGeometry,
        rules: Rules<'a>,
        pool: Option<Pool<'a>>,
    ) -> Result<Self, ArgumentError> {
        Self::of_parts(&geometry, &rules, pool.as_ref(), |error| error)
    }

    /// As [`new`](Self::new), for parts that stay where they are, and with an error of the caller's: what is passed by value,
    /// or taken out of a result, lies on the stack twice.
    ///
    /// # Errors
    /// What `error` makes of those of [`new`](Self::new).
    #[inline(always)]
    pub fn of_parts<E>(
        geometry: &Conv2dGeometry,
        rules: &Rules<'a>,
        pool: Option<&Pool<'a>>,
        error: impl Fn(ArgumentError) -> E,
    ) -> Result<Self, E> {
        let conv = geometry.output();
        let output = match pool {
            None => *conv,
            Some(pool) => {
                let sliding = pool.sliding();
                Shape::new(sliding.output_height(), sliding.output_width(), conv.channels())
                    .map_err(&error)?
            }
        };
        rules.check(conv, &output).map_err(&error)?;
        if let Some(pool) = pool {
            pool.check(conv, &output).map_err(&error)?;
        }
        Ok(Self { geometry: *geometry, rules: *rules, pool: pool.copied(), output })
    }

    /// Shapes and window, without the pool.
    pub fn geometry(&self) -> &Conv2dGeometry {
        &self.geometry
    }

    /// Shape of the packed output, after the pool where there is one.
    pub fn output(&self) -> &Shape {
        &self.output
    }

    /// What becomes of the accumulators.
    #[inline]
    pub(crate) fn epilogue(&self) -> Binarization<'_, 'a> {
        Binarization { rules: &self.rules, pool: self.pool.as_ref(), output: &self.output }
    }

    /// What an operator on this layer is.
    pub(crate) fn facts(&self) -> Facts {
        let has_pool = self.pool.is_some();
        Facts { output: *self.output(), macs: self.geometry.macs(), has_pool }
    }

    /// The definition of the output, from `acc(y, x, channel)` of the convolution's plane.
    pub(crate) fn reference(
        &self,
        acc: impl Fn(usize, usize, usize) -> i32,
        output: &mut [u32],
    ) -> Result<(), ArgumentError> {
        self.epilogue().reference(self.geometry.output(), acc, output)
    }
}

/// The accumulators of one family, a pixel at a time.
pub(crate) trait Accumulate {
    /// Gathers the window of pixel (y, x) of the convolution's plane.
    fn seek(&mut self, y: usize, x: usize);

    /// The accumulator of output channel `channel` at that pixel.
    fn accumulator(&self, channel: usize) -> i32;
}

/// An [`Accumulate`] as the walk sees it: 32 output channels a call.
pub(crate) trait Pixel {
    /// See [`Accumulate::seek`].
    fn seek(&mut self, y: usize, x: usize);

    /// The bits of the lanes of `pending` in output word `word`, by the rules of rule pixel `at`: the layer's rules, in set 0,
    /// or those of the pool's veto, in set 1.
    fn lanes(&self, set: usize, rules: &Rules<'_>, at: usize, word: usize, pending: u32) -> u32;
}

impl<A: Accumulate> Pixel for A {
    fn seek(&mut self, y: usize, x: usize) {
        Accumulate::seek(self, y, x);
    }

    #[inline(never)]
    fn lanes(&self, _: usize, rules: &Rules<'_>, at: usize, word: usize, pending: u32) -> u32 {
        let (lo, hi) = rules.intervals(at);
        let mut bits = rules.flips(at)[word] & pending;
        let mut rest = pending;
        while rest != 0 {
            let lane = rest.trailing_zeros();
            rest &= rest - 1;
            let channel = word * 32 + lane as usize;
            let acc = self.accumulator(channel);
            bits ^= u32::from(lo[channel] <= acc && acc <= hi[channel]) << lane;
        }
        bits
    }
}

/// Convolution, rules and pool, a word of output channels at a time.
///
/// A pooled bit that is already decided is not computed again: an OR that has seen a 1, or a veto, is final.
/// That makes the cost depend on the data, never the result.
#[inline(never)]
pub(crate) fn convolve(
    layer: &ConvLayer<'_>,
    accumulate: &mut dyn Pixel,
    output: &mut [u32],
    veto_bits: &mut [u32],
) -> Result<(), ArgumentError> {
    let (conv, out) = (*layer.geometry.output(), *layer.output());
    check_length("output", out.words(), output.len())?;
    let words = out.pixel_words();
    for (pixel, bits) in output.chunks_exact_mut(words).enumerate() {
        let (y, x) = (pixel / out.width(), pixel % out.width());
        let Some(pool) = &layer.pool else {
            accumulate.seek(y, x);
            let at = layer.rules.pixel(pixel, pixel);
            for (word, bits) in bits.iter_mut().enumerate() {
                *bits = accumulate.lanes(0, &layer.rules, at, word, lane_mask(out.channels(), word));
            }
            continue;
        };
        bits.fill(0);
        veto_bits.fill(0);
        let [stride_y, stride_x] = pool.sliding().window().strides;
        let [dilation_y, dilation_x] = pool.sliding().window().dilation;
        let padding = pool.sliding().window().padding;
        let (first_y, end_y) = pool.sliding().taps_inside(0, y);
        let (first_x, end_x) = pool.sliding().taps_inside(1, x);
        for tap_y in first_y..end_y {
            for tap_x in first_x..end_x {
                let conv_y = y * stride_y + tap_y * dilation_y - padding[0];
                let conv_x = x * stride_x + tap_x * dilation_x - padding[1];
                let conv_pixel = conv_y * conv.width() + conv_x;
                accumulate.seek(conv_y, conv_x);
                let at = layer.rules.pixel(conv_pixel, pixel);
                for (word, bits) in bits.iter_mut().enumerate() {
                    let all = lane_mask(out.channels(), word);
                    // A bit that is vetoed is final, whatever the rule says; one that is set may still be vetoed.
                    if let Some(veto) = pool.veto() {
                        let pending = all & !veto_bits[word];
                        veto_bits[word] |=
                            accumulate.lanes(1, veto, veto.pixel(conv_pixel, pixel), word, pending);
                    }
                    let vetoed = veto_bits.get(word).copied().unwrap_or(0);
                    *bits |= accumulate.lanes(0, &layer.rules, at, word, all & !(*bits | vetoed));
                }
            }
        }
        for (word, bits) in bits.iter_mut().enumerate() {
            let vetoed = if pool.veto().is_some() { veto_bits[word] } else { 0 };
            *bits = (*bits & !vetoed) ^ pool.invert(word);
        }
    }
    Ok(())
}
