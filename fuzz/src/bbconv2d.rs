//! Arguments of `bbconv2d`.

use cbin_nn_kernels::layouts::by_output_channel::to_groups;
use cbin_nn_kernels::operators::bbconv2d::{BbConv2d, Weights, group_shape};
use cbin_nn_kernels::shape::Conv2dGeometry;
use cbin_nn_kernels::{Kernel, Run};

use crate::draw::Draw;
use crate::layer::{Layer, agree, dirty, padding};

/// See the crate's documentation.
pub fn run(data: &[u8]) {
    let mut draw = Draw::new(data);
    let (window, padding) = (draw.window(5), padding(&mut draw));
    let Some(layer) = Layer::draw(&mut draw, false, window) else { return };
    let (shape, geometry) = (*layer.geometry.input(), layer.geometry);
    let by_lane = draw.below(2) == 1;
    let words = if by_lane {
        lanes(&mut draw, &geometry)
    } else {
        let length = draw.length(geometry.output().channels() * geometry.filter_words());
        draw.parameter(length, shape.channels())
    };
    let weights = if by_lane { Weights::ByOutputChannel(&words) } else { Weights::Packed(&words) };
    let built =
        layer.views().and_then(|(rules, pool)| BbConv2d::new(geometry, padding, weights, rules, pool));
    let operator = match built {
        Ok(operator) => operator,
        Err(error) => return draw.refused(error),
    };
    let length = draw.length(shape.words());
    let image = draw.packed(length, shape.channels());
    let mut scratch = dirty(&mut draw, operator.scratch_words());
    let fits = image.len() == shape.words();
    let scratch_fits = scratch.len() == operator.scratch_words();
    agree(
        &mut draw,
        operator.check_contents().is_ok(),
        &operator.output(),
        (fits, |out: &mut [u32]| operator.reference(&image, out)),
        (fits && scratch_fits, |out: &mut [u32]| operator.optimized(&image, out, &mut scratch)),
    );
}

/// Random weights by output channel; at times in a wrong length, or with words that should be 0 and are not.
fn lanes(draw: &mut Draw<'_>, geometry: &Conv2dGeometry) -> Vec<u32> {
    let (shape, channels) = (group_shape(geometry), geometry.input().channels());
    let length = draw.length(shape.words());
    if length != shape.words() || draw.rarely(8) {
        return draw.parameter(length, 32);
    }
    let packed = draw.packed(geometry.output().channels() * geometry.filter_words(), channels);
    let mask = draw.packed(geometry.input().pixel_words(), channels);
    let mut words = vec![0; length];
    to_groups(&shape, &packed, &mask, &mut words).expect("lengths are right and the mask is clean");
    words
}
