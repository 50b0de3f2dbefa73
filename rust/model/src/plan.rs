/*!
The arena plan: every tensor and every scratch buffer gets an offset, and two share bytes only where they
never live at the same time.

Largest first, each at the lowest offset that is free for its whole lifetime: the greedy-by-size method of
Y. Pisarchyk and J. Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020 (arXiv:2001.03288).
*/

use alloc::vec;
use alloc::vec::Vec;

/// Something that lives in the arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Size in bytes.
    pub bytes: usize,
    /// First operator during which it lives.
    pub first: usize,
    /// Last operator during which it lives.
    pub last: usize,
}

impl Buffer {
    fn meets(&self, other: &Buffer) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// Offsets in bytes, multiples of 4, in the order of `buffers`, and the arena's size. Buffer `first`, where there is one, is
/// placed before all others, and so at 0.
pub fn plan(buffers: &[Buffer], first: Option<usize>) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..buffers.len()).collect();
    order.sort_by_key(|&i| (Some(i) != first, core::cmp::Reverse(buffers[i].bytes), buffers[i].first));
    let mut offsets = vec![0; buffers.len()];
    let mut placed: Vec<usize> = Vec::new();
    let mut arena = 0;
    for at in order {
        let bytes = buffers[at].bytes.next_multiple_of(4);
        if bytes == 0 {
            continue;
        }
        let mut taken: Vec<(usize, usize)> = placed
            .iter()
            .filter(|&&p| buffers[p].meets(&buffers[at]))
            .map(|&p| (offsets[p], offsets[p] + buffers[p].bytes.next_multiple_of(4)))
            .collect();
        taken.sort_unstable();
        let mut offset = 0;
        for (start, end) in taken {
            if offset + bytes <= start {
                break;
            }
            offset = offset.max(end);
        }
        offsets[at] = offset;
        arena = arena.max(offset + bytes);
        placed.push(at);
    }
    (offsets, arena)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_chain_needs_its_largest_neighbours_only() {
        let chain = [
            Buffer { bytes: 100, first: 0, last: 1 },
            Buffer { bytes: 50, first: 1, last: 2 },
            Buffer { bytes: 80, first: 2, last: 3 },
        ];
        let (offsets, arena) = plan(&chain, None);
        assert_eq!(arena, 100 + 52);
        assert_eq!(offsets, [0, 100, 0]);
    }

    proptest! {
        #[test]
        fn buffers_that_meet_never_share_bytes(
            sizes in proptest::collection::vec((0..200usize, 0..20usize, 0..5usize), 0..40),
            first in 0..40usize,
        ) {
            let buffers: Vec<Buffer> =
                sizes.iter().map(|&(bytes, first, len)| Buffer { bytes, first, last: first + len }).collect();
            let first = (!buffers.is_empty()).then_some(first % buffers.len().max(1));
            let (offsets, arena) = plan(&buffers, first);
            prop_assert!(first.is_none_or(|first| offsets[first] == 0));
            for (i, a) in buffers.iter().enumerate() {
                prop_assert!(offsets[i] % 4 == 0 && offsets[i] + a.bytes <= arena);
                for (j, b) in buffers.iter().enumerate().skip(i + 1) {
                    let apart = offsets[i] + a.bytes <= offsets[j] || offsets[j] + b.bytes <= offsets[i];
                    prop_assert!(!a.meets(b) || a.bytes == 0 || b.bytes == 0 || apart);
                }
            }
        }
    }
}
