//! Every argument that every constructor refuses, and every slice that every run refuses, by the error it
//! gives.

use cbin_nn_kernels::ArgumentError::{
    self, KernelTooLarge, Length, Overflow, PaddingBits, TooLarge, Value, Zero,
};
use cbin_nn_kernels::bits::{check_padding_bits, pack, unpack};
use cbin_nn_kernels::epilogue::{Grid, MAX_SHIFT, Pool, Requantization, Rules};
use cbin_nn_kernels::layouts::by_output_channel::{from_groups, to_groups};
use cbin_nn_kernels::layouts::byte_mask::{self, to_byte_mask};
use cbin_nn_kernels::operators::bbconv2d::{self, BbConv2d, group_shape};
use cbin_nn_kernels::operators::bbdepthwiseconv2d::BbDepthwiseConv2d;
use cbin_nn_kernels::operators::bbfc::{BbFc, Dense};
use cbin_nn_kernels::operators::bbpointwiseconv2d::BbPointwiseConv2d;
use cbin_nn_kernels::operators::bbqfc::BbqFc;
use cbin_nn_kernels::operators::bmaxpool2d::BMaxPool2d;
use cbin_nn_kernels::operators::bqqfc::BqqFc;
use cbin_nn_kernels::operators::qbconv2d::{Affine, QbConv2d, Weights};
use cbin_nn_kernels::operators::qqconv2d::QqConv2d;
use cbin_nn_kernels::shape::{
    Conv2dGeometry, MAX_DIMENSION, MAX_ELEMENTS, MAX_WINDOW, Padding, Shape, Window,
};
use cbin_nn_kernels::{Kernel, Run};

/// What was tried, what came of it, what should have.
type Row = (&'static str, Result<(), ArgumentError>, ArgumentError);

fn check(table: Vec<Row>) {
    for (name, got, expected) in table {
        assert_eq!(got, Err(expected), "{name}");
    }
}

fn length(argument: &'static str, expected: usize, got: usize) -> ArgumentError {
    Length { argument, expected, got }
}

/// 4 x 4 pixels of 3 channels -> 3 x 3 kernel -> 2 x 2 pixels of 5 channels, by `window`.
fn geometry(window: Window) -> Conv2dGeometry {
    Conv2dGeometry::new(Shape::new(4, 4, 3).unwrap(), window, 5).unwrap()
}

/// Channel rules for 5 channels.
fn rules() -> Rules<'static> {
    Rules::new(Grid::Channel, 5, &[0; 5], &[9; 5], &[1]).unwrap()
}

const AFFINE: Affine = Affine { mul: 2, add: -255 };
const NO_ADD: Affine = Affine { mul: 2, add: 0 };

#[test]
fn every_error_names_its_argument_and_says_what_to_do() {
    let table = [
        (length("weights", 9, 8), "`weights` has 8 elements, expected 9"),
        (Zero { argument: "strides" }, "`strides` must be at least 1"),
        (TooLarge { argument: "shift", limit: 62 }, "`shift` is above the limit of 62"),
        (
            KernelTooLarge { argument: "kernel" },
            "`kernel` is larger than the padded input: there is no output pixel",
        ),
        (
            Overflow { argument: "mul" },
            "`mul` can overflow the accumulator: use fewer taps or smaller factors",
        ),
        (
            PaddingBits { argument: "flip" },
            "`flip` has a set bit above its last channel: unused bits must be 0",
        ),
        (Value { argument: "kernel" }, "`kernel` is outside its documented range"),
    ];
    for (error, text) in table {
        assert_eq!(error.to_string(), text);
        assert!(text.starts_with(&format!("`{}`", error.argument())));
    }
}

#[test]
fn shapes_and_windows() {
    let shape = |h, w, c| Shape::new(h, w, c).map(drop);
    let plain = Window::of(2, 2);
    let sliding = |window| Pool::new(&Shape::new(4, 4, 5).unwrap(), window, None, None).map(drop);
    let conv = |shape: Shape, window, filters| Conv2dGeometry::new(shape, window, filters).map(drop);
    let wide = Shape::new(1, 1, MAX_DIMENSION).unwrap();
    let too_large = |argument, limit| TooLarge { argument, limit };
    check(vec![
        ("no rows", shape(0, 1, 1), Zero { argument: "height" }),
        ("no columns", shape(1, 0, 1), Zero { argument: "width" }),
        ("no channels", shape(1, 1, 0), Zero { argument: "channels" }),
        ("rows", shape(MAX_DIMENSION + 1, 1, 1), too_large("height", MAX_DIMENSION)),
        ("columns", shape(1, usize::MAX, 1), too_large("width", MAX_DIMENSION)),
        ("channels", shape(1, 1, 1 << 20), too_large("channels", MAX_DIMENSION)),
        // Packed, a pixel of one channel takes a word.
        ("elements", shape(2048, 1025, 1), too_large("shape", MAX_ELEMENTS)),
        ("no kernel", sliding(Window::of(0, 2)), Zero { argument: "kernel" }),
        ("no step", sliding(Window { strides: [1, 0], ..plain }), Zero { argument: "strides" }),
        ("no distance", sliding(Window { dilation: [0, 1], ..plain }), Zero { argument: "dilation" }),
        ("kernel", sliding(Window::of(2, MAX_WINDOW + 1)), too_large("kernel", MAX_WINDOW)),
        ("step", sliding(Window { strides: [MAX_WINDOW + 1, 1], ..plain }), too_large("strides", MAX_WINDOW)),
        (
            "distance",
            sliding(Window { dilation: [1, usize::MAX], ..plain }),
            too_large("dilation", MAX_WINDOW),
        ),
        (
            "padding before",
            sliding(Window { padding: [0, MAX_WINDOW + 1, 0, 0], ..plain }),
            too_large("padding", MAX_WINDOW),
        ),
        (
            "padding after",
            sliding(Window { padding: [0, 0, usize::MAX, 0], ..plain }),
            too_large("padding", MAX_WINDOW),
        ),
        (
            "dilated kernel",
            sliding(Window { dilation: [1, 4], ..plain }),
            KernelTooLarge { argument: "kernel" },
        ),
        ("no filters", conv(wide, Window::of(1, 1), 0), Zero { argument: "channels" }),
        ("weights", conv(wide, Window::of(1, 1), 1025), too_large("weights", MAX_ELEMENTS)),
        (
            "output",
            conv(Shape::new(1, 1, 1).unwrap(), Window { padding: [4096; 4], ..Window::of(1, 1) }, 1),
            too_large("shape", MAX_ELEMENTS),
        ),
    ]);
}

#[test]
fn rules_and_pools() {
    let rules = |grid, channels, lo: usize, hi: usize, flip: usize| {
        Rules::new(grid, channels, &vec![0; lo], &vec![0; hi], &vec![0; flip]).map(drop)
    };
    let conv = Shape::new(4, 4, 33).unwrap();
    check(vec![
        ("no channels", rules(Grid::Conv, 0, 0, 0, 0), Zero { argument: "channels" }),
        ("lo", rules(Grid::Channel, 5, 4, 5, 1), length("rule lo", 5, 4)),
        ("lo in pixels", rules(Grid::Output, 5, 11, 11, 2), length("rule lo", 10, 11)),
        ("hi", rules(Grid::Conv, 5, 10, 5, 2), length("rule hi", 10, 5)),
        ("flip", rules(Grid::Channel, 33, 33, 33, 1), length("rule flip", 2, 1)),
        ("invert", Pool::new(&conv, Window::of(2, 2), None, Some(&[0])).map(drop), length("invert", 2, 1)),
    ]);
}

/// What the five convolutions check alike, each through its own constructor.
#[test]
fn every_convolution_checks_rules_and_pool() {
    let valid = geometry(Window::of(3, 3));
    let same = Conv2dGeometry::new(Shape::new(4, 4, 5).unwrap(), Window::of(3, 3), 5).unwrap();
    let point = geometry(Window { strides: [3, 3], ..Window::of(1, 1) });
    type Build<'a> = &'a dyn Fn(Rules<'_>, Option<Pool<'_>>) -> Result<(), ArgumentError>;
    let builders: [(&str, Build<'_>); 5] = [
        ("qbconv2d", &|r, p| QbConv2d::new(valid, AFFINE, Weights::Packed(&[0; 45]), r, p)?.check_contents()),
        ("qqconv2d", &|r, p| QqConv2d::new(valid, AFFINE, &[0; 135], r, p)?.check_contents()),
        ("bbconv2d", &|r, p| {
            BbConv2d::new(valid, Padding::One, bbconv2d::Weights::Packed(&[0; 45]), r, p)?.check_contents()
        }),
        ("bbpointwiseconv2d", &|r, p| BbPointwiseConv2d::new(point, &[0; 5], r, p)?.check_contents()),
        ("bbdepthwiseconv2d", &|r, p| {
            BbDepthwiseConv2d::new(same, Padding::Zero, &[0; 9], r, p)?.check_contents()
        }),
    ];
    let zeros = [0; 40];
    let plane = |grid, channels: usize, values: usize, flips: usize| {
        Rules::new(grid, channels, &zeros[..values], &zeros[..values], &[0; 40][..flips]).unwrap()
    };
    let (conv, dirty) = (*valid.output(), Rules::new(Grid::Channel, 5, &[0; 5], &[0; 5], &[32]).unwrap());
    let pool = |veto| Pool::new(&conv, Window::of(2, 2), veto, None).unwrap();
    let inverted = |invert: &'static [u32]| Pool::new(&conv, Window::of(2, 2), None, Some(invert)).unwrap();
    let other = |shape: Shape, invert| Pool::new(&shape, Window::of(2, 2), None, invert).unwrap();
    for (name, build) in builders {
        assert_eq!(build(rules(), None), Ok(()), "{name}");
        assert_eq!(build(rules(), Some(pool(Some(rules())))), Ok(()), "{name}");
        assert_eq!(build(rules(), Some(inverted(&[31]))), Ok(()), "{name}");
        assert_eq!(build(plane(Grid::Conv, 5, 20, 4), Some(pool(None))), Ok(()), "{name}");
        let table = vec![
            (
                "rules of too few channels",
                build(plane(Grid::Channel, 4, 4, 1), None),
                length("rule channels", 5, 4),
            ),
            // As many values, in other pixels: once an index out of bounds at the first run.
            (
                "rules of other channels",
                build(plane(Grid::Conv, 10, 20, 2), None),
                length("rule channels", 5, 10),
            ),
            ("rules of too few pixels", build(plane(Grid::Conv, 5, 15, 3), None), length("rule lo", 20, 15)),
            (
                "rules of the plane before the pool",
                build(plane(Grid::Output, 5, 20, 4), Some(pool(None))),
                length("rule lo", 5, 20),
            ),
            (
                "veto of other channels",
                build(rules(), Some(pool(Some(plane(Grid::Conv, 20, 20, 1))))),
                length("rule channels", 5, 20),
            ),
            // Once an index out of bounds, too.
            (
                "a pool of another plane",
                build(rules(), Some(other(Shape::new(4, 4, 5).unwrap(), None))),
                Value { argument: "pool" },
            ),
            (
                "a pool of other channels",
                build(rules(), Some(other(Shape::new(2, 2, 33).unwrap(), Some(&[0, 0])))),
                length("invert", 1, 2),
            ),
            ("flips", build(dirty, None), PaddingBits { argument: "rule flip" }),
            (
                "the veto's flips",
                build(rules(), Some(pool(Some(dirty)))),
                PaddingBits { argument: "rule flip" },
            ),
            ("invert", build(rules(), Some(inverted(&[32]))), PaddingBits { argument: "invert" }),
        ];
        for (case, got, expected) in table {
            assert_eq!(got, Err(expected), "{name}: {case}");
        }
    }
}

#[test]
fn weights_and_what_is_an_operators_own() {
    let conv = geometry(Window::of(3, 3));
    let point = geometry(Window::of(1, 1));
    let same = Conv2dGeometry::new(Shape::new(4, 4, 5).unwrap(), Window::of(3, 3), 5).unwrap();
    let padded = geometry(Window { padding: [0, 0, 0, 1], ..Window::of(1, 1) });
    let qb = |affine, weights| QbConv2d::new(conv, affine, weights, rules(), None)?.check_contents();
    let qq = |affine, weights| QqConv2d::new(conv, affine, weights, rules(), None)?.check_contents();
    // 1 word of mask, then 3 columns of 3 x 3 weights and a word of zeros.
    let lanes = |at: usize, word, length| {
        let mut words = [0; 31];
        words[at] = word;
        let weights = bbconv2d::Weights::ByOutputChannel(&words[..length]);
        BbConv2d::new(conv, Padding::Zero, weights, rules(), None)?.check_contents()
    };
    assert_eq!(lanes(0, 7, 31), Ok(()));
    let shape = group_shape(&conv);
    let (mut to, mut back) = ([0; 31], [0; 45]);
    check(vec![
        ("to_groups, from", to_groups(&shape, &[0; 44], &[0], &mut to), length("packed", 45, 44)),
        ("to_groups, mask", to_groups(&shape, &[0; 45], &[0; 2], &mut to), length("mask", 1, 2)),
        ("to_groups, mask bit", to_groups(&shape, &[0; 45], &[8], &mut to), PaddingBits { argument: "mask" }),
        ("to_groups, to", to_groups(&shape, &[0; 45], &[0], &mut to[1..]), length("groups", 31, 30)),
        ("from_groups, from", from_groups(&shape, &to[1..], &mut back), length("groups", 31, 30)),
        ("from_groups, to", from_groups(&shape, &to, &mut back[1..]), length("packed", 45, 44)),
    ]);
    let wide = |affine, weights, adds| {
        QqConv2d::new_wide(conv, affine, weights, rules(), None)?.with_channel_adds(adds)?.check_contents()
    };
    let qb_adds = |adds| {
        QbConv2d::new(conv, NO_ADD, Weights::Packed(&[0; 45]), rules(), None)?
            .with_channel_adds(adds)?
            .check_contents()
    };
    let bb = |weights| {
        BbConv2d::new(conv, Padding::Zero, bbconv2d::Weights::Packed(weights), rules(), None)?
            .check_contents()
    };
    let pointwise =
        |geometry, weights| BbPointwiseConv2d::new(geometry, weights, rules(), None)?.check_contents();
    let depthwise = |geometry, weights| {
        BbDepthwiseConv2d::new(geometry, Padding::One, weights, rules(), None)?.check_contents()
    };
    let mut masks = [0u32; 35];
    let packed = Weights::Packed(&[0; 45]);
    // 27 products: |acc| <= 27 * (255 mul + |add|), times 128 for 8-bit weights.
    let (mul, add) = (i32::MAX / 27 / 255, i32::MAX / 27 % 255);
    assert_eq!(qb(Affine { mul, add }, packed), Ok(()));
    check(vec![
        ("qbconv2d, packed", qb(AFFINE, Weights::Packed(&[0; 44])), length("weights", 45, 44)),
        ("qbconv2d, masks", qb(AFFINE, Weights::ByteMask(&[0; 45])), length("weights", 35, 45)),
        ("qbconv2d, padding bit", qb(AFFINE, Weights::Packed(&[8; 45])), PaddingBits { argument: "weights" }),
        // 27 weights take 6 words and 3 bytes; the last byte is padding.
        (
            "qbconv2d, padding byte",
            qb(AFFINE, Weights::ByteMask(&[0xFF00_0000; 35])),
            PaddingBits { argument: "weights" },
        ),
        ("qbconv2d, half a mask", qb(AFFINE, Weights::ByteMask(&[0x0F; 35])), Value { argument: "weights" }),
        ("qbconv2d, sums", qb(AFFINE, Weights::PixelSums(&[0; 29])), length("weights", 30, 29)),
        (
            "qbconv2d, sums of nothing",
            qb(AFFINE, Weights::PixelSums(&[0; 30])),
            Value { argument: "weights" },
        ),
        ("mul 0", qb(Affine { mul: 0, add: 0 }, packed), Value { argument: "input mul" }),
        ("one above", qb(Affine { mul, add: add + 1 }, packed), Overflow { argument: "input meaning" }),
        ("one below", qb(Affine { mul, add: -add - 1 }, packed), Overflow { argument: "input meaning" }),
        (
            "the largest",
            qb(Affine { mul: i32::MAX, add: i32::MIN }, packed),
            Overflow { argument: "input meaning" },
        ),
        ("qqconv2d", qq(AFFINE, &[0; 134]), length("weights", 135, 134)),
        (
            "qqconv2d, sums",
            qq(Affine { mul: 1 + i32::MAX / 27 / 255 / 128, add: 0 }, &[0; 135]),
            Overflow { argument: "input meaning" },
        ),
        (
            "qqconv2d, one product",
            qq(Affine { mul: i32::MAX / 255, add: 0 }, &[0; 135]),
            Overflow { argument: "input meaning" },
        ),
        ("qqconv2d, wide", wide(AFFINE, &[0; 134], &[]), length("weights", 135, 134)),
        // 27 products of 765 and 1 << 15 fit; of 27 * (255 * 100 + 255) they don't.
        (
            "qqconv2d, wide sums",
            wide(Affine { mul: 101, add: 0 }, &[i16::MIN; 135], &[]),
            Overflow { argument: "weights" },
        ),
        ("channel adds", wide(NO_ADD, &[0; 135], &[0; 4]), length("channel adds", 3, 4)),
        ("channel adds and add", wide(AFFINE, &[0; 135], &[0; 3]), Value { argument: "input add" }),
        ("channel adds, sums", qb_adds(&[0, i32::MAX / 27, 0]), Overflow { argument: "input meaning" }),
        ("qqconv2d, mul", qq(Affine { mul: -1, add: 0 }, &[0; 135]), Value { argument: "input mul" }),
        ("bbconv2d", bb(&[0; 46]), length("weights", 45, 46)),
        ("bbconv2d, lanes", lanes(0, 0, 30), length("weights", 31, 30)),
        ("bbconv2d, mask's padding bit", lanes(0, 8, 31), PaddingBits { argument: "weights" }),
        ("bbconv2d, a lane above the last", lanes(1, 32, 31), PaddingBits { argument: "weights" }),
        ("bbconv2d, no word of zeros", lanes(10, 1, 31), Value { argument: "weights" }),
        ("bbconv2d, padding bit", bb(&[8; 45]), PaddingBits { argument: "weights" }),
        ("pointwise, 3 x 3", pointwise(conv, &[0; 45]), Value { argument: "kernel" }),
        ("pointwise, padded", pointwise(padded, &[0; 5]), Value { argument: "padding" }),
        ("pointwise", pointwise(point, &[0; 4]), length("weights", 5, 4)),
        ("pointwise, padding bit", pointwise(point, &[8; 5]), PaddingBits { argument: "weights" }),
        ("depthwise, 3 to 5", depthwise(conv, &[0; 9]), Value { argument: "output channels" }),
        ("depthwise", depthwise(same, &[0; 45]), length("weights", 9, 45)),
        ("depthwise, padding bit", depthwise(same, &[32; 9]), PaddingBits { argument: "weights" }),
        ("to_byte_mask, from", to_byte_mask(&conv, &[0; 44], &mut masks), length("packed", 45, 44)),
        ("to_byte_mask, to", to_byte_mask(&conv, &[0; 45], &mut masks[1..]), length("masks", 35, 34)),
    ]);
}

#[test]
fn pools_and_dense_layers() {
    let shape = Shape::new(2, 2, 3).unwrap();
    let pool = |use_and| BMaxPool2d::new(shape, Window::of(2, 2), use_and)?.check_contents();
    let fc = |units, weights, rules| BbFc::new(Dense::new(shape, units, weights)?, rules)?.check_contents();
    let q = |mul: &[i64], add: &[i64], knee: &[i32], shift| {
        let dense = Dense::new(shape, 5, &[0; 20])?;
        BbqFc::new(dense, Requantization::new(mul, add, knee, shift)?)?.check_contents()
    };
    let bqq = |weights: &[i8], mul: &[i64]| {
        BqqFc::new(shape, 5, weights, Requantization::new(mul, mul, &[], 0)?)?.check_contents()
    };
    // 12 weights of 128 each: |acc| <= 1536.
    assert_eq!(bqq(&[i8::MIN; 60], &[((1 << 62) - 1) / 1537; 5]), Ok(()));
    let per_pixel = Rules::new(Grid::Conv, 5, &[0; 10], &[0; 10], &[0; 2]).unwrap();
    let dirty = Rules::new(Grid::Channel, 5, &[0; 5], &[0; 5], &[32]).unwrap();
    // |acc| <= 12, so this is one below 2^62, and exactly 2^62.
    let below = ((1i64 << 62) - 1) % 12;
    assert_eq!(q(&[((1 << 62) - 1) / 12; 5], &[-below; 5], &[], 62), Ok(()));
    check(vec![
        ("bmaxpool2d", pool(Some(&[0, 0])), length("use_and", 1, 2)),
        ("bmaxpool2d, padding bit", pool(Some(&[8])), PaddingBits { argument: "use_and" }),
        ("bbfc, no units", fc(0, &[], rules()), Zero { argument: "channels" }),
        ("bbfc", fc(5, &[0; 19], rules()), length("weights", 20, 19)),
        ("bbfc, padding bit", fc(5, &[8; 20], rules()), PaddingBits { argument: "weights" }),
        ("bbfc, rules", fc(4, &[0; 16], rules()), length("rule channels", 4, 5)),
        ("bbfc, rules of two pixels", fc(5, &[0; 20], per_pixel), length("rule lo", 5, 10)),
        ("bbfc, flips", fc(5, &[0; 20], dirty), PaddingBits { argument: "rule flip" }),
        (
            "weights",
            Dense::new(Shape::new(32, 32, 64).unwrap(), 1025, &[]).map(drop),
            TooLarge { argument: "weights", limit: MAX_ELEMENTS },
        ),
        ("bbqfc, add", q(&[0; 5], &[0; 6], &[], 0), length("add", 5, 6)),
        ("bbqfc, knee", q(&[0; 5], &[0; 5], &[0; 5], 0), length("mul", 10, 5)),
        ("bbqfc, units", q(&[0; 6], &[0; 6], &[], 0), length("mul", 5, 6)),
        ("bbqfc, no unit", q(&[], &[], &[], 0), length("mul", 5, 0)),
        ("bbqfc, shift", q(&[0; 5], &[0; 5], &[], MAX_SHIFT + 1), TooLarge { argument: "shift", limit: 62 }),
        (
            "bbqfc, sums",
            q(&[((1 << 62) - 1) / 12; 5], &[below + 1; 5], &[], 62),
            Overflow { argument: "mul" },
        ),
        ("bqqfc", bqq(&[0; 59], &[0; 5]), length("weights", 60, 59)),
        ("bqqfc, units", bqq(&[0; 60], &[0; 6]), length("mul", 5, 6)),
        ("bqqfc, sums", bqq(&[i8::MIN; 60], &[(1 << 62) / 1536; 5]), Overflow { argument: "mul" }),
        (
            "bqqfc, features",
            BqqFc::new(
                Shape::new(512, 512, 256).unwrap(),
                1,
                &[0; MAX_ELEMENTS],
                Requantization::new(&[0], &[0], &[], 0).unwrap(),
            )
            .map(drop),
            Overflow { argument: "weights" },
        ),
        (
            "bbqfc, the largest",
            q(&[i64::MIN; 10], &[i64::MIN; 10], &[0; 5], 62),
            Overflow { argument: "mul" },
        ),
    ]);
}

#[test]
fn packing() {
    let (mut words, mut signs) = ([0; 2], [0; 33]);
    check(vec![
        ("pack, no channels", pack(&[], 0, &mut words), Zero { argument: "channels" }),
        ("pack, signs", pack(&[1; 34], 33, &mut words), length("signs", 33, 34)),
        ("pack, packed", pack(&[1; 33], 33, &mut words[..1]), length("packed", 2, 1)),
        ("unpack, no channels", unpack(&[], 0, &mut signs), Zero { argument: "channels" }),
        ("unpack, packed", unpack(&[0; 3], 33, &mut signs), length("packed", 2, 3)),
        ("unpack, signs", unpack(&[0; 2], 33, &mut signs[1..]), length("signs", 33, 32)),
        // Once a subtraction below 0.
        ("padding bits, no channels", check_padding_bits("x", &[], 0), Zero { argument: "channels" }),
    ]);
}

/// Each slice of each run, one element short.
#[test]
fn runs_name_the_slice_that_is_short() {
    let conv = geometry(Window::of(3, 3));
    let point = geometry(Window { strides: [3, 3], ..Window::of(1, 1) });
    let same = Conv2dGeometry::new(Shape::new(4, 4, 5).unwrap(), Window::of(3, 3), 5).unwrap();
    let shape = Shape::new(4, 4, 3).unwrap();
    let masks = [0; 35];
    let qb = QbConv2d::new(conv, AFFINE, Weights::ByteMask(&masks), rules(), None).unwrap();
    let qq = QqConv2d::new(conv, AFFINE, &[0; 135], rules(), None).unwrap();
    let bb = BbConv2d::new(conv, Padding::Zero, bbconv2d::Weights::Packed(&[0; 45]), rules(), None).unwrap();
    let lanes =
        BbConv2d::new(conv, Padding::Zero, bbconv2d::Weights::ByOutputChannel(&[0; 31]), rules(), None)
            .unwrap();
    let veto = Pool::new(conv.output(), Window::of(2, 2), Some(rules()), None).unwrap();
    let pw = BbPointwiseConv2d::new(point, &[0; 5], rules(), Some(veto)).unwrap();
    let dw = BbDepthwiseConv2d::new(same, Padding::Zero, &[0; 9], rules(), None).unwrap();
    let pool = BMaxPool2d::new(shape, Window::of(2, 2), None).unwrap();
    let fc = BbFc::new(Dense::new(shape, 5, &[0; 80]).unwrap(), rules()).unwrap();
    let requantization = Requantization::new(&[1; 5], &[0; 5], &[], 0).unwrap();
    let qfc = BbqFc::new(Dense::new(shape, 5, &[0; 80]).unwrap(), requantization).unwrap();
    // Words of scratch follow from the operator.
    let (bytes, words) = ([0u8; 48], [0u32; 16]);
    let (mut out, mut s) = ([0u32; 16], [0u32; 999]);
    let (of_qb, of_qq, of_bb) = (qb.scratch_words(), qq.scratch_words(), bb.scratch_words());
    let (of_lanes, of_dw) = (lanes.scratch_words(), dw.scratch_words());
    let scratch = |operator: usize| length("scratch", operator, operator - 1);
    check(vec![
        ("qb reference", qb.reference(&bytes[1..], &mut out[..4]), length("input", 48, 47)),
        ("qb reference", qb.reference(&bytes, &mut out[..3]), length("output", 4, 3)),
        ("qb", qb.optimized(&bytes[1..], &mut out, &mut s[..of_qb]), length("input", 48, 47)),
        ("qb", qb.optimized(&bytes, &mut out[..4], &mut s[..of_qb - 1]), scratch(of_qb)),
        ("qb", qb.optimized(&bytes, &mut out[..3], &mut s[..of_qb]), length("output", 4, 3)),
        ("qq reference", qq.reference(&bytes[1..], &mut out[..4]), length("input", 48, 47)),
        ("qq", qq.optimized(&bytes[1..], &mut out, &mut s[..of_qq]), length("input", 48, 47)),
        ("qq", qq.optimized(&bytes, &mut out[..4], &mut s[..of_qq - 1]), scratch(of_qq)),
        ("bb reference", bb.reference(&words[1..], &mut out[..4]), length("input", 16, 15)),
        ("bb", bb.optimized(&words[1..], &mut out[..4], &mut s[..of_bb]), length("input", 16, 15)),
        ("bb", bb.optimized(&words, &mut out[..4], &mut s[..of_bb - 1]), scratch(18)),
        ("bb", bb.optimized(&words, &mut out[..3], &mut s[..of_bb]), length("output", 4, 3)),
        (
            "bb lanes",
            lanes.optimized(&words[1..], &mut out[..4], &mut s[..of_lanes]),
            length("input", 16, 15),
        ),
        ("bb lanes", lanes.optimized(&words, &mut out[..4], &mut s[..of_lanes - 1]), scratch(of_lanes)),
        ("bb lanes", lanes.optimized(&words, &mut out[..3], &mut s[..of_lanes]), length("output", 4, 3)),
        ("pw reference", pw.reference(&words[1..], &mut out[..1]), length("input", 16, 15)),
        ("pw", pw.optimized(&words[1..], &mut out[..1], &mut s[..1]), length("input", 16, 15)),
        ("pw", pw.optimized(&words, &mut out[..1], &mut []), scratch(1)),
        ("pw", pw.optimized(&words, &mut out[..2], &mut s[..1]), length("output", 1, 2)),
        ("dw reference", dw.reference(&words[1..], &mut out[..4]), length("input", 16, 15)),
        ("dw", dw.optimized(&words[1..], &mut out[..4], &mut s), length("input", 16, 15)),
        ("dw", dw.optimized(&words, &mut out[..4], &mut s[..of_dw - 1]), scratch(of_dw)),
        ("pool reference", pool.reference(&words[1..], &mut out[..9]), length("input", 16, 15)),
        ("pool", pool.optimized(&words, &mut out[..8], &mut []), length("output", 9, 8)),
        ("fc reference", fc.reference(&words[1..], &mut out[..1]), length("input", 16, 15)),
        ("fc", fc.optimized(&words, &mut out[..2], &mut []), length("output", 1, 2)),
        ("qfc reference", qfc.reference(&words[1..], &mut [0i8; 5]), length("input", 16, 15)),
        ("qfc", qfc.optimized(&words, &mut [0i32; 4], &mut []), length("output", 5, 4)),
        ("over the input", bb.optimized_over_input(&mut out, 0, &mut s), Value { argument: "gap" }),
    ]);
}

#[test]
fn what_an_operator_says_of_itself() {
    let conv = geometry(Window::of(3, 3));
    let pool = Pool::new(conv.output(), Window::of(2, 2), None, None).unwrap();
    let weights = [0; 45];
    for (pool, pixels) in [(None, 4), (Some(pool), 1)] {
        let packed = QbConv2d::new(conv, AFFINE, Weights::Packed(&weights), rules(), pool).unwrap();
        assert_eq!((packed.has_pool(), packed.output().pixels()), (pool.is_some(), pixels));
        let qq = QqConv2d::new(conv, AFFINE, &[0; 135], rules(), pool).unwrap();
        assert_eq!((qq.has_pool(), qq.output().pixels()), (pool.is_some(), pixels));
        let bb =
            BbConv2d::new(conv, Padding::One, bbconv2d::Weights::Packed(&weights), rules(), pool).unwrap();
        assert_eq!((bb.has_pool(), bb.output().pixels()), (pool.is_some(), pixels));
        let point = geometry(Window { strides: [3, 3], ..Window::of(1, 1) });
        let pw = BbPointwiseConv2d::new(point, &[0; 5], rules(), pool).unwrap();
        assert_eq!((pw.has_pool(), pw.output().pixels()), (pool.is_some(), pixels));
        let same = Conv2dGeometry::new(Shape::new(4, 4, 5).unwrap(), Window::of(3, 3), 5).unwrap();
        let dw = BbDepthwiseConv2d::new(same, Padding::One, &[0; 9], rules(), pool).unwrap();
        assert_eq!((dw.has_pool(), dw.output().pixels()), (pool.is_some(), pixels));
        assert_eq!(dw.macs(), 4 * 5 * 9);
    }
    assert_eq!(conv.macs(), 4 * 5 * 27);
}

/// Twice the sum of the bytes under +1 can leave `i32` where the accumulator does not: once an overflow of
/// the byte-mask kernel with debug assertions.
#[test]
#[cfg_attr(miri, ignore = "four million products")]
fn the_largest_accumulator_of_byte_masks() {
    let shape = Shape::new(65, 1, MAX_DIMENSION).unwrap();
    let geometry = Conv2dGeometry::new(shape, Window::of(65, 1), 1).unwrap();
    let products = geometry.products();
    assert!(2 * 255 * products > i32::MAX as usize && 255 * products <= i32::MAX as usize);
    let mut masks = vec![u32::MAX; byte_mask::filter_words(&geometry)];
    *masks.last_mut().unwrap() >>= 8 * (4 * masks.len() - products);
    let largest = 255 * products as i32;
    let (lo, hi) = ([largest], [largest]);
    let rules = Rules::new(Grid::Channel, 1, &lo, &hi, &[0]).unwrap();
    let affine = Affine { mul: 1, add: 0 };
    let operator = QbConv2d::new(geometry, affine, Weights::ByteMask(&masks), rules, None).unwrap();
    operator.check_contents().unwrap();
    let image = vec![255; products];
    let mut output = [0];
    operator.optimized(&image, &mut output, &mut vec![0; operator.scratch_words()]).unwrap();
    assert_eq!(output, [1]);
    operator.reference(&image, &mut output).unwrap();
    assert_eq!(output, [1]);
}
