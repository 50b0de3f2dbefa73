//! Models and images for the tests, made from a seed.

use cbin_nn_kernels::{
    epilogue::Grid,
    operators::qbconv2d::Affine,
    shape::{Padding, Shape, Window},
};
use cbin_nn_model::{
    format::{DType, Layout},
    writer::{Builder, OperatorSpec, PoolSpec, RulesSpec},
};

/// Numerical Recipes' generator: any numbers will do, as long as they are always the same.
pub struct Seed(pub u32);

impl Seed {
    /// The next 24 bits' worth of a number below `limit`.
    pub fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) % limit
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.below(256) as u8).collect()
    }

    fn words(&mut self, count: usize) -> Vec<u32> {
        (0..count).map(|_| self.below(1 << 16) << 16 | self.below(1 << 16)).collect()
    }

    /// Rules with a threshold near zero, some of them two-sided.
    fn rules(&mut self, channels: usize, spread: u32) -> RulesSpec {
        let lo = (0..channels).map(|_| self.below(2 * spread) as i32 - spread as i32).collect();
        let hi =
            (0..channels).map(|channel| if channel % 3 == 0 { spread as i32 } else { i32::MAX }).collect();
        let flip = (0..channels.div_ceil(32)).map(|_| 0).collect();
        RulesSpec { grid: Grid::Channel, lo, hi, flip }
    }
}

fn same(kernel: usize) -> Window {
    Window { padding: [kernel / 2; 4], ..Window::of(kernel, kernel) }
}

fn pool() -> Option<PoolSpec> {
    let window = Window { strides: [2, 2], ..Window::of(2, 2) };
    Some(PoolSpec { window, veto: None, invert: None })
}

/// SmallCifar's shapes for images of `side` x `side` x 3, with random parameters: two convolutions
/// with their pools and ten logits.
pub fn model(side: usize) -> Vec<u8> {
    let mut seed = Seed(side as u32);
    let shape = Shape::new(side, side, 3).unwrap();
    let mut builder = Builder::new("test", "image", DType::U8, shape);
    let first = OperatorSpec::QbConv2d {
        weights: seed.words(32 * 25).iter().map(|word| word & 7).collect(),
        filters: 32,
        window: same(5),
        affine: Affine { mul: 2, add: -255 },
        channel_adds: vec![],
        layout: Layout::Canonical,
        rules: seed.rules(32, 2000),
        pool: pool(),
    };
    let first = builder.operator("conv1", builder.input(), "bits1", first).unwrap();
    let second = OperatorSpec::BbConv2d {
        weights: seed.words(32 * 25),
        filters: 32,
        window: same(5),
        padding: Padding::Zero,
        by_output_channel: None,
        rules: seed.rules(32, 40),
        pool: pool(),
    };
    let second = builder.operator("conv2", first, "bits2", second).unwrap();
    let last = OperatorSpec::BbqFc {
        weights: seed.words(10 * (side / 4) * (side / 4)),
        units: 10,
        mul: (1..=10).collect(),
        add: (0..10).collect(),
        knee: Vec::new(),
        shift: 0,
        dtype: DType::I32,
        scale: 1.0,
    };
    builder.operator("fc", second, "logits", last).unwrap();
    builder.finish(false).unwrap()
}
