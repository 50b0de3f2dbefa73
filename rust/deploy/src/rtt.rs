//! The host's side of SEGGER's RTT: ring buffers in the board's memory.
//!
//! The control block is 16 bytes of id, two channel counts, and a descriptor of six words for each
//! channel, up channels first:
//!
//! ```text
//! name  buffer  size  write offset  read offset  flags
//! ```
//!
//! The board writes the up channel's write offset and the down channel's read offset, the host the
//! other two; a ring is empty where they are equal and so holds one byte less than its size.
//!
//! Everything read from the board is checked: a board gone wrong gives an [`RttError`], never a read
//! outside the ring.

use crate::{memory::TargetMemory, transport::TransportError};

/// The control block's first 16 bytes.
const ID: [u8; 16] = *b"SEGGER RTT\0\0\0\0\0\0";
/// Bytes before the descriptors.
const HEADER_BYTES: u32 = 24;
/// Bytes of a descriptor.
const DESCRIPTOR_BYTES: u32 = 24;
/// More channels in one direction than any target has.
const MAX_CHANNELS: u32 = 32;
/// A larger ring than any target has, in bytes.
const MAX_RING_BYTES: u32 = 1 << 20;

/// What is wrong with a board's ring buffers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RttError {
    /// The control block does not describe the two channels.
    #[error("the RTT control block is damaged: {field} is {value:#x}")]
    ControlBlock {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u32,
    },
    /// The board moved an offset out of the ring.
    #[error("the RTT ring of {size} bytes has the offset {offset}")]
    Offset {
        /// The offset.
        offset: u32,
        /// Bytes of the ring.
        size: u32,
    },
}

/// One ring, from the host's side.
#[derive(Debug)]
struct Ring {
    /// Address of the buffer.
    buffer: u32,
    /// Bytes of the buffer.
    size: u32,
    /// Address of the offset that the host writes, and its value.
    own: (u32, u32),
    /// Address of the offset that the board writes.
    theirs: u32,
}

/// A running conversation over channel 0 in each direction.
#[derive(Debug)]
pub struct Rtt {
    up: Ring,
    down: Ring,
}

impl Rtt {
    /// Looks for the control block at `address`. `None` where there is none yet.
    pub fn attach(memory: &mut impl TargetMemory, address: u32) -> Result<Option<Self>, TransportError> {
        let mut id = [0; ID.len()];
        memory.read(address, &mut id)?;
        // The board writes the id last and its first byte last of all; the word access orders the
        // reads below after that.
        let first = memory.read_word(address)?;
        if id != ID || first.to_le_bytes() != ID[..4] {
            return Ok(None);
        }
        let ups = memory.read_word(address + 16)?;
        let downs = memory.read_word(address + 20)?;
        for (field, value) in [("the number of up channels", ups), ("the number of down channels", downs)] {
            if !(1..=MAX_CHANNELS).contains(&value) {
                return Err(RttError::ControlBlock { field, value }.into());
            }
        }
        let up = address + HEADER_BYTES;
        let down = up + ups * DESCRIPTOR_BYTES;
        Ok(Some(Self {
            up: Ring::new(memory, up, up + 16, up + 12)?,
            down: Ring::new(memory, down, down + 12, down + 16)?,
        }))
    }

    /// Takes what the board has sent.
    pub fn read(
        &mut self,
        memory: &mut impl TargetMemory,
        buffer: &mut [u8],
    ) -> Result<usize, TransportError> {
        let ring = &mut self.up;
        let write = ring.theirs(memory)?;
        let mut read = ring.own.1;
        let mut total = 0;
        // Twice at most: up to the end of the buffer, then from its beginning.
        while read != write && total < buffer.len() {
            let end = if write > read { write } else { ring.size };
            let count = (buffer.len() - total).min((end - read) as usize);
            memory.read(ring.buffer + read, &mut buffer[total..total + count])?;
            total += count;
            read = (read + count as u32) % ring.size;
        }
        ring.advance(memory, read)?;
        Ok(total)
    }

    /// Sends as much of `bytes` as there is room for.
    pub fn write(&mut self, memory: &mut impl TargetMemory, bytes: &[u8]) -> Result<usize, TransportError> {
        let ring = &mut self.down;
        let read = ring.theirs(memory)?;
        let mut write = ring.own.1;
        let mut total = 0;
        loop {
            // One byte stays free: a full ring must not look empty.
            let room = if read > write { read - write - 1 } else { ring.size - write - u32::from(read == 0) };
            let count = (bytes.len() - total).min(room as usize);
            if count == 0 {
                break;
            }
            memory.write(ring.buffer + write, &bytes[total..total + count])?;
            total += count;
            write = (write + count as u32) % ring.size;
        }
        ring.advance(memory, write)?;
        Ok(total)
    }
}

impl Ring {
    fn new(
        memory: &mut impl TargetMemory,
        descriptor: u32,
        own: u32,
        theirs: u32,
    ) -> Result<Self, TransportError> {
        let buffer = memory.read_word(descriptor + 4)?;
        let size = memory.read_word(descriptor + 8)?;
        if !(2..=MAX_RING_BYTES).contains(&size) {
            return Err(RttError::ControlBlock { field: "the size of channel 0", value: size }.into());
        }
        if buffer.checked_add(size).is_none() {
            return Err(RttError::ControlBlock { field: "the buffer of channel 0", value: buffer }.into());
        }
        let offset = memory.read_word(own)?;
        if offset >= size {
            return Err(RttError::Offset { offset, size }.into());
        }
        Ok(Self { buffer, size, own: (own, offset), theirs })
    }

    /// The offset that the board writes.
    fn theirs(&self, memory: &mut impl TargetMemory) -> Result<u32, TransportError> {
        let offset = memory.read_word(self.theirs)?;
        if offset < self.size { Ok(offset) } else { Err(RttError::Offset { offset, size: self.size }.into()) }
    }

    /// Shows the board how far the host has come.
    fn advance(&mut self, memory: &mut impl TargetMemory, offset: u32) -> Result<(), TransportError> {
        if offset != self.own.1 {
            memory.write_word(self.own.0, offset)?;
            self.own.1 = offset;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// A board's memory in a vector, from address 0.
    struct Flat(Vec<u8>);

    impl Flat {
        fn at(&mut self, address: u32, length: usize) -> io::Result<&mut [u8]> {
            self.0
                .get_mut(address as usize..)
                .and_then(|bytes| bytes.get_mut(..length))
                .ok_or_else(|| io::ErrorKind::InvalidInput.into())
        }
    }

    impl TargetMemory for Flat {
        fn read(&mut self, address: u32, buffer: &mut [u8]) -> io::Result<()> {
            buffer.copy_from_slice(self.at(address, buffer.len())?);
            Ok(())
        }
        fn write(&mut self, address: u32, bytes: &[u8]) -> io::Result<()> {
            self.at(address, bytes.len())?.copy_from_slice(bytes);
            Ok(())
        }
        fn read_word(&mut self, address: u32) -> io::Result<u32> {
            let mut bytes = [0; 4];
            self.read(address, &mut bytes)?;
            Ok(u32::from_le_bytes(bytes))
        }
        fn write_word(&mut self, address: u32, word: u32) -> io::Result<()> {
            self.write(address, &word.to_le_bytes())
        }
    }

    const UP: u32 = HEADER_BYTES;
    const DOWN: u32 = UP + DESCRIPTOR_BYTES;

    /// A control block with rings of `size` bytes at 128 and 256.
    fn board(size: u32) -> Flat {
        let mut memory = Flat(vec![0; 512]);
        memory.write(0, &ID).unwrap();
        for (address, word) in
            [(16, 1), (20, 1), (UP + 4, 128), (UP + 8, size), (DOWN + 4, 256), (DOWN + 8, size)]
        {
            memory.write_word(address, word).unwrap();
        }
        memory
    }

    #[test]
    fn no_id_is_no_board_yet() {
        let mut memory = board(8);
        memory.write(0, &[0]).unwrap();
        assert!(Rtt::attach(&mut memory, 0).unwrap().is_none());
    }

    #[test]
    fn damaged_control_blocks_are_errors() {
        for (address, word) in [
            (16, 0),
            (16, 33),
            (20, u32::MAX),
            (UP + 8, 0),
            (UP + 8, 1),
            (DOWN + 8, u32::MAX),
            (DOWN + 4, u32::MAX),
            (UP + 16, 8),
            (DOWN + 12, u32::MAX),
        ] {
            let mut memory = board(8);
            memory.write_word(address, word).unwrap();
            let error = Rtt::attach(&mut memory, 0).unwrap_err();
            assert!(matches!(error, TransportError::Rtt(_)), "{error}");
        }
    }

    #[test]
    fn offsets_outside_the_ring_are_errors() {
        let mut memory = board(8);
        let mut rtt = Rtt::attach(&mut memory, 0).unwrap().unwrap();
        memory.write_word(UP + 12, 8).unwrap();
        memory.write_word(DOWN + 16, 9).unwrap();
        assert!(rtt.read(&mut memory, &mut [0; 4]).is_err());
        assert!(rtt.write(&mut memory, &[0; 4]).is_err());
    }

    /// The board's side, byte by byte, against the host's in pieces of every size.
    #[test]
    fn rings_carry_everything_in_order() {
        let data: Vec<u8> = (0..200).collect();
        for size in 2..=16 {
            for piece in 1..=20 {
                let mut memory = board(size);
                let mut rtt = Rtt::attach(&mut memory, 0).unwrap().unwrap();
                let (mut sent, mut echoed) = (0, Vec::new());
                let mut held = None;
                while echoed.len() < data.len() {
                    let end = data.len().min(sent + piece);
                    sent += rtt.write(&mut memory, &data[sent..end]).unwrap();
                    // The board echoes what it can.
                    loop {
                        if held.is_none() {
                            let read = memory.read_word(DOWN + 16).unwrap();
                            if read == memory.read_word(DOWN + 12).unwrap() {
                                break;
                            }
                            held = Some(memory.0[(256 + read) as usize]);
                            memory.write_word(DOWN + 16, (read + 1) % size).unwrap();
                        }
                        let write = memory.read_word(UP + 12).unwrap();
                        if (write + 1) % size == memory.read_word(UP + 16).unwrap() {
                            break;
                        }
                        memory.0[(128 + write) as usize] = held.take().unwrap();
                        memory.write_word(UP + 12, (write + 1) % size).unwrap();
                    }
                    let mut buffer = vec![0; piece];
                    let count = rtt.read(&mut memory, &mut buffer).unwrap();
                    echoed.extend_from_slice(&buffer[..count]);
                }
                assert_eq!(echoed, data, "ring of {size}, pieces of {piece}");
            }
        }
    }
}
