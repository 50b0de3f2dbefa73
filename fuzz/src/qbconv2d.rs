//! Arguments of `qbconv2d`.

use cbin_nn_kernels::qbconv2d::{QbConv2d, Weights};
use cbin_nn_kernels::shape::Conv2dGeometry;

use crate::draw::Draw;
use crate::layer::{Layer, agree, dirty};

/// See the crate's documentation.
pub fn run(data: &[u8]) {
    let mut draw = Draw::new(data);
    let (window, affine) = (draw.window(5), draw.affine());
    let Some(layer) = Layer::draw(&mut draw, false, window) else { return };
    let (shape, geometry) = (*layer.geometry.input(), layer.geometry);
    let filters = geometry.output().channels();
    let masks = draw.below(2) == 1;
    let right = filters * if masks { Weights::byte_mask_words(&geometry) } else { geometry.filter_words() };
    let length = draw.length(right);
    let words = if masks {
        byte_masks(&mut draw, &geometry, length)
    } else {
        draw.parameter(length, shape.channels())
    };
    let weights = if masks { Weights::ByteMask(&words) } else { Weights::Packed(&words) };
    let built = layer.views().and_then(|(rules, pool)| QbConv2d::new(geometry, affine, weights, rules, pool));
    let operator = match built {
        Ok(operator) => operator,
        Err(error) => return draw.refused(error),
    };
    let length = draw.length(shape.elements());
    let image = if draw.rarely(4) { vec![255; length] } else { draw.image(length) };
    let mut bytes = vec![[0xA5; 4]; draw.length(operator.window_words())];
    let mut scratch = dirty(&mut draw, operator.scratch_words());
    let fits = image.len() == shape.elements();
    let scratch_fits = (bytes.len(), scratch.len()) == (operator.window_words(), operator.scratch_words());
    agree(
        &mut draw,
        operator.check_contents().is_ok(),
        operator.output(),
        (fits, |out: &mut [u32]| operator.reference(&image, out)),
        (fits && scratch_fits, |out: &mut [u32]| operator.optimized(&image, out, &mut bytes, &mut scratch)),
    );
}

/// Random weights in the byte-mask layout; at times with bytes that are none, or behind the last weight.
fn byte_masks(draw: &mut Draw<'_>, geometry: &Conv2dGeometry, length: usize) -> Vec<u32> {
    let words = Weights::byte_mask_words(geometry);
    let dirty = draw.rarely(8);
    let all = draw.rarely(4);
    (0..length)
        .map(|at| {
            let value = draw.value();
            if dirty {
                return value;
            }
            let mask = |lane: usize| {
                let weight = at % words * 4 + lane;
                let plus = all || value >> lane & 1 == 1;
                if plus && weight < geometry.products() { 0xFF } else { 0 }
            };
            u32::from_le_bytes([0, 1, 2, 3].map(mask))
        })
        .collect()
}
