//! The runner for QEMU's mps2-an500, an emulated Cortex-M7.
//!
//! The machine's 16 MiB of PSRAM are a file that the host shares: RTT at its start, the model region
//! 1 MiB in. Under `-icount shift=0` an instruction takes a nanosecond of virtual time, so a timer
//! at 25 MHz ticks every 40 instructions, exactly, on every machine. QEMU models no cache, flash wait
//! state or dual issue: these are instructions, never cycles.
#![no_std]
#![no_main]

use cbin_nn_runner::{Board, Counter};
use cortex_m::{
    asm,
    peripheral::{SCB, SYST, syst::SystClkSource},
};
use cortex_m_rt::entry;

/// CMSDK APB timer 0: control, value and reload registers.
const TIMER_CTRL: *mut u32 = 0x4000_0000 as *mut u32;
const TIMER_VALUE: *mut u32 = 0x4000_0004 as *mut u32;
const TIMER_RELOAD: *mut u32 = 0x4000_0008 as *mut u32;

/// Polls before the board naps. A poll takes some dozens of instructions, so this is about a
/// tenth of a millisecond: longer than a host that is awake takes to answer.
const POLLS_AWAKE: u32 = 1000;

/// Ticks of the first nap (0.1 ms at 25 MHz) and of the longest (1 ms): each is a little longer than
/// the last, so that a board nobody talks to leaves the host's processor alone.
const NAP_TICKS: u32 = 2_500;
const NAP_TICKS_LONGEST: u32 = 25_000;

/// The emulated board's timers.
struct Emulated {
    syst: SYST,
}

impl Emulated {
    fn new(mut syst: SYST) -> Self {
        syst.set_clock_source(SystClkSource::Core);
        // SAFETY: registers of timer 0, which nothing else uses.
        unsafe {
            TIMER_RELOAD.write_volatile(u32::MAX);
            TIMER_CTRL.write_volatile(1);
        }
        Self { syst }
    }
}

impl Board for Emulated {
    const UNITS_PER_TICK: u32 = 40;

    fn name(&self) -> &'static str {
        "qemu-mps2-an500"
    }

    fn counter(&self) -> Counter {
        Counter::Instructions
    }

    #[inline(always)]
    fn restart(&mut self) {
        // SAFETY: a register of timer 0, which nothing else uses. Writing the value also restarts
        // the tick in progress.
        unsafe { TIMER_VALUE.write_volatile(u32::MAX) };
    }

    #[inline(always)]
    fn ticks(&mut self) -> u32 {
        // SAFETY: a register of timer 0; reading has no effect. The timer counts down.
        u32::MAX - unsafe { TIMER_VALUE.read_volatile() }
    }

    fn idle(&mut self, polls: u32) {
        let Some(naps) = polls.checked_sub(POLLS_AWAKE) else {
            return;
        };
        let ticks = NAP_TICKS.saturating_add(naps.saturating_mul(NAP_TICKS / 8));
        self.syst.set_reload(ticks.min(NAP_TICKS_LONGEST));
        // Interrupts are masked, so the pending SysTick ends the `wfi` and runs nothing.
        self.syst.clear_current();
        self.syst.enable_interrupt();
        self.syst.enable_counter();
        asm::wfi();
        self.syst.disable_counter();
        self.syst.disable_interrupt();
        SCB::clear_pendst();
    }
}

cbin_nn_runner::board_mark!("qemu-mps2-an500");

#[entry]
fn main() -> ! {
    let Some(peripherals) = cortex_m::Peripherals::take() else {
        panic!("the entry point was reached twice");
    };
    cbin_nn_runner::serve(|| Emulated::new(peripherals.SYST))
}
