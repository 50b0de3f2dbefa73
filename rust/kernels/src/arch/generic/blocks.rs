/*!
Convolutions with sixteen output channels in the lanes of a vector.

A word of the window (32 binary channels, or 4 bytes) goes to all lanes at once, and each lane holds the same
word of another filter: one load of the activation serves sixteen channels, and sixteen accumulators come out
side by side, as the rules want them. Comparing them with the rules gives sixteen output bits in a mask: there
is nothing to transpose.

A group of `PIXELS` windows shares each load of the weights, and `BLOCKS` blocks of sixteen channels share
each load of an activation; both are chosen for the registers that an architecture has.

There is no border: the plane is padded, and what its padding adds to an accumulator is taken back by the
`corrections` of a pixel's border class.
*/
#![allow(
    clippy::needless_range_loop,
    reason = "closures of iterators don't have the instructions of their caller"
)]

use crate::arch::line::Line;
use crate::shape::Sliding;

/// Sixteen lanes of 32 bits.
///
/// # Safety
/// Every function needs the instructions of its type; whoever calls has checked that the CPU has them.
pub(crate) trait Lanes: Copy {
    /// The same word in each lane.
    unsafe fn splat(word: u32) -> Self;
    /// The words of a line.
    unsafe fn load(line: &Line) -> Self;
    /// Writes the lanes to a line.
    unsafe fn store(self, line: &mut Line);
    /// Lane by lane, wrapping.
    unsafe fn add(self, other: Self) -> Self;
    /// Times `factor`, wrapping.
    unsafe fn scale(self, factor: i32) -> Self;
    /// Adds 1 where bit i of `bits` is set for lane i; higher bits are ignored.
    unsafe fn add_bits(self, bits: u32) -> Self;
    /// Bit i tells whether `self >= lo` in lane i, as signed numbers.
    unsafe fn at_least(self, lo: Self) -> u32;
    /// Bit i tells whether `lo <= self <= hi` in lane i, as signed numbers.
    unsafe fn between(self, lo: Self, hi: Self) -> u32;
}

/// What a word of activations and a word of weights add to an accumulator.
///
/// # Safety
/// As [`Lanes`].
pub(crate) trait Product {
    /// The lanes.
    type Vector: Lanes;
    /// A running sum, not always in 32-bit lanes.
    type Sum: Copy;
    /// Additions after which a sum must be emptied.
    const LIMIT: usize;
    /// The empty sum.
    unsafe fn zero() -> Self::Sum;
    /// `sum` and the product of two words, lane by lane.
    unsafe fn add(sum: Self::Sum, activations: Self::Vector, weights: Self::Vector) -> Self::Sum;
    /// The sum in 32-bit lanes.
    unsafe fn total(sum: Self::Sum) -> Self::Vector;
}

/// The three products of an architecture.
pub(crate) trait Architecture {
    /// The lanes.
    type Vector: Lanes;
    /// Bits that differ.
    type Differing: Product<Vector = Self::Vector>;
    /// u8 times weights of -1, 0 or +1.
    type Signs: Product<Vector = Self::Vector>;
    /// u8 times i8.
    type Bytes: Product<Vector = Self::Vector>;
}

/// Which [`Product`] a layer takes; a depthwise one counts bits that differ channel by channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProductKind {
    Differing,
    Signs,
    Bytes,
    Depthwise,
}

/// The rules of a layer in lanes: a line of each for a block of channels.
#[derive(Clone, Copy)]
pub(crate) struct BlockRules<'a> {
    pub(crate) lo: &'a [Line],
    pub(crate) hi: &'a [Line],
    /// As in the model: packed words, so that a block is half a word.
    pub(crate) flip: &'a [u32],
    /// 1 where the rules follow the convolution's plane, else 0.
    pub(crate) per_conv: usize,
    /// 1 where they follow the output plane, else 0.
    pub(crate) per_output: usize,
    /// 1 where corrections are folded into them, so that there is a line for each border class, else 0.
    pub(crate) per_class: usize,
}

/// Everything that a run reads.
pub(crate) struct Convolution<'a> {
    pub(crate) product: ProductKind,
    /// The padded input.
    pub(crate) plane: &'a [u8],
    /// Where in a window the words of a filter are, in bytes; where a layer is depthwise, its pixels.
    pub(crate) offsets: &'a [u32],
    /// Bytes that are read from an offset on.
    pub(crate) word_bytes: usize,
    /// `[blocks][words of a filter]`; where a layer is depthwise, a tap's weights of a block are the lower half
    /// of the first word.
    pub(crate) weights: &'a [Line],
    /// Blocks of sixteen output channels.
    pub(crate) blocks: usize,
    /// `acc = correction + factor * sum of products`.
    pub(crate) factor: i32,
    /// `[border classes][blocks]`; empty where they are folded into the rules.
    pub(crate) corrections: &'a [Line],
    /// Of each row of the convolution's plane: its border class times the classes of columns.
    pub(crate) row_classes: &'a [u32],
    /// Of each column of the convolution's plane.
    pub(crate) column_classes: &'a [u32],
    /// Bytes of `plane` from a window to the one below it.
    pub(crate) row_bytes: usize,
    /// Bytes of `plane` from a window to the one on its right.
    pub(crate) column_bytes: usize,
    /// `[border classes][blocks]`: the least sums whose bit is 1, where these are all there is to the rules; else
    /// empty.
    pub(crate) limits: &'a [Line],
    pub(crate) rules: BlockRules<'a>,
    pub(crate) veto: Option<BlockRules<'a>>,
    /// The fused pool on the convolution's plane, and its packed inversions.
    pub(crate) pool: Option<(Sliding, &'a [u32])>,
}

impl Convolution<'_> {
    /// Bytes of `plane` that a run may read.
    pub(crate) fn reach(&self) -> Option<usize> {
        let rows = self.row_classes.len().checked_sub(1)?.checked_mul(self.row_bytes)?;
        let columns = self.column_classes.len().checked_sub(1)?.checked_mul(self.column_bytes)?;
        let window = self.offsets.iter().max().map_or(0, |&largest| largest as usize);
        rows.checked_add(columns)?.checked_add(window)?.checked_add(self.word_bytes.max(size_of::<u32>()))
    }

    #[inline(always)]
    fn at(&self, y: usize, x: usize) -> Position {
        let class = self.row_classes[y] + self.column_classes[x];
        Position {
            window: y * self.row_bytes + x * self.column_bytes,
            class: class as usize * self.blocks,
            pixel: y * self.column_classes.len() + x,
        }
    }
}

/// A pixel of the convolution's plane.
#[derive(Clone, Copy)]
struct Position {
    /// First byte of its window.
    window: usize,
    /// First line of its border class.
    class: usize,
    /// Its index.
    pixel: usize,
}

/// Convolves, applies the rules and pools.
///
/// # Safety
/// The CPU has the instructions of `A`, and `task.reach()` is some number up to `task.plane.len()`.
#[inline(always)]
pub(crate) unsafe fn convolve<A: Architecture, const PIXELS: usize, const BLOCKS: usize>(
    task: &Convolution<'_>,
    output: &mut [u32],
) {
    // SAFETY: as above.
    unsafe {
        match task.product {
            ProductKind::Differing => convolve_with::<A::Differing, PIXELS, BLOCKS>(task, output),
            ProductKind::Signs => convolve_with::<A::Signs, PIXELS, BLOCKS>(task, output),
            ProductKind::Bytes => convolve_with::<A::Bytes, PIXELS, BLOCKS>(task, output),
            // The product is not used.
            ProductKind::Depthwise => convolve_with::<A::Differing, PIXELS, BLOCKS>(task, output),
        }
    }
}

/// As [`convolve`], with the accumulators of pixel (0, 0), a line a block, instead of bits.
///
/// # Safety
/// As [`convolve`].
#[inline(always)]
pub(crate) unsafe fn accumulate<A: Architecture>(task: &Convolution<'_>, output: &mut [Line]) {
    let at = [task.at(0, 0)];
    for (block, line) in output.iter_mut().enumerate().take(task.blocks) {
        // SAFETY: as above.
        unsafe { accumulators::<A::Differing, 1, 1>(task, &at, block)[0][0].store(line) };
    }
}

/// # Safety
/// As [`convolve`].
#[inline(always)]
unsafe fn convolve_with<P: Product, const PIXELS: usize, const BLOCKS: usize>(
    task: &Convolution<'_>,
    output: &mut [u32],
) {
    // SAFETY: as above.
    unsafe {
        match &task.pool {
            None => plain::<P, PIXELS, BLOCKS>(task, output),
            Some((pool, invert)) => pooled::<P, PIXELS, BLOCKS>(task, pool, invert, output),
        }
    }
}

/// Without a pool: `PIXELS` output pixels at a time.
///
/// # Safety
/// As [`convolve`].
#[inline(always)]
unsafe fn plain<P: Product, const PIXELS: usize, const BLOCKS: usize>(
    task: &Convolution<'_>,
    output: &mut [u32],
) {
    let (width, words) = (task.column_classes.len(), task.blocks.div_ceil(2));
    let mut group = [task.at(0, 0); PIXELS];
    let (mut y, mut x) = (0, 0);
    for bits in output.chunks_mut(PIXELS * words) {
        for at in group.iter_mut().take(bits.len() / words) {
            *at = task.at(y, x);
            x += 1;
            if x == width {
                (y, x) = (y + 1, 0);
            }
        }
        let mut block = 0;
        while block < task.blocks {
            // The last group may hold fewer pixels: the ones before it are computed again and left out.
            if BLOCKS == 2 && block + 2 <= task.blocks {
                // SAFETY: as above.
                let masks = unsafe { rule_masks::<P, PIXELS, 2>(task, &group, block) };
                for (bits, mask) in bits.chunks_exact_mut(words).zip(masks) {
                    bits[block / 2] = mask[0] | mask[1] << 16;
                }
                block += 2;
            } else {
                // SAFETY: as above.
                let masks = unsafe { rule_masks::<P, PIXELS, 1>(task, &group, block) };
                for (bits, mask) in bits.chunks_exact_mut(words).zip(masks) {
                    if block % 2 == 0 {
                        bits[block / 2] = mask[0];
                    } else {
                        bits[block / 2] |= mask[0] << 16;
                    }
                }
                block += 1;
            }
        }
    }
}

/// With a pool: `PIXELS` pixels of an output pixel's window at a time.
///
/// # Safety
/// As [`convolve`].
#[inline(always)]
unsafe fn pooled<P: Product, const PIXELS: usize, const BLOCKS: usize>(
    task: &Convolution<'_>,
    pool: &Sliding,
    invert: &[u32],
    output: &mut [u32],
) {
    let mut pixels = output.chunks_exact_mut(task.blocks.div_ceil(2)).enumerate();
    for y in 0..pool.output_height() {
        for x in 0..pool.output_width() {
            let Some((pixel, bits)) = pixels.next() else { return };
            let window = PoolWindow::new(pool, y, x, pixel);
            let mut block = 0;
            while block < task.blocks {
                if BLOCKS == 2 && block + 2 <= task.blocks {
                    // SAFETY: as above.
                    let mask = unsafe { pool_masks::<P, PIXELS, 2>(task, &window, block) };
                    bits[block / 2] = (mask[0] | mask[1] << 16) ^ invert[block / 2];
                    block += 2;
                } else {
                    // SAFETY: as above.
                    let mask = unsafe { pool_masks::<P, PIXELS, 1>(task, &window, block) };
                    if block % 2 == 0 {
                        bits[block / 2] = mask[0] ^ invert[block / 2];
                    } else {
                        bits[block / 2] ^= mask[0] << 16;
                    }
                    block += 1;
                }
            }
        }
    }
}

/// The pixels under an output pixel of a pool.
struct PoolWindow<'a> {
    pool: &'a Sliding,
    /// The output pixel's index.
    pixel: usize,
    /// The convolution's row and column of the first tap inside.
    first: (usize, usize),
    /// Taps inside, vertically and horizontally.
    taps: (usize, usize),
}

impl<'a> PoolWindow<'a> {
    #[inline(always)]
    fn new(pool: &'a Sliding, y: usize, x: usize, pixel: usize) -> Self {
        let (first_y, end_y) = pool.taps_inside(0, y);
        let (first_x, end_x) = pool.taps_inside(1, x);
        let window = pool.window();
        // Without a tap inside there is no first one; nothing is read then.
        let at = |at: usize, axis: usize, tap: usize| {
            (at * window.strides[axis] + tap * window.dilation[axis]).saturating_sub(window.padding[axis])
        };
        let first = (at(y, 0, first_y), at(x, 1, first_x));
        Self { pool, pixel, first, taps: (end_y - first_y, end_x - first_x) }
    }

    /// The positions of taps `from..from + PIXELS` in row-major order; a tap too many repeats the last one, which
    /// changes no OR.
    #[inline(always)]
    fn group<const PIXELS: usize>(&self, task: &Convolution<'_>, from: usize) -> [Position; PIXELS] {
        let [dilation_y, dilation_x] = self.pool.window().dilation;
        let (mut tap_y, mut tap_x) = match from {
            0 => (0, 0),
            _ => (from / self.taps.1, from % self.taps.1),
        };
        let mut group = [Position { window: 0, class: 0, pixel: 0 }; PIXELS];
        for at in 0..PIXELS {
            if tap_y == self.taps.0 {
                group[at] = group[at - 1];
                continue;
            }
            group[at] = task.at(self.first.0 + tap_y * dilation_y, self.first.1 + tap_x * dilation_x);
            tap_x += 1;
            if tap_x == self.taps.1 {
                (tap_y, tap_x) = (tap_y + 1, 0);
            }
        }
        group
    }
}

/// The bits of an output pixel, inversion aside, for `BLOCKS` blocks of channels from `block` on.
///
/// # Safety
/// As [`convolve`].
#[inline(always)]
unsafe fn pool_masks<P: Product, const PIXELS: usize, const BLOCKS: usize>(
    task: &Convolution<'_>,
    window: &PoolWindow<'_>,
    block: usize,
) -> [u32; BLOCKS] {
    let (mut any, mut stop) = ([0; BLOCKS], [0; BLOCKS]);
    let mut tap = 0;
    while tap < window.taps.0 * window.taps.1 {
        let group = window.group::<PIXELS>(task, tap);
        // SAFETY: as above.
        let accumulators = unsafe { accumulators::<P, PIXELS, BLOCKS>(task, &group, block) };
        for b in 0..BLOCKS {
            for p in 0..PIXELS {
                let acc = accumulators[p][b];
                // SAFETY: as above.
                unsafe {
                    if !task.limits.is_empty() {
                        any[b] |= acc.at_least(P::Vector::load(&task.limits[group[p].class + block + b]));
                        continue;
                    }
                    any[b] |= mask(task, &task.rules, group[p], window.pixel, block + b, acc);
                    if let Some(veto) = &task.veto {
                        stop[b] |= mask(task, veto, group[p], window.pixel, block + b, acc);
                    }
                }
            }
        }
        tap += PIXELS;
    }
    for b in 0..BLOCKS {
        any[b] &= !stop[b];
    }
    any
}

/// The rules' bits of a group of output pixels.
///
/// # Safety
/// As [`convolve`].
#[inline(always)]
unsafe fn rule_masks<P: Product, const PIXELS: usize, const BLOCKS: usize>(
    task: &Convolution<'_>,
    group: &[Position; PIXELS],
    block: usize,
) -> [[u32; BLOCKS]; PIXELS] {
    // SAFETY: as above.
    let accumulators = unsafe { accumulators::<P, PIXELS, BLOCKS>(task, group, block) };
    let mut masks = [[0; BLOCKS]; PIXELS];
    for p in 0..PIXELS {
        for b in 0..BLOCKS {
            let acc = accumulators[p][b];
            // SAFETY: as above.
            masks[p][b] = unsafe {
                match task.limits.is_empty() {
                    true => mask(task, &task.rules, group[p], group[p].pixel, block + b, acc),
                    false => acc.at_least(P::Vector::load(&task.limits[group[p].class + block + b])),
                }
            };
        }
    }
    masks
}

/// The bits of one block of channels of one pixel.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn mask<V: Lanes>(
    task: &Convolution<'_>,
    rules: &BlockRules<'_>,
    at: Position,
    out_pixel: usize,
    block: usize,
    acc: V,
) -> u32 {
    let pixel = rules.per_conv * at.pixel + rules.per_output * out_pixel;
    let line = rules.per_class * at.class + pixel * task.blocks + block;
    let flips = rules.flip[pixel * task.blocks.div_ceil(2) + block / 2] >> (16 * (block % 2));
    // SAFETY: as above.
    let inside = unsafe { acc.between(V::load(&rules.lo[line]), V::load(&rules.hi[line])) };
    inside ^ (flips & 0xFFFF)
}

/// The accumulators (the sums of products, where corrections are folded) of a group of pixels, for `BLOCKS` blocks of channels from `block` on.
///
/// # Safety
/// As [`convolve`], and the positions come from [`Convolution::at`].
#[inline(always)]
unsafe fn accumulators<P: Product, const PIXELS: usize, const BLOCKS: usize>(
    task: &Convolution<'_>,
    group: &[Position; PIXELS],
    block: usize,
) -> [[P::Vector; BLOCKS]; PIXELS] {
    let taps = task.offsets.len();
    let weights = &task.weights[block * taps..(block + BLOCKS) * taps];
    if task.product == ProductKind::Depthwise {
        // SAFETY: as above.
        return unsafe { depthwise(task, group, block, weights) };
    }
    // SAFETY: a window's first byte is in rows `row_classes.len()` and columns `column_classes.len()`, so that
    // the largest offset from it is within `reach`, and `reach` within the plane. `weights` has BLOCKS * taps
    // lines. The instructions are there, as above.
    unsafe {
        let windows = group.map(|at| task.plane.as_ptr().add(at.window));
        let mut totals = [[P::Vector::splat(0); BLOCKS]; PIXELS];
        let mut first = 0;
        while first < taps {
            let end = first + P::LIMIT.min(taps - first);
            let mut sums = [[P::zero(); BLOCKS]; PIXELS];
            for tap in first..end {
                let offset = *task.offsets.get_unchecked(tap) as usize;
                let mut filters = [P::Vector::splat(0); BLOCKS];
                for b in 0..BLOCKS {
                    filters[b] = P::Vector::load(weights.get_unchecked(b * taps + tap));
                }
                for p in 0..PIXELS {
                    let word = windows[p].add(offset).cast::<u32>().read_unaligned();
                    let activations = P::Vector::splat(word);
                    for b in 0..BLOCKS {
                        sums[p][b] = P::add(sums[p][b], activations, filters[b]);
                    }
                }
            }
            for p in 0..PIXELS {
                for b in 0..BLOCKS {
                    totals[p][b] = totals[p][b].add(P::total(sums[p][b]));
                }
            }
            first = end;
        }
        corrected(task, group, block, totals)
    }
}

/// Sums made accumulators, where corrections are not folded into the rules.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn corrected<V: Lanes, const PIXELS: usize, const BLOCKS: usize>(
    task: &Convolution<'_>,
    group: &[Position; PIXELS],
    block: usize,
    mut totals: [[V; BLOCKS]; PIXELS],
) -> [[V; BLOCKS]; PIXELS] {
    if task.corrections.is_empty() {
        return totals;
    }
    for p in 0..PIXELS {
        for b in 0..BLOCKS {
            // SAFETY: as above.
            unsafe {
                let correction = V::load(&task.corrections[group[p].class + block + b]);
                totals[p][b] = totals[p][b].scale(task.factor).add(correction);
            }
        }
    }
    totals
}

/// As [`accumulators`], where each channel has its own bit of the window's words.
///
/// # Safety
/// As [`accumulators`].
#[inline(always)]
unsafe fn depthwise<V: Lanes, const PIXELS: usize, const BLOCKS: usize>(
    task: &Convolution<'_>,
    group: &[Position; PIXELS],
    block: usize,
    weights: &[Line],
) -> [[V; BLOCKS]; PIXELS] {
    let taps = task.offsets.len();
    // SAFETY: as for `accumulators`; the words of a pixel are `word_bytes`, which `reach` counts in.
    unsafe {
        let mut totals = [[V::splat(0); BLOCKS]; PIXELS];
        for b in 0..BLOCKS {
            let (at, shift) = ((block + b) / 2 * size_of::<u32>(), 16 * ((block + b) % 2));
            for (line, &offset) in weights[b * taps..(b + 1) * taps].iter().zip(task.offsets) {
                for p in 0..PIXELS {
                    let word = task.plane.as_ptr().add(group[p].window + offset as usize + at);
                    let bits = word.cast::<u32>().read_unaligned() >> shift;
                    totals[p][b] = totals[p][b].add_bits(bits ^ line.0[0]);
                }
            }
        }
        corrected(task, group, block, totals)
    }
}
