//! The image that runs any cbin-nn model: what all boards share.
//!
//! # What
//!
//! A board is a folder with a memory map, a clock and forty lines of Rust that implement [`Board`]
//! and call [`serve`]; boards with one family of chips share a crate in `firmware/chips`. Everything else is here: the request loop, RTT, the counter's spans, the
//! painted stack, and the reports of a panic or a fault. The host writes a model into the MODEL
//! region and asks for it to be opened; the image never changes.
//!
//! # Why like this
//!
//! * Nothing is allocated. Statics are the transport's buffers and a few words; the model's arena,
//!   the image and the output are carved from WORKSPACE when a model is opened, so a model that does
//!   not fit is refused before anything runs.
//! * The model is executed in place by the layer walk of `cbin-nn-model`, the same code as on the host.
//! * Only operators are counted. Waiting, transport and painting stand outside the spans.
//!
//! # Invariants
//!
//! * Whatever the host sends is answered; nothing it sends can make the runner panic.
//! * No floating point.
//! * No interrupt handler runs during a span.
#![no_std]

mod critical;
mod fault;
mod memory;
mod serve;
mod span;
mod stack;
mod transport;

pub use cbin_nn_protocol::Counter;
pub use fault::not_ready;
pub use serve::serve;

/// What differs between boards.
pub trait Board {
    /// Units of [`Self::counter`] in a tick of the counter.
    const UNITS_PER_TICK: u32;

    /// The board's name, as the host knows it.
    fn name(&self) -> &'static str;

    /// What the counter counts.
    fn counter(&self) -> Counter;

    /// Sets the counter to zero, and its prescaler to the beginning of a tick.
    fn restart(&mut self);

    /// Ticks since [`Self::restart`]; it must not wrap within a run of any sensible model.
    fn ticks(&mut self) -> u32;

    /// Called each time the host is found to have sent nothing, for the `polls`th time in a row.
    /// May sleep for up to about a millisecond.
    fn idle(&mut self, polls: u32);
}

/// Leaves a mark in the ELF that tells the host which board an image is for, without running it.
#[macro_export]
macro_rules! board_mark {
    ($name:literal) => {
        const _: () = {
            const MARK: &str = concat!("cbin-nn-runner board=", $name, ";");
            #[used]
            #[unsafe(link_section = ".cbin_nn_board")]
            static BYTES: [u8; MARK.len()] = {
                let mut bytes = [0; MARK.len()];
                bytes.copy_from_slice(MARK.as_bytes());
                bytes
            };
        };
    };
}
