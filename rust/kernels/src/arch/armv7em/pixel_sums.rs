/*!
Sums of a segment's windows: two of them in a word, added by `SADD16`. Two offsets take 13 instructions for sixteen
taps: see [`list`].
*/

use core::arch::{asm, naked_asm};
use core::mem::offset_of;

use crate::arch::tables::{MAX_CHANNELS, SEGMENT, SEGMENT_WORDS, SumFilters};

/// See the portable function of this name.
pub(crate) fn move_down(words: &mut [u32], by: usize) {
    let Some(count) = words.len().checked_sub(by).filter(|count| *count > 0) else { return };
    let (to, rest) = (words.as_mut_ptr(), count % 8);
    // SAFETY: `count` words from `by` on and from 0 on are inside `words`; each is loaded before it may be overwritten, as
    // the loads are ahead.
    unsafe {
        asm!(
            "cmp {rest}, #0",
            "beq 3f",
            "2:",
            "ldr r3, [{from}], #4",
            "str r3, [{to}], #4",
            "subs {rest}, #1",
            "bne 2b",
            "3:",
            "cmp {blocks}, #0",
            "beq 5f",
            "4:",
            "ldm {from}!, {{r3, r4, r5, r8, r9, r10, r11, r12}}",
            "stm {to}!, {{r3, r4, r5, r8, r9, r10, r11, r12}}",
            "subs {blocks}, #1",
            "bne 4b",
            "5:",
            rest = inout(reg) rest => _,
            blocks = inout(reg) count / 8 => _,
            from = inout(reg) to.add(by) => _,
            to = inout(reg) to => _,
            out("r3") _,
            out("r4") _, out("r5") _, out("r8") _, out("r9") _, out("r10") _, out("r11") _, out("r12") _,
            options(nostack),
        );
    }
}

/// See the portable function of this name.
#[inline]
pub(crate) fn signed_sums(
    line: &[u8],
    channels: usize,
    mul: u32,
    adds: &[u32; MAX_CHANNELS],
    sums: &mut [u32],
) {
    let columns = sums.len() / 4;
    if channels != 3 || columns == 0 {
        return super::super::portable::signed_sums(line, channels, mul, adds, sums);
    }
    assert!(line.len() >= 3 * (columns + SEGMENT_WORDS));
    let factors = [mul, adds[0], adds[1], adds[2]];
    // SAFETY: `line` holds `columns` pixels of three bytes and four more, `sums` four columns of words; there is a column.
    unsafe { sums_of_three(line.as_ptr(), sums.as_mut_ptr(), columns, &factors) }
}

/// See the portable function of this name.
pub(crate) fn add_rows(rows: &mut [u32], to: usize, count: usize) {
    let row = rows.len() / 2;
    assert!(count <= to && to + count <= row);
    let Some(count) = core::num::NonZero::new(count) else { return };
    let above = rows.as_mut_ptr();
    // SAFETY: `count` words from 0, from `row` and from `row + to` on are inside `rows`, and the last are none of the others.
    unsafe {
        asm!(
            "2:",
            "ldr r3, [{above}], #4",
            "ldr r4, [{below}], #4",
            "sadd16 r3, r3, r4",
            "subs {count}, #1",
            "str r3, [{to}], #4",
            "bne 2b",
            count = inout(reg) count.get() => _,
            above = inout(reg) above => _,
            below = inout(reg) above.add(row) => _,
            to = inout(reg) above.add(row + to) => _,
            out("r3") _,
            out("r4") _,
            options(nostack),
        );
    }
}

/// The value of a channel of the pixel at r0 and of the one behind the next three, in `$value`.
macro_rules! value {
    ($value:literal, $load:literal, $high:literal, $add:literal) => {
        concat!(
            "ldrb ",
            $value,
            ", ",
            $load,
            "\n",
            "ldrb r3, ",
            $high,
            "\n",
            "orr ",
            $value,
            ", ",
            $value,
            ", r3, lsl #16\n",
            "mul ",
            $value,
            ", ",
            $value,
            ", r4\n",
            "sadd16 ",
            $value,
            ", ",
            $value,
            ", ",
            $add,
            "\n",
        )
    };
}

/// As [`signed_sums`], for three channels: 28 instructions a column.
///
/// # Safety
/// `line` holds `columns` pixels and four more, `sums` four times `columns` words; `columns` is at least 1.
#[unsafe(naked)]
unsafe extern "C" fn sums_of_three(
    line: *const u8,
    sums: *mut u32,
    columns: usize,
    factors: *const [u32; 4],
) {
    naked_asm!(
        "push {{r4-r11, lr}}",
        "ldm r3, {{r4, r5, r6, r7}}",
        "lsl r8, r2, #2",
        "add r9, r8, r8, lsl #1",
        "2:",
        value!("r10", "[r0]", "[r0, #12]", "r5"),
        value!("r11", "[r0, #1]", "[r0, #13]", "r6"),
        value!("r12", "[r0, #2]", "[r0, #14]", "r7"),
        "add r0, #3",
        // The sum and the difference of channels 1 and 2.
        "sadd16 r3, r11, r12",
        "ssub16 r12, r11, r12",
        "ssub16 r11, r10, r12",
        "str r11, [r1, r8]",
        "sadd16 r11, r10, r12",
        "str r11, [r1, r8, lsl #1]",
        "ssub16 r11, r10, r3",
        "str r11, [r1, r9]",
        "sadd16 r11, r10, r3",
        "str r11, [r1], #4",
        "subs r2, #1",
        "bne 2b",
        "pop {{r4-r11, pc}}",
    )
}

/// What [`hits`] takes beside table, filters and intervals.
#[repr(C)]
struct Task {
    /// Bits of sums outside: of windows 4, 0, 5, 1, 6, 2, 7 and 3, or of pairs 2, 0, 3 and 1. Shifted right by one, and in on
    /// the left, with each filter. The last of them has a bit more, which comes out with the last filter.
    outside: [u32; SEGMENT],
    is_paired: u32,
    /// Where pairs are asked for: shifted right by one, and looked at, with each filter.
    known: u32,
    filter_bytes: usize,
}

/// See the portable function of this name.
#[inline]
pub(crate) fn sum_hits(
    table: &[u32],
    filters: &SumFilters<'_>,
    intervals: &[[u32; 2]],
    is_paired: bool,
    known: u32,
) -> [u32; SEGMENT] {
    let words = filters.filter_words();
    let count = intervals.len().min(filters.weights().len() / words).min(32);
    if count == 0 {
        return [0; SEGMENT];
    }
    assert!(table.len() >= filters.table_words());
    let intervals = &intervals[..count];
    let mut task = Task {
        outside: [0; SEGMENT],
        is_paired: is_paired.into(),
        known: if is_paired { known } else { 0 },
        filter_bytes: 4 * words,
    };
    task.outside[if is_paired { 3 } else { SEGMENT - 1 }] = 1 << (count - 1);
    // SAFETY: there are as many filters as intervals, at least one; a `SumFilters` has filters whose lists have as many words
    // as a filter has, and whose offsets lie in a table of `table_words`.
    unsafe { hits(table.as_ptr(), filters.weights().as_ptr(), intervals.as_ptr(), &mut task) }
    let shift = 32 - count;
    let [a, b, c, d, e, f, g, h] = task.outside;
    let [a, b, c, d] = [!a >> shift, !b >> shift, !c >> shift, !d >> shift];
    if is_paired {
        return [b, d, a, c, 0, 0, 0, 0];
    }
    let [e, f, g, h] = [!e >> shift, !f >> shift, !g >> shift, !h >> shift];
    [b, d, f, h, a, c, e, g]
}

/// Offsets of a list that are unrolled, a power of 2, and bits of their number.
const UNROLLED: usize = 16;
const UNROLLED_BITS: usize = 4;

/// Bytes of code of half a pair, and of the load before it.
const HALF_CODE: usize = 24;
const LOAD_CODE: usize = 4;

/// Loads the next two offsets.
macro_rules! load {
    () => {
        "ldr.w r3, [r1], #4\n"
    };
}

/// Applies `$op`, an instruction for both halves, to r4, r5, r6 and r7 and to the sums at an offset in r3, rotated.
macro_rules! half {
    ($op:literal, $rotation:literal) => {
        concat!(
            "uxtah r8, r0, r3",
            $rotation,
            "\nldm.w r8, {{r8, r9, r10, r11}}\n",
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

/// Two offsets.
macro_rules! pair {
    ($op:literal) => {
        concat!(load!(), half!($op, ""), half!($op, ", ror #16"))
    };
}

/// Where the last `$offsets` of the unrolled code begin, with the first of them loaded, in halfwords from the table on.
macro_rules! entry {
    ($offsets:literal) => {
        concat!(".byte (5f - 3b - ", $offsets, " * {half} - (", $offsets, " - 1) / 2 * {load}) / 2\n")
    };
}

/// All the unrolled pairs of `$op`, entered so that the first round takes r8 offsets; `$next` counts rounds down.
macro_rules! list {
    ($op:literal, $next:literal) => {
        concat!(
            load!(),
            "tbb [pc, r8]\n",
            "3:\n",
            ".byte (6f - 3b) / 2\n",
            entry!("1"),
            entry!("2"),
            entry!("3"),
            entry!("4"),
            entry!("5"),
            entry!("6"),
            entry!("7"),
            entry!("8"),
            entry!("9"),
            entry!("10"),
            entry!("11"),
            entry!("12"),
            entry!("13"),
            entry!("14"),
            entry!("15"),
            // Nothing in the first round.
            "6:\n",
            "subs r1, r1, #4\n",
            "b 5f\n",
            ".p2align 2\n",
            "4:\n",
            pair!($op),
            pair!($op),
            pair!($op),
            pair!($op),
            pair!($op),
            pair!($op),
            pair!($op),
            pair!($op),
            "5:\n",
            $next,
            "\nbpl.w 4b\n",
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
            "rrxs r11, r11\n",
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
    // r0 table, r1 filter, r2 lengths of both lists, r3 two offsets, r4 to r7 sums, r12 intervals, lr task.
    naked_asm!(
        "push {{r4-r11, lr}}",
        "mov lr, r3",
        "mov r12, r2",
        // One filter.
        "2:",
        "ldr r3, [lr, #{known}]",
        "lsrs r3, r3, #1",
        "str r3, [lr, #{known}]",
        "bcs.w 8f",
        "ldr r2, [r1], #4",
        "ldr r4, [r12]",
        "uxtab r1, r1, r2",
        "ubfx r8, r2, #16, #{bits}",
        "mov r5, r4",
        "mov r6, r4",
        "mov r7, r4",
        list!("sadd16", "subs r2, r2, #{round}"),
        "ubfx r2, r2, #8, #8",
        "and r8, r2, #{unrolled} - 1",
        list!("ssub16", "subs r2, r2, #{unrolled}"),
        // The top bit of a half of (sum + 2^16 - count) / 2 is the carry.
        "ldr r8, [r12, #4]",
        "add r12, r12, #8",
        "uhadd16 r4, r4, r8",
        "uhadd16 r5, r5, r8",
        "uhadd16 r6, r6, r8",
        "uhadd16 r7, r7, r8",
        "ldr r3, [lr, #{is_paired}]",
        "cbz r3, 7f",
        "and r4, r4, r5",
        "and r5, r6, r7",
        shift_in!("lr", "r4", "r5"),
        "bcc.w 2b",
        "pop {{r4-r11, pc}}",
        "7:",
        shift_in!("lr", "r4", "r5"),
        "add r2, lr, #16",
        shift_in!("r2", "r6", "r7"),
        "bcc.w 2b",
        "pop {{r4-r11, pc}}",
        // A known filter: none is outside.
        "8:",
        "ldr r3, [lr, #{filter_bytes}]",
        "add r12, r12, #8",
        "add r1, r1, r3",
        "ldm.w lr, {{r8, r9, r10, r11}}",
        "lsr r8, r8, #1",
        "lsr r9, r9, #1",
        "lsr r10, r10, #1",
        "lsrs r11, r11, #1",
        "stm.w lr, {{r8, r9, r10, r11}}",
        "bcc.w 2b",
        "pop {{r4-r11, pc}}",
        bits = const UNROLLED_BITS,
        unrolled = const UNROLLED,
        round = const UNROLLED << 16,
        half = const HALF_CODE,
        load = const LOAD_CODE,
        is_paired = const offset_of!(Task, is_paired),
        known = const offset_of!(Task, known),
        filter_bytes = const offset_of!(Task, filter_bytes),
    )
}

const _: () = assert!(UNROLLED == 1 << UNROLLED_BITS && offset_of!(Task, outside) == 0);
