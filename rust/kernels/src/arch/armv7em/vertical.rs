/*!
Vertical counters, scheduled by hand: LLVM spills in the adder tree, which takes all fourteen registers.

A block of eight picks is sixteen loads and seven carry-save adders. Of every two blocks the first one's word of
weight 8 waits in a register for the second's, so that one carry ripples through the upper words for sixteen picks.
*/

use core::arch::{asm, naked_asm};
use core::mem::offset_of;

use super::super::portable::{Bits, COUNTER_WORDS, PICK_BLOCK, Picks, Windows};

/// See the portable function of this name.
#[inline]
pub(crate) fn add_picked(ring: &mut [u32], windows: Windows, words: &[u32], picks: &Picks<'_>) {
    let Windows { slots, size, groups, planes, first, count, tap_words, group_words, picked } = windows;
    let blocks = picks.blocks();
    if count == 0 || groups == 0 || blocks.is_empty() {
        return;
    }
    assert!(planes > COUNTER_WORDS && (planes - 1 - COUNTER_WORDS).is_multiple_of(3));
    assert!(groups * planes < size && first < slots && slots * size <= ring.len());
    assert!((count - 1) * tap_words + (groups - 1) * group_words + picks.bound() <= words.len());
    let lowest = ring.as_mut_ptr();
    let task = Task {
        window: lowest.wrapping_add(first * size),
        words: words.as_ptr(),
        windows: count,
        lowest,
        window_bytes: 4 * size,
        ring_bytes: 4 * slots * size,
        tap_bytes: 4 * tap_words,
        picked,
        groups,
        planes_bytes: 4 * planes,
        group_bytes: 4 * group_words,
        picks: blocks.as_ptr(),
        blocks: blocks.len(),
    };
    // SAFETY: a window is a number and `groups` counters, at least one, each of them four words and then threes after the
    // first of `planes` words; windows are taken from the slots of `ring`, from the last again after the first; every pick
    // is below `bound`, and so inside the words of its window and group; there are a window and a block at least.
    unsafe { add_blocks(&task) }
}

/// What [`add_blocks`] takes; it reads these by their offsets.
#[repr(C)]
struct Task {
    window: *mut u32,
    words: *const u32,
    windows: usize,
    lowest: *mut u32,
    window_bytes: usize,
    ring_bytes: usize,
    tap_bytes: usize,
    picked: usize,
    groups: usize,
    planes_bytes: usize,
    group_bytes: usize,
    picks: *const [u8; PICK_BLOCK],
    blocks: usize,
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

/// Adds `$a` and `$b` to `$sum`, bit by bit, with the carry in `$carry`; `$a` and r10 are lost.
macro_rules! carry_save {
    ($sum:literal, $a:literal, $b:literal, $carry:literal) => {
        concat!(
            "eor r10, ",
            $sum,
            ", ",
            $a,
            "\n",
            "and ",
            $a,
            ", ",
            $sum,
            ", ",
            $a,
            "\n",
            "eor ",
            $sum,
            ", r10, ",
            $b,
            "\n",
            "and r10, r10, ",
            $b,
            "\n",
            "orr ",
            $carry,
            ", ",
            $a,
            ", r10\n",
        )
    };
}

/// Adds eight picked words to r4, r5 and r6, of weight 1, 2 and 4; the word of weight 8 goes to `$eight`.
macro_rules! block {
    ($eight:literal) => {
        concat!(
            load!(),
            carry_save!("r4", "r8", "r9", "r11"),
            load!(),
            carry_save!("r4", "r8", "r9", "r8"),
            carry_save!("r5", "r11", "r8", "r12"),
            load!(),
            carry_save!("r4", "r8", "r9", "r11"),
            load!(),
            carry_save!("r4", "r8", "r9", "r8"),
            carry_save!("r5", "r11", "r8", "r11"),
            carry_save!("r6", "r12", "r11", $eight),
        )
    };
}

/// Adds the carry in r8 to the words of weight 16 and up, three at a time, until it is gone or they are.
macro_rules! ripple {
    () => {
        "add r12, r0, #16
     2:  ldr lr, [sp, #4]
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
    };
}

/// Adds the words that the picks name to each counter of each window.
///
/// # Safety
/// See [`Task`]: each counter is valid for four words and then for threes of words up to its end, the words of each window
/// and group at every pick; there is at least one of everything.
#[unsafe(naked)]
unsafe extern "C" fn add_blocks(task: *const Task) {
    naked_asm!(
        // On the stack: the task, the end of the counter, the window and its words, windows and groups left.
        "push {{r4-r11, lr}}",
        "sub sp, #24",
        "str r0, [sp]",
        "ldm r0, {{r4, r5, r6}}",
        // One window.
        "9:",
        "strd r4, r5, [sp, #8]",
        "str r6, [sp, #16]",
        "ldr r7, [sp]",
        "ldrd r10, r8, [r7, #{picked}]",
        "ldr r9, [r4]",
        "add r9, r9, r10",
        "str r9, [r4]",
        "str r8, [sp, #20]",
        "ldr r9, [r7, #{planes_bytes}]",
        "add r0, r4, #8",
        "add r9, r9, r4",
        "add r9, r9, #4",
        "str r9, [sp, #4]",
        "mov r1, r5",
        // One group of it.
        "7:",
        "ldrd r2, r3, [r7, #{picks}]",
        "ldm r0, {{r4-r7}}",
        "4:",
        block!("lr"),
        "subs r3, #1",
        "beq 5f",
        block!("r8"),
        carry_save!("r7", "lr", "r8", "r8"),
        ripple!(),
        "subs r3, #1",
        "bne 4b",
        "6:",
        "stm r0, {{r4-r7}}",
        "ldr r7, [sp]",
        "ldr r4, [sp, #20]",
        "subs r4, #1",
        "bne 8f",
        "ldrd r4, r5, [sp, #8]",
        "ldr r6, [sp, #16]",
        "subs r6, #1",
        "beq 10f",
        "add r8, r7, #{lowest}",
        "ldm r8, {{r8, r9, r10, r11}}",
        "sub r4, r4, r9",
        "cmp r4, r8",
        "it lo",
        "addlo r4, r10",
        "add r5, r11",
        "b 9b",
        // The next group.
        "8:",
        "str r4, [sp, #20]",
        "ldrd r5, r6, [r7, #{planes_bytes}]",
        "ldr r2, [sp, #4]",
        "add r0, r5",
        "add r1, r6",
        "add r2, r5",
        "str r2, [sp, #4]",
        "b 7b",
        "10:",
        "add sp, #24",
        "pop {{r4-r11, pc}}",
        // One block is left without a partner.
        "5:",
        "and r8, r7, lr",
        "eor r7, r7, lr",
        ripple!(),
        "b 6b",
        picked = const offset_of!(Task, picked),
        planes_bytes = const offset_of!(Task, planes_bytes),
        picks = const offset_of!(Task, picks),
        lowest = const offset_of!(Task, lowest),
    )
}

/// See the portable function of this name. The picks come in another order, which is nobody's business.
#[inline]
pub(crate) fn column_picks(
    input: &[u32],
    step: usize,
    rows: usize,
    first: usize,
    bits: Bits,
    list: &mut [u8],
) -> usize {
    assert!(rows > 0 && (rows - 1) * step < input.len() && 32 * rows <= list.len());
    let begin = list.as_mut_ptr();
    let end: *mut u8;
    // SAFETY: `input` holds `rows` words, `step` apart, at least one; a word has at most 32 set bits, each of which takes a
    // byte of `list`.
    unsafe {
        asm!(
            "2:",
            "ldr {word}, [{input}]",
            "mov {pick}, {first}",
            "add {first}, {channels}",
            "eor {word}, {word}, {mask}",
            "ands {word}, {word}, {all}",
            "beq 4f",
            "3:",
            "clz {lead}, {word}",
            "add {lead}, #1",
            "sub {pick}, {pick}, {lead}",
            "strb {pick}, [{list}], #1",
            // By 32 too, which leaves 0.
            "lsls {word}, {word}, {lead}",
            "bne 3b",
            "4:",
            "add {input}, {step}",
            "subs {rows}, #1",
            "bne 2b",
            word = out(reg) _,
            lead = out(reg) _,
            pick = out(reg) _,
            input = inout(reg) input.as_ptr() => _,
            step = in(reg) 4 * step,
            rows = inout(reg) rows => _,
            first = inout(reg) first + 32 => _,
            channels = in(reg) bits.channels,
            mask = in(reg) bits.mask,
            all = in(reg) bits.all,
            list = inout(reg) begin => end,
            options(nostack),
        );
    }
    end.addr() - begin.addr()
}

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
