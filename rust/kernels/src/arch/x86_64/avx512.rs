/*!
AVX-512: sixteen lanes in one register.

Three sets of instructions, each on top of the one before it:

- `avx512bw` (Skylake-X): bits are counted with a table of sixteen in `VPSHUFB`, bytes multiplied with
  `VPMADDUBSW`;
- `avx512vnni` (Cascade Lake): `VPDPBUSD` multiplies and adds four bytes a lane;
- `avx512` (Ice Lake, Zen 4): `VPOPCNTD` counts a lane's bits.
*/

use core::arch::x86_64::*;
use core::marker::PhantomData;

use crate::arch::generic::blocks::{self, Architecture, Convolution, Lanes, Product};
use crate::arch::line::Line;

/// Sixteen lanes.
#[derive(Clone, Copy)]
pub(crate) struct Vector(__m512i);

impl Lanes for Vector {
    #[inline(always)]
    unsafe fn splat(word: u32) -> Self {
        // SAFETY: the caller has AVX-512F.
        Self(unsafe { _mm512_set1_epi32(word as i32) })
    }

    #[inline(always)]
    unsafe fn load(line: &Line) -> Self {
        // SAFETY: a line is 64 bytes at a multiple of 64. The caller has AVX-512F.
        Self(unsafe { _mm512_load_si512(line.0.as_ptr().cast()) })
    }

    #[inline(always)]
    unsafe fn store(self, line: &mut Line) {
        // SAFETY: a line is 64 bytes at a multiple of 64. The caller has AVX-512F.
        unsafe { _mm512_store_si512(line.0.as_mut_ptr().cast(), self.0) };
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the caller has AVX-512F.
        Self(unsafe { _mm512_add_epi32(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn scale(self, factor: i32) -> Self {
        // SAFETY: the caller has AVX-512F.
        Self(unsafe { _mm512_mullo_epi32(self.0, _mm512_set1_epi32(factor)) })
    }

    #[inline(always)]
    unsafe fn add_bits(self, bits: u32) -> Self {
        // SAFETY: the caller has AVX-512F.
        Self(unsafe { _mm512_mask_add_epi32(self.0, bits as u16, self.0, _mm512_set1_epi32(1)) })
    }

    #[inline(always)]
    unsafe fn at_least(self, lo: Self) -> u32 {
        // SAFETY: the caller has AVX-512F.
        u32::from(unsafe { _mm512_cmple_epi32_mask(lo.0, self.0) })
    }

    #[inline(always)]
    unsafe fn between(self, lo: Self, hi: Self) -> u32 {
        // SAFETY: the caller has AVX-512F.
        unsafe {
            let above = _mm512_cmple_epi32_mask(lo.0, self.0);
            u32::from(_mm512_mask_cmple_epi32_mask(above, self.0, hi.0))
        }
    }
}

/// Bits that differ, with `VPOPCNTD`.
pub(crate) enum Popcount {}

impl Product for Popcount {
    type Vector = Vector;
    type Sum = __m512i;
    const LIMIT: usize = usize::MAX;

    #[inline(always)]
    unsafe fn zero() -> __m512i {
        // SAFETY: the caller has AVX-512F.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn add(sum: __m512i, activations: Vector, weights: Vector) -> __m512i {
        // SAFETY: the caller has AVX-512F and VPOPCNTDQ.
        unsafe { _mm512_add_epi32(sum, _mm512_popcnt_epi32(_mm512_xor_si512(activations.0, weights.0))) }
    }

    #[inline(always)]
    unsafe fn total(sum: __m512i) -> Vector {
        Vector(sum)
    }
}

/// Bits that differ, with a table of the bits of half a byte. Counts of bytes are summed up to 255.
///
/// W. Muła, N. Kurz, D. Lemire, "Faster Population Counts Using AVX2 Instructions", 2018 (arXiv:1611.07612).
pub(crate) enum Table {}

impl Product for Table {
    type Vector = Vector;
    type Sum = __m512i;
    const LIMIT: usize = 255 / 8;

    #[inline(always)]
    unsafe fn zero() -> __m512i {
        // SAFETY: the caller has AVX-512F.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn add(sum: __m512i, activations: Vector, weights: Vector) -> __m512i {
        // SAFETY: the caller has AVX-512BW.
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
            let low = _mm512_set1_epi8(15);
            let bits = _mm512_xor_si512(activations.0, weights.0);
            let lower = _mm512_shuffle_epi8(table, _mm512_and_si512(bits, low));
            let upper = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi32::<4>(bits), low));
            _mm512_add_epi8(_mm512_add_epi8(sum, lower), upper)
        }
    }

    #[inline(always)]
    unsafe fn total(sum: __m512i) -> Vector {
        // SAFETY: the caller has AVX-512BW.
        unsafe {
            let pairs = _mm512_maddubs_epi16(sum, _mm512_set1_epi8(1));
            Vector(_mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))
        }
    }
}

/// u8 times i8, with `VPDPBUSD`.
pub(crate) enum Dot {}

impl Product for Dot {
    type Vector = Vector;
    type Sum = __m512i;
    const LIMIT: usize = usize::MAX;

    #[inline(always)]
    unsafe fn zero() -> __m512i {
        // SAFETY: the caller has AVX-512F.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn add(sum: __m512i, activations: Vector, weights: Vector) -> __m512i {
        // SAFETY: the caller has AVX-512 VNNI.
        unsafe { _mm512_dpbusd_epi32(sum, activations.0, weights.0) }
    }

    #[inline(always)]
    unsafe fn total(sum: __m512i) -> Vector {
        Vector(sum)
    }
}

/// u8 times -1, 0 or +1, with `VPMADDUBSW`: a pair adds at most 510 to 16 bits.
pub(crate) enum SignPairs {}

impl Product for SignPairs {
    type Vector = Vector;
    type Sum = __m512i;
    const LIMIT: usize = i16::MAX as usize / 510;

    #[inline(always)]
    unsafe fn zero() -> __m512i {
        // SAFETY: the caller has AVX-512F.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn add(sum: __m512i, activations: Vector, weights: Vector) -> __m512i {
        // SAFETY: the caller has AVX-512BW.
        unsafe { _mm512_add_epi16(sum, _mm512_maddubs_epi16(activations.0, weights.0)) }
    }

    #[inline(always)]
    unsafe fn total(sum: __m512i) -> Vector {
        // SAFETY: the caller has AVX-512BW.
        Vector(unsafe { _mm512_madd_epi16(sum, _mm512_set1_epi16(1)) })
    }
}

/// u8 times i8, with `VPMADDUBSW`, which saturates beyond 16 bits: a byte goes in as twice its upper seven
/// bits (a pair is at most 2 * 127 * 128 = 32,512) and its lowest one.
pub(crate) enum BytePairs {}

impl Product for BytePairs {
    type Vector = Vector;
    type Sum = __m512i;
    const LIMIT: usize = usize::MAX;

    #[inline(always)]
    unsafe fn zero() -> __m512i {
        // SAFETY: the caller has AVX-512F.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn add(sum: __m512i, activations: Vector, weights: Vector) -> __m512i {
        // SAFETY: the caller has AVX-512BW.
        unsafe {
            let upper = _mm512_and_si512(_mm512_srli_epi32::<1>(activations.0), _mm512_set1_epi8(127));
            let lower = _mm512_and_si512(activations.0, _mm512_set1_epi8(1));
            let upper = _mm512_madd_epi16(_mm512_maddubs_epi16(upper, weights.0), _mm512_set1_epi16(2));
            let lower = _mm512_madd_epi16(_mm512_maddubs_epi16(lower, weights.0), _mm512_set1_epi16(1));
            _mm512_add_epi32(sum, _mm512_add_epi32(upper, lower))
        }
    }

    #[inline(always)]
    unsafe fn total(sum: __m512i) -> Vector {
        Vector(sum)
    }
}

/// A set of instructions: how bits are counted, and how bytes are multiplied by signs and by bytes.
pub(crate) struct Avx512<D, S, B>(PhantomData<(D, S, B)>);

impl<D, S, B> Architecture for Avx512<D, S, B>
where
    D: Product<Vector = Vector>,
    S: Product<Vector = Vector>,
    B: Product<Vector = Vector>,
{
    type Vector = Vector;
    type Differing = D;
    type Signs = S;
    type Bytes = B;
}

macro_rules! instructions {
    ($($(#[$doc:meta])* $name:ident: $features:literal, $architecture:ty;)+) => {$(
        $(#[$doc])*
        pub(crate) mod $name {
            use super::*;

            /// See [`blocks::convolve`]: thirty-two registers hold eight sums and their operands.
            ///
            /// # Safety
            /// `task.reach()` is some number up to `task.plane.len()`.
            #[target_feature(enable = $features)]
            pub(crate) unsafe fn convolve(task: &Convolution<'_>, output: &mut [u32]) {
                // SAFETY: as above; the instructions are this function's.
                unsafe { blocks::convolve::<$architecture, 4, 2>(task, output) }
            }

            /// See [`blocks::accumulate`].
            ///
            /// # Safety
            /// As [`convolve`].
            #[target_feature(enable = $features)]
            pub(crate) unsafe fn accumulate(task: &Convolution<'_>, output: &mut [Line]) {
                // SAFETY: as above; the instructions are this function's.
                unsafe { blocks::accumulate::<$architecture>(task, output) }
            }
        }
    )+};
}

instructions! {
    /// Skylake-X.
    bw: "avx512f,avx512bw", Avx512<Table, SignPairs, BytePairs>;
    /// Cascade Lake.
    vnni: "avx512f,avx512bw,avx512vnni", Avx512<Table, Dot, Dot>;
    /// Ice Lake, Zen 4.
    popcount: "avx512f,avx512bw,avx512vnni,avx512vpopcntdq", Avx512<Popcount, Dot, Dot>;
}
