//! Bytes at the boundary that a model needs.

use alloc::vec::Vec;

/// Sixteen aligned bytes.
#[repr(C, align(16))]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Block([u8; 16]);

/// Bytes at a 16-byte boundary, as a model needs them.
#[derive(Debug, Clone)]
pub struct AlignedBytes {
    blocks: Vec<Block>,
    len: usize,
}

impl AlignedBytes {
    /// Copies `bytes` to an aligned buffer.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut blocks = alloc::vec![Block([0; 16]); bytes.len().div_ceil(16)];
        bytemuck::cast_slice_mut(&mut blocks)[..bytes.len()].copy_from_slice(bytes);
        Self { blocks, len: bytes.len() }
    }
}

impl core::ops::Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.blocks)[..self.len]
    }
}
