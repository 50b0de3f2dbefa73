//! Arguments of `bmaxpool2d`.

use cbin_nn_kernels::operators::bmaxpool2d::BMaxPool2d;
use cbin_nn_kernels::{Kernel, Run};

use crate::draw::Draw;
use crate::layer::agree;

/// See the crate's documentation.
pub fn run(data: &[u8]) {
    let mut draw = Draw::new(data);
    let Ok(shape) = draw.shape() else { return };
    let window = draw.window(4);
    let cheap = BMaxPool2d::new(shape, window, None)
        .is_ok_and(|bare| bare.output().elements() as u128 * window.taps() as u128 <= 100_000);
    if !cheap || shape.elements() > 100_000 {
        return;
    }
    let use_and = (draw.below(2) == 1).then(|| {
        let length = draw.length(shape.pixel_words());
        draw.parameter(length, shape.channels())
    });
    let operator = match BMaxPool2d::new(shape, window, use_and.as_deref()) {
        Ok(operator) => operator,
        Err(error) => return draw.refused(error),
    };
    let length = draw.length(shape.words());
    let image = draw.packed(length, shape.channels());
    let fits = image.len() == shape.words();
    agree(
        &mut draw,
        operator.check_contents().is_ok(),
        &operator.output(),
        (fits, |out: &mut [u32]| operator.reference(&image, out)),
        (fits, |out: &mut [u32]| operator.optimized(&image, out, &mut [])),
    );
}
