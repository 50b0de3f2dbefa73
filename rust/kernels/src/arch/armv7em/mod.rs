/*!
Inner loops for ARMv7E-M (Cortex-M4 and M7): its DSP instructions, and what is worth scheduling by hand.
*/

mod byte_dot;
mod byte_mask;
mod byte_pairs;
mod pixel_sums;
mod vertical;

pub(crate) use byte_dot::byte_dot;
pub(crate) use byte_mask::{byte_distance, byte_hits, copy_rows};
pub(crate) use byte_pairs::{pair_hits, widen};
pub(crate) use pixel_sums::{add_rows, move_down, signed_sums, sum_hits};
pub(crate) use vertical::{
    add_list, add_planes, column_changes, inside, move_on, picks, segment_changes, transpose,
};
