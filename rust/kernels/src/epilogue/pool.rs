/*!
A max-pool of bits, fused into the convolution before it.
*/

use crate::ArgumentError;
use crate::bits::check_padding_bits;
use crate::epilogue::rule::Rules;
use crate::error::check_length;
use crate::shape::{Shape, Sliding, Window};

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
