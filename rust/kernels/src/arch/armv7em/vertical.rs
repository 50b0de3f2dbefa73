/*!
Vertical counters, scheduled by hand: LLVM spills in the adder tree, which takes all fourteen registers.

A block of eight picks is sixteen loads and seven carry-save adders. Of every two blocks the first one's word of
weight 8 waits in a register for the second's, so that one carry ripples through the upper words for sixteen picks.
*/

use core::arch::{asm, naked_asm};

use super::super::portable::{Bits, COUNTER_WORDS, PICK_BLOCK, Picks};

/// See the portable function of this name.
#[inline]
pub(crate) fn add_picked(counter: &mut [u32], words: &[u32], picks: &Picks<'_>) {
    let upper = counter.len().wrapping_sub(COUNTER_WORDS);
    assert!(picks.bound() <= words.len() && counter.len() >= COUNTER_WORDS && upper.is_multiple_of(3));
    let blocks = picks.blocks();
    if blocks.is_empty() {
        return;
    }
    let end = counter.as_mut_ptr_range().end;
    // SAFETY: the counter has four words and then threes up to `end`; every pick is below `bound`, and so inside
    // `words`; there are `blocks.len()` blocks, at least one.
    unsafe { add_blocks(counter.as_mut_ptr(), words.as_ptr(), blocks.as_ptr(), blocks.len(), end) }
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
     2:  ldr lr, [sp, #36]
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

/// Adds the words that `picks` names to the counter, which ends at `end`.
///
/// # Safety
/// `counter` is valid for four words and then for threes of words up to `end`; `picks` for `blocks` blocks, at least one;
/// `words` at every pick.
#[unsafe(naked)]
unsafe extern "C" fn add_blocks(
    counter: *mut u32,
    words: *const u32,
    picks: *const [u8; PICK_BLOCK],
    blocks: usize,
    end: *const u32,
) {
    naked_asm!(
        "push {{r4-r11, lr}}",
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
        "pop {{r4-r11, pc}}",
        // One block is left without a partner.
        "5:",
        "and r8, r7, lr",
        "eor r7, r7, lr",
        ripple!(),
        "b 6b",
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
