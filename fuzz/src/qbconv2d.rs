//! Arguments of `qbconv2d`.

use cbin_nn_kernels::layouts::byte_mask;
use cbin_nn_kernels::layouts::pixel_sums::{SumShape, to_sums};
use cbin_nn_kernels::operators::qbconv2d::{QbConv2d, Weights};
use cbin_nn_kernels::shape::Conv2dGeometry;
use cbin_nn_kernels::{Kernel, Run};

use crate::draw::Draw;
use crate::layer::{Layer, agree, dirty};

/// See the crate's documentation.
pub fn run(data: &[u8]) {
    let mut draw = Draw::new(data);
    let (window, affine) = (draw.window(5), draw.affine());
    let Some(layer) = Layer::draw(&mut draw, false, window) else { return };
    let (shape, geometry) = (*layer.geometry.input(), layer.geometry);
    let filters = geometry.output().channels();
    let layout = draw.below(3);
    let sums = SumShape::new(geometry.sliding().window().kernel, shape.channels()).filter(|_| layout == 2);
    let right = match (layout, sums) {
        (_, Some(sums)) => sums.filter_words(),
        (1, _) => byte_mask::filter_words(&geometry),
        _ => geometry.filter_words(),
    };
    let length = draw.length(filters * right);
    let words = match (layout, sums) {
        (_, Some(sums)) => pixel_sums(&mut draw, &geometry, &sums, length),
        (1, _) => byte_masks(&mut draw, &geometry, length),
        _ => draw.parameter(length, shape.channels()),
    };
    let weights = match (layout, sums) {
        (_, Some(_)) => Weights::PixelSums(&words),
        (1, _) => Weights::ByteMask(&words),
        _ => Weights::Packed(&words),
    };
    let built = layer.views().and_then(|(rules, pool)| QbConv2d::new(geometry, affine, weights, rules, pool));
    let operator = match built {
        Ok(operator) => operator,
        Err(error) => return draw.refused(error),
    };
    let length = draw.length(shape.elements());
    let image = if draw.rarely(4) { vec![255; length] } else { draw.image(length) };
    let mut scratch = dirty(&mut draw, operator.scratch_words());
    let fits = image.len() == shape.elements();
    let scratch_fits = scratch.len() == operator.scratch_words();
    agree(
        &mut draw,
        operator.check_contents().is_ok(),
        &operator.output(),
        (fits, |out: &mut [u32]| operator.reference(&image, out)),
        (fits && scratch_fits, |out: &mut [u32]| operator.optimized(&image, out, &mut scratch)),
    );
}

/// Random weights as sums; at times with a word that is none.
fn pixel_sums(draw: &mut Draw<'_>, geometry: &Conv2dGeometry, sums: &SumShape, length: usize) -> Vec<u32> {
    let filters = geometry.output().channels();
    let packed = draw.parameter(filters * geometry.filter_words(), geometry.input().channels());
    let mut words = vec![0; filters * sums.filter_words()];
    to_sums(sums, &packed, &mut words).expect("the lengths are right");
    words.resize(length, 0);
    if draw.rarely(4) && length > 0 {
        let at = draw.below(length);
        words[at] = draw.value();
    }
    words
}

/// Random weights in the byte-mask layout; at times with bytes that are none, or behind the last weight.
fn byte_masks(draw: &mut Draw<'_>, geometry: &Conv2dGeometry, length: usize) -> Vec<u32> {
    let words = byte_mask::filter_words(geometry);
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
