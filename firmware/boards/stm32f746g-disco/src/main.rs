//! The runner for ST's STM32F746G Discovery: its memory map is in `memory.x`, all else in `firmware/chips/stm32`.
#![no_std]
#![no_main]

use cortex_m_rt::entry;

cbin_nn_stm32::board_mark!("stm32f746g-disco");

#[entry]
fn main() -> ! {
    cbin_nn_stm32::run("stm32f746g-disco")
}
