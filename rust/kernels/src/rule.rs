/*!
Rules: what BatchNorm, PReLU, bias, scale and sign become when they follow an integer accumulator.

A rule is an interval with a flip, `bit = (lo <= acc <= hi) XOR flip`; `lo > hi` is the empty interval, so
that constants are rules too. Rising (gamma > 0) and falling (gamma < 0) thresholds are half-open intervals,
and a negative PReLU slope makes two-sided ones.
*/

use crate::ArgumentError;
use crate::bits::{bit, check_padding_bits, words_for};
use crate::error::check_length;
use crate::shape::{Shape, Sliding, Window};

/// One rule: `bit = (lo <= acc <= hi) XOR flip`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Smallest accumulator inside.
    pub lo: i32,
    /// Largest accumulator inside.
    pub hi: i32,
    /// Whether the outside is +1 instead.
    pub flip: bool,
}

impl Rule {
    /// The bit of an accumulator.
    #[inline]
    pub fn apply(&self, acc: i32) -> bool {
        (self.lo <= acc && acc <= self.hi) != self.flip
    }
}

/// Which plane the rules of a [`Rules`] follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grid {
    /// One rule a channel, the same at every pixel.
    Channel,
    /// One rule an element of the convolution's own output plane.
    Conv,
    /// One rule an element of the (pooled) output plane.
    Output,
}

/// The rules of a layer, as they lie in a model: three arrays in step.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'a> {
    grid: Grid,
    channels: usize,
    lo: &'a [i32],
    hi: &'a [i32],
    flip: &'a [u32],
}

impl<'a> Rules<'a> {
    /// Rules for `channels` channels: `lo` and `hi` hold `pixels * channels` values, `flip` the packed flips
    /// of as many pixels; `pixels` is 1 for [`Grid::Channel`].
    ///
    /// # Errors
    /// [`ArgumentError::Length`] where the three disagree.
    pub fn new(
        grid: Grid,
        channels: usize,
        lo: &'a [i32],
        hi: &'a [i32],
        flip: &'a [u32],
    ) -> Result<Self, ArgumentError> {
        if channels == 0 {
            return Err(ArgumentError::Zero { argument: "channels" });
        }
        let pixels = if grid == Grid::Channel { 1 } else { lo.len() / channels };
        check_length("rule lo", pixels * channels, lo.len())?;
        check_length("rule hi", lo.len(), hi.len())?;
        check_length("rule flip", pixels * words_for(channels), flip.len())?;
        Ok(Self { grid, channels, lo, hi, flip })
    }

    pub(crate) fn check_contents(&self) -> Result<(), ArgumentError> {
        check_padding_bits("rule flip", self.flip, self.channels)
    }

    /// Checks the rules against the planes they are used on.
    pub(crate) fn check(&self, conv: &Shape, output: &Shape) -> Result<(), ArgumentError> {
        let pixels = match self.grid {
            Grid::Channel => 1,
            Grid::Conv => conv.pixels(),
            Grid::Output => output.pixels(),
        };
        // First the channels: with other ones, as many values can lie in other pixels.
        check_length("rule channels", conv.channels(), self.channels)?;
        check_length("rule lo", pixels * conv.channels(), self.lo.len())
    }

    pub(crate) fn grid(&self) -> Grid {
        self.grid
    }

    /// Pixels that there are rules for.
    pub(crate) fn pixels(&self) -> usize {
        self.lo.len() / self.channels
    }

    /// Index of the pixel whose rules apply, for pixel `conv` of the convolution and `output` of the output.
    #[inline]
    pub(crate) fn pixel(&self, conv: usize, output: usize) -> usize {
        match self.grid {
            Grid::Channel => 0,
            Grid::Conv => conv,
            Grid::Output => output,
        }
    }

    /// The rule of `channel` at rule pixel `pixel`.
    pub fn get(&self, pixel: usize, channel: usize) -> Rule {
        let flips = &self.flip[pixel * words_for(self.channels)..];
        let index = pixel * self.channels + channel;
        Rule { lo: self.lo[index], hi: self.hi[index], flip: bit(flips, channel) }
    }

    /// The intervals of one rule pixel: `lo` and `hi`, one value a channel.
    #[inline]
    pub(crate) fn intervals(&self, pixel: usize) -> (&'a [i32], &'a [i32]) {
        let at = pixel * self.channels;
        (&self.lo[at..at + self.channels], &self.hi[at..at + self.channels])
    }

    /// The packed flips of one rule pixel.
    #[inline]
    pub(crate) fn flips(&self, pixel: usize) -> &'a [u32] {
        let words = words_for(self.channels);
        &self.flip[pixel * words..(pixel + 1) * words]
    }
}

/// A max-pool fused into the convolution before it:
///
/// ```text
/// bit = (OR over the window of rule(acc)  AND NOT  OR over the window of veto(acc)) XOR invert
/// ```
///
/// With A the chain before the pool and B the one after, this is every case there is. B rising: the OR of
/// the bits of B∘A. B falling: their AND, as the inverted OR of flipped bits. B two-sided, an interval
/// [l, h] on y = max A: `OR[A >= l] AND NOT OR[A > h]`.
#[derive(Debug, Clone, Copy)]
pub struct Pool<'a> {
    sliding: Sliding,
    veto: Option<Rules<'a>>,
    invert: Option<&'a [u32]>,
}

impl<'a> Pool<'a> {
    /// A pool of `window` on the output plane `conv` of a convolution. Padding taps are skipped.
    ///
    /// `invert` holds the packed bits of one pixel.
    ///
    /// # Errors
    /// As [`Sliding::new`]; [`ArgumentError::Length`] for `invert`.
    pub fn new(
        conv: &Shape,
        window: Window,
        veto: Option<Rules<'a>>,
        invert: Option<&'a [u32]>,
    ) -> Result<Self, ArgumentError> {
        let sliding = Sliding::new(conv.height(), conv.width(), window)?;
        if let Some(invert) = invert {
            check_length("invert", conv.pixel_words(), invert.len())?;
        }
        Ok(Self { sliding, veto, invert })
    }

    /// As [`new`](Self::new), of parts that a [`ConvLayer`](crate::ConvLayer) checks.
    #[inline(always)]
    pub fn of_parts(sliding: Sliding, veto: Option<&Rules<'a>>, invert: Option<&'a [u32]>) -> Self {
        Self { sliding, veto: veto.copied(), invert }
    }

    /// The pool's window on the convolution's plane.
    pub fn sliding(&self) -> &Sliding {
        &self.sliding
    }

    /// Checks that the pool was made for the plane that it is used on.
    pub(crate) fn check(&self, conv: &Shape, output: &Shape) -> Result<(), ArgumentError> {
        if !self.sliding.is_on(conv) {
            return Err(ArgumentError::Value { argument: "pool" });
        }
        if let Some(invert) = self.invert {
            check_length("invert", conv.pixel_words(), invert.len())?;
        }
        self.veto.as_ref().map_or(Ok(()), |veto| veto.check(conv, output))
    }

    pub(crate) fn check_contents(&self, channels: usize) -> Result<(), ArgumentError> {
        self.veto.as_ref().map_or(Ok(()), Rules::check_contents)?;
        self.invert.map_or(Ok(()), |invert| check_padding_bits("invert", invert, channels))
    }

    pub(crate) fn veto(&self) -> Option<&Rules<'a>> {
        self.veto.as_ref()
    }

    pub(crate) fn invert(&self, word: usize) -> u32 {
        self.invert.map_or(0, |invert| invert[word])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_rule() {
        let table = [
            (Rule { lo: 3, hi: i32::MAX, flip: false }, [false, false, true, true]),
            (Rule { lo: i32::MIN, hi: 3, flip: false }, [true, true, true, false]),
            (Rule { lo: 0, hi: 3, flip: false }, [false, true, true, false]),
            (Rule { lo: 0, hi: 3, flip: true }, [true, false, false, true]),
            (Rule { lo: 1, hi: 0, flip: false }, [false; 4]),
            (Rule { lo: 1, hi: 0, flip: true }, [true; 4]),
        ];
        for (rule, bits) in table {
            assert_eq!([-1, 0, 3, 4].map(|acc| rule.apply(acc)), bits, "{rule:?}");
        }
    }
}
