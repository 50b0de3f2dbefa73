//! Inner loops in plain Rust, for any core.

pub(crate) mod blocks;
mod byte_mask;
mod byte_pairs;
mod pixel_sums;
mod popcount;
mod vertical;

pub(crate) use byte_mask::{byte_distance, byte_dot, byte_dot_wide, byte_hits, copy_rows};
pub(crate) use byte_pairs::{Pairs, SLOTS, pair_hits, widen};
pub(crate) use pixel_sums::{move_down, signed_sums, sum_hits};
pub(crate) use popcount::{differing, differing_inside};
#[allow(unused_imports, reason = "for another folder")]
pub(crate) use vertical::COUNTER_WORDS;
pub(crate) use vertical::{Bits, PICK_BLOCK, Picks, Windows, add_picked, column_picks, counter_words, picks};
