/*!
Convolution of bytes with 8-bit weights, four windows at a time.

What a byte means, `mul * q + add`, is worked out as its window is gathered, where it fits 16 bits: a tap outside is then 0
like any other value, and there are no border classes. Four windows lie side by side, two values in a word, so that a
filter's weights are loaded and widened once for all of them.

```text
for each four bytes of a filter      [u32; 8]
    for each of four windows         bytes 0 and 2
    for each of four windows         bytes 1 and 3
```

The four are the windows of a 2 x 2 pool, or the next four pixels where nothing is pooled.
*/

use crate::ArgumentError;
use crate::arch::{Pairs, SLOTS, pair_hits, widen};
use crate::bits::lane_mask;
use crate::epilogue::Rules;
use crate::methods::bytes::Affine;
use crate::methods::conv::ConvLayer;
use crate::methods::over_image::{Planes, gap};

/// A layer whose input's meaning fits 16 bits.
pub(crate) struct PairLayer<'a> {
    pub(crate) layer: &'a ConvLayer<'a>,
    pub(crate) affine: Affine,
    /// Empty, or the offset of each channel; `affine.add` is 0 then.
    pub(crate) channel_adds: &'a [i32],
    pub(crate) weights: &'a [i8],
}

/// What a run keeps.
struct Run<'a> {
    of: &'a PairLayer<'a>,
    planes: Planes<'a>,
    window: &'a mut [[u8; 4]],
    pairs: &'a mut [Pairs],
    /// The offset of each byte of a window, as `pairs` has its value.
    offsets: &'a mut [[u32; 2]],
    /// The output pixels of the windows gathered so far.
    targets: [usize; SLOTS],
    count: usize,
    /// Their rule pixels, of rule and veto.
    rule_pixels: [usize; 2],
}

impl<'a> PairLayer<'a> {
    /// Whether every input byte means a number of 16 bits, and a filter has a word of weights, which the inner loops
    /// rely on.
    pub(crate) fn fits(affine: Affine, channel_adds: &[i32], products: usize) -> bool {
        products >= 4 && affine.largest(channel_adds) <= i16::MAX.into()
    }

    fn filter_words(&self) -> usize {
        self.layer.geometry.products().div_ceil(4)
    }

    /// Words of scratch that a run needs beside one window: four widened windows, offsets, veto bits of a pixel.
    pub(crate) fn scratch_words(&self) -> usize {
        self.filter_words() * (2 * SLOTS + 2) + self.layer.epilogue().veto_words()
    }

    /// Bytes that the image must begin behind the beginning of the output, where the output may overwrite rows of the image
    /// that are done with.
    pub(crate) fn image_gap(&self) -> usize {
        gap(self.layer)
    }

    /// # Errors
    /// [`ArgumentError::Length`] naming `output`.
    pub(crate) fn convolve(
        &self,
        input: &[u8],
        output: &mut [u32],
        window: &mut [[u8; 4]],
        scratch: &mut [u32],
    ) -> Result<(), ArgumentError> {
        self.run(Planes::apart(self.layer, input, output)?, window, scratch);
        Ok(())
    }

    /// As [`convolve`](Self::convolve), in memory that begins with the output and holds the image from byte `distance` on.
    ///
    /// # Errors
    /// [`ArgumentError::Length`] where the memory ends before or behind image and output; [`ArgumentError::Value`] where the
    /// distance is too small.
    pub(crate) fn convolve_over_image(
        &self,
        memory: &mut [u32],
        distance: usize,
        window: &mut [[u8; 4]],
        scratch: &mut [u32],
    ) -> Result<(), ArgumentError> {
        if distance < self.image_gap() {
            return Err(ArgumentError::Value { argument: "gap" });
        }
        self.run(Planes::over_image(self.layer, memory, distance)?, window, scratch);
        Ok(())
    }

    fn run(&self, planes: Planes<'_>, window: &mut [[u8; 4]], scratch: &mut [u32]) {
        let (conv, out) = (*self.layer.geometry.output(), *self.layer.output());
        let (pairs, rest) = scratch.split_at_mut(self.filter_words() * 2 * SLOTS);
        let (offsets, veto_bits) = rest.split_at_mut(self.filter_words() * 2);
        let (pairs, offsets) = (pairs.as_chunks_mut().0, offsets.as_chunks_mut().0);
        pairs.fill([0; 2 * SLOTS]);
        let mut run = Run {
            of: self,
            planes,
            window,
            pairs,
            offsets,
            targets: [0; SLOTS],
            count: 0,
            rule_pixels: [0; 2],
        };
        run.set_offsets();
        for pixel in 0..out.pixels() {
            let (y, x) = (pixel / out.width(), pixel % out.width());
            // Rows of the image may lie here; they are done with.
            run.clear(pixel);
            let Some(pool) = &self.layer.pool else {
                run.gather((y, x), (pixel, pixel), veto_bits);
                continue;
            };
            veto_bits.fill(0);
            let (sliding, window) = (pool.sliding(), pool.sliding().window());
            let (first_y, end_y) = sliding.taps_inside(0, y);
            let (first_x, end_x) = sliding.taps_inside(1, x);
            for tap_y in first_y..end_y {
                for tap_x in first_x..end_x {
                    let conv_y = y * window.strides[0] + tap_y * window.dilation[0] - window.padding[0];
                    let conv_x = x * window.strides[1] + tap_x * window.dilation[1] - window.padding[1];
                    let conv_pixel = conv_y * conv.width() + conv_x;
                    run.gather((conv_y, conv_x), (conv_pixel, pixel), veto_bits);
                }
            }
            run.flush(veto_bits);
            let bits = &mut run.planes.memory[pixel * out.pixel_words()..][..out.pixel_words()];
            for (word, bits) in bits.iter_mut().enumerate() {
                let vetoed = veto_bits.get(word).copied().unwrap_or(0);
                *bits = (*bits & !vetoed) ^ pool.invert(word);
            }
        }
        run.flush(veto_bits);
    }

    /// The rules, and the veto where there is one.
    fn rule_sets(&self) -> [Option<&'a Rules<'a>>; 2] {
        [Some(&self.layer.rules), self.layer.epilogue().veto()]
    }
}

impl Run<'_> {
    fn set_offsets(&mut self) {
        let geometry = &self.of.layer.geometry;
        let channels = geometry.input().channels();
        self.offsets.fill([0; 2]);
        for at in 0..geometry.products() {
            let add = self.of.channel_adds.get(at % channels).copied().unwrap_or(self.of.affine.add);
            self.offsets[at / 4][at % 2] |= u32::from(add as u16) << (at % 4 / 2 * 16);
        }
    }

    /// Clears an output pixel.
    fn clear(&mut self, pixel: usize) {
        let words = self.of.layer.output().pixel_words();
        self.planes.memory[pixel * words..][..words].fill(0);
    }

    /// Gathers the window of one pixel more, (y, x) of the convolution, and flushes four.
    #[inline(never)]
    fn gather(&mut self, (y, x): (usize, usize), (conv_pixel, pixel): (usize, usize), veto_bits: &mut [u32]) {
        let of = self.of;
        let at = of.rule_sets().map(|rules| rules.map_or(0, |rules| rules.pixel(conv_pixel, pixel)));
        if self.count == SLOTS || at != self.rule_pixels {
            self.flush(veto_bits);
            self.rule_pixels = at;
        }
        let (geometry, slot) = (&of.layer.geometry, self.count);
        geometry.gather_bytes(self.planes.image(), y, x, self.window.as_flattened_mut());
        widen(self.window, of.affine.mul as u32, self.offsets, slot, self.pairs);
        let has_offsets = of.affine.add != 0 || !of.channel_adds.is_empty();
        if has_offsets && geometry.first_inside(y, x).is_none() {
            self.clear_outside(slot, y, x);
        }
        self.targets[slot] = pixel;
        self.count += 1;
    }

    /// Makes the values of taps outside the image 0, which have become an offset. The window's bytes are lost.
    #[inline(never)]
    fn clear_outside(&mut self, slot: usize, y: usize, x: usize) {
        let geometry = &self.of.layer.geometry;
        let (sliding, channels) = (geometry.sliding(), geometry.input().channels());
        let (rows, columns) = (sliding.taps_inside(0, y), sliding.taps_inside(1, x));
        let width = sliding.window().kernel[1];
        let inside = self.window.as_flattened_mut();
        inside.fill(0);
        for row in rows.0..rows.1 {
            inside[(row * width + columns.0) * channels..(row * width + columns.1) * channels].fill(0xFF);
        }
        for (inside, pairs) in self.window.iter().zip(&mut *self.pairs) {
            let inside = u32::from_le_bytes(*inside);
            let (even, odd) = (inside & 0x00FF_00FF, inside & 0xFF00_FF00);
            pairs[slot] &= even | even << 8;
            pairs[SLOTS + slot] &= odd | odd >> 8;
        }
    }

    /// Adds the bits of the gathered windows to those of their output pixels.
    fn flush(&mut self, veto_bits: &mut [u32]) {
        let (of, count) = (self.of, core::mem::take(&mut self.count));
        if count == 0 {
            return;
        }
        let (out, products) = (of.layer.output(), of.layer.geometry.products());
        for (word, weights) in of.weights.chunks(32 * products).enumerate() {
            let [rule, veto] = of.rule_sets();
            // Where there is no veto its place is taken by the rule once more, and not looked at.
            let sets = [rule, veto.or(rule)].into_iter().flatten().zip(self.rule_pixels);
            let mut intervals = [(&[][..], &[][..]); 2];
            let mut flips = [0; 2];
            for ((interval, flips), (rules, at)) in intervals.iter_mut().zip(&mut flips).zip(sets) {
                let (lo, hi) = rules.intervals(at);
                *interval = (&lo[32 * word..], &hi[32 * word..]);
                *flips = rules.flips(at)[word];
            }
            let used = 1 + usize::from(veto.is_some());
            let hits = pair_hits(self.pairs, weights, products, &intervals[..used]);
            let lanes = lane_mask(out.channels(), word);
            for (slot, target) in self.targets[..count].iter().enumerate() {
                self.planes.memory[target * out.pixel_words() + word] |= (hits[0][slot] ^ flips[0]) & lanes;
                if let Some(vetoed) = veto_bits.get_mut(word) {
                    *vetoed |= (hits[1][slot] ^ flips[1]) & lanes;
                }
            }
        }
    }
}
