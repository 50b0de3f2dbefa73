//! Arguments from bytes: mostly ones that fit, now and then odd ones.

use arbitrary::Unstructured;
use cbin_nn_kernels::ArgumentError;
use cbin_nn_kernels::bits::{lane_mask, words_for};
use cbin_nn_kernels::operators::qbconv2d::Affine;
use cbin_nn_kernels::shape::{Shape, Window};

/// The channel counts that find mistakes: below, at and above a word.
const CHANNELS: [usize; 11] = [1, 3, 8, 16, 24, 31, 32, 33, 40, 64, 65];
/// Sizes at and beyond the limits.
const WILD: [usize; 8] = [0, 4095, 4096, 4097, 65_535, 65_536, u32::MAX as usize, usize::MAX];

/// Bytes, and a generator of values that is seeded by them. Bytes that have run out read as 0.
pub(crate) struct Draw<'a> {
    bytes: Unstructured<'a>,
    state: u64,
    /// Something was drawn that need not fit the rest.
    pub(crate) odd: bool,
}

impl<'a> Draw<'a> {
    pub(crate) fn new(data: &'a [u8]) -> Self {
        let mut bytes = Unstructured::new(data);
        let seed: u32 = bytes.arbitrary().unwrap_or(0);
        Self { bytes, state: u64::from(seed) << 32 | 0x9E37_79B9, odd: false }
    }

    /// 0 up to `end`, exclusive.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.bytes.int_in_range(0..=end - 1).unwrap_or(0)
    }

    /// True once in `times`; never when the bytes have run out.
    pub(crate) fn rarely(&mut self, times: usize) -> bool {
        self.below(times) == times - 1
    }

    fn wild(&mut self) -> usize {
        self.odd = true;
        match self.below(WILD.len() + 1) {
            at if at < WILD.len() => WILD[at],
            _ => self.below(1 << 16),
        }
    }

    fn dimension(&mut self) -> usize {
        if self.rarely(16) { self.wild() } else { 1 + self.below(8) }
    }

    pub(crate) fn channels(&mut self) -> usize {
        if self.rarely(16) { self.wild() } else { CHANNELS[self.below(CHANNELS.len())] }
    }

    pub(crate) fn shape(&mut self) -> Result<Shape, ArgumentError> {
        let (height, width) = (self.dimension(), self.dimension());
        Shape::new(height, width, self.channels())
    }

    pub(crate) fn window(&mut self, largest: usize) -> Window {
        let mut side = |from, end| if self.rarely(32) { self.wild() } else { from + self.below(end) };
        Window {
            kernel: [side(1, largest), side(1, largest)],
            strides: [side(1, 3), side(1, 3)],
            dilation: [side(1, 2), side(1, 2)],
            padding: [side(0, 4), side(0, 4), side(0, 4), side(0, 4)],
        }
    }

    /// `right`, or a length that is wrong.
    pub(crate) fn length(&mut self, right: usize) -> usize {
        if !self.rarely(16) {
            return right;
        }
        let length = match self.below(4) {
            0 => right + 1,
            1 => right.saturating_sub(1),
            2 => 0,
            _ => self.below(1 << 12),
        };
        self.odd |= length != right;
        length
    }

    pub(crate) fn affine(&mut self) -> Affine {
        match self.below(6) {
            0 => Affine { mul: 1, add: 0 },
            1 => Affine { mul: 2, add: -255 },
            2 => Affine { mul: 1, add: -128 },
            3 | 4 => Affine { mul: 1 + self.below(50) as i32, add: self.below(18_001) as i32 - 9000 },
            _ => {
                self.odd = true;
                let mut any = || self.bytes.arbitrary().unwrap_or(i32::MIN);
                Affine { mul: any(), add: any() }
            }
        }
    }

    /// The next value of the generator: xorshift64*, S. Vigna, "An experimental exploration of Marsaglia's
    /// xorshift generators, scrambled", 2016.
    pub(crate) fn value(&mut self) -> u32 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        (self.state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) as u32
    }

    /// `length` words of random pixels with clean padding bits.
    pub(crate) fn packed(&mut self, length: usize, channels: usize) -> Vec<u32> {
        let words = words_for(channels).max(1);
        (0..length).map(|i| self.value() & lane_mask(channels, i % words)).collect()
    }

    /// As [`packed`](Self::packed), but at times with padding bits set.
    pub(crate) fn parameter(&mut self, length: usize, channels: usize) -> Vec<u32> {
        let mut packed = self.packed(length, channels);
        if self.rarely(16) {
            packed.fill_with(|| self.value());
        }
        packed
    }

    /// `length` random bytes.
    pub(crate) fn image(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.value() as u8).collect()
    }

    /// One end of a rule's interval.
    pub(crate) fn threshold(&mut self) -> i32 {
        let value = self.value();
        match value % 8 {
            0 => i32::MIN,
            1 => i32::MAX,
            2 => self.value() as i32,
            kind => (value >> 8) as i32 % [4, 16, 64, 300, 20_000][kind as usize - 3],
        }
    }

    /// A constructor refused: only right where something odd was drawn, or where a sum could overflow.
    pub(crate) fn refused(&self, error: ArgumentError) {
        let overflow = matches!(error, ArgumentError::Overflow { .. });
        assert!(self.odd || overflow, "refused although everything fits: {error}");
    }
}
