/*!
Sixteen lanes as an array: what the vectors of the other architectures do, in plain Rust.

Any host has it, and Miri and the tests run the common loops through it.
*/

use core::array::from_fn;

use crate::arch::generic::blocks::{self, Architecture, Convolution, Lanes, Product};
use crate::arch::line::Line;

/// Plain Rust.
pub(crate) enum Arrays {}

impl Architecture for Arrays {
    type Vector = [u32; 16];
    type Differing = Differing;
    type Signs = Bytes;
    type Bytes = Bytes;
}

impl Lanes for [u32; 16] {
    #[inline(always)]
    unsafe fn splat(word: u32) -> Self {
        [word; 16]
    }

    #[inline(always)]
    unsafe fn load(line: &Line) -> Self {
        line.0
    }

    #[inline(always)]
    unsafe fn store(self, line: &mut Line) {
        line.0 = self;
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        from_fn(|i| self[i].wrapping_add(other[i]))
    }

    #[inline(always)]
    unsafe fn scale(self, factor: i32) -> Self {
        self.map(|lane| lane.wrapping_mul(factor as u32))
    }

    #[inline(always)]
    unsafe fn add_bits(self, bits: u32) -> Self {
        from_fn(|i| self[i].wrapping_add((bits >> i) & 1))
    }

    #[inline(always)]
    unsafe fn at_least(self, lo: Self) -> u32 {
        (0..16).fold(0, |mask, i| mask | u32::from(lo[i] as i32 <= self[i] as i32) << i)
    }

    #[inline(always)]
    unsafe fn between(self, lo: Self, hi: Self) -> u32 {
        let inside = |i: usize| (lo[i] as i32 <= self[i] as i32) & (self[i] as i32 <= hi[i] as i32);
        (0..16).fold(0, |mask, i| mask | u32::from(inside(i)) << i)
    }
}

/// Bits that differ.
pub(crate) enum Differing {}

impl Product for Differing {
    type Vector = [u32; 16];
    type Sum = [u32; 16];
    const LIMIT: usize = usize::MAX;

    #[inline(always)]
    unsafe fn zero() -> [u32; 16] {
        [0; 16]
    }

    #[inline(always)]
    unsafe fn add(sum: [u32; 16], activations: [u32; 16], weights: [u32; 16]) -> [u32; 16] {
        from_fn(|i| sum[i].wrapping_add((activations[i] ^ weights[i]).count_ones()))
    }

    #[inline(always)]
    unsafe fn total(sum: [u32; 16]) -> [u32; 16] {
        sum
    }
}

/// u8 times i8.
pub(crate) enum Bytes {}

impl Product for Bytes {
    type Vector = [u32; 16];
    type Sum = [u32; 16];
    const LIMIT: usize = usize::MAX;

    #[inline(always)]
    unsafe fn zero() -> [u32; 16] {
        [0; 16]
    }

    #[inline(always)]
    unsafe fn add(sum: [u32; 16], activations: [u32; 16], weights: [u32; 16]) -> [u32; 16] {
        from_fn(|i| {
            let (bytes, weights) = (activations[i].to_ne_bytes(), weights[i].to_ne_bytes());
            let products = bytes.iter().zip(weights).map(|(&b, w)| i32::from(b) * i32::from(w as i8));
            sum[i].wrapping_add(products.sum::<i32>() as u32)
        })
    }

    #[inline(always)]
    unsafe fn total(sum: [u32; 16]) -> [u32; 16] {
        sum
    }
}

/// See [`blocks::convolve`].
///
/// # Safety
/// `task.reach()` is some number up to `task.plane.len()`.
pub(crate) unsafe fn convolve(task: &Convolution<'_>, output: &mut [u32]) {
    // SAFETY: as above; arrays need no instructions.
    unsafe { blocks::convolve::<Arrays, 1, 1>(task, output) }
}

/// See [`blocks::accumulate`].
///
/// # Safety
/// As [`convolve`].
pub(crate) unsafe fn accumulate(task: &Convolution<'_>, output: &mut [Line]) {
    // SAFETY: as above; arrays need no instructions.
    unsafe { blocks::accumulate::<Arrays>(task, output) }
}
