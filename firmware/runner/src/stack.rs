//! How deep the stack went: paint what is free, run, and look how far the paint is gone.

use core::arch::asm;

unsafe extern "C" {
    static mut _stack_start: u32;
    static mut _stack_end: u32;
}

/// A word that no code is likely to store.
const PAINT: u32 = 0xC0DE_57AC;

/// Bytes below the stack pointer that [`paint`] leaves alone.
const MARGIN: usize = 32;

/// Bytes of the stack's region.
pub fn room() -> u32 {
    crate::memory::word((&raw const _stack_start).addr() - (&raw const _stack_end).addr())
}

/// Paints the stack's region below the caller.
#[inline(never)]
pub fn paint() {
    let pointer: usize;
    // SAFETY: copies the stack pointer, and nothing else.
    unsafe { asm!("mov {}, sp", out(reg) pointer, options(nomem, nostack, preserves_flags)) };
    let bottom = &raw mut _stack_end;
    let words = pointer.saturating_sub(MARGIN).saturating_sub(bottom.addr()) / 4;
    for index in 0..words {
        // SAFETY: the word is in the stack's region and below every live frame: this function calls
        // nothing that is not inlined after it has read the stack pointer, and no interrupt runs.
        unsafe { bottom.add(index).write_volatile(PAINT) };
    }
}

/// Bytes of the stack that were in use at some moment since [`paint`].
pub fn high_water() -> u32 {
    let bottom = &raw const _stack_end;
    let words = room() as usize / 4;
    let mut clean = 0;
    // SAFETY: reads inside the stack's region, which is memory and may hold any word.
    while clean < words && unsafe { bottom.add(clean).read_volatile() } == PAINT {
        clean += 1;
    }
    crate::memory::word((words - clean) * 4)
}
