/*!
The output over the image: rows of the first activation take the place of rows of the image that are done with, so that a
board needs no memory for both.
*/

use crate::ArgumentError;
use crate::arch::bytes_of;
use crate::error::check_length;
use crate::methods::conv::ConvLayer;
use crate::shape::Sliding;

/// The output of a layer, and its image.
pub(crate) struct Planes<'a> {
    /// Begins with the output.
    pub(crate) memory: &'a mut [u32],
    /// The image, or `None` where it lies in `memory` too, from byte `gap` on.
    image: Option<&'a [u8]>,
    gap: usize,
}

impl<'a> Planes<'a> {
    /// Both apart.
    ///
    /// # Errors
    /// [`ArgumentError::Length`] naming `output`.
    pub(crate) fn apart(
        layer: &ConvLayer<'_>,
        image: &'a [u8],
        output: &'a mut [u32],
    ) -> Result<Self, ArgumentError> {
        check_length("output", layer.output().words(), output.len())?;
        Ok(Self { memory: output, image: Some(image), gap: 0 })
    }

    /// The image in `memory`, from byte `gap` on.
    ///
    /// # Errors
    /// [`ArgumentError::Length`] where the memory ends before or behind image and output.
    pub(crate) fn over_image(
        layer: &ConvLayer<'_>,
        memory: &'a mut [u32],
        gap: usize,
    ) -> Result<Self, ArgumentError> {
        let end = gap.saturating_add(layer.geometry.input().elements()).div_ceil(4);
        check_length("memory", end.max(layer.output().words()), memory.len())?;
        Ok(Self { memory, image: None, gap })
    }

    /// The image, or what the output has left of it.
    #[inline]
    pub(crate) fn image(&self) -> &[u8] {
        match self.image {
            Some(image) => image,
            None => &bytes_of(self.memory)[self.gap..],
        }
    }
}

/// Bytes from the beginning of the output to the end of its row `end - 1`, less those of the image before the first row that row
/// `first` of the output is made of: as far behind the output an image must begin that is still read for row `first` when the
/// others are written.
fn needed(layer: &ConvLayer<'_>, first: usize, end: usize) -> usize {
    let (input, out, sliding) = (layer.geometry.input(), layer.output(), layer.geometry.sliding());
    let pool = pool_of(layer);
    let (out_row, in_row) = (4 * out.width() * out.pixel_words(), input.width() * input.channels());
    let conv_row = (first * pool.window().strides[0]).saturating_sub(pool.window().padding[0]);
    let read = (conv_row * sliding.window().strides[0]).saturating_sub(sliding.window().padding[0]);
    (end * out_row).saturating_sub(read.min(input.height()) * in_row)
}

/// The end of the longest band of output rows that begins with row `first`, where all of it is written while what the first row is
/// made of is still read: of an image that begins `distance` bytes behind the output.
pub(crate) fn band_end(layer: &ConvLayer<'_>, distance: usize, first: usize) -> usize {
    (first..layer.output().height()).take_while(|last| needed(layer, first, last + 1) <= distance).count()
        + first
}

/// Bytes that an image must begin behind the beginning of the output at least, a multiple of 4: bands of one row.
pub(crate) fn gap(layer: &ConvLayer<'_>) -> usize {
    let rows = 0..layer.output().height();
    rows.map(|row| needed(layer, row, row + 1)).max().unwrap_or(0).next_multiple_of(4)
}

/// As [`gap`], for bands of `rows` rows or more, but for the last.
pub(crate) fn preferred_gap(layer: &ConvLayer<'_>, rows: usize) -> usize {
    let (mut distance, mut first, height) = (gap(layer), 0, layer.output().height());
    while first < height {
        let end = band_end(layer, distance, first);
        let least = (first + rows).min(height);
        if end < least {
            // Bands before become longer, too.
            (distance, first) = (needed(layer, first, least).next_multiple_of(4), 0);
        } else {
            first = end;
        }
    }
    distance
}

/// The output's pixels as windows on the convolution's; where nothing is pooled, of one pixel.
pub(crate) fn pool_of(layer: &ConvLayer<'_>) -> Sliding {
    layer.pool.as_ref().map_or(Sliding::of_one(layer.geometry.output()), |pool| *pool.sliding())
}
