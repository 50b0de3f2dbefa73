/*!
Products of widened bytes and 8-bit weights, four windows at a time: see [`byte_pairs`](crate::methods::byte_pairs).
*/

/// Windows that are taken together.
pub(crate) const SLOTS: usize = 4;

/// Four bytes of [`SLOTS`] windows, widened: bytes 0 and 2 of each, then bytes 1 and 3.
pub(crate) type Pairs = [u32; 2 * SLOTS];

/// Widens a window's bytes q to `mul * q` and its offset, which fit 16 bits, in its slot of `pairs`.
pub(crate) fn widen(window: &[[u8; 4]], mul: u32, offsets: &[[u32; 2]], slot: usize, pairs: &mut [Pairs]) {
    // Each product stays in its half; a sum may carry.
    let value = |bytes: u32, offset: u32| {
        let product = (bytes & 0x00FF_00FF) * mul;
        (product.wrapping_add(offset) & 0xFFFF) | ((product & !0xFFFF).wrapping_add(offset & !0xFFFF))
    };
    for ((bytes, offsets), pairs) in window.iter().zip(offsets).zip(pairs) {
        let bytes = u32::from_le_bytes(*bytes);
        pairs[slot] = value(bytes, offsets[0]);
        pairs[SLOTS + slot] = value(bytes >> 8, offsets[1]);
    }
}

/// Which of up to 32 filters of `products` weights have their accumulator inside their interval: bit f of a window's word
/// for filter f, for each of one or two sets of
/// intervals: the smallest and the largest accumulator inside, of each filter.
pub(crate) fn pair_hits(
    windows: &[Pairs],
    weights: &[i8],
    products: usize,
    sets: &[(&[i32], &[i32])],
) -> [[u32; SLOTS]; 2] {
    let mut hits = [[0; SLOTS]; 2];
    for (filter, weights) in weights.chunks_exact(products).enumerate() {
        let accumulators = dots(windows, weights);
        for (hits, (lo, hi)) in hits.iter_mut().zip(sets) {
            for (hits, acc) in hits.iter_mut().zip(accumulators) {
                *hits |= u32::from(lo[filter] <= acc && acc <= hi[filter]) << filter;
            }
        }
    }
    hits
}

/// The accumulators of one filter.
fn dots(windows: &[Pairs], weights: &[i8]) -> [i32; SLOTS] {
    let mut accumulators = [0; SLOTS];
    for (pairs, weights) in windows.iter().zip(weights.chunks(4)) {
        let weight = |at| weights.get(at).map_or(0, |&weight| i32::from(weight));
        for (at, pairs) in pairs.chunks_exact(SLOTS).enumerate() {
            let (low, high) = (weight(at), weight(at + 2));
            for (acc, pair) in accumulators.iter_mut().zip(pairs) {
                *acc += low * i32::from(*pair as i16) + high * i32::from((pair >> 16) as i16);
            }
        }
    }
    accumulators
}
