/*!
Weights as byte masks: one byte a weight in HWC order, 0xFF for +1 and 0x00 for -1, the first byte lowest.

```text
[output channels][words]     each filter padded with 0x00 to whole words
```

The distance of an input byte q from its mask byte is `255 - q` for +1 and `q` for -1, four of them an instruction.
*/

use crate::ArgumentError;
use crate::bits::bit;
use crate::error::check_length;
use crate::shape::Conv2dGeometry;

/// Words of one filter.
pub fn filter_words(geometry: &Conv2dGeometry) -> usize {
    geometry.products().div_ceil(4)
}

/// Instructions of a `qbconv2d` with its weights laid out so: four products each, for one window after another.
pub fn instructions(geometry: &Conv2dGeometry) -> u64 {
    let (filters, words) = (geometry.output().channels() as u64, filter_words(geometry) as u64);
    geometry.output().pixels() as u64 * (filters * (28 + 3 * words) + 1500) / 2
}

/// Whether the weight of `filter`, `tap` and `channel` is +1.
pub(crate) fn is_plus(
    geometry: &Conv2dGeometry,
    masks: &[u32],
    filter: usize,
    tap: usize,
    channel: usize,
) -> bool {
    let at = tap * geometry.input().channels() + channel;
    let word = masks[filter * filter_words(geometry) + at / 4];
    (word >> (8 * (at % 4))) & 0xFF != 0
}

/// Rewrites canonical weights in this layout.
///
/// # Errors
/// [`ArgumentError::Length`] naming the slice.
pub fn to_byte_mask(
    geometry: &Conv2dGeometry,
    packed: &[u32],
    masks: &mut [u32],
) -> Result<(), ArgumentError> {
    let (channels, words) = (geometry.input().channels(), geometry.input().pixel_words());
    let filters = geometry.output().channels();
    check_length("packed", filters * geometry.filter_words(), packed.len())?;
    check_length("masks", filters * filter_words(geometry), masks.len())?;
    masks.fill(0);
    let per_filter = filter_words(geometry);
    for (filter, masks) in
        packed.chunks_exact(geometry.filter_words()).zip(masks.chunks_exact_mut(per_filter))
    {
        for (tap, pixel) in filter.chunks_exact(words).enumerate() {
            for channel in (0..channels).filter(|&c| bit(pixel, c)) {
                let at = tap * channels + channel;
                masks[at / 4] |= 0xFF << (8 * (at % 4));
            }
        }
    }
    Ok(())
}

/// Checks that every byte of a filter is 0x00 or 0xFF, and 0x00 beyond the last weight.
pub(crate) fn check_contents(geometry: &Conv2dGeometry, masks: &[u32]) -> Result<(), ArgumentError> {
    let (words, weights) = (filter_words(geometry), geometry.products());
    for filter in masks.chunks_exact(words) {
        for (at, byte) in filter.iter().flat_map(|word| word.to_le_bytes()).enumerate() {
            match byte {
                0 => {}
                0xFF if at < weights => {}
                0xFF => return Err(ArgumentError::PaddingBits { argument: "weights" }),
                _ => return Err(ArgumentError::Value { argument: "weights" }),
            }
        }
    }
    Ok(())
}
