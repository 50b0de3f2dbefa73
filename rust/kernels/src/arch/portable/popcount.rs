/*!
Population count of many words, for cores without a popcount instruction.

Cortex-M counts the bits of a word in about a dozen instructions, so the words are first added up bit by bit:
a carry-save adder takes three words to two in five logic operations, and a Harley-Seal tree of seven
takes eight words to one word of weight 8 (and the running words of weight 1, 2 and 4), so that one software
popcount serves eight words. H. S. Warren, *Hacker's Delight*, 2nd edition, section 5-1.
*/

use core::array::from_fn;

/// Adds three words bit by bit: (sum, carry).
#[inline(always)]
pub(crate) fn carry_save(a: u32, b: u32, c: u32) -> (u32, u32) {
    let half = a ^ b;
    (half ^ c, (a & b) | (half & c))
}

/// Words that one tree takes at once.
const BLOCK: usize = 8;

/// Bits that differ between `a` and `b`, slices of one length.
///
/// Not inlined, like its sibling: the adder tree wants all the registers there are.
#[inline(never)]
pub(crate) fn differing(a: &[u32], b: &[u32]) -> u32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<BLOCK>(), b.as_chunks::<BLOCK>());
    let blocks = a.iter().zip(b).map(|(a, b)| from_fn(|i| a[i] ^ b[i]));
    let rest = a_rest.iter().zip(b_rest).map(|(a, b)| a ^ b);
    popcount(blocks, rest)
}

/// Bits of `mask` that differ between `a` and `b`, slices of one length.
#[inline(never)]
pub(crate) fn differing_inside(a: &[u32], b: &[u32], mask: &[u32]) -> u32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<BLOCK>(), b.as_chunks::<BLOCK>());
    let (mask, mask_rest) = mask.as_chunks::<BLOCK>();
    let blocks = a.iter().zip(b).zip(mask).map(|((a, b), mask)| from_fn(|i| (a[i] ^ b[i]) & mask[i]));
    let rest = a_rest.iter().zip(b_rest).zip(mask_rest).map(|((a, b), mask)| (a ^ b) & mask);
    popcount(blocks, rest)
}

/// Set bits of all words of `blocks` and of `rest`.
#[inline(always)]
fn popcount(blocks: impl Iterator<Item = [u32; BLOCK]>, rest: impl Iterator<Item = u32>) -> u32 {
    let (mut ones, mut twos, mut fours, mut eights) = (0, 0, 0, 0);
    for words in blocks {
        let (sum, twos_a) = carry_save(ones, words[0], words[1]);
        let (sum, twos_b) = carry_save(sum, words[2], words[3]);
        let (sum2, fours_a) = carry_save(twos, twos_a, twos_b);
        let (sum, twos_a) = carry_save(sum, words[4], words[5]);
        let (sum, twos_b) = carry_save(sum, words[6], words[7]);
        let (sum2, fours_b) = carry_save(sum2, twos_a, twos_b);
        let (sum4, eight) = carry_save(fours, fours_a, fours_b);
        (ones, twos, fours) = (sum, sum2, sum4);
        eights += eight.count_ones();
    }
    // The words of weight 1 to 4 are often empty in short filters: then nothing is counted for them.
    let mut total = 8 * eights;
    if ones | twos | fours != 0 {
        total += 4 * fours.count_ones() + 2 * twos.count_ones() + ones.count_ones();
    }
    total + rest.map(u32::count_ones).sum::<u32>()
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 16 } else { 256 }))]

        #[test]
        fn agrees_with_count_ones(words in proptest::collection::vec(any::<u32>(), 0..70)) {
            let expected: u32 = words.iter().map(|w| w.count_ones()).sum();
            let zeros = vec![0; words.len()];
            prop_assert_eq!(differing(&words, &zeros), expected);
            prop_assert_eq!(differing_inside(&zeros, &words, &words), expected);
        }
    }
}
