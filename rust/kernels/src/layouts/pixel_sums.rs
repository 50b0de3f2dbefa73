/*!
Convolution of bytes with 1-bit weights by tables of signed sums.

The weights of one tap are signs, and a pixel of C channels has no more than 2^(C - 1) signed sums but for their own sign. A
table has each of them for every pixel of the rows under a segment of eight windows; a filter names one sum a tap, and adds
it or takes it away:

```text
table   four words of 0, then [kernel row][pattern][kernel width + 3], a word a column
word    the sums of the pixels of column p and of column p + 4: of windows j and j + 4 of the segment
pattern bit c - 1 is set where the sign of channel c is another than that of channel 0; one more, where there is a row
        above, is the sum of pattern 0 of this row and of that one
```

So the four words from a tap's column on are the sums of eight windows. The last pattern is for two taps at once, one above the
other, with all their weights alike: trained filters have many of those, as images are more grey than coloured, and smooth.
What a byte means, `mul * q + add`, is part of the table, and a tap outside the image is 0 there: borders cost nothing. All
sums are 16 bits: `sum_walk` runs what fits them.

A filter in this layout is a word with three numbers and then `taps / 2 + 1` words of two offsets, in bytes, the low half first:
a list of the taps whose channel 0 is +1, and one of the others, each in ascending order of taps, two taps where the lower
is. The lists end at the last word, and each begins at a word, in the high half where its offsets are odd in number: the low
half is 0 then, and so are the words before the lists.

```text
word 0      bytes between this word and the first list, offsets of the second list << 8, offsets of the first list << 16
word 1 on   0, first list, second list
```
*/

use core::ops::Range;

use crate::ArgumentError;
use crate::arch::{MAX_CHANNELS, SEGMENT, SEGMENT_WORDS, SumFilters, fills, list_lengths, offset_at};
use crate::error::check_length;
use crate::shape::Conv2dGeometry;

/// Most taps: the bytes that a filter leaves, four for each pair of taps that go in twos, are counted in a byte, and so are the
/// offsets of a list.
const MAX_TAPS: usize = 248;

/// What the layout of weights depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SumShape {
    kernel: [usize; 2],
    channels: usize,
}

impl SumShape {
    /// The layout of filters of `kernel` taps on `channels` channels; `None` where there is none: beyond four channels or
    /// 248 taps.
    pub fn new(kernel: [usize; 2], channels: usize) -> Option<Self> {
        let fits = (1..=MAX_CHANNELS).contains(&channels)
            && (1..=MAX_TAPS).contains(&kernel[0].checked_mul(kernel[1])?);
        fits.then_some(Self { kernel, channels })
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

    /// The filters `weights`, where a kernel can look all their sums up.
    pub(crate) fn filters(self, weights: &[u32]) -> Option<SumFilters<'_>> {
        SumFilters::new(self.filter_words(), self.table_words(), weights)
    }

    pub(crate) fn kernel_rows(&self) -> usize {
        self.kernel[0]
    }

    /// Patterns of one tap.
    fn patterns(&self) -> usize {
        1 << (self.channels - 1)
    }

    /// Words of a table's row that are of one tap.
    pub(crate) fn single_words(&self) -> usize {
        self.patterns() * self.columns()
    }

    /// Words of a table's row.
    pub(crate) fn row_words(&self) -> usize {
        self.single_words() + if self.kernel[0] > 1 { self.columns() } else { 0 }
    }

    pub(crate) fn columns(&self) -> usize {
        self.kernel[1] + SEGMENT_WORDS - 1
    }

    pub(crate) fn table_words(&self) -> usize {
        SEGMENT_WORDS + self.kernel[0] * self.row_words()
    }

    /// The offsets of a filter, in order of the taps, and the list of each.
    fn offsets(&self, packed: &[u32]) -> impl Iterator<Item = (usize, usize)> {
        let (width, all) = (self.kernel[1], (1u32 << self.channels) - 1);
        let is_grey = move |pixel: u32| pixel & all == 0 || pixel & all == all;
        // Runs of like taps in a column go in twos, from the top.
        let is_lower = move |tap: usize| {
            let like = (1..=tap / width).take_while(|up| packed[tap - up * width] & all == packed[tap] & all);
            is_grey(packed[tap]) && like.count() % 2 == 1
        };
        let is_upper = move |tap: usize| tap + width < packed.len() && is_lower(tap + width);
        packed.iter().enumerate().filter(move |&(tap, _)| !is_upper(tap)).map(move |(tap, &pixel)| {
            let (list, differing) = if pixel & 1 == 1 { (0, !pixel) } else { (1, pixel) };
            let pattern = match is_lower(tap) {
                true => self.patterns(),
                false => (differing >> 1) as usize & (self.patterns() - 1),
            };
            (list, self.offset(tap, pattern))
        })
    }

    /// Where the sums of a tap and pattern begin in the table, in bytes.
    fn offset(&self, tap: usize, pattern: usize) -> usize {
        let (row, column) = (tap / self.kernel[1], tap % self.kernel[1]);
        4 * (SEGMENT_WORDS + row * self.row_words() + pattern * self.columns() + column)
    }

    /// What `offset` names: the lower tap, the pattern, and how many taps; `None` where it is no offset of a sum.
    fn named(&self, offset: usize) -> Option<(usize, usize, usize)> {
        let word = (offset / 4).checked_sub(SEGMENT_WORDS).filter(|_| offset.is_multiple_of(4))?;
        let (row, word) = (word / self.row_words(), word % self.row_words());
        let (pattern, column) = (word / self.columns(), word % self.columns());
        if row >= self.kernel[0] || column >= self.kernel[1] {
            return None;
        }
        let tap = row * self.kernel[1] + column;
        match pattern < self.patterns() {
            true => Some((tap, pattern, 1)),
            false => (row > 0).then_some((tap, 0, 2)),
        }
    }

    /// Whether a filter's weight of `tap` and `channel` is +1.
    pub(crate) fn weight_is_plus(&self, filter: &[u32], tap: usize, channel: usize) -> bool {
        for (list, offsets) in self.lists(filter).into_iter().enumerate() {
            for at in offsets {
                if let Some((lower, pattern, taps)) = self.named(offset_at(filter, at))
                    && (lower == tap || taps == 2 && lower == tap + self.kernel[1])
                {
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
        let second = end - second..end;
        let split = second.start - second.start % 2;
        [split - first.min(split)..split, second]
    }

    /// Each tap once, in order, and 0 for the rest.
    pub(crate) fn check_contents(&self, weights: &[u32]) -> Result<(), ArgumentError> {
        let error = ArgumentError::Value { argument: "weights" };
        for filter in weights.chunks_exact(self.filter_words()) {
            let lists = self.lists(filter);
            let is_listed = |at: &usize| lists.iter().any(|list| list.contains(at));
            let mut others = (0..2 * (self.filter_words() - 1)).filter(|at| !is_listed(at));
            if !fills(filter) || others.any(|at| offset_at(filter, at) != 0) {
                return Err(error);
            }
            // Bits of taps that were named.
            let mut seen = [0u32; MAX_TAPS.div_ceil(32)];
            for list in lists {
                let mut next = 0;
                for at in list {
                    let (lower, _, taps) = self.named(offset_at(filter, at)).ok_or(error)?;
                    for tap in [lower, lower.wrapping_sub(self.kernel[1])].into_iter().take(taps) {
                        let (word, bit) = (&mut seen[tap / 32], 1 << (tap % 32));
                        if *word & bit != 0 {
                            return Err(error);
                        }
                        *word |= bit;
                    }
                    if lower < next {
                        return Err(error);
                    }
                    next = lower + 1;
                }
            }
            if seen.iter().map(|word| word.count_ones() as usize).sum::<usize>() != self.taps() {
                return Err(error);
            }
        }
        Ok(())
    }
}

/// Instructions of a `qbconv2d` with its weights laid out so: sums are looked up for eight windows, and borders cost nothing.
pub fn instructions(geometry: &Conv2dGeometry) -> u64 {
    let [kernel_height, kernel_width] = geometry.sliding().window().kernel;
    let (filters, taps) = (geometry.output().channels() as u64, (kernel_height * kernel_width) as u64);
    let segments = geometry.output().height() * geometry.output().width().div_ceil(SEGMENT);
    let table = 28 * (kernel_width as u64 + 3) + 600;
    segments as u64 * (filters * (13 * taps + 80) + 2 * table) / 2
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
        let count = |list| shape.offsets(packed).filter(|&(of, _)| of == list).count();
        let [first, second] = [count(0), count(1)];
        let split = end - second.next_multiple_of(2);
        let before = 4 * (split - first.next_multiple_of(2)) / 2;
        filter[0] = (first << 16 | second << 8 | before) as u32;
        let mut next = [split - first, end - second];
        for (list, offset) in shape.offsets(packed) {
            let at = next[list];
            filter[1 + at / 2] |= (offset as u32) << (16 * (at % 2));
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
