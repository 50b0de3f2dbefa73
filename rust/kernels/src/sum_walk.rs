/*!
The walk over an image with weights of `pixel_sums`: segments of eight windows, and in each of them the rows from top to
bottom, so that one table is alive, of as many rows as a window has.

A rule is an interval of sums. As these are numbers modulo 2^16 and not all of them are reached, a flip is no case of its own,
and neither is a constant. A pool's bits are set by the windows as they come; a veto clears them in a second pass.
*/

use crate::ArgumentError;
use crate::arch::{add_halves, sub_halves, sum_hits};
use crate::bytes::Affine;
use crate::conv::ConvLayer;
use crate::error::check_length;
use crate::pixel_sums::{MAX_CHANNELS, SEGMENT, SEGMENT_WORDS, SumFilters, SumShape};
use crate::rule::{Grid, Rules};
use crate::shape::Sliding;

/// A layer of tables that fits 16 bits.
pub(crate) struct SumLayer<'a> {
    layer: &'a ConvLayer<'a>,
    affine: Affine,
    /// Empty, or the offset of each channel; `affine.add` is 0 then.
    channel_adds: &'a [i32],
    shape: SumShape,
    weights: &'a [u32],
    /// Most that a sum can be, and the negative of the least.
    largest: i32,
}

/// The words that a filter's sums are compared with, the same in both halves: 0 less the first sum inside, and 2^16 less
/// the number of sums inside.
type Interval = [u32; 2];

impl<'a> SumLayer<'a> {
    /// The layer where sums and shape fit: steps of one pixel along a row, the same rules at every pixel, and no sum of
    /// a window beyond 16 bits.
    pub(crate) fn new(
        layer: &'a ConvLayer<'a>,
        affine: Affine,
        channel_adds: &'a [i32],
        weights: &'a [u32],
    ) -> Option<Self> {
        let shape = SumShape::of(&layer.geometry)?;
        let window = layer.geometry.sliding().window();
        let largest =
            |&add: &i32| i64::from(add).abs().max((255 * i64::from(affine.mul) + i64::from(add)).abs());
        let value = channel_adds.iter().map(largest).max().unwrap_or(largest(&affine.add));
        let largest = i16::try_from(value.checked_mul(layer.geometry.products() as i64)?).ok()?;
        let veto = layer.pool.as_ref().and_then(|pool| pool.veto());
        let one_rule = [Some(&layer.rules), veto].into_iter().flatten().all(|r| r.grid() == Grid::Channel);
        let fits = one_rule && window.strides[1] == 1 && window.dilation[1] == 1;
        fits.then_some(Self { layer, affine, channel_adds, shape, weights, largest: largest.into() })
    }

    /// Words of scratch that a run needs: the table, an interval a filter.
    pub(crate) fn scratch_words(&self) -> usize {
        self.shape.table_words() + 2 * self.layer.geometry.output().channels()
    }

    /// # Errors
    /// [`ArgumentError::Length`] naming `output`; [`ArgumentError::Value`] naming `weights` where an offset lies outside the
    /// table.
    pub(crate) fn convolve(
        &self,
        input: &[u8],
        output: &mut [u32],
        scratch: &mut [u32],
    ) -> Result<(), ArgumentError> {
        let out = *self.layer.output();
        check_length("output", out.words(), output.len())?;
        let filters = SumFilters::new(self.shape, self.weights)?;
        let (table, intervals) = scratch.split_at_mut(self.shape.table_words());
        let intervals = intervals.as_chunks_mut().0;
        table[..SEGMENT_WORDS].fill(0);
        output.fill(0);
        self.pass(filters, (&self.layer.rules, false), input, table, intervals, output);
        let Some(pool) = &self.layer.pool else { return Ok(()) };
        if let Some(veto) = pool.veto() {
            self.pass(filters, (veto, true), input, table, intervals, output);
        }
        let words = out.pixel_words();
        for (at, bits) in output.iter_mut().enumerate() {
            *bits ^= pool.invert(at % words);
        }
        Ok(())
    }

    /// Sets the bits of the pixels that have a window inside the rules' intervals, or clears them.
    fn pass(
        &self,
        filters: SumFilters<'_>,
        (rules, clears): (&Rules<'_>, bool),
        input: &[u8],
        table: &mut [u32],
        intervals: &mut [Interval],
        output: &mut [u32],
    ) {
        self.prepare(rules, intervals);
        let (conv, out) = (*self.layer.geometry.output(), *self.layer.output());
        let (words, is_paired) = (out.pixel_words(), self.is_paired());
        for x in (0..conv.width()).step_by(SEGMENT) {
            let mut held = None;
            for y in 0..conv.height() {
                if self.covering(0, y).next().is_none() {
                    continue;
                }
                self.advance(input, table, x, (held.replace(y), y));
                for (word, (filters, intervals)) in filters.groups().zip(intervals.chunks(32)).enumerate() {
                    let hits = sum_hits(table, &filters, intervals, is_paired);
                    let mut update = |y: usize, x: usize, hits: u32| {
                        let bits = &mut output[(y * out.width() + x) * words + word];
                        *bits = if clears { *bits & !hits } else { *bits | hits };
                    };
                    for out_y in self.covering(0, y) {
                        if is_paired {
                            let pairs = (x / 2..out.width()).zip(hits).take(SEGMENT / 2);
                            pairs.for_each(|(x, hits)| update(out_y, x, hits));
                            continue;
                        }
                        for (x, hits) in (x..conv.width()).zip(hits) {
                            self.covering(1, x).for_each(|x| update(out_y, x, hits));
                        }
                    }
                }
            }
        }
    }

    /// Whether the windows 2 x and 2 x + 1 belong to the pixels x of the pool, both of them.
    fn is_paired(&self) -> bool {
        self.layer.pool.as_ref().is_some_and(|pool| {
            let (sliding, window) = (pool.sliding(), pool.sliding().window());
            let halves = [window.kernel[1], window.strides[1], window.dilation[1], window.padding[1]];
            halves == [2, 2, 1, 0] && 2 * sliding.output_width() <= self.layer.geometry.output().width()
        })
    }

    /// The output coordinates that coordinate `at` of the convolution belongs to.
    fn covering(&self, axis: usize, at: usize) -> impl Iterator<Item = usize> {
        // Where nothing is pooled, a pool of one pixel.
        let bare = Sliding::of_one(self.layer.geometry.output());
        let sliding = self.layer.pool.as_ref().map_or(bare, |pool| *pool.sliding());
        let size = [sliding.output_height(), sliding.output_width()][axis];
        let window = *sliding.window();
        let (stride, padded) = (window.strides[axis], at + window.padding[axis]);
        (0..window.kernel[axis]).filter_map(move |tap| {
            let from = padded.checked_sub(tap * window.dilation[axis])?;
            (from % stride == 0 && from / stride < size).then(|| from / stride)
        })
    }

    /// Works out the intervals of a rule.
    fn prepare(&self, rules: &Rules<'_>, intervals: &mut [Interval]) {
        let (lo, hi) = rules.intervals(0);
        let flips = rules.flips(0);
        for (filter, interval) in intervals.iter_mut().enumerate() {
            let (lo, hi) = (lo[filter].max(-self.largest), hi[filter].min(self.largest));
            let flip = (flips[filter / 32] >> (filter % 32)) & 1 == 1;
            let (first, count) = match (lo > hi, flip) {
                // A sum that there is not.
                (true, false) => (self.largest + 1, 1),
                (true, true) => (-self.largest, 2 * self.largest + 1),
                (false, false) => (lo, hi - lo + 1),
                (false, true) => (hi + 1, (1 << 16) - (hi - lo + 1)),
            };
            *interval = [first, count].map(|value| u32::from((value as u16).wrapping_neg()) * 0x0001_0001);
        }
    }

    /// Makes the table that of the windows from (y, x) on; it holds those of row `held`, or nothing.
    fn advance(&self, input: &[u8], table: &mut [u32], x: usize, (held, y): (Option<usize>, usize)) {
        let (window, rows) = (self.layer.geometry.sliding().window(), self.shape.kernel_rows());
        let table = &mut table[SEGMENT_WORDS..];
        let dilation = window.dilation[0];
        // Rows of the table that the windows have gone down by.
        let new = match held.map(|held| (y - held) * window.strides[0]) {
            Some(step) if step % dilation == 0 => (step / dilation).min(rows),
            _ => rows,
        };
        table.copy_within(new * self.shape.row_words().., 0);
        for (row, sums) in table.chunks_exact_mut(self.shape.row_words()).enumerate().skip(rows - new) {
            let from = (y * window.strides[0] + row * dilation).wrapping_sub(window.padding[0]);
            match self.layer.geometry.input().channels() {
                1 => self.add_up::<1>(input, sums, from, x),
                2 => self.add_up::<2>(input, sums, from, x),
                3 => self.add_up::<3>(input, sums, from, x),
                _ => self.add_up::<MAX_CHANNELS>(input, sums, from, x),
            }
        }
    }

    /// One row of the table: the signed sums of row `y` of the image, from the first column of window `x` on.
    fn add_up<const C: usize>(&self, input: &[u8], sums: &mut [u32], y: usize, x: usize) {
        let (shape, columns) = (self.layer.geometry.input(), self.shape.columns());
        if y >= shape.height() {
            return sums.fill(0);
        }
        let (pixels, _) = input[y * shape.width() * C..][..shape.width() * C].as_chunks::<C>();
        let adds: [u32; C] = core::array::from_fn(|c| {
            let add = self.channel_adds.get(c).copied().unwrap_or(self.affine.add);
            u32::from(add as u16) * 0x0001_0001
        });
        let left = x.wrapping_sub(self.layer.geometry.sliding().window().padding[1]);
        for column in 0..columns {
            let at = [0, SEGMENT_WORDS].map(|lane| pixels.get(left.wrapping_add(column + lane)));
            let inside =
                [(0xFFFF, at[0]), (0xFFFF << 16, at[1])].map(|(half, pixel)| pixel.map_or(0, |_| half));
            let [low, high] = at.map(|pixel| pixel.copied().unwrap_or([0; C]));
            let mut values = [0; 1 << (MAX_CHANNELS - 1)];
            for c in 0..C {
                let bytes = u32::from(low[c]) | u32::from(high[c]) << 16;
                let value = add_halves(bytes * self.affine.mul as u32, adds[c] & (inside[0] | inside[1]));
                if c == 0 {
                    values[0] = value;
                    continue;
                }
                let half = 1 << (c - 1);
                for pattern in 0..half {
                    let sum = values[pattern];
                    values[pattern] = add_halves(sum, value);
                    values[pattern + half] = sub_halves(sum, value);
                }
            }
            for (pattern, value) in values[..1 << (C - 1)].iter().enumerate() {
                sums[pattern * columns + column] = *value;
            }
        }
    }
}
