/*!
What the two families with 8-bit inputs share: the meaning of an input byte, and the gathered window.

An input byte q means the integer `mul * q + add`, so that images normalised as `x / 127.5 - 1` are exact
as `2 q - 255`; the scale that is left (1/255 here) belongs to the rules. Taps outside the image contribute
0, the zero of the *meaning* and not of the byte:

```text
acc = sum over taps inside of w * (mul * q + add)
    = mul * (sum of w * q) + add * (sum of w)
```

each over the taps inside. The first sum costs one pass per output channel; the second changes only with the
border class of the pixel, and is only needed where `add` is not 0.

Images normalised by a mean for each channel need an offset for each: `mul * q + add[channel]`, and the second sum
is one over the channels then.
*/

use crate::ArgumentError;
use crate::arch::copy_rows;
use crate::error::check_length;
use crate::methods::conv::Accumulate;
use crate::shape::Conv2dGeometry;

/// Integer meaning of an input byte q: `mul * q + add`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Affine {
    /// Factor, at least 1.
    pub mul: i32,
    /// Offset.
    pub add: i32,
}

impl Affine {
    /// A bound of `|mul q + add|`, and of what its parts add up to in any order.
    pub(crate) fn largest(&self, channel_adds: &[i32]) -> i64 {
        let add = channel_adds.iter().chain([&self.add]).map(|&add| i64::from(add).abs()).max();
        255 * i64::from(self.mul) + add.unwrap_or(0)
    }

    /// Checks that no accumulator of `geometry` with weights in `-weight..=weight` leaves `i32`.
    /// `channel_adds` is empty, or takes the place of `add` with one offset a channel.
    pub(crate) fn check(
        &self,
        channel_adds: &[i32],
        geometry: &Conv2dGeometry,
        weight: i64,
    ) -> Result<(), ArgumentError> {
        if self.mul < 1 {
            return Err(ArgumentError::Value { argument: "input mul" });
        }
        if !channel_adds.is_empty() {
            check_length("channel adds", geometry.input().channels(), channel_adds.len())?;
            if self.add != 0 {
                return Err(ArgumentError::Value { argument: "input add" });
            }
        }
        // |acc| <= products * weight * max |mul q + add|; each partial sum is below the same bound.
        let largest = self.largest(channel_adds);
        let limit = i64::from(i32::MAX);
        if largest > limit
            || largest * weight > limit
            || largest * weight * geometry.products() as i64 > limit
        {
            return Err(ArgumentError::Overflow { argument: "input meaning" });
        }
        Ok(())
    }
}

/// The filters of a layer with 8-bit inputs.
pub(crate) trait ByteFilters {
    /// Sum of w * q over a window in filter order, padded with 0 to whole words, up to [`bias`](Self::bias).
    fn dot(&self, filter: usize, window: &[[u8; 4]]) -> i32;

    /// What [`dot`](Self::dot) leaves out, the same for every window.
    fn bias(&self, filter: usize) -> i32;
}

/// The taps inside the image of a pixel, as (first row, end row, first column, end column).
type BorderClass = (usize, usize, usize, usize);

/// Words of scratch of a [`Gathered`], beside its window.
pub(crate) fn scratch_words(geometry: &Conv2dGeometry, affine: Affine, channel_adds: &[i32]) -> usize {
    let filters = geometry.output().channels();
    if affine.add == 0 && channel_adds.is_empty() { filters } else { 2 * filters }
}

/// The bytes of one pixel's window, in the order of a filter's bytes; 0 outside the image.
pub(crate) struct Gathered<'a, F> {
    geometry: &'a Conv2dGeometry,
    affine: Affine,
    /// Empty, or the offset of each channel; `affine.add` is 0 then.
    channel_adds: &'a [i32],
    filters: F,
    input: &'a [u8],
    window: &'a mut [[u8; 4]],
    /// The bias of each filter's dot product, in two's complement.
    biases: &'a mut [u32],
    /// What each filter's dot product lacks of its accumulator in the current border class, in two's
    /// complement; empty where every offset is 0 and the class does not matter.
    sums: &'a mut [u32],
    border_class: Option<BorderClass>,
}

impl<'a, F: ByteFilters> Gathered<'a, F> {
    /// `scratch` holds [`scratch_words`] words.
    pub(crate) fn new(
        geometry: &'a Conv2dGeometry,
        (affine, channel_adds): (Affine, &'a [i32]),
        filters: F,
        input: &'a [u8],
        window: &'a mut [[u8; 4]],
        scratch: &'a mut [u32],
    ) -> Self {
        window.fill([0; 4]);
        let (biases, sums) = scratch.split_at_mut(geometry.output().channels());
        for (filter, bias) in biases.iter_mut().enumerate() {
            *bias = filters.bias(filter) as u32;
        }
        Self { geometry, affine, channel_adds, filters, input, window, biases, sums, border_class: None }
    }

    /// Empties the window, so that the taps outside `class` are 0, and sums the weights inside.
    fn enter(&mut self, class: BorderClass) {
        if self.border_class == Some(class) {
            return;
        }
        self.border_class = Some(class);
        self.window.fill([0; 4]);
        if !self.channel_adds.is_empty() {
            self.enter_by_channel(class);
            return;
        }
        if self.affine.add == 0 {
            return;
        }
        // The sum of the weights inside is their dot product with a window of ones.
        let (first_y, end_y, first_x, end_x) = class;
        let channels = self.geometry.input().channels();
        let kernel_width = self.geometry.sliding().window().kernel[1];
        let bytes = self.window.as_flattened_mut();
        for tap_y in first_y..end_y {
            let at = tap_y * kernel_width * channels;
            bytes[at + first_x * channels..at + end_x * channels].fill(1);
        }
        for (filter, (sum, &bias)) in self.sums.iter_mut().zip(&*self.biases).enumerate() {
            let inside = self.filters.dot(filter, self.window) + bias as i32;
            *sum = (self.affine.mul * bias as i32 + self.affine.add * inside) as u32;
        }
    }

    /// [`enter`](Self::enter) for offsets that differ: the weights of one channel after another are summed.
    fn enter_by_channel(&mut self, (first_y, end_y, first_x, end_x): BorderClass) {
        let channels = self.geometry.input().channels();
        let kernel_width = self.geometry.sliding().window().kernel[1];
        for (sum, &bias) in self.sums.iter_mut().zip(&*self.biases) {
            *sum = (self.affine.mul * bias as i32) as u32;
        }
        for (channel, &add) in self.channel_adds.iter().enumerate() {
            for value in [1, 0] {
                let bytes = self.window.as_flattened_mut();
                for tap_y in first_y..end_y {
                    for tap_x in first_x..end_x {
                        bytes[(tap_y * kernel_width + tap_x) * channels + channel] = value;
                    }
                }
                if value == 0 {
                    break;
                }
                for (filter, (sum, &bias)) in self.sums.iter_mut().zip(&*self.biases).enumerate() {
                    let inside = self.filters.dot(filter, self.window) + bias as i32;
                    *sum = (*sum as i32 + add * inside) as u32;
                }
            }
        }
    }
}

impl<F: ByteFilters> Accumulate for Gathered<'_, F> {
    fn seek(&mut self, y: usize, x: usize) {
        let sliding = self.geometry.sliding();
        let (rows, columns) = (sliding.taps_inside(0, y), sliding.taps_inside(1, x));
        self.enter((rows.0, rows.1, columns.0, columns.1));
        self.geometry.gather_bytes(self.input, y, x, self.window.as_flattened_mut());
    }

    #[inline(always)]
    fn accumulator(&self, channel: usize) -> i32 {
        let dot = self.filters.dot(channel, self.window);
        match self.sums.get(channel) {
            None => self.affine.mul * (dot + self.biases[channel] as i32),
            Some(&sum) => self.affine.mul * dot + sum as i32,
        }
    }
}

impl Conv2dGeometry {
    /// The first pixel of the window of pixel (y, x) where it lies all inside the image, its pixels side by side.
    #[inline]
    pub(crate) fn first_inside(&self, y: usize, x: usize) -> Option<usize> {
        let (shape, window) = (self.input(), self.sliding().window());
        let top = (y * window.strides[0]).wrapping_sub(window.padding[0]);
        let left = (x * window.strides[1]).wrapping_sub(window.padding[1]);
        let is_inside = window.dilation == [1, 1]
            && top < shape.height()
            && left < shape.width()
            && top + window.kernel[0] <= shape.height()
            && left + window.kernel[1] <= shape.width();
        is_inside.then(|| top * shape.width() + left)
    }

    /// Gathers the bytes of the window of pixel (y, x) in filter order, 0 outside the image and behind the last.
    pub(crate) fn gather_bytes(&self, input: &[u8], y: usize, x: usize, bytes: &mut [u8]) {
        let (shape, sliding) = (self.input(), self.sliding());
        let (window, channels) = (sliding.window(), shape.channels());
        if let Some(first) = self.first_inside(y, x) {
            // Nearly every window, and its rows are runs of bytes.
            if let Some(last) = bytes.last_chunk_mut::<4>() {
                *last = [0; 4];
            }
            let (run, row) = (window.kernel[1] * channels, shape.width() * channels);
            return copy_rows(bytes, &input[first * channels..], [run, row], run, window.kernel[0]);
        }
        let (first_y, end_y) = sliding.taps_inside(0, y);
        let (first_x, end_x) = sliding.taps_inside(1, x);
        if (end_y - first_y) * (end_x - first_x) != window.taps() {
            bytes.fill(0);
        } else if let Some(last) = bytes.last_chunk_mut::<4>() {
            *last = [0; 4];
        }
        // Where the first tap inside is; a tap is a pixel, or dilation, further on.
        let (pixel_y, pixel_x) = (
            (y * window.strides[0] + first_y * window.dilation[0]).wrapping_sub(window.padding[0]),
            (x * window.strides[1] + first_x * window.dilation[1]).wrapping_sub(window.padding[1]),
        );
        let columns = end_x - first_x;
        if columns == 0 || end_y == first_y {
            return;
        }
        let mut from = (pixel_y.wrapping_mul(shape.width()).wrapping_add(pixel_x)).wrapping_mul(channels);
        let mut to = (first_y * window.kernel[1] + first_x) * channels;
        // A kernel row is one run of bytes, or a run a pixel where the taps lie apart.
        let (runs, run) = if window.dilation[1] == 1 { (1, columns * channels) } else { (columns, channels) };
        let steps = [window.kernel[1] * channels, window.dilation[0] * shape.width() * channels];
        for _ in 0..runs {
            copy_rows(&mut bytes[to..], &input[from..], steps, run, end_y - first_y);
            from += window.dilation[1] * channels;
            to += channels;
        }
    }
}

/// The definition of one accumulator, product by product. `weight(filter, tap, channel)` is a weight.
pub(crate) fn reference_accumulator(
    geometry: &Conv2dGeometry,
    (affine, channel_adds): (Affine, &[i32]),
    input: &[u8],
    weight: impl Fn(usize, usize, usize) -> i32,
    (y, x, filter): (usize, usize, usize),
) -> i32 {
    let (sliding, channels) = (geometry.sliding(), geometry.input().channels());
    let [kernel_height, kernel_width] = sliding.window().kernel;
    let mut acc = 0;
    for tap_y in 0..kernel_height {
        for tap_x in 0..kernel_width {
            let (Some(y), Some(x)) = (sliding.input_at(0, y, tap_y), sliding.input_at(1, x, tap_x)) else {
                continue;
            };
            for channel in 0..channels {
                let q = input[(y * geometry.input().width() + x) * channels + channel];
                let add = channel_adds.get(channel).copied().unwrap_or(affine.add);
                let value = affine.mul * i32::from(q) + add;
                acc += weight(filter, tap_y * kernel_width + tap_x, channel) * value;
            }
        }
    }
    acc
}
