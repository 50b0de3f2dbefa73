//! Inner loops in plain Rust, for any core.

pub(crate) mod blocks;
mod byte_mask;
mod popcount;

pub(crate) use byte_mask::{BYTE_MASK_DOT_NEEDS_TOTAL, byte_dot, byte_mask_bias, byte_mask_dot, byte_sum};
pub(crate) use popcount::{differing, differing_inside};
