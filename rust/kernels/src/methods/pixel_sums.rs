/*!
The walk over an image with weights of `pixel_sums`: segments of eight windows, and in each of them the rows from top to
bottom, so that one table is alive, of as many rows as a window has.

The output may lie over rows of the image that are done with: rows then go in bands, whose tables are begun anew.

A rule is an interval of sums. As these are numbers modulo 2^16 and not all of them are reached, a flip is no case of its own,
and neither is a constant. A pool's bits are set by the windows as they come; a veto clears them in a second pass. A filter whose bits are all set, or
cleared, at the pixels of a segment is passed over: that makes the cost depend on the data, never the result.
*/

use crate::ArgumentError;
use crate::arch::{
    MAX_CHANNELS, SEGMENT, SEGMENT_WORDS, SumFilters, add_rows, copy_rows, move_down, signed_sums, sum_hits,
};
use crate::epilogue::Rules;
use crate::layouts::pixel_sums::SumShape;
use crate::methods::bytes::Affine;
use crate::methods::conv::ConvLayer;
use crate::methods::over_image::{Planes, band_end, gap, pool_of, preferred_gap};
use crate::shape::Sliding;

/// Rows of the output that each band but the last has, or more, where the output lies over the image as far as is preferred: a
/// band takes four or so rows of a table more.
const BAND: usize = 3;

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
        let one_rule = layer.epilogue().is_by_channel();
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

    /// The filters; `None` where an offset lies outside the table, which `check_contents` would have refused.
    pub(crate) fn filters(&self) -> Option<SumFilters<'a>> {
        self.shape.filters(self.weights)
    }

    /// Bytes that the image must begin behind the beginning of the output, at least, where the output may overwrite rows of the
    /// image that are done with. `None` where an image is read more than once, or rows of the pool overlap.
    pub(crate) fn image_gap(&self) -> Option<usize> {
        let pool = pool_of(self.layer);
        let pool = pool.window();
        let is_tiled = pool.kernel[0] == pool.strides[0] && pool.padding[0] == 0 && pool.dilation[0] == 1;
        let has_veto = self.layer.pool.as_ref().is_some_and(|pool| pool.veto().is_some());
        (is_tiled && !has_veto).then(|| gap(self.layer))
    }

    /// As [`image_gap`](Self::image_gap), for bands that cost little.
    pub(crate) fn preferred_image_gap(&self) -> Option<usize> {
        self.image_gap().map(|_| preferred_gap(self.layer, BAND))
    }

    /// # Errors
    /// [`ArgumentError::Length`] naming `output`.
    pub(crate) fn convolve(
        &self,
        filters: SumFilters<'a>,
        input: &[u8],
        output: &mut [u32],
        line: &mut [[u8; 4]],
        scratch: &mut [u32],
    ) -> Result<(), ArgumentError> {
        self.run(filters, Planes::apart(self.layer, input, output)?, usize::MAX, line, scratch);
        Ok(())
    }

    /// As [`convolve`](Self::convolve), in memory that begins with the output and holds the image from byte `gap` on.
    ///
    /// # Errors
    /// [`ArgumentError::Length`] where the memory ends before or behind image and output; [`ArgumentError::Value`] where the
    /// layer can't run so, or the gap is too small.
    pub(crate) fn convolve_over_image(
        &self,
        filters: SumFilters<'a>,
        memory: &mut [u32],
        distance: usize,
        line: &mut [[u8; 4]],
        scratch: &mut [u32],
    ) -> Result<(), ArgumentError> {
        let planes = Planes::over_image(self.layer, memory, distance)?;
        if self.image_gap().is_none_or(|least| distance < least) {
            return Err(ArgumentError::Value { argument: "gap" });
        }
        self.run(filters, planes, distance, line, scratch);
        Ok(())
    }

    /// Runs in bands of as many rows of the output as an image allows that begins `distance` bytes behind the output, at
    /// least [`image_gap`](Self::image_gap).
    fn run(
        &self,
        filters: SumFilters<'a>,
        planes: Planes<'_>,
        distance: usize,
        line: &mut [[u8; 4]],
        scratch: &mut [u32],
    ) {
        let (layer, out) = (self.layer, *self.layer.output());
        let (table, intervals) = scratch.split_at_mut(self.shape.table_words());
        let intervals = intervals.as_chunks_mut().0;
        table[..SEGMENT_WORDS].fill(0);
        let adds = core::array::from_fn(|channel| {
            let add = self.channel_adds.get(channel).copied().unwrap_or(self.affine.add);
            u32::from(add as u16) * 0x0001_0001
        });
        let mut walk = Walk {
            of: self,
            filters,
            pool: pool_of(layer),
            is_paired: self.is_paired(),
            adds,
            planes,
            line: line.as_flattened_mut(),
            table,
        };
        self.prepare(&layer.rules, intervals);
        // Rows of the convolution that a row of the output is made of, where bands are short of all.
        let rows = walk.pool.window().strides[0];
        let mut first = 0;
        while first < out.height() {
            // The gap allows one row.
            let end = band_end(layer, distance, first).max(first + 1);
            let row = out.width() * out.pixel_words();
            walk.planes.memory[first * row..end * row].fill(0);
            let last = if end == out.height() { usize::MAX } else { end * rows };
            walk.pass(intervals, (first * rows, last), 0);
            first = end;
        }
        let Some(pool) = &layer.pool else { return };
        if let Some(veto) = pool.veto() {
            self.prepare(veto, intervals);
            walk.pass(intervals, (0, usize::MAX), u32::MAX);
        }
        let (words, output) = (out.pixel_words(), &mut walk.planes.memory[..out.words()]);
        for word in (0..words).filter(|&word| pool.invert(word) != 0) {
            output.iter_mut().skip(word).step_by(words).for_each(|bits| *bits ^= pool.invert(word));
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
}

/// One run over an image.
struct Walk<'a> {
    of: &'a SumLayer<'a>,
    filters: SumFilters<'a>,
    pool: Sliding,
    /// Two windows side by side are a pixel of the pool.
    is_paired: bool,
    /// The offset of each channel, in both halves.
    adds: [u32; MAX_CHANNELS],
    planes: Planes<'a>,
    line: &'a mut [u8],
    table: &'a mut [u32],
}

impl Walk<'_> {
    /// Sets the bits of the pixels that have a window inside the intervals, or clears those of `clears`, for rows
    /// `first..end` of the convolution.
    #[inline(never)]
    fn pass(&mut self, intervals: &[Interval], (first, end): (usize, usize), clears: u32) {
        let conv = *self.of.layer.geometry.output();
        for x in (0..conv.width()).step_by(SEGMENT) {
            let mut held = None;
            for y in first..end.min(conv.height()) {
                let rows = covering(&self.pool, 0, y);
                if rows.clone().next().is_some() {
                    self.advance(x, (held.replace(y), y));
                    match self.is_paired {
                        true => self.pairs((rows, x), intervals, clears),
                        false => self.single((rows, x), intervals, clears),
                    }
                }
            }
        }
    }

    /// Updates the bits of the pixels in `rows` that the windows from `x` on have a part in, of which the table is made.
    #[inline(never)]
    fn single(
        &mut self,
        (rows, x): (impl Iterator<Item = usize> + Clone, usize),
        intervals: &[Interval],
        clears: u32,
    ) {
        let (width, words) = (self.of.layer.output().width(), self.of.layer.output().pixel_words());
        let columns = self.of.layer.geometry.output().width();
        for (word, (filters, intervals)) in self.filters.groups().zip(intervals.chunks(32)).enumerate() {
            let hits = sum_hits(self.table, &filters, intervals, false, 0);
            for row in rows.clone() {
                for (x, hits) in (x..columns).zip(hits) {
                    for x in covering(&self.pool, 1, x) {
                        let bits = &mut self.planes.memory[(row * width + x) * words + word];
                        *bits = (*bits | hits) & !(hits & clears);
                    }
                }
            }
        }
    }

    /// As [`single`](Self::single), where two windows are a pixel of the pool.
    #[inline(never)]
    fn pairs(
        &mut self,
        (rows, x): (impl Iterator<Item = usize> + Clone, usize),
        intervals: &[Interval],
        clears: u32,
    ) {
        let (width, words) = (self.of.layer.output().width(), self.of.layer.output().pixel_words());
        let memory = &mut *self.planes.memory;
        for (word, (filters, intervals)) in self.filters.groups().zip(intervals.chunks(32)).enumerate() {
            // Pixels of a row, and the first of them.
            let (pixel, count) = (x / 2, (width - x / 2).min(SEGMENT / 2));
            // The bits that these windows can't change any more at any pixel of theirs.
            let mut known = u32::MAX;
            for row in rows.clone() {
                let mut at = (row * width + pixel) * words + word;
                for _ in 0..count {
                    known &= memory[at] ^ clears;
                    at += words;
                }
            }
            let hits = sum_hits(self.table, &filters, intervals, true, known);
            for row in rows.clone() {
                let mut at = (row * width + pixel) * words + word;
                for &hits in &hits[..count] {
                    memory[at] = (memory[at] | hits) & !(hits & clears);
                    at += words;
                }
            }
        }
    }

    /// Makes the table that of the windows from (y, x) on; it holds those of row `held`, or nothing.
    #[inline(never)]
    fn advance(&mut self, x: usize, (held, y): (Option<usize>, usize)) {
        let (window, rows) = (*self.of.layer.geometry.sliding().window(), self.of.shape.kernel_rows());
        let row_words = self.of.shape.row_words();
        // Rows of the table that the windows have gone down by.
        let new = match held.map(|held| (y - held) * window.strides[0]) {
            Some(step) if step % window.dilation[0] == 0 => (step / window.dilation[0]).min(rows),
            _ => rows,
        };
        move_down(&mut self.table[SEGMENT_WORDS..], new * row_words);
        for row in rows - new..rows {
            let from = (y * window.strides[0] + row * window.dilation[0]).wrapping_sub(window.padding[0]);
            let at = SEGMENT_WORDS + row * row_words;
            self.add_up(at, from, x);
            if row > 0 {
                let singles = self.of.shape.single_words();
                add_rows(&mut self.table[at - row_words..at + row_words], singles, self.of.shape.columns());
            }
        }
    }

    /// A row of the table from word `at` on, but for sums of two rows: the signed sums of row `y` of the image, from the
    /// first column of window `x` on.
    fn add_up(&mut self, at: usize, y: usize, x: usize) {
        let (shape, columns) = (*self.of.layer.geometry.input(), self.of.shape.columns());
        let sums = &mut self.table[at..at + self.of.shape.single_words()];
        if y >= shape.height() {
            return sums.fill(0);
        }
        // The columns of the line that are inside the image.
        let (channels, padding) = (shape.channels(), self.of.layer.geometry.sliding().window().padding[1]);
        let (first, pixels) = (padding.saturating_sub(x), columns + SEGMENT_WORDS);
        let end = (shape.width() + padding).saturating_sub(x).min(pixels);
        let is_whole = first == 0 && end == pixels;
        let length = end.saturating_sub(first) * channels;
        let from = (y * shape.width() + x + first).wrapping_sub(padding).wrapping_mul(channels);
        let mul = self.of.affine.mul as u32;
        if is_whole {
            signed_sums(&self.planes.image()[from..][..length], channels, mul, &self.adds, sums);
            return;
        }
        self.line.fill(0);
        if length > 0 {
            copy_rows(&mut self.line[first * channels..], &self.planes.image()[from..], [0; 2], length, 1);
        }
        signed_sums(self.line, channels, mul, &self.adds, sums);
        if self.adds != [0; MAX_CHANNELS] {
            let half = |pixel: usize| if (first..end).contains(&pixel) { 0xFFFF } else { 0 };
            // Between these, both halves are inside.
            let right = end.saturating_sub(SEGMENT_WORDS).max(first);
            for column in (0..first.min(columns)).chain(right..columns) {
                let inside = half(column) | half(column + SEGMENT_WORDS) << 16;
                let mut at = column;
                while at < sums.len() {
                    sums[at] &= inside;
                    at += columns;
                }
            }
        }
    }
}

/// The coordinates of the output of `pool` that coordinate `at` of its input belongs to.
#[inline]
fn covering(pool: &Sliding, axis: usize, at: usize) -> impl Iterator<Item = usize> + Clone + use<> {
    let size = [pool.output_height(), pool.output_width()][axis];
    let window = pool.window();
    let (stride, dilation) = (window.strides[axis], window.dilation[axis]);
    let padded = at + window.padding[axis];
    let first = padded.saturating_sub((window.kernel[axis] - 1) * dilation).div_ceil(stride);
    (first..size.min(padded / stride + 1))
        .filter(move |to| dilation == 1 || (padded - to * stride).is_multiple_of(dilation))
}
