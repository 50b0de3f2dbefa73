//! Memory that is a file, which an emulator maps too.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::atomic::{AtomicU32, Ordering},
};

use memmap2::{MmapOptions, MmapRaw};

use crate::memory::TargetMemory;

/// The file behind an emulator's memory.
///
/// Bulk goes through the file, single words through a map of its beginning; on Linux both are the
/// same page cache, which is the emulator's memory too. The words need the map: the kernel may
/// copy even four bytes of a `pread` or `pwrite` one at a time, and a ring buffer's offset that the
/// emulated core sees half written makes it read a lap of garbage.
pub struct SharedFile {
    file: File,
    words: MmapRaw,
    /// The board's address of the file's first byte.
    base: u32,
    /// Bytes of the file.
    length: u64,
}

/// Bytes at the beginning whose words can be accessed: where boards keep their transport.
const WORDS_BYTES: usize = 64 << 10;

impl SharedFile {
    /// Takes an empty file and gives it `length` bytes of zeros.
    pub fn new(file: File, base: u32, length: u64) -> io::Result<Self> {
        file.set_len(length)?;
        // Real zeros, not a hole: a full disk is an error here, and not a SIGBUS in the map.
        file.write_all_at(&vec![0; WORDS_BYTES], 0)?;
        let words = MmapOptions::new().len(WORDS_BYTES).map_raw(&file)?;
        Ok(Self { file, words, base, length })
    }

    /// The place of `address` in the file, if `bytes` bytes from there are inside.
    fn offset(&self, address: u32, bytes: usize) -> io::Result<u64> {
        let offset = address.checked_sub(self.base).map(u64::from);
        offset.filter(|offset| offset + bytes as u64 <= self.length).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{bytes} bytes at {address:#010x} are outside the shared memory"),
            )
        })
    }

    /// The word at `address`.
    fn word(&self, address: u32) -> io::Result<&AtomicU32> {
        let offset = self.offset(address, 4)? as usize;
        if !offset.is_multiple_of(4) || offset + 4 > WORDS_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("the word at {address:#010x} can't be reached atomically"),
            ));
        }
        // SAFETY: the word is inside the map, which lives as long as `self`, and aligned, since maps
        // begin on a page. It is accessed as an atomic here and by the other process; the file is in
        // a private folder and is never shortened.
        Ok(unsafe { AtomicU32::from_ptr(self.words.as_mut_ptr().add(offset).cast()) })
    }
}

impl TargetMemory for SharedFile {
    fn read(&mut self, address: u32, buffer: &mut [u8]) -> io::Result<()> {
        let offset = self.offset(address, buffer.len())?;
        self.file.read_exact_at(buffer, offset)
    }

    fn write(&mut self, address: u32, bytes: &[u8]) -> io::Result<()> {
        let offset = self.offset(address, bytes.len())?;
        self.file.write_all_at(bytes, offset)
    }

    fn read_word(&mut self, address: u32) -> io::Result<u32> {
        // Boards are little-endian.
        Ok(u32::from_le(self.word(address)?.load(Ordering::SeqCst)))
    }

    fn write_word(&mut self, address: u32, word: u32) -> io::Result<()> {
        self.word(address)?.store(word.to_le(), Ordering::SeqCst);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> SharedFile {
        SharedFile::new(tempfile::tempfile().unwrap(), 0x6000_0000, 1 << 20).unwrap()
    }

    #[test]
    fn words_and_bytes_are_the_same_memory() {
        let mut memory = memory();
        memory.write_word(0x6000_0010, 0x0403_0201).unwrap();
        let mut bytes = [0; 6];
        memory.read(0x6000_000F, &mut bytes).unwrap();
        assert_eq!(bytes, [0, 1, 2, 3, 4, 0]);
        memory.write(0x6000_0012, &[9]).unwrap();
        assert_eq!(memory.read_word(0x6000_0010).unwrap(), 0x0409_0201);
    }

    #[test]
    fn addresses_outside_are_errors() {
        let mut memory = memory();
        let end = 0x6000_0000 + (1 << 20);
        assert!(memory.read(0x5FFF_FFFF, &mut [0]).is_err());
        assert!(memory.read(end - 1, &mut [0; 2]).is_err());
        assert!(memory.write(u32::MAX, &[0; 2]).is_err());
        assert!(memory.write(end - 1, &[0]).is_ok());
        assert!(memory.read_word(0x6000_0002).is_err());
        assert!(memory.read_word(0x6000_0000 + WORDS_BYTES as u32).is_err());
        assert!(memory.write_word(end, 0).is_err());
    }
}
