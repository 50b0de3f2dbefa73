/*!
Sums of a segment's windows from a table: see [`pixel_sums`](crate::pixel_sums). Two of 16 bits lie in a word.
*/

use crate::pixel_sums::{SEGMENT, SEGMENT_WORDS, SumFilters};

const TOPS: u32 = 0x8000_8000;

/// The sums of both halves, each modulo 2^16.
#[inline(always)]
pub(crate) fn add_halves(a: u32, b: u32) -> u32 {
    ((a & !TOPS) + (b & !TOPS)) ^ ((a ^ b) & TOPS)
}

/// The differences of both halves, each modulo 2^16.
#[inline(always)]
pub(crate) fn sub_halves(a: u32, b: u32) -> u32 {
    ((a | TOPS) - (b & !TOPS)) ^ ((a ^ !b) & TOPS)
}

/// Which of up to 32 filters have their sum inside their interval: bit f of a window's word for filter f. Where `is_paired`,
/// the first four words are those of two windows each, in either of which the sum may be inside.
///
/// An interval is 0 less the first sum inside, and 2^16 less the number of sums inside, both of them twice in a word.
pub(crate) fn sum_hits(
    table: &[u32],
    filters: &SumFilters<'_>,
    intervals: &[[u32; 2]],
    is_paired: bool,
) -> [u32; SEGMENT] {
    let mut hits = [0; SEGMENT];
    let each = filters.weights().chunks_exact(filters.shape().filter_words());
    for (lane, (filter, [start, outside])) in each.zip(intervals).enumerate() {
        let mut sums = [*start; SEGMENT_WORDS];
        let (first, second) = filter[1..].split_at((filter[0] >> 16) as usize);
        for (pairs, add) in [(first, add_halves as fn(u32, u32) -> u32), (second, sub_halves)] {
            for offset in pairs.iter().flat_map(|pair| [pair & 0xFFFF, pair >> 16]) {
                let values = &table[offset as usize / 4..][..SEGMENT_WORDS];
                sums.iter_mut().zip(values).for_each(|(sum, value)| *sum = add(*sum, *value));
            }
        }
        for (at, sum) in sums.into_iter().enumerate() {
            let is_inside = |sum: u32| u32::from((sum & 0xFFFF) + (outside & 0xFFFF) < 1 << 16);
            hits[at] |= is_inside(sum) << lane;
            hits[at + SEGMENT_WORDS] |= is_inside(sum >> 16) << lane;
        }
    }
    if is_paired {
        for pair in 0..SEGMENT / 2 {
            hits[pair] = hits[2 * pair] | hits[2 * pair + 1];
        }
    }
    hits
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn halves_are_numbers_modulo_65536(a in any::<u32>(), b in any::<u32>()) {
            let each = |f: fn(u16, u16) -> u16| {
                u32::from(f(a as u16, b as u16)) | u32::from(f((a >> 16) as u16, (b >> 16) as u16)) << 16
            };
            prop_assert_eq!(add_halves(a, b), each(u16::wrapping_add));
            prop_assert_eq!(sub_halves(a, b), each(u16::wrapping_sub));
        }
    }
}
