//! NEON: sixteen lanes in four registers. Every AArch64 CPU has it.

use core::arch::aarch64::*;
use core::array::from_fn;

use crate::arch::generic::blocks::{self, Architecture, Convolution, Lanes, Product};
use crate::arch::line::Line;

/// Sixteen lanes.
#[derive(Clone, Copy)]
pub(crate) struct Vector([uint32x4_t; 4]);

impl Lanes for Vector {
    #[inline(always)]
    unsafe fn splat(word: u32) -> Self {
        // SAFETY: every AArch64 CPU has NEON.
        Self([unsafe { vdupq_n_u32(word) }; 4])
    }

    #[inline(always)]
    unsafe fn load(line: &Line) -> Self {
        let at = line.0.as_ptr();
        // SAFETY: a line is sixteen words.
        Self(unsafe { [vld1q_u32(at), vld1q_u32(at.add(4)), vld1q_u32(at.add(8)), vld1q_u32(at.add(12))] })
    }

    #[inline(always)]
    unsafe fn store(self, line: &mut Line) {
        for (four, lanes) in line.0.chunks_exact_mut(4).zip(self.0) {
            // SAFETY: `four` is four words.
            unsafe { vst1q_u32(four.as_mut_ptr(), lanes) };
        }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: every AArch64 CPU has NEON.
        Self(from_fn(|i| unsafe { vaddq_u32(self.0[i], other.0[i]) }))
    }

    #[inline(always)]
    unsafe fn scale(self, factor: i32) -> Self {
        // SAFETY: every AArch64 CPU has NEON.
        Self(self.0.map(|lanes| unsafe { vmulq_n_u32(lanes, factor as u32) }))
    }

    #[inline(always)]
    unsafe fn add_bits(self, bits: u32) -> Self {
        const LANE: [u32; 4] = [1, 2, 4, 8];
        // SAFETY: every AArch64 CPU has NEON; `LANE` is four words.
        Self(from_fn(|i| unsafe {
            // All ones, which is -1, where the bit is set.
            let set = vtstq_u32(vdupq_n_u32(bits >> (4 * i)), vld1q_u32(LANE.as_ptr()));
            vsubq_u32(self.0[i], set)
        }))
    }

    #[inline(always)]
    unsafe fn at_least(self, lo: Self) -> u32 {
        // SAFETY: every AArch64 CPU has NEON.
        unsafe {
            mask(from_fn(|i| vcgeq_s32(vreinterpretq_s32_u32(self.0[i]), vreinterpretq_s32_u32(lo.0[i]))))
        }
    }

    #[inline(always)]
    unsafe fn between(self, lo: Self, hi: Self) -> u32 {
        // SAFETY: every AArch64 CPU has NEON.
        unsafe {
            mask(from_fn(|i| {
                let acc = vreinterpretq_s32_u32(self.0[i]);
                let above = vcgeq_s32(acc, vreinterpretq_s32_u32(lo.0[i]));
                vandq_u32(above, vcleq_s32(acc, vreinterpretq_s32_u32(hi.0[i])))
            }))
        }
    }
}

/// One bit for each lane, which is all ones or 0.
#[inline(always)]
unsafe fn mask(lanes: [uint32x4_t; 4]) -> u32 {
    // Each byte keeps the bit of its lane; adding up the bytes of a half gives eight bits of mask.
    const LANE: [u8; 8] = [1, 2, 4, 8, 16, 32, 64, 128];
    // SAFETY: every AArch64 CPU has NEON; `LANE` is eight bytes.
    unsafe {
        let [a, b, c, d] = lanes.map(|four| vmovn_u32(four));
        let (lower, upper) = (vmovn_u16(vcombine_u16(a, b)), vmovn_u16(vcombine_u16(c, d)));
        let lane = vld1_u8(LANE.as_ptr());
        u32::from(vaddv_u8(vand_u8(lower, lane))) | u32::from(vaddv_u8(vand_u8(upper, lane))) << 8
    }
}

/// Bits that differ, with `CNT`. Counts of bytes are summed up to 255.
pub(crate) enum Count {}

impl Product for Count {
    type Vector = Vector;
    type Sum = [uint8x16_t; 4];
    const LIMIT: usize = 255 / 8;

    #[inline(always)]
    unsafe fn zero() -> [uint8x16_t; 4] {
        // SAFETY: every AArch64 CPU has NEON.
        [unsafe { vdupq_n_u8(0) }; 4]
    }

    #[inline(always)]
    unsafe fn add(sum: [uint8x16_t; 4], activations: Vector, weights: Vector) -> [uint8x16_t; 4] {
        // SAFETY: every AArch64 CPU has NEON.
        from_fn(|i| unsafe {
            let bits = vreinterpretq_u8_u32(veorq_u32(activations.0[i], weights.0[i]));
            vaddq_u8(sum[i], vcntq_u8(bits))
        })
    }

    #[inline(always)]
    unsafe fn total(sum: [uint8x16_t; 4]) -> Vector {
        // SAFETY: every AArch64 CPU has NEON.
        Vector(sum.map(|bytes| unsafe { vpaddlq_u16(vpaddlq_u8(bytes)) }))
    }
}

/// The even and the odd half of four lanes' bytes, each as eight 16-bit numbers.
#[inline(always)]
unsafe fn widened(activations: uint32x4_t, weights: uint32x4_t) -> [(int16x8_t, int16x8_t); 2] {
    // SAFETY: every AArch64 CPU has NEON.
    unsafe {
        let (bytes, weights) = (vreinterpretq_u8_u32(activations), vreinterpretq_s8_u32(weights));
        let low = (vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(bytes))), vmovl_s8(vget_low_s8(weights)));
        [low, (vreinterpretq_s16_u16(vmovl_high_u8(bytes)), vmovl_high_s8(weights))]
    }
}

/// u8 times -1, 0 or +1, summed in 16 bits.
pub(crate) enum Signs {}

impl Product for Signs {
    type Vector = Vector;
    type Sum = [[int16x8_t; 2]; 4];
    const LIMIT: usize = i16::MAX as usize / 255;

    #[inline(always)]
    unsafe fn zero() -> [[int16x8_t; 2]; 4] {
        // SAFETY: every AArch64 CPU has NEON.
        [[unsafe { vdupq_n_s16(0) }; 2]; 4]
    }

    #[inline(always)]
    unsafe fn add(sum: Self::Sum, activations: Vector, weights: Vector) -> Self::Sum {
        // SAFETY: every AArch64 CPU has NEON.
        from_fn(|i| unsafe {
            let [low, high] = widened(activations.0[i], weights.0[i]);
            [vmlaq_s16(sum[i][0], low.0, low.1), vmlaq_s16(sum[i][1], high.0, high.1)]
        })
    }

    #[inline(always)]
    unsafe fn total(sum: Self::Sum) -> Vector {
        // SAFETY: every AArch64 CPU has NEON.
        Vector(sum.map(|[low, high]| unsafe {
            vreinterpretq_u32_s32(vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)))
        }))
    }
}

/// u8 times i8: a product is at most 255 * 128 = 32,640 and fits 16 bits; sums take 32.
pub(crate) enum Bytes {}

impl Product for Bytes {
    type Vector = Vector;
    type Sum = [[int32x4_t; 2]; 4];
    const LIMIT: usize = usize::MAX;

    #[inline(always)]
    unsafe fn zero() -> [[int32x4_t; 2]; 4] {
        // SAFETY: every AArch64 CPU has NEON.
        [[unsafe { vdupq_n_s32(0) }; 2]; 4]
    }

    #[inline(always)]
    unsafe fn add(sum: Self::Sum, activations: Vector, weights: Vector) -> Self::Sum {
        // SAFETY: every AArch64 CPU has NEON.
        from_fn(|i| unsafe {
            let [low, high] = widened(activations.0[i], weights.0[i]);
            let low = vpadalq_s16(sum[i][0], vmulq_s16(low.0, low.1));
            [low, vpadalq_s16(sum[i][1], vmulq_s16(high.0, high.1))]
        })
    }

    #[inline(always)]
    unsafe fn total(sum: Self::Sum) -> Vector {
        // SAFETY: every AArch64 CPU has NEON.
        Vector(sum.map(|[low, high]| unsafe { vreinterpretq_u32_s32(vpaddq_s32(low, high)) }))
    }
}

/// The instructions of NEON.
pub(crate) enum Neon {}

impl Architecture for Neon {
    type Vector = Vector;
    type Differing = Count;
    type Signs = Signs;
    type Bytes = Bytes;
}

/// See [`blocks::convolve`]: thirty-two registers hold eight sums and their operands.
///
/// # Safety
/// `task.reach()` is some number up to `task.plane.len()`.
pub(crate) unsafe fn convolve(task: &Convolution<'_>, output: &mut [u32]) {
    // SAFETY: as above; every AArch64 CPU has NEON.
    unsafe { blocks::convolve::<Neon, 2, 1>(task, output) }
}

/// See [`blocks::accumulate`].
///
/// # Safety
/// As [`convolve`].
pub(crate) unsafe fn accumulate(task: &Convolution<'_>, output: &mut [Line]) {
    // SAFETY: as above; every AArch64 CPU has NEON.
    unsafe { blocks::accumulate::<Neon>(task, output) }
}
