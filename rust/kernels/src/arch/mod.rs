//! Inner loops, one folder an architecture. `portable` always compiles and runs everywhere; what another
//! folder has takes its place there. All give the same numbers.

#[cfg(cbin_dsp)]
#[allow(unsafe_code)]
mod armv7em;
#[cfg_attr(cbin_dsp, allow(dead_code, unused_imports))]
mod portable;

#[cfg(cbin_dsp)]
pub(crate) use armv7em::{BYTE_MASK_DOT_NEEDS_TOTAL, byte_mask_bias, byte_mask_dot};
#[cfg(not(cbin_dsp))]
pub(crate) use portable::{BYTE_MASK_DOT_NEEDS_TOTAL, byte_mask_bias, byte_mask_dot};
pub(crate) use portable::{byte_dot, byte_dot_wide, byte_sum, differing, differing_inside};
