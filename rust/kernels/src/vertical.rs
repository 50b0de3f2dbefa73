/*!
Binary convolution by vertical counters: 32 output channels at once, walking the set input bits.

Weights lie by output channel ([`lanes`](crate::lanes)), so a set input bit selects one word per tap, and adding the
selected words into a vertical counter counts, for 32 channels at once, the set bits whose weight is +1. With s that
count, X the set bits of a window, K its products and W a filter's weights +1 inside the image,

```text
acc = K - 2 (bits that differ) = K - 2 (X + W - 2 s) = 2 e + K mod 2,   e = 2 s - W - (X - K / 2)
```

W changes with the border class alone. So a counter does not begin at 0 but at -W - L, with L the rule's lower bound
on e, counts in steps of two, and ends as e - L plus a number that all channels share: that number is subtracted bit
by bit, and the sign decides 32 rules at once. A rule with two sides takes one comparison more. Nothing is
ever counted in a loop over channels.

A row of output pixels is made from the columns of its input: each column's set bits are listed once, a byte a bit, and
the list is then used for each kernel column and each group of 32 output channels. So several windows are open at a
time, and border pixels are no case of their own: what is outside is in no list.

Everything is modulo 2 to the width of a counter, which has room for every e - L with its sign.
*/

use crate::ArgumentError;
use crate::arch::{Bits, PICK_BLOCK, Picks, Windows, add_picked, counter_words};
use crate::bbconv2d::Padding;
use crate::bits::lane_mask;
use crate::conv::ConvLayer;
use crate::error::check_length;
use crate::lanes::{LaneShape, SEGMENT};
use crate::rule::{Grid, Rules};
use crate::shape::{Conv2dGeometry, MAX_ELEMENTS, Sliding, Window};

/// What the walk keeps in its scratch, in words, in the order of the parts.
#[derive(Debug, Clone, Copy)]
struct Plan {
    shape: LaneShape,
    /// Width of a counter, sign included.
    planes: usize,
    /// Windows that are open at a time, each an X and one counter a group.
    open: usize,
    /// Border classes of a row, each the beginnings of one counter a group.
    classes: usize,
    /// Rules are the same at all pixels, so that their bounds are made once.
    based: bool,
    /// Bounds, by rule set, by parity of K where both occur, and by group.
    parities: usize,
    rule_sets: usize,
    /// The list of a column's set bits.
    list: usize,
    /// Veto bits of the pooled rows that are open at a time.
    veto_rows: usize,
    veto_row: usize,
}

impl Plan {
    fn new(layer: &ConvLayer<'_>, padding: Padding) -> Self {
        let geometry = &layer.geometry;
        let window = geometry.sliding().window();
        let shape = LaneShape::new(geometry.output().channels(), window.kernel, geometry.input().channels());
        let veto = layer.pool.as_ref().filter(|pool| pool.veto().is_some());
        // |e - L| is at most K + 4, and plane 0 lies below the words that are counted.
        let bits = usize::BITS - (geometry.products() + 4).leading_zeros();
        let channel_grid = [Some(&layer.rules), veto.and_then(|pool| pool.veto())]
            .into_iter()
            .flatten()
            .all(|rules| rules.grid() == Grid::Channel);
        Self {
            shape,
            planes: 1 + counter_words(bits as usize),
            open: span(window.kernel[1], window.dilation[1]).div_ceil(window.strides[1]),
            classes: match padding {
                Padding::One => 1,
                Padding::Zero => classes(geometry.sliding()),
            },
            based: channel_grid,
            parities: if channel_grid && geometry.input().channels() % 2 == 1 { 2 } else { 1 },
            rule_sets: if veto.is_some() { 2 } else { 1 },
            list: (shape.column_pixels().min(SEGMENT) * 32 + PICK_BLOCK) / 4,
            veto_rows: veto.map_or(0, |pool| {
                let window = pool.sliding().window();
                span(window.kernel[0], window.dilation[0]).div_ceil(window.strides[0])
            }),
            veto_row: layer.output().width() * layer.output().pixel_words(),
        }
    }

    /// Words of an open window.
    fn window(&self) -> usize {
        1 + self.counters()
    }

    /// Words of one counter a group.
    fn counters(&self) -> usize {
        self.shape.groups() * self.planes
    }

    /// Words of one group's bounds.
    fn bounds(&self) -> usize {
        BOUNDS_HEAD + 2 * self.planes
    }

    /// Words of the parts: windows, classes, bounds, veto, list.
    fn parts(&self) -> [u64; 5] {
        let product = |factors: &[usize]| factors.iter().map(|&f| f as u64).product();
        [
            product(&[self.open, self.window()]),
            product(&[self.classes, self.counters()]),
            product(&[self.rule_sets, self.parities, self.shape.groups(), self.bounds()]),
            product(&[self.veto_rows, self.veto_row]),
            self.list as u64,
        ]
    }
}

/// Pixels from the first tap to the last.
fn span(kernel: usize, dilation: usize) -> usize {
    (kernel - 1) * dilation + 1
}

/// Runs of output columns with the same taps inside the image.
fn classes(sliding: &Sliding) -> usize {
    let changes = (1..sliding.output_width())
        .filter(|&x| sliding.taps_inside(1, x) != sliding.taps_inside(1, x - 1))
        .count();
    1 + changes
}

/// Words of scratch that [`convolve`] needs, and four-byte words of list beside it.
///
/// # Errors
/// [`ArgumentError::TooLarge`] where a layer would need more than anybody has.
pub(crate) fn scratch_words(
    layer: &ConvLayer<'_>,
    padding: Padding,
) -> Result<(usize, usize), ArgumentError> {
    let parts = Plan::new(layer, padding).parts();
    if parts.iter().sum::<u64>() > MAX_ELEMENTS as u64 {
        return Err(ArgumentError::TooLarge { argument: "kernel", limit: MAX_ELEMENTS });
    }
    let [scratch @ .., list] = parts.map(|words| words as usize);
    Ok((scratch.iter().sum(), list))
}

/// First words of a group's bounds: what there is to compare, and the flips.
const BOUNDS_HEAD: usize = 2;
/// e - L is to be compared with the lower planes: they are not all 0.
const HAS_LOWER: u32 = 1;
/// e - L is to be compared with the upper planes: some lane has a bound above.
const HAS_UPPER: u32 = 2;

/// Writes 32 numbers as planes: bit l of plane b is bit b of `number(l)`.
fn slice(planes: &mut [u32], lanes: usize, number: impl Fn(usize) -> i32) {
    planes.fill(0);
    for lane in 0..lanes {
        let mut rest = number(lane);
        for plane in planes.iter_mut() {
            *plane |= (rest as u32 & 1) << lane;
            rest >>= 1;
        }
    }
}

/// `a - b` in each lane, in place; b may have one plane less.
fn subtract(a: &mut [u32], b: &[u32]) {
    let mut borrow = 0;
    for (a, b) in a.iter_mut().zip(b) {
        let half = *a ^ b;
        let next = (!*a & b) | (!half & borrow);
        (*a, borrow) = (half ^ borrow, next);
    }
    if let Some(top) = a.get_mut(b.len()) {
        *top ^= borrow;
    }
}

/// The sign of `a - b` in each lane, and the lanes in which it is below each of the bounds, all signed.
#[inline]
fn compare<const N: usize>(a: &[u32], b: i32, bounds: [&[u32]; N]) -> (u32, [u32; N]) {
    let bounds = bounds.map(|bound| &bound[..a.len()]);
    let (mut borrow, mut rest, mut difference) = (0, b, 0);
    let (mut borrows, mut halves) = ([0; N], [0; N]);
    for (plane, &a) in a.iter().enumerate() {
        let bit = -(rest & 1) as u32;
        rest >>= 1;
        let half = a ^ bit;
        difference = half ^ borrow;
        borrow = (!a & bit) | (!half & borrow);
        for ((bound, borrow), half) in bounds.iter().zip(&mut borrows).zip(&mut halves) {
            let bound = bound[plane];
            *half = difference ^ bound;
            *borrow = (!difference & bound) | (!*half & *borrow);
        }
    }
    // Where the signs differ the negative one is the smaller. Otherwise the difference's sign, which is the borrow.
    (difference, core::array::from_fn(|at| (halves[at] & difference) | (!halves[at] & borrows[at])))
}

/// Bounds on e for the lanes of one group: `L <= e`, and `e < L + G` where a lane has two sides.
struct Bounds<'s> {
    head: &'s mut [u32],
    lower: &'s mut [u32],
    upper: &'s mut [u32],
}

impl<'s> Bounds<'s> {
    fn of(words: &'s mut [u32], planes: usize) -> Self {
        let (head, rest) = words.split_at_mut(BOUNDS_HEAD);
        let (lower, upper) = rest.split_at_mut(planes);
        Self { head, lower, upper }
    }

    /// Bounds of the rules of `group` at rule pixel `at`, for accumulators in `-products..=products` with the
    /// given parity.
    fn set(&mut self, rules: &Rules<'_>, at: usize, group: usize, products: i32, parity: i32) {
        let (lo, hi) = rules.intervals(at);
        let (lo, hi) = (&lo[32 * group..], &hi[32 * group..]);
        let lanes = lo.len().min(32);
        // Beyond the reach of any accumulator one bound is like another, and these keep the planes few.
        let reach = |bound: i32| bound.clamp(-products - 2, products + 2);
        // A lane that is bounded above alone is the complement of one that is bounded below alone.
        let falls = |lane: usize| lo[lane] <= -products && hi[lane] < products && lo[lane] <= hi[lane];
        // acc = 2 e + parity, so acc >= lo where e >= ceil((lo - parity) / 2).
        let least = |bound: i32| (reach(bound) - parity + 1) >> 1;
        let most = |bound: i32| (reach(bound) - parity) >> 1;
        slice(self.lower, lanes, |lane| if falls(lane) { most(hi[lane]) + 1 } else { least(lo[lane]) });
        let endless = 1 << (self.upper.len() - 2);
        let two_sided = |lane: usize| !falls(lane) && hi[lane] < products;
        let mut flips = rules.flips(at)[group];
        self.head[0] = HAS_LOWER;
        for lane in 0..lanes {
            flips ^= u32::from(falls(lane)) << lane;
            if two_sided(lane) {
                self.head[0] |= HAS_UPPER;
            }
        }
        self.head[1] = flips;
        slice(self.upper, lanes, |lane| if two_sided(lane) { most(hi[lane]) + 1 } else { endless });
    }

    /// Makes the bounds relative to other lower ones.
    fn rebase(&mut self, base: &[u32]) {
        subtract(self.lower, base);
        subtract(self.upper, base);
    }

    /// Makes the bounds relative to their own lower ones, which stay where they are.
    fn become_base(&mut self) {
        subtract(self.upper, self.lower);
        self.head[0] &= !HAS_LOWER;
    }

    /// The bits of all lanes for e, which is `counter` less `shared`, relative to what the bounds are.
    fn bits(&self, counter: &[u32], shared: i32) -> u32 {
        let inside = match (self.head[0] & HAS_LOWER != 0, self.head[0] & HAS_UPPER != 0) {
            (false, false) => !compare(counter, shared, []).0,
            (false, true) => {
                let (negative, [below]) = compare(counter, shared, [self.upper]);
                below & !negative
            }
            // Without a bound above, that one is beyond every e.
            (true, _) => {
                let (_, [outside, below]) = compare(counter, shared, [self.lower, self.upper]);
                below & !outside
            }
        };
        inside ^ self.head[1]
    }
}

/// A run of [`convolve`]: its plan and its scratch.
struct Walk<'a> {
    layer: &'a ConvLayer<'a>,
    padding: Padding,
    plan: Plan,
    mask: &'a [u32],
    /// Groups of 32 output channels, kernel columns inside.
    lanes: &'a [u32],
    input: &'a [u32],
    windows: &'a mut [u32],
    classes: &'a mut [u32],
    bounds: &'a mut [u32],
    picks: Picks<'a>,
    veto: &'a mut [u32],
    /// Pooled rows that are finished.
    pooled: usize,
}

/// The convolution of `layer` with the weights `lanes`.
///
/// # Errors
/// [`ArgumentError::Length`] naming the slice.
pub(crate) fn convolve(
    layer: &ConvLayer<'_>,
    padding: Padding,
    lanes: &[u32],
    input: &[u32],
    output: &mut [u32],
    list: &mut [[u8; 4]],
    scratch: &mut [u32],
) -> Result<(), ArgumentError> {
    let plan = Plan::new(layer, padding);
    check_length("output", layer.output().words(), output.len())?;
    let (mask, lanes) = lanes.split_at(plan.shape.pixel_words());
    let [windows, classes, bounds, ..] = plan.parts().map(|words| words as usize);
    let (windows, rest) = scratch.split_at_mut(windows);
    let (classes, rest) = rest.split_at_mut(classes);
    let (bounds, veto) = rest.split_at_mut(bounds);
    let picks = Picks::new(list);
    let pooled = 0;
    Walk { layer, padding, plan, mask, lanes, input, windows, classes, bounds, picks, veto, pooled }
        .run(output);
    Ok(())
}

impl<'a> Walk<'a> {
    fn geometry(&self) -> &'a Conv2dGeometry {
        &self.layer.geometry
    }

    fn run(&mut self, output: &mut [u32]) {
        let pooled = self.layer.pool.is_some();
        if pooled {
            output.fill(0);
            self.veto.fill(0);
        }
        if self.plan.based {
            self.set_based_bounds();
        }
        let mut class = None;
        for y in 0..self.geometry().output().height() {
            self.close_pooled(y, output);
            if !pooled || self.targets(0, y).next().is_some() {
                let rows = self.taps_inside(0, y);
                if class != Some(rows) {
                    self.enter(class, rows);
                    class = Some(rows);
                }
                self.row(y, rows, output);
            }
        }
        self.close_pooled(usize::MAX, output);
    }

    /// The taps along `axis` that contribute at output coordinate `at`.
    #[inline]
    fn taps_inside(&self, axis: usize, at: usize) -> (usize, usize) {
        let sliding = self.layer.geometry.sliding();
        match self.padding {
            Padding::One => (0, sliding.window().kernel[axis]),
            Padding::Zero => sliding.taps_inside(axis, at),
        }
    }

    /// The products of a window with so many taps inside.
    fn products(&self, rows: (usize, usize), columns: (usize, usize)) -> i32 {
        ((rows.1 - rows.0) * (columns.1 - columns.0) * self.layer.geometry.input().channels()) as i32
    }

    /// Rules of set 0 (the rule) or 1 (the veto).
    fn rules(&self, set: usize) -> &'a Rules<'a> {
        let veto = self.layer.pool.as_ref().and_then(|pool| pool.veto());
        if set == 0 { &self.layer.rules } else { veto.unwrap_or(&self.layer.rules) }
    }

    /// The bounds of one group. Where there is one parity for all, it does not matter which is asked for.
    fn bounds(&mut self, set: usize, parity: usize, group: usize) -> Bounds<'_> {
        let parity = parity % self.plan.parities;
        let index = (set * self.plan.parities + parity) * self.plan.shape.groups() + group;
        let words = self.plan.bounds();
        Bounds::of(&mut self.bounds[index * words..(index + 1) * words], self.plan.planes)
    }

    /// Bounds of a rule set at rule pixel `at`.
    fn set_bounds(&mut self, set: usize, at: usize, parity: usize) {
        let (rules, products) = (self.rules(set), self.layer.geometry.products() as i32);
        for group in 0..self.plan.shape.groups() {
            self.bounds(set, parity, group).set(rules, at, group, products, parity as i32);
        }
    }

    /// Bounds that are the same at all pixels, all of them relative to the rule's lower ones.
    fn set_based_bounds(&mut self) {
        // The parity of K: that of its channels where there are two, else K is even.
        for parity in 0..self.plan.parities {
            for set in 0..self.plan.rule_sets {
                self.set_bounds(set, 0, parity);
            }
            for group in 0..self.plan.shape.groups() {
                if self.plan.rule_sets == 2 {
                    let veto = self.plan.parities * self.plan.shape.groups() * self.plan.bounds();
                    let at = (parity * self.plan.shape.groups() + group) * self.plan.bounds();
                    let (rule, veto) = self.bounds.split_at_mut(veto);
                    let base = &Bounds::of(&mut rule[at..at + self.plan.bounds()], self.plan.planes).lower;
                    Bounds::of(&mut veto[at..at + self.plan.bounds()], self.plan.planes).rebase(base);
                }
                self.bounds(0, parity, group).become_base();
            }
        }
    }

    /// The border classes of a row, in order: calls `each` with the first output column and its taps.
    fn each_class(&self, mut each: impl FnMut(usize, (usize, usize))) {
        let (mut class, mut last) = (0, None);
        for x in 0..self.layer.geometry.output().width() {
            let columns = self.taps_inside(1, x);
            if last != Some(columns) {
                each(class, columns);
                class += 1;
                last = Some(columns);
            }
        }
    }

    /// What the counters of each class begin at, for windows with these rows inside: -W, and -L where based. `last` are the
    /// rows that it was for before: their W differs by the rows that came and went.
    #[inline(never)]
    fn enter(&mut self, last: Option<(usize, usize)>, rows: (usize, usize)) {
        let (plan, shape) = (self.plan, self.plan.shape);
        // With two parities L may be another one.
        let last = last.filter(|_| plan.parities == 1);
        if last.is_none() {
            self.classes.fill(0);
        }
        if plan.based && last.is_none() {
            let classes = core::mem::take(&mut self.classes);
            self.each_class(|class, columns| {
                let parity = self.products(rows, columns) as usize & 1;
                for group in 0..shape.groups() {
                    let at = (parity % plan.parities * shape.groups() + group) * plan.bounds() + BOUNDS_HEAD;
                    let counter =
                        &mut classes[(class * shape.groups() + group) * plan.planes..][..plan.planes];
                    subtract(counter, &self.bounds[at..at + plan.planes]);
                }
            });
            self.classes = classes;
        }
        let last = last.unwrap_or((rows.0, rows.0));
        let without = |a: (usize, usize), b: (usize, usize)| [(a.0, a.1.min(b.0)), (a.0.max(b.1), a.1)];
        for rows in without(rows, last) {
            self.count_rows(rows, subtract);
        }
        for rows in without(last, rows) {
            self.count_rows(rows, |counter, sum| {
                // a + b, as all numbers are modulo a power of two: the complement of ~a - b.
                counter.iter_mut().for_each(|word| *word = !*word);
                subtract(counter, sum);
                counter.iter_mut().for_each(|word| *word = !*word);
            });
        }
    }

    /// Changes the beginnings of each class by the sum of the weights in some rows, as `change` says.
    fn count_rows(&mut self, rows: (usize, usize), change: fn(&mut [u32], &[u32])) {
        if rows.0 >= rows.1 {
            return;
        }
        let (plan, shape) = (self.plan, self.plan.shape);
        let only = Windows {
            slots: 1,
            size: 1 + plan.planes,
            groups: 1,
            planes: plan.planes,
            first: 0,
            count: 1,
            tap_words: 0,
            group_words: 0,
            picked: 0,
        };
        let classes = core::mem::take(&mut self.classes);
        for segment in 0..shape.segments() {
            self.list(segment, rows, None, (0, 0));
            let start = shape.before(segment * SEGMENT) + segment;
            for group in 0..shape.groups() {
                for column in 0..shape.columns() {
                    // No window is open: the first one is free. The words count in steps of two here too.
                    self.windows[..=plan.planes].fill(0);
                    let words = start + group * shape.group_words() + column * shape.column_words();
                    add_picked(self.windows, only, &self.lanes[words..], &self.picks);
                    let sum = &self.windows[2..=plan.planes];
                    self.each_class(|class, columns| {
                        if (columns.0..columns.1).contains(&column) {
                            let at = (class * shape.groups() + group) * plan.planes;
                            change(&mut classes[at..at + plan.planes], sum);
                        }
                    });
                }
            }
        }
        self.classes = classes;
    }

    /// Lists the set bits of a segment of a column, in the rows that are inside. Returns how many there are.
    ///
    /// With `first`, the column begins at that word of the image in kernel row `read.0`, and is read up to row
    /// `read.1`; what is not read is +1 everywhere. Without, every bit counts as set. (As functions of their own, this and its siblings have the
    /// registers that their loops need.)
    #[inline(never)]
    fn list(
        &mut self,
        segment: usize,
        rows: (usize, usize),
        first: Option<usize>,
        read: (usize, usize),
    ) -> usize {
        let (words, channels) = (self.plan.shape.pixel_words(), self.plan.shape.channels());
        let geometry = self.geometry();
        let step = geometry.sliding().window().dilation[0] * geometry.input().width() * words;
        let last = lane_mask(channels, words - 1);
        let start = segment * SEGMENT;
        let end = (start + SEGMENT).min(self.plan.shape.column_pixels());
        self.picks.clear();
        if let Some(first) = first
            && words == 1
            && end == self.plan.shape.column_pixels()
            && start == 0
            && rows == read
            && rows.0 < rows.1
        {
            // One word a pixel, all of them read: nearly every small network.
            let bits = Bits { mask: self.mask[0], all: last, channels };
            self.picks.push_column(&self.input[first..], step, rows.1 - rows.0, rows.0 * channels, bits);
            let count = self.picks.len();
            self.picks.pad((end * channels) as u8);
            return count;
        }
        let (mut row, mut word, mut index) = (start / words, start % words, 0);
        let mut at = first.unwrap_or(0).wrapping_add(row.wrapping_sub(read.0).wrapping_mul(step));
        for _ in start..end {
            if rows.0 <= row && row < rows.1 {
                let all = if word + 1 == words { last } else { u32::MAX };
                // Unused bits, should anybody have set them, must select nothing.
                let bits = match read.0 <= row && row < read.1 {
                    true => (self.input[at + word] ^ self.mask[word]) & all,
                    false if first.is_none() => all,
                    false => !self.mask[word] & all,
                };
                self.picks.push(bits, index);
            }
            word += 1;
            index += 32;
            if word == words {
                index = index + channels - 32 * words;
                at = at.wrapping_add(step);
                (row, word) = (row + 1, 0);
            }
        }
        let count = self.picks.len();
        self.picks.pad(index as u8);
        count
    }

    /// One row of output pixels.
    #[inline(never)]
    fn row(&mut self, y: usize, rows: (usize, usize), output: &mut [u32]) {
        let geometry = self.geometry();
        let (input, sliding) = (geometry.input(), geometry.sliding());
        let window = sliding.window();
        let (stride, left) = (window.strides[1], window.padding[1]);
        let width = geometry.output().width();
        let span = span(window.kernel[1], window.dilation[1]);
        let read = sliding.taps_inside(0, y);
        let first_row = (y * window.strides[0] + read.0 * window.dilation[0]).wrapping_sub(window.padding[0]);
        // The next window to open, with its border class and slot.
        let (mut opened, mut class, mut last, mut slot) = (0, 0, None, 0);
        // The next window to finish, and its last column.
        let (mut finished, mut end) = (0, span - 1);
        // Columns of the padded input.
        for column in 0..(width - 1) * stride + span {
            if opened < width && opened * stride == column {
                let columns = self.taps_inside(1, opened);
                if last.is_some_and(|last| last != columns) {
                    class += 1;
                }
                last = Some(columns);
                self.open(slot, class);
                opened += 1;
                slot = if slot + 1 == self.plan.open { 0 } else { slot + 1 };
            }
            let x = column.wrapping_sub(left);
            let is_inside = x < input.width();
            if is_inside || self.padding == Padding::One {
                let first =
                    first_row.wrapping_mul(input.width()).wrapping_add(x).wrapping_mul(input.pixel_words());
                for segment in 0..self.plan.shape.segments() {
                    let count = self.list(segment, rows, Some(first), if is_inside { read } else { (0, 0) });
                    self.add(segment, count, column, opened, slot);
                }
            }
            if column == end {
                self.finish(y, finished, rows, output);
                finished += 1;
                end += stride;
            }
        }
    }

    /// Opens a window of a border class.
    #[inline]
    fn open(&mut self, slot: usize, class: usize) {
        let window = &mut self.windows[slot * self.plan.window()..][..self.plan.window()];
        window[0] = 0;
        let begin = &self.classes[class * self.plan.counters()..][..self.plan.counters()];
        for (word, begin) in window[1..].iter_mut().zip(begin) {
            *word = *begin;
        }
    }

    /// Adds the listed bits of a column to the windows that hold it: the newest of them is `opened` - 1, before
    /// `slot`.
    #[inline(never)]
    fn add(&mut self, segment: usize, count: usize, column: usize, opened: usize, slot: usize) {
        let shape = &self.plan.shape;
        let window = self.layer.geometry.sliding().window();
        let (stride, dilation) = (window.strides[1], window.dilation[1]);
        let span = span(window.kernel[1], dilation);
        // The newest window's column, counted from its first.
        let newest = column.wrapping_sub(opened.wrapping_sub(1).wrapping_mul(stride));
        if opened == 0 || newest >= span {
            return;
        }
        let count_open = ((span - 1 - newest) / stride + 1).min(opened);
        let mut windows = Windows {
            slots: self.plan.open,
            size: self.plan.window(),
            groups: shape.groups(),
            planes: self.plan.planes,
            first: if slot == 0 { self.plan.open } else { slot } - 1,
            count: count_open,
            tap_words: stride * shape.column_words(),
            group_words: shape.group_words(),
            picked: count,
        };
        let lanes = &self.lanes[shape.before(segment * SEGMENT) + segment..];
        if dilation == 1 {
            add_picked(self.windows, windows, &lanes[newest * shape.column_words()..], &self.picks);
            return;
        }
        windows.count = 1;
        for offset in (newest..).step_by(stride).take(count_open) {
            if offset.is_multiple_of(dilation) {
                let words = &lanes[offset / dilation * shape.column_words()..];
                add_picked(self.windows, windows, words, &self.picks);
            }
            windows.first = windows.first.checked_sub(1).unwrap_or(windows.slots - 1);
        }
    }

    /// The bits of output pixel (y, x), whose window is complete.
    #[inline(never)]
    fn finish(&mut self, y: usize, x: usize, rows: (usize, usize), output: &mut [u32]) {
        let plan = &self.plan;
        let products = self.products(rows, self.taps_inside(1, x));
        let parity = products as usize & 1;
        let start = x % plan.open * plan.window();
        let shared = self.windows[start] as i32 - (products >> 1);
        let conv_pixel = y * self.geometry().output().width() + x;
        let words = self.layer.output().pixel_words();
        let Some(pool) = &self.layer.pool else {
            let to = &mut output[conv_pixel * words..][..words];
            self.bits(0, conv_pixel, conv_pixel, parity, (start, shared), |group, bits| to[group] = bits);
            return;
        };
        let window = pool.sliding().window();
        if window.kernel == window.strides && window.padding[..2] == [0, 0] && window.dilation == [1, 1] {
            // By far the most pools: each pixel belongs to one window.
            let (pooled_y, pooled_x) = (y / window.strides[0], x / window.strides[1]);
            if pooled_x < self.layer.output().width() {
                self.pool(pooled_y, pooled_x, conv_pixel, parity, (start, shared), output);
            }
            return;
        }
        for pooled_y in self.targets(0, y) {
            for pooled_x in self.targets(1, x) {
                self.pool(pooled_y, pooled_x, conv_pixel, parity, (start, shared), output);
            }
        }
    }

    /// Adds the bits of a pixel of the convolution to those of a pooled one.
    fn pool(
        &mut self,
        y: usize,
        x: usize,
        conv_pixel: usize,
        parity: usize,
        counters: (usize, i32),
        output: &mut [u32],
    ) {
        let words = self.layer.output().pixel_words();
        let pixel = y * self.layer.output().width() + x;
        let to = &mut output[pixel * words..][..words];
        self.bits(0, conv_pixel, pixel, parity, counters, |group, bits| to[group] |= bits);
        if self.plan.rule_sets == 2 {
            let veto = core::mem::take(&mut self.veto);
            let to = &mut veto[y % self.plan.veto_rows * self.plan.veto_row + x * words..][..words];
            self.bits(1, conv_pixel, pixel, parity, counters, |group, bits| to[group] |= bits);
            self.veto = veto;
        }
    }

    /// The bits of one rule set, group by group, for the counters at `start` of the windows, all to be less by `shared`.
    fn bits(
        &mut self,
        set: usize,
        conv_pixel: usize,
        pixel: usize,
        parity: usize,
        (start, shared): (usize, i32),
        mut put: impl FnMut(usize, u32),
    ) {
        if !self.plan.based {
            self.set_bounds(set, self.rules(set).pixel(conv_pixel, pixel), parity);
        }
        let windows = core::mem::take(&mut self.windows);
        for (group, counter) in
            windows[start + 1..].chunks_exact(self.plan.planes).take(self.plan.shape.groups()).enumerate()
        {
            let bits = self.bounds(set, parity, group).bits(counter, shared);
            put(group, bits & lane_mask(self.layer.output().channels(), group));
        }
        self.windows = windows;
    }

    /// The pooled coordinates along `axis` whose window holds coordinate `at` of the convolution.
    fn targets(&self, axis: usize, at: usize) -> impl Iterator<Item = usize> + use<> {
        let (window, size) = match &self.layer.pool {
            Some(pool) => {
                let sliding = pool.sliding();
                (*sliding.window(), [sliding.output_height(), sliding.output_width()][axis])
            }
            None => (Window::of(0, 0), 0),
        };
        (0..window.kernel[axis]).filter_map(move |tap| {
            let from = (at + window.padding[axis]).checked_sub(tap * window.dilation[axis])?;
            let target = from / window.strides[axis];
            (target * window.strides[axis] == from && target < size).then_some(target)
        })
    }

    /// Finishes the pooled rows whose last row of the convolution was before `y`.
    fn close_pooled(&mut self, y: usize, output: &mut [u32]) {
        let Some(pool) = &self.layer.pool else { return };
        let (sliding, window) = (pool.sliding(), pool.sliding().window());
        while self.pooled < sliding.output_height() {
            let (first, end) = sliding.taps_inside(0, self.pooled);
            // A window that lies in the padding has no last row.
            if end > first
                && self.pooled * window.strides[0] + (end - 1) * window.dilation[0]
                    >= y.saturating_add(window.padding[0])
            {
                return;
            }
            let words = self.layer.output().pixel_words();
            let row = &mut output[self.pooled * self.plan.veto_row..][..self.plan.veto_row];
            for (at, bits) in row.iter_mut().enumerate() {
                if self.plan.rule_sets == 2 {
                    let veto = &mut self.veto[self.pooled % self.plan.veto_rows * self.plan.veto_row + at];
                    *bits &= !core::mem::take(veto);
                }
                *bits ^= pool.invert(at % words);
            }
            self.pooled += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_in_lanes_compare_and_subtract_as_numbers_do(
            a in prop::array::uniform32(-500..500i32),
            b in prop::array::uniform32(-500..500i32),
            c in -500..500i32,
        ) {
            let sliced = |numbers: [i32; 32]| {
                let mut planes = [0; 12];
                slice(&mut planes, 32, |lane| numbers[lane]);
                planes
            };
            let lanes = |predicate: &dyn Fn(usize) -> bool| {
                (0..32).fold(0, |word, lane| word | (u32::from(predicate(lane)) << lane))
            };
            let (negative, [below_b, below_a]) = compare(&sliced(a), c, [&sliced(b), &sliced(a)]);
            prop_assert_eq!(negative, lanes(&|lane| a[lane] < c));
            prop_assert_eq!(below_b, lanes(&|lane| a[lane] - c < b[lane]));
            prop_assert_eq!(below_a, lanes(&|_| c > 0));
            let mut difference = sliced(a);
            subtract(&mut difference, &sliced(b));
            prop_assert_eq!(difference, sliced(core::array::from_fn(|lane| a[lane] - b[lane])));
        }
    }
}
