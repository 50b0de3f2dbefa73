/*!
Groups of 32 output channels: one word holds the same weight of all of them.

The words of a kernel column follow one another, row by row and channel by channel, cut into segments so that a byte can say
which word of a segment is meant: a list of bytes picks the words that a [vertical counter](super::moving) adds up. Behind
every segment lies a word of zeros, which fills lists up.
*/

use crate::bits::words_for;

/// Packed input words of a segment: 7 x 32 weights and the word of zeros have indices below 256.
pub(crate) const SEGMENT_PIXELS: usize = 7;

/// Where the words of a kernel's taps lie, for 32 output channels at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupShape {
    filters: usize,
    kernel: [usize; 2],
    channels: usize,
    // What follows from these; the walk asks often.
    pixel_words: usize,
    column_words: usize,
    group_words: usize,
}

impl GroupShape {
    /// The layout of `filters` filters of `kernel` (height, width) taps on `channels` channels, each at least 1.
    pub const fn new(filters: usize, kernel: [usize; 2], channels: usize) -> Self {
        let pixel_words = words_for(channels);
        let column_words = kernel[0] * channels + (kernel[0] * pixel_words).div_ceil(SEGMENT_PIXELS);
        let group_words = kernel[1] * column_words;
        Self { filters, kernel, channels, pixel_words, column_words, group_words }
    }

    /// Filters.
    pub(crate) const fn filters(&self) -> usize {
        self.filters
    }

    /// Words of the mask, of one input pixel and of one tap of a canonical filter.
    pub(crate) const fn pixel_words(&self) -> usize {
        self.pixel_words
    }

    /// Groups of 32 output channels.
    pub(crate) const fn groups(&self) -> usize {
        words_for(self.filters)
    }

    /// Input words of one column of the kernel.
    pub(crate) const fn column_pixels(&self) -> usize {
        self.kernel[0] * self.pixel_words()
    }

    /// Segments of one column.
    pub(crate) const fn segments(&self) -> usize {
        self.column_pixels().div_ceil(SEGMENT_PIXELS)
    }

    /// Weights of a column that lie before its input word `word`.
    pub(crate) const fn before(&self, word: usize) -> usize {
        word / self.pixel_words() * self.channels + word % self.pixel_words() * 32
    }

    /// Input words `first..end` of a column that a segment has.
    pub(crate) fn segment(&self, segment: usize) -> (usize, usize) {
        (segment * SEGMENT_PIXELS, ((segment + 1) * SEGMENT_PIXELS).min(self.column_pixels()))
    }

    /// Weights of a segment, its word of zeros excluded.
    pub(crate) fn segment_weights(&self, segment: usize) -> usize {
        let (first, end) = self.segment(segment);
        self.before(end) - self.before(first)
    }

    /// The first word of a segment of a group's column, mask excluded.
    pub(crate) fn tap(&self, group: usize, column: usize, segment: usize) -> usize {
        group * self.group_words
            + column * self.column_words
            + self.before(segment * SEGMENT_PIXELS)
            + segment
    }

    /// Words of one column.
    pub(crate) const fn column_words(&self) -> usize {
        self.column_words
    }

    /// Rows of the kernel.
    pub(crate) const fn kernel_rows(&self) -> usize {
        self.kernel[0]
    }

    /// Columns of the kernel.
    pub(crate) const fn columns(&self) -> usize {
        self.kernel[1]
    }

    /// Input channels.
    pub(crate) const fn channels(&self) -> usize {
        self.channels
    }

    /// Words of all columns of one group.
    pub(crate) const fn group_words(&self) -> usize {
        self.group_words
    }

    /// Words in all.
    pub const fn words(&self) -> usize {
        self.pixel_words() + self.groups() * self.group_words()
    }

    /// The words of a layout whose sides are at least 1 and at most 65535, on a core with 32 bits too; `None`
    /// where they don't fit 64 bits.
    pub fn checked_words([filters, height, width, channels]: [u32; 4]) -> Option<u64> {
        let pixel_words = channels.div_ceil(32);
        let segments = height.checked_mul(pixel_words)?.div_ceil(SEGMENT_PIXELS as u32);
        let column = u64::from(height) * u64::from(channels) + u64::from(segments);
        let group = column * u64::from(width);
        group.checked_mul(u64::from(filters.div_ceil(32)))?.checked_add(pixel_words.into())
    }
}

/// The words of a column that a segment has, as rows and words of a pixel: without a division a word.
pub(crate) struct SegmentEdges {
    start: (usize, usize),
    end: (usize, usize),
    channels: usize,
}

impl SegmentEdges {
    pub(crate) fn new(shape: &GroupShape, segment: usize) -> Self {
        let (start, end) = shape.segment(segment);
        let edge = |at: usize| (at / shape.pixel_words(), at % shape.pixel_words());
        Self { start: edge(start), end: edge(end), channels: shape.channels() }
    }

    /// The rows, of `rows`, in which word `word` of a pixel belongs to the segment.
    #[inline]
    pub(crate) fn rows(&self, word: usize, rows: (usize, usize)) -> (usize, usize) {
        let row = |edge: (usize, usize)| edge.0 + usize::from(word < edge.1);
        (row(self.start).max(rows.0), row(self.end).min(rows.1))
    }

    /// The pick of the lowest bit of a word of the segment.
    #[inline]
    pub(crate) fn pick(&self, row: usize, word: usize) -> u8 {
        ((row - self.start.0) * self.channels + 32 * word - 32 * self.start.1) as u8
    }
}
