/*!
Vertical counters: 32 counts side by side, bit b of all of them in word b.

Adding a word adds its bit l to count l. Four words are first added up by carry-save adders, like the words of
[`popcount`](super::popcount), so that one carry ripples through the counter for all of them.
*/

use super::popcount::carry_save;
use crate::bits::lane_mask;
use crate::lanes::LaneShape;

/// Words that one tree takes at once, and what the number of picks is rounded up to.
pub(crate) const PICK_BLOCK: usize = 4;

/// A counter has this many words, or three more, or six more, ...
pub(crate) const COUNTER_WORDS: usize = 4;

/// The words of a counter that holds at least `bits` bits.
pub(crate) const fn counter_words(bits: usize) -> usize {
    COUNTER_WORDS + bits.saturating_sub(COUNTER_WORDS).next_multiple_of(3)
}

/// A window that moves along a row: its counters, one a group, its weights, and what changes in the columns that it moves
/// over, a byte a bit: for each segment of [`LaneShape`] a ring of lists, one a column.
///
/// What [`move_on`] relies on, and nobody else can write: a list is as long as it says, and every byte of it names a
/// weight of its segment or the word of zeros behind them; there are as many words of all as the shape says.
pub(crate) struct Moving<'a> {
    counters: &'a mut [u32],
    planes: usize,
    lanes: &'a [u32],
    bytes: &'a mut [[u8; 4]],
    shape: &'a LaneShape,
    groups: usize,
    /// Columns that are kept, and from one tap to the next.
    slots: usize,
    dilation: usize,
    /// Four-byte words of a list, and segments.
    list_words: usize,
    segments: usize,
    /// Weights of the first segment.
    weights: usize,
    /// What the lists of all slots bring, in the end: see [`move_on`].
    net: i32,
}

/// A list's first bytes: blocks of picks to add, blocks to take away, and, in two, what [`move_on`] returns for it.
const LIST_HEAD: usize = 4;

/// A column's words, each so many after the one before.
pub(crate) type Column<'c> = (&'c [u32], usize);

impl<'a> Moving<'a> {
    /// A window with `counters`, all of as many words, over the weights `lanes`, and empty lists in the memory of `bytes`.
    ///
    /// # Panics
    /// Where the lengths are not those of the shape.
    pub(crate) fn new(
        shape: &'a LaneShape,
        dilation: usize,
        lanes: &'a [u32],
        counters: &'a mut [u32],
        bytes: &'a mut [[u8; 4]],
    ) -> Self {
        bytes.fill([0; LIST_HEAD]);
        let (list_words, segments, groups) = (Self::list_words(shape), shape.segments(), shape.groups());
        let (slots, planes) = (bytes.len() / (segments * list_words), counters.len() / groups);
        assert!(planes > COUNTER_WORDS && (planes - 1 - COUNTER_WORDS).is_multiple_of(3));
        assert!(counters.len() == groups * planes && lanes.len() == groups * shape.group_words());
        assert!((shape.columns() - 1) * dilation < slots);
        let weights = shape.segment_weights(0);
        Self {
            counters,
            planes,
            lanes,
            bytes,
            shape,
            groups,
            slots,
            dilation,
            list_words,
            segments,
            weights,
            net: 0,
        }
    }

    /// The counters.
    pub(crate) fn counters(&self) -> &[u32] {
        self.counters
    }

    /// The counters.
    pub(crate) fn counters_mut(&mut self) -> &mut [u32] {
        self.counters
    }

    /// All but the counters.
    #[cfg_attr(not(cbin_dsp), allow(dead_code))]
    #[inline]
    pub(crate) fn parts(&self) -> MovingParts<'_> {
        MovingParts {
            planes: self.planes,
            lanes: self.lanes,
            lists: self.bytes.as_flattened(),
            list_bytes: 4 * self.list_words,
            slots: self.slots,
            dilation: self.dilation,
            shape: self.shape,
            groups: self.groups,
            segments: self.segments,
        }
    }

    /// Four-byte words of a column's lists.
    pub(crate) fn words(shape: &LaneShape) -> usize {
        shape.segments() * Self::list_words(shape)
    }

    /// Four-byte words of one list: of as many segments as there may be, all are as long as the first. Of the two parts,
    /// each may end in an unfinished block.
    fn list_words(shape: &LaneShape) -> usize {
        let (first, end) = shape.segment(0);
        (LIST_HEAD + 32 * (end - first) + PICK_BLOCK) / 4
    }

    #[inline]
    fn weights(&self, segment: usize) -> usize {
        if segment == 0 { self.weights } else { self.shape.segment_weights(segment) }
    }

    /// An empty list for the segment of the column in a slot.
    ///
    /// # Panics
    /// Where there is no such segment or slot.
    #[inline]
    pub(crate) fn open(&mut self, slot: usize, segment: usize) -> List<'_> {
        assert!(slot < self.slots && segment < self.segments);
        let weights = self.weights(segment);
        let list = &mut self.bytes[(segment * self.slots + slot) * self.list_words..][..self.list_words];
        let (head, picks) = list.split_first_mut().expect("a list has a head");
        // What lies there are picks of the same segment; none of them is in the list.
        self.net -= net(*head);
        *head = [0; LIST_HEAD];
        List { head, net: &mut self.net, picks: picks.as_flattened_mut(), len: 0, added: None, weights }
    }

    /// Empties a list.
    pub(crate) fn clear(&mut self, slot: usize, segment: usize) {
        self.open(slot, segment);
    }

    /// Lists the column in a slot, of one segment and pixels of one word, that are those of the kernel's rows `rows`: what is
    /// set in `columns[0]` and not in `columns[1]`, and the other way round. Words are inverted as `mask` says.
    ///
    /// # Panics
    /// Where there is no such slot, a column ends too early, or the shape is another.
    #[inline]
    pub(crate) fn list_column(
        &mut self,
        slot: usize,
        columns: [Column<'_>; 2],
        rows: (usize, usize),
        mask: u32,
    ) {
        let channels = self.shape.channels();
        let (first, count) = (rows.0 * channels, rows.1.saturating_sub(rows.0));
        assert!(channels <= 32 && self.segments == 1 && rows.1 * channels <= self.weights);
        let bits = Bits { mask, all: lane_mask(channels, 0), channels };
        let mut list = self.open(slot, 0);
        if count > 0 {
            let [added, taken] =
                super::super::column_changes(columns, count, first, bits, list.weights as u8, list.picks);
            list.end(added, taken);
        }
    }

    /// As [`list_column`](Self::list_column), for a segment of columns of wider pixels; `mask` is a pixel's.
    ///
    /// # Panics
    /// As there.
    pub(crate) fn list_segment(
        &mut self,
        slot: usize,
        segment: usize,
        columns: [Column<'_>; 2],
        rows: (usize, usize),
        mask: &[u32],
    ) {
        let shape = self.shape;
        assert!(rows.0 < rows.1 && rows.1 <= shape.kernel_rows() && mask.len() == shape.pixel_words());
        let mut list = self.open(slot, segment);
        let [added, taken] = super::super::segment_changes(columns, shape, segment, rows, mask, list.picks);
        list.end(added, taken);
    }

    /// What the lists from the slot `first` on bring: see [`move_on`].
    #[inline]
    pub(crate) fn net(&self, first: usize) -> i32 {
        if self.dilation == 1 { self.net } else { self.net_of_some(first) }
    }

    #[cold]
    fn net_of_some(&self, first: usize) -> i32 {
        let slots = (0..self.shape.columns()).map(|column| (first + column * self.dilation) % self.slots);
        let lists = slots.flat_map(|slot| (0..self.segments).map(move |segment| segment * self.slots + slot));
        lists.map(|list| net(self.bytes[list * self.list_words])).sum()
    }

    /// The words of a column of a group that a segment's lists pick from.
    fn tap(&self, group: usize, column: usize, segment: usize) -> &'a [u32] {
        &self.lanes[self.shape.tap(group, column, segment)..][..=self.weights(segment)]
    }
}

/// What there is of a [`Moving`] beside its counters.
#[cfg_attr(not(cbin_dsp), allow(dead_code))]
pub(crate) struct MovingParts<'w> {
    /// Words of a counter.
    pub(crate) planes: usize,
    pub(crate) lanes: &'w [u32],
    /// For each segment, and in each slot, a list.
    pub(crate) lists: &'w [u8],
    pub(crate) list_bytes: usize,
    pub(crate) slots: usize,
    pub(crate) dilation: usize,
    pub(crate) shape: &'w LaneShape,
    pub(crate) groups: usize,
    pub(crate) segments: usize,
}

/// A list that is being written: picks to add, then, behind a [`turn`](Self::turn), picks to take away.
pub(crate) struct List<'a> {
    head: &'a mut [u8; LIST_HEAD],
    net: &'a mut i32,
    picks: &'a mut [u8],
    len: usize,
    /// Picks to add, once they are known.
    added: Option<usize>,
    /// Weights of the segment, and the index of the word of zeros.
    weights: usize,
}

impl List<'_> {
    /// Appends `first + b` for each set bit b of `bits`. Picks that do not fit the list or the segment are a
    /// mistake of the caller's, and left out.
    #[inline]
    pub(crate) fn push(&mut self, bits: u32, first: usize) {
        let top = first + 32 - bits.leading_zeros() as usize;
        debug_assert!(bits == 0 || top <= self.weights);
        if bits == 0 || top > self.weights {
            return;
        }
        self.len += super::super::picks(bits, first as u8, &mut self.picks[self.len..]);
    }

    /// Writes the head of a list of so many picks to add and to take away.
    #[inline]
    fn end(&mut self, added: usize, taken: usize) {
        let blocks = [added, taken].map(|picks| picks.div_ceil(PICK_BLOCK));
        // A complement that is added is one too many, in steps of two, those of unfinished blocks included.
        let net = added as i32 - taken as i32 + (2 * PICK_BLOCK * blocks[1]) as i32;
        let [low, high] = (net as i16).to_le_bytes();
        *self.net += net;
        *self.head = [blocks[0] as u8, blocks[1] as u8, low, high];
    }

    /// Ends a part: what its last block lacks are picks of the word of zeros.
    #[inline]
    pub(crate) fn turn(&mut self) {
        let count = self.len - self.added.map_or(0, |added| added.next_multiple_of(PICK_BLOCK));
        self.len = pad(self.picks, self.len, self.weights as u8);
        match self.added {
            None => self.added = Some(count),
            Some(added) => self.end(added, count),
        }
    }
}

/// What a list with this head brings: see [`move_on`].
#[inline]
fn net([_, _, low, high]: [u8; LIST_HEAD]) -> i32 {
    i16::from_le_bytes([low, high]).into()
}

/// Fills the last block of the first `len` bytes of a list with picks of `zero`, and says how long it is then.
fn pad(picks: &mut [u8], len: usize, zero: u8) -> usize {
    let end = len.next_multiple_of(PICK_BLOCK);
    picks[len..end].fill(zero);
    end
}

/// Writes `first + b` for each set bit b of `bits` to `list`, as far as it is long enough, and says how many.
#[inline]
pub(crate) fn picks(bits: u32, first: u8, list: &mut [u8]) -> usize {
    let (mut rest, mut count) = (bits, 0);
    for pick in list {
        if rest == 0 {
            break;
        }
        *pick = first + rest.trailing_zeros() as u8;
        rest &= rest - 1;
        count += 1;
    }
    count
}

/// What [`column_changes`] takes of each word: its bits of `all`, inverted as `mask` says, of which there are `channels`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Bits {
    pub(crate) mask: u32,
    pub(crate) all: u32,
    pub(crate) channels: usize,
}

/// Writes the picks of what is set in the first column and not in the second, and, in blocks of their own, of what is set in the
/// second alone, and says how many there are of each: `first + b` for bit b of the first word, `first + channels + b` of the
/// second, ... Unfinished blocks are filled with `zero`.
///
/// # Panics
/// Where a column ends before `rows` words, or `list` has no room for 32 picks a row and a block.
pub(crate) fn column_changes(
    columns: [Column<'_>; 2],
    rows: usize,
    first: usize,
    bits: Bits,
    zero: u8,
    list: &mut [u8],
) -> [usize; 2] {
    let word = |(words, step): Column<'_>, row: usize| (words[row * step] ^ bits.mask) & bits.all;
    let mut len = 0;
    [columns, [columns[1], columns[0]]].map(|[with, without]| {
        let begin = len;
        for row in 0..rows {
            let word = word(with, row) & !word(without, row);
            len += picks(word, (first + row * bits.channels) as u8, &mut list[len..]);
        }
        let count = len - begin;
        len = pad(list, len, zero);
        count
    })
}

/// As [`column_changes`], for the words of a segment of columns of wider pixels: each column is the words of the kernel's rows
/// `rows`, from the first of them on, and `mask` a pixel's.
///
/// # Panics
/// Where a column ends before those words, or `list` has no room for 32 picks each and a block.
pub(crate) fn segment_changes(
    columns: [Column<'_>; 2],
    shape: &LaneShape,
    segment: usize,
    rows: (usize, usize),
    mask: &[u32],
    list: &mut [u8],
) -> [usize; 2] {
    let (edges, zero) = (SegmentEdges::new(shape, segment), shape.segment_weights(segment) as u8);
    let mut len = 0;
    [columns, [columns[1], columns[0]]].map(|[with, without]| {
        let begin = len;
        for word in 0..shape.pixel_words() {
            let (first, end) = edges.rows(word, rows);
            for row in first..end {
                let at = |(words, step): Column<'_>| words[(row - rows.0) * step + word] ^ mask[word];
                let bits = at(with) & !at(without) & lane_mask(shape.channels(), word);
                len += picks(bits, edges.pick(row, word), &mut list[len..]);
            }
        }
        let count = len - begin;
        len = pad(list, len, zero);
        count
    })
}

/// The words of a column that a segment has, as rows and words of a pixel: without a division a word.
pub(crate) struct SegmentEdges {
    start: (usize, usize),
    end: (usize, usize),
    channels: usize,
}

impl SegmentEdges {
    pub(crate) fn new(shape: &LaneShape, segment: usize) -> Self {
        let (start, end) = shape.segment(segment);
        let edge = |at: usize| (at / shape.pixel_words(), at % shape.pixel_words());
        Self { start: edge(start), end: edge(end), channels: shape.channels() }
    }

    /// The rows, of `rows`, in which word `word` of a pixel belongs to the segment.
    #[inline]
    pub(crate) fn rows(&self, word: usize, rows: (usize, usize)) -> (usize, usize) {
        let row = |edge: (usize, usize)| edge.0 + usize::from(word < edge.1);
        (row(self.start).max(rows.0), row(self.end).min(rows.1))
    }

    /// The pick of the lowest bit of a word of the segment.
    #[inline]
    pub(crate) fn pick(&self, row: usize, word: usize) -> u8 {
        ((row - self.start.0) * self.channels + 32 * word - 32 * self.start.1) as u8
    }
}

/// Moves a window on by what its columns list, from the slot `first` on: to the counters of all groups, listed words are added,
/// and others taken away, modulo 2 to the number of a counter's counted words, which are all but its first. Returns by how much
/// the bits that are set have become more, and, as complements are added for what is taken away, twice the number of those: what
/// the number in each lane, in steps of two, has too much.
///
/// # Panics
/// Where there is no such slot.
pub(crate) fn move_on(window: &mut Moving<'_>, first: usize) -> i32 {
    assert!(first < window.slots);
    for segment in 0..window.segments {
        let mut slot = first;
        for column in 0..window.shape.columns() {
            let list =
                &window.bytes[(segment * window.slots + slot) * window.list_words..][..window.list_words];
            let [added, taken, ..] = list[0];
            let (blocks, rest) = list[1..].as_flattened().as_chunks().0.split_at(usize::from(added));
            for group in 0..window.groups {
                let words = window.tap(group, column, segment);
                let counter = &mut window.counters[group * window.planes..][1..window.planes];
                add_to_one(counter, |at| words[usize::from(at)], blocks);
                add_to_one(counter, |at| !words[usize::from(at)], &rest[..usize::from(taken)]);
            }
            slot += window.dilation;
            if slot >= window.slots {
                slot -= window.slots;
            }
        }
    }
    window.net(first)
}

/// Adds what the list in the first slot of a segment adds to a counter, which is as long as the window's own, for a column of a
/// group.
///
/// # Panics
/// Where there is no such segment, group or column, or the counter is of another length.
pub(crate) fn add_list(
    window: &Moving<'_>,
    counter: &mut [u32],
    segment: usize,
    group: usize,
    column: usize,
) {
    assert!(counter.len() == window.planes && group < window.groups && column < window.shape.columns());
    let list = &window.bytes[segment * window.slots * window.list_words..][..window.list_words];
    let blocks = &list[1..].as_flattened().as_chunks().0[..usize::from(list[0][0])];
    let words = window.tap(group, column, segment);
    add_to_one(&mut counter[1..], |at| words[usize::from(at)], blocks);
}

/// Bit l of plane b is bit b of number l.
pub(crate) fn transpose(numbers: &[i32; 32], planes: &mut [u32]) {
    for (bit, plane) in planes.iter_mut().enumerate() {
        *plane = numbers.iter().fold(0, |word, number| (word >> 1) | ((number >> bit.min(31)) as u32) << 31);
    }
}

/// `a + b` in each lane, in place, or `a - b` where `invert` is all ones and not 0; b may have one plane less.
pub(crate) fn add_planes(a: &mut [u32], b: &[u32], invert: u32) {
    let mut carry = invert;
    for (a, b) in a.iter_mut().zip(b) {
        let b = b ^ invert;
        let half = *a ^ b;
        let next = (*a & b) | (half & carry);
        (*a, carry) = (half ^ carry, next);
    }
    if let Some(top) = a.get_mut(b.len()) {
        *top ^= carry ^ invert;
    }
}

/// The lanes in which `a` less `b` is not negative, and below the bound where there is one; all signed.
#[inline]
pub(crate) fn inside(a: &[u32], b: i32, bound: Option<&[u32]>) -> u32 {
    match bound {
        Some(bound) => {
            let (negative, [below]) = compare(a, b, [bound]);
            below & !negative
        }
        None => !compare(a, b, []).0,
    }
}

/// The sign of `a - b` in each lane, and the lanes in which it is below each of the bounds, all signed.
#[inline]
pub(crate) fn compare<const N: usize>(a: &[u32], b: i32, bounds: [&[u32]; N]) -> (u32, [u32; N]) {
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

fn add_to_one(counter: &mut [u32], picked: impl Fn(u8) -> u32, blocks: &[[u8; PICK_BLOCK]]) {
    let (low, high) =
        counter.split_first_chunk_mut::<COUNTER_WORDS>().expect("a counter has four words or more");
    assert!(high.len().is_multiple_of(3), "a counter's upper words come in threes");
    let [mut ones, mut twos, mut fours, mut eights] = *low;
    for block in blocks {
        let word = |i: usize| picked(block[i]);
        let (sum, twos_a) = carry_save(ones, word(0), word(1));
        let (sum, twos_b) = carry_save(sum, word(2), word(3));
        let (sum2, four) = carry_save(twos, twos_a, twos_b);
        (ones, twos) = (sum, sum2);
        let eight = fours & four;
        fours ^= four;
        let mut carry = eights & eight;
        eights ^= eight;
        for plane in high.iter_mut() {
            if carry == 0 {
                break;
            }
            (*plane, carry) = (*plane ^ carry, *plane & carry);
        }
    }
    *low = [ones, twos, fours, eights];
}
