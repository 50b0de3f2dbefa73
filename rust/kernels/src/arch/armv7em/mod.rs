/*!
Inner loops with the DSP instructions of ARMv7E-M (Cortex-M4 and M7).

`USADA8` adds the absolute differences of four pairs of bytes to a sum. Against a weight byte of 0xFF (+1) a
difference is `255 - x`, against 0x00 (-1) it is `x`. With N weights +1, S the sum of the bytes under them and
T the sum of all bytes:

```text
sad = 255 N - S + (T - S),   so   2 S - T = 255 N - sad
```

four multiply-accumulates in one instruction. Bytes of padding are 0 against 0x00 and add nothing.
*/

mod vertical;

pub(crate) use vertical::{add_picked, picks};

/// `acc` plus the sum of the absolute differences of the bytes of `a` and `b`.
#[inline(always)]
fn usada8(a: u32, b: u32, acc: u32) -> u32 {
    let sum;
    // SAFETY: the instruction reads three registers and writes one; it touches no memory, stack or flags, and
    // every core of this architecture has it.
    unsafe {
        core::arch::asm!(
            "usada8 {sum}, {a}, {b}, {acc}",
            sum = lateout(reg) sum,
            a = in(reg) a,
            b = in(reg) b,
            acc = in(reg) acc,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// See the portable constant of this name.
pub(crate) const BYTE_MASK_DOT_NEEDS_TOTAL: bool = false;

/// See the portable function of this name.
#[inline(never)]
pub(crate) fn byte_mask_dot(window: &[[u8; 4]], masks: &[u32], _total: u32) -> i32 {
    let ((blocks, rest), (mask_blocks, mask_rest)) = (window.as_chunks::<4>(), masks.as_chunks::<4>());
    let mut sad = 0;
    for (words, masks) in blocks.iter().zip(mask_blocks) {
        for (word, &mask) in words.iter().zip(masks) {
            sad = usada8(u32::from_le_bytes(*word), mask, sad);
        }
    }
    for (word, &mask) in rest.iter().zip(mask_rest) {
        sad = usada8(u32::from_le_bytes(*word), mask, sad);
    }
    -(sad as i32)
}

/// See the portable function of this name: 255 N.
pub(crate) fn byte_mask_bias(masks: &[u32]) -> i32 {
    let bits: u32 = masks.iter().map(|mask| mask.count_ones()).sum();
    255 * (bits / 8) as i32
}
