//! The memory map, from the linker's symbols.
//!
//! [`Memory::take`] hands out each region once. The model region is the exception: it belongs to the
//! host while no model is open, and is borrowed anew by each [`Memory::model`].

use core::sync::atomic::{AtomicBool, Ordering, compiler_fence};

unsafe extern "C" {
    static mut __cbin_nn_workspace: u32;
    static __cbin_nn_workspace_bytes: u8;
    static __cbin_nn_model: u8;
    static __cbin_nn_model_bytes: u8;
    static __cbin_nn_transport_bytes: u8;
    static __cbin_nn_ram_bytes: u8;
    static __cbin_nn_code_bytes: u8;
}

/// A size that the linker wrote down as an address.
macro_rules! linker_size {
    ($symbol:ident) => {
        (&raw const $symbol).addr()
    };
}

/// The regions of memory that the runner owns.
pub struct Memory {
    /// The workspace, as words.
    pub workspace: &'static mut [u32],
}

impl Memory {
    /// The memory, the first time it is asked for.
    pub fn take() -> Option<Self> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        if critical_section::with(|_| TAKEN.swap(true, Ordering::Relaxed)) {
            return None;
        }
        let words = linker_size!(__cbin_nn_workspace_bytes) / 4;
        // SAFETY: the linker script gives this aligned region of RAM to nothing else, and `TAKEN`
        // lets one caller have it. Any bits are a valid u32; on a cold start they are unspecified
        // but fixed, since this is memory and not an uninitialized Rust value.
        let workspace = unsafe { core::slice::from_raw_parts_mut(&raw mut __cbin_nn_workspace, words) };
        Some(Self { workspace })
    }

    /// The first `bytes` of the model region, or its length if it is shorter.
    pub fn model(&self, bytes: u32) -> Result<&'static [u8], u32> {
        let available = self.model_bytes();
        if bytes > available {
            return Err(available);
        }
        // What the host wrote before its request must not be read from before the request.
        compiler_fence(Ordering::Acquire);
        // SAFETY: the linker script gives the region to the model. The host writes it only while no
        // model is open (`CloseModel` goes first), so the bytes do not change under this borrow.
        Ok(unsafe { core::slice::from_raw_parts(&raw const __cbin_nn_model, bytes as usize) })
    }

    /// Address of the model region.
    pub fn model_address(&self) -> u32 {
        word(linker_size!(__cbin_nn_model))
    }

    /// Bytes of the model region.
    pub fn model_bytes(&self) -> u32 {
        word(linker_size!(__cbin_nn_model_bytes))
    }

    /// Static RAM of the transport, in bytes.
    pub fn transport_bytes(&self) -> u32 {
        word(linker_size!(__cbin_nn_transport_bytes))
    }

    /// All other static RAM, in bytes.
    pub fn ram_bytes(&self) -> u32 {
        word(linker_size!(__cbin_nn_ram_bytes))
    }

    /// Flash of the image, in bytes.
    pub fn code_bytes(&self) -> u32 {
        word(linker_size!(__cbin_nn_code_bytes))
    }
}

/// A size as the protocol has it. Addresses have 32 bits on every target of this crate.
pub fn word(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}
