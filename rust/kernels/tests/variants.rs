//! Every variant of every operator against its naive reference, over random shapes and parameters.
//!
//! One macro, [`variants_agree!`], runs all ways to compute an operator on one case and compares their
//! outputs bit for bit; a case also fails where an output has a padding bit set.

use cbin_nn_kernels::bits::{check_padding_bits, lane_mask, words_for};
use cbin_nn_kernels::epilogue::{Grid, Output, Pool, Requantization, Rules};
use cbin_nn_kernels::host::blocks::{BlockLayer, BlockPlan, LANES, Layer, Line};
use cbin_nn_kernels::layouts::by_output_channel::{from_groups, to_groups};
use cbin_nn_kernels::layouts::byte_mask::{self, to_byte_mask};
use cbin_nn_kernels::layouts::pixel_sums::{SumShape, from_sums, to_sums};
use cbin_nn_kernels::operators::bbconv2d::{self, BbConv2d, group_shape};
use cbin_nn_kernels::operators::bbdepthwiseconv2d::BbDepthwiseConv2d;
use cbin_nn_kernels::operators::bbfc::{BbFc, Dense};
use cbin_nn_kernels::operators::bbpointwiseconv2d::BbPointwiseConv2d;
use cbin_nn_kernels::operators::bbqfc::BbqFc;
use cbin_nn_kernels::operators::bmaxpool2d::BMaxPool2d;
use cbin_nn_kernels::operators::bqqfc::BqqFc;
use cbin_nn_kernels::operators::qbconv2d::{Affine, QbConv2d, Weights};
use cbin_nn_kernels::operators::qqconv2d::QqConv2d;
use cbin_nn_kernels::shape::{Conv2dGeometry, Padding, Shape, Window};
use cbin_nn_kernels::simd::Simd;
use cbin_nn_kernels::{ArgumentError, Kernel, Run};
use proptest::prelude::*;
use proptest::test_runner::TestRng;

/// Runs each closure on a dirty output of `$words` words; all must succeed and agree.
macro_rules! variants_agree {
    ($words:expr, $channels:expr, $($name:literal => $run:expr),+ $(,)?) => {{
        let outputs = [$({
            let mut output = vec![0xDEAD_BEEFu32; $words];
            #[allow(clippy::redundant_closure_call)]
            ($run)(&mut output).map_err(|e| TestCaseError::fail(format!("{}: {e}", $name)))?;
            check_padding_bits("output", &output, $channels)
                .map_err(|e| TestCaseError::fail(format!("{}: {e}", $name)))?;
            ($name, output)
        }),+];
        for (name, output) in &outputs[1..] {
            prop_assert_eq!(output, &outputs[0].1, "{} differs from {}", name, outputs[0].0);
        }
        outputs.into_iter().next().map(|(_, output)| output).unwrap_or_default()
    }};
}

/// Lines, words and plan of a layer in lanes.
struct Rewritten {
    plan: BlockPlan,
    lines: Vec<Line>,
    words: Vec<u32>,
}

impl Rewritten {
    fn new(layer: Layer<'_, '_>) -> Self {
        let plan = BlockPlan::new(layer).expect("small layers fit");
        // Dirty, since `write` fills all of it.
        let (mut lines, mut words) =
            (vec![Line([0xA5A5_A5A5; LANES]); plan.lines()], vec![0xA5A5_A5A5; plan.words()]);
        plan.write(layer, &mut lines, &mut words).unwrap();
        Self { plan, lines, words }
    }

    fn layer(&self) -> BlockLayer<'_> {
        BlockLayer::new(&self.plan, &self.lines, &self.words).unwrap()
    }
}

fn bytes_of(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// The layer in lanes, with every set of instructions that this CPU has, against the reference's output.
fn blocks_agree(layer: Layer<'_, '_>, input: &[u8], expected: &[u32]) -> Result<(), TestCaseError> {
    let rewritten = Rewritten::new(layer);
    for simd in Simd::available() {
        let mut output = vec![0xDEAD_BEEF; expected.len()];
        let mut plane = vec![0xA5; rewritten.plan.plane_bytes()];
        rewritten
            .layer()
            .run(simd, input, &mut output, &mut plane)
            .map_err(|e| TestCaseError::fail(format!("{}: {e}", simd.name())))?;
        prop_assert_eq!(&output, expected, "{} differs from the reference", simd.name());
    }
    Ok(())
}

/// The channel counts that find mistakes: below, at and above a word.
fn channels() -> impl Strategy<Value = usize> {
    prop::sample::select(vec![1, 3, 8, 16, 24, 31, 32, 33, 40, 64, 65])
}

/// Half the time no offsets, else one for each of `channels`, none beyond `|add|`.
fn channel_adds(rng: &mut TestRng, channels: usize, add: i32) -> Vec<i32> {
    if rng.next_u32().is_multiple_of(2) {
        return Vec::new();
    }
    (0..channels).map(|_| rng.next_u32() as i32 % (add.abs() + 1)).collect()
}

fn window(largest: usize) -> impl Strategy<Value = Window> {
    let pair = move |range: std::ops::RangeInclusive<usize>| [range.clone(), range];
    (pair(1..=largest), pair(1..=3), pair(1..=2), [0..4usize, 0..4, 0..4, 0..4])
        .prop_map(|(kernel, strides, dilation, padding)| Window { kernel, strides, dilation, padding })
}

/// Packed random pixels with clean padding bits.
fn packed(rng: &mut TestRng, pixels: usize, channels: usize) -> Vec<u32> {
    (0..pixels * words_for(channels))
        .map(|i| rng.next_u32() & lane_mask(channels, i % words_for(channels)))
        .collect()
}

/// Owned rules: intervals about `spread` wide around zero, of every kind, in `pixels` rule pixels.
struct OwnedRules {
    grid: Grid,
    channels: usize,
    lo: Vec<i32>,
    hi: Vec<i32>,
    flip: Vec<u32>,
}

impl OwnedRules {
    fn random(rng: &mut TestRng, grid: Grid, pixels: usize, channels: usize, spread: u32) -> Self {
        let (mut lo, mut hi) = (Vec::new(), Vec::new());
        // Half of the layers have one-sided rules alone, which a host handles in a way of its own.
        let kinds = if rng.next_u32().is_multiple_of(2) { 3 } else { 5 };
        for _ in 0..pixels * channels {
            let mut near = || (rng.next_u32() % (2 * spread + 1)) as i32 - spread as i32;
            let (a, b) = (near(), near());
            let interval = match rng.next_u32() % kinds {
                0 => (a, i32::MAX),
                1 => (i32::MIN, a),
                2 => {
                    if a > 0 {
                        (1, 0)
                    } else {
                        (i32::MIN, i32::MAX)
                    }
                }
                _ => (a.min(b), a.max(b)),
            };
            lo.push(interval.0);
            hi.push(interval.1);
        }
        Self { grid, channels, lo, hi, flip: packed(rng, pixels, channels) }
    }

    fn view(&self) -> Rules<'_> {
        Rules::new(self.grid, self.channels, &self.lo, &self.hi, &self.flip).unwrap()
    }
}

/// A random rule set, and a random fused pool or none, for a convolution's geometry.
struct OwnedTail {
    rules: OwnedRules,
    pool: Option<(Window, Option<OwnedRules>, Option<Vec<u32>>)>,
}

impl OwnedTail {
    fn random(
        rng: &mut TestRng,
        geometry: &Conv2dGeometry,
        pool: Option<Window>,
        spread: u32,
    ) -> Option<Self> {
        let conv = geometry.output();
        let output = match pool {
            None => *conv,
            Some(window) => {
                let sliding = *Pool::new(conv, window, None, None).ok()?.sliding();
                Shape::new(sliding.output_height(), sliding.output_width(), conv.channels()).unwrap()
            }
        };
        let rules = |rng: &mut TestRng| {
            let (grid, pixels) = match rng.next_u32() % 4 {
                0 => (Grid::Conv, conv.pixels()),
                1 => (Grid::Output, output.pixels()),
                _ => (Grid::Channel, 1),
            };
            OwnedRules::random(rng, grid, pixels, conv.channels(), spread)
        };
        let first = rules(rng);
        let pool = pool.map(|window| {
            let veto = rng.next_u32().is_multiple_of(2).then(|| rules(rng));
            let invert = rng.next_u32().is_multiple_of(2).then(|| packed(rng, 1, conv.channels()));
            (window, veto, invert)
        });
        Some(Self { rules: first, pool })
    }

    fn pool(&self, conv: &Shape) -> Option<Pool<'_>> {
        self.pool.as_ref().map(|(window, veto, invert)| {
            Pool::new(conv, *window, veto.as_ref().map(OwnedRules::view), invert.as_deref()).unwrap()
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 1 } else { 1500 }))]

    #[test]
    fn bbconv2d(
        (height, width) in (1..9usize, 1..9usize),
        (input, output) in (channels(), channels()),
        window in window(5),
        pool in prop::option::of(window(3)),
        one_padding: bool,
        mut rng in any::<u64>().prop_perturb(|_, rng| rng),
    ) {
        let shape = Shape::new(height, width, input).unwrap();
        let Ok(geometry) = Conv2dGeometry::new(shape, window, output) else { return Ok(()) };
        let spread = geometry.products().isqrt() as u32 * 2;
        let Some(tail) = OwnedTail::random(&mut rng, &geometry, pool, spread) else { return Ok(()) };
        let padding = if one_padding { Padding::One } else { Padding::Zero };
        let weights = packed(&mut rng, output * window.taps(), input);
        let group_shape = group_shape(&geometry);
        let mut lanes = vec![0; group_shape.words()];
        to_groups(&group_shape, &weights, &packed(&mut rng, 1, input), &mut lanes).unwrap();
        let mut back = vec![0; weights.len()];
        from_groups(&group_shape, &lanes, &mut back).unwrap();
        prop_assert_eq!(&back, &weights);
        let build = |weights| {
            let pool = tail.pool(geometry.output());
            BbConv2d::new(geometry, padding, weights, tail.rules.view(), pool).unwrap()
        };
        let (canonical, vertical) = (build(bbconv2d::Weights::Packed(&weights)), build(bbconv2d::Weights::ByOutputChannel(&lanes)));
        canonical.check_contents().unwrap();
        vertical.check_contents().unwrap();
        let image = packed(&mut rng, shape.pixels(), input);
        let scratch = |operator: &BbConv2d<'_>| vec![0xA5A5_A5A5; operator.scratch_words()];
        let (mut of_canonical, mut of_vertical) = (scratch(&canonical), scratch(&vertical));
        let expected = variants_agree!(canonical.output().words(), output,
            "reference" => |out: &mut Vec<u32>| canonical.reference(&image, out),
            "reference, by output channel" => |out: &mut Vec<u32>| vertical.reference(&image, out),
            "carry-save" => |out: &mut Vec<u32>| canonical.optimized(&image, out, &mut of_canonical),
            "vertical" => |out: &mut Vec<u32>| vertical.optimized(&image, out, &mut of_vertical),
        );
        blocks_agree(Layer::BbConv2d(&canonical), &bytes_of(&image), &expected)?;
        blocks_agree(Layer::BbConv2d(&vertical), &bytes_of(&image), &expected)?;
    }

    #[test]
    fn qbconv2d(
        (height, width) in (1..9usize, 1..9usize),
        (input, output) in (prop::sample::select(vec![1usize, 2, 3, 4, 5, 8, 33]), channels()),
        window in window(5),
        pool in prop::option::of(window(3)),
        (mul, add) in prop_oneof![Just((1, 0)), Just((2, -255)), (1..50i32, -9000..9000i32)],
        mut rng in any::<u64>().prop_perturb(|_, rng| rng),
    ) {
        let shape = Shape::new(height, width, input).unwrap();
        let Ok(geometry) = Conv2dGeometry::new(shape, window, output) else { return Ok(()) };
        let spread = geometry.products().isqrt() as u32 * (255 * mul as u32 + add.unsigned_abs());
        let Some(tail) = OwnedTail::random(&mut rng, &geometry, pool, spread) else { return Ok(()) };
        let weights = packed(&mut rng, output * window.taps(), input);
        let mut masks = vec![0; output * byte_mask::filter_words(&geometry)];
        to_byte_mask(&geometry, &weights, &mut masks).unwrap();
        let sums = SumShape::new(window.kernel, input).map(|shape| {
            let mut words = vec![0; output * shape.filter_words()];
            to_sums(&shape, &weights, &mut words).unwrap();
            let mut back = vec![0; weights.len()];
            from_sums(&shape, &words, &mut back).unwrap();
            assert_eq!(back, weights);
            words
        });
        let adds = channel_adds(&mut rng, input, add);
        let affine = Affine { mul, add: if adds.is_empty() { add } else { 0 } };
        let build = |weights| {
            let pool = tail.pool(geometry.output());
            let operator = QbConv2d::new(geometry, affine, weights, tail.rules.view(), pool).unwrap();
            operator.with_channel_adds(&adds).unwrap()
        };
        let (canonical, masked) = (build(Weights::Packed(&weights)), build(Weights::ByteMask(&masks)));
        canonical.check_contents().unwrap();
        masked.check_contents().unwrap();
        let image: Vec<u8> = (0..shape.elements()).map(|_| rng.next_u32() as u8).collect();
        let mut scratch = vec![0xA5A5_A5A5; masked.scratch_words()];
        let mut scratch2 = vec![0xA5A5_A5A5; canonical.scratch_words()];
        let expected = variants_agree!(masked.output().words(), output,
            "reference" => |out: &mut Vec<u32>| canonical.reference(&image, out),
            "reference, byte masks" => |out: &mut Vec<u32>| masked.reference(&image, out),
            "packed" => |out: &mut Vec<u32>| canonical.optimized(&image, out, &mut scratch2),
            "byte masks" => |out: &mut Vec<u32>| masked.optimized(&image, out, &mut scratch),
        );
        if let Some(words) = &sums {
            let summed = build(Weights::PixelSums(words));
            summed.check_contents().unwrap();
            let mut scratch = vec![0xA5A5_A5A5; summed.scratch_words()];
            let found = variants_agree!(summed.output().words(), output,
                "reference, sums" => |out: &mut Vec<u32>| summed.reference(&image, out),
                "sums" => |out: &mut Vec<u32>| summed.optimized(&image, out, &mut scratch),
            );
            prop_assert_eq!(&found, &expected, "sums");
            if !cfg!(miri) && adds.is_empty() {
                blocks_agree(Layer::QbConv2d(&summed), &image, &expected)?;
            }
        }
        // Under Miri, which takes minutes, one layout and one family on bytes: the loops are the same.
        let layers = [Layer::QbConv2d(&canonical), Layer::QbConv2d(&masked)];
        for &layer in &layers[..if cfg!(miri) { 1 } else { 2 }] {
            match adds.is_empty() {
                true => blocks_agree(layer, &image, &expected)?,
                false => prop_assert!(BlockPlan::new(layer).is_none()),
            }
        }
    }

    #[test]
    fn qqconv2d(
        (height, width) in (1..9usize, 1..9usize),
        (input, output) in (prop::sample::select(vec![1usize, 2, 3, 4, 5, 8, 33]), channels()),
        window in window(5),
        pool in prop::option::of(window(3)),
        // No layer drawn here may overflow an accumulator: 25 taps * 33 channels * 128 * (255 * 39 + 9000) < 2^31.
        (mul, add) in prop_oneof![Just((1, 0)), Just((2, -255)), (1..40i32, -9000..9000i32)],
        mut rng in any::<u64>().prop_perturb(|_, rng| rng),
    ) {
        let shape = Shape::new(height, width, input).unwrap();
        let Ok(geometry) = Conv2dGeometry::new(shape, window, output) else { return Ok(()) };
        let spread = geometry.products().isqrt() as u32 * (255 * mul as u32 + add.unsigned_abs()) * 70;
        let Some(tail) = OwnedTail::random(&mut rng, &geometry, pool, spread) else { return Ok(()) };
        let weights: Vec<i8> = (0..output * geometry.products()).map(|_| rng.next_u32() as i8).collect();
        let pool = tail.pool(geometry.output());
        let adds = channel_adds(&mut rng, input, add);
        let affine = Affine { mul, add: if adds.is_empty() { add } else { 0 } };
        let operator = QqConv2d::new(geometry, affine, &weights, tail.rules.view(), pool).unwrap();
        let operator = operator.with_channel_adds(&adds).unwrap();
        operator.check_contents().unwrap();
        // The same weights in 16 bits, and others that 8 bits can't hold.
        let same: Vec<i16> = weights.iter().map(|&w| w.into()).collect();
        let wide: Vec<i16> = weights.iter().map(|&w| i16::from(w) * 7 + 1).collect();
        let of = |weights| {
            let operator = QqConv2d::new_wide(geometry, affine, weights, tail.rules.view(), pool).unwrap();
            operator.with_channel_adds(&adds).unwrap()
        };
        let (same, wide) = (of(&same), of(&wide));
        same.check_contents().unwrap();
        let image: Vec<u8> = (0..shape.elements()).map(|_| rng.next_u32() as u8).collect();
        let mut scratch = vec![0xA5A5_A5A5; operator.scratch_words()];
        let mut scratch2 = vec![0xA5A5_A5A5; same.scratch_words()];
        let expected = variants_agree!(operator.output().words(), output,
            "reference" => |out: &mut Vec<u32>| operator.reference(&image, out),
            "optimized" => |out: &mut Vec<u32>| operator.optimized(&image, out, &mut scratch),
            "reference, 16-bit weights" => |out: &mut Vec<u32>| same.reference(&image, out),
            "16-bit weights" => |out: &mut Vec<u32>| same.optimized(&image, out, &mut scratch2),
        );
        // The output over the image: as near as it may be, farther away, and nearer.
        prop_assert_eq!(same.input_gap(), None);
        let mut over_image = |gap: usize| {
            let mut memory = vec![0xDEAD_BEEF_u32; (gap + image.len()).div_ceil(4).max(expected.len())];
            for (at, &byte) in (gap..).zip(&image) {
                memory[at / 4] = memory[at / 4] & !(0xFF << (8 * (at % 4))) | u32::from(byte) << (8 * (at % 4));
            }
            let done = operator.optimized_over_input(&mut memory, gap, &mut scratch);
            done.map(|()| memory[..expected.len()].to_vec())
        };
        if let Some(least) = operator.input_gap() {
            for gap in [least, least + 4, least + 100] {
                prop_assert_eq!(over_image(gap).unwrap(), &expected[..], "gap {}", gap);
            }
            if let Some(nearer) = least.checked_sub(4) {
                prop_assert_eq!(over_image(nearer), Err(ArgumentError::Value { argument: "gap" }));
            }
        }
        match adds.is_empty() {
            true if cfg!(miri) => {}
            true => blocks_agree(Layer::QqConv2d(&operator), &image, &expected)?,
            false => prop_assert!(BlockPlan::new(Layer::QqConv2d(&operator)).is_none()),
        }
        prop_assert!(BlockPlan::new(Layer::QqConv2d(&same)).is_none());
        if wide.check_contents().is_ok() {
            variants_agree!(wide.output().words(), output,
                "reference" => |out: &mut Vec<u32>| wide.reference(&image, out),
                "optimized" => |out: &mut Vec<u32>| wide.optimized(&image, out, &mut scratch2),
            );
        }
    }

    #[test]
    fn bbpointwiseconv2d(
        (height, width) in (1..9usize, 1..9usize),
        (input, output) in (channels(), channels()),
        strides in [1..4usize, 1..4],
        pool in prop::option::of(window(3)),
        mut rng in any::<u64>().prop_perturb(|_, rng| rng),
    ) {
        let shape = Shape::new(height, width, input).unwrap();
        let window = Window { strides, ..Window::of(1, 1) };
        let geometry = Conv2dGeometry::new(shape, window, output).unwrap();
        let Some(tail) = OwnedTail::random(&mut rng, &geometry, pool, input.isqrt() as u32 + 1) else { return Ok(()) };
        let weights = packed(&mut rng, output, input);
        let pool = tail.pool(geometry.output());
        let operator = BbPointwiseConv2d::new(geometry, &weights, tail.rules.view(), pool).unwrap();
        operator.check_contents().unwrap();
        // The same layer as a convolution with a kernel that happens to be 1 x 1.
        let general = BbConv2d::new(geometry, Padding::Zero, bbconv2d::Weights::Packed(&weights), tail.rules.view(), pool).unwrap();
        let image = packed(&mut rng, shape.pixels(), input);
        let mut scratch = vec![0xA5A5_A5A5; operator.scratch_words()];
        let expected = variants_agree!(operator.output().words(), output,
            "reference" => |out: &mut Vec<u32>| operator.reference(&image, out),
            "optimized" => |out: &mut Vec<u32>| operator.optimized(&image, out, &mut scratch),
            "bbconv2d" => |out: &mut Vec<u32>| general.reference(&image, out),
        );
        blocks_agree(Layer::BbPointwiseConv2d(&operator), &bytes_of(&image), &expected)?;
    }

    #[test]
    fn bbdepthwiseconv2d(
        (height, width) in (1..9usize, 1..9usize),
        channels in channels(),
        window in window(5),
        pool in prop::option::of(window(3)),
        one_padding: bool,
        mut rng in any::<u64>().prop_perturb(|_, rng| rng),
    ) {
        let shape = Shape::new(height, width, channels).unwrap();
        let Ok(geometry) = Conv2dGeometry::new(shape, window, channels) else { return Ok(()) };
        let spread = window.taps().isqrt() as u32 + 1;
        let Some(tail) = OwnedTail::random(&mut rng, &geometry, pool, spread) else { return Ok(()) };
        let padding = if one_padding { Padding::One } else { Padding::Zero };
        let weights = packed(&mut rng, window.taps(), channels);
        let pool = tail.pool(geometry.output());
        let operator = BbDepthwiseConv2d::new(geometry, padding, &weights, tail.rules.view(), pool).unwrap();
        operator.check_contents().unwrap();
        let image = packed(&mut rng, shape.pixels(), channels);
        let mut scratch = vec![0xA5A5_A5A5; operator.scratch_words()];
        let expected = variants_agree!(operator.output().words(), channels,
            "reference" => |out: &mut Vec<u32>| operator.reference(&image, out),
            "optimized" => |out: &mut Vec<u32>| operator.optimized(&image, out, &mut scratch),
        );
        blocks_agree(Layer::BbDepthwiseConv2d(&operator), &bytes_of(&image), &expected)?;
    }

    #[test]
    fn bmaxpool2d(
        (height, width) in (1..9usize, 1..9usize),
        channels in channels(),
        window in window(4),
        some_and: bool,
        mut rng in any::<u64>().prop_perturb(|_, rng| rng),
    ) {
        let shape = Shape::new(height, width, channels).unwrap();
        let use_and = some_and.then(|| packed(&mut rng, 1, channels));
        let Ok(operator) = BMaxPool2d::new(shape, window, use_and.as_deref()) else { return Ok(()) };
        operator.check_contents().unwrap();
        let image = packed(&mut rng, shape.pixels(), channels);
        let _ = variants_agree!(operator.output().words(), channels,
            "reference" => |out: &mut Vec<u32>| operator.reference(&image, out),
            "optimized" => |out: &mut Vec<u32>| operator.optimized(&image, out, &mut []),
        );
    }

    #[test]
    fn bbfc(
        (height, width, channels, units) in (1..5usize, 1..5usize, channels(), channels()),
        mut rng in any::<u64>().prop_perturb(|_, rng| rng),
    ) {
        let shape = Shape::new(height, width, channels).unwrap();
        let weights = packed(&mut rng, units * shape.pixels(), channels);
        let dense = Dense::new(shape, units, &weights).unwrap();
        let rules = OwnedRules::random(&mut rng, Grid::Channel, 1, units, dense.features().isqrt() as u32);
        let operator = BbFc::new(dense, rules.view()).unwrap();
        operator.check_contents().unwrap();
        let image = packed(&mut rng, shape.pixels(), channels);
        let expected = variants_agree!(words_for(units), units,
            "reference" => |out: &mut Vec<u32>| operator.reference(&image, out),
            "optimized" => |out: &mut Vec<u32>| operator.optimized(&image, out, &mut []),
        );
        blocks_agree(Layer::BbFc(&operator), &bytes_of(&image), &expected)?;
    }

    #[test]
    fn bbqfc(
        (height, width, channels, units) in (1..5usize, 1..5usize, channels(), 1..12usize),
        (shift, has_knee) in (0..40u32, any::<bool>()),
        mut rng in any::<u64>().prop_perturb(|_, rng| rng),
    ) {
        let shape = Shape::new(height, width, channels).unwrap();
        let weights = packed(&mut rng, units * shape.pixels(), channels);
        let dense = Dense::new(shape, units, &weights).unwrap();
        let mut values = |n| (0..n).map(|_| i64::from(rng.next_u32() as i32) >> (31 - shift.min(31))).collect::<Vec<_>>();
        let rows = if has_knee { 2 * units } else { units };
        let (mul, add) = (values(rows), values(rows));
        let knee: Vec<i32> = (0..if has_knee { units } else { 0 }).map(|_| rng.next_u32() as i8 as i32).collect();
        let requantization = Requantization::new(&mul, &add, &knee, shift).unwrap();
        let operator = BbqFc::new(dense, requantization).unwrap();
        operator.check_contents().unwrap();
        let image = packed(&mut rng, shape.pixels(), channels);
        fn both<T: Output + Default + PartialEq + std::fmt::Debug>(
            operator: &BbqFc<'_>,
            image: &[u32],
        ) -> Result<(), TestCaseError> {
            let mut outputs = [vec![T::default(); operator.units()], vec![T::default(); operator.units()]];
            operator.reference(image, &mut outputs[0]).unwrap();
            operator.optimized(image, &mut outputs[1], &mut []).unwrap();
            prop_assert_eq!(&outputs[0], &outputs[1]);
            let rewritten = Rewritten::new(Layer::BbqFc(operator));
            for simd in Simd::available() {
                let mut lines = vec![Line([0xA5A5_A5A5; LANES]); rewritten.plan.output_len()];
                rewritten.layer().accumulators(simd, &bytes_of(image), &mut lines).unwrap();
                BlockLayer::requantize(operator, &lines, &mut outputs[1]).unwrap();
                prop_assert_eq!(&outputs[0], &outputs[1], "{} differs from the reference", simd.name());
            }
            Ok(())
        }
        both::<i8>(&operator, &image)?;
        both::<i16>(&operator, &image)?;
        both::<i32>(&operator, &image)?;
    }

    #[test]
    fn bqqfc(
        (height, width, channels, units) in (1..5usize, 1..5usize, channels(), 1..12usize),
        (shift, has_knee) in (0..40u32, any::<bool>()),
        mut rng in any::<u64>().prop_perturb(|_, rng| rng),
    ) {
        let shape = Shape::new(height, width, channels).unwrap();
        let mut values = |n| (0..n).map(|_| i64::from(rng.next_u32() as i32) >> (31 - shift.min(31))).collect::<Vec<_>>();
        let rows = if has_knee { 2 * units } else { units };
        let (mul, add) = (values(rows), values(rows));
        let knee: Vec<i32> = (0..if has_knee { units } else { 0 }).map(|_| rng.next_u32() as i16 as i32).collect();
        let requantization = Requantization::new(&mul, &add, &knee, shift).unwrap();
        let weights: Vec<i8> = (0..units * shape.elements()).map(|_| rng.next_u32() as i8).collect();
        let operator = BqqFc::new(shape, units, &weights, requantization).unwrap();
        operator.check_contents().unwrap();
        let image = packed(&mut rng, shape.pixels(), channels);
        fn both<T: Output + Default + PartialEq + std::fmt::Debug>(
            operator: &BqqFc<'_>,
            image: &[u32],
        ) -> Result<(), TestCaseError> {
            let mut outputs = [vec![T::default(); operator.units()], vec![T::default(); operator.units()]];
            operator.reference(image, &mut outputs[0]).unwrap();
            operator.optimized(image, &mut outputs[1], &mut []).unwrap();
            prop_assert_eq!(&outputs[0], &outputs[1]);
            Ok(())
        }
        both::<i8>(&operator, &image)?;
        both::<i16>(&operator, &image)?;
        both::<i32>(&operator, &image)?;
    }
}
