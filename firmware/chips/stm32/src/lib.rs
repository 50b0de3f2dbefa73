//! What the boards with an STM32 share: clock, caches, cycle counter, and the runner's start.
//!
//! # What
//!
//! [`run`] is a board's whole `main`. It starts the transport, sets the clock to the chip's full speed
//! through embassy-stm32, turns on what hides the flash's latency (the ART accelerator, and the caches
//! of a Cortex-M7), and serves.
//!
//! # Why like this
//!
//! * The PLL runs from the internal oscillator: one image for every board with the chip, with a crystal,
//!   with another board's clock on its pin, or with neither. It is exact to about a hundredth, which no
//!   cycle count depends on; milliseconds are cycles over the nominal clock.
//! * The library's waits for a ready flag have no bound, so a deadline stands around all of them:
//!   SysTick fires after a quarter of a second, tells the host what was waited for, and halts.
//! * Cycles come from the DWT. A core without a cycle counter (an emulated one) says so in `DWT_CTRL`,
//!   and the runner tells the host that it counts nothing, instead of numbers that mean nothing.
#![no_std]

use cbin_nn_runner::{Board, Counter, not_ready, serve};
use cortex_m::peripheral::{DWT, SYST, syst::SystClkSource};
use cortex_m_rt::exception;
use embassy_stm32::{
    Config, pac,
    rcc::{AHBPrescaler, APBPrescaler, LsConfig, Pll, PllMul, PllPDiv, PllPreDiv, PllSource, Sysclk},
};

pub use cbin_nn_runner::board_mark;

/// The core's clock in Hz.
#[cfg(feature = "stm32f746")]
pub const CLOCK_HZ: u32 = 216_000_000;
/// The core's clock in Hz.
#[cfg(feature = "stm32f446")]
pub const CLOCK_HZ: u32 = 180_000_000;

/// How long the clock's set-up may take, in cycles of SysTick's clock: the core's, which is 16 MHz until
/// the PLL has taken over. A quarter of a second; the set-up takes less than a millisecond.
const SET_UP_CYCLES: u32 = 4_000_000;

/// A board with an STM32.
struct Stm32 {
    name: &'static str,
    counter: Counter,
    dwt: DWT,
}

impl Board for Stm32 {
    const UNITS_PER_TICK: u32 = 1;

    fn name(&self) -> &'static str {
        self.name
    }

    fn counter(&self) -> Counter {
        self.counter
    }

    #[inline(always)]
    fn restart(&mut self) {
        self.dwt.set_cycle_count(0);
    }

    #[inline(always)]
    fn ticks(&mut self) -> u32 {
        DWT::cycle_count()
    }

    fn idle(&mut self, _polls: u32) {
        // No sleep: nothing would wake the core when the probe writes to its memory.
        core::hint::spin_loop();
    }
}

/// Runs the board called `name`: the whole of its `main`.
pub fn run(name: &'static str) -> ! {
    load_hot_code();
    let Some(mut core) = cortex_m::Peripherals::take() else {
        panic!("the entry point was reached twice");
    };
    serve(|| {
        arm(&mut core.SYST);
        embassy_stm32::init(config());
        disarm(&mut core.SYST);
        hide_flash_latency();
        #[cfg(feature = "stm32f746")]
        {
            core.SCB.enable_icache();
            core.SCB.enable_dcache(&mut core.CPUID);
        }
        core.DCB.enable_trace();
        DWT::unlock();
        let counter = if DWT::has_cycle_counter() {
            core.DWT.enable_cycle_counter();
            Counter::Cycles
        } else {
            Counter::Absent
        };
        Stm32 { name, counter, dwt: core.DWT }
    })
}

/// The clock tree, from the internal oscillator's 16 MHz.
fn config() -> Config {
    let mut config = Config::default();
    let rcc = &mut config.rcc;
    rcc.hsi = true;
    rcc.pll_src = PllSource::HSI;
    // 16 MHz / 8 = 2 MHz into the PLL, which is what the reference manuals advise against jitter.
    rcc.pll = Some(Pll {
        prediv: PllPreDiv::DIV8,
        mul: if cfg!(feature = "stm32f746") { PllMul::MUL216 } else { PllMul::MUL180 },
        divp: Some(PllPDiv::DIV2),
        divq: None,
        divr: None,
    });
    rcc.sys = Sysclk::PLL1_P;
    rcc.ahb_pre = AHBPrescaler::DIV1;
    rcc.apb1_pre = APBPrescaler::DIV4;
    rcc.apb2_pre = APBPrescaler::DIV2;
    rcc.ls = LsConfig::off();
    config
}

/// Turns the flash's prefetch and accelerator on. The library has set the wait states.
fn hide_flash_latency() {
    pac::FLASH.acr().modify(|acr| {
        acr.set_prften(true);
        #[cfg(feature = "stm32f746")]
        acr.set_arten(true);
        #[cfg(feature = "stm32f446")]
        {
            acr.set_icen(true);
            acr.set_dcen(true);
        }
    });
}

/// Starts the deadline.
fn arm(syst: &mut SYST) {
    syst.set_clock_source(SystClkSource::Core);
    syst.set_reload(SET_UP_CYCLES);
    syst.clear_current();
    syst.enable_interrupt();
    syst.enable_counter();
}

/// Calls the deadline off.
fn disarm(syst: &mut SYST) {
    syst.disable_counter();
    syst.disable_interrupt();
}

#[exception]
fn SysTick() -> ! {
    not_ready("the system clock")
}

/// Copies the hot code to the instruction TCM, if the chip has one.
fn load_hot_code() {
    #[cfg(feature = "stm32f746")]
    {
        unsafe extern "C" {
            static mut __cbin_nn_itcm: u32;
            static __cbin_nn_itcm_load: u32;
            static __cbin_nn_itcm_bytes: u8;
        }
        let words = (&raw const __cbin_nn_itcm_bytes).addr() / 4;
        for index in 0..words {
            // SAFETY: the linker script gives both regions this size, and nothing runs or reads there
            // yet. Volatile, so that this can't become a call of a routine that is in the TCM itself.
            unsafe {
                let word = (&raw const __cbin_nn_itcm_load).add(index).read_volatile();
                (&raw mut __cbin_nn_itcm).add(index).write_volatile(word);
            }
        }
        cortex_m::asm::dsb();
        cortex_m::asm::isb();
    }
}
