/*!
Weights by output channel: the layout in which one word holds one weight of 32 output channels.

```text
mask                                     words of one input pixel
for each 32 output channels
    for each kernel column
        for each kernel row, input channel   one word: bit l belongs to output channel 32 g + l
        (a word of zeros after every 7 input words of the column, and at its end)
```

Bit c of the mask says that input channel c is stored inverted: every weight of it is, and its activations are to
be inverted as they are read, which changes no product. A channel that is mostly +1 becomes one that is mostly 0, and
a kernel that walks the set bits has less to walk. Unused bits, of the mask and above the last output channel,
are 0.

The columns are cut into segments so that a byte can say which word of a segment is meant, the word of zeros
included. [`GroupShape`] says where each word lies.
*/

use crate::ArgumentError;
pub use crate::arch::GroupShape;
use crate::arch::SEGMENT_PIXELS;
use crate::bits::{bit, check_padding_bits, lane_mask};
use crate::error::check_length;
use crate::shape::Conv2dGeometry;

/// Output channels from which a `bbconv2d` takes fewer instructions with its weights laid out so. The carry-save kernel of the
/// canonical layout takes some for each; this one's are for 32 at once. 8 channels take 253,000 against 347,000.
pub const FEWEST_FILTERS: usize = 6;
/// The same for one tap, against the kernel of `bbpointwiseconv2d`: listing a pixel is much of the work then, and is paid for by
/// many channels. 64 channels take 161,000 instructions against 445,000.
pub const FEWEST_POINTWISE_FILTERS: usize = 32;
/// Longest span of a kernel for which windows may be open side by side: each takes a counter of RAM.
const LONGEST_SPAN: usize = 32;

/// Whether a convolution is cheaper with its weights laid out so; `fewest` is one of the two numbers of filters.
pub fn is_cheaper(geometry: &Conv2dGeometry, fewest: usize) -> bool {
    let window = geometry.sliding().window();
    let span = |axis: usize| (window.kernel[axis] - 1) * window.dilation[axis] + 1;
    geometry.output().channels() >= fewest && span(0).max(span(1)) <= LONGEST_SPAN
}

impl GroupShape {
    /// Words of one filter in the canonical layout.
    const fn filter_words(&self) -> usize {
        self.columns() * self.column_pixels()
    }

    /// The word of input channel `channel` at a tap, in group 0.
    fn at(&self, tap: [usize; 2], channel: usize) -> usize {
        let [row, column] = tap;
        let segment = (row * self.pixel_words() + channel / 32) / SEGMENT_PIXELS;
        self.pixel_words() + column * self.column_words() + row * self.channels() + channel + segment
    }

    /// The weight of `filter` at a tap: whether it is +1.
    pub(crate) fn is_plus(&self, groups: &[u32], filter: usize, tap: [usize; 2], channel: usize) -> bool {
        let word = groups[filter / 32 * self.group_words() + self.at(tap, channel)];
        ((word >> (filter % 32)) & 1 == 1) != bit(groups, channel)
    }

    /// Each tap of the kernel with its index in a canonical filter.
    fn taps(&self) -> impl Iterator<Item = (usize, [usize; 2])> {
        let width = self.columns();
        (0..self.kernel_rows() * width).map(move |tap| (tap, [tap / width, tap % width]))
    }

    /// Checks what the layout promises of its contents.
    pub(crate) fn check_contents(&self, groups: &[u32]) -> Result<(), ArgumentError> {
        let (mask, groups) = groups.split_at(self.pixel_words());
        check_padding_bits("weights", mask, self.channels())?;
        for (group, columns) in groups.chunks_exact(self.group_words()).enumerate() {
            let unused = !lane_mask(self.filters(), group);
            for column in columns.chunks_exact(self.column_words()) {
                if column.iter().any(|word| word & unused != 0) {
                    return Err(ArgumentError::PaddingBits { argument: "weights" });
                }
                for segment in 0..self.segments() {
                    let end = ((segment + 1) * SEGMENT_PIXELS).min(self.column_pixels());
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
pub fn to_groups(
    shape: &GroupShape,
    packed: &[u32],
    mask: &[u32],
    groups: &mut [u32],
) -> Result<(), ArgumentError> {
    check_length("packed", shape.filters() * shape.filter_words(), packed.len())?;
    check_length("mask", shape.pixel_words(), mask.len())?;
    check_length("groups", shape.words(), groups.len())?;
    check_padding_bits("mask", mask, shape.channels())?;
    groups.fill(0);
    groups[..mask.len()].copy_from_slice(mask);
    for (filter, weights) in packed.chunks_exact(shape.filter_words()).enumerate() {
        for (tap, place) in shape.taps() {
            let pixel = &weights[tap * shape.pixel_words()..];
            for channel in 0..shape.channels() {
                let plus = bit(pixel, channel) != bit(mask, channel);
                let at = filter / 32 * shape.group_words() + shape.at(place, channel);
                groups[at] |= u32::from(plus) << (filter % 32);
            }
        }
    }
    Ok(())
}

/// Rewrites weights by output channel in the canonical layout: the inverse of [`to_groups`].
///
/// # Errors
/// [`ArgumentError::Length`] naming the slice.
pub fn from_groups(shape: &GroupShape, groups: &[u32], packed: &mut [u32]) -> Result<(), ArgumentError> {
    check_length("groups", shape.words(), groups.len())?;
    check_length("packed", shape.filters() * shape.filter_words(), packed.len())?;
    packed.fill(0);
    for (filter, weights) in packed.chunks_exact_mut(shape.filter_words()).enumerate() {
        for (tap, place) in shape.taps() {
            let pixel = &mut weights[tap * shape.pixel_words()..];
            for channel in 0..shape.channels() {
                pixel[channel / 32] |=
                    u32::from(shape.is_plus(groups, filter, place, channel)) << (channel % 32);
            }
        }
    }
    Ok(())
}
