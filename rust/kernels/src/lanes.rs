/*!
Weights by output channel: the layout in which one word holds one weight of 32 output channels.

```text
mask                                     words of one input pixel
for each 32 output channels
    for each kernel column
        for each kernel row, input channel   one word: bit l belongs to output channel 32 g + l
        (a word of zeros after every SEGMENT input words of the column, and at its end)
```

Bit c of the mask says that input channel c is stored inverted: every weight of it is, and its activations are to
be inverted as they are read, which changes no product. A channel that is mostly +1 becomes one that is mostly 0, and
a kernel that walks the set bits has less to walk. Unused bits, of the mask and above the last output channel,
are 0.

The columns are cut into segments so that a byte can say which word of a segment is meant, the word of zeros
included; `vertical` needs both.
*/

use crate::ArgumentError;
use crate::bits::{bit, check_padding_bits, lane_mask, words_for};
use crate::error::check_length;

/// Packed input words of a segment: 7 x 32 weights and the word of zeros have indices below 256.
pub(crate) const SEGMENT: usize = 7;

/// Where everything lies in weights by output channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneShape {
    filters: usize,
    kernel: [usize; 2],
    channels: usize,
    // What follows from these; the walk asks often.
    pixel_words: usize,
    column_words: usize,
    group_words: usize,
}

impl LaneShape {
    /// The layout of `filters` filters of `kernel` (height, width) taps on `channels` channels, each at least 1.
    pub const fn new(filters: usize, kernel: [usize; 2], channels: usize) -> Self {
        let pixel_words = words_for(channels);
        let column_words = kernel[0] * channels + (kernel[0] * pixel_words).div_ceil(SEGMENT);
        let group_words = kernel[1] * column_words;
        Self { filters, kernel, channels, pixel_words, column_words, group_words }
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
        self.column_pixels().div_ceil(SEGMENT)
    }

    /// Weights of a column that lie before its input word `word`.
    pub(crate) const fn before(&self, word: usize) -> usize {
        word / self.pixel_words() * self.channels + word % self.pixel_words() * 32
    }

    /// Input words `first..end` of a column that a segment has.
    pub(crate) fn segment(&self, segment: usize) -> (usize, usize) {
        (segment * SEGMENT, ((segment + 1) * SEGMENT).min(self.column_pixels()))
    }

    /// Weights of a segment, its word of zeros excluded.
    pub(crate) fn segment_weights(&self, segment: usize) -> usize {
        let (first, end) = self.segment(segment);
        self.before(end) - self.before(first)
    }

    /// The first word of a segment of a group's column, mask excluded.
    pub(crate) fn tap(&self, group: usize, column: usize, segment: usize) -> usize {
        group * self.group_words + column * self.column_words + self.before(segment * SEGMENT) + segment
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
        let segments = height.checked_mul(pixel_words)?.div_ceil(SEGMENT as u32);
        let column = u64::from(height) * u64::from(channels) + u64::from(segments);
        let group = column * u64::from(width);
        group.checked_mul(u64::from(filters.div_ceil(32)))?.checked_add(pixel_words.into())
    }

    /// Words of one filter in the canonical layout.
    const fn filter_words(&self) -> usize {
        self.kernel[0] * self.kernel[1] * self.pixel_words()
    }

    /// The word of input channel `channel` at a tap, in group 0.
    fn at(&self, tap: [usize; 2], channel: usize) -> usize {
        let [row, column] = tap;
        let segment = (row * self.pixel_words() + channel / 32) / SEGMENT;
        self.pixel_words() + column * self.column_words() + row * self.channels + channel + segment
    }

    /// The weight of `filter` at a tap: whether it is +1.
    pub(crate) fn is_plus(&self, lanes: &[u32], filter: usize, tap: [usize; 2], channel: usize) -> bool {
        let word = lanes[filter / 32 * self.group_words() + self.at(tap, channel)];
        ((word >> (filter % 32)) & 1 == 1) != bit(lanes, channel)
    }

    /// Each tap of the kernel with its index in a canonical filter.
    fn taps(&self) -> impl Iterator<Item = (usize, [usize; 2])> {
        let width = self.kernel[1];
        (0..self.kernel[0] * width).map(move |tap| (tap, [tap / width, tap % width]))
    }

    /// Checks what the layout promises of its contents.
    pub(crate) fn check_contents(&self, lanes: &[u32]) -> Result<(), ArgumentError> {
        let (mask, groups) = lanes.split_at(self.pixel_words());
        check_padding_bits("weights", mask, self.channels)?;
        for (group, columns) in groups.chunks_exact(self.group_words()).enumerate() {
            let unused = !lane_mask(self.filters, group);
            for column in columns.chunks_exact(self.column_words()) {
                if column.iter().any(|word| word & unused != 0) {
                    return Err(ArgumentError::PaddingBits { argument: "weights" });
                }
                for segment in 0..self.segments() {
                    let end = ((segment + 1) * SEGMENT).min(self.column_pixels());
                    if column[self.before(end) + segment] != 0 {
                        return Err(ArgumentError::Value { argument: "weights" });
                    }
                }
            }
        }
        Ok(())
    }
}

/// Rewrites canonical weights by output channel. `mask` is one packed input pixel.
///
/// # Errors
/// [`ArgumentError::Length`] naming the slice; [`ArgumentError::PaddingBits`] for `mask`.
pub fn to_lanes(
    shape: &LaneShape,
    packed: &[u32],
    mask: &[u32],
    lanes: &mut [u32],
) -> Result<(), ArgumentError> {
    check_length("packed", shape.filters * shape.filter_words(), packed.len())?;
    check_length("mask", shape.pixel_words(), mask.len())?;
    check_length("lanes", shape.words(), lanes.len())?;
    check_padding_bits("mask", mask, shape.channels)?;
    lanes.fill(0);
    lanes[..mask.len()].copy_from_slice(mask);
    for (filter, weights) in packed.chunks_exact(shape.filter_words()).enumerate() {
        for (tap, place) in shape.taps() {
            let pixel = &weights[tap * shape.pixel_words()..];
            for channel in 0..shape.channels {
                let plus = bit(pixel, channel) != bit(mask, channel);
                let at = filter / 32 * shape.group_words() + shape.at(place, channel);
                lanes[at] |= u32::from(plus) << (filter % 32);
            }
        }
    }
    Ok(())
}

/// Rewrites weights by output channel in the canonical layout: the inverse of [`to_lanes`].
///
/// # Errors
/// [`ArgumentError::Length`] naming the slice.
pub fn from_lanes(shape: &LaneShape, lanes: &[u32], packed: &mut [u32]) -> Result<(), ArgumentError> {
    check_length("lanes", shape.words(), lanes.len())?;
    check_length("packed", shape.filters * shape.filter_words(), packed.len())?;
    packed.fill(0);
    for (filter, weights) in packed.chunks_exact_mut(shape.filter_words()).enumerate() {
        for (tap, place) in shape.taps() {
            let pixel = &mut weights[tap * shape.pixel_words()..];
            for channel in 0..shape.channels {
                pixel[channel / 32] |=
                    u32::from(shape.is_plus(lanes, filter, place, channel)) << (channel % 32);
            }
        }
    }
    Ok(())
}
