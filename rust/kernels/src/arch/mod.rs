/*!
Inner loops, one folder an architecture. `portable` always compiles and runs everywhere; what another folder has takes its
place there. All give the same numbers.

The ground floor of the crate: of the other modules it knows words, shapes and the error alone. What its unsafe code relies on
beyond the lengths of slices is a type of this folder that nobody else can write: [`moving`], [`tables`], [`simd`].
*/

#[cfg(target_arch = "aarch64")]
#[allow(unsafe_code)]
mod aarch64;
#[cfg(cbin_dsp)]
#[allow(unsafe_code)]
mod armv7em;
#[allow(unsafe_code)]
pub(crate) mod generic;
mod groups;
mod line;
mod lists;
mod moving;
#[cfg_attr(cbin_dsp, allow(dead_code, unused_imports))]
#[allow(unsafe_code)]
mod portable;
pub mod simd;
mod tables;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod x86_64;

#[cfg(cbin_dsp)]
pub(crate) use armv7em::{
    add_list, add_planes, add_rows, byte_distance, byte_dot, byte_hits, column_changes, copy_rows, inside,
    move_down, move_on, pair_hits, picks, segment_changes, signed_sums, sum_hits, transpose, widen,
};
pub use groups::GroupShape;
pub(crate) use groups::SEGMENT_PIXELS;
pub use line::{LANES, Line};
pub(crate) use moving::{Moving, counter_words};
pub(crate) use portable::{Pairs, SLOTS, compare};
#[cfg(not(cbin_dsp))]
pub(crate) use portable::{
    add_list, add_planes, add_rows, byte_distance, byte_dot, byte_hits, column_changes, copy_rows, inside,
    move_down, move_on, pair_hits, picks, segment_changes, signed_sums, sum_hits, transpose, widen,
};
pub(crate) use portable::{byte_dot_wide, bytes_of, bytes_of_mut, carry_save, differing, differing_inside};
pub(crate) use tables::{MAX_CHANNELS, SEGMENT, SEGMENT_WORDS, SumFilters, fills, list_lengths, offset_at};

use crate::ArgumentError;
use crate::error::check_length;
use generic::blocks::Convolution;
use simd::{Kind, Simd};

/// Runs `$function` of the architecture that `$simd` stands for.
macro_rules! dispatch {
    ($simd:expr, $function:ident, $($argument:expr),+) => {
        // SAFETY: whoever holds a `Simd` has a CPU with its instructions, and the plane is as long as the
        // task reaches.
        #[allow(unsafe_code)]
        unsafe {
            match $simd.0 {
                Kind::Arrays => portable::blocks::$function($($argument),+),
                #[cfg(target_arch = "x86_64")]
                Kind::Avx2 => x86_64::avx2::$function($($argument),+),
                #[cfg(target_arch = "x86_64")]
                Kind::Avx512Bw => x86_64::avx512::bw::$function($($argument),+),
                #[cfg(target_arch = "x86_64")]
                Kind::Avx512Vnni => x86_64::avx512::vnni::$function($($argument),+),
                #[cfg(target_arch = "x86_64")]
                Kind::Avx512 => x86_64::avx512::popcount::$function($($argument),+),
                #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
                Kind::Neon => aarch64::neon::$function($($argument),+),
            }
        }
    };
}

/// Convolves, applies the rules and pools.
pub(crate) fn convolve(simd: Simd, task: &Convolution<'_>, output: &mut [u32]) -> Result<(), ArgumentError> {
    check_reach(task)?;
    dispatch!(simd, convolve, task, output);
    Ok(())
}

/// The accumulators of the first pixel, sixteen a line.
pub(crate) fn accumulate(
    simd: Simd,
    task: &Convolution<'_>,
    output: &mut [Line],
) -> Result<(), ArgumentError> {
    check_reach(task)?;
    dispatch!(simd, accumulate, task, output);
    Ok(())
}

fn check_reach(task: &Convolution<'_>) -> Result<(), ArgumentError> {
    match task.reach() {
        Some(reach) if reach <= task.plane.len() => Ok(()),
        reach => check_length("plane", reach.unwrap_or(usize::MAX), task.plane.len()),
    }
}
