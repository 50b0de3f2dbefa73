/*!
The walk over an image with weights of `pixel_sums`: segments of eight windows, and in each of them the rows from top to
bottom, so that one table is alive, of as many rows as a window has.

A rule is an interval of sums. As these are numbers modulo 2^16 and not all of them are reached, a flip is no case of its own,
and neither is a constant. A pool's bits are set by the windows as they come; a veto clears them in a second pass. A filter whose bits are all set, or
cleared, at the pixels of a segment is passed over: that makes the cost depend on the data, never the result.
*/

use crate::ArgumentError;
use crate::arch::{copy_rows, move_down, signed_sums, sum_hits};
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
        SumFilters::new(self.shape, self.weights)
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
        let (layer, out) = (self.layer, *self.layer.output());
        check_length("output", out.words(), output.len())?;
        let (table, intervals) = scratch.split_at_mut(self.shape.table_words());
        let intervals = intervals.as_chunks_mut().0;
        table[..SEGMENT_WORDS].fill(0);
        output.fill(0);
        let pool = layer.pool.as_ref();
        let adds = core::array::from_fn(|channel| {
            let add = self.channel_adds.get(channel).copied().unwrap_or(self.affine.add);
            u32::from(add as u16) * 0x0001_0001
        });
        let mut walk = Walk {
            of: self,
            filters,
            // Where nothing is pooled, a pool of one pixel.
            pool: pool.map_or(Sliding::of_one(layer.geometry.output()), |pool| *pool.sliding()),
            is_paired: self.is_paired(),
            adds,
            input,
            line: line.as_flattened_mut(),
            table,
        };
        self.prepare(&layer.rules, intervals);
        walk.pass(intervals, output, 0);
        let Some(pool) = pool else { return Ok(()) };
        if let Some(veto) = pool.veto() {
            self.prepare(veto, intervals);
            walk.pass(intervals, output, u32::MAX);
        }
        let words = out.pixel_words();
        for word in (0..words).filter(|&word| pool.invert(word) != 0) {
            output.iter_mut().skip(word).step_by(words).for_each(|bits| *bits ^= pool.invert(word));
        }
        Ok(())
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
    input: &'a [u8],
    line: &'a mut [u8],
    table: &'a mut [u32],
}

impl Walk<'_> {
    /// Sets the bits of the pixels that have a window inside the intervals, or clears those of `clears`.
    fn pass(&mut self, intervals: &[Interval], output: &mut [u32], clears: u32) {
        let conv = *self.of.layer.geometry.output();
        for x in (0..conv.width()).step_by(SEGMENT) {
            let mut held = None;
            for y in 0..conv.height() {
                let pool = self.pool;
                let mut rows = covering(&pool, 0, y);
                let Some(row) = rows.next() else { continue };
                self.advance(x, (held.replace(y), y));
                for (word, (filters, intervals)) in
                    self.filters.groups().zip(intervals.chunks(32)).enumerate()
                {
                    let rows = core::iter::once(row).chain(rows.clone());
                    let known = self.known((rows.clone(), x), &output[word..], clears);
                    let hits = sum_hits(self.table, &filters, intervals, self.is_paired, known);
                    for row in rows {
                        self.spread(&hits, (row, x), &mut output[word..], clears);
                    }
                }
            }
        }
    }

    /// The bits that these windows can't change any more at any pixel of theirs, where two are a pixel of the pool.
    fn known(&self, (rows, x): (impl Iterator<Item = usize>, usize), output: &[u32], clears: u32) -> u32 {
        if !self.is_paired {
            return 0;
        }
        let (width, words) = (self.of.layer.output().width(), self.of.layer.output().pixel_words());
        let mut known = u32::MAX;
        for row in rows {
            for x in (x / 2..width).take(SEGMENT / 2) {
                known &= output[(row * width + x) * words] ^ clears;
            }
        }
        known
    }

    /// Sets or clears the bits of row `y` of the output by those of the windows from `x` on.
    fn spread(&self, hits: &[u32; SEGMENT], (y, x): (usize, usize), output: &mut [u32], clears: u32) {
        let (width, words) = (self.of.layer.output().width(), self.of.layer.output().pixel_words());
        let row = &mut output[y * width * words..];
        let update = |bits: &mut u32, hits: u32| *bits = (*bits | hits) & !(hits & clears);
        if self.is_paired {
            for (x, hits) in (x / 2..width).zip(&hits[..SEGMENT / 2]) {
                update(&mut row[x * words], *hits);
            }
            return;
        }
        for (x, hits) in (x..self.of.layer.geometry.output().width()).zip(hits) {
            covering(&self.pool, 1, x).for_each(|x| update(&mut row[x * words], *hits));
        }
    }

    /// Makes the table that of the windows from (y, x) on; it holds those of row `held`, or nothing.
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
            self.add_up(SEGMENT_WORDS + row * row_words, from, x);
        }
    }

    /// A row of the table from word `at` on: the signed sums of row `y` of the image, from the first column of window `x`
    /// on.
    fn add_up(&mut self, at: usize, y: usize, x: usize) {
        let (shape, columns) = (*self.of.layer.geometry.input(), self.of.shape.columns());
        let sums = &mut self.table[at..at + self.of.shape.row_words()];
        if y >= shape.height() {
            return sums.fill(0);
        }
        // The columns of the line that are inside the image.
        let (channels, padding) = (shape.channels(), self.of.layer.geometry.sliding().window().padding[1]);
        let (first, pixels) = (padding.saturating_sub(x), columns + SEGMENT_WORDS);
        let end = (shape.width() + padding).saturating_sub(x).min(pixels);
        let is_whole = first == 0 && end == pixels;
        if !is_whole {
            self.line.fill(0);
        }
        if first < end {
            let from = (y * shape.width() + x + first - padding) * channels;
            let length = (end - first) * channels;
            copy_rows(&mut self.line[first * channels..], &self.input[from..], [0; 2], length, 1);
        }
        signed_sums(self.line, channels, self.of.affine.mul as u32, &self.adds, sums);
        if !is_whole && self.adds != [0; MAX_CHANNELS] {
            let half = |pixel: usize| if (first..end).contains(&pixel) { 0xFFFF } else { 0 };
            for column in 0..columns {
                let inside = half(column) | half(column + SEGMENT_WORDS) << 16;
                if inside != u32::MAX {
                    sums[column..].iter_mut().step_by(columns).for_each(|sum| *sum &= inside);
                }
            }
        }
    }
}

/// The coordinates of the output of `pool` that coordinate `at` of its input belongs to.
fn covering(pool: &Sliding, axis: usize, at: usize) -> impl Iterator<Item = usize> + Clone {
    let size = [pool.output_height(), pool.output_width()][axis];
    let window = pool.window();
    let (stride, dilation) = (window.strides[axis], window.dilation[axis]);
    let padded = at + window.padding[axis];
    (0..window.kernel[axis]).filter_map(move |tap| {
        let from = padded.checked_sub(tap * dilation)?;
        (from % stride == 0 && from / stride < size).then(|| from / stride)
    })
}
