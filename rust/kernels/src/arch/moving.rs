/*!
A window that moves along a row: vertical counters and the lists of what changes under it.

Vertical counters are 32 counts side by side, bit b of all of them in word b. What a window's column lists is a byte a changed
bit: which word of a [segment](super::groups) to add to the counters, or to take away.

The inner loops follow the lists without looking: what they rely on is written by this folder alone.
*/

use crate::arch::groups::GroupShape;

/// Words that one tree takes at once, and what the number of picks is rounded up to.
pub(crate) const PICK_BLOCK: usize = 4;

/// A counter has this many words, or three more, or six more, ...
pub(crate) const COUNTER_WORDS: usize = 4;

/// The words of a counter that holds at least `bits` bits.
pub(crate) const fn counter_words(bits: usize) -> usize {
    COUNTER_WORDS + bits.saturating_sub(COUNTER_WORDS).next_multiple_of(3)
}

/// A window that moves along a row: its counters, one a group, its weights, and what changes in the columns that it moves
/// over, a byte a bit: for each segment of [`GroupShape`] a ring of lists, one a column.
///
/// What `move_on` relies on, and nobody else can write: a list is as long as it says, and every byte of it names a
/// weight of its segment or the word of zeros behind them; there are as many words of all as the shape says.
pub(crate) struct Moving<'a> {
    pub(super) counters: &'a mut [u32],
    pub(super) planes: usize,
    lanes: &'a [u32],
    pub(super) bytes: &'a mut [[u8; 4]],
    pub(super) shape: &'a GroupShape,
    pub(super) groups: usize,
    /// Columns that are kept, and from one tap to the next.
    pub(super) slots: usize,
    pub(super) dilation: usize,
    /// Four-byte words of a list, and segments.
    pub(super) list_words: usize,
    pub(super) segments: usize,
    /// Weights of the first segment.
    pub(super) weights: usize,
    /// What the lists of all slots bring, in the end: see `move_on`.
    net: i32,
}

/// A list's first bytes: blocks of picks to add, blocks to take away, and, in two, what `move_on` returns for it.
pub(super) const LIST_HEAD: usize = 4;

/// A column's words, each so many after the one before.
pub(crate) type Column<'c> = (&'c [u32], usize);

impl<'a> Moving<'a> {
    /// A window with `counters`, all of as many words, over the weights `lanes`, and empty lists in the memory of `bytes`.
    ///
    /// # Panics
    /// Where the lengths are not those of the shape.
    pub(crate) fn new(
        shape: &'a GroupShape,
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
    pub(crate) fn words(shape: &GroupShape) -> usize {
        shape.segments() * Self::list_words(shape)
    }

    /// Four-byte words of one list: of as many segments as there may be, all are as long as the first. Of the two parts,
    /// each may end in an unfinished block.
    fn list_words(shape: &GroupShape) -> usize {
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

    /// What the lists from the slot `first` on bring: see `move_on`.
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
    pub(super) fn tap(&self, group: usize, column: usize, segment: usize) -> &'a [u32] {
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
    pub(crate) shape: &'w GroupShape,
    pub(crate) groups: usize,
    pub(crate) segments: usize,
}

/// A list that is being written: picks to add, then, behind a `turn`, picks to take away.
pub(crate) struct List<'a> {
    pub(super) head: &'a mut [u8; LIST_HEAD],
    pub(super) net: &'a mut i32,
    pub(super) picks: &'a mut [u8],
    pub(super) len: usize,
    /// Picks to add, once they are known.
    pub(super) added: Option<usize>,
    /// Weights of the segment, and the index of the word of zeros.
    pub(super) weights: usize,
}

/// What a list with this head brings: see `move_on`.
#[inline]
fn net([_, _, low, high]: [u8; LIST_HEAD]) -> i32 {
    i16::from_le_bytes([low, high]).into()
}

/// Fills the last block of the first `len` bytes of a list with picks of `zero`, and says how long it is then.
pub(super) fn pad(picks: &mut [u8], len: usize, zero: u8) -> usize {
    let end = len.next_multiple_of(PICK_BLOCK);
    picks[len..end].fill(zero);
    end
}

/// What `column_changes` takes of each word: its bits of `all`, inverted as `mask` says, of which there are `channels`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Bits {
    pub(crate) mask: u32,
    pub(crate) all: u32,
    pub(crate) channels: usize,
}
