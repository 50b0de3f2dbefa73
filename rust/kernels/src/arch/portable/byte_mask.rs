/*!
Sums of selected bytes, four at a time in one word.

A weight of +1 is stored as the byte 0xFF and a weight of -1 as 0x00, so that `x & mask` keeps the bytes
whose weight is +1. Even and odd bytes are then added in the two 16-bit halves of a word, which hold 257
additions of 255 before they overflow: the halves are emptied every [`BLOCK`] words.
*/

/// Words between two emptyings of the 16-bit sums: 257 * 255 = 65535 is the most that fits.
const BLOCK: usize = 256;
const EVEN: u32 = 0x00FF_00FF;

/// Whether [`byte_mask_dot`] looks at its `total`.
pub(crate) const BYTE_MASK_DOT_NEEDS_TOTAL: bool = true;

/// Sum of weight times byte over a window, up to the filter's [`byte_mask_bias`]. `masks` holds the weights,
/// first byte lowest; `total` is the sum of the window's bytes. Both slices are padded with 0 to the same
/// number of words.
///
/// With S the sum of the bytes under weights +1, that is `2 S - total`.
pub(crate) fn byte_mask_dot(window: &[[u8; 4]], masks: &[u32], total: u32) -> i32 {
    // Nearly every window is one block; the loop over blocks would cost it a fifth of its instructions.
    let plus: u32 = if window.len() <= BLOCK {
        block_dot(window, masks)
    } else {
        window.chunks(BLOCK).zip(masks.chunks(BLOCK)).map(|(window, masks)| block_dot(window, masks)).sum()
    };
    // plus <= total < 2^31 (`Affine::check`), so 2 S fits u32, and the difference i32; 2 S alone need not.
    (2 * plus).wrapping_sub(total) as i32
}

/// What [`byte_mask_dot`] leaves out, the same for every window: nothing here.
pub(crate) fn byte_mask_bias(_masks: &[u32]) -> i32 {
    0
}

/// At most [`BLOCK`] words. Not inlined: the loop wants all the registers there are.
#[inline(never)]
fn block_dot(bytes: &[[u8; 4]], masks: &[u32]) -> u32 {
    let (mut even, mut odd) = (0u32, 0u32);
    for (word, mask) in bytes.iter().zip(masks) {
        let kept = u32::from_le_bytes(*word) & mask;
        even += kept & EVEN;
        odd += (kept >> 8) & EVEN;
    }
    (even & 0xFFFF) + (even >> 16) + (odd & 0xFFFF) + (odd >> 16)
}

/// Sum of `bytes[i] * weights[i]` over the shorter of the two.
#[inline(never)]
pub(crate) fn byte_dot(bytes: &[u8], weights: &[i8]) -> i32 {
    bytes.iter().zip(weights).map(|(&b, &w)| i32::from(b) * i32::from(w)).sum()
}

/// As [`byte_dot`], with 16-bit weights.
#[inline]
pub(crate) fn byte_dot_wide(bytes: &[u8], weights: &[i16]) -> i32 {
    bytes.iter().zip(weights).map(|(&b, &w)| i32::from(b) * i32::from(w)).sum()
}

/// Sum of all bytes.
#[inline]
pub(crate) fn byte_sum(bytes: &[[u8; 4]]) -> u32 {
    bytes.as_flattened().iter().map(|&b| u32::from(b)).sum()
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// Beyond two blocks; Miri, which takes milliseconds a byte, sees short windows.
    const LONGEST: usize = if cfg!(miri) { 20 } else { 600 };

    #[test]
    fn the_halves_hold_a_block_of_the_largest_bytes() {
        let bytes = [[255u8; 4]; 3 * BLOCK + 1];
        let masks = [u32::MAX; 3 * BLOCK + 1];
        let total = 255 * 4 * bytes.len() as u32;
        assert_eq!(byte_mask_dot(&bytes, &masks, total), total as i32);
    }

    proptest! {
        #[test]
        fn agrees_with_a_byte_loop(pairs in proptest::collection::vec(any::<([u8; 4], [bool; 4])>(), 0..LONGEST)) {
            let bytes: Vec<[u8; 4]> = pairs.iter().map(|p| p.0).collect();
            let masks: Vec<u32> =
                pairs.iter().map(|p| u32::from_le_bytes(p.1.map(|on| if on { 255 } else { 0 }))).collect();
            let total: u32 = bytes.iter().flatten().map(|&b| u32::from(b)).sum();
            prop_assert_eq!(byte_sum(&bytes), total);
            let kept = pairs.iter().flat_map(|p| p.0.into_iter().zip(p.1));
            let expected: i32 = kept.map(|(b, on)| if on { i32::from(b) } else { -i32::from(b) }).sum();
            prop_assert_eq!(byte_mask_dot(&bytes, &masks, total) + byte_mask_bias(&masks), expected);
        }
    }
}
