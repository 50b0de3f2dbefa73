//! Products of bytes and 8-bit weights, two in one instruction.

/// `acc` plus the sum of the four products of the bytes of `x`, unsigned, and those of `w`, signed.
///
/// `UXTB16` and `SXTB16` widen bytes 0 and 2 (after a rotation 1 and 3) to the halves of a word, and `SMLAD` adds the
/// products of both halves.
#[inline(always)]
fn add_products(x: u32, w: u32, acc: i32) -> i32 {
    let sum;
    // SAFETY: the instructions read and write registers alone, and every core of this architecture has them. They may
    // set the Q flag, which is not claimed to be preserved.
    unsafe {
        core::arch::asm!(
            "uxtb16 {a}, {x}",
            "sxtb16 {b}, {w}",
            "smlad {sum}, {a}, {b}, {acc}",
            "uxtb16 {a}, {x}, ror #8",
            "sxtb16 {b}, {w}, ror #8",
            "smlad {sum}, {a}, {b}, {sum}",
            a = out(reg) _,
            b = out(reg) _,
            x = in(reg) x,
            w = in(reg) w,
            acc = in(reg) acc,
            sum = out(reg) sum,
            options(pure, nomem, nostack),
        );
    }
    sum
}

/// See the portable function of this name.
#[inline(never)]
pub(crate) fn byte_dot(bytes: &[u8], weights: &[i8]) -> i32 {
    let ((words, rest), (weight_words, weight_rest)) = (bytes.as_chunks::<4>(), weights.as_chunks::<4>());
    let mut acc = 0;
    for (x, w) in words.iter().zip(weight_words) {
        acc = add_products(u32::from_le_bytes(*x), u32::from_le_bytes(w.map(i8::cast_unsigned)), acc);
    }
    // The window is padded to whole words and a filter is not: its last weights stand against bytes of the next word.
    let tail = words.get(weight_words.len()).map_or(rest, |word| word);
    tail.iter().zip(weight_rest).map(|(&x, &w)| i32::from(x) * i32::from(w)).sum::<i32>() + acc
}
