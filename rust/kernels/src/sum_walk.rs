/*!
The walk over an image with weights of `pixel_sums`: segments of eight windows, and in each of them the rows from top to
bottom, so that one table is alive, of as many rows as a window has.

A rule is an interval of sums. As these are numbers modulo 2^16 and not all of them are reached, a flip is no case of its own,
and neither is a constant. A pool's bits are set by the windows as they come; a veto clears them in a second pass.
*/

use crate::ArgumentError;
use crate::arch::{copy_rows, move_down, signed_sums, sum_hits};
use crate::bytes::Affine;
use crate::conv::ConvLayer;
use crate::error::check_length;
use crate::pixel_sums::{SEGMENT, SEGMENT_WORDS, SumFilters, SumShape};
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

    /// Four-byte words that a run needs for the pixels of one row under a segment.
    pub(crate) fn line_words(&self) -> usize {
        let pixels = self.shape.columns() + SEGMENT_WORDS;
        (pixels * self.layer.geometry.input().channels()).div_ceil(4)
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
        line: &mut [[u8; 4]],
        scratch: &mut [u32],
    ) -> Result<(), ArgumentError> {
        let out = *self.layer.output();
        check_length("output", out.words(), output.len())?;
        let filters = SumFilters::new(self.shape, self.weights)?;
        let line = line.as_flattened_mut();
        let (table, intervals) = scratch.split_at_mut(self.shape.table_words());
        let intervals = intervals.as_chunks_mut().0;
        table[..SEGMENT_WORDS].fill(0);
        output.fill(0);
        self.pass(filters, (&self.layer.rules, false), input, (line, table), intervals, output);
        let Some(pool) = &self.layer.pool else { return Ok(()) };
        if let Some(veto) = pool.veto() {
            self.pass(filters, (veto, true), input, (line, table), intervals, output);
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
        (line, table): (&mut [u8], &mut [u32]),
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
                self.advance(input, (line, table), x, (held.replace(y), y));
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
    fn advance(
        &self,
        input: &[u8],
        (line, table): (&mut [u8], &mut [u32]),
        x: usize,
        (held, y): (Option<usize>, usize),
    ) {
        let (window, rows) = (self.layer.geometry.sliding().window(), self.shape.kernel_rows());
        let table = &mut table[SEGMENT_WORDS..];
        let dilation = window.dilation[0];
        // Rows of the table that the windows have gone down by.
        let new = match held.map(|held| (y - held) * window.strides[0]) {
            Some(step) if step % dilation == 0 => (step / dilation).min(rows),
            _ => rows,
        };
        move_down(table, new * self.shape.row_words());
        for (row, sums) in table.chunks_exact_mut(self.shape.row_words()).enumerate().skip(rows - new) {
            let from = (y * window.strides[0] + row * dilation).wrapping_sub(window.padding[0]);
            self.add_up(input, line, sums, from, x);
        }
    }

    /// One row of the table: the signed sums of row `y` of the image, from the first column of window `x` on.
    fn add_up(&self, input: &[u8], line: &mut [u8], sums: &mut [u32], y: usize, x: usize) {
        let (shape, columns) = (self.layer.geometry.input(), self.shape.columns());
        if y >= shape.height() {
            return sums.fill(0);
        }
        // The columns of the line that are inside the image.
        let (channels, padding) = (shape.channels(), self.layer.geometry.sliding().window().padding[1]);
        let (first, pixels) = (padding.saturating_sub(x), columns + SEGMENT_WORDS);
        let end = (shape.width() + padding).saturating_sub(x).min(pixels);
        if first > 0 || end < pixels {
            line.fill(0);
        }
        if first < end {
            let from = (y * shape.width() + x + first - padding) * channels;
            let length = (end - first) * channels;
            copy_rows(&mut line[first * channels..], &input[from..], [0; 2], length, 1);
        }
        let adds = core::array::from_fn(|channel| {
            let add = self.channel_adds.get(channel).copied().unwrap_or(self.affine.add);
            u32::from(add as u16) * 0x0001_0001
        });
        signed_sums(line, channels, self.affine.mul as u32, &adds, &mut sums[..self.shape.row_words()]);
        let is_outside = |pixel: usize| !(first..end).contains(&pixel);
        if first > 0 || end < pixels {
            for column in (0..columns).filter(|&c| is_outside(c) || is_outside(c + SEGMENT_WORDS)) {
                let low = if is_outside(column) { 0 } else { 0xFFFF };
                let high = if is_outside(column + SEGMENT_WORDS) { 0 } else { 0xFFFF << 16 };
                sums[column..].iter_mut().step_by(columns).for_each(|sum| *sum &= low | high);
            }
        }
    }
}
