//! Bytes to and from a board: what differs between an emulator and a debug probe.

use std::{error::Error, io, time::Duration};

use crate::{rtt::RttError, session::Watch};

/// A way to a board.
///
/// Nothing here waits for the board: the session owns those deadlines. What may take long by itself
/// takes a watch.
pub trait Transport: Send {
    /// Takes what the board has sent, at most `buffer.len()` bytes; 0 if there is nothing.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, TransportError>;

    /// Sends the beginning of `bytes`, as much as there is room for; 0 if there is none.
    fn write(&mut self, bytes: &[u8]) -> Result<usize, TransportError>;

    /// Fails if the board can't answer any more.
    fn check(&mut self) -> Result<(), TransportError>;

    /// Writes the model region.
    fn program(&mut self, address: u32, bytes: &[u8], watch: Watch<'_>)
    -> Result<Programmed, TransportError>;

    /// Reads the board's memory.
    fn peek(&mut self, address: u32, buffer: &mut [u8]) -> Result<(), TransportError>;

    /// What was found out about the board beyond what its kind says.
    fn simulated(&self) -> bool {
        false
    }

    /// The emulator's process, if there is one.
    fn process_id(&self) -> Option<u32> {
        None
    }
}

/// What [`Transport::program`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Programmed {
    /// Nothing: the board held these bytes.
    Unchanged,
    /// It wrote them beside the running board.
    Written,
    /// It wrote them and started the board anew: who it is has to be asked again.
    Restarted,
}

/// Why bytes could not be moved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The board's memory could not be reached.
    #[error("the board's memory could not be reached: {0}")]
    Memory(#[from] io::Error),
    /// The board's ring buffers are damaged.
    #[error(transparent)]
    Rtt(#[from] RttError),
    /// The emulator has ended.
    #[error("the emulator ended ({status})")]
    Ended {
        /// Its exit status in words.
        status: String,
        /// What it wrote to standard error, in one line.
        stderr: String,
    },
    /// The debug probe does not answer any more.
    #[error("the probe was lost")]
    Lost(#[source] Box<dyn Error + Send + Sync>),
    /// The debug probe answers, and could not do what it was asked to.
    #[error("the probe failed")]
    Probe(#[source] Box<dyn Error + Send + Sync>),
    /// The debug probe kept silent.
    #[error("the probe kept silent for {:.1} s", .0.as_secs_f64())]
    Stuck(Duration),
    /// The probe's library panicked.
    #[error("the probe's library panicked: {0}")]
    Panicked(String),
    /// The flash could not be written.
    #[error("writing the flash failed")]
    Flash(#[source] Box<dyn Error + Send + Sync>),
    /// The core is in lock-up.
    #[error("the core is locked up")]
    LockedUp,
    /// The caller's watch said stop.
    #[error("stopped as asked")]
    Interrupted,
}
