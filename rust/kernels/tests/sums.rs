//! Weights as sums of pixels: shapes that the fast kernel is known to take, and what it does not take.

use cbin_nn_kernels::epilogue::{Grid, Pool, Rules};
use cbin_nn_kernels::layouts::pixel_sums::{SumShape, from_sums, to_sums};
use cbin_nn_kernels::operators::qbconv2d::{Affine, QbConv2d, Weights};
use cbin_nn_kernels::shape::{Conv2dGeometry, Shape, Window};
use cbin_nn_kernels::{ArgumentError, Kernel, Run};

const Q: Affine = Affine { mul: 1, add: 0 };
const CENTRED: Affine = Affine { mul: 2, add: -255 };

/// xorshift32.
struct Random(u32);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0
    }

    fn words(&mut self, count: usize, bits: usize) -> Vec<u32> {
        (0..count).map(|_| self.next() >> (32 - bits)).collect()
    }
}

/// Intervals of every kind: half-lines, two sides, constants, each with and without a flip.
struct OwnedRules(Vec<i32>, Vec<i32>, Vec<u32>, usize);

impl OwnedRules {
    fn random(random: &mut Random, channels: usize, spread: u32) -> Self {
        let value = |random: &mut Random| (random.next() % (2 * spread)) as i32 - spread as i32;
        let (mut lo, mut hi) = (vec![], vec![]);
        for _ in 0..channels {
            let (a, b) = (value(random), value(random));
            let (least, most) = match random.next() % 6 {
                0 | 1 => (a, i32::MAX),
                2 | 3 => (i32::MIN, b),
                4 => (a.min(b), a.max(b)),
                _ => [(1, 0), (i32::MIN, i32::MAX), (i32::MAX, i32::MAX)][random.next() as usize % 3],
            };
            lo.push(least);
            hi.push(most);
        }
        let flips = (0..channels.div_ceil(32)).map(|word| random.words(1, (channels - 32 * word).min(32))[0]);
        Self(lo, hi, flips.collect(), channels)
    }

    fn view(&self) -> Rules<'_> {
        Rules::new(Grid::Channel, self.3, &self.0, &self.1, &self.2).unwrap()
    }
}

struct Case {
    size: (usize, usize, usize),
    filters: usize,
    window: Window,
    affine: Affine,
    adds: &'static [i32],
    pool: Option<Window>,
    veto: bool,
    fits: bool,
}

impl Case {
    const fn new(size: (usize, usize, usize), filters: usize, kernel: [usize; 2], padding: usize) -> Self {
        let window = Window { kernel, strides: [1; 2], dilation: [1; 2], padding: [padding; 4] };
        Self { size, filters, window, affine: Q, adds: &[], pool: None, veto: false, fits: true }
    }

    /// Both kernels on both layouts, for some images: the reference of canonical weights is right.
    fn check(&self, seed: u32) {
        let mut random = Random(seed);
        let (height, width, channels) = self.size;
        let shape = Shape::new(height, width, channels).unwrap();
        let geometry = Conv2dGeometry::new(shape, self.window, self.filters).unwrap();
        if cfg!(miri) && geometry.output().elements() * geometry.products() > 5_000 {
            return; // Miri takes minutes, and the smaller cases go the same ways.
        }
        let packed = random.words(self.filters * self.window.taps(), channels);
        let sums = SumShape::new(self.window.kernel, channels).unwrap();
        let mut words = vec![0xA5A5_A5A5; self.filters * sums.filter_words()];
        to_sums(&sums, &packed, &mut words).unwrap();
        let mut back = vec![0xA5A5_A5A5; packed.len()];
        from_sums(&sums, &words, &mut back).unwrap();
        assert_eq!(back, packed);
        let spread = geometry.products().isqrt() as u32 * 400;
        let rules = OwnedRules::random(&mut random, self.filters, spread);
        let veto = OwnedRules::random(&mut random, self.filters, 3 * spread);
        let invert: Vec<u32> =
            (0..geometry.output().pixel_words()).map(|w| rules.2[w] & random.next()).collect();
        let build = |weights| {
            let pool = self.pool.map(|window| {
                let veto = self.veto.then(|| veto.view());
                Pool::new(geometry.output(), window, veto, Some(&invert)).unwrap()
            });
            let operator = QbConv2d::new(geometry, self.affine, weights, rules.view(), pool).unwrap();
            operator.with_channel_adds(self.adds).unwrap()
        };
        let (canonical, summed) = (build(Weights::Packed(&packed)), build(Weights::PixelSums(&words)));
        summed.check_contents().unwrap();
        assert_eq!((summed.fits_sums(), canonical.fits_sums()), (self.fits, self.fits));
        let mut scratch = vec![0xA5A5_A5A5; summed.scratch_words()];
        for image in 0..if cfg!(miri) { 1 } else { 3 } {
            // Bytes of any value, of the largest and least only, and the largest alone.
            let byte = |random: &mut Random| match image {
                0 => random.next() as u8,
                1 => 0u8.wrapping_sub((random.next() & 1) as u8),
                _ => 255,
            };
            let image: Vec<u8> = (0..shape.elements()).map(|_| byte(&mut random)).collect();
            let mut outputs = [(); 3].map(|()| vec![0xDEAD_BEEF; summed.output().words()]);
            canonical.reference(&image, &mut outputs[0]).unwrap();
            // It looks each weight up in its list, for which Miri takes minutes.
            if !cfg!(miri) {
                summed.reference(&image, &mut outputs[1]).unwrap();
                assert_eq!(outputs[1], outputs[0], "reference");
            }
            summed.optimized(&image, &mut outputs[2], &mut scratch).unwrap();
            assert_eq!(outputs[2], outputs[0], "optimized");
            self.check_over_image(&summed, &image, &outputs[0]);
        }
    }

    /// The output over the image, as near as it may come and farther away, gives the same bits.
    fn check_over_image(&self, operator: &QbConv2d<'_>, image: &[u8], expected: &[u32]) {
        let pooled_rows = self.pool.unwrap_or(Window::of(1, 1));
        let is_tiled = pooled_rows.kernel[0] == pooled_rows.strides[0]
            && pooled_rows.padding[0] == 0
            && pooled_rows.dilation[0] == 1;
        assert_eq!(operator.input_gap().is_some(), self.fits && is_tiled && !self.veto);
        let mut scratch = vec![0xA5A5_A5A5; operator.scratch_words()];
        let mut run = |gap: usize| {
            let words = (gap + image.len()).div_ceil(4).max(expected.len());
            let mut memory = vec![0xDEAD_BEEF_u32; words];
            let mut bytes: Vec<u8> = memory.iter().flat_map(|word| word.to_ne_bytes()).collect();
            bytes[gap..gap + image.len()].copy_from_slice(image);
            let words = bytes.as_chunks().0;
            memory.iter_mut().zip(words).for_each(|(word, bytes)| *word = u32::from_ne_bytes(*bytes));
            let done = operator.optimized_over_input(&mut memory, gap, &mut scratch);
            done.map(|()| memory[..expected.len()].to_vec())
        };
        match operator.input_gap() {
            Some(gap) => {
                let preferred = operator.preferred_input_gap().unwrap();
                assert!(gap <= preferred && preferred <= 4 * expected.len());
                for gap in [gap, preferred, gap + 4, 4 * expected.len()] {
                    assert_eq!(run(gap).unwrap(), expected, "gap {gap}");
                    if cfg!(miri) {
                        return;
                    }
                }
                // A row of the output is below every gap.
                assert!((0..gap).step_by(4).all(|gap| run(gap).is_err()));
                assert_eq!(run(0), Err(ArgumentError::Value { argument: "gap" }));
            }
            None => assert!(matches!(run(4 * expected.len()), Err(ArgumentError::Value { .. }))),
        }
    }
}

const HALVES: Window = Window { kernel: [2; 2], strides: [2; 2], dilation: [1; 2], padding: [0; 4] };

#[test]
fn shapes_that_fit() {
    let wide = Case::new((6, 19, 3), 33, [5, 5], 2);
    let cases = [
        Case::new((5, 1, 1), 1, [1, 1], 0),
        Case::new((4, 9, 1), 3, [2, 9], 3),
        Case::new((7, 8, 2), 32, [3, 2], 1),
        Case::new((5, 17, 4), 40, [3, 4], 2),
        Case { affine: CENTRED, ..Case::new((6, 19, 3), 65, [5, 5], 2) },
        // Lists of more offsets than are unrolled, and the largest sums there may be.
        Case { affine: Affine { mul: 1, add: -127 }, ..Case::new((12, 12, 1), 5, [12, 12], 6) },
        Case { pool: Some(HALVES), ..Case::new((8, 16, 3), 32, [5, 5], 2) },
        Case { pool: Some(HALVES), veto: true, affine: CENTRED, ..Case::new((8, 16, 3), 32, [5, 5], 2) },
        // The last segment of a pool is a part of one; the last column and row belong to no pixel.
        Case { pool: Some(HALVES), veto: true, ..Case::new((7, 21, 3), 34, [3, 3], 1) },
        Case {
            pool: Some(Window { padding: [0, 0, 1, 1], ..HALVES }),
            ..Case::new((7, 21, 3), 8, [3, 3], 1)
        },
        Case {
            pool: Some(Window { padding: [1, 1, 0, 0], ..HALVES }),
            ..Case::new((8, 10, 3), 8, [3, 3], 1)
        },
        Case { pool: Some(Window { strides: [1, 2], ..HALVES }), ..Case::new((6, 10, 3), 9, [3, 3], 1) },
        Case {
            pool: Some(Window { kernel: [3, 3], strides: [2, 2], dilation: [1, 1], padding: [1; 4] }),
            veto: true,
            ..Case::new((9, 13, 3), 12, [3, 3], 0)
        },
        // Rows of the convolution that no pixel of the pool has.
        Case {
            pool: Some(Window { kernel: [1, 2], strides: [3, 2], ..HALVES }),
            ..Case::new((10, 13, 3), 12, [3, 3], 0)
        },
        Case { window: Window { strides: [2, 1], ..wide.window }, ..wide },
        Case { window: Window { dilation: [2, 1], padding: [4, 0, 3, 2], ..wide.window }, ..wide },
        Case { window: Window { strides: [3, 1], dilation: [2, 1], padding: [4; 4], ..wide.window }, ..wide },
        Case { window: Window { strides: [4, 1], dilation: [2, 1], padding: [4; 4], ..wide.window }, ..wide },
        Case {
            adds: &[3, -100, 90],
            affine: Affine { mul: 1, add: 0 },
            ..Case::new((5, 10, 3), 7, [5, 5], 2)
        },
    ];
    for (seed, case) in (1..).zip(cases) {
        case.check(seed);
    }
}

#[test]
fn what_does_not_fit_is_computed_product_by_product() {
    let wide = Case { fits: false, ..Case::new((6, 10, 3), 5, [5, 5], 2) };
    let cases = [
        Case { window: Window { strides: [1, 2], ..wide.window }, ..wide },
        Case { window: Window { dilation: [1, 2], ..wide.window }, ..wide },
        Case { affine: Affine { mul: 2, add: 0 }, ..wide },
        Case { adds: &[0, 0, 300], ..wide },
        // 129 x 255 is beyond 16 bits, 128 x 255 is not.
        Case { fits: false, ..Case::new((1, 130, 1), 1, [1, 129], 0) },
        Case::new((1, 130, 1), 1, [1, 128], 0),
    ];
    for (seed, case) in (1..).zip(cases) {
        case.check(seed);
    }
}

/// Every word of the filters changed in every bit: refused, and run without a panic all the same.
#[test]
fn damaged_weights() {
    let shape = Shape::new(4, 5, 3).unwrap();
    let geometry = Conv2dGeometry::new(shape, Window::of(2, 3), 2).unwrap();
    let sums = SumShape::new([2, 3], 3).unwrap();
    let mut random = Random(7);
    let packed = random.words(12, 3);
    let mut words = vec![0; 2 * sums.filter_words()];
    to_sums(&sums, &packed, &mut words).unwrap();
    let rules = OwnedRules(vec![0; 2], vec![i32::MAX; 2], vec![0], 2);
    let image: Vec<u8> = (0..shape.elements()).map(|_| random.next() as u8).collect();
    for bit in (0..32 * words.len()).step_by(if cfg!(miri) { 29 } else { 1 }) {
        let mut damaged = words.clone();
        damaged[bit / 32] ^= 1 << (bit % 32);
        let operator = QbConv2d::new(geometry, Q, Weights::PixelSums(&damaged), rules.view(), None).unwrap();
        let mut outputs = [(); 2].map(|()| vec![0; operator.output().words()]);
        operator.reference(&image, &mut outputs[0]).unwrap();
        let mut scratch = vec![0; operator.scratch_words()];
        operator.optimized(&image, &mut outputs[1], &mut scratch).unwrap();
        let error = ArgumentError::Value { argument: "weights" };
        assert_eq!(operator.check_contents(), Err(error), "bit {bit}");
    }
}

#[test]
fn layouts_that_there_are_not() {
    for (kernel, channels) in
        [([3, 3], 0), ([3, 3], 5), ([0, 3], 1), ([64, 64], 4), ([usize::MAX, 2], 1), ([83, 3], 1)]
    {
        assert_eq!(SumShape::new(kernel, channels), None, "{kernel:?} {channels}");
    }
    assert_eq!(SumShape::new([5, 5], 3).unwrap().filter_words(), 14);
    let shape = SumShape::new([1, 2], 1).unwrap();
    let mut words = [0; 3];
    assert_eq!(to_sums(&shape, &[1, 0], &mut words), Ok(()));
    // One offset in each list, each the high half of its word: the table is four words of 0 and one row of words.
    assert_eq!(words, [0x0001_0100, 16 << 16, 20 << 16]);
    // Columns of like taps go in twos: here all but one of five taps, in the two words before the last.
    let shape = SumShape::new([5, 1], 1).unwrap();
    let mut words = [0; 4];
    assert_eq!(to_sums(&shape, &[0, 0, 1, 1, 0], &mut words), Ok(()));
    let row = |row: u32, pattern: u32| 16 + 32 * row + 16 * pattern;
    // The most that a filter can leave.
    let longest = SumShape::new([124, 2], 1).unwrap();
    let mut sums = [0; 126];
    assert_eq!(to_sums(&longest, &[1; 248], &mut sums), Ok(()));
    assert_eq!((sums[0], sums[63], sums[64] != 0), (124 << 16 | 252, 0, true));
    let mut back = [0; 248];
    assert_eq!(from_sums(&longest, &sums, &mut back), Ok(()));
    assert_eq!(back, [1; 248]);
    assert_eq!(words, [0x0001_0204, 0, row(3, 1) << 16, row(4, 0) << 16 | row(1, 1)]);
    assert!(to_sums(&shape, &[1, 0, 1], &mut words).is_err());
    assert!(to_sums(&shape, &[1, 0], &mut words[1..]).is_err());
    assert!(from_sums(&shape, &words, &mut [0; 3]).is_err());
    assert!(from_sums(&shape, &words[1..], &mut [0; 2]).is_err());
}
