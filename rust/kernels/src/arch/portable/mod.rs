//! Inner loops in plain Rust, for any core.

pub(crate) mod blocks;
mod byte_mask;
mod byte_pairs;
mod pixel_sums;
mod popcount;
mod vertical;

/// The bytes of words, as they lie in memory.
#[inline]
pub(crate) fn bytes_of(words: &[u32]) -> &[u8] {
    // SAFETY: bytes have no alignment and no invalid values, and there are four a word.
    unsafe { core::slice::from_raw_parts(words.as_ptr().cast(), 4 * words.len()) }
}

/// Words as bytes, four each.
#[inline]
pub(crate) fn bytes_of_mut(words: &mut [u32]) -> &mut [[u8; 4]] {
    // SAFETY: four bytes are as long as a word, have no alignment and no invalid values, and neither has a word.
    unsafe { core::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len()) }
}

pub(crate) use byte_mask::{byte_distance, byte_dot, byte_dot_wide, byte_hits, copy_rows};
pub(crate) use byte_pairs::{Pairs, SLOTS, pair_hits, widen};
pub(crate) use pixel_sums::{add_rows, move_down, signed_sums, sum_hits};
pub(crate) use popcount::{carry_save, differing, differing_inside};
pub(crate) use vertical::{
    add_list, add_planes, column_changes, compare, inside, move_on, picks, segment_changes, transpose,
};
