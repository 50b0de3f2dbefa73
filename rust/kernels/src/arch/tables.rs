/*!
Filters that name sums in a table, as the kernels read them: lists of offsets, all of which lie inside.

A filter is a word with three numbers, words of 0, and two lists of offsets in bytes, two a word; the sums of the first list
are added, those of the second taken away. What the sums are of is the business of the layout.
*/

/// Windows of a segment.
pub(crate) const SEGMENT: usize = 8;
/// Words of a segment's sums, two windows a word.
pub(crate) const SEGMENT_WORDS: usize = SEGMENT / 2;
/// Most input channels.
pub(crate) const MAX_CHANNELS: usize = 4;
/// Offsets of both lists of a filter.
pub(crate) fn list_lengths(filter: &[u32]) -> [usize; 2] {
    [filter[0] >> 16 & 0xFF, filter[0] >> 8 & 0xFF].map(|length| length as usize)
}

/// Bytes between a filter's first word and its lists.
fn bytes_before(filter: &[u32]) -> usize {
    (filter[0] & 0xFF) as usize
}

/// Offset `at` of a filter.
pub(crate) fn offset_at(filter: &[u32], at: usize) -> usize {
    (filter[1 + at / 2] >> (16 * (at % 2))) as u16 as usize
}

/// Whether a filter's words are those before the lists and those of the lists.
pub(crate) fn fills(filter: &[u32]) -> bool {
    let words = list_lengths(filter).map(|length| length.div_ceil(2));
    4 * (words[0] + words[1]) + bytes_before(filter) == 4 * (filter.len() - 1) && filter[0] >> 24 == 0
}

/// Filters whose offsets lie in the table, at words, with as many words from there on as are loaded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SumFilters<'a> {
    filter_words: usize,
    table_words: usize,
    weights: &'a [u32],
}

impl<'a> SumFilters<'a> {
    /// Filters of `filter_words` words each, on a table of `table_words`; `None` where some offset lies outside.
    pub(crate) fn new(filter_words: usize, table_words: usize, weights: &'a [u32]) -> Option<Self> {
        let last = 4 * (table_words - SEGMENT_WORDS) as u32;
        let is_inside = |pair: u32| pair & 0xFFFF <= last && pair >> 16 <= last && pair & 0x0003_0003 == 0;
        let fits = weights
            .chunks_exact(filter_words)
            .all(|filter| fills(filter) && filter[1..].iter().all(|&pair| is_inside(pair)));
        fits.then_some(Self { filter_words, table_words, weights })
    }

    /// Each 32 filters, and what is left.
    pub(crate) fn groups(self) -> impl Iterator<Item = Self> {
        let words = 32 * self.filter_words;
        self.weights.chunks(words).map(move |weights| Self { weights, ..self })
    }

    #[cfg_attr(not(cbin_dsp), allow(dead_code))]
    pub(crate) fn weights(&self) -> &'a [u32] {
        self.weights
    }

    /// Words of one filter.
    #[cfg_attr(not(cbin_dsp), allow(dead_code))]
    pub(crate) fn filter_words(&self) -> usize {
        self.filter_words
    }

    /// Words of a table that all offsets lie in.
    #[cfg_attr(not(cbin_dsp), allow(dead_code))]
    pub(crate) fn table_words(&self) -> usize {
        self.table_words
    }

    /// The offsets of both lists of each filter, lone offsets of 0 included.
    #[cfg_attr(cbin_dsp, allow(dead_code))]
    pub(crate) fn lists(self) -> impl Iterator<Item = (&'a [u32], &'a [u32])> {
        self.weights.chunks_exact(self.filter_words).map(|filter| {
            filter[1 + bytes_before(filter) / 4..].split_at(list_lengths(filter)[0].div_ceil(2))
        })
    }
}
