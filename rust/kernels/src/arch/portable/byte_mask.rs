/*!
Distances of bytes, four at a time in one word.

The weight +1 is stored as the byte 0xFF and -1 as 0x00, so that |q - m| is q with its bits inverted or not: `q ^ m`. Even
and odd bytes are then added in the two 16-bit halves of a word, which hold 257 additions of 255 before they
overflow: the halves are emptied every [`BLOCK`] words.
*/

/// Words between two emptyings of the 16-bit sums: 257 * 255 = 65535 is the most that fits.
const BLOCK: usize = 256;
const EVEN: u32 = 0x00FF_00FF;

/// Sum of |q - m| over a window's bytes and a filter's masks, first byte lowest. Padding is 0 in both.
pub(crate) fn byte_distance(window: &[[u8; 4]], masks: &[u32]) -> u32 {
    // Nearly every window is one block; the loop over blocks would cost it a fifth of its instructions.
    if window.len() <= BLOCK {
        return block_distance(window, masks);
    }
    window.chunks(BLOCK).zip(masks.chunks(BLOCK)).map(|(window, masks)| block_distance(window, masks)).sum()
}

/// At most [`BLOCK`] words. Not inlined: the loop wants all the registers there are.
#[inline(never)]
fn block_distance(window: &[[u8; 4]], masks: &[u32]) -> u32 {
    let (mut even, mut odd) = (0u32, 0u32);
    for (word, mask) in window.iter().zip(masks) {
        let distances = u32::from_le_bytes(*word) ^ mask;
        even += distances & EVEN;
        odd += (distances >> 8) & EVEN;
    }
    (even & 0xFFFF) + (even >> 16) + (odd & 0xFFFF) + (odd >> 16)
}

/// Which of up to 32 filters have a window at a distance in their interval: 0 less its first, and how many there are. Each
/// window and each filter takes `words` words.
pub(crate) fn byte_hits(windows: &[[u8; 4]], words: usize, masks: &[u32], intervals: &[[u32; 2]]) -> u32 {
    let mut hits = 0;
    for (lane, (masks, [offset, count])) in masks.chunks_exact(words).zip(intervals).enumerate() {
        let is_hit = |window| byte_distance(window, masks).wrapping_add(*offset) < *count;
        hits |= u32::from(windows.chunks_exact(words).any(is_hit)) << lane;
    }
    hits
}

/// Copies `rows` times `len` bytes, at least one of each; a row begins so many bytes after the one before it, `to` and
/// `from`.
///
/// # Panics
/// Where a row ends beyond its slice.
pub(crate) fn copy_rows(to: &mut [u8], from: &[u8], steps: [usize; 2], len: usize, rows: usize) {
    for row in 0..rows {
        to[row * steps[0]..][..len].copy_from_slice(&from[row * steps[1]..][..len]);
    }
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
        let total = 255 * 4 * bytes.len() as u32;
        assert_eq!(byte_distance(&bytes, &[0; 3 * BLOCK + 1]), total);
        assert_eq!(byte_distance(&bytes, &[u32::MAX; 3 * BLOCK + 1]), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 16 } else { 256 }))]

        #[test]
        fn agrees_with_a_byte_loop(pairs in proptest::collection::vec(any::<([u8; 4], [bool; 4])>(), 0..LONGEST)) {
            let bytes: Vec<[u8; 4]> = pairs.iter().map(|p| p.0).collect();
            let masks: Vec<u32> =
                pairs.iter().map(|p| u32::from_le_bytes(p.1.map(|on| if on { 255 } else { 0 }))).collect();
            let kept = pairs.iter().flat_map(|p| p.0.into_iter().zip(p.1));
            let expected: u32 = kept.map(|(b, on)| u32::from(if on { 255 - b } else { b })).sum();
            prop_assert_eq!(byte_distance(&bytes, &masks), expected);
        }
    }
}
