/*!
Sums of a segment's windows: two of them in a word, added by `SADD16`. A pair of offsets takes 13 instructions for sixteen
taps: see [`pair`].
*/

use core::arch::{asm, naked_asm};
use core::mem::offset_of;

use crate::pixel_sums::{SEGMENT, SumFilters};

/// Defines a function of two words that is one instruction.
macro_rules! halves {
    ($name:ident, $instruction:literal) => {
        /// See the portable function of this name.
        #[inline(always)]
        pub(crate) fn $name(a: u32, b: u32) -> u32 {
            let result;
            // SAFETY: the instruction reads two registers and writes one, and the flags GE; every core of this architecture
            // has it.
            unsafe {
                asm!(
                    concat!($instruction, " {result}, {a}, {b}"),
                    a = in(reg) a,
                    b = in(reg) b,
                    result = lateout(reg) result,
                    options(pure, nomem, nostack),
                );
            }
            result
        }
    };
}

halves!(add_halves, "sadd16");
halves!(sub_halves, "ssub16");

/// What [`hits`] takes beside table, filters and intervals.
#[repr(C)]
struct Task {
    /// Bits of sums outside: of windows 4, 0, 5, 1, 6, 2, 7 and 3, or of pairs 2, 0, 3 and 1. Shifted right by one, and in on
    /// the left, with each filter.
    outside: [u32; SEGMENT],
    end: *const [u32; 2],
    is_paired: u32,
}

/// See the portable function of this name.
#[inline]
pub(crate) fn sum_hits(
    table: &[u32],
    filters: &SumFilters<'_>,
    intervals: &[[u32; 2]],
    is_paired: bool,
) -> [u32; SEGMENT] {
    let words = filters.shape().filter_words();
    let count = intervals.len().min(filters.weights().len() / words).min(32);
    if count == 0 {
        return [0; SEGMENT];
    }
    assert!(table.len() >= filters.shape().table_words());
    let intervals = &intervals[..count];
    let mut task =
        Task { outside: [0; SEGMENT], end: intervals.as_ptr_range().end, is_paired: is_paired.into() };
    // SAFETY: there are as many filters as intervals, at least one; a `SumFilters` has filters whose lists have as many words
    // as a filter has, and whose offsets lie in a table of `table_words`.
    unsafe { hits(table.as_ptr(), filters.weights().as_ptr(), intervals.as_ptr(), &mut task) }
    let inside = |at: usize| !task.outside[at] >> (32 - count);
    if is_paired {
        return [1, 3, 0, 2, 1, 3, 0, 2].map(inside);
    }
    [1, 3, 5, 7, 0, 2, 4, 6].map(inside)
}

/// Words of a list that are unrolled, a power of 2, and bits of their number.
const UNROLLED: usize = 8;
const UNROLLED_BITS: usize = 3;

/// Bytes of code of a [`pair`].
const PAIR_CODE: usize = 52;

/// Applies `$op`, an instruction for both halves, to r4, r5, r6 and r7 and to the sums at each of the next two offsets.
macro_rules! pair {
    ($op:literal) => {
        concat!(
            "ldr r3, [r1], #4\n",
            "uxtah r8, r0, r3\n",
            "ldm.w r8, {{r8, r9, r10, r11}}\n",
            $op,
            " r4, r4, r8\n",
            $op,
            " r5, r5, r9\n",
            $op,
            " r6, r6, r10\n",
            $op,
            " r7, r7, r11\n",
            "uxtah r8, r0, r3, ror #16\n",
            "ldm.w r8, {{r8, r9, r10, r11}}\n",
            $op,
            " r4, r4, r8\n",
            $op,
            " r5, r5, r9\n",
            $op,
            " r6, r6, r10\n",
            $op,
            " r7, r7, r11\n",
        )
    };
}

/// All the unrolled pairs of `$op`, entered so that the first round takes r3 of them; `$next` counts rounds down.
macro_rules! list {
    ($op:literal, $next:literal) => {
        concat!(
            "tbb [pc, r3]\n",
            "3:\n",
            ".byte (5f - 3b) / 2, (5f - 3b - {pair}) / 2, (5f - 3b - 2 * {pair}) / 2, (5f - 3b - 3 * {pair}) / 2\n",
            ".byte (5f - 3b - 4 * {pair}) / 2, (5f - 3b - 5 * {pair}) / 2\n",
            ".byte (5f - 3b - 6 * {pair}) / 2, (5f - 3b - 7 * {pair}) / 2\n",
            "4:\n",
            pair!($op), pair!($op), pair!($op), pair!($op), pair!($op), pair!($op), pair!($op), pair!($op),
            "5:\n",
            $next, "\n",
            "bpl.w 4b\n",
        )
    };
}

/// Shifts the top bits of the halves of `$a` and `$b` into the four words at `$at`.
macro_rules! shift_in {
    ($at:literal, $a:literal, $b:literal) => {
        concat!(
            "ldm.w ",
            $at,
            ", {{r8, r9, r10, r11}}\n",
            "lsls r3, ",
            $a,
            ", #1\n",
            "rrx r8, r8\n",
            "lsls r3, ",
            $a,
            ", #17\n",
            "rrx r9, r9\n",
            "lsls r3, ",
            $b,
            ", #1\n",
            "rrx r10, r10\n",
            "lsls r3, ",
            $b,
            ", #17\n",
            "rrx r11, r11\n",
            "stm.w ",
            $at,
            ", {{r8, r9, r10, r11}}\n",
        )
    };
}

/// Compares the sums of each filter with its interval, and shifts the bits into the task's words.
///
/// # Safety
/// There are as many filters as intervals up to the task's end, at least one; every offset of a filter is one of four words
/// in the table.
#[unsafe(naked)]
unsafe extern "C" fn hits(
    table: *const u32,
    filters: *const u32,
    intervals: *const [u32; 2],
    task: *mut Task,
) {
    // r0 table, r1 filter, r2 words of both lists, r3 scratch, r4 to r7 sums, r12 intervals, lr task.
    naked_asm!(
        "push {{r4-r11, lr}}",
        "mov lr, r3",
        "mov r12, r2",
        // One filter.
        "2:",
        "ldr r2, [r1], #4",
        "ldr r4, [r12]",
        "ubfx r3, r2, #16, #{bits}",
        "mov r5, r4",
        "mov r6, r4",
        "mov r7, r4",
        list!("sadd16", "subs r2, r2, #{round}"),
        "and r3, r2, #{unrolled} - 1",
        "uxth r2, r2",
        list!("ssub16", "subs r2, r2, #{unrolled}"),
        // The top bit of a half of (sum + 2^16 - count) / 2 is the carry.
        "ldr r8, [r12, #4]",
        "add r12, r12, #8",
        "uhadd16 r4, r4, r8",
        "uhadd16 r5, r5, r8",
        "uhadd16 r6, r6, r8",
        "uhadd16 r7, r7, r8",
        "ldr r3, [lr, #{is_paired}]",
        "cbz r3, 6f",
        "and r4, r4, r5",
        "and r5, r6, r7",
        shift_in!("lr", "r4", "r5"),
        "ldr r3, [lr, #{end}]",
        "cmp r12, r3",
        "bne.w 2b",
        "pop {{r4-r11, pc}}",
        "6:",
        shift_in!("lr", "r4", "r5"),
        "add r2, lr, #16",
        shift_in!("r2", "r6", "r7"),
        "ldr r3, [lr, #{end}]",
        "cmp r12, r3",
        "bne.w 2b",
        "pop {{r4-r11, pc}}",
        bits = const UNROLLED_BITS,
        unrolled = const UNROLLED,
        round = const UNROLLED << 16,
        pair = const PAIR_CODE,
        is_paired = const offset_of!(Task, is_paired),
        end = const offset_of!(Task, end),
    )
}

const _: () = assert!(UNROLLED == 1 << UNROLLED_BITS && offset_of!(Task, outside) == 0);
