//! How the lists of a [`Moving`] window are written: by the loops of the architecture.

use super::{column_changes, picks, segment_changes};
use crate::arch::moving::{Bits, Column, List, Moving, PICK_BLOCK, pad};
use crate::bits::lane_mask;

impl Moving<'_> {
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
            let [added, taken] = column_changes(columns, count, first, bits, list.weights as u8, list.picks);
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
        let [added, taken] = segment_changes(columns, shape, segment, rows, mask, list.picks);
        list.end(added, taken);
    }
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
        self.len += picks(bits, first as u8, &mut self.picks[self.len..]);
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
