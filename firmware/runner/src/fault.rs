//! The three ways to die: each tells the host where, then halts.

use core::panic::{Location, PanicInfo};

use cbin_nn_protocol::{Response, file_tail};
use cortex_m::{asm, interrupt};
use cortex_m_rt::{ExceptionFrame, exception};

use crate::transport::send_last;

/// Halts: asleep, with interrupts off.
fn halt() -> ! {
    loop {
        asm::wfi();
    }
}

/// Tells the host that the start-up has waited for `what` in vain, and halts. Callable from a handler.
pub fn not_ready(what: &'static str) -> ! {
    interrupt::disable();
    send_last(&Response::NotReady { what });
    halt()
}

#[panic_handler]
#[allow(unused_attributes, reason = "rustc says that it ignores the next one, and does not")]
#[inline(always)]
fn panic(info: &PanicInfo<'_>) -> ! {
    // The location alone: inlined into what calls it, this leaves the message without a reader, and the formatting
    // machinery (2.8 KB) out of the image.
    panicked_at(info.location())
}

#[inline(never)]
fn panicked_at(location: Option<&Location<'_>>) -> ! {
    interrupt::disable();
    let (file, line) = match location {
        Some(location) => (file_tail(location.file()), location.line()),
        None => ("", 0),
    };
    send_last(&Response::Panic { line, file });
    halt()
}

// SAFETY: does not return, and touches nothing that the interrupted code may have left half done
// but the up channel, whose ring is consistent between any two instructions of its owner.
#[exception]
unsafe fn HardFault(frame: &ExceptionFrame) -> ! {
    interrupt::disable();
    send_last(&Response::Fault { pc: frame.pc() });
    halt()
}
