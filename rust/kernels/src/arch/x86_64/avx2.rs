/*!
AVX2: sixteen lanes in two registers. The products are those of AVX-512BW, half as wide.
*/
#![allow(clippy::needless_range_loop, reason = "closures of iterators don't have this module's instructions")]

use core::arch::x86_64::*;

use crate::arch::generic::blocks::{self, Architecture, Convolution, Lanes, Product};
use crate::arch::line::Line;

/// Sixteen lanes.
#[derive(Clone, Copy)]
pub(crate) struct Vector([__m256i; 2]);

impl Lanes for Vector {
    #[inline(always)]
    unsafe fn splat(word: u32) -> Self {
        // SAFETY: the caller has AVX2.
        Self([unsafe { _mm256_set1_epi32(word as i32) }; 2])
    }

    #[inline(always)]
    unsafe fn load(line: &Line) -> Self {
        let at = line.0.as_ptr().cast::<__m256i>();
        // SAFETY: a line is twice 32 bytes at a multiple of 64. The caller has AVX2.
        Self(unsafe { [_mm256_load_si256(at), _mm256_load_si256(at.add(1))] })
    }

    #[inline(always)]
    unsafe fn store(self, line: &mut Line) {
        let at = line.0.as_mut_ptr().cast::<__m256i>();
        // SAFETY: a line is twice 32 bytes at a multiple of 64. The caller has AVX2.
        unsafe {
            _mm256_store_si256(at, self.0[0]);
            _mm256_store_si256(at.add(1), self.0[1]);
        }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the caller has AVX2.
        Self(unsafe { [_mm256_add_epi32(self.0[0], other.0[0]), _mm256_add_epi32(self.0[1], other.0[1])] })
    }

    #[inline(always)]
    unsafe fn scale(self, factor: i32) -> Self {
        // SAFETY: the caller has AVX2.
        unsafe {
            let factor = _mm256_set1_epi32(factor);
            Self([_mm256_mullo_epi32(self.0[0], factor), _mm256_mullo_epi32(self.0[1], factor)])
        }
    }

    #[inline(always)]
    unsafe fn add_bits(self, bits: u32) -> Self {
        let mut sum = self.0;
        for half in 0..2 {
            // SAFETY: the caller has AVX2.
            unsafe {
                let lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
                let bits = _mm256_and_si256(_mm256_set1_epi32((bits >> (8 * half)) as i32), lane);
                // All ones, which is -1, where the bit is set.
                sum[half] = _mm256_sub_epi32(sum[half], _mm256_cmpeq_epi32(bits, lane));
            }
        }
        Self(sum)
    }

    #[inline(always)]
    unsafe fn at_least(self, lo: Self) -> u32 {
        let mut mask = 0;
        for half in 0..2 {
            // SAFETY: the caller has AVX2.
            let below = unsafe {
                _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(lo.0[half], self.0[half])))
            };
            mask |= (!below as u32 & 0xFF) << (8 * half);
        }
        mask
    }

    #[inline(always)]
    unsafe fn between(self, lo: Self, hi: Self) -> u32 {
        let mut mask = 0;
        for half in 0..2 {
            // SAFETY: the caller has AVX2.
            let outside = unsafe {
                let below = _mm256_cmpgt_epi32(lo.0[half], self.0[half]);
                let above = _mm256_cmpgt_epi32(self.0[half], hi.0[half]);
                _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_or_si256(below, above)))
            };
            mask |= (!outside as u32 & 0xFF) << (8 * half);
        }
        mask
    }
}

/// Bits that differ, with a table of the bits of half a byte. Counts of bytes are summed up to 255.
///
/// W. Muła, N. Kurz, D. Lemire, "Faster Population Counts Using AVX2 Instructions", 2018 (arXiv:1611.07612).
pub(crate) enum Table {}

impl Product for Table {
    type Vector = Vector;
    type Sum = [__m256i; 2];
    const LIMIT: usize = 255 / 8;

    #[inline(always)]
    unsafe fn zero() -> [__m256i; 2] {
        // SAFETY: the caller has AVX2.
        [unsafe { _mm256_setzero_si256() }; 2]
    }

    #[inline(always)]
    unsafe fn add(mut sum: [__m256i; 2], activations: Vector, weights: Vector) -> [__m256i; 2] {
        for half in 0..2 {
            // SAFETY: the caller has AVX2.
            unsafe {
                let table = _mm256_broadcastsi128_si256(_mm_setr_epi8(
                    0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,
                ));
                let low = _mm256_set1_epi8(15);
                let bits = _mm256_xor_si256(activations.0[half], weights.0[half]);
                let lower = _mm256_shuffle_epi8(table, _mm256_and_si256(bits, low));
                let upper = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi32::<4>(bits), low));
                sum[half] = _mm256_add_epi8(_mm256_add_epi8(sum[half], lower), upper);
            }
        }
        sum
    }

    #[inline(always)]
    unsafe fn total(sum: [__m256i; 2]) -> Vector {
        let mut total = sum;
        for half in &mut total {
            // SAFETY: the caller has AVX2.
            *half = unsafe {
                let pairs = _mm256_maddubs_epi16(*half, _mm256_set1_epi8(1));
                _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
            };
        }
        Vector(total)
    }
}

/// u8 times -1, 0 or +1, with `VPMADDUBSW`: a pair adds at most 510 to 16 bits.
pub(crate) enum SignPairs {}

impl Product for SignPairs {
    type Vector = Vector;
    type Sum = [__m256i; 2];
    const LIMIT: usize = i16::MAX as usize / 510;

    #[inline(always)]
    unsafe fn zero() -> [__m256i; 2] {
        // SAFETY: the caller has AVX2.
        [unsafe { _mm256_setzero_si256() }; 2]
    }

    #[inline(always)]
    unsafe fn add(mut sum: [__m256i; 2], activations: Vector, weights: Vector) -> [__m256i; 2] {
        for half in 0..2 {
            // SAFETY: the caller has AVX2.
            sum[half] = unsafe {
                let pairs = _mm256_maddubs_epi16(activations.0[half], weights.0[half]);
                _mm256_add_epi16(sum[half], pairs)
            };
        }
        sum
    }

    #[inline(always)]
    unsafe fn total(sum: [__m256i; 2]) -> Vector {
        let mut total = sum;
        for half in &mut total {
            // SAFETY: the caller has AVX2.
            *half = unsafe { _mm256_madd_epi16(*half, _mm256_set1_epi16(1)) };
        }
        Vector(total)
    }
}

/// u8 times i8, with `VPMADDUBSW`, which saturates beyond 16 bits: a byte goes in as twice its upper seven
/// bits (a pair is at most 2 * 127 * 128 = 32,512) and its lowest one.
pub(crate) enum BytePairs {}

impl Product for BytePairs {
    type Vector = Vector;
    type Sum = [__m256i; 2];
    const LIMIT: usize = usize::MAX;

    #[inline(always)]
    unsafe fn zero() -> [__m256i; 2] {
        // SAFETY: the caller has AVX2.
        [unsafe { _mm256_setzero_si256() }; 2]
    }

    #[inline(always)]
    unsafe fn add(mut sum: [__m256i; 2], activations: Vector, weights: Vector) -> [__m256i; 2] {
        for half in 0..2 {
            // SAFETY: the caller has AVX2.
            unsafe {
                let (bytes, weights) = (activations.0[half], weights.0[half]);
                let upper = _mm256_and_si256(_mm256_srli_epi32::<1>(bytes), _mm256_set1_epi8(127));
                let lower = _mm256_and_si256(bytes, _mm256_set1_epi8(1));
                let upper = _mm256_madd_epi16(_mm256_maddubs_epi16(upper, weights), _mm256_set1_epi16(2));
                let lower = _mm256_madd_epi16(_mm256_maddubs_epi16(lower, weights), _mm256_set1_epi16(1));
                sum[half] = _mm256_add_epi32(sum[half], _mm256_add_epi32(upper, lower));
            }
        }
        sum
    }

    #[inline(always)]
    unsafe fn total(sum: [__m256i; 2]) -> Vector {
        Vector(sum)
    }
}

/// The instructions of AVX2.
pub(crate) enum Avx2 {}

impl Architecture for Avx2 {
    type Vector = Vector;
    type Differing = Table;
    type Signs = SignPairs;
    type Bytes = BytePairs;
}

/// See [`blocks::convolve`]: sixteen registers hold four sums and their operands.
///
/// # Safety
/// `task.reach()` is some number up to `task.plane.len()`.
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn convolve(task: &Convolution<'_>, output: &mut [u32]) {
    // SAFETY: as above; the instructions are this function's.
    unsafe { blocks::convolve::<Avx2, 2, 1>(task, output) }
}

/// See [`blocks::accumulate`].
///
/// # Safety
/// As [`convolve`].
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn accumulate(task: &Convolution<'_>, output: &mut [Line]) {
    // SAFETY: as above; the instructions are this function's.
    unsafe { blocks::accumulate::<Avx2>(task, output) }
}
