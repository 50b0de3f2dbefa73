/*!
Convolution of bytes with 1-bit weights by tables of signed sums.

The weights of one tap are signs, and a pixel of C channels has no more than 2^(C - 1) signed sums but for their own sign. A
table has each of them for every pixel of the rows under a segment of eight windows; a filter names one sum a tap, and adds
it or takes it away:

```text
table   four words of 0, then [kernel row][pattern][kernel width + 3], a word a column
word    the sums of the pixels of column p and of column p + 4: of windows j and j + 4 of the segment
pattern bit c - 1 is set where the sign of channel c is another than that of channel 0
```

So the four words from a tap's column on are the sums of eight windows. What a byte means, `mul * q + add`, is part of the
table, and a tap outside the image is 0 there: borders cost nothing. All sums are 16 bits: `sum_walk` runs what fits them.

A filter in this layout is a word with two numbers and then `taps / 2 + 1` words of two offsets, in bytes, the low half first:
a list of the taps whose channel 0 is +1, and one of the others, each in ascending order. A list ends at a word; what it lacks,
it has at its beginning, as offsets of 0, where the table is 0: at most one of them in the first list, all others in the second.
A lone one, which makes the low half of a list's first word, is none of the list's offsets.

```text
word 0      offsets of the second list, offsets of the first list << 16
word 1 on   first list, second list
```
*/

use core::ops::Range;

use crate::ArgumentError;
use crate::error::check_length;
use crate::shape::Conv2dGeometry;

/// Windows of a segment.
pub(crate) const SEGMENT: usize = 8;
/// Words of a segment's sums, two windows a word.
pub(crate) const SEGMENT_WORDS: usize = SEGMENT / 2;
/// Most input channels.
pub(crate) const MAX_CHANNELS: usize = 4;

/// What the layout of weights depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SumShape {
    kernel: [usize; 2],
    channels: usize,
}

impl SumShape {
    /// The layout of filters of `kernel` taps on `channels` channels; `None` where there is none: beyond four channels,
    /// or where the table's offsets would not fit 16 bits.
    pub fn new(kernel: [usize; 2], channels: usize) -> Option<Self> {
        let shape = Self { kernel, channels };
        let largest = 1 << 16;
        let fits = (1..=MAX_CHANNELS).contains(&channels)
            && kernel.iter().all(|side| (1..largest).contains(side))
            && kernel[0].checked_mul(kernel[1])? < largest
            && shape.table_words() <= largest / 4;
        fits.then_some(shape)
    }

    pub(crate) fn of(geometry: &Conv2dGeometry) -> Option<Self> {
        Self::new(geometry.sliding().window().kernel, geometry.input().channels())
    }

    fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Words of one filter.
    pub fn filter_words(&self) -> usize {
        self.taps() / 2 + 2
    }

    pub(crate) fn kernel_rows(&self) -> usize {
        self.kernel[0]
    }

    fn patterns(&self) -> usize {
        1 << (self.channels - 1)
    }

    /// Words of a table's row.
    pub(crate) fn row_words(&self) -> usize {
        self.patterns() * self.columns()
    }

    pub(crate) fn columns(&self) -> usize {
        self.kernel[1] + SEGMENT_WORDS - 1
    }

    pub(crate) fn table_words(&self) -> usize {
        SEGMENT_WORDS + self.kernel[0] * self.row_words()
    }

    /// Where the sums of a tap and pattern begin in the table, in bytes.
    fn offset(&self, tap: usize, pattern: usize) -> usize {
        let (row, column) = (tap / self.kernel[1], tap % self.kernel[1]);
        4 * (SEGMENT_WORDS + row * self.row_words() + pattern * self.columns() + column)
    }

    /// The pattern of the sum that begins at `offset`, where it is one of `tap`.
    fn pattern(&self, tap: usize, offset: usize) -> Option<usize> {
        (0..self.patterns()).find(|&pattern| self.offset(tap, pattern) == offset)
    }

    /// Whether a filter's weight of `tap` and `channel` is +1.
    pub(crate) fn weight_is_plus(&self, filter: &[u32], tap: usize, channel: usize) -> bool {
        for (list, offsets) in self.lists(filter).into_iter().enumerate() {
            for at in offsets {
                if let Some(pattern) = self.pattern(tap, offset_at(filter, at)) {
                    let differs = channel > 0 && pattern >> (channel - 1) & 1 == 1;
                    return (list == 0) != differs;
                }
            }
        }
        // No such tap, in weights that nobody has checked.
        false
    }

    /// Where the offsets of both lists are, for a filter that may be anything.
    fn lists(&self, filter: &[u32]) -> [Range<usize>; 2] {
        let end = 2 * (self.filter_words() - 1);
        let [first, second] = list_lengths(filter).map(|length| length.min(end));
        let split = first.next_multiple_of(2).min(end);
        [split - first.min(split)..split, end - second.min(end - split)..end]
    }

    /// Each tap once, in order, and 0 for the rest.
    pub(crate) fn check_contents(&self, weights: &[u32]) -> Result<(), ArgumentError> {
        let error = ArgumentError::Value { argument: "weights" };
        for filter in weights.chunks_exact(self.filter_words()) {
            if !self.fills(filter) {
                return Err(error);
            }
            // Zeros are left out: no tap begins there.
            let is_zero = |at: &usize| offset_at(filter, *at) == 0;
            let mut lists = self.lists(filter);
            let zeros = lists.clone().map(|list| list.take_while(is_zero).count());
            for (list, zeros) in lists.iter_mut().zip(zeros) {
                list.start += zeros;
            }
            let count: usize = lists.iter().map(Range::len).sum();
            let lone_ones = (0..2 * (self.filter_words() - 1))
                .filter(|at| lists.iter().all(|list| !list.contains(at)))
                .all(|at| is_zero(&at));
            if zeros[0] > 0 || ![0, 2].contains(&zeros[1]) || count != self.taps() || !lone_ones {
                return Err(error);
            }
            for tap in 0..self.taps() {
                let is_next = |list: &&mut Range<usize>| {
                    list.start < list.end && self.pattern(tap, offset_at(filter, list.start)).is_some()
                };
                lists.iter_mut().find(is_next).ok_or(error)?.start += 1;
            }
        }
        Ok(())
    }

    /// Whether the lists fill a filter's words.
    fn fills(&self, filter: &[u32]) -> bool {
        let words = list_lengths(filter).map(|length| length.div_ceil(2));
        words[0] + words[1] == self.filter_words() - 1
    }
}

/// Offsets of both lists of a filter.
fn list_lengths(filter: &[u32]) -> [usize; 2] {
    [filter[0] >> 16, filter[0] & 0xFFFF].map(|length| length as usize)
}

/// Offset `at` of a filter.
fn offset_at(filter: &[u32], at: usize) -> usize {
    (filter[1 + at / 2] >> (16 * (at % 2))) as u16 as usize
}

/// Filters whose offsets lie in the table, at words, with as many words from there on as are loaded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SumFilters<'a> {
    shape: SumShape,
    weights: &'a [u32],
}

impl<'a> SumFilters<'a> {
    /// The filters where that is so.
    pub(crate) fn new(shape: SumShape, weights: &'a [u32]) -> Option<Self> {
        let last = 4 * (shape.table_words() - SEGMENT_WORDS) as u32;
        let is_inside = |pair: u32| pair & 0xFFFF <= last && pair >> 16 <= last && pair & 0x0003_0003 == 0;
        let fits = weights
            .chunks_exact(shape.filter_words())
            .all(|filter| shape.fills(filter) && filter[1..].iter().all(|&pair| is_inside(pair)));
        fits.then_some(Self { shape, weights })
    }

    /// Each 32 filters, and what is left.
    pub(crate) fn groups(self) -> impl Iterator<Item = Self> {
        let words = 32 * self.shape.filter_words();
        self.weights.chunks(words).map(move |weights| Self { weights, ..self })
    }

    #[cfg_attr(not(cbin_dsp), allow(dead_code))]
    pub(crate) fn weights(&self) -> &'a [u32] {
        self.weights
    }

    #[cfg_attr(not(cbin_dsp), allow(dead_code))]
    pub(crate) fn shape(&self) -> &SumShape {
        &self.shape
    }

    /// The offsets of both lists of each filter, lone offsets of 0 included.
    #[cfg_attr(cbin_dsp, allow(dead_code))]
    pub(crate) fn lists(self) -> impl Iterator<Item = (&'a [u32], &'a [u32])> {
        self.weights
            .chunks_exact(self.shape.filter_words())
            .map(|filter| filter[1..].split_at(list_lengths(filter)[0].div_ceil(2)))
    }
}

/// Rewrites canonical weights, `[filters][taps][one word]`, in this layout.
///
/// # Errors
/// [`ArgumentError::Length`] naming the slice.
pub fn to_sums(shape: &SumShape, packed: &[u32], sums: &mut [u32]) -> Result<(), ArgumentError> {
    let filters = packed.len() / shape.taps();
    check_length("packed", filters * shape.taps(), packed.len())?;
    check_length("sums", filters * shape.filter_words(), sums.len())?;
    sums.fill(0);
    for (packed, filter) in packed.chunks_exact(shape.taps()).zip(sums.chunks_exact_mut(shape.filter_words()))
    {
        let end = 2 * (shape.filter_words() - 1);
        let first = packed.iter().filter(|pixel| **pixel & 1 == 1).count();
        let split = first.next_multiple_of(2);
        // All but a lone offset of 0.
        let second = end - split - (shape.taps() - first) % 2;
        filter[0] = (first << 16 | second) as u32;
        let mut next = [split - first, end - (shape.taps() - first)];
        for (tap, pixel) in packed.iter().enumerate() {
            let (list, differing) = if pixel & 1 == 1 { (0, !pixel) } else { (1, *pixel) };
            let pattern = (differing >> 1) as usize & (shape.patterns() - 1);
            let at = next[list];
            filter[1 + at / 2] |= (shape.offset(tap, pattern) as u32) << (16 * (at % 2));
            next[list] += 1;
        }
    }
    Ok(())
}

/// Rewrites weights of this layout as canonical ones.
///
/// # Errors
/// [`ArgumentError::Length`] naming the slice.
pub fn from_sums(shape: &SumShape, sums: &[u32], packed: &mut [u32]) -> Result<(), ArgumentError> {
    let filters = packed.len() / shape.taps();
    check_length("packed", filters * shape.taps(), packed.len())?;
    check_length("sums", filters * shape.filter_words(), sums.len())?;
    for (packed, filter) in packed.chunks_exact_mut(shape.taps()).zip(sums.chunks_exact(shape.filter_words()))
    {
        for (tap, pixel) in packed.iter_mut().enumerate() {
            *pixel = (0..shape.channels)
                .map(|channel| u32::from(shape.weight_is_plus(filter, tap, channel)) << channel)
                .sum();
        }
    }
    Ok(())
}
