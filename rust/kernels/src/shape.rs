/*!
Shapes and windows, validated when they are built.

Every dimension is at most [`MAX_DIMENSION`] and every tensor at most [`MAX_ELEMENTS`] elements, so that no
later product of a validated shape can overflow, on a 32-bit core either.
*/

use crate::ArgumentError;
use crate::bits::words_for;

/// Largest height, width or channel count of a tensor.
pub const MAX_DIMENSION: usize = 65_535;
/// Largest number of elements of a tensor; packed to words and counted in bytes it stays below 2^31.
pub const MAX_ELEMENTS: usize = 1 << 26;
/// Largest kernel side, stride, dilation or padding.
pub const MAX_WINDOW: usize = 4096;

/// Height, width and channels of one image (N = 1 of NHWC).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    // No dimension needs more bits (`MAX_DIMENSION`), and operators lie on a small stack.
    height: u16,
    width: u16,
    channels: u16,
}

impl Shape {
    /// A shape of `height` x `width` pixels with `channels` channels.
    ///
    /// # Errors
    /// [`ArgumentError::Zero`] or [`ArgumentError::TooLarge`], naming the dimension.
    pub fn new(height: usize, width: usize, channels: usize) -> Result<Self, ArgumentError> {
        check_size("height", height, MAX_DIMENSION)?;
        check_size("width", width, MAX_DIMENSION)?;
        check_size("channels", channels, MAX_DIMENSION)?;
        // A pixel takes a whole word even where it has one channel.
        let elements = (height as u64) * (width as u64) * (words_for(channels) as u64 * 32);
        if elements > MAX_ELEMENTS as u64 {
            return Err(ArgumentError::TooLarge { argument: "shape", limit: MAX_ELEMENTS });
        }
        Ok(Self { height: height as u16, width: width as u16, channels: channels as u16 })
    }

    /// Height in pixels.
    #[inline]
    pub fn height(&self) -> usize {
        self.height.into()
    }

    /// Width in pixels.
    #[inline]
    pub fn width(&self) -> usize {
        self.width.into()
    }

    /// Channels of a pixel.
    #[inline]
    pub fn channels(&self) -> usize {
        self.channels.into()
    }

    /// Number of pixels.
    pub fn pixels(&self) -> usize {
        self.height() * self.width()
    }

    /// Number of elements: pixels times channels.
    pub fn elements(&self) -> usize {
        self.pixels() * self.channels()
    }

    /// `u32` words of one packed pixel.
    pub fn pixel_words(&self) -> usize {
        words_for(self.channels())
    }

    /// `u32` words of the packed image.
    pub fn words(&self) -> usize {
        self.pixels() * self.pixel_words()
    }
}

/// How a kernel slides over a plane: taps, steps and explicit padding, all in pixels.
///
/// A plain struct, since it is only meaningful together with the plane it slides over:
/// [`Sliding::new`] validates the pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Kernel height and width.
    pub kernel: [usize; 2],
    /// Vertical and horizontal step.
    pub strides: [usize; 2],
    /// Distance between taps.
    pub dilation: [usize; 2],
    /// Padding above, left, below and right.
    pub padding: [usize; 4],
}

impl Window {
    /// A window of `height` x `width` taps with stride 1, no dilation and no padding.
    pub fn of(height: usize, width: usize) -> Self {
        Self { kernel: [height, width], strides: [1, 1], dilation: [1, 1], padding: [0; 4] }
    }

    /// Number of taps.
    pub fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }
}

/// What a tap outside the image contributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// Nothing: the padding is zero (the default of Keras and PyTorch).
    Zero,
    /// Its weight: the padding is +1 (`pad_values=1` in Larq).
    One,
}

/// A [`Window`] on a plane of known size: where its taps fall, and how large the output plane is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sliding {
    window: Window,
    input: [u16; 2],
    output: [u16; 2],
}

impl Sliding {
    /// Validates `window` on a plane of `height` x `width` pixels.
    ///
    /// # Errors
    /// [`ArgumentError::Zero`], [`ArgumentError::TooLarge`] or [`ArgumentError::KernelTooLarge`].
    pub fn new(height: usize, width: usize, window: Window) -> Result<Self, ArgumentError> {
        let mut output = [0; 2];
        for (axis, size) in [height, width].into_iter().enumerate() {
            check_size("input", size, MAX_DIMENSION)?;
            check_size("kernel", window.kernel[axis], MAX_WINDOW)?;
            check_size("strides", window.strides[axis], MAX_WINDOW)?;
            check_size("dilation", window.dilation[axis], MAX_WINDOW)?;
            let (before, after) = (window.padding[axis], window.padding[axis + 2]);
            if before > MAX_WINDOW || after > MAX_WINDOW {
                return Err(ArgumentError::TooLarge { argument: "padding", limit: MAX_WINDOW });
            }
            let span = window.dilation[axis] * (window.kernel[axis] - 1) + 1;
            let padded = size + before + after;
            if span > padded {
                return Err(ArgumentError::KernelTooLarge { argument: "kernel" });
            }
            output[axis] = (padded - span) / window.strides[axis] + 1;
        }
        check_size("output", output[0].max(output[1]), MAX_DIMENSION)?;
        Ok(Self { window, input: [height as u16, width as u16], output: output.map(|size| size as u16) })
    }

    /// One tap on each pixel of a plane.
    pub(crate) fn of_one(plane: &Shape) -> Self {
        let size = [plane.height, plane.width];
        Self { window: Window::of(1, 1), input: size, output: size }
    }

    /// The window.
    pub fn window(&self) -> &Window {
        &self.window
    }

    /// Whether `plane` has the size that the window was validated on.
    pub(crate) fn is_on(&self, plane: &Shape) -> bool {
        self.input == [plane.height, plane.width]
    }

    /// Height of the output plane.
    pub fn output_height(&self) -> usize {
        self.output[0].into()
    }

    /// Width of the output plane.
    pub fn output_width(&self) -> usize {
        self.output[1].into()
    }

    /// Input coordinate of tap `tap` at output coordinate `at` along `axis`, or None where it is padding.
    pub fn input_at(&self, axis: usize, at: usize, tap: usize) -> Option<usize> {
        (at * self.window.strides[axis] + tap * self.window.dilation[axis])
            .checked_sub(self.window.padding[axis])
            .filter(|&i| i < self.input[axis].into())
    }

    /// The taps `first..end` along `axis` that fall inside the input at output coordinate `at`.
    #[inline]
    pub fn taps_inside(&self, axis: usize, at: usize) -> (usize, usize) {
        let (kernel, dilation) = (self.window.kernel[axis], self.window.dilation[axis]);
        let start = at * self.window.strides[axis];
        let (padding, size) = (self.window.padding[axis], usize::from(self.input[axis]));
        let ceil_div = |n: usize| if dilation == 1 { n } else { n.div_ceil(dilation) };
        // Tap t is inside where padding <= start + t * dilation < padding + size.
        let first = ceil_div(padding.saturating_sub(start)).min(kernel);
        let end = ceil_div((padding + size).saturating_sub(start)).min(kernel);
        (first, end.max(first))
    }
}

/// A convolution: an input shape, a window on it and the number of output channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2dGeometry {
    input: Shape,
    output: Shape,
    sliding: Sliding,
}

impl Conv2dGeometry {
    /// Validates the geometry of a convolution to `output_channels` channels.
    ///
    /// # Errors
    /// As [`Shape::new`] and [`Sliding::new`]; [`ArgumentError::TooLarge`] where the weights are above
    /// [`MAX_ELEMENTS`].
    pub fn new(input: Shape, window: Window, output_channels: usize) -> Result<Self, ArgumentError> {
        let sliding = Sliding::new(input.height(), input.width(), window)?;
        let output = Shape::new(sliding.output_height(), sliding.output_width(), output_channels)?;
        let weights = window.taps() as u64 * (input.pixel_words() as u64 * 32) * output_channels as u64;
        if weights > MAX_ELEMENTS as u64 {
            return Err(ArgumentError::TooLarge { argument: "weights", limit: MAX_ELEMENTS });
        }
        Ok(Self { input, output, sliding })
    }

    /// Input shape.
    pub fn input(&self) -> &Shape {
        &self.input
    }

    /// Shape of the convolution's own output plane, before any fused pool.
    pub fn output(&self) -> &Shape {
        &self.output
    }

    /// The window on the input plane.
    pub fn sliding(&self) -> &Sliding {
        &self.sliding
    }

    /// Products of one accumulator where every tap is inside: taps times input channels.
    pub fn products(&self) -> usize {
        self.sliding.window.taps() * self.input.channels()
    }

    /// Packed words of one filter.
    pub fn filter_words(&self) -> usize {
        self.sliding.window.taps() * self.input.pixel_words()
    }

    /// Multiply-accumulates of the whole layer, counting taps in the padding, as the field does.
    pub fn macs(&self) -> u64 {
        self.output.elements() as u64 * self.products() as u64
    }
}

fn check_size(argument: &'static str, size: usize, limit: usize) -> Result<(), ArgumentError> {
    match size {
        0 => Err(ArgumentError::Zero { argument }),
        _ if size > limit => Err(ArgumentError::TooLarge { argument, limit }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taps_inside_is_the_set_of_taps_with_an_input() {
        for size in 1..if cfg!(miri) { 4 } else { 9 } {
            for kernel in 1..5 {
                for (stride, dilation) in [(1, 1), (2, 1), (1, 2), (3, 2)] {
                    for (before, after) in [(0, 0), (2, 2), (0, 1), (5, 1)] {
                        let window = Window {
                            kernel: [kernel, 1],
                            strides: [stride, 1],
                            dilation: [dilation, 1],
                            padding: [before, 0, after, 0],
                        };
                        let Ok(sliding) = Sliding::new(size, 1, window) else { continue };
                        for at in 0..sliding.output_height() {
                            let (first, end) = sliding.taps_inside(0, at);
                            for tap in 0..kernel {
                                let inside = sliding.input_at(0, at, tap).is_some();
                                assert_eq!(
                                    inside,
                                    (first..end).contains(&tap),
                                    "{window:?} at {at} tap {tap}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn same_padding_of_smallcifar_keeps_the_plane() {
        let window = Window { padding: [2; 4], ..Window::of(5, 5) };
        let geometry = Conv2dGeometry::new(Shape::new(32, 32, 3).unwrap(), window, 32).unwrap();
        assert_eq!((geometry.output().height(), geometry.output().width()), (32, 32));
        assert_eq!(geometry.macs(), 2_457_600);
    }

    #[test]
    fn impossible_shapes_are_named() {
        assert_eq!(Shape::new(0, 1, 1), Err(ArgumentError::Zero { argument: "height" }));
        assert!(matches!(
            Shape::new(60_000, 60_000, 1),
            Err(ArgumentError::TooLarge { argument: "shape", .. })
        ));
        assert_eq!(
            Sliding::new(4, 4, Window::of(5, 1)),
            Err(ArgumentError::KernelTooLarge { argument: "kernel" })
        );
    }
}
