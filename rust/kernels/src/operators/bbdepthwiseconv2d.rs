/*!
Depthwise convolution of packed activations with packed weights, to packed activations: each output channel
sees its own input channel alone.

Weights are `[kernel height][kernel width][words]`, one packed pixel a tap. 32 channels are counted at once in
a vertical counter: word b of it holds bit b of each channel's count. Four taps are added up first, so that one carry ripples
through the words above.

With s the equal bits of the taps that count, `acc = 2 s - taps = 2 e + taps mod 2`, and rules compare e as they do in
`vertical`: where they are the same at every pixel, counters begin at minus the rule's lower bound, and the sign of what is left
decides 32 channels at once.
*/

use crate::ArgumentError;
use crate::arch::carry_save;
use crate::bits::{bit, check_padding_bits};
use crate::epilogue::{Pool, Rules};
use crate::error::check_length;
use crate::kernel::{Facts, Kernel, Run};
use crate::methods::by_output_channel::{self as vertical, Bounds};
use crate::methods::conv::{self, ConvLayer, Pixel};
use crate::shape::Conv2dGeometry;
use crate::shape::Padding;

/// Words of a vertical counter: for any e less a lower bound, a bound that none reaches, and a sign.
const fn planes(taps: usize) -> usize {
    (usize::BITS - (taps + 2).leading_zeros()) as usize + 2
}

/// A depthwise convolution, validated.
#[derive(Debug, Clone, Copy)]
pub struct BbDepthwiseConv2d<'a> {
    layer: ConvLayer<'a>,
    padding: Padding,
    weights: &'a [u32],
}

impl<'a> BbDepthwiseConv2d<'a> {
    /// `weights` holds `geometry.filter_words()` words; output channels equal input channels.
    ///
    /// # Errors
    /// [`ArgumentError`] naming the argument that does not fit the geometry; [`ArgumentError::Value`] for
    /// `output channels` that are not the input's.
    pub fn new(
        geometry: Conv2dGeometry,
        padding: Padding,
        weights: &'a [u32],
        rules: Rules<'a>,
        pool: Option<Pool<'a>>,
    ) -> Result<Self, ArgumentError> {
        Self::on_layer(&ConvLayer::new(geometry, rules, pool)?, padding, weights)
    }

    /// As [`new`](Self::new), for a layer that is there already.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    #[inline(always)]
    pub fn on_layer(
        layer: &ConvLayer<'a>,
        padding: Padding,
        weights: &'a [u32],
    ) -> Result<Self, ArgumentError> {
        let geometry = &layer.geometry;
        if geometry.input().channels() != geometry.output().channels() {
            return Err(ArgumentError::Value { argument: "output channels" });
        }
        check_length("weights", geometry.filter_words(), weights.len())?;
        Ok(Self { layer: *layer, padding, weights })
    }

    /// Shapes, rules and pool.
    pub(crate) fn layer(&self) -> &ConvLayer<'a> {
        &self.layer
    }

    pub(crate) fn padding(&self) -> Padding {
        self.padding
    }

    /// The packed weights of a tap.
    pub(crate) fn tap(&self, tap: usize) -> &'a [u32] {
        let words = self.layer.geometry.input().pixel_words();
        &self.weights[tap * words..(tap + 1) * words]
    }

    fn taps(&self) -> usize {
        self.layer.geometry.sliding().window().taps()
    }

    fn counter_words(&self) -> usize {
        self.layer.geometry.input().pixel_words() * planes(self.taps())
    }

    /// Words of all bounds: for rule and veto, both parities of the number of taps, and each word of channels.
    fn bounds_words(&self) -> usize {
        let sets = self.rule_sets().map_or(0, |[_, veto]| 1 + usize::from(veto.is_some()));
        sets * 2 * self.layer.geometry.input().pixel_words() * Bounds::words(planes(self.taps()))
    }

    /// The rules, and the veto where there is one, if they are the same at every pixel.
    fn rule_sets(&self) -> Option<[Option<&Rules<'a>>; 2]> {
        self.layer.epilogue().is_by_channel().then(|| self.layer.epilogue().rule_sets())
    }

    /// Writes the bounds, where there are some: all relative to the rule's lower ones, in whose place lies their negative.
    fn set_bounds(&self, bounds: &mut [u32]) {
        let Some([Some(rules), veto]) = self.rule_sets() else { return };
        let (planes, taps) = (planes(self.taps()), self.taps() as i32);
        let (words, length) = (self.layer.geometry.input().pixel_words(), Bounds::words(planes));
        let (first, second) = bounds.split_at_mut(2 * words * length);
        for (at, bounds) in first.chunks_exact_mut(length).enumerate() {
            let (parity, word) = ((at / words) as i32, at % words);
            let mut bounds = Bounds::of(bounds, planes);
            bounds.set(rules, 0, word, taps, parity);
            if let Some(veto) = veto {
                let mut other = Bounds::of(&mut second[at * length..], planes);
                other.set(veto, 0, word, taps, parity);
                other.rebase(bounds.lower());
            }
            bounds.become_base();
            bounds.negate_lower();
        }
    }
}

impl Kernel for BbDepthwiseConv2d<'_> {
    type Input = u32;

    fn facts(&self) -> Facts {
        // A filter has one channel.
        let macs = self.layer.geometry.output().elements() as u64 * self.taps() as u64;
        Facts { macs, ..self.layer.facts() }
    }

    fn scratch_words(&self) -> usize {
        self.taps().next_multiple_of(4)
            + self.counter_words()
            + self.bounds_words()
            + self.layer.epilogue().veto_words()
    }

    fn check_contents(&self) -> Result<(), ArgumentError> {
        check_padding_bits("weights", self.weights, self.layer.geometry.input().channels())?;
        self.layer.epilogue().check_contents()
    }
}

/// Counts 32 channels at a time.
impl Run<u32> for BbDepthwiseConv2d<'_> {
    fn reference(&self, input: &[u32], output: &mut [u32]) -> Result<(), ArgumentError> {
        let geometry = &self.layer.geometry;
        check_length("input", geometry.input().words(), input.len())?;
        let (sliding, words) = (geometry.sliding(), geometry.input().pixel_words());
        let [kernel_height, kernel_width] = sliding.window().kernel;
        let acc = |y: usize, x: usize, channel: usize| {
            let mut acc = 0;
            for tap_y in 0..kernel_height {
                for tap_x in 0..kernel_width {
                    let plus = match (sliding.input_at(0, y, tap_y), sliding.input_at(1, x, tap_x)) {
                        (Some(y), Some(x)) => {
                            bit(&input[(y * geometry.input().width() + x) * words..], channel)
                        }
                        _ if self.padding == Padding::Zero => continue,
                        _ => true,
                    };
                    let weight = bit(&self.weights[(tap_y * kernel_width + tap_x) * words..], channel);
                    acc += if plus == weight { 1 } else { -1 };
                }
            }
            acc
        };
        self.layer.reference(acc, output)
    }

    fn optimized(&self, input: &[u32], output: &mut [u32], scratch: &mut [u32]) -> Result<(), ArgumentError> {
        let geometry = &self.layer.geometry;
        check_length("input", geometry.input().words(), input.len())?;
        check_length("scratch", self.scratch_words(), scratch.len())?;
        let (equal, rest) = scratch.split_at_mut(self.taps().next_multiple_of(4));
        let (counters, rest) = rest.split_at_mut(self.counter_words());
        let (bounds, veto) = rest.split_at_mut(self.bounds_words());
        self.set_bounds(bounds);
        let planes = planes(self.taps());
        let equal = equal.as_chunks_mut().0;
        let mut counted = Counted { operator: self, input, counters, planes, equal, bounds, taps: 0 };
        conv::convolve(&self.layer, &mut counted, output, veto)
    }
}

/// The counts of equal bits of one pixel, `planes` words for each word of channels: less the rules' lower bounds, where there
/// are bounds.
struct Counted<'a> {
    operator: &'a BbDepthwiseConv2d<'a>,
    input: &'a [u32],
    counters: &'a mut [u32],
    planes: usize,
    /// For each tap that counts, in which channels of one word input and weight are equal.
    equal: &'a mut [[u32; 4]],
    /// See [`BbDepthwiseConv2d::set_bounds`].
    bounds: &'a [u32],
    /// Taps that count: inside the image, or all with one-padding.
    taps: usize,
}

impl<'a> Counted<'a> {
    /// The bounds of a set and word of channels; `None` where there are none.
    #[inline]
    fn bounds(&self, set: usize, word: usize) -> Option<&'a [u32]> {
        let words = self.operator.layer.geometry.input().pixel_words();
        let length = Bounds::words(self.planes);
        let at = (set * 2 + self.taps % 2) * words + word;
        self.bounds.get(at * length..(at + 1) * length)
    }
}

/// Adds the bits of four words to those of each lane of a counter.
#[inline]
fn add(counter: &mut [u32], [a, b, c, d]: [u32; 4]) {
    let [ones, twos, above @ ..] = counter else { return };
    let (sum, first) = carry_save(*ones, a, b);
    let (sum, second) = carry_save(sum, c, d);
    *ones = sum;
    let (sum, mut carry) = carry_save(*twos, first, second);
    *twos = sum;
    for plane in above {
        (*plane, carry) = (*plane ^ carry, *plane & carry);
    }
}

impl Pixel for Counted<'_> {
    fn seek(&mut self, y: usize, x: usize) {
        let operator = self.operator;
        let geometry = &operator.layer.geometry;
        let (input, sliding) = (geometry.input(), geometry.sliding());
        let (window, words) = (sliding.window(), input.pixel_words());
        let width = window.kernel[1];
        let (rows, columns) = (sliding.taps_inside(0, y), sliding.taps_inside(1, x));
        let count = columns.1 - columns.0;
        let inside = (rows.1 - rows.0) * count;
        let has_others = operator.padding == Padding::One && inside != window.taps();
        self.taps = if has_others { window.taps() } else { inside };
        let first = |at: usize, taps: (usize, usize), axis: usize| {
            at * window.strides[axis] + taps.0 * window.dilation[axis] - window.padding[axis]
        };
        // Where the window begins in the input and in the weights, and how far it is to the next row and column.
        let (mut from, mut of) = (0, 0);
        if inside > 0 {
            from = (first(y, rows, 0) * input.width() + first(x, columns, 1)) * words;
            of = (rows.0 * width + columns.0) * words;
        }
        let down = window.dilation[0] * input.width() * words;
        let across = window.dilation[1] * words;
        for word in 0..words {
            let equal = self.equal.as_flattened_mut();
            let mut len = 0;
            let (mut from, mut of) = (from + word, of + word);
            for _ in 0..if count > 0 { rows.1 - rows.0 } else { 0 } {
                let (mut pixel, mut weight) = (from, of);
                for equal in &mut equal[len..len + count] {
                    *equal = !(self.input[pixel] ^ operator.weights[weight]);
                    (pixel, weight) = (pixel + across, weight + words);
                }
                len += count;
                (from, of) = (from + down, of + width * words);
            }
            if has_others {
                for tap in 0..window.taps() {
                    let (row, column) = (tap / width, tap % width);
                    if !(rows.0..rows.1).contains(&row) || !(columns.0..columns.1).contains(&column) {
                        equal[len] = operator.weights[tap * words + word];
                        len += 1;
                    }
                }
            }
            equal[len..len.next_multiple_of(4)].fill(0);
            let bounds = self.bounds(0, word);
            let counter = &mut self.counters[word * self.planes..][..self.planes];
            match bounds {
                Some(bounds) => counter.copy_from_slice(Bounds::lower_of(bounds, self.planes)),
                None => counter.fill(0),
            }
            for four in &self.equal[..len.div_ceil(4)] {
                add(counter, *four);
            }
        }
    }

    fn lanes(&self, set: usize, rules: &Rules<'_>, at: usize, word: usize, pending: u32) -> u32 {
        let counter = &self.counters[word * self.planes..][..self.planes];
        if let Some(bounds) = self.bounds(set, word) {
            return vertical::bits(bounds, counter, self.taps.div_ceil(2) as i32) & pending;
        }
        let (lo, hi) = rules.intervals(at);
        let mut bits = rules.flips(at)[word] & pending;
        for lane in (0..32).filter(|lane| pending >> lane & 1 == 1) {
            let equal = counter.iter().rev().fold(0, |count, plane| 2 * count + (plane >> lane & 1) as i32);
            let (acc, channel) = (2 * equal - self.taps as i32, 32 * word + lane);
            bits ^= u32::from(lo[channel] <= acc && acc <= hi[channel]) << lane;
        }
        bits
    }
}
