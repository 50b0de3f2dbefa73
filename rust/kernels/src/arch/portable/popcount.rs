/*!
Population count of many words, for cores without a popcount instruction.

Cortex-M counts the bits of a word in about a dozen instructions, so the words are first added up bit by bit:
a carry-save adder takes three words to two in five logic operations, and a Harley-Seal tree of seven
takes eight words to one word of weight 8 (and the running words of weight 1, 2 and 4), so that one software
popcount serves eight words. H. S. Warren, *Hacker's Delight*, 2nd edition, section 5-1.
*/

/// Adds three words bit by bit: (sum, carry).
#[inline(always)]
fn carry_save(a: u32, b: u32, c: u32) -> (u32, u32) {
    let half = a ^ b;
    (half ^ c, (a & b) | (half & c))
}

/// Bits that differ between `a` and `b`, slices of one length.
///
/// Not inlined, like its sibling: the adder tree wants all the registers there are.
#[inline(never)]
pub(crate) fn differing(a: &[u32], b: &[u32]) -> u32 {
    let len = a.len().min(b.len());
    let (a, b) = (&a[..len], &b[..len]);
    popcount(len, |i| a[i] ^ b[i])
}

/// Bits of `mask` that differ between `a` and `b`, slices of one length.
#[inline(never)]
pub(crate) fn differing_inside(a: &[u32], b: &[u32], mask: &[u32]) -> u32 {
    let len = a.len().min(b.len()).min(mask.len());
    let (a, b, mask) = (&a[..len], &b[..len], &mask[..len]);
    popcount(len, |i| (a[i] ^ b[i]) & mask[i])
}

/// Set bits of `word(0), ..., word(len - 1)`. `word` is called once for each index, in order.
#[inline(always)]
fn popcount(len: usize, word: impl Fn(usize) -> u32) -> u32 {
    let mut at = 0;
    let mut total = 0;
    if len >= 8 {
        let (mut ones, mut twos, mut fours, mut eights) = (0, 0, 0, 0);
        while at + 8 <= len {
            let (sum, twos_a) = carry_save(ones, word(at), word(at + 1));
            let (sum, twos_b) = carry_save(sum, word(at + 2), word(at + 3));
            let (sum2, fours_a) = carry_save(twos, twos_a, twos_b);
            let (sum, twos_a) = carry_save(sum, word(at + 4), word(at + 5));
            let (sum, twos_b) = carry_save(sum, word(at + 6), word(at + 7));
            let (sum2, fours_b) = carry_save(sum2, twos_a, twos_b);
            let (sum4, eight) = carry_save(fours, fours_a, fours_b);
            (ones, twos, fours) = (sum, sum2, sum4);
            eights += eight.count_ones();
            at += 8;
        }
        total = 8 * eights + 4 * fours.count_ones() + 2 * twos.count_ones() + ones.count_ones();
    }
    while at < len {
        total += word(at).count_ones();
        at += 1;
    }
    total
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec;

    proptest! {
        #[test]
        fn agrees_with_count_ones(words in proptest::collection::vec(any::<u32>(), 0..70)) {
            let expected: u32 = words.iter().map(|w| w.count_ones()).sum();
            prop_assert_eq!(popcount(words.len(), |i| words[i]), expected);
            let zeros = vec![0; words.len()];
            prop_assert_eq!(differing(&words, &zeros), expected);
            prop_assert_eq!(differing_inside(&zeros, &words, &words), expected);
        }
    }
}
