//! Bytes to and from a board: what differs between an emulator and a debug probe.

use std::io;

use crate::rtt::RttError;

/// A way to a board. Nothing here waits: the session owns the deadlines.
pub trait Transport: Send {
    /// Takes what the board has sent, at most `buffer.len()` bytes; 0 if there is nothing.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, TransportError>;

    /// Sends the beginning of `bytes`, as much as there is room for; 0 if there is none.
    fn write(&mut self, bytes: &[u8]) -> Result<usize, TransportError>;

    /// Fails if the board can't answer any more.
    fn check(&mut self) -> Result<(), TransportError>;

    /// Writes the model region.
    fn program(&mut self, address: u32, bytes: &[u8]) -> Result<(), TransportError>;

    /// The emulator's process, if there is one.
    fn process_id(&self) -> Option<u32> {
        None
    }
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
}
