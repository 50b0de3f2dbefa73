//! Arguments of `bbdepthwiseconv2d`.

use cbin_nn_kernels::operators::bbdepthwiseconv2d::BbDepthwiseConv2d;
use cbin_nn_kernels::{Kernel, Run};

use crate::draw::Draw;
use crate::layer::{Layer, agree, dirty, padding};

/// See the crate's documentation.
pub fn run(data: &[u8]) {
    let mut draw = Draw::new(data);
    let (window, padding) = (draw.window(5), padding(&mut draw));
    let Some(layer) = Layer::draw(&mut draw, true, window) else { return };
    let (shape, geometry) = (*layer.geometry.input(), layer.geometry);
    let length = draw.length(geometry.filter_words());
    let weights = draw.parameter(length, shape.channels());
    let built = layer
        .views()
        .and_then(|(rules, pool)| BbDepthwiseConv2d::new(geometry, padding, &weights, rules, pool));
    let operator = match built {
        Ok(operator) => operator,
        Err(error) => return draw.refused(error),
    };
    let length = draw.length(shape.words());
    let image = draw.packed(length, shape.channels());
    let mut scratch = dirty(&mut draw, operator.scratch_words());
    let fits = image.len() == shape.words();
    agree(
        &mut draw,
        operator.check_contents().is_ok(),
        &operator.output(),
        (fits, |out: &mut [u32]| operator.reference(&image, out)),
        (fits && scratch.len() == operator.scratch_words(), |out: &mut [u32]| {
            operator.optimized(&image, out, &mut scratch)
        }),
    );
}
