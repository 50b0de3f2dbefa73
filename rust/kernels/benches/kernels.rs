//! SmallCifar's layers and a few larger ones: the portable kernels, and blocks of sixteen channels with every set
//! of instructions that this CPU has. `cargo bench -p cbin-nn-kernels --features std [NAME]`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;

use cbin_nn_kernels::bits::{lane_mask, words_for};
use cbin_nn_kernels::epilogue::{Grid, Pool, Rules};
use cbin_nn_kernels::host::blocks::{BlockLayer, BlockPlan, Layer, Line};
use cbin_nn_kernels::layouts::byte_mask::{self, to_byte_mask};
use cbin_nn_kernels::operators::bbconv2d::{self, BbConv2d};
use cbin_nn_kernels::operators::bbfc::{BbFc, Dense};
use cbin_nn_kernels::operators::qbconv2d::{Affine, QbConv2d, Weights};
use cbin_nn_kernels::shape::{Conv2dGeometry, Padding, Shape, Window};
use cbin_nn_kernels::simd::Simd;
use cbin_nn_kernels::{Kernel, Run};

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) as u32
    }

    fn packed(&mut self, pixels: usize, channels: usize) -> Vec<u32> {
        let words = words_for(channels);
        (0..pixels * words).map(|i| self.next() & lane_mask(channels, i % words)).collect()
    }
}

/// Times the portable kernel, `portable(output)`, and the layer in blocks.
fn compare(
    criterion: &mut Criterion,
    name: &str,
    macs: u64,
    layer: Layer<'_, '_>,
    input: &[u8],
    mut portable: impl FnMut(&mut [u32]),
) {
    let plan = BlockPlan::new(layer).expect("a layer of common size");
    let (mut lines, mut words) = (vec![Line::ZERO; plan.lines()], vec![0; plan.words()]);
    plan.write(layer, &mut lines, &mut words).unwrap();
    let blocks = BlockLayer::new(&plan, &lines, &words).unwrap();
    let (mut output, mut plane) = (vec![0; plan.output_len()], vec![0; plan.plane_bytes()]);
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(macs));
    group.bench_function("portable", |bencher| bencher.iter(|| portable(black_box(&mut output))));
    for simd in Simd::available() {
        group.bench_function(simd.name(), |bencher| {
            bencher.iter(|| blocks.run(simd, black_box(input), &mut output, &mut plane).unwrap());
        });
    }
    group.finish();
}

/// Thresholds at 0 for each channel.
struct Thresholds(Vec<i32>, Vec<i32>, Vec<u32>);

impl Thresholds {
    fn new(channels: usize) -> Self {
        Self(vec![0; channels], vec![i32::MAX; channels], vec![0; words_for(channels)])
    }

    fn rules(&self) -> Rules<'_> {
        Rules::new(Grid::Channel, self.0.len(), &self.0, &self.1, &self.2).unwrap()
    }
}

fn bbconv2d(criterion: &mut Criterion) {
    let halves = Window { strides: [2, 2], ..Window::of(2, 2) };
    for (name, side, input, output, kernel, pooled) in [
        ("bbconv2d 16x16x32 5x5x32 pool", 16, 32, 32, 5, true),
        ("bbconv2d 8x8x32 5x5x64 pool", 8, 32, 64, 5, true),
        ("bbconv2d 14x14x256 3x3x256", 14, 256, 256, 3, false),
    ] {
        let mut random = Random(1);
        let window = Window { padding: [kernel / 2; 4], ..Window::of(kernel, kernel) };
        let geometry = Conv2dGeometry::new(Shape::new(side, side, input).unwrap(), window, output).unwrap();
        let weights = random.packed(output * kernel * kernel, input);
        let thresholds = Thresholds::new(output);
        let pool = pooled.then(|| Pool::new(geometry.output(), halves, None, None).unwrap());
        let operator = BbConv2d::new(
            geometry,
            Padding::Zero,
            bbconv2d::Weights::Packed(&weights),
            thresholds.rules(),
            pool,
        )
        .unwrap();
        let image = random.packed(side * side, input);
        let bytes: Vec<u8> = image.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut scratch = vec![0; operator.scratch_words()];
        compare(criterion, name, geometry.macs(), Layer::BbConv2d(&operator), &bytes, |output| {
            operator.optimized(&image, output, &mut scratch).unwrap();
        });
    }
}

fn qbconv2d(criterion: &mut Criterion) {
    let mut random = Random(2);
    let window = Window { padding: [2; 4], ..Window::of(5, 5) };
    let geometry = Conv2dGeometry::new(Shape::new(32, 32, 3).unwrap(), window, 32).unwrap();
    let weights = random.packed(32 * 25, 3);
    let mut masks = vec![0; 32 * byte_mask::filter_words(&geometry)];
    to_byte_mask(&geometry, &weights, &mut masks).unwrap();
    let thresholds = Thresholds::new(32);
    let halves = Window { strides: [2, 2], ..Window::of(2, 2) };
    let pool = Some(Pool::new(geometry.output(), halves, None, None).unwrap());
    let affine = Affine { mul: 2, add: -255 };
    let operator =
        QbConv2d::new(geometry, affine, Weights::ByteMask(&masks), thresholds.rules(), pool).unwrap();
    let image: Vec<u8> = (0..32 * 32 * 3).map(|_| random.next() as u8).collect();
    let mut scratch = vec![0; operator.scratch_words()];
    let name = "qbconv2d 32x32x3 5x5x32 pool";
    compare(criterion, name, geometry.macs(), Layer::QbConv2d(&operator), &image, |output| {
        operator.optimized(&image, output, &mut scratch).unwrap();
    });
}

fn bbfc(criterion: &mut Criterion) {
    let mut random = Random(3);
    let shape = Shape::new(4, 4, 256).unwrap();
    let weights = random.packed(512 * 16, 256);
    let thresholds = Thresholds::new(512);
    let operator = BbFc::new(Dense::new(shape, 512, &weights).unwrap(), thresholds.rules()).unwrap();
    let image = random.packed(16, 256);
    let bytes: Vec<u8> = image.iter().flat_map(|word| word.to_ne_bytes()).collect();
    compare(criterion, "bbfc 4096 to 512", 4096 * 512, Layer::BbFc(&operator), &bytes, |output| {
        operator.optimized(&image, output, &mut []).unwrap();
    });
}

criterion_group!(kernels, bbconv2d, qbconv2d, bbfc);
criterion_main!(kernels);
