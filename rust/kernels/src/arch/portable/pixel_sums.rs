/*!
Sums of a segment's windows from a table: see [`tables`](crate::arch::tables). Two of 16 bits lie in a word.
*/

use crate::arch::tables::{MAX_CHANNELS, SEGMENT, SEGMENT_WORDS, SumFilters};

const TOPS: u32 = 0x8000_8000;

/// The sums of both halves, each modulo 2^16.
#[inline(always)]
fn add_halves(a: u32, b: u32) -> u32 {
    ((a & !TOPS) + (b & !TOPS)) ^ ((a ^ b) & TOPS)
}

/// The differences of both halves, each modulo 2^16.
#[inline(always)]
fn sub_halves(a: u32, b: u32) -> u32 {
    ((a | TOPS) - (b & !TOPS)) ^ ((a ^ !b) & TOPS)
}

/// Signed sums of the pixels of a line, `mul * byte + add`, two in a word: of each pixel and the one [`SEGMENT_WORDS`]
/// further on. A column of words for each pattern, half as many patterns as there are signs of `channels`; `adds` has each
/// channel's offset in both halves.
///
/// # Panics
/// Where the line is shorter than the columns and [`SEGMENT_WORDS`] pixels.
#[inline(never)]
pub(crate) fn signed_sums(
    line: &[u8],
    channels: usize,
    mul: u32,
    adds: &[u32; MAX_CHANNELS],
    sums: &mut [u32],
) {
    let columns = sums.len() >> (channels - 1);
    let high = &line[SEGMENT_WORDS * channels..];
    for (channel, &add) in adds[..channels].iter().enumerate() {
        let bytes = line[channel..].iter().step_by(channels).zip(high[channel..].iter().step_by(channels));
        let values =
            bytes.map(|(&low, &high)| add_halves((u32::from(low) | u32::from(high) << 16) * mul, add));
        if channel == 0 {
            sums[..columns].iter_mut().zip(values).for_each(|(sum, value)| *sum = value);
            continue;
        }
        let (same, other) = sums.split_at_mut(columns << (channel - 1));
        for (same, other) in same.chunks_exact_mut(columns).zip(other.chunks_exact_mut(columns)) {
            for ((same, other), value) in same.iter_mut().zip(other).zip(values.clone()) {
                let sum = *same;
                (*same, *other) = (add_halves(sum, value), sub_halves(sum, value));
            }
        }
    }
}

/// The sums of the first `count` words of both halves of `rows`, in the lower half from word `to` on.
pub(crate) fn add_rows(rows: &mut [u32], to: usize, count: usize) {
    let (above, below) = rows.split_at_mut(rows.len() / 2);
    let (singles, sums) = below.split_at_mut(to);
    for ((sum, above), below) in sums[..count].iter_mut().zip(above).zip(singles) {
        *sum = add_halves(*above, *below);
    }
}

/// Moves words to the beginning from the `by`th on.
pub(crate) fn move_down(words: &mut [u32], by: usize) {
    words.copy_within(by.., 0);
}

/// Which of up to 32 filters have their sum inside their interval: bit f of a window's word for filter f. Where `is_paired`,
/// the first four words are those of two windows each, in either of which the sum may be inside.
///
/// There, the sums of a filter of `known` count as inside without a look at them.
/// An interval is 0 less the first sum inside, and 2^16 less the number of sums inside, both of them twice in a word.
pub(crate) fn sum_hits(
    table: &[u32],
    filters: &SumFilters<'_>,
    intervals: &[[u32; 2]],
    is_paired: bool,
    known: u32,
) -> [u32; SEGMENT] {
    let mut hits = [0; SEGMENT];
    for (lane, ((first, second), [start, outside])) in filters.lists().zip(intervals).enumerate() {
        if is_paired && known >> lane & 1 == 1 {
            hits.iter_mut().for_each(|hits| *hits |= 1 << lane);
            continue;
        }
        let mut sums = [*start; SEGMENT_WORDS];
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
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 16 } else { 256 }))]

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
