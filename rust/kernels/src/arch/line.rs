//! Sixteen words side by side: what a vector of the host holds, one a lane.

/// Lanes of a line, and output channels of a block.
pub const LANES: usize = 16;

/// Sixteen words at a multiple of their size.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line(pub [u32; LANES]);

impl Line {
    /// All 0.
    pub const ZERO: Self = Self([0; LANES]);
}
