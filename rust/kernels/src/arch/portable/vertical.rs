/*!
Vertical counters: 32 counts side by side, bit b of all of them in word b.

Adding a word adds its bit l to count l. Eight words are first added up by carry-save adders, like the words of
[`popcount`](super::popcount), so that one carry ripples through the counter for all of them.
*/

use super::popcount::carry_save;

/// Words that one tree takes at once, and what the number of picks is rounded up to.
pub(crate) const PICK_BLOCK: usize = 8;

/// A counter has this many words, or three more, or six more, ...
pub(crate) const COUNTER_WORDS: usize = 4;

/// The words of a counter that holds at least `bits` bits.
pub(crate) const fn counter_words(bits: usize) -> usize {
    COUNTER_WORDS + bits.saturating_sub(COUNTER_WORDS).next_multiple_of(3)
}

/// Indices of words to be added: the set bits of an image column, a byte each.
///
/// What [`add_picked`] relies on, and nobody else can write: every byte of the list is below `bound`, and the
/// list's length is a multiple of [`PICK_BLOCK`] once it is [`padded`](Self::pad).
pub(crate) struct Picks<'a> {
    list: &'a mut [u8],
    len: usize,
    bound: usize,
}

impl<'a> Picks<'a> {
    /// An empty list in the memory of `list`.
    pub(crate) fn new(list: &'a mut [[u8; 4]]) -> Self {
        Self { list: list.as_flattened_mut(), len: 0, bound: 0 }
    }

    /// Empties the list.
    #[inline]
    pub(crate) fn clear(&mut self) {
        (self.len, self.bound) = (0, 0);
    }

    /// Appends `first + b` for each set bit b of `bits`. Picks that do not fit the list or a byte are a
    /// mistake of the caller's, and left out.
    #[inline]
    pub(crate) fn push(&mut self, bits: u32, first: usize) {
        debug_assert!(first + 32 <= 256 && self.len + bits.count_ones() as usize <= self.list.len());
        let top = first + 32 - bits.leading_zeros() as usize;
        if bits == 0 || top > 256 {
            return;
        }
        self.bound = self.bound.max(top);
        self.len += super::super::picks(bits, first as u8, &mut self.list[self.len..]);
    }

    /// Appends the set bits of a column, whose words lie `step` apart: `first + b` for bit b of the first word,
    /// `first + channels + b` of the second, ... Each word is inverted as `mask` says and keeps the bits of `all`, of which
    /// there are `channels`.
    ///
    /// # Panics
    /// Where the words are not all in `input`, or their bits do not fit the list or a byte.
    #[inline]
    pub(crate) fn push_column(&mut self, input: &[u32], step: usize, rows: usize, first: usize, bits: Bits) {
        let Some(last) = rows.checked_sub(1) else { return };
        let bound = first + rows * bits.channels;
        assert!(
            last * step < input.len()
                && bits.channels <= 32
                && bits.all.leading_zeros() as usize >= 32 - bits.channels
        );
        assert!(bound <= 256 && self.len + 32 * rows <= self.list.len());
        self.bound = self.bound.max(bound);
        self.len += super::super::column_picks(input, step, rows, first, bits, &mut self.list[self.len..]);
    }

    /// Picks so far.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Fills the last block up with picks of `zero`, which should be the index of a word of zeros.
    #[inline]
    pub(crate) fn pad(&mut self, zero: u8) {
        let len = self.len.next_multiple_of(PICK_BLOCK);
        if len != self.len {
            self.list[self.len..len].fill(zero);
            self.len = len;
            self.bound = self.bound.max(usize::from(zero) + 1);
        }
    }

    /// The picks, whole blocks of them.
    #[inline]
    pub(crate) fn blocks(&self) -> &[[u8; PICK_BLOCK]] {
        self.list[..self.len].as_chunks().0
    }

    /// Above every pick.
    #[inline]
    pub(crate) fn bound(&self) -> usize {
        self.bound
    }
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

/// What [`Picks::push_column`] takes of each word.
#[derive(Clone, Copy)]
pub(crate) struct Bits {
    pub(crate) mask: u32,
    pub(crate) all: u32,
    pub(crate) channels: usize,
}

/// Writes the picks of [`Picks::push_column`] and says how many: `list` has room for 32 a row.
pub(crate) fn column_picks(
    input: &[u32],
    step: usize,
    rows: usize,
    first: usize,
    bits: Bits,
    list: &mut [u8],
) -> usize {
    let mut count = 0;
    for row in 0..rows {
        let word = (input[row * step] ^ bits.mask) & bits.all;
        count += picks(word, (first + row * bits.channels) as u8, &mut list[count..]);
    }
    count
}

/// Windows that lie in a ring of slots, each a number and one counter a group, and the words that are added to them. Of a
/// counter's `planes` words the first is not counted.
#[derive(Clone, Copy)]
pub(crate) struct Windows {
    pub(crate) slots: usize,
    /// Words of a slot.
    pub(crate) size: usize,
    pub(crate) groups: usize,
    pub(crate) planes: usize,
    /// The slot of the first window, each next one in the slot before.
    pub(crate) first: usize,
    /// Windows.
    pub(crate) count: usize,
    /// From the words of a window to those of the next.
    pub(crate) tap_words: usize,
    /// From the words of a group to those of the next.
    pub(crate) group_words: usize,
    /// What is added to the number.
    pub(crate) picked: usize,
}

/// Adds the picked words to each counter of some windows, modulo 2 to the number of its counted words. `words` begins with
/// those of the first window's first group.
///
/// # Panics
/// Where a pick may be beyond `words`, a window beyond `ring`, or a counter's length is not one of [`counter_words`].
pub(crate) fn add_picked(ring: &mut [u32], windows: Windows, words: &[u32], picks: &Picks<'_>) {
    let mut slot = windows.first;
    for window in 0..windows.count {
        let (number, counters) =
            ring[slot * windows.size..][..windows.size].split_first_mut().expect("a number");
        *number = number.wrapping_add(windows.picked as u32);
        for (group, counter) in counters.chunks_exact_mut(windows.planes).take(windows.groups).enumerate() {
            let first = window * windows.tap_words + group * windows.group_words;
            add_to_one(&mut counter[1..], &words[first..][..picks.bound()], picks);
        }
        slot = slot.checked_sub(1).unwrap_or(windows.slots - 1);
    }
}

fn add_to_one(counter: &mut [u32], words: &[u32], picks: &Picks<'_>) {
    let (low, high) =
        counter.split_first_chunk_mut::<COUNTER_WORDS>().expect("a counter has four words or more");
    assert!(high.len().is_multiple_of(3), "a counter's upper words come in threes");
    let [mut ones, mut twos, mut fours, mut eights] = *low;
    for block in picks.blocks() {
        let word = |i: usize| words[usize::from(block[i])];
        let (sum, twos_a) = carry_save(ones, word(0), word(1));
        let (sum, twos_b) = carry_save(sum, word(2), word(3));
        let (sum2, fours_a) = carry_save(twos, twos_a, twos_b);
        let (sum, twos_a) = carry_save(sum, word(4), word(5));
        let (sum, twos_b) = carry_save(sum, word(6), word(7));
        let (sum2, fours_b) = carry_save(sum2, twos_a, twos_b);
        let (sum4, eight) = carry_save(fours, fours_a, fours_b);
        (ones, twos, fours) = (sum, sum2, sum4);
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
