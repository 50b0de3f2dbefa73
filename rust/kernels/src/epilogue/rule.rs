/*!
Rules: what BatchNorm, PReLU, bias, scale and sign become when they follow an integer accumulator.

A rule is an interval with a flip, `bit = (lo <= acc <= hi) XOR flip`; `lo > hi` is the empty interval, so
that constants are rules too. Rising (gamma > 0) and falling (gamma < 0) thresholds are half-open intervals,
and a negative PReLU slope makes two-sided ones.
*/

use crate::ArgumentError;
use crate::bits::{bit, check_padding_bits, words_for};
use crate::error::check_length;
use crate::shape::Shape;

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

    /// Channels of a pixel.
    pub(crate) fn channels(&self) -> usize {
        self.channels
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
