/*!
Layers in the layout of the host: sixteen output channels in the lanes of a vector.

A `.cbn` file lays weights out for a core that takes one filter at a time. A host with vector instructions is
several times faster with sixteen of them side by side, so it rewrites a layer when it loads a model, in memory
alone: [`BlockPlan::new`] says how much that takes, [`BlockPlan::write`] fills it, and [`BlockLayer`] runs it. The
outputs are those of the operator that it was made from, bit for bit.

# What is written

| lines | what |
|---|---|
| `[blocks][words of a filter]` | weights: lane i of block b is output channel 16 b + i |
| `[border classes][blocks]` | what an accumulator is corrected by, see below, where it is not folded into the rules |
| `[rule pixels][blocks]`, twice | `lo` and `hi` of the rules, then those of the veto |

and as plain words: where in a window a filter's words are, the border class of each row and column, and the
flips and inversions, as the model has them. Lanes without a channel have weights of 0 and the empty interval, so
that their bits are 0.

# Borders

The input is copied to a plane with its padding, so that all windows are alike; without padding it is used where
it lies. What the padding adds to an accumulator depends on which taps are outside, the *border class*, and on
the channel, and is known in advance. Counting bits, a tap outside (words of 0, C channels) adds the set bits of
its weights, of which each counts -2; with s the sum of its weights (+1 and -1), those are `(C + s) / 2`, and

```text
acc = C * taps inside - 2 * (differing - sum over taps outside of (C + s) / 2)
    = C * taps + sum over taps outside of s - 2 * differing
```

For bytes, where q means `mul * q + add`, padding of 0 adds nothing to the products, and
`acc = mul * products + sum over taps inside of add * w`.

# Folding

Rules of one channel each, which nearly all layers have, are solved for the sum of products, once for each border
class: what is left of correction, factor and rule is `lo <= sum <= hi`, with lines for each class (`Fold`).
Where besides every channel's rule is one-sided and there is no veto, channels whose bit is 1 for small sums get
their weights negated, and one comparison is left: `sum >= lo`.
*/

use crate::ArgumentError;
use crate::arch;
use crate::arch::generic::blocks::{BlockRules, Convolution, ProductKind};
use crate::arch::simd::Simd;
pub use crate::arch::{LANES, Line};
use crate::bits::{bit, lane_mask};
use crate::epilogue::{Epilogue, Grid, Output, Rules};
use crate::error::check_length;
use crate::methods::conv::ConvLayer;
use crate::methods::dense::Dense;
use crate::operators::bbconv2d::BbConv2d;
use crate::operators::bbdepthwiseconv2d::BbDepthwiseConv2d;
use crate::operators::bbfc::BbFc;
use crate::operators::bbpointwiseconv2d::BbPointwiseConv2d;
use crate::operators::bbqfc::BbqFc;
use crate::operators::qbconv2d::QbConv2d;
use crate::operators::qqconv2d::QqConv2d;
use crate::shape::{Padding, Shape, Sliding};
use core::ops::Range;

/// Most lines that a layer may take: 64 MiB. What needs more is left to the portable kernels.
const MAX_LINES: usize = 1 << 20;
/// Most bytes of a padded plane.
const MAX_PLANE: usize = 1 << 26;
/// Most steps that the corrections of a layer may take.
const MAX_STEPS: u64 = 1 << 26;

/// An operator that there is a [`BlockPlan`] for.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Layer<'o, 'a> {
    /// 8-bit input, 1-bit weights.
    QbConv2d(&'o QbConv2d<'a>),
    /// 8-bit input, 8-bit weights.
    QqConv2d(&'o QqConv2d<'a>),
    /// Packed input, 1-bit weights.
    BbConv2d(&'o BbConv2d<'a>),
    /// Packed input, 1-bit weights, 1 x 1 kernel.
    BbPointwiseConv2d(&'o BbPointwiseConv2d<'a>),
    /// Packed input, 1-bit weights, one filter a channel.
    BbDepthwiseConv2d(&'o BbDepthwiseConv2d<'a>),
    /// Fully connected to packed bits.
    BbFc(&'o BbFc<'a>),
    /// Fully connected to integers: its accumulators.
    BbqFc(&'o BbqFc<'a>),
}

impl<'o, 'a> Layer<'o, 'a> {
    /// The convolution's shapes, rules and pool, where the layer is one.
    fn conv(&self) -> Result<&'o ConvLayer<'a>, &'o Dense<'a>> {
        match *self {
            Self::QbConv2d(operator) => Ok(operator.layer()),
            Self::QqConv2d(operator) => Ok(operator.layer()),
            Self::BbConv2d(operator) => Ok(operator.layer()),
            Self::BbPointwiseConv2d(operator) => Ok(operator.layer()),
            Self::BbDepthwiseConv2d(operator) => Ok(operator.layer()),
            Self::BbFc(operator) => Err(operator.dense()),
            Self::BbqFc(operator) => Err(operator.dense()),
        }
    }

    fn rules(&self) -> Option<&'o Rules<'a>> {
        match *self {
            Self::BbFc(operator) => Some(operator.rules()),
            _ => self.conv().ok().map(|layer| &layer.rules),
        }
    }

    fn veto(&self) -> Option<&'o Rules<'a>> {
        self.conv().ok()?.epilogue().veto()
    }

    /// Word `at` of a packed filter.
    fn filter_word(&self, filter: usize, at: usize) -> u32 {
        match self {
            Self::BbConv2d(operator) => operator.filter_word(filter, at),
            Self::BbPointwiseConv2d(operator) => operator.filter_word(filter, at),
            Self::BbFc(operator) => operator.dense().filter(filter)[at],
            Self::BbqFc(operator) => operator.dense().filter(filter)[at],
            // A tap is a word with one bit, the channel's.
            Self::BbDepthwiseConv2d(operator) => u32::from(bit(operator.tap(at), filter)),
            Self::QbConv2d(_) | Self::QqConv2d(_) => 0,
        }
    }

    /// Offset of an input byte: it means `mul * q + add`. There is no plan for an offset a channel.
    fn add(&self) -> i32 {
        match self {
            Self::QbConv2d(operator) => operator.add(),
            Self::QqConv2d(operator) => operator.add(),
            _ => 0,
        }
    }

    /// A weight of a layer on bytes.
    fn byte(&self, filter: usize, tap: usize, channel: usize) -> i8 {
        match self {
            Self::QbConv2d(operator) => {
                if operator.weight_is_plus(filter, tap, channel) {
                    1
                } else {
                    -1
                }
            }
            // There is no plan for 16-bit weights.
            Self::QqConv2d(operator) => operator.weight(filter, tap, channel) as i8,
            _ => 0,
        }
    }
}

/// How far correction and rules have been worked into limits of the sum of products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fold {
    /// Not at all: rules differ from pixel to pixel, or there are none.
    None,
    /// To an interval of sums for each border class and channel.
    Intervals,
    /// To a lower limit, with some filters negated.
    Limits,
}

/// A channel as it is written: whether its weights are negated, and the interval of its accumulator, then.
struct Written {
    negated: bool,
    lo: i64,
    hi: i64,
}

/// Beyond every accumulator.
const FAR: i64 = 1 << 40;

/// How a layer looks in lanes: sizes and positions, without the data.
#[derive(Debug, Clone, Copy)]
pub struct BlockPlan {
    product: ProductKind,
    factor: i32,
    input: Shape,
    /// Of a convolution; a fully connected layer is one window.
    sliding: Option<Sliding>,
    one_padding: bool,
    /// Whether an accumulator depends on which taps are outside.
    corrected: bool,
    /// Height and width of the convolution's plane.
    conv: [usize; 2],
    output: Shape,
    pool: Option<Sliding>,
    rules: Option<Grid>,
    veto: Option<Grid>,
    /// Words of a filter: 32 channels, or 4 bytes.
    taps: usize,
    /// Border classes of rows and of columns.
    classes: [usize; 2],
    fold: Fold,
}

/// Where the parts lie.
struct Sections {
    weights: Range<usize>,
    corrections: Range<usize>,
    lo: Range<usize>,
    hi: Range<usize>,
    veto_lo: Range<usize>,
    veto_hi: Range<usize>,
    lines: usize,
    offsets: Range<usize>,
    row_classes: Range<usize>,
    column_classes: Range<usize>,
    flip: Range<usize>,
    veto_flip: Range<usize>,
    invert: Range<usize>,
    words: usize,
}

impl BlockPlan {
    /// The plan of a layer, or `None` where it would take more memory than it is worth: a border class for
    /// each pixel of a large plane, or padding many times the image. A first layer with 16-bit weights or an offset
    /// a channel has none either.
    pub fn new(layer: Layer<'_, '_>) -> Option<Self> {
        let plain = match layer {
            Layer::QbConv2d(operator) => operator.channel_adds().is_empty(),
            Layer::QqConv2d(operator) => operator.channel_adds().is_empty() && !operator.is_wide(),
            _ => true,
        };
        if !plain {
            return None;
        }
        let (product, factor) = match layer {
            Layer::QbConv2d(operator) => (ProductKind::Signs, operator.mul()),
            Layer::QqConv2d(operator) => (ProductKind::Bytes, operator.mul()),
            Layer::BbDepthwiseConv2d(_) => (ProductKind::Depthwise, -2),
            _ => (ProductKind::Differing, -2),
        };
        let one_padding = match layer {
            Layer::BbConv2d(operator) => operator.padding() == Padding::One,
            Layer::BbDepthwiseConv2d(operator) => operator.padding() == Padding::One,
            _ => false,
        };
        let corrected = match layer {
            Layer::QbConv2d(_) | Layer::QqConv2d(_) => layer.add() != 0,
            Layer::BbFc(_) | Layer::BbqFc(_) => false,
            _ => !one_padding,
        };
        let mut plan = match layer.conv() {
            Err(dense) => Self {
                product,
                factor,
                input: *dense.input(),
                sliding: None,
                one_padding,
                corrected,
                conv: [1, 1],
                output: *dense.output(),
                pool: None,
                rules: layer.rules().map(Rules::grid),
                veto: None,
                taps: dense.input().words(),
                classes: [1, 1],
                fold: Fold::None,
            },
            Ok(conv) => {
                let sliding = *conv.geometry.sliding();
                Self {
                    product,
                    factor,
                    input: *conv.geometry.input(),
                    sliding: Some(sliding),
                    one_padding,
                    corrected,
                    conv: [sliding.output_height(), sliding.output_width()],
                    output: *conv.output(),
                    pool: conv.pool.as_ref().map(|pool| *pool.sliding()),
                    rules: Some(conv.rules.grid()),
                    veto: layer.veto().map(Rules::grid),
                    taps: 0,
                    classes: [1, 1],
                    fold: Fold::None,
                }
            }
        };
        if let Some(sliding) = &plan.sliding {
            if corrected {
                for axis in 0..2 {
                    plan.classes[axis] = class_of_each(sliding, axis, plan.conv[axis]).last()?.0 + 1;
                }
            }
            plan.taps = match product {
                ProductKind::Depthwise => sliding.window().taps(),
                _ => plan.runs().count() * plan.run_words(),
            };
        }
        if plan.rules == Some(Grid::Channel) && plan.veto.is_none_or(|grid| grid == Grid::Channel) {
            let one_sided = |channel| plan.one_sided(layer, channel).is_some();
            let limits = plan.veto.is_none() && (0..plan.output.channels()).all(one_sided);
            plan.fold = if limits { Fold::Limits } else { Fold::Intervals };
        }
        let taps = plan.sliding.map_or(1, |sliding| sliding.window().taps());
        let steps = (plan.classes[0] * plan.classes[1]) as u64 * (taps * plan.output.channels()) as u64;
        let sections = plan.sections()?;
        let fits = sections.lines <= MAX_LINES && steps <= MAX_STEPS && plan.plane_bytes() <= MAX_PLANE;
        fits.then_some(plan)
    }

    /// Channels that a filter sees.
    fn depth(&self) -> usize {
        if self.product == ProductKind::Depthwise { 1 } else { self.input.channels() }
    }

    /// Words of a tap in a filter.
    fn tap_words(&self) -> usize {
        if self.product == ProductKind::Depthwise { 1 } else { self.input.pixel_words() }
    }

    /// Whether bits are counted, by words or by channels.
    fn counts_bits(&self) -> bool {
        matches!(self.product, ProductKind::Differing | ProductKind::Depthwise)
    }

    /// Taps of a window.
    fn window_taps(&self) -> usize {
        self.sliding.map_or(self.input.pixels(), |sliding| sliding.window().taps())
    }

    /// A bound of the accumulators' size.
    fn bound(&self, layer: Layer<'_, '_>) -> i64 {
        let products = (self.window_taps() * self.depth()) as i64;
        let largest = 255 * i64::from(self.factor) + i64::from(layer.add()).abs();
        match self.product {
            ProductKind::Signs => products * largest,
            ProductKind::Bytes => products * 128 * largest,
            ProductKind::Differing | ProductKind::Depthwise => products,
        }
    }

    /// The channel written so that its bit is 1 exactly for sums from some limit on, where that is possible.
    fn one_sided(&self, layer: Layer<'_, '_>, channel: usize) -> Option<Written> {
        let rule = layer.rules()?.get(0, channel);
        let (lo, hi, bound) = (i64::from(rule.lo), i64::from(rule.hi), self.bound(layer));
        // The bit is 1 where `sign * acc >= limit`.
        let (sign, limit) = match (lo > hi, lo <= -bound, hi >= bound, rule.flip) {
            (true, _, _, flip) => (1, if flip { -FAR } else { FAR }),
            (_, true, true, flip) => (1, if flip { FAR } else { -FAR }),
            (_, false, true, false) => (1, lo),
            (_, false, true, true) => (-1, 1 - lo),
            (_, true, false, false) => (-1, -hi),
            (_, true, false, true) => (1, hi + 1),
            (_, false, false, _) => return None,
        };
        // Differing bits count down.
        let written = match self.counts_bits() {
            true => Written { negated: sign == 1, lo: -FAR, hi: -limit },
            false => Written { negated: sign == -1, lo: limit, hi: FAR },
        };
        // -128 has no negative in 8 bits.
        let weights =
            || (0..self.window_taps()).flat_map(|tap| (0..self.input.channels()).map(move |c| (tap, c)));
        let fits = self.product != ProductKind::Bytes
            || !written.negated
            || weights().all(|(tap, c)| layer.byte(channel, tap, c) != i8::MIN);
        fits.then_some(written)
    }

    /// A channel as it is written.
    fn written(&self, layer: Layer<'_, '_>, channel: usize) -> Written {
        let plain = || match layer.rules() {
            Some(rules) if self.fold == Fold::Intervals => {
                let rule = rules.get(0, channel);
                Written { negated: false, lo: rule.lo.into(), hi: rule.hi.into() }
            }
            _ => Written { negated: false, lo: FAR, hi: -FAR },
        };
        match self.fold {
            Fold::Limits => self.one_sided(layer, channel).unwrap_or_else(plain),
            _ => plain(),
        }
    }

    /// The interval of sums for an interval of accumulators.
    fn sums(&self, correction: u32, lo: i64, hi: i64) -> (i32, i32) {
        let (correction, factor) = (i64::from(correction as i32), i64::from(self.factor.abs()));
        // `acc = correction + factor * sum`, and the factor is negative where bits are counted.
        let (lo, hi) = match self.factor < 0 {
            true => (correction - hi, correction - lo),
            false => (lo - correction, hi - correction),
        };
        let within = |sum: i64| sum.clamp(i32::MIN.into(), i32::MAX.into()) as i32;
        (within(-(-lo).div_euclid(factor)), within(hi.div_euclid(factor)))
    }

    fn blocks(&self) -> usize {
        self.output.channels().div_ceil(LANES)
    }

    fn pixel_bytes(&self) -> usize {
        match self.product {
            ProductKind::Differing | ProductKind::Depthwise => 4 * self.input.pixel_words(),
            ProductKind::Signs | ProductKind::Bytes => self.input.channels(),
        }
    }

    /// Height and width of the padded plane, in pixels.
    fn padded(&self) -> [usize; 2] {
        let [top, left, bottom, right] = self.padding();
        [self.input.height() + top + bottom, self.input.width() + left + right]
    }

    fn padding(&self) -> [usize; 4] {
        self.sliding.map_or([0; 4], |sliding| sliding.window().padding)
    }

    /// Bytes of the padded plane; 0 where the input is used where it lies.
    pub fn plane_bytes(&self) -> usize {
        let [height, width] = self.padded();
        let bytes = height.saturating_mul(width).saturating_mul(self.pixel_bytes());
        match self.product {
            ProductKind::Differing | ProductKind::Depthwise if self.padding() == [0; 4] => 0,
            ProductKind::Differing | ProductKind::Depthwise => bytes,
            // The last word of a run may begin with its last byte.
            ProductKind::Signs | ProductKind::Bytes => bytes.saturating_add(3),
        }
    }

    /// Whether the layer ends in rules, and so in bits, or in accumulators.
    pub fn has_rules(&self) -> bool {
        self.rules.is_some()
    }

    /// Bytes of the input.
    pub fn input_bytes(&self) -> usize {
        self.input.pixels() * self.pixel_bytes()
    }

    /// Words of the packed output, or lines of the accumulators of a layer without rules.
    pub fn output_len(&self) -> usize {
        if self.rules.is_some() { self.output.words() } else { self.blocks() }
    }

    /// Lines that [`write`](Self::write) fills.
    pub fn lines(&self) -> usize {
        self.sections().map_or(0, |sections| sections.lines)
    }

    /// Words that [`write`](Self::write) fills.
    pub fn words(&self) -> usize {
        self.sections().map_or(0, |sections| sections.words)
    }

    /// Adjacent bytes of a window that lie adjacent in the plane, too: a row of it, or a tap where the window
    /// is dilated.
    fn run_bytes(&self) -> usize {
        match &self.sliding {
            Some(sliding) if sliding.window().dilation[1] == 1 => {
                sliding.window().kernel[1] * self.pixel_bytes()
            }
            _ => self.pixel_bytes(),
        }
    }

    fn run_words(&self) -> usize {
        self.run_bytes().div_ceil(4)
    }

    /// The runs of a window: first tap, and first byte in the plane. Each tap alone where a layer is depthwise.
    fn runs(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (pixel, width) = (self.pixel_bytes(), self.padded()[1]);
        let pixels = if self.sliding.is_none() { self.input.pixels() } else { 0 };
        let dense = (0..pixels).map(move |tap| (tap, tap * pixel));
        let window = self.sliding.map(|sliding| *sliding.window());
        let kernel = window.map_or([0; 2], |window| window.kernel);
        let [dilation_y, dilation_x] = window.map_or([1; 2], |window| window.dilation);
        let alone = dilation_x != 1 || self.product == ProductKind::Depthwise;
        let columns = if alone { kernel[1] } else { 1 };
        let conv = (0..kernel[0]).flat_map(move |tap_y| {
            (0..columns).map(move |tap_x| {
                let at = tap_y * dilation_y * width + tap_x * dilation_x;
                (tap_y * kernel[1] + tap_x, at * pixel)
            })
        });
        dense.chain(conv)
    }

    fn rule_pixels(&self, grid: Option<Grid>) -> usize {
        match grid {
            None => 0,
            Some(Grid::Channel) => 1,
            Some(Grid::Conv) => self.conv[0] * self.conv[1],
            Some(Grid::Output) => self.output.pixels(),
        }
    }

    /// `None` where a size is beyond all use.
    fn sections(&self) -> Option<Sections> {
        let (blocks, words) = (self.blocks(), self.output.pixel_words());
        let (rules, veto) = (self.rule_pixels(self.rules), self.rule_pixels(self.veto));
        let (mut lines, mut plain) = (0, 0);
        let mut line = |count: Option<usize>| {
            let start = lines;
            lines = start + count.filter(|&count| count <= MAX_LINES)?;
            Some(start..lines)
        };
        let weights = line(blocks.checked_mul(self.taps))?;
        let classes = self.classes[0] * self.classes[1];
        let (unfolded, rule_lines, veto_lines, flips) = match self.fold {
            Fold::None => (classes, [rules; 2], veto, rules),
            Fold::Intervals => (0, [classes; 2], if veto == 0 { 0 } else { classes }, rules),
            Fold::Limits => (0, [classes, 0], 0, 0),
        };
        let corrections = line(unfolded.checked_mul(blocks))?;
        let lo = line(rule_lines[0].checked_mul(blocks))?;
        let hi = line(rule_lines[1].checked_mul(blocks))?;
        let (veto_lo, veto_hi) =
            (line(veto_lines.checked_mul(blocks))?, line(veto_lines.checked_mul(blocks))?);
        let mut word = |count: usize| {
            let start = plain;
            plain = start + count;
            start..plain
        };
        Some(Sections {
            weights,
            corrections,
            lo,
            hi,
            veto_lo,
            veto_hi,
            offsets: word(self.taps),
            row_classes: word(self.conv[0]),
            column_classes: word(self.conv[1]),
            flip: word(flips * words),
            veto_flip: word(veto * words),
            invert: word(if self.pool.is_some() { words } else { 0 }),
            lines,
            words: plain,
        })
    }

    /// Rewrites `layer`, which the plan was made from, into `lines` and `words`.
    ///
    /// # Errors
    /// [`ArgumentError::Length`] naming the slice.
    pub fn write(
        &self,
        layer: Layer<'_, '_>,
        lines: &mut [Line],
        words: &mut [u32],
    ) -> Result<(), ArgumentError> {
        let sections =
            self.sections().ok_or(ArgumentError::TooLarge { argument: "lines", limit: MAX_LINES })?;
        check_length("lines", sections.lines, lines.len())?;
        check_length("words", sections.words, words.len())?;
        lines.fill(Line::ZERO);
        words.fill(0);
        self.write_weights(layer, &mut lines[sections.weights.clone()], &mut words[sections.offsets.clone()]);
        if let Some(sliding) = self.sliding.as_ref().filter(|_| self.classes != [1, 1]) {
            for (axis, section, factor) in
                [(0, sections.row_classes.clone(), self.classes[1]), (1, sections.column_classes.clone(), 1)]
            {
                let classes = class_of_each(sliding, axis, self.conv[axis]);
                for (word, (class, _)) in words[section].iter_mut().zip(classes) {
                    *word = (class * factor) as u32;
                }
            }
        }
        match self.fold {
            Fold::None => {
                self.write_corrections(layer, &mut lines[sections.corrections]);
                let empty = (i32::MAX, i32::MIN);
                if let Some(rules) = layer.rules() {
                    self.write_rules(rules, &mut lines[sections.lo], |interval| interval.unwrap_or(empty).0);
                    self.write_rules(rules, &mut lines[sections.hi], |interval| interval.unwrap_or(empty).1);
                }
                if let Some(veto) = layer.veto() {
                    self.write_rules(veto, &mut lines[sections.veto_lo], |interval| {
                        interval.unwrap_or(empty).0
                    });
                    self.write_rules(veto, &mut lines[sections.veto_hi], |interval| {
                        interval.unwrap_or(empty).1
                    });
                }
            }
            Fold::Intervals | Fold::Limits => self.write_folded(layer, lines, &sections),
        }
        for (rules, section) in [(layer.rules(), sections.flip), (layer.veto(), sections.veto_flip)] {
            if let Some(rules) = rules.filter(|_| !section.is_empty()) {
                write_flips(rules, &mut words[section]);
            }
        }
        if let Some(pool) = layer.conv().ok().and_then(|layer| layer.pool.as_ref()) {
            for (word, invert) in words[sections.invert].iter_mut().enumerate() {
                *invert = pool.invert(word);
            }
        }
        Ok(())
    }

    /// Word `at` of a packed filter, as it is written.
    fn filter_word(&self, layer: Layer<'_, '_>, filter: usize, at: usize, negated: bool) -> u32 {
        let word = layer.filter_word(filter, at);
        match negated {
            true => word ^ lane_mask(self.depth(), at % self.tap_words()),
            false => word,
        }
    }

    fn write_weights(&self, layer: Layer<'_, '_>, lines: &mut [Line], offsets: &mut [u32]) {
        let (run_bytes, run_words) = (self.run_bytes(), self.run_words());
        let input = self.input.channels();
        let run_words = if self.product == ProductKind::Depthwise { 1 } else { run_words };
        for (offsets, (_, first)) in offsets.chunks_exact_mut(run_words).zip(self.runs()) {
            for (at, offset) in offsets.iter_mut().enumerate() {
                *offset = (first + 4 * at) as u32;
            }
        }
        for channel in 0..self.output.channels() {
            let (block, lane) = (channel / LANES, channel % LANES);
            let negated = self.written(layer, channel).negated;
            let filter = &mut lines[block * self.taps..(block + 1) * self.taps];
            if self.product == ProductKind::Depthwise {
                for (tap, line) in filter.iter_mut().enumerate() {
                    line.0[0] |= self.filter_word(layer, channel, tap, negated) << lane;
                }
                continue;
            }
            if self.product == ProductKind::Differing {
                for (at, line) in filter.iter_mut().enumerate() {
                    line.0[lane] = self.filter_word(layer, channel, at, negated);
                }
                continue;
            }
            for (run, (first_tap, _)) in self.runs().enumerate() {
                for byte in 0..run_bytes {
                    let weight = layer.byte(channel, first_tap + byte / input, byte % input);
                    let weight = if negated { -weight } else { weight };
                    let line = &mut filter[run * run_words + byte / 4];
                    let mut bytes = line.0[lane].to_ne_bytes();
                    bytes[byte % 4] = weight as u8;
                    line.0[lane] = u32::from_ne_bytes(bytes);
                }
            }
        }
    }

    /// See the head of this file.
    fn write_corrections(&self, layer: Layer<'_, '_>, lines: &mut [Line]) {
        let channels = self.depth();
        let taps = self.window_taps();
        let classes = self.classes[0] * self.classes[1];
        let blocks = self.blocks();
        for filter in 0..self.output.channels() {
            let (block, lane) = (filter / LANES, filter % LANES);
            let negated = self.written(layer, filter).negated;
            if self.counts_bits() {
                for class in 0..classes {
                    lines[class * blocks + block].0[lane] = (channels * taps) as u32;
                }
            }
            let Some(sliding) = &self.sliding else { continue };
            if !self.corrected {
                continue;
            }
            let columns = sliding.window().kernel[1];
            for tap in 0..taps {
                // What the tap adds to the correction of the classes that it is inside of, or outside where bits
                // are counted.
                let term: i32 = match self.counts_bits() {
                    false => {
                        let parts =
                            (0..channels).map(|c| layer.add() * i32::from(layer.byte(filter, tap, c)));
                        let sum: i32 = parts.sum();
                        if negated { -sum } else { sum }
                    }
                    true => {
                        let words = self.tap_words();
                        let set: u32 = (0..words)
                            .map(|w| self.filter_word(layer, filter, tap * words + w, negated).count_ones())
                            .sum();
                        2 * set as i32 - channels as i32
                    }
                };
                for (row, inside_y) in classes_of(sliding, 0, self.conv[0]) {
                    for (column, inside_x) in classes_of(sliding, 1, self.conv[1]) {
                        let inside =
                            inside_y.contains(&(tap / columns)) && inside_x.contains(&(tap % columns));
                        if inside == self.counts_bits() {
                            continue;
                        }
                        let line = &mut lines[(row * self.classes[1] + column) * blocks + block];
                        line.0[lane] = line.0[lane].wrapping_add(term as u32);
                    }
                }
            }
        }
    }

    /// Limits of sums: see the head of this file.
    fn write_folded(&self, layer: Layer<'_, '_>, lines: &mut [Line], sections: &Sections) {
        // The corrections go where the lower limits replace them.
        self.write_corrections(layer, &mut lines[sections.lo.clone()]);
        for at in 0..sections.lo.len() {
            for lane in 0..LANES {
                let channel = at % self.blocks() * LANES + lane;
                let exists = channel < self.output.channels();
                let correction = lines[sections.lo.start + at].0[lane];
                // A lane without a channel gets the empty interval.
                let (lo, hi) = match exists {
                    true => {
                        let written = self.written(layer, channel);
                        self.sums(correction, written.lo, written.hi)
                    }
                    false => (i32::MAX, i32::MIN),
                };
                lines[sections.lo.start + at].0[lane] = lo as u32;
                if !sections.hi.is_empty() {
                    lines[sections.hi.start + at].0[lane] = hi as u32;
                }
                if let Some(veto) = layer.veto() {
                    let (lo, hi) = match exists {
                        true => {
                            let rule = veto.get(0, channel);
                            self.sums(correction, rule.lo.into(), rule.hi.into())
                        }
                        false => (i32::MAX, i32::MIN),
                    };
                    lines[sections.veto_lo.start + at].0[lane] = lo as u32;
                    lines[sections.veto_hi.start + at].0[lane] = hi as u32;
                }
            }
        }
    }

    /// `part` of the interval of each channel; of `None` in a lane without one.
    fn write_rules(&self, rules: &Rules<'_>, lines: &mut [Line], part: impl Fn(Option<(i32, i32)>) -> i32) {
        for (pixel, lines) in lines.chunks_exact_mut(self.blocks()).enumerate() {
            let (lo, hi) = rules.intervals(pixel);
            for (block, line) in lines.iter_mut().enumerate() {
                for (lane, value) in line.0.iter_mut().enumerate() {
                    let channel = block * LANES + lane;
                    *value = part(lo.get(channel).copied().zip(hi.get(channel).copied())) as u32;
                }
            }
        }
    }
}

/// The taps inside and the border class at each output coordinate of an axis, in order. Equal ones are
/// neighbours, since neither end of the taps inside ever rises.
fn class_of_each(sliding: &Sliding, axis: usize, size: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
    let mut last = None;
    (0..size).map(move |at| {
        let (first, end) = sliding.taps_inside(axis, at);
        let class = match last {
            None => 0,
            Some((class, taps)) => class + usize::from(taps != (first, end)),
        };
        last = Some((class, (first, end)));
        (class, first..end)
    })
}

/// The border classes of an axis, each once.
fn classes_of(sliding: &Sliding, axis: usize, size: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
    let mut next = 0;
    class_of_each(sliding, axis, size).filter(move |(class, _)| {
        let new = *class == next;
        next += usize::from(new);
        new
    })
}

/// The packed flips of every rule pixel.
fn write_flips(rules: &Rules<'_>, flips: &mut [u32]) {
    let Some(words) = flips.len().checked_div(rules.pixels()) else { return };
    for (pixel, flips) in flips.chunks_exact_mut(words).enumerate() {
        flips.copy_from_slice(rules.flips(pixel));
    }
}

/// A layer in lanes, ready to run.
#[derive(Debug, Clone, Copy)]
pub struct BlockLayer<'a> {
    plan: &'a BlockPlan,
    lines: &'a [Line],
    words: &'a [u32],
}

impl<'a> BlockLayer<'a> {
    /// `lines` and `words` are what [`BlockPlan::write`] has filled.
    ///
    /// # Errors
    /// [`ArgumentError::Length`] naming the slice.
    pub fn new(plan: &'a BlockPlan, lines: &'a [Line], words: &'a [u32]) -> Result<Self, ArgumentError> {
        check_length("lines", plan.lines(), lines.len())?;
        check_length("words", plan.words(), words.len())?;
        Ok(Self { plan, lines, words })
    }

    /// Runs the layer. `input` holds bytes, or the bytes of packed words; `output` the packed plane; `plane`
    /// [`plane_bytes`](BlockPlan::plane_bytes) of scratch.
    ///
    /// # Errors
    /// [`ArgumentError::Length`] naming the slice; [`ArgumentError::Value`] for a layer without rules.
    pub fn run(
        &self,
        simd: Simd,
        input: &[u8],
        output: &mut [u32],
        plane: &mut [u8],
    ) -> Result<(), ArgumentError> {
        if self.plan.rules.is_none() {
            return Err(ArgumentError::Value { argument: "layer" });
        }
        check_length("output", self.plan.output_len(), output.len())?;
        let plane = self.padded_plane(input, plane)?;
        arch::convolve(simd, &self.task(plane), output)
    }

    /// The accumulators of a fully connected layer, sixteen a line.
    ///
    /// # Errors
    /// [`ArgumentError::Length`] naming the slice; [`ArgumentError::Value`] for a layer with rules.
    pub fn accumulators(&self, simd: Simd, input: &[u8], output: &mut [Line]) -> Result<(), ArgumentError> {
        if self.plan.rules.is_some() {
            return Err(ArgumentError::Value { argument: "layer" });
        }
        check_length("output", self.plan.output_len(), output.len())?;
        let plane = self.padded_plane(input, &mut [])?;
        arch::accumulate(simd, &self.task(plane), output)
    }

    /// The outputs of `operator` for accumulators as [`accumulators`](Self::accumulators) writes them.
    ///
    /// # Errors
    /// [`ArgumentError::Length`] naming the slice.
    pub fn requantize<T: Output>(
        operator: &BbqFc<'_>,
        accumulators: &[Line],
        output: &mut [T],
    ) -> Result<(), ArgumentError> {
        check_length("accumulators", operator.units().div_ceil(LANES), accumulators.len())?;
        let acc = |unit: usize| accumulators[unit / LANES].0[unit % LANES] as i32;
        operator.requantization().finish(acc, output)
    }

    fn task<'p>(&'p self, plane: &'p [u8]) -> Convolution<'p> {
        let plan = self.plan;
        let sections = plan.sections().unwrap_or_else(|| unreachable!("the lengths were checked"));
        let [stride_y, stride_x] = plan.sliding.map_or([1, 1], |sliding| sliding.window().strides);
        let row = plan.padded()[1] * plan.pixel_bytes();
        let rules = |grid: Option<Grid>, lo: Range<usize>, hi: Range<usize>, flip: Range<usize>| BlockRules {
            lo: &self.lines[lo],
            hi: &self.lines[hi],
            flip: &self.words[flip],
            per_conv: usize::from(grid == Some(Grid::Conv)),
            per_output: usize::from(grid == Some(Grid::Output)),
            per_class: usize::from(plan.fold != Fold::None),
        };
        let veto = rules(plan.veto, sections.veto_lo, sections.veto_hi, sections.veto_flip);
        Convolution {
            product: plan.product,
            plane,
            offsets: &self.words[sections.offsets],
            word_bytes: if plan.product == ProductKind::Depthwise { plan.pixel_bytes() } else { 4 },
            weights: &self.lines[sections.weights],
            blocks: plan.blocks(),
            factor: plan.factor,
            corrections: &self.lines[sections.corrections],
            row_classes: &self.words[sections.row_classes],
            column_classes: &self.words[sections.column_classes],
            row_bytes: stride_y * row,
            column_bytes: stride_x * plan.pixel_bytes(),
            limits: if plan.fold == Fold::Limits { &self.lines[sections.lo.clone()] } else { &[] },
            rules: rules(plan.rules, sections.lo, sections.hi, sections.flip),
            veto: plan.veto.map(|_| veto),
            pool: plan.pool.map(|pool| (pool, &self.words[sections.invert])),
        }
    }

    /// The input with its padding: in `plane`, or where it lies.
    fn padded_plane<'p>(&self, input: &'p [u8], plane: &'p mut [u8]) -> Result<&'p [u8], ArgumentError> {
        let plan = self.plan;
        check_length("input", plan.input_bytes(), input.len())?;
        check_length("plane", plan.plane_bytes(), plane.len())?;
        if plane.is_empty() {
            return Ok(input);
        }
        let pixel = plan.pixel_bytes();
        let [top, left, _, _] = plan.padding();
        let (from, to) = (plan.input.width() * pixel, plan.padded()[1] * pixel);
        match plan.one_padding {
            false => plane.fill(0),
            true => {
                for (word, bytes) in plane.chunks_exact_mut(4).enumerate() {
                    let ones = lane_mask(plan.input.channels(), word % plan.input.pixel_words());
                    bytes.copy_from_slice(&ones.to_ne_bytes());
                }
            }
        }
        let rows = plane[top * to..].chunks_exact_mut(to);
        for (row, input) in rows.zip(input.chunks_exact(from)) {
            row[left * pixel..][..from].copy_from_slice(input);
        }
        Ok(plane)
    }
}
