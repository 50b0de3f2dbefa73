//! The runner for ST's Nucleo-F746ZG: its memory map is in `memory.x`, all else in `firmware/chips/stm32`.
#![no_std]
#![no_main]

use cortex_m_rt::entry;

cbin_nn_stm32::board_mark!("nucleo-f746zg");

#[entry]
fn main() -> ! {
    cbin_nn_stm32::run("nucleo-f746zg")
}
