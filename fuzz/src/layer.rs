//! What the convolutions' targets share: geometry, rules, pool, and the comparison of the two kernels.

use cbin_nn_kernels::ArgumentError;
use cbin_nn_kernels::bits::{check_padding_bits, words_for};
use cbin_nn_kernels::epilogue::{Grid, Pool, Rules};
use cbin_nn_kernels::shape::{Conv2dGeometry, Padding, Shape, Window};

use crate::draw::Draw;

/// Most products, bits or pool taps of one case: libFuzzer wants thousands of cases a second.
const CHEAP: u128 = 100_000;

/// Rules that own their arrays.
pub(crate) struct OwnedRules {
    grid: Grid,
    channels: usize,
    lo: Vec<i32>,
    hi: Vec<i32>,
    flip: Vec<u32>,
}

impl OwnedRules {
    /// Rules on the planes of a layer: mostly ones that fit.
    pub(crate) fn draw(draw: &mut Draw<'_>, conv: &Shape, output: &Shape) -> Self {
        let (grid, pixels) = match draw.below(4) {
            0 => (Grid::Conv, conv.pixels()),
            1 => (Grid::Output, output.pixels()),
            _ => (Grid::Channel, 1),
        };
        let mut channels = conv.channels();
        if draw.rarely(16) {
            draw.odd = true;
            // The product of pixels and channels can stay the same where the channels are wrong.
            channels = [channels * 2, channels + 1, channels - 1, 1, pixels * channels][draw.below(5)];
        }
        let values = pixels * conv.channels();
        let pixels = values / channels.max(1);
        let (lo, hi) = (draw.length(values), draw.length(values));
        let flip = draw.length(pixels * words_for(channels));
        Self {
            grid,
            channels,
            lo: (0..lo).map(|_| draw.threshold()).collect(),
            hi: (0..hi).map(|_| draw.threshold()).collect(),
            flip: draw.parameter(flip, channels),
        }
    }

    pub(crate) fn view(&self) -> Result<Rules<'_>, ArgumentError> {
        Rules::new(self.grid, self.channels, &self.lo, &self.hi, &self.flip)
    }
}

/// The pool of a layer, with the plane that it believes to be on.
struct OwnedPool {
    conv: Shape,
    window: Window,
    veto: Option<OwnedRules>,
    invert: Option<Vec<u32>>,
}

/// Geometry, rules and pool of a convolution that is cheap to run.
pub(crate) struct Layer {
    pub(crate) geometry: Conv2dGeometry,
    rules: OwnedRules,
    pool: Option<OwnedPool>,
}

impl Layer {
    /// A layer with `filters` output channels (as many as the input has: 0), or none where its shapes do not
    /// fit.
    pub(crate) fn draw(draw: &mut Draw<'_>, depthwise: bool, window: Window) -> Option<Self> {
        let shape = draw.shape().ok()?;
        // A depthwise layer whose channels differ is one for the constructor to refuse.
        let differs = depthwise && draw.rarely(16);
        draw.odd |= differs;
        let filters = if depthwise && !differs { shape.channels() } else { draw.channels() };
        let geometry = Conv2dGeometry::new(shape, window, filters).ok()?;
        let conv = *geometry.output();
        let mut output = conv;
        let mut pool = None;
        if draw.below(2) == 1 {
            let window = draw.window(3);
            let mut on = conv;
            if draw.rarely(16) {
                draw.odd = true;
                on = draw.shape().ok()?;
            }
            let sliding = *Pool::new(&on, window, None, None).ok()?.sliding();
            output = Shape::new(sliding.output_height(), sliding.output_width(), conv.channels()).ok()?;
            pool = Some((on, window));
        }
        let pool_taps = pool.map_or(1, |(_, window)| window.taps());
        let work = output.elements() as u128 * pool_taps as u128 * window.taps() as u128;
        let products = if depthwise { 1 } else { shape.channels() as u128 };
        if work * products > CHEAP || shape.elements().max(conv.elements()) as u128 > CHEAP {
            return None;
        }
        let rules = OwnedRules::draw(draw, &conv, &output);
        let pool = pool.map(|(on, window)| {
            let veto = (draw.below(2) == 1).then(|| OwnedRules::draw(draw, &conv, &output));
            let invert = (draw.below(2) == 1).then(|| {
                let length = draw.length(on.pixel_words());
                draw.parameter(length, on.channels())
            });
            OwnedPool { conv: on, window, veto, invert }
        });
        Some(Self { geometry, rules, pool })
    }

    /// Rules and pool as a kernel takes them.
    pub(crate) fn views(&self) -> Result<(Rules<'_>, Option<Pool<'_>>), ArgumentError> {
        let pool = match &self.pool {
            None => None,
            Some(pool) => {
                let veto = pool.veto.as_ref().map(OwnedRules::view).transpose()?;
                Some(Pool::new(&pool.conv, pool.window, veto, pool.invert.as_deref())?)
            }
        };
        Ok((self.rules.view()?, pool))
    }
}

/// Either padding.
pub(crate) fn padding(draw: &mut Draw<'_>) -> Padding {
    if draw.below(2) == 1 { Padding::One } else { Padding::Zero }
}

/// Words on which nothing may depend, in a length that is mostly right.
pub(crate) fn dirty(draw: &mut Draw<'_>, right: usize) -> Vec<u32> {
    vec![0xA5A5_A5A5; draw.length(right)]
}

/// Runs both kernels on dirty outputs and compares.
///
/// `fits` says whether the slices that each kernel gets, its output aside, have the right lengths; `clean`
/// whether the parameters passed `check_contents`.
pub(crate) fn agree(
    draw: &mut Draw<'_>,
    clean: bool,
    output: &Shape,
    (reference_fits, reference): (bool, impl FnOnce(&mut [u32]) -> Result<(), ArgumentError>),
    (optimized_fits, optimized): (bool, impl FnOnce(&mut [u32]) -> Result<(), ArgumentError>),
) {
    let mut expected = dirty(draw, output.words());
    let mut got = expected.clone();
    let fits = expected.len() == output.words();
    assert_eq!(reference(&mut expected).is_ok(), fits && reference_fits, "reference");
    assert_eq!(optimized(&mut got).is_ok(), fits && optimized_fits, "optimized");
    if clean && fits && reference_fits && optimized_fits {
        assert_eq!(expected, got);
        check_padding_bits("output", &got, output.channels()).expect("padding bits are 0");
    }
}
