/*!
Packing signs into words and back.

Bit `c % 32` of word `c / 32` of a pixel is channel c: 1 for +1, 0 for -1. Unused high bits are 0.
*/

use crate::ArgumentError;
use crate::error::check_length;

/// `u32` words that `channels` bits take.
#[inline]
pub const fn words_for(channels: usize) -> usize {
    channels.div_ceil(32)
}

/// The bits of word `word` that hold channels, of a pixel with `channels` channels.
#[inline]
pub const fn lane_mask(channels: usize, word: usize) -> u32 {
    let rest = channels.saturating_sub(word * 32);
    if rest >= 32 { u32::MAX } else { (1 << rest) - 1 }
}

/// Whether channel `channel` of a packed pixel is +1.
#[inline]
pub fn bit(pixel: &[u32], channel: usize) -> bool {
    (pixel[channel / 32] >> (channel % 32)) & 1 == 1
}

/// Packs signs (a value >= 0 is +1) of pixels with `channels` channels each.
///
/// `signs` holds `n * channels` values, `packed` takes `n * words_for(channels)` words.
///
/// # Errors
/// [`ArgumentError::Zero`] for no channels, [`ArgumentError::Length`] where the lengths disagree.
pub fn pack(signs: &[i8], channels: usize, packed: &mut [u32]) -> Result<(), ArgumentError> {
    if channels == 0 {
        return Err(ArgumentError::Zero { argument: "channels" });
    }
    let pixels = signs.len() / channels;
    check_length("signs", pixels * channels, signs.len())?;
    check_length("packed", pixels * words_for(channels), packed.len())?;
    for (pixel, words) in signs.chunks_exact(channels).zip(packed.chunks_exact_mut(words_for(channels))) {
        for (lanes, word) in pixel.chunks(32).zip(words) {
            *word = lanes.iter().enumerate().fold(0, |w, (lane, &s)| w | (u32::from(s >= 0) << lane));
        }
    }
    Ok(())
}

/// Unpacks words into +1 and -1: the inverse of [`pack`].
///
/// # Errors
/// As [`pack`].
pub fn unpack(packed: &[u32], channels: usize, signs: &mut [i8]) -> Result<(), ArgumentError> {
    if channels == 0 {
        return Err(ArgumentError::Zero { argument: "channels" });
    }
    let pixels = packed.len() / words_for(channels);
    check_length("packed", pixels * words_for(channels), packed.len())?;
    check_length("signs", pixels * channels, signs.len())?;
    for (pixel, words) in signs.chunks_exact_mut(channels).zip(packed.chunks_exact(words_for(channels))) {
        for (channel, sign) in pixel.iter_mut().enumerate() {
            *sign = if bit(words, channel) { 1 } else { -1 };
        }
    }
    Ok(())
}

/// Checks that the unused bits of every pixel of a packed tensor are 0.
///
/// # Errors
/// [`ArgumentError::PaddingBits`] naming `argument`, [`ArgumentError::Zero`] for no channels.
pub fn check_padding_bits(
    argument: &'static str,
    packed: &[u32],
    channels: usize,
) -> Result<(), ArgumentError> {
    if channels == 0 {
        return Err(ArgumentError::Zero { argument: "channels" });
    }
    let words = words_for(channels);
    let unused = !lane_mask(channels, words - 1);
    if unused != 0 && packed.chunks_exact(words).any(|pixel| pixel[words - 1] & unused != 0) {
        return Err(ArgumentError::PaddingBits { argument });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pack_is_least_significant_bit_first_and_zero_is_plus_one() {
        let mut packed = [u32::MAX; 2];
        let mut signs = [-1i8; 33];
        signs[0] = 1;
        signs[3] = 0;
        signs[32] = 7;
        pack(&signs, 33, &mut packed).unwrap();
        assert_eq!(packed, [0b1001, 1]);
        let mut back = [0i8; 33];
        unpack(&packed, 33, &mut back).unwrap();
        assert_eq!(back.map(|s| s == 1), signs.map(|s| s >= 0));
    }

    #[test]
    fn lane_masks_cover_exactly_the_channels() {
        for channels in 1..100 {
            let set: u32 = (0..words_for(channels)).map(|w| lane_mask(channels, w).count_ones()).sum();
            assert_eq!(set as usize, channels);
        }
        assert_eq!(lane_mask(32, 1), 0);
    }

    #[test]
    fn padding_bits_are_found() {
        assert!(check_padding_bits("x", &[7, 7], 3).is_ok());
        assert_eq!(check_padding_bits("x", &[7, 8], 3), Err(ArgumentError::PaddingBits { argument: "x" }));
        assert!(check_padding_bits("x", &[u32::MAX], 32).is_ok());
    }
}
