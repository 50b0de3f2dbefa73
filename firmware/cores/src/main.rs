//! Replays the golden vectors with both kernels, and says how it went by semihosting: every core that the kernels
//! are to run on gets this one program. The board's own image is `firmware/runner`.
//!
//! No run-time crate: what a core needs before `main` is a stack pointer, and each is set here.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

use cbin_nn_model::{Model, NoObserver};

/// Bytes at a 16-byte boundary, as a model and its input want them.
#[repr(C, align(16))]
struct Aligned<const N: usize>([u8; N]);

/// Bytes of whatever length behind an [`Aligned`].
trait Bytes: Sync {
    fn bytes(&self) -> &[u8];
}

impl<const N: usize> Bytes for Aligned<N> {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

struct Vector {
    name: &'static str,
    model: &'static dyn Bytes,
    inputs: &'static dyn Bytes,
    outputs: &'static [u8],
}

static VECTORS: &[Vector] = &include!(concat!(env!("OUT_DIR"), "/vectors.rs"));

/// Words for arena, input and output of the largest vector, with room.
const WORDS: usize = 16 * 1024;
static mut MEMORY: [u32; 3 * WORDS] = [0; 3 * WORDS];

#[cfg(target_arch = "arm")]
global_asm!(
    ".section .vectors, \"a\"",
    ".word _stack_start",
    ".word start",
    ".section .start, \"ax\"",
    ".global start",
    ".thumb_func",
    "start:",
    "bl {main}",
    main = sym enable,
);

/// Turns the floating-point unit on where there is one (LLVM keeps integers in its registers), then runs [`main`].
#[cfg(target_arch = "arm")]
extern "C" fn enable() -> ! {
    #[cfg(target_abi = "eabihf")]
    // SAFETY: the coprocessor access control register of every core of this architecture; no code before this
    // needs the unit, and the barriers make the next instruction see it.
    unsafe {
        let access = 0xE000_ED88 as *mut u32;
        access.write_volatile(access.read_volatile() | (0xF << 20));
        asm!("dsb", "isb", options(nostack));
    }
    main()
}

#[cfg(target_arch = "riscv32")]
global_asm!(
    ".section .vectors, \"ax\"",
    ".global start",
    "start:",
    "la sp, _stack_start",
    "call {main}",
    main = sym main,
);

/// One call of the host: ARM's semihosting, which QEMU has for RISC-V too.
fn host(operation: usize, argument: *const usize) {
    // SAFETY: the emulator reads memory at `argument` and changes registers as declared.
    #[cfg(target_arch = "arm")]
    unsafe {
        asm!("bkpt 0xab", inout("r0") operation => _, in("r1") argument, options(nostack));
    }
    // SAFETY: as above; the three instructions together are the call, and uncompressed.
    #[cfg(target_arch = "riscv32")]
    unsafe {
        asm!(
            ".option push",
            ".option norvc",
            ".p2align 4",
            "slli x0, x0, 0x1f",
            "ebreak",
            "srai x0, x0, 7",
            ".option pop",
            inout("a0") operation => _,
            in("a1") argument,
            options(nostack),
        );
    }
}

/// Writes text to the host's console.
fn say(text: &str) {
    for byte in text.bytes() {
        host(0x03, (&raw const byte).cast());
    }
}

/// Ends the emulator with an exit status.
fn exit(status: usize) -> ! {
    // ADP_Stopped_ApplicationExit.
    let arguments = [0x20026, status];
    host(0x20, arguments.as_ptr());
    loop {}
}

/// Whether every image of a vector gives its bytes with both kernels.
fn agrees(vector: &Vector, memory: &mut [u32]) -> bool {
    let Ok(model) = Model::new_checked(vector.model.bytes()) else { return false };
    let (input, output) = (model.input_bytes(), model.output_bytes());
    let inputs = vector.inputs.bytes();
    if inputs.len() % input != 0 || inputs.len() / input * output != vector.outputs.len() {
        return false;
    }
    let (arena, rest) = memory.split_at_mut(WORDS);
    let (image, got) = rest.split_at_mut(WORDS);
    let image: &mut [u8] = &mut bytemuck::cast_slice_mut(image)[..input];
    let got: &mut [u8] = &mut bytemuck::cast_slice_mut(got)[..output];
    inputs.chunks_exact(input).zip(vector.outputs.chunks_exact(output)).all(|(given, expected)| {
        image.copy_from_slice(given);
        arena.fill(u32::MAX);
        let optimized = model.run(image, got, arena, &mut NoObserver).is_ok() && got == expected;
        got.fill(0xFF);
        optimized && model.run_reference(image, got, arena, &mut NoObserver).is_ok() && got == expected
    })
}

extern "C" fn main() -> ! {
    // SAFETY: the only use of the static, in the only call of `main`. It holds no value that was not written here: RAM
    // may begin as it likes, and any bits are words.
    let memory = unsafe { &mut *(&raw mut MEMORY) };
    let mut failed = 0;
    for vector in VECTORS {
        if !agrees(vector, memory) {
            say(vector.name);
            say(" differs\n");
            failed += 1;
        }
    }
    say(if failed == 0 && VECTORS.len() >= 30 { "OK\n" } else { "FAILED\n" });
    exit(usize::from(failed != 0 || VECTORS.len() < 30))
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    say("PANIC\n");
    exit(2)
}
