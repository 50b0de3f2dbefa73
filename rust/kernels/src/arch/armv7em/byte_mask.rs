/*!
Distances of bytes with `USADA8`, which adds the absolute differences of four pairs of bytes to a sum: against the
mask bytes 0xFF and 0x00, four multiply-accumulates in one instruction.
*/

use core::arch::{asm, naked_asm};

/// See the portable function of this name.
pub(crate) fn byte_distance(window: &[[u8; 4]], masks: &[u32]) -> u32 {
    let mut sum = 0;
    for (word, mask) in window.iter().zip(masks) {
        // SAFETY: the instruction reads three registers and writes one; it touches no memory, stack or flags, and
        // every core of this architecture has it.
        unsafe {
            asm!(
                "usada8 {sum}, {a}, {b}, {sum}",
                sum = inlateout(reg) sum,
                a = in(reg) u32::from_le_bytes(*word),
                b = in(reg) *mask,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
    }
    sum
}

/// See the portable function of this name. A row is too short for a call of `memcpy`, which LLVM makes of every loop
/// that it can see through.
pub(crate) fn copy_rows(to: &mut [u8], from: &[u8], steps: [usize; 2], len: usize, rows: usize) {
    if len < 4 {
        return super::super::portable::copy_rows(to, from, steps, len, rows);
    }
    let last = rows - 1;
    assert!(last * steps[0] + len <= to.len() && last * steps[1] + len <= from.len(), "rows end inside");
    if (8..=16).contains(&len) {
        // SAFETY: words at 0, 4, 8 at most and `len` - 4 of a row, all of which end inside it; else as below.
        unsafe {
            asm!(
                "2:",
                "ldr {a}, [{from}]",
                "ldr {b}, [{from}, #4]",
                "str {a}, [{to}]",
                "str {b}, [{to}, #4]",
                "ldr {a}, [{from}, {third}]",
                "ldr {b}, [{from}, {rest}]",
                "str {a}, [{to}, {third}]",
                "str {b}, [{to}, {rest}]",
                "add {from}, {from_step}",
                "add {to}, {to_step}",
                "subs {rows}, #1",
                "bne 2b",
                a = out(reg) _,
                b = out(reg) _,
                third = in(reg) (len - 4).min(8),
                rest = in(reg) len - 4,
                from = inout(reg) from.as_ptr() => _,
                to = inout(reg) to.as_mut_ptr() => _,
                from_step = in(reg) steps[1],
                to_step = in(reg) steps[0],
                rows = inout(reg) rows => _,
                options(nostack),
            );
        }
        return;
    }
    // SAFETY: words at 0, 4, ... of a row as long as they end before `len`, then one that ends there: each lies inside its
    // row, and the last row inside both slices. The core loads and stores words at any address.
    unsafe {
        asm!(
            "2:",
            "subs {rest}, {len}, #4",
            "beq 4f",
            "3:",
            "ldr {word}, [{from}], #4",
            "str {word}, [{to}], #4",
            "subs {rest}, #4",
            "bhi 3b",
            "4:",
            "ldr {word}, [{from}, {rest}]",
            "str {word}, [{to}, {rest}]",
            "add {from}, {from_gap}",
            "add {to}, {to_gap}",
            "subs {rows}, #1",
            "bne 2b",
            word = out(reg) _,
            rest = out(reg) _,
            len = in(reg) len,
            from = inout(reg) from.as_ptr() => _,
            to = inout(reg) to.as_mut_ptr() => _,
            // The pointers have gone over all words but the last, which may be a short one.
            from_gap = in(reg) steps[1].wrapping_sub((len - 1) / 4 * 4),
            to_gap = in(reg) steps[0].wrapping_sub((len - 1) / 4 * 4),
            rows = inout(reg) rows => _,
            options(nostack),
        );
    }
}

/// See the portable function of this name.
///
/// # Panics
/// Where `words` is 0.
pub(crate) fn byte_hits(windows: &[[u8; 4]], words: usize, masks: &[u32], intervals: &[[u32; 2]]) -> u32 {
    let (count, filters) = (windows.len() / words, intervals.len().min(masks.len() / words).min(32));
    if count == 0 || filters == 0 {
        return 0;
    }
    let filters = Filters {
        masks: masks.as_ptr(),
        intervals: intervals.as_ptr(),
        filters,
        bytes: 4 * words,
        count,
        blocks: words / 4,
        rest: words % 4,
    };
    // SAFETY: `windows` holds `count` windows of `words` words, at least one; `masks` and `intervals` hold those of
    // `filters` filters, at least one and at most 32. `windows` is four-byte words cut from an operator's scratch, which
    // is aligned to words: checked below.
    assert!((windows.as_ptr() as usize).is_multiple_of(4), "windows lie at words");
    unsafe { hits(windows.as_ptr().cast(), &filters) }
}

/// What [`hits`] takes beside the windows; it reads these by their offsets.
#[repr(C)]
struct Filters {
    masks: *const u32,
    intervals: *const [u32; 2],
    filters: usize,
    /// Bytes of a filter, and of a window.
    bytes: usize,
    /// Windows.
    count: usize,
    /// Words of a filter: blocks of four, and what is left.
    blocks: usize,
    rest: usize,
}

/// Bytes of code of a block of four words: six instructions of four bytes.
const BLOCK_CODE: usize = 24;

/// Four words of a window against four of a filter.
macro_rules! block {
    () => {
        "ldm.w r0!, {{r4, r5, r6, r7}}
         ldm.w r1!, {{r8, r9, r10, r11}}
         usada8 r12, r4, r8, r12
         usada8 r12, r5, r9, r12
         usada8 r12, r6, r10, r12
         usada8 r12, r7, r11, r12\n"
    };
}

/// As [`byte_hits`]: bit f of the result is that of filter f.
///
/// # Safety
/// `windows` and the pointers of `filters` are valid for what the fields beside them say; there is at least one
/// window and one filter, of at least one word.
#[unsafe(naked)]
unsafe extern "C" fn hits(windows: *const u32, filters: *const Filters) -> u32 {
    // r0 window, r1 filter, r2 intervals, r3 windows to go, r12 distance, lr bytes of a filter.
    // On the stack: where the rest's code begins, where the blocks' does, where what follows them does, windows, their
    // number, filters to go, hits so far, filters in all, rounds of all blocks done, and how many there are.
    naked_asm!(
        "push {{r4-r11, lr}}",
        "sub sp, #40",
        "mov r12, r1",
        "ldr r1, [r12, #0]",
        "ldr r2, [r12, #4]",
        "ldr r3, [r12, #8]",
        "ldr lr, [r12, #12]",
        "ldr r4, [r12, #16]",
        "ldr r5, [r12, #20]",
        "ldr r6, [r12, #24]",
        "str r0, [sp, #12]",
        "str r4, [sp, #16]",
        "str r3, [sp, #20]",
        "str r3, [sp, #28]",
        "mov r4, #0",
        "str r4, [sp, #24]",
        "str r4, [sp, #32]",
        // Full rounds of all the unrolled blocks, and the blocks of the first, short one.
        "lsrs r7, r5, #4",
        "str r7, [sp, #36]",
        "ite eq",
        "adreq.w r7, 11f",
        "adrne.w r7, 10f",
        "orr r7, r7, #1",
        "str r7, [sp, #8]",
        "and r5, r5, #15",
        "mov r7, #{block}",
        "mul r5, r5, r7",
        "adr.w r7, 7f",
        "sub r7, r7, r5",
        "orr r7, r7, #1",
        "str r7, [sp, #4]",
        // The rest's code: 0, 12, 16 or 20 bytes before its end for 0, 1, 2 or 3 words, by a table of jumps.
        "adr.w r7, 8f",
        "ldrb r6, [r7, r6]",
        "adr.w r7, 9f",
        "add r7, r7, r6",
        "orr r7, r7, #1",
        "str r7, [sp, #0]",
        // One filter.
        "2:",
        "ldr r0, [sp, #12]",
        "ldr r3, [sp, #16]",
        // One window of it.
        "3:",
        "ldr r12, [r2]",
        "ldr pc, [sp, #0]",
        // Which code takes the rest.
        ".p2align 2",
        "8:",
        ".byte {rest_0}, {rest_1}, {rest_2}, {rest_3}",
        ".p2align 2",
        "9:",
        // Three words: 24 bytes with the jump.
        "ldm.w r0!, {{r4, r5, r6}}",
        "ldm.w r1!, {{r8, r9, r10}}",
        "usada8 r12, r4, r8, r12",
        "usada8 r12, r5, r9, r12",
        "usada8 r12, r6, r10, r12",
        "ldr.w pc, [sp, #4]",
        // Two words: 20 bytes.
        "ldm.w r0!, {{r4, r5}}",
        "ldm.w r1!, {{r8, r9}}",
        "usada8 r12, r4, r8, r12",
        "usada8 r12, r5, r9, r12",
        "ldr.w pc, [sp, #4]",
        // One word: 16 bytes.
        "ldr.w r4, [r0], #4",
        "ldr.w r8, [r1], #4",
        "usada8 r12, r4, r8, r12",
        "ldr.w pc, [sp, #4]",
        // None.
        "ldr.w pc, [sp, #4]",
        ".p2align 2",
        "4:",
        block!(), block!(), block!(), block!(), block!(), block!(), block!(), block!(),
        block!(), block!(), block!(), block!(), block!(), block!(), block!(), block!(),
        ".p2align 2",
        "7:",
        "ldr.w pc, [sp, #8]",
        ".p2align 2",
        "11:",
        "ldr r5, [r2, #4]",
        "cmp r12, r5",
        "blo 5f",
        "sub r1, r1, lr",
        "subs r3, #1",
        "bne.w 3b",
        // No window hits. The next filter lies behind this one.
        "add r1, r1, lr",
        "b 6f",
        // A hit. Filter f sets bit f.
        "5:",
        "ldr r4, [sp, #20]",
        "ldr r5, [sp, #28]",
        "sub r5, r5, r4",
        "mov r6, #1",
        "lsl r6, r6, r5",
        "ldr r5, [sp, #24]",
        "orr r5, r5, r6",
        "str r5, [sp, #24]",
        "6:",
        "add r2, #8",
        "ldr r4, [sp, #20]",
        "subs r4, #1",
        "str r4, [sp, #20]",
        "bne 2b",
        "ldr r0, [sp, #24]",
        "add sp, #40",
        "pop {{r4-r11, pc}}",
        // Long filters: the unrolled blocks once more, as often as it takes.
        ".p2align 2",
        "10:",
        "ldrd r4, r5, [sp, #32]",
        "cmp r4, r5",
        "ite eq",
        "moveq r4, #0",
        "addne r4, #1",
        "str r4, [sp, #32]",
        "beq 11b",
        "b.w 4b",
        block = const BLOCK_CODE,
        rest_0 = const 60,
        rest_1 = const 44,
        rest_2 = const 24,
        rest_3 = const 0,
    )
}
