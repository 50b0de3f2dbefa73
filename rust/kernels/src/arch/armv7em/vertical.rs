/*!
Vertical counters, scheduled by hand: LLVM spills in the adder tree, which takes all fourteen registers.

A block of four picks is eight loads and three carry-save adders. Of every two blocks, of one column or of two, the first
one's word of weight 4 waits in a register for the second's, of every four a word of weight 8, and of every eight one of weight
16, in memory. So one carry ripples through the upper words for 32 picks.
*/

use core::arch::{asm, naked_asm};
use core::mem::offset_of;

use crate::arch::groups::{GroupShape, SegmentEdges};
use crate::arch::moving::{Bits, COUNTER_WORDS, Column, Moving, PICK_BLOCK};
use crate::bits::lane_mask;

/// See the portable function of this name.
pub(crate) fn move_on(window: &mut Moving<'_>, first: usize) -> i32 {
    let counters = window.counters_mut().as_mut_ptr_range();
    let parts = window.parts();
    assert!(first < parts.slots);
    let (counter_words, shape) = (parts.planes, parts.shape);
    let (ring, group_words) = (parts.slots * parts.list_bytes, shape.group_words());
    let mut task = Task {
        left: 0,
        list: parts.lists.as_ptr(),
        step: parts.dilation * parts.list_bytes,
        end: parts.lists.as_ptr(),
        ring,
        tap_bytes: 4 * shape.column_words(),
        upper: counters.start,
        counter_end: counters.start,
        sixteen: 0,
    };
    for segment in 0..parts.segments {
        let lists = parts.lists.as_ptr().wrapping_add(segment * ring);
        task.end = lists.wrapping_add(ring);
        let mut words = parts.lanes.as_ptr();
        if segment > 0 {
            words = words.wrapping_add(shape.tap(0, 0, segment));
        }
        let mut counter = counters.start;
        while counter != counters.end {
            task.left = shape.columns();
            task.list = lists.wrapping_add(first * parts.list_bytes);
            task.upper = counter.wrapping_add(1 + COUNTER_WORDS);
            task.counter_end = counter.wrapping_add(counter_words);
            // SAFETY: as a `Moving` promises: a counter is a word, four words and then threes of words; a column's list is
            // one of the segment's ring, from the first again after the last; every pick is one of the words of its column.
            unsafe { add_blocks(&mut task, words, counter) }
            counter = task.counter_end;
            words = words.wrapping_add(group_words);
        }
    }
    window.net(first)
}

/// See the portable function of this name.
pub(crate) fn add_list(
    window: &Moving<'_>,
    counter: &mut [u32],
    segment: usize,
    group: usize,
    column: usize,
) {
    let parts = window.parts();
    let shape = parts.shape;
    assert!(counter.len() == parts.planes && group < parts.groups && column < shape.columns());
    assert!(segment < parts.segments);
    let list = parts.lists.as_ptr().wrapping_add(segment * parts.slots * parts.list_bytes);
    let mut task = Task {
        left: 1,
        list,
        step: 0,
        end: list,
        ring: 0,
        tap_bytes: 0,
        upper: counter.as_mut_ptr().wrapping_add(1 + COUNTER_WORDS),
        counter_end: counter.as_mut_ptr_range().end,
        sixteen: 0,
    };
    let words = parts.lanes.as_ptr().wrapping_add(shape.tap(group, column, segment));
    // SAFETY: as in `move_on`; the counter is as long as the window's.
    unsafe { add_blocks(&mut task, words, counter.as_mut_ptr()) }
}

/// What [`add_blocks`] takes; it reads these by their offsets, and keeps its state in `left`, `list` and `sixteen`.
#[repr(C)]
struct Task {
    left: usize,
    list: *const u8,
    step: usize,
    end: *const u8,
    ring: usize,
    tap_bytes: usize,
    upper: *mut u32,
    counter_end: *mut u32,
    /// A word of weight 16 that waits.
    sixteen: u32,
}

/// Loads the next two picked words to r8 and r9.
macro_rules! load {
    () => {
        "ldrb r8, [r2], #1
         ldrb r9, [r2], #1
         ldr r8, [r1, r8, lsl #2]
         ldr r9, [r1, r9, lsl #2]\n"
    };
}

/// Adds `$a` and `$b`, or their complements, to `$sum`, bit by bit, with the carry in `$carry`; `$a` and r10 are lost. The
/// three operations are those of the carry, `($sum op $a) op ((sum of both) op $b)`.
macro_rules! adder {
    ([$first:literal, $second:literal, $both:literal], $sum:literal, $a:literal, $b:literal, $carry:literal) => {
        concat!(
            "eor r10, ",
            $sum,
            ", ",
            $a,
            "\n",
            $first,
            " ",
            $a,
            ", ",
            $sum,
            ", ",
            $a,
            "\neor ",
            $sum,
            ", r10, ",
            $b,
            "\n",
            $second,
            " r10, r10, ",
            $b,
            "\n",
            $both,
            " ",
            $carry,
            ", ",
            $a,
            ", r10\n",
        )
    };
}

/// Adds two words.
macro_rules! carry_save {
    ($($word:literal),+) => {
        adder!(["and", "and", "orr"], $($word),+)
    };
}

/// Adds the complements of two words: two inversions make none in a sum.
macro_rules! carry_save_not {
    ($($word:literal),+) => {
        adder!(["bic", "orr", "orn"], $($word),+)
    };
}

/// Adds four picked words, as `$add` takes them, to r4 and r5, of weight 1 and 2; the word of weight 4 goes to `$four`.
macro_rules! block {
    ($add:ident, $four:literal) => {
        concat!(
            load!(),
            $add!("r4", "r8", "r9", "r11"),
            load!(),
            $add!("r4", "r8", "r9", "r8"),
            carry_save!("r5", "r11", "r8", $four),
        )
    };
}

/// Two blocks: the words that wait before them, and the label behind which nothing of weight 4 does; that behind which one
/// does, in r12; labels to leave at. The word of weight 8 goes to `$eight`.
macro_rules! pair {
    ($add:ident, $none:literal, $four:literal, $to_four:literal, $eight:literal) => {
        concat!(
            $none,
            ":\n",
            block!($add, "r12"),
            "subs r3, #1\nbeq.w ",
            $to_four,
            "f\n",
            $four,
            ":\n",
            block!($add, "r11"),
            carry_save!("r6", "r12", "r11", $eight),
        )
    };
}

/// All blocks of a list's part, entered at one of eight labels as words wait, and left at one of eight others: numbers of three
/// bits, for a word of weight 4 in r12, of weight 8 in lr, of weight 16 in memory.
macro_rules! blocks {
    ($add:ident, [$a:literal, $b:literal, $c:literal, $d:literal, $e:literal, $f:literal, $g:literal, $h:literal],
     [$to_a:literal, $to_b:literal, $to_c:literal, $to_d:literal, $to_e:literal, $to_f:literal, $to_g:literal, $to_h:literal]) => {
        concat!(
            pair!($add, $a, $b, $to_b, "lr"),
            "subs r3, #1\nbeq.w ",
            $to_c,
            "f\n",
            pair!($add, $c, $d, $to_d, "r8"),
            carry_save!("r7", "lr", "r8", "r8"),
            "str r8, [r0, #{sixteen}]\nsubs r3, #1\nbeq.w ",
            $to_e,
            "f\n",
            pair!($add, $e, $f, $to_f, "lr"),
            "subs r3, #1\nbeq.w ",
            $to_g,
            "f\n",
            pair!($add, $g, $h, $to_h, "r8"),
            carry_save!("r7", "lr", "r8", "r8"),
            ripple!(),
            "subs r3, #1\nbne.w ",
            $a,
            "b\nb.w ",
            $to_a,
            "f\n",
        )
    };
}

/// Adds the carry in r8 and the one that waits to the words of weight 16 and up, then three at a time, until it is gone or
/// they are; r3 is kept.
macro_rules! ripple {
    () => {
        concat!(
            "ldr r12, [r0, #{upper}]
             ldr lr, [r0, #{counter_end}]
             cmp r12, lr
             beq 3f
             ldr r11, [r0, #{sixteen}]
             ldr r9, [r12]\n",
            carry_save!("r9", "r11", "r8", "r8"),
            "str r9, [r12], #4
             ldrd r9, r10, [r12]
             and lr, r8, r9
             eor r9, r9, r8
             and r8, lr, r10
             eor r10, r10, lr
             strd r9, r10, [r12], #8
             cmp r8, #0
             beq 3f
         2:  ldr lr, [r0, #{counter_end}]
             cmp r12, lr
             beq 3f
             ldm r12, {{r9, r10, r11}}
             and lr, r8, r9
             eor r9, r9, r8
             and r8, lr, r10
             eor r10, r10, lr
             and lr, r8, r11
             eor r11, r11, r8
             stm r12!, {{r9, r10, r11}}
             movs r8, lr
             bne 2b
         3:\n"
        )
    };
}

/// From `$turn` on: what is to be taken away, at `$taken` if there is anything. From `$next` on: the next column, at `$added` if
/// it lists anything to be added; without one, at `$done`. r4 to r7, r12 and lr are kept.
macro_rules! go_on {
    ($turn:literal, $next:literal, $begin:literal, $added:literal, $taken:literal, $done:literal) => {
        concat!(
            $turn,
            ":\n",
            "ldr r9, [r0, #{list}]
             ldrb r3, [r9, #1]
             cmp r3, #0
             bne.w ",
            $taken,
            "b\n",
            $next,
            ":\n",
            "ldm r0, {{r8, r9, r10, r11}}
             subs r8, #1
             beq.w ",
            $done,
            "f\nadd r9, r10
             cmp r9, r11
             itt hs
             ldrhs r10, [r0, #{ring}]
             subhs r9, r9, r10
             stm r0, {{r8, r9}}
             ldr r10, [r0, #{tap_bytes}]
             add r1, r10\n",
            $begin,
            "ldrb r3, [r9]
             add r2, r9, #4
             cmp r3, #0
             beq ",
            $turn,
            "b\nb.w ",
            $added,
            "b\n",
        )
    };
}

/// Adds the words that the columns' lists name to a counter, and takes others away.
///
/// # Safety
/// See [`Task`]: `left` lists from `list` on, at least one, are inside the ring, `words` holds what they pick; `counter` is a
/// word, four words and then threes of words up to `counter_end`.
#[unsafe(naked)]
unsafe extern "C" fn add_blocks(task: *mut Task, words: *const u32, counter: *mut u32) {
    // r0 task, r1 words, r2 list, r3 blocks left, r4 to r7 the counter's words of weight 1 to 8.
    naked_asm!(
        "push {{r2, r4-r11, lr}}",
        "add r2, #4",
        "ldm r2, {{r4-r7}}",
        "ldr r9, [r0, #{list}]",
        "b.w 9f",
        blocks!(
            carry_save,
            ["20", "21", "22", "23", "24", "25", "26", "27"],
            ["40", "41", "42", "43", "44", "45", "46", "47"]
        ),
        blocks!(
            carry_save_not,
            ["30", "31", "32", "33", "34", "35", "36", "37"],
            ["50", "51", "52", "53", "54", "55", "56", "57"]
        ),
        go_on!("40", "50", "9:\n", "20", "30", "68"),
        go_on!("41", "51", "", "21", "31", "61"),
        go_on!("42", "52", "", "22", "32", "62"),
        go_on!("43", "53", "", "23", "33", "63"),
        go_on!("44", "54", "", "24", "34", "64"),
        go_on!("45", "55", "", "25", "35", "65"),
        go_on!("46", "56", "", "26", "36", "66"),
        go_on!("47", "57", "", "27", "37", "67"),
        // The last words of weight 4, 8 and 16: where one does not wait, 0.
        "62:",
        "mov r12, #0",
        "63:",
        "mov r10, #0",
        "str r10, [r0, #{sixteen}]",
        "b 67f",
        "61:",
        "mov r10, #0",
        "str r10, [r0, #{sixteen}]",
        "b 65f",
        "64:",
        "mov r12, #0",
        "65:",
        "mov lr, #0",
        "b 67f",
        "66:",
        "mov r12, #0",
        "67:",
        "and r8, r6, r12",
        "eor r6, r6, r12",
        carry_save!("r7", "lr", "r8", "r8"),
        ripple!(),
        "68:",
        "pop {{r2}}",
        "add r2, #4",
        "stm r2, {{r4-r7}}",
        "pop {{r4-r11, pc}}",
        list = const offset_of!(Task, list),
        ring = const offset_of!(Task, ring),
        upper = const offset_of!(Task, upper),
        counter_end = const offset_of!(Task, counter_end),
        tap_bytes = const offset_of!(Task, tap_bytes),
        sixteen = const offset_of!(Task, sixteen),
    )
}

/// See the portable function of this name.
pub(crate) fn transpose(numbers: &[i32; 32], planes: &mut [u32]) {
    for (bit, plane) in planes.iter_mut().enumerate() {
        // SAFETY: 32 words of `numbers` are read.
        unsafe {
            asm!(
                "2:",
                "ldm {number}!, {{r3, r4}}",
                // The last bit that is shifted out goes in at the top.
                "lsrs r3, r3, {shift}",
                "rrx {plane}, {plane}",
                "lsrs r4, r4, {shift}",
                "rrx {plane}, {plane}",
                "cmp {number}, {end}",
                "bne 2b",
                number = inout(reg) numbers.as_ptr() => _,
                end = in(reg) numbers.as_ptr_range().end,
                shift = in(reg) (bit + 1).min(32),
                plane = out(reg) *plane,
                out("r3") _,
                out("r4") _,
                options(nostack, readonly),
            );
        }
    }
}

/// See the portable function of this name.
pub(crate) fn add_planes(a: &mut [u32], b: &[u32], invert: u32) {
    let count = a.len().min(b.len());
    let mut carry = invert;
    // SAFETY: `count` words of both are read, and those of `a` written.
    unsafe {
        asm!(
            "cmp {a}, {end}",
            "beq 3f",
            "2:",
            "ldr {x}, [{a}]",
            "ldr {y}, [{b}], #4",
            "eor {y}, {y}, {invert}",
            "eor {half}, {x}, {y}",
            "and {x}, {x}, {y}",
            "eor {y}, {half}, {carry}",
            "and {half}, {half}, {carry}",
            "str {y}, [{a}], #4",
            "orr {carry}, {x}, {half}",
            "cmp {a}, {end}",
            "bne 2b",
            "3:",
            a = inout(reg) a.as_mut_ptr() => _,
            b = inout(reg) b.as_ptr() => _,
            end = in(reg) a.as_mut_ptr().wrapping_add(count),
            x = out(reg) _,
            y = out(reg) _,
            half = out(reg) _,
            invert = in(reg) invert,
            carry = inout(reg) carry,
            options(nostack),
        );
    }
    if let Some(top) = a.get_mut(b.len()) {
        *top ^= carry ^ invert;
    }
}

/// See the portable function of this name.
#[inline]
pub(crate) fn inside(a: &[u32], b: i32, bound: Option<&[u32]>) -> u32 {
    let Some(last) = a.len().checked_sub(1) else { return u32::MAX };
    if let Some(bound) = bound {
        assert!(bound.len() > last);
        // SAFETY: both have a last word behind `last` words.
        return unsafe { inside_bounds(a.as_ptr(), bound.as_ptr(), last, b) };
    }
    let (mut borrow, mut rest) = (0u32, b);
    // SAFETY: `a` is read up to its last word but one.
    unsafe {
        asm!(
            "cmp {a}, {end}",
            "beq 3f",
            "2:",
            "ldr {word}, [{a}], #4",
            "asrs {rest}, {rest}, #1",
            "ite cs",
            "orncs {borrow}, {borrow}, {word}",
            "biccc {borrow}, {borrow}, {word}",
            "cmp {a}, {end}",
            "bne 2b",
            "3:",
            a = inout(reg) a.as_ptr() => _,
            end = in(reg) a.as_ptr().wrapping_add(last),
            word = out(reg) _,
            rest = inout(reg) rest,
            borrow = inout(reg) borrow,
            options(nostack, readonly),
        );
    }
    !(a[last] ^ (-(rest & 1)) as u32 ^ borrow)
}

/// The next plane: `$a` less a bit of r3 with the borrow in r4, which is to be below `$bound`, with the borrow of that in r5.
macro_rules! compare_plane {
    ($a:literal, $bound:literal) => {
        concat!(
            "eor r12, ",
            $a,
            ", r4
             asrs r3, r3, #1
             itte cs
             mvncs r12, r12
             orncs r4, r4, ",
            $a,
            "\nbiccc r4, r4, ",
            $a,
            "\neor ",
            $a,
            ", r12, ",
            $bound,
            "\nbic ",
            $bound,
            ", ",
            $bound,
            ", r12
             bic r5, r5, ",
            $a,
            "\norr r5, r5, ",
            $bound,
            "\n",
        )
    };
}

/// # Safety
/// `a` and `bound` hold one word more than `last`.
#[unsafe(naked)]
unsafe extern "C" fn inside_bounds(a: *const u32, bound: *const u32, last: usize, b: i32) -> u32 {
    naked_asm!(
        "push {{r4-r9}}",
        "mov r4, #0",
        "mov r5, #0",
        "lsrs r2, r2, #1",
        "bcc 2f",
        "ldr r6, [r0], #4",
        "ldr r8, [r1], #4",
        compare_plane!("r6", "r8"),
        "2:",
        "cbz r2, 4f",
        "3:",
        "ldrd r6, r7, [r0], #8",
        "ldrd r8, r9, [r1], #8",
        compare_plane!("r6", "r8"),
        compare_plane!("r7", "r9"),
        "subs r2, r2, #1",
        "bne 3b",
        // The signs: where they differ the negative one is the smaller.
        "4:",
        "ldr r6, [r0]",
        "ldr r8, [r1]",
        "eor r6, r6, r4",
        "lsls r3, r3, #31",
        "it mi",
        "mvnmi r6, r6",
        // Not negative, and either the bound is no more negative or it is below by the borrow.
        "eor r8, r8, r6",
        "bic r5, r5, r8",
        "bic r0, r5, r6",
        "pop {{r4-r9}}",
        "bx lr",
    )
}

/// See the portable function of this name. The picks come in another order, which is nobody's business.
#[inline]
pub(crate) fn column_changes(
    columns: [Column<'_>; 2],
    rows: usize,
    first: usize,
    bits: Bits,
    zero: u8,
    list: &mut [u8],
) -> [usize; 2] {
    let [with, without] = columns;
    assert!(rows > 0 && (rows - 1) * with.1 < with.0.len() && (rows - 1) * without.1 < without.0.len());
    assert!(32 * rows + PICK_BLOCK <= list.len());
    let mut task = Changes {
        with: with.0.as_ptr(),
        without: without.0.as_ptr(),
        list: list.as_mut_ptr(),
        rows,
        first,
        with_step: 4 * with.1,
        without_step: 4 * without.1,
        bits,
        zero: zero.into(),
        counts: [0; 2],
    };
    // SAFETY: each column holds `rows` words, so many bytes apart, at least one; a word has at most 32 set bits, each of which
    // takes a byte of `list` in one of the two parts, as none is both set and not; fillings take no more than up to a multiple
    // of a block at the end of each part, and the first part is as much shorter where it is filled.
    unsafe { changes(&mut task) }
    task.counts
}

/// What [`changes`] takes, in the order of its registers, and what it found.
#[repr(C)]
struct Changes {
    with: *const u32,
    without: *const u32,
    list: *mut u8,
    rows: usize,
    first: usize,
    with_step: usize,
    without_step: usize,
    bits: Bits,
    zero: u32,
    counts: [usize; 2],
}

/// Lists the bits that are set in the words from r0 on and not in those from r1 on; r0, r1, r3, r4 and r10 to r12 are lost.
macro_rules! list_bits {
    () => {
        "2: ldr r10, [r0]
         ldr r11, [r1]
         add r0, r5
         add r1, r6
         eor r12, r10, r7
         eor r10, r10, r11
         and r12, r12, r8
         ands r10, r10, r12
         mov r12, r4
         add r4, r9
         beq 4f
         3: clz r11, r10
         add r11, #1
         sub r12, r12, r11
         strb r12, [r2], #1
         lsls r10, r10, r11
         bne 3b
         4: subs r3, #1
         bne 2b\n"
    };
}

/// As [`list_bits`], fills the last block, and stores how many they are at `$count`.
macro_rules! list_changes {
    ($count:literal) => {
        concat!(
            "push {{r2}}\n",
            list_bits!(),
            "pop {{r10}}
             sub r10, r2, r10
             str r10, [lr, #{counts} + ",
            $count,
            "]
             ldr r12, [lr, #{zero}]
             ands r10, r10, #3
             beq 6f
             5: strb r12, [r2], #1
             add r10, #1
             cmp r10, #4
             bne 5b
             6:\n"
        )
    };
}

/// Lists the bits of `with` that are not in `without`, in no blocks, and leaves `list` at their end.
///
/// # Safety
/// See [`Changes`]: both columns hold `rows` words, at least one, and the list has room.
#[unsafe(naked)]
unsafe extern "C" fn bits_of(task: *mut Changes) {
    naked_asm!(
        "push {{r4-r11, lr}}",
        "mov lr, r0",
        "ldm lr, {{r0-r9}}",
        "add r4, #32",
        list_bits!(),
        "str r2, [lr, #{list}]",
        "pop {{r4-r11, pc}}",
        list = const offset_of!(Changes, list),
    )
}

/// See the portable function of this name. The picks come in another order, which is nobody's business.
pub(crate) fn segment_changes(
    columns: [Column<'_>; 2],
    shape: &GroupShape,
    segment: usize,
    rows: (usize, usize),
    mask: &[u32],
    list: &mut [u8],
) -> [usize; 2] {
    let (start, end) = shape.segment(segment);
    assert!(32 * (end - start) + PICK_BLOCK <= list.len() && mask.len() == shape.pixel_words());
    for (words, step) in columns {
        assert!(rows.0 < rows.1 && (rows.1 - 1 - rows.0) * step + mask.len() <= words.len());
    }
    let (base, zero) = (list.as_mut_ptr(), shape.segment_weights(segment) as u8);
    let edges = SegmentEdges::new(shape, segment);
    let mut task = Changes {
        with: columns[0].0.as_ptr(),
        without: columns[1].0.as_ptr(),
        list: base,
        rows: 0,
        first: 0,
        with_step: 0,
        without_step: 0,
        bits: Bits { mask: 0, all: 0, channels: shape.channels() },
        zero: zero.into(),
        counts: [0; 2],
    };
    let mut counts = [0; 2];
    for (count, [with, without]) in counts.iter_mut().zip([columns, [columns[1], columns[0]]]) {
        let begin = task.list;
        for (word, &mask) in mask.iter().enumerate() {
            let (first, end) = edges.rows(word, rows);
            if first >= end {
                continue;
            }
            let at = |(words, step): Column<'_>| words.as_ptr().wrapping_add((first - rows.0) * step + word);
            (task.with, task.without) = (at(with), at(without));
            (task.with_step, task.without_step) = (4 * with.1, 4 * without.1);
            (task.rows, task.first) = (end - first, edges.pick(first, word).into());
            (task.bits.mask, task.bits.all) = (mask, lane_mask(shape.channels(), word));
            // SAFETY: both columns hold those words of those rows, at least one; in the end a bit of a word of the segment is
            // listed once at most, as none is both set and not, each in a byte, with a block's filling, for which the list has room.
            unsafe { bits_of(&mut task) };
        }
        *count = task.list.addr() - begin.addr();
        let end = task.list.addr() - base.addr();
        let filled = end.next_multiple_of(PICK_BLOCK);
        list[end..filled].fill(zero);
        task.list = base.wrapping_add(filled);
    }
    counts
}

/// # Safety
/// See [`Changes`]: both columns hold `rows` words, at least one, and the list has room for what is set in one of them alone,
/// and for two unfinished blocks.
#[unsafe(naked)]
unsafe extern "C" fn changes(task: *mut Changes) {
    // r0 and r1 words, r2 list, r3 rows left, r4 behind the row's first pick, r5 and r6 steps, r7 mask, r8 all, r9 channels.
    naked_asm!(
        "push {{r4-r11, lr}}",
        "mov lr, r0",
        "ldm lr, {{r0-r9}}",
        "add r4, #32",
        list_changes!("0"),
        "ldrd r1, r0, [lr]",
        "ldrd r3, r4, [lr, #12]",
        "ldrd r6, r5, [lr, #20]",
        "add r4, #32",
        list_changes!("4"),
        "pop {{r4-r11, pc}}",
        zero = const offset_of!(Changes, zero),
        counts = const offset_of!(Changes, counts),
    )
}

const _: () =
    assert!(offset_of!(Changes, rows) == 12 && offset_of!(Changes, with_step) == 20 && PICK_BLOCK == 4);

/// See the portable function of this name. The picks come in another order, which is nobody's business.
#[inline]
pub(crate) fn picks(bits: u32, first: u8, list: &mut [u8]) -> usize {
    const TOP: u32 = 1 << 31;
    let Some(place) = list.first_chunk_mut::<32>() else {
        return super::super::portable::picks(bits, first, list);
    };
    let last = first.wrapping_add(31);
    let (mut rest, mut count) = (bits, 0);
    while rest != 0 {
        let lead = rest.leading_zeros();
        rest &= !(TOP >> lead);
        // SAFETY: a word has at most 32 set bits, and each round takes one away.
        unsafe { *place.get_unchecked_mut(count) = last.wrapping_sub(lead as u8) };
        count += 1;
    }
    count
}
