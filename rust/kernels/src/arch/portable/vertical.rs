/*!
Vertical counters: 32 counts side by side, bit b of all of them in word b.

Adding a word adds its bit l to count l. Four words are first added up by carry-save adders, like the words of
[`popcount`](super::popcount), so that one carry ripples through the counter for all of them.
*/

use super::popcount::carry_save;
use crate::arch::groups::{GroupShape, SegmentEdges};
use crate::arch::moving::{Bits, COUNTER_WORDS, Column, Moving, PICK_BLOCK, pad};
use crate::bits::lane_mask;

/// Writes `first + b` for each set bit b of `bits` to `list`, as far as it is long enough, and says how many.
#[inline]
pub(crate) fn picks(bits: u32, first: u8, list: &mut [u8]) -> usize {
    let (mut rest, mut count) = (bits, 0);
    for pick in list {
        if rest == 0 {
            break;
        }
        *pick = first + rest.trailing_zeros() as u8;
        rest &= rest - 1;
        count += 1;
    }
    count
}

/// Writes the picks of what is set in the first column and not in the second, and, in blocks of their own, of what is set in the
/// second alone, and says how many there are of each: `first + b` for bit b of the first word, `first + channels + b` of the
/// second, ... Unfinished blocks are filled with `zero`.
///
/// # Panics
/// Where a column ends before `rows` words, or `list` has no room for 32 picks a row and a block.
pub(crate) fn column_changes(
    columns: [Column<'_>; 2],
    rows: usize,
    first: usize,
    bits: Bits,
    zero: u8,
    list: &mut [u8],
) -> [usize; 2] {
    let word = |(words, step): Column<'_>, row: usize| (words[row * step] ^ bits.mask) & bits.all;
    let mut len = 0;
    [columns, [columns[1], columns[0]]].map(|[with, without]| {
        let begin = len;
        for row in 0..rows {
            let word = word(with, row) & !word(without, row);
            len += picks(word, (first + row * bits.channels) as u8, &mut list[len..]);
        }
        let count = len - begin;
        len = pad(list, len, zero);
        count
    })
}

/// As [`column_changes`], for the words of a segment of columns of wider pixels: each column is the words of the kernel's rows
/// `rows`, from the first of them on, and `mask` a pixel's.
///
/// # Panics
/// Where a column ends before those words, or `list` has no room for 32 picks each and a block.
pub(crate) fn segment_changes(
    columns: [Column<'_>; 2],
    shape: &GroupShape,
    segment: usize,
    rows: (usize, usize),
    mask: &[u32],
    list: &mut [u8],
) -> [usize; 2] {
    let (edges, zero) = (SegmentEdges::new(shape, segment), shape.segment_weights(segment) as u8);
    let mut len = 0;
    [columns, [columns[1], columns[0]]].map(|[with, without]| {
        let begin = len;
        for word in 0..shape.pixel_words() {
            let (first, end) = edges.rows(word, rows);
            for row in first..end {
                let at = |(words, step): Column<'_>| words[(row - rows.0) * step + word] ^ mask[word];
                let bits = at(with) & !at(without) & lane_mask(shape.channels(), word);
                len += picks(bits, edges.pick(row, word), &mut list[len..]);
            }
        }
        let count = len - begin;
        len = pad(list, len, zero);
        count
    })
}

/// Moves a window on by what its columns list, from the slot `first` on: to the counters of all groups, listed words are added,
/// and others taken away, modulo 2 to the number of a counter's counted words, which are all but its first. Returns by how much
/// the bits that are set have become more, and, as complements are added for what is taken away, twice the number of those: what
/// the number in each lane, in steps of two, has too much.
///
/// # Panics
/// Where there is no such slot.
pub(crate) fn move_on(window: &mut Moving<'_>, first: usize) -> i32 {
    assert!(first < window.slots);
    for segment in 0..window.segments {
        let mut slot = first;
        for column in 0..window.shape.columns() {
            let list =
                &window.bytes[(segment * window.slots + slot) * window.list_words..][..window.list_words];
            let [added, taken, ..] = list[0];
            let (blocks, rest) = list[1..].as_flattened().as_chunks().0.split_at(usize::from(added));
            for group in 0..window.groups {
                let words = window.tap(group, column, segment);
                let counter = &mut window.counters[group * window.planes..][1..window.planes];
                add_to_one(counter, |at| words[usize::from(at)], blocks);
                add_to_one(counter, |at| !words[usize::from(at)], &rest[..usize::from(taken)]);
            }
            slot += window.dilation;
            if slot >= window.slots {
                slot -= window.slots;
            }
        }
    }
    window.net(first)
}

/// Adds what the list in the first slot of a segment adds to a counter, which is as long as the window's own, for a column of a
/// group.
///
/// # Panics
/// Where there is no such segment, group or column, or the counter is of another length.
pub(crate) fn add_list(
    window: &Moving<'_>,
    counter: &mut [u32],
    segment: usize,
    group: usize,
    column: usize,
) {
    assert!(counter.len() == window.planes && group < window.groups && column < window.shape.columns());
    let list = &window.bytes[segment * window.slots * window.list_words..][..window.list_words];
    let blocks = &list[1..].as_flattened().as_chunks().0[..usize::from(list[0][0])];
    let words = window.tap(group, column, segment);
    add_to_one(&mut counter[1..], |at| words[usize::from(at)], blocks);
}

/// Bit l of plane b is bit b of number l.
pub(crate) fn transpose(numbers: &[i32; 32], planes: &mut [u32]) {
    for (bit, plane) in planes.iter_mut().enumerate() {
        *plane = numbers.iter().fold(0, |word, number| (word >> 1) | ((number >> bit.min(31)) as u32) << 31);
    }
}

/// `a + b` in each lane, in place, or `a - b` where `invert` is all ones and not 0; b may have one plane less.
pub(crate) fn add_planes(a: &mut [u32], b: &[u32], invert: u32) {
    let mut carry = invert;
    for (a, b) in a.iter_mut().zip(b) {
        let b = b ^ invert;
        let half = *a ^ b;
        let next = (*a & b) | (half & carry);
        (*a, carry) = (half ^ carry, next);
    }
    if let Some(top) = a.get_mut(b.len()) {
        *top ^= carry ^ invert;
    }
}

/// The lanes in which `a` less `b` is not negative, and below the bound where there is one; all signed.
#[inline]
pub(crate) fn inside(a: &[u32], b: i32, bound: Option<&[u32]>) -> u32 {
    match bound {
        Some(bound) => {
            let (negative, [below]) = compare(a, b, [bound]);
            below & !negative
        }
        None => !compare(a, b, []).0,
    }
}

/// The sign of `a - b` in each lane, and the lanes in which it is below each of the bounds, all signed.
#[inline]
pub(crate) fn compare<const N: usize>(a: &[u32], b: i32, bounds: [&[u32]; N]) -> (u32, [u32; N]) {
    let bounds = bounds.map(|bound| &bound[..a.len()]);
    let (mut borrow, mut rest, mut difference) = (0, b, 0);
    let (mut borrows, mut halves) = ([0; N], [0; N]);
    for (plane, &a) in a.iter().enumerate() {
        let bit = -(rest & 1) as u32;
        rest >>= 1;
        let half = a ^ bit;
        difference = half ^ borrow;
        borrow = (!a & bit) | (!half & borrow);
        for ((bound, borrow), half) in bounds.iter().zip(&mut borrows).zip(&mut halves) {
            let bound = bound[plane];
            *half = difference ^ bound;
            *borrow = (!difference & bound) | (!*half & *borrow);
        }
    }
    // Where the signs differ the negative one is the smaller. Otherwise the difference's sign, which is the borrow.
    (difference, core::array::from_fn(|at| (halves[at] & difference) | (!halves[at] & borrows[at])))
}

fn add_to_one(counter: &mut [u32], picked: impl Fn(u8) -> u32, blocks: &[[u8; PICK_BLOCK]]) {
    let (low, high) =
        counter.split_first_chunk_mut::<COUNTER_WORDS>().expect("a counter has four words or more");
    assert!(high.len().is_multiple_of(3), "a counter's upper words come in threes");
    let [mut ones, mut twos, mut fours, mut eights] = *low;
    for block in blocks {
        let word = |i: usize| picked(block[i]);
        let (sum, twos_a) = carry_save(ones, word(0), word(1));
        let (sum, twos_b) = carry_save(sum, word(2), word(3));
        let (sum2, four) = carry_save(twos, twos_a, twos_b);
        (ones, twos) = (sum, sum2);
        let eight = fours & four;
        fours ^= four;
        let mut carry = eights & eight;
        eights ^= eight;
        for plane in high.iter_mut() {
            if carry == 0 {
                break;
            }
            (*plane, carry) = (*plane ^ carry, *plane & carry);
        }
    }
    *low = [ones, twos, fours, eights];
}
