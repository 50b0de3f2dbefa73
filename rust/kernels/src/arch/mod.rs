//! Inner loops, one folder an architecture. `portable` always compiles and runs everywhere; what another
//! folder has takes its place there. All give the same numbers.

#[cfg(cbin_dsp)]
#[allow(unsafe_code)]
mod armv7em;
#[cfg_attr(cbin_dsp, allow(dead_code, unused_imports))]
mod portable;

#[cfg(cbin_dsp)]
pub(crate) use armv7em::{add_picked, byte_distance, byte_hits, copy_rows, picks};
pub(crate) use portable::{PICK_BLOCK, Picks, counter_words};
#[cfg(not(cbin_dsp))]
pub(crate) use portable::{add_picked, byte_distance, byte_hits, copy_rows, picks};
pub(crate) use portable::{byte_dot, differing, differing_inside};
