//! A small model with every operator, and the pieces to make others.

use cbin_nn_kernels::bbconv2d::Padding;
use cbin_nn_kernels::bits::{lane_mask, words_for};
use cbin_nn_kernels::qbconv2d::Affine;
use cbin_nn_kernels::rule::Grid;
use cbin_nn_kernels::shape::{Shape, Window};
use cbin_nn_model::format::{DType, Layout};
use cbin_nn_model::writer::{Builder, OperatorSpec, PoolSpec, RulesSpec};

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

/// 6 x 6 x 3 u8 -> conv (pooled, with veto and invert) -> conv (one-padding, per-element rules) -> pool -> fc -> fc.
pub fn small_model(seed: u64, layout: Layout, dtype: DType) -> Vec<u8> {
    let mut random = Random(seed);
    let shape = Shape::new(6, 6, 3).unwrap();
    let mut builder = Builder::new("small", "image", DType::U8, shape);
    let input = builder.input();
    let same = Window { padding: [1; 4], ..Window::of(3, 3) };
    let halves = Window { strides: [2, 2], ..Window::of(2, 2) };
    let first = OperatorSpec::QbConv2d {
        weights: random.bits(8 * 9, 3),
        filters: 8,
        window: same,
        affine: Affine { mul: 2, add: -255 },
        layout,
        rules: random.rules(Grid::Channel, 1, 8, 1500),
        pool: Some(PoolSpec {
            window: halves,
            veto: Some(random.rules(Grid::Output, 9, 8, 3000)),
            invert: Some(random.bits(1, 8)),
        }),
    };
    let a = builder.operator("conv1", input, "a", first).unwrap();
    let second = OperatorSpec::BbConv2d {
        weights: random.bits(40 * 9, 8),
        filters: 40,
        window: same,
        padding: Padding::One,
        rules: random.rules(Grid::Conv, 9, 40, 12),
        pool: None,
    };
    let b = builder.operator("conv2", a, "b", second).unwrap();
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
    builder.finish(false).unwrap()
}
