/*!
Binary convolution by vertical counters: 32 output channels at once, walking the input bits that change from window to window.

Weights lie by output channel ([`by_output_channel`](crate::layouts::by_output_channel)), so a set input bit selects one word per tap, and adding the
selected words into a vertical counter counts, for 32 channels at once, the set bits whose weight is +1. With s that
count, X the set bits of a window, K its products and W a filter's weights +1 inside the image,

```text
acc = K - 2 (bits that differ) = K - 2 (X + W - 2 s) = 2 e + K mod 2,   e = 2 s - W - (X - K / 2)
```

W changes with the border class alone. So a counter does not begin at 0 but at -W - L, with L the rule's lower bound
on e, counts in steps of two, and ends as e - L plus a number that all channels share: that number is subtracted bit
by bit, and the sign decides 32 rules at once. A rule with two sides takes one comparison more. Nothing is
ever counted in a loop over channels.

Neighbouring pixels are alike. So what is listed of an input column is what differs from the column that lies there before the
window moves: bits that came and bits that went, a byte a bit. A window's counter is that of the window before, with the words
of each kernel column's list added, or taken away; a row begins with a window that lies outside. A list is made once, and kept
while windows reach the column, for each kernel column and each group of 32 output channels. Border pixels are no case of
their own: outside, nothing changes.

To take a word away, its complement is added, which is one too many in each lane; all lanes share that number.

Everything is modulo 2 to the width of a counter, which has room for every e - L with its sign.
*/

use crate::ArgumentError;
use crate::arch::{
    Moving, add_list, add_planes, bytes_of_mut, compare, counter_words, inside, move_on, transpose,
};
use crate::bits::lane_mask;
use crate::epilogue::Rules;
use crate::error::check_length;
use crate::layouts::by_output_channel::GroupShape;
use crate::methods::conv::ConvLayer;
use crate::shape::Padding;
use crate::shape::{Conv2dGeometry, MAX_ELEMENTS, Sliding, Window};

/// What the walk keeps in its scratch, in words, in the order of the parts.
#[derive(Debug, Clone, Copy)]
struct Plan {
    shape: GroupShape,
    groups: usize,
    segments: usize,
    /// Width of a counter, sign included.
    planes: usize,
    /// Words of an output pixel.
    pixel_words: usize,
    /// Output channels of the last group.
    last_lanes: u32,
    /// Columns that are listed at a time.
    columns: usize,
    /// Border classes of a row, each with one counter a group: what the first window begins with, and for the others what
    /// is added where they begin.
    classes: usize,
    /// Rules are the same at all pixels, so that their bounds are made once.
    based: bool,
    /// Bounds, by rule set, by parity of K where both occur, and by group.
    parities: usize,
    rule_sets: usize,
    /// Each pixel of the convolution belongs to one pixel of the pool at most, and windows lie side by side.
    tiled: bool,
    /// Veto bits of the pooled rows that are open at a time.
    veto_rows: usize,
    veto_row: usize,
}

impl Plan {
    fn new(layer: &ConvLayer<'_>, padding: Padding) -> Self {
        let geometry = &layer.geometry;
        let window = geometry.sliding().window();
        let shape = GroupShape::new(geometry.output().channels(), window.kernel, geometry.input().channels());
        let veto = layer.pool.as_ref().filter(|pool| pool.veto().is_some());
        // |e - L| is at most K + 4, and plane 0 lies below the words that are counted.
        let bits = usize::BITS - (geometry.products() + 4).leading_zeros();
        let channel_grid = layer.epilogue().is_by_channel();
        Self {
            shape,
            groups: shape.groups(),
            segments: shape.segments(),
            pixel_words: layer.output().pixel_words(),
            last_lanes: lane_mask(layer.output().channels(), shape.groups() - 1),
            planes: 1 + counter_words(bits as usize),
            columns: span(window.kernel[1], window.dilation[1]),
            classes: match padding {
                Padding::One => 1,
                Padding::Zero => classes(geometry.sliding()),
            },
            based: channel_grid,
            parities: if channel_grid && geometry.input().channels() % 2 == 1 { 2 } else { 1 },
            rule_sets: if veto.is_some() { 2 } else { 1 },
            tiled: layer.pool.as_ref().is_some_and(|pool| {
                let window = pool.sliding().window();
                window.kernel == window.strides && window.padding[..2] == [0, 0] && window.dilation == [1, 1]
            }),
            veto_rows: veto.map_or(0, |pool| {
                let window = pool.sliding().window();
                span(window.kernel[0], window.dilation[0]).div_ceil(window.strides[0])
            }),
            veto_row: layer.output().width() * layer.output().pixel_words(),
        }
    }

    /// Words of one counter a group.
    fn counters(&self) -> usize {
        self.groups * self.planes
    }

    /// Words of one group's bounds.
    fn bounds(&self) -> usize {
        Bounds::words(self.planes)
    }

    /// First word of the bounds of one rule set and group; there are as many parities as matter.
    #[inline]
    fn bounds_at(&self, set: usize, parity: usize, group: usize) -> usize {
        match (set, group, self.parities) {
            (0, 0, 1) => 0,
            _ => ((set * self.parities + parity % self.parities) * self.groups + group) * self.bounds(),
        }
    }

    /// Words of the parts: counters, classes, bounds, veto, lists. `None` where they would be more than anybody has.
    fn parts(&self) -> Option<[usize; 5]> {
        let product = |factors: &[usize]| factors.iter().try_fold(1usize, |a, &b| a.checked_mul(b));
        let parts = [
            product(&[self.groups + 1, self.planes])?,
            product(&[self.classes, self.counters()])?,
            product(&[self.rule_sets, self.parities, self.groups, self.bounds()])?,
            product(&[self.veto_rows, self.veto_row])?,
            product(&[self.columns, Moving::words(&self.shape)])?,
        ];
        let sum = parts.iter().try_fold(0usize, |a, &b| a.checked_add(b))?;
        (sum <= MAX_ELEMENTS).then_some(parts)
    }
}

/// Pixels from the first tap to the last.
fn span(kernel: usize, dilation: usize) -> usize {
    (kernel - 1) * dilation + 1
}

/// Runs of output columns with the same taps inside the image.
fn classes(sliding: &Sliding) -> usize {
    let (mut classes, mut last) = (0, None);
    for x in 0..sliding.output_width() {
        let taps = sliding.taps_inside(1, x);
        classes += usize::from(last != Some(taps));
        last = Some(taps);
    }
    classes
}

/// Words of scratch that [`convolve`] needs.
///
/// # Errors
/// [`ArgumentError::TooLarge`] where a layer would need more than anybody has.
pub(crate) fn scratch_words(layer: &ConvLayer<'_>, padding: Padding) -> Result<usize, ArgumentError> {
    let too_large = ArgumentError::TooLarge { argument: "kernel", limit: MAX_ELEMENTS };
    Ok(Plan::new(layer, padding).parts().ok_or(too_large)?.iter().sum())
}

/// First words of a group's bounds: what there is to compare, and the flips.
const BOUNDS_HEAD: usize = 2;
/// e - L is to be compared with the lower planes: they are not all 0.
const HAS_LOWER: u32 = 1;
/// e - L is to be compared with the upper planes: some lane has a bound above.
const HAS_UPPER: u32 = 2;

/// Writes 32 numbers as planes: bit l of plane b is bit b of `number(l)`.
fn slice(planes: &mut [u32], lanes: usize, number: impl Fn(usize) -> i32) {
    let mut numbers = [0; 32];
    for (lane, to) in numbers.iter_mut().take(lanes).enumerate() {
        *to = number(lane);
    }
    transpose(&numbers, planes);
}

/// `a + b` in each lane, in place; b may have one plane less.
fn add(a: &mut [u32], b: &[u32]) {
    add_planes(a, b, 0);
}

/// `a - b` in each lane, in place; b may have one plane less.
fn subtract(a: &mut [u32], b: &[u32]) {
    add_planes(a, b, u32::MAX);
}

/// Bounds on e for the lanes of one group: `L <= e`, and `e < L + G` where a lane has two sides.
pub(crate) struct Bounds<'s> {
    head: &'s mut [u32],
    lower: &'s mut [u32],
    upper: &'s mut [u32],
}

impl<'s> Bounds<'s> {
    /// Words of bounds on counters of `planes` words.
    pub(crate) fn words(planes: usize) -> usize {
        BOUNDS_HEAD + 2 * planes
    }

    pub(crate) fn of(words: &'s mut [u32], planes: usize) -> Self {
        let (head, rest) = words[..BOUNDS_HEAD + 2 * planes].split_at_mut(BOUNDS_HEAD);
        let (lower, upper) = rest.split_at_mut(planes);
        Self { head, lower, upper }
    }

    /// Bounds of the rules of `group` at rule pixel `at`, for accumulators in `-products..=products` with the
    /// given parity.
    pub(crate) fn set(&mut self, rules: &Rules<'_>, at: usize, group: usize, products: i32, parity: i32) {
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
    pub(crate) fn rebase(&mut self, base: &[u32]) {
        subtract(self.lower, base);
        subtract(self.upper, base);
    }

    /// Makes the bounds relative to their own lower ones, which stay where they are.
    pub(crate) fn become_base(&mut self) {
        subtract(self.upper, self.lower);
        self.head[0] &= !HAS_LOWER;
    }

    pub(crate) fn lower(&self) -> &[u32] {
        self.lower
    }

    /// Lower bounds of words that are bounds.
    pub(crate) fn lower_of(words: &[u32], planes: usize) -> &[u32] {
        &words[BOUNDS_HEAD..BOUNDS_HEAD + planes]
    }

    /// Makes the lower bounds the negative of what they are.
    pub(crate) fn negate_lower(&mut self) {
        let mut carry = u32::MAX;
        for plane in &mut *self.lower {
            (*plane, carry) = (!*plane ^ carry, !*plane & carry);
        }
    }
}

/// The bits of all lanes for e, which is `counter` less `shared`, relative to what the bounds are.
#[inline(always)]
pub(crate) fn bits(bounds: &[u32], counter: &[u32], shared: i32) -> u32 {
    let (lower, upper) = bounds[BOUNDS_HEAD..].split_at(counter.len());
    let bits = if bounds[0] & HAS_LOWER != 0 {
        // Without a bound above, that one is beyond every e.
        let (_, [outside, below]) = compare(counter, shared, [lower, upper]);
        below & !outside
    } else {
        inside(counter, shared, (bounds[0] & HAS_UPPER != 0).then_some(upper))
    };
    bits ^ bounds[1]
}

/// Windows of a row of the convolution with the same taps inside the image.
#[derive(Debug, Clone, Copy)]
struct Class {
    /// Of those of the row.
    index: usize,
    /// Taps inside.
    taps: (usize, usize),
    /// The first window beyond.
    end: usize,
    /// Products of a window.
    products: i32,
}

/// A run of [`convolve`]: its plan and its scratch.
struct Walk<'a> {
    layer: &'a ConvLayer<'a>,
    padding: Padding,
    plan: &'a Plan,
    mask: &'a [u32],
    input: &'a [u32],
    window: Moving<'a>,
    /// A counter to spare.
    spare: &'a mut [u32],
    classes: &'a mut [u32],
    bounds: &'a mut [u32],
    veto: &'a mut [u32],
    /// Pooled rows that are finished.
    pooled: usize,
    /// The window's set bits, and what complements brought: the same in all lanes.
    shared: i32,
}

/// Bits of a column.
#[derive(Debug, Clone, Copy)]
enum Source {
    /// None.
    Nothing,
    /// All.
    Set,
    /// What lies outside the image.
    Outside,
    /// The column that begins at a word of the image.
    Column(usize),
}

/// Where the bits of a [`Source`] come from.
struct Bits<'a> {
    padding: Padding,
    mask: &'a [u32],
    input: &'a [u32],
    /// Rows of the kernel that are read from the image, words apart.
    read: (usize, usize),
    step: usize,
}

impl Bits<'_> {
    /// Word `word` of a pixel in a row of the kernel.
    #[inline(never)]
    fn word(&self, source: Source, row: usize, word: usize) -> u32 {
        match source {
            Source::Nothing => 0,
            Source::Set => u32::MAX,
            Source::Column(at) if self.read.0 <= row && row < self.read.1 => {
                self.input[at + (row - self.read.0) * self.step + word] ^ self.mask[word]
            }
            _ if self.padding == Padding::One => !self.mask[word],
            _ => 0,
        }
    }
}

/// How a counter changes by a sum.
type Change = fn(&mut [u32], &[u32]);

/// `a + 2 b` in each lane, in place.
fn add_twice(a: &mut [u32], b: &[u32]) {
    add(&mut a[1..], b);
}

/// The convolution of `layer` with the weights `lanes`.
///
/// # Errors
/// [`ArgumentError::Length`] naming the slice.
#[inline(never)]
pub(crate) fn convolve(
    layer: &ConvLayer<'_>,
    padding: Padding,
    lanes: &[u32],
    input: &[u32],
    output: &mut [u32],
    scratch: &mut [u32],
) -> Result<(), ArgumentError> {
    let plan = &Plan::new(layer, padding);
    check_length("output", layer.output().words(), output.len())?;
    let (mask, lanes) = lanes.split_at(plan.shape.pixel_words());
    let Some([counters, classes, bounds, veto, list_words]) = plan.parts() else {
        return Err(ArgumentError::TooLarge { argument: "kernel", limit: MAX_ELEMENTS });
    };
    check_length("scratch", list_words + counters + classes + bounds + veto, scratch.len())?;
    let (lists, scratch) = scratch.split_at_mut(list_words);
    let lists = bytes_of_mut(lists);
    let (counters, rest) = scratch.split_at_mut(counters);
    let (classes, rest) = rest.split_at_mut(classes);
    let (bounds, veto) = rest.split_at_mut(bounds);
    let (spare, counters) = counters.split_at_mut(plan.planes);
    let dilation = layer.geometry.sliding().window().dilation[1];
    let window = Moving::new(&plan.shape, dilation, lanes, counters, lists);
    let (pooled, shared) = (0, 0);
    Walk { layer, padding, plan, mask, input, window, spare, classes, bounds, veto, pooled, shared }
        .run(output);
    Ok(())
}

impl<'a> Walk<'a> {
    fn geometry(&self) -> &'a Conv2dGeometry {
        &self.layer.geometry
    }

    fn run(&mut self, output: &mut [u32]) {
        let pooled = self.layer.pool.is_some();
        output.fill(0);
        self.veto.fill(0);
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
        let veto = self.layer.epilogue().veto();
        if set == 0 { &self.layer.rules } else { veto.unwrap_or(&self.layer.rules) }
    }

    /// The bounds of one group. Where there is one parity for all, it does not matter which is asked for.
    fn bounds(&mut self, set: usize, parity: usize, group: usize) -> Bounds<'_> {
        Bounds::of(&mut self.bounds[self.plan.bounds_at(set, parity, group)..], self.plan.planes)
    }

    /// Bounds of a rule set at rule pixel `at`.
    fn set_bounds(&mut self, set: usize, at: usize, parity: usize, group: usize) {
        let (rules, products) = (self.rules(set), self.layer.geometry.products() as i32);
        self.bounds(set, parity, group).set(rules, at, group, products, parity as i32);
    }

    /// Bounds that are the same at all pixels, all of them relative to the rule's lower ones.
    fn set_based_bounds(&mut self) {
        // The parity of K: that of its channels where there are two, else K is even.
        for parity in 0..self.plan.parities {
            for group in 0..self.plan.groups {
                for set in 0..self.plan.rule_sets {
                    self.set_bounds(set, 0, parity, group);
                }
                if self.plan.rule_sets == 2 {
                    let (rule, veto) = self.bounds.split_at_mut(self.plan.bounds_at(1, 0, 0));
                    let at = self.plan.bounds_at(0, parity, group);
                    let base = &Bounds::of(&mut rule[at..], self.plan.planes).lower;
                    Bounds::of(&mut veto[at..], self.plan.planes).rebase(base);
                }
                self.bounds(0, parity, group).become_base();
            }
        }
    }

    /// The border classes of a row, in order: calls `each` with the number and the taps.
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

    /// What counters begin at and change by, for windows with these rows inside: -W, and -L where based. `last` are the
    /// rows that it was for before: their W differs by the rows that came and went.
    #[inline(never)]
    fn enter(&mut self, last: Option<(usize, usize)>, rows: (usize, usize)) {
        let plan = self.plan;
        // With two parities L may be another one.
        let last = last.filter(|_| plan.parities == 1);
        if last.is_none() {
            self.classes.fill(0);
        }
        if plan.based && last.is_none() {
            let classes = core::mem::take(&mut self.classes);
            let mut before = None;
            self.each_class(|class, taps| {
                let parity = self.products(rows, taps) as usize % plan.parities;
                for group in 0..plan.groups {
                    let counter =
                        &mut classes[class * plan.counters() + group * plan.planes..][..plan.planes];
                    let lower = |parity| {
                        let at = plan.bounds_at(0, parity, group) + BOUNDS_HEAD;
                        &self.bounds[at..at + plan.planes]
                    };
                    if before != Some(parity) {
                        before.into_iter().for_each(|before| add(counter, lower(before)));
                        subtract(counter, lower(parity));
                    }
                }
                before = Some(parity);
            });
            self.classes = classes;
        }
        let last = last.unwrap_or((rows.0, rows.0));
        let without = |a: (usize, usize), b: (usize, usize)| [(a.0, a.1.min(b.0)), (a.0.max(b.1), a.1)];
        for rows in without(rows, last) {
            self.count_rows(rows, Source::Set, [subtract, add]);
        }
        for rows in without(last, rows) {
            self.count_rows(rows, Source::Set, [add, subtract]);
        }
        if self.padding == Padding::One {
            // The window outside has bits set.
            self.count_rows((0, plan.shape.kernel_rows()), Source::Outside, [add_twice, add_twice]);
        }
    }

    /// Changes classes by the sum of the weights of a source's bits in some rows, `changes[0]` for taps that come inside and
    /// `changes[1]` for those that leave.
    fn count_rows(&mut self, rows: (usize, usize), bits: Source, changes: [Change; 2]) {
        if rows.0 >= rows.1 {
            return;
        }
        let plan = self.plan;
        let (classes, sum) = (core::mem::take(&mut self.classes), core::mem::take(&mut self.spare));
        for segment in 0..plan.segments {
            // No column is listed: the first list is free.
            match (bits, plan.segments, self.mask) {
                (Source::Set, 1, &[mask]) => {
                    self.window.list_column(0, [(&[!mask], 0), (&[mask], 0)], rows, mask);
                }
                _ => self.list(0, segment, rows, [bits, Source::Nothing], (0, 0)),
            }
            for group in 0..plan.groups {
                let mut inside = (0, 0);
                self.each_class(|class, taps| {
                    let class = &mut classes[class * plan.counters() + group * plan.planes..][..plan.planes];
                    let came = (taps.0..taps.1).filter(|tap| !(inside.0..inside.1).contains(tap));
                    let left = (inside.0..inside.1).filter(|tap| !(taps.0..taps.1).contains(tap));
                    // The words count in steps of two here, too: a sum begins with its second word.
                    let mut change = |columns: &mut dyn Iterator<Item = usize>, change: Change| {
                        sum.fill(0);
                        let mut any = false;
                        for column in columns {
                            add_list(&self.window, sum, segment, group, column);
                            any = true;
                        }
                        if any {
                            change(class, &sum[1..]);
                        }
                    };
                    change(&mut came.clone(), changes[0]);
                    change(&mut left.clone(), changes[1]);
                    inside = taps;
                });
            }
        }
        (self.classes, self.spare) = (classes, sum);
    }

    /// Lists a segment of a column in the rows that are inside: what is set in `sources[0]` and not in `sources[1]`, and the
    /// other way round. Rows `read.0..read.1` of the kernel are read from the image. (A function of its own, this has the
    /// registers that its loops need.)
    #[inline(never)]
    fn list(
        &mut self,
        slot: usize,
        segment: usize,
        rows: (usize, usize),
        sources: [Source; 2],
        read: (usize, usize),
    ) {
        let shape = &self.plan.shape;
        let column = |source| match (source, self.padding) {
            (Source::Column(at), _) => self.input.get(at..).map(|words| (words, self.row_step())),
            (Source::Outside, Padding::Zero) => Some((self.mask, 0)),
            _ => None,
        };
        if let [Some(with), Some(without)] = sources.map(column)
            && rows == read
            && rows.0 < rows.1
        {
            return self.window.list_segment(slot, segment, [with, without], rows, self.mask);
        }
        let (start, end) = shape.segment(segment);
        let source =
            Bits { padding: self.padding, mask: self.mask, input: self.input, read, step: self.row_step() };
        let mut list = self.window.open(slot, segment);
        for part in 0..2 {
            let (mut row, mut word, mut index) =
                (start / shape.pixel_words(), start % shape.pixel_words(), 0);
            for _ in start..end {
                if rows.0 <= row && row < rows.1 {
                    let without = source.word(sources[1 - part], row, word);
                    let bits = source.word(sources[part], row, word) & !without;
                    // Unused bits, should anybody have set them, must select nothing.
                    list.push(bits & lane_mask(shape.channels(), word), index);
                }
                word += 1;
                index += 32;
                if word == shape.pixel_words() {
                    index = index + shape.channels() - 32 * word;
                    (row, word) = (row + 1, 0);
                }
            }
            list.turn();
        }
    }

    /// Words from a row of a kernel's column to the next.
    fn row_step(&self) -> usize {
        let geometry = self.geometry();
        geometry.sliding().window().dilation[0] * geometry.input().width() * geometry.input().pixel_words()
    }

    /// One row of the convolution.
    #[inline(never)]
    fn row(&mut self, y: usize, rows: (usize, usize), output: &mut [u32]) {
        let geometry = self.geometry();
        let (input, sliding) = (geometry.input(), geometry.sliding());
        let (width, words) = (input.width(), input.pixel_words());
        let (window, slots) = (sliding.window(), self.plan.columns);
        let (stride, left) = (window.strides[1], window.padding[1]);
        let read = sliding.taps_inside(0, y);
        let first_row = y * window.strides[0] + read.0 * window.dilation[0];
        // One word a pixel, all of them read: nearly every small network.
        let is_simple = words == 1 && self.plan.segments == 1 && rows == read && rows.0 < rows.1;
        let step = window.dilation[0] * width * words;
        // Windows before the first, of which the very first but one lies outside.
        let lead = (slots - 1).saturating_sub(left) / stride;
        // The next column to be listed, counted from that window's first; where it begins in the input, and its slot.
        let (mut next, mut slot) = (0usize, 0);
        let origin = lead * stride + left;
        let mut at = first_row
            .wrapping_sub(window.padding[0])
            .wrapping_mul(width)
            .wrapping_sub(origin)
            .wrapping_mul(words);
        // The window's first column, and its slot.
        let (mut first, mut first_slot) = (0, 0);
        let mut class = Class { index: 0, taps: (0, 0), end: 0, products: 0 };
        self.window.counters_mut().copy_from_slice(&self.classes[..self.plan.counters()]);
        self.shared = self.shared_outside();
        let (plain, line_end) = self.plain(y);
        for window in 0..lead + geometry.output().width() {
            while next < first + slots {
                let column = next.wrapping_sub(origin);
                let are_inside = [column < width, column.wrapping_sub(stride) < width];
                if next < first {
                    // Between windows.
                } else if is_simple && are_inside == [true; 2] {
                    let before = &self.input[at - stride..];
                    let columns = [(&before[stride..], step), (before, step)];
                    self.window.list_column(slot, columns, rows, self.mask[0]);
                } else {
                    let before = at.wrapping_sub(stride * words);
                    let source = |is_inside, at| if is_inside { Source::Column(at) } else { Source::Outside };
                    let sources = [source(are_inside[0], at), source(are_inside[1], before)];
                    self.list_sources(slot, is_simple, rows, sources, (read, step));
                }
                next += 1;
                at = at.wrapping_add(words);
                slot = if slot + 1 == slots { 0 } else { slot + 1 };
            }
            let x = window.checked_sub(lead);
            if x.is_some_and(|x| x >= class.end) {
                class = self.class(&class, x.unwrap_or(0), rows);
            }
            // Modulo 2 to the width of a counter, as all is.
            self.shared = self.shared.wrapping_add(move_on(&mut self.window, first_slot));
            if let Some(x) = x {
                match plain {
                    Some((line, step)) => {
                        let to = line + x / step * self.plan.groups;
                        // Of a row that the pool has no room for, nothing is kept.
                        if to < line_end {
                            self.mark(&class, &mut output[to..]);
                        }
                    }
                    None => self.pixel((y, x), &class, output),
                }
            }
            first += stride;
            first_slot = (first_slot + stride) % slots;
        }
    }

    /// Lists a column at the border, in a slot; `is_simple` where it has one segment, and pixels of one word.
    #[inline(never)]
    fn list_sources(
        &mut self,
        slot: usize,
        is_simple: bool,
        rows: (usize, usize),
        sources: [Source; 2],
        (read, step): ((usize, usize), usize),
    ) {
        if let [Source::Outside, Source::Outside] = sources {
            (0..self.plan.segments).for_each(|segment| self.window.clear(slot, segment));
        } else if is_simple {
            let outside = [match self.padding {
                Padding::One => u32::MAX,
                Padding::Zero => self.mask[0],
            }];
            let columns = sources.map(|source| match source {
                Source::Column(at) => (&self.input[at..], step),
                _ => (&outside[..], 0),
            });
            self.window.list_column(slot, columns, rows, self.mask[0]);
        } else {
            (0..self.plan.segments).for_each(|segment| self.list(slot, segment, rows, sources, read));
        }
    }

    /// The set bits of a window outside the image.
    fn shared_outside(&self) -> i32 {
        if self.padding == Padding::Zero {
            return 0;
        }
        let (shape, channels) = (&self.plan.shape, self.plan.shape.channels());
        let ones: u32 = self
            .mask
            .iter()
            .enumerate()
            .map(|(at, mask)| (!mask & lane_mask(channels, at)).count_ones())
            .sum();
        (shape.columns() * shape.kernel_rows() * ones as usize) as i32
    }

    /// The class of window x of a row, where `last` is that of the window before: counters change by what a new one brings.
    #[inline(never)]
    fn class(&mut self, last: &Class, x: usize, rows: (usize, usize)) -> Class {
        let geometry = self.geometry();
        let (stride, left) = (geometry.sliding().window().strides[1], geometry.sliding().window().padding[1]);
        let taps = self.taps_inside(1, x);
        let end = match self.padding {
            Padding::One => usize::MAX,
            // Windows that are whole follow one another; of the others there are few.
            Padding::Zero if taps == (0, self.plan.shape.columns()) => {
                (geometry.input().width() + left).saturating_sub(self.plan.columns) / stride + 1
            }
            Padding::Zero => x + 1,
        };
        let is_new = x > 0 && taps != last.taps;
        let index = last.index + usize::from(is_new);
        if is_new {
            let planes = self.plan.planes;
            let changes = self.classes[index * self.plan.counters()..].chunks_exact(planes);
            for (counter, change) in self.window.counters_mut().chunks_exact_mut(planes).zip(changes) {
                add(counter, change);
            }
        }
        Class { index, taps, end, products: self.products(rows, taps) }
    }

    /// Where the output's words of row y of the convolution begin, how many of its pixels are one of the output's, and where they
    /// end: where each has a part in one pixel of the output at most, by rules that are the same everywhere. By far the most layers.
    fn plain(&self, y: usize) -> (Option<(usize, usize)>, usize) {
        let strides = match &self.layer.pool {
            None => [1, 1],
            Some(pool) if self.plan.tiled && self.plan.rule_sets == 1 => pool.sliding().window().strides,
            Some(_) => return (None, 0),
        };
        let words = self.layer.output().width() * self.plan.pixel_words;
        let line = y / strides[0] * words;
        (self.plan.based.then_some((line, strides[1])), line + words)
    }

    /// The bits of a pixel of the convolution, of a class, in the first words of `output`.
    #[inline(never)]
    fn mark(&mut self, class: &Class, output: &mut [u32]) {
        let (less, parity) = (self.shared.wrapping_sub(class.products >> 1), class.products as usize & 1);
        let bounds = self.bounds[self.plan.bounds_at(0, parity, 0)..].chunks_exact(self.plan.bounds());
        let counters = self.window.counters().chunks_exact(self.plan.planes);
        let output = &mut output[..self.plan.groups];
        for ((to, counter), bounds) in output.iter_mut().zip(counters).zip(bounds) {
            *to |= bits(bounds, counter, less);
        }
        if let Some(to) = output.last_mut() {
            *to &= self.plan.last_lanes;
        }
    }

    /// As [`mark`](Self::mark), for pixel (y, x) of the convolution where it has a part in some pixels of the output.
    #[inline(never)]
    fn pixel(&mut self, (y, x): (usize, usize), class: &Class, output: &mut [u32]) {
        let (less, parity) = (self.shared.wrapping_sub(class.products >> 1), class.products as usize & 1);
        (0..self.plan.groups).for_each(|group| self.pool((y, x), group, parity, less, output));
    }

    /// Adds the bits of a group at pixel (y, x) of the convolution to those of all pixels of the output that it has a part in.
    #[inline(never)]
    fn pool(&mut self, (y, x): (usize, usize), group: usize, parity: usize, shared: i32, output: &mut [u32]) {
        let conv_pixel = y * self.geometry().output().width() + x;
        let (width, words) = (self.layer.output().width(), self.plan.pixel_words);
        if self.layer.pool.is_none() {
            output[conv_pixel * words + group] =
                self.bits(0, group, (conv_pixel, conv_pixel), parity, shared);
            return;
        }
        for y in self.targets(0, y) {
            for x in self.targets(1, x) {
                let pixel = y * width + x;
                output[pixel * words + group] |= self.bits(0, group, (conv_pixel, pixel), parity, shared);
                if self.plan.rule_sets == 2 {
                    let bits = self.bits(1, group, (conv_pixel, pixel), parity, shared);
                    self.veto[y % self.plan.veto_rows * self.plan.veto_row + x * words + group] |= bits;
                }
            }
        }
    }

    /// The bits of one rule set and group, for the counter less `shared`.
    fn bits(
        &mut self,
        set: usize,
        group: usize,
        (conv_pixel, pixel): (usize, usize),
        parity: usize,
        shared: i32,
    ) -> u32 {
        if !self.plan.based {
            self.set_bounds(set, self.rules(set).pixel(conv_pixel, pixel), parity, group);
        }
        let bounds = &self.bounds[self.plan.bounds_at(set, parity, group)..];
        bits(bounds, &self.window.counters()[group * self.plan.planes..][..self.plan.planes], shared)
            & lane_mask(self.layer.output().channels(), group)
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
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 16 } else { 256 }))]

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
