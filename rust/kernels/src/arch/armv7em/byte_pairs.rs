/*!
Products of widened bytes and 8-bit weights: `SXTB16` widens two weights, and `SMLAD` multiplies and adds two pairs. Four
weights take 27 instructions for two windows each of two words: see [`word`].
*/

use core::arch::{asm, naked_asm};
use core::mem::{offset_of, size_of};

use super::super::portable::{Pairs, SLOTS};

/// See the portable function of this name.
#[inline]
pub(crate) fn widen(window: &[[u8; 4]], mul: u32, offsets: &[[u32; 2]], slot: usize, pairs: &mut [Pairs]) {
    let words = window.len().min(offsets.len()).min(pairs.len());
    assert!(slot < SLOTS && words > 0);
    // SAFETY: each of the three has `words` elements, at least one, and `slot` is inside an element of `pairs`. Offsets are
    // words, and so aligned for the load of two.
    unsafe {
        asm!(
            "2:",
            "ldr {odd}, [{window}], #4",
            "ldrd {low}, {high}, [{offsets}], #8",
            "uxtb16 {even}, {odd}",
            "uxtb16 {odd}, {odd}, ror #8",
            "mul {even}, {even}, {mul}",
            "mul {odd}, {odd}, {mul}",
            "sadd16 {even}, {even}, {low}",
            "sadd16 {odd}, {odd}, {high}",
            "str {even}, [{pairs}], #16",
            "str {odd}, [{pairs}], #16",
            "subs {words}, #1",
            "bne 2b",
            window = inout(reg) window.as_ptr() => _,
            offsets = inout(reg) offsets.as_ptr() => _,
            pairs = inout(reg) pairs.as_mut_ptr().cast::<u32>().add(slot) => _,
            words = inout(reg) words => _,
            mul = in(reg) mul,
            even = out(reg) _,
            odd = out(reg) _,
            low = out(reg) _,
            high = out(reg) _,
            options(nostack),
        );
    }
}

/// A set of intervals, and what [`hits`] found.
#[repr(C)]
struct Set {
    lo: *const i32,
    hi: *const i32,
    hits: [u32; SLOTS],
}

/// What [`hits`] takes beside the windows; it reads these by their offsets, and counts down.
#[repr(C)]
struct Filters {
    /// The filter behind the next one: they are taken from the last to the first.
    weights: *const i8,
    products: usize,
    filters: usize,
    /// Words of four weights, but for the last word.
    words: usize,
    /// Weights that the last word lacks of four, 0 to 3.
    lacks: usize,
    sets: usize,
    set: [Set; 2],
}

/// See the portable function of this name.
///
/// # Panics
/// Where `products` is below 4, or there is no filter or no set.
pub(crate) fn pair_hits(
    windows: &[Pairs],
    weights: &[i8],
    products: usize,
    sets: &[(&[i32], &[i32])],
) -> [[u32; SLOTS]; 2] {
    let filters = (weights.len() / products).min(32);
    let words = products.div_ceil(4);
    // The last word of a filter is loaded with the weights before it where it lacks some.
    assert!(products >= 4 && filters > 0 && !sets.is_empty());
    let set = |at: usize| {
        let (lo, hi) = sets[at.min(sets.len() - 1)];
        Set { lo: lo[..filters].as_ptr(), hi: hi[..filters].as_ptr(), hits: [0; SLOTS] }
    };
    let mut task = Filters {
        weights: weights[..filters * products].as_ptr_range().end,
        products,
        filters,
        words: words - 1,
        lacks: 4 * words - products,
        sets: sets.len().min(2),
        set: [set(0), set(1)],
    };
    // SAFETY: there are `filters` filters of `products` weights before `weights`, and as many intervals; a filter has at
    // least four weights, and `windows` as many words as it takes.
    unsafe { hits(windows[..words].as_ptr(), &mut task) }
    task.set.map(|set| set.hits)
}

/// Adds the products of the four weights in lr with those of each window to r4, r5, r6 and r7: 12 instructions.
macro_rules! word {
    () => {
        "sxtb16 r12, lr
         sxtb16 lr, lr, ror #8
         ldm r0!, {{r8, r9, r10, r11}}
         smlad r4, r8, r12, r4
         smlad r5, r9, r12, r5
         smlad r6, r10, r12, r6
         smlad r7, r11, r12, r7
         ldm r0!, {{r8, r9, r10, r11}}
         smlad r4, r8, lr, r4
         smlad r5, r9, lr, r5
         smlad r6, r10, lr, r6
         smlad r7, r11, lr, r7\n"
    };
}

/// Shifts into `$hits` whether `$acc` is inside: r8 is the smallest inside, and r9 how much larger the largest is.
macro_rules! shift_in {
    ($hits:literal, $acc:literal) => {
        concat!("sub r1, ", $acc, ", r8\ncmp r9, r1\nadc ", $hits, ", ", $hits, ", ", $hits, "\n")
    };
}

/// Compares the accumulators of each filter with its intervals, and shifts the bits into their sets' hits.
///
/// # Safety
/// See [`Filters`]; each pointer is valid for what there is, and `filters` is at least 1.
#[unsafe(naked)]
unsafe extern "C" fn hits(windows: *const Pairs, task: *mut Filters) {
    naked_asm!(
        "push {{r4-r11, lr}}",
        "push {{r0, r1}}",
        // One filter; r1 is the task.
        "2:",
        "ldrd r3, r4, [r1, #{weights}]",
        "subs r3, r3, r4",
        "str r3, [r1, #{weights}]",
        "ldr r2, [r1, #{words}]",
        "mov r4, #0",
        "mov r5, #0",
        "mov r6, #0",
        "mov r7, #0",
        "lsrs r2, r2, #1",
        "bcc 3f",
        "ldr lr, [r3], #4",
        word!(),
        "3:",
        "cbz r2, 5f",
        "4:",
        "ldr lr, [r3], #4",
        word!(),
        "ldr lr, [r3], #4",
        word!(),
        "subs r2, #1",
        "bne 4b",
        "5:",
        "ldr r2, [r1, #{lacks}]",
        "subs r3, r3, r2",
        "ldr lr, [r3]",
        "lsls r2, r2, #3",
        "lsr lr, lr, r2",
        word!(),
        "ldr r2, [r1, #{filters}]",
        "subs r2, #1",
        "str r2, [r1, #{filters}]",
        "ldr r3, [r1, #{sets}]",
        "add r0, r1, #{set}",
        // One set.
        "6:",
        "ldrd r8, r9, [r0], #8",
        "ldr r8, [r8, r2, lsl #2]",
        "ldr r9, [r9, r2, lsl #2]",
        "subs r9, r9, r8",
        // Nothing is inside an empty interval: no accumulator is i32::MIN.
        "itt lt",
        "movlt r9, #0",
        "movlt r8, #0x80000000",
        "ldm r0, {{r10, r11, r12, lr}}",
        shift_in!("r10", "r4"),
        shift_in!("r11", "r5"),
        shift_in!("r12", "r6"),
        shift_in!("lr", "r7"),
        "stm r0!, {{r10, r11, r12, lr}}",
        "subs r3, #1",
        "bne 6b",
        "ldrd r0, r1, [sp]",
        "cmp r2, #0",
        "bne.w 2b",
        "add sp, #8",
        "pop {{r4-r11, pc}}",
        weights = const offset_of!(Filters, weights),
        words = const offset_of!(Filters, words),
        lacks = const offset_of!(Filters, lacks),
        filters = const offset_of!(Filters, filters),
        sets = const offset_of!(Filters, sets),
        set = const offset_of!(Filters, set),
    )
}

// The loads of two words rely on the order of the fields, and a set's end is where its hits end.
const _: () = assert!(
    offset_of!(Filters, products) == offset_of!(Filters, weights) + 4
        && size_of::<Set>() == offset_of!(Set, hits) + 4 * SLOTS
);
