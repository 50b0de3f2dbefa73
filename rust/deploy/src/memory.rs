//! A board's memory, read and written from outside while the board runs.

use std::io;

/// A board's memory at its own addresses.
pub trait TargetMemory {
    /// Reads `buffer.len()` bytes at `address`. Not atomic.
    fn read(&mut self, address: u32, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes `bytes` at `address`. Not atomic.
    fn write(&mut self, address: u32, bytes: &[u8]) -> io::Result<()>;

    /// Reads an aligned word in one access: never half of an old and half of a new one. What the
    /// board wrote before that word is seen by later reads.
    fn read_word(&mut self, address: u32) -> io::Result<u32>;

    /// Writes an aligned word in one access, after everything written before.
    fn write_word(&mut self, address: u32, word: u32) -> io::Result<()>;
}
