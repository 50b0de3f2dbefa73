/*!
Convolution of bytes with 1-bit weights in the byte-mask layout.

With `distance` the sum over a window of |q - m|, m a filter's mask bytes and N its weights of +1,

```text
acc = mul * (255 N - distance) + sum over the channels of add * (sum of the weights inside the image)
```

so a rule's interval on acc is an interval on the distance: it is worked out once, for each border class where there is
an offset, and from there on nothing but distances is looked at. A flip is no case of its own, since the outside of an
interval is an interval of the numbers modulo 2^32.

The windows of a pool are gathered together and the filters taken one after the other: a filter is done with when one of its
windows decides the pooled bit. That makes the cost depend on the data, never the result.
*/

use core::ops::Range;

use crate::ArgumentError;
use crate::arch::{byte_distance, byte_hits};
use crate::epilogue::Rules;
use crate::error::check_length;
use crate::methods::bytes::Affine;
use crate::methods::conv::ConvLayer;

/// Most windows that are gathered together.
const WINDOWS: usize = 4;

/// The distances at which a bit is 1, modulo 2^32: 0 less the first, and how many there are.
pub(crate) type Interval = [u32; 2];

/// The taps inside the image of a window: first row, end row, first column, end column.
type BorderClass = [usize; 4];

/// Windows that are gathered together.
fn windows(layer: &ConvLayer<'_>) -> usize {
    layer.pool.as_ref().map_or(1, |pool| pool.sliding().window().taps().min(WINDOWS))
}

/// Words of one filter, and of one window.
fn filter_words(layer: &ConvLayer<'_>) -> usize {
    layer.geometry.products().div_ceil(4)
}

/// `n / d` rounded down, to bound an x with `x * d` in `-i32::MAX..=i32::MAX` ([`Affine::check`]): an n beyond bounds no
/// more than the last one that the core can divide by itself.
fn floor(n: i64, d: i32) -> i64 {
    (n.clamp(i32::MIN.into(), i32::MAX.into()) as i32).div_euclid(d).into()
}

/// A layer with its masks.
pub(crate) struct MaskedLayer<'a> {
    pub(crate) layer: &'a ConvLayer<'a>,
    pub(crate) affine: Affine,
    /// Empty, or the offset of each channel; `affine.add` is 0 then.
    pub(crate) channel_adds: &'a [i32],
    pub(crate) masks: &'a [u32],
}

/// What a run keeps in its scratch.
struct Run<'a> {
    of: &'a MaskedLayer<'a>,
    /// Words of one filter.
    words: usize,
    /// The windows gathered so far, and their class.
    windows: &'a mut [[u8; 4]],
    count: usize,
    class: BorderClass,
    /// 255 N of each filter.
    biases: &'a mut [u32],
    /// What the offsets add to each filter's accumulator, in two's complement; empty where there are none.
    sums: &'a mut [u32],
    /// They are those of `class`.
    has_sums: bool,
    /// The intervals of rule and veto, and the rule pixels that they were made for; none in a new class.
    intervals: [&'a mut [Interval]; 2],
    made_for: [usize; 2],
}

impl MaskedLayer<'_> {
    /// Whether an input byte of 0 may mean something else than 0.
    fn has_offsets(&self) -> bool {
        self.affine.add != 0 || !self.channel_adds.is_empty()
    }

    /// Four-byte words of window that a run needs.
    pub(crate) fn window_words(&self) -> usize {
        // One more to sum the weights with, where they are summed.
        (windows(self.layer) + usize::from(self.has_offsets())) * filter_words(self.layer)
    }

    /// Words of scratch that a run needs: 255 N of each filter, what the offsets add where there are any, its intervals.
    pub(crate) fn scratch_words(&self) -> usize {
        let filters = self.layer.geometry.output().channels();
        let (sums, veto) =
            (usize::from(self.has_offsets()), usize::from(self.layer.epilogue().veto_words() != 0));
        filters * (1 + sums + 2 + 2 * veto) + self.layer.epilogue().veto_words()
    }

    /// # Errors
    /// [`ArgumentError::Length`] naming `output`.
    pub(crate) fn convolve(
        &self,
        input: &[u8],
        output: &mut [u32],
        windows: &mut [[u8; 4]],
        scratch: &mut [u32],
    ) -> Result<(), ArgumentError> {
        let (conv, out) = (*self.layer.geometry.output(), *self.layer.output());
        check_length("output", out.words(), output.len())?;
        let filters = conv.channels();
        let (biases, rest) = scratch.split_at_mut(filters);
        let (sums, rest) = rest.split_at_mut(if self.has_offsets() { filters } else { 0 });
        let (intervals, veto_bits) = rest.split_at_mut(rest.len() - self.layer.epilogue().veto_words());
        let (rule, veto) = intervals.as_chunks_mut::<2>().0.split_at_mut(filters);
        let words = filter_words(self.layer);
        for (bias, masks) in biases.iter_mut().zip(self.masks.chunks_exact(words)) {
            *bias = 255 * (masks.iter().map(|mask| mask.count_ones()).sum::<u32>() / 8);
        }
        let mut run = Run {
            of: self,
            words,
            windows,
            count: 0,
            class: [usize::MAX; 4],
            biases,
            sums,
            has_sums: false,
            intervals: [rule, veto],
            made_for: [usize::MAX; 2],
        };
        let words = out.pixel_words();
        for (pixel, bits) in output.chunks_exact_mut(words).enumerate() {
            let (y, x) = (pixel / out.width(), pixel % out.width());
            bits.fill(0);
            let Some(pool) = &self.layer.pool else {
                run.gather(input, y, x);
                run.flush(pixel, pixel, bits, veto_bits);
                continue;
            };
            veto_bits.fill(0);
            let (sliding, window) = (pool.sliding(), pool.sliding().window());
            let (first_y, end_y) = sliding.taps_inside(0, y);
            let (first_x, end_x) = sliding.taps_inside(1, x);
            let per_pixel = self.layer.epilogue().follows_pixels();
            let mut conv_pixel = 0;
            for tap_y in first_y..end_y {
                for tap_x in first_x..end_x {
                    let conv_y = y * window.strides[0] + tap_y * window.dilation[0] - window.padding[0];
                    let conv_x = x * window.strides[1] + tap_x * window.dilation[1] - window.padding[1];
                    // Windows are taken together where they have the same intervals.
                    if run.is_full() || run.count > 0 && (per_pixel || run.is_other_class(conv_y, conv_x)) {
                        run.flush(conv_pixel, pixel, bits, veto_bits);
                    }
                    run.gather(input, conv_y, conv_x);
                    conv_pixel = conv_y * conv.width() + conv_x;
                }
            }
            run.flush(conv_pixel, pixel, bits, veto_bits);
            for (word, bits) in bits.iter_mut().enumerate() {
                let vetoed = veto_bits.get(word).copied().unwrap_or(0);
                *bits = (*bits & !vetoed) ^ pool.invert(word);
            }
        }
        Ok(())
    }
}

impl Run<'_> {
    fn is_full(&self) -> bool {
        self.count == windows(self.of.layer)
    }

    fn class_of(&self, y: usize, x: usize) -> BorderClass {
        let sliding = self.of.layer.geometry.sliding();
        let (rows, columns) = (sliding.taps_inside(0, y), sliding.taps_inside(1, x));
        [rows.0, rows.1, columns.0, columns.1]
    }

    /// Whether the window of pixel (y, x) is of another class than the last one. Without an offset of the input there
    /// is one class.
    #[inline]
    fn is_other_class(&self, y: usize, x: usize) -> bool {
        self.of.has_offsets() && self.class_of(y, x) != self.class
    }

    /// Gathers one window more: that of pixel (y, x) of the convolution.
    #[inline]
    fn gather(&mut self, input: &[u8], y: usize, x: usize) {
        if self.is_other_class(y, x) {
            self.class = self.class_of(y, x);
            self.has_sums = false;
            self.made_for = [usize::MAX; 2];
        }
        let at = self.count * self.words;
        self.of.layer.geometry.gather_bytes(
            input,
            y,
            x,
            self.windows[at..at + self.words].as_flattened_mut(),
        );
        self.count += 1;
    }

    /// Adds the bits of the gathered windows to `bits` and `veto_bits`.
    fn flush(&mut self, conv_pixel: usize, pixel: usize, bits: &mut [u32], veto_bits: &mut [u32]) {
        if self.count == 0 {
            return;
        }
        let layer = self.of.layer;
        self.hits(0, &layer.rules, conv_pixel, pixel, bits);
        if let Some(veto) = layer.epilogue().veto() {
            self.hits(1, veto, conv_pixel, pixel, veto_bits);
        }
        self.count = 0;
    }

    fn hits(&mut self, set: usize, rules: &Rules<'_>, conv_pixel: usize, pixel: usize, bits: &mut [u32]) {
        let at = rules.pixel(conv_pixel, pixel);
        if self.made_for[set] != at {
            self.made_for[set] = at;
            self.prepare(set, rules, at);
        }
        let windows = &self.windows[..self.count * self.words];
        let groups = self.of.masks.chunks(32 * self.words).zip(self.intervals[set].chunks(32));
        for (bits, (masks, intervals)) in bits.iter_mut().zip(groups) {
            *bits |= byte_hits(windows, self.words, masks, intervals);
        }
    }

    /// Works out the intervals of a rule pixel for the current class.
    #[inline(never)]
    fn prepare(&mut self, set: usize, rules: &Rules<'_>, at: usize) {
        let mul = self.of.affine.mul;
        if self.of.has_offsets() && !self.has_sums {
            self.sum();
        }
        let (lo, hi) = rules.intervals(at);
        let flips = rules.flips(at);
        for (filter, interval) in self.intervals[set].iter_mut().enumerate() {
            let inside = self.sums.get(filter).map_or(0, |&sum| i64::from(sum as i32));
            // mul * (bias - distance) + inside is in lo..=hi where bias - distance is in least..=most.
            let (lo, hi) = (i64::from(lo[filter]) - inside, i64::from(hi[filter]) - inside);
            let (least, most) = match mul {
                1 => (lo, hi),
                _ => (-floor(-lo, mul), floor(hi, mul)),
            };
            let bias = i64::from(self.biases[filter]);
            // No distance is below 0, nor above i32.
            let (start, end) = ((bias - most).max(0), (bias - least).min(i32::MAX.into()));
            let flip = (flips[filter / 32] >> (filter % 32)) & 1 == 1;
            let (first, count) = match (start > end, flip) {
                (true, false) => (0, 0),
                (true, true) => (0, u32::MAX),
                (false, false) => (start as u32, (end - start + 1) as u32),
                (false, true) => (end as u32 + 1, (start - end - 1) as u32),
            };
            *interval = [first.wrapping_neg(), count];
        }
    }

    /// Adds up what the offsets contribute: each times its channels' weights inside, which are the products of a filter
    /// with a window of ones there.
    fn sum(&mut self) {
        self.has_sums = true;
        self.sums.fill(0);
        match self.of.channel_adds {
            [] => self.add_offset(self.of.affine.add, 0..self.of.layer.geometry.input().channels()),
            adds => {
                for (channel, &add) in adds.iter().enumerate() {
                    self.add_offset(add, channel..channel + 1);
                }
            }
        }
    }

    /// Adds the share of an offset of some channels. No sum leaves `i32` (see [`Affine::check`]), but for masks that
    /// `check_contents` would refuse: they may give any bits, and no panic.
    fn add_offset(&mut self, add: i32, channels: Range<usize>) {
        let [first_y, end_y, first_x, end_x] = self.class;
        let geometry = &self.of.layer.geometry;
        let (stride, kernel_width) = (geometry.input().channels(), geometry.sliding().window().kernel[1]);
        let ones = &mut self.windows[windows(self.of.layer) * self.words..];
        ones.fill([0; 4]);
        for row in first_y..end_y {
            for tap in row * kernel_width + first_x..row * kernel_width + end_x {
                ones.as_flattened_mut()[tap * stride..][channels.clone()].fill(1);
            }
        }
        let filters = self.of.masks.chunks_exact(self.words).zip(&*self.biases);
        for (sum, (masks, bias)) in self.sums.iter_mut().zip(filters) {
            let inside = bias.wrapping_sub(byte_distance(ones, masks)) as i32;
            *sum = (*sum as i32).wrapping_add(add.wrapping_mul(inside)) as u32;
        }
    }
}
