//! A small model with every operator, and ways to damage it.
#![allow(dead_code, reason = "each test file uses its own part")]

use cbin_nn_kernels::bits::{lane_mask, words_for};
use cbin_nn_kernels::epilogue::Grid;
use cbin_nn_kernels::operators::qbconv2d::Affine;
use cbin_nn_kernels::shape::{Padding, Shape, Window};
use cbin_nn_model::format::{DType, Header, Layout, OperatorRecord, TensorRecord};
use cbin_nn_model::writer::{Builder, ByteWeights, OperatorSpec, PoolSpec, RulesSpec, seal};

/// A generator of its own (xorshift64*), so that models are the same wherever and whenever they are made.
/// S. Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled", 2016.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) as u32
    }

    pub fn below(&mut self, limit: usize) -> usize {
        self.next() as usize % limit
    }

    pub fn bits(&mut self, pixels: usize, channels: usize) -> Vec<u32> {
        let words = words_for(channels);
        (0..pixels * words).map(|i| self.next() & lane_mask(channels, i % words)).collect()
    }

    pub fn rules(&mut self, grid: Grid, pixels: usize, channels: usize, spread: i32) -> RulesSpec {
        let count = pixels * channels;
        let mut near =
            || (0..count).map(|_| self.below(2 * spread as usize) as i32 - spread).collect::<Vec<_>>();
        let (a, b) = (near(), near());
        RulesSpec {
            grid,
            lo: a.iter().zip(&b).map(|(a, b)| *a.min(b)).collect(),
            hi: a
                .iter()
                .zip(&b)
                .enumerate()
                .map(|(i, (a, b))| if i % 3 == 0 { i32::MAX } else { *a.max(b) })
                .collect(),
            flip: self.bits(pixels, channels),
        }
    }
}

/// 20 x 16 x 3 u8 -> conv (1-bit weights as sums of pixels, pooled) -> pool -> fc: a model that runs in place.
pub fn in_place_model() -> Vec<u8> {
    let mut random = Random(7);
    let mut builder = Builder::new("in place", "image", DType::U8, Shape::new(20, 16, 3).unwrap());
    let halves = Window { strides: [2, 2], ..Window::of(2, 2) };
    let first = OperatorSpec::QbConv2d {
        weights: random.bits(40 * 25, 3),
        filters: 40,
        window: Window { padding: [2; 4], ..Window::of(5, 5) },
        affine: Affine { mul: 2, add: -255 },
        channel_adds: vec![],
        layout: Layout::PixelSums,
        rules: random.rules(Grid::Channel, 1, 40, 4000),
        pool: Some(PoolSpec { window: halves, veto: None, invert: Some(random.bits(1, 40)) }),
    };
    let a = builder.operator("conv", builder.input(), "a", first).unwrap();
    let pool = OperatorSpec::BMaxPool2d { window: halves, use_and: None };
    let b = builder.operator("pool", a, "b", pool).unwrap();
    let last = OperatorSpec::BbFc {
        weights: random.bits(33 * 20, 40),
        units: 33,
        rules: random.rules(Grid::Channel, 1, 33, 20),
    };
    builder.operator("fc", b, "bits", last).unwrap();
    builder.finish(false).unwrap()
}

/// 6 x 6 x 3 u8 -> conv (8-bit or 1-bit weights, pooled) -> conv (one-padding, per-element rules) ->
/// depthwise -> pointwise -> pool -> fc -> fc.
pub fn small_model(seed: u64, layout: Layout, dtype: DType) -> Vec<u8> {
    small_builder(seed, layout, dtype).finish(false).unwrap()
}

/// The operators of [`small_model`].
pub fn small_builder(seed: u64, layout: Layout, dtype: DType) -> Builder {
    let mut random = Random(seed);
    let shape = Shape::new(6, 6, 3).unwrap();
    let mut builder = Builder::new("small", "image", DType::U8, shape);
    let input = builder.input();
    let same = Window { padding: [1; 4], ..Window::of(3, 3) };
    let halves = Window { strides: [2, 2], ..Window::of(2, 2) };
    let wide = OperatorSpec::QqConv2d {
        weights: ByteWeights::I8((0..8 * 27).map(|_| random.next() as i8).collect()),
        filters: 8,
        window: same,
        affine: Affine { mul: 1, add: -128 },
        channel_adds: vec![],
        rules: random.rules(Grid::Channel, 1, 8, 90_000),
        pool: Some(PoolSpec { window: halves, veto: None, invert: None }),
    };
    let narrow = OperatorSpec::QbConv2d {
        weights: random.bits(8 * 9, 3),
        filters: 8,
        window: same,
        affine: Affine { mul: 2, add: -255 },
        channel_adds: vec![],
        layout,
        rules: random.rules(Grid::Channel, 1, 8, 1500),
        pool: Some(PoolSpec {
            window: halves,
            veto: Some(match layout {
                // What the kernel of sums takes.
                Layout::PixelSums => random.rules(Grid::Channel, 1, 8, 3000),
                _ => random.rules(Grid::Output, 9, 8, 3000),
            }),
            invert: Some(random.bits(1, 8)),
        }),
    };
    // The first layer has 8-bit weights where the seed is even.
    let first = if seed.is_multiple_of(2) { wide } else { narrow };
    let a = builder.operator("conv1", input, "a", first).unwrap();
    let mask = random.bits(1, 8);
    let second = OperatorSpec::BbConv2d {
        weights: random.bits(40 * 9, 8),
        filters: 40,
        window: same,
        padding: Padding::One,
        by_output_channel: (layout != Layout::Canonical).then_some(mask),
        rules: random.rules(Grid::Conv, 9, 40, 12),
        pool: None,
    };
    let b = builder.operator("conv2", a, "b", second).unwrap();
    let depthwise = OperatorSpec::BbDepthwiseConv2d {
        weights: random.bits(9, 40),
        window: same,
        padding: Padding::Zero,
        rules: random.rules(Grid::Channel, 1, 40, 4),
        pool: None,
    };
    let b = builder.operator("depthwise", b, "b2", depthwise).unwrap();
    let pointwise = OperatorSpec::BbPointwiseConv2d {
        weights: random.bits(40, 40),
        filters: 40,
        strides: [1, 1],
        rules: random.rules(Grid::Channel, 1, 40, 10),
        pool: None,
    };
    let b = builder.operator("pointwise", b, "b3", pointwise).unwrap();
    let pool = OperatorSpec::BMaxPool2d {
        window: Window { strides: [1, 1], ..Window::of(2, 2) },
        use_and: Some(random.bits(1, 40)),
    };
    let c = builder.operator("pool", b, "c", pool).unwrap();
    let hidden = OperatorSpec::BbFc {
        weights: random.bits(33 * 4, 40),
        units: 33,
        rules: random.rules(Grid::Channel, 1, 33, 20),
    };
    let d = builder.operator("hidden", c, "d", hidden).unwrap();
    let last = OperatorSpec::BbqFc {
        weights: random.bits(10, 33),
        units: 10,
        mul: (0..20).map(|_| i64::from(random.next() as i32)).collect(),
        add: (0..20).map(|_| i64::from(random.next() as i32) << 6).collect(),
        knee: (0..10).map(|_| random.below(20) as i32 - 10).collect(),
        shift: 31,
        dtype,
        scale: 0.25,
    };
    builder.operator("logits", d, "e", last).unwrap();
    builder
}

/// Models to damage: all layouts, every output type.
pub fn originals() -> Vec<Vec<u8>> {
    let kinds = [
        (Layout::ByteMask, DType::I8),
        (Layout::Canonical, DType::I16),
        (Layout::ByteMask, DType::I32),
        (Layout::Canonical, DType::I8),
        (Layout::PixelSums, DType::I16),
    ];
    kinds.iter().zip(1..).map(|(&(layout, dtype), seed)| small_model(seed, layout, dtype)).collect()
}

/// One to three changed words, now and then a truncation, behind a correct checksum so that the damage
/// reaches the checks of the fields.
pub fn mutated(random: &mut Random, original: &[u8]) -> Vec<u8> {
    let mut bytes = original.to_vec();
    let records = size_of::<Header>() + 7 * size_of::<OperatorRecord>() + 35 * size_of::<TensorRecord>();
    for _ in 0..1 + random.below(3) {
        // Mostly in the header and the records, where every field decides something.
        let range = if random.below(4) == 0 { bytes.len() } else { records };
        let at = random.below(range) & !3;
        let old = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let new = match random.below(6) {
            0 => random.next(),
            1 => old ^ (1 << random.below(32)),
            2 => old.wrapping_add(1),
            3 => old.wrapping_sub(1),
            4 => [0, 1, 4, 16, 0xFF, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, u32::MAX][random.below(9)],
            _ => u32::from_le_bytes(bytes[random.below(records / 4) * 4..][..4].try_into().unwrap()),
        };
        bytes[at..at + 4].copy_from_slice(&new.to_le_bytes());
    }
    if random.below(50) == 0 {
        bytes.truncate(random.below(bytes.len()).max(size_of::<Header>()));
    }
    seal(&mut bytes);
    bytes
}
