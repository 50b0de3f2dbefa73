/*!
Bits of a convolution's accumulators: by a rule each, and pooled by a max-pool where there is one.
*/

use crate::ArgumentError;
use crate::epilogue::pool::Pool;
use crate::epilogue::rule::{Grid, Rules};
use crate::error::check_length;
use crate::shape::Shape;

/// Rules and pool on a plane of accumulators. It refers to the parts of a layer: a struct of parts, passed by value, would lie
/// on the stack twice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Binarization<'l, 'a> {
    /// The rules of the accumulators.
    pub(crate) rules: &'l Rules<'a>,
    /// The pool of their bits.
    pub(crate) pool: Option<&'l Pool<'a>>,
    /// Shape of the packed output, after the pool where there is one.
    pub(crate) output: &'l Shape,
}

impl<'l, 'a> Binarization<'l, 'a> {
    /// Scans rules and pool for set padding bits.
    pub(crate) fn check_contents(&self) -> Result<(), ArgumentError> {
        self.rules.check_contents()?;
        self.pool.map_or(Ok(()), |pool| pool.check_contents(self.output.channels()))
    }

    /// The pool's veto, where there is one.
    pub(crate) fn veto(&self) -> Option<&'l Rules<'a>> {
        self.pool.and_then(Pool::veto)
    }

    /// Rules and veto.
    pub(crate) fn rule_sets(&self) -> [Option<&'l Rules<'a>>; 2] {
        [Some(self.rules), self.veto()]
    }

    /// Whether rules and veto are the same at all pixels.
    pub(crate) fn is_by_channel(&self) -> bool {
        self.rule_sets().iter().flatten().all(|rules| rules.grid() == Grid::Channel)
    }

    /// Whether some rule is another at each pixel of the convolution's plane.
    pub(crate) fn follows_pixels(&self) -> bool {
        self.rule_sets().iter().flatten().any(|rules| rules.grid() == Grid::Conv)
    }

    /// Words that the veto bits of one output pixel take.
    pub(crate) fn veto_words(&self) -> usize {
        if self.veto().is_some() { self.output.pixel_words() } else { 0 }
    }

    /// The definition: every output bit on its own, from `acc(y, x, channel)` of the plane `conv`.
    pub(crate) fn reference(
        &self,
        conv: &Shape,
        acc: impl Fn(usize, usize, usize) -> i32,
        output: &mut [u32],
    ) -> Result<(), ArgumentError> {
        let out = self.output;
        check_length("output", out.words(), output.len())?;
        output.fill(0);
        for y in 0..out.height() {
            for x in 0..out.width() {
                let pixel = y * out.width() + x;
                for channel in 0..out.channels() {
                    let bit = match self.pool {
                        None => {
                            self.rules.get(self.rules.pixel(pixel, pixel), channel).apply(acc(y, x, channel))
                        }
                        Some(pool) => {
                            let (mut any, mut vetoed) = (false, false);
                            for tap_y in 0..pool.sliding().window().kernel[0] {
                                for tap_x in 0..pool.sliding().window().kernel[1] {
                                    let at = (
                                        pool.sliding().input_at(0, y, tap_y),
                                        pool.sliding().input_at(1, x, tap_x),
                                    );
                                    let (Some(conv_y), Some(conv_x)) = at else { continue };
                                    let value = acc(conv_y, conv_x, channel);
                                    let conv_pixel = conv_y * conv.width() + conv_x;
                                    let at = self.rules.pixel(conv_pixel, pixel);
                                    any |= self.rules.get(at, channel).apply(value);
                                    if let Some(veto) = pool.veto() {
                                        let at = veto.pixel(conv_pixel, pixel);
                                        vetoed |= veto.get(at, channel).apply(value);
                                    }
                                }
                            }
                            let invert = (pool.invert(channel / 32) >> (channel % 32)) & 1 == 1;
                            (any && !vetoed) != invert
                        }
                    };
                    output[pixel * out.pixel_words() + channel / 32] |= u32::from(bit) << (channel % 32);
                }
            }
        }
        Ok(())
    }
}
