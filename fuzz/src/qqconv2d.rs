//! Arguments of `qqconv2d`.

use cbin_nn_kernels::operators::qqconv2d::QqConv2d;
use cbin_nn_kernels::{Kernel, Run};

use crate::draw::Draw;
use crate::layer::{Layer, agree, dirty};

/// See the crate's documentation.
pub fn run(data: &[u8]) {
    let mut draw = Draw::new(data);
    let (window, affine) = (draw.window(5), draw.affine());
    let Some(layer) = Layer::draw(&mut draw, false, window) else { return };
    let (shape, geometry) = (*layer.geometry.input(), layer.geometry);
    let length = draw.length(geometry.output().channels() * geometry.products());
    // -128 is the weight that a bound forgets.
    let weights: Vec<i8> = match draw.rarely(4) {
        true => vec![i8::MIN; length],
        false => draw.image(length).into_iter().map(|byte| byte as i8).collect(),
    };
    // 16-bit weights, and an offset a channel, now and then.
    let factor = draw.below(4) as i16 * 80;
    let wide: Vec<i16> = weights.iter().map(|&w| i16::from(w).saturating_mul(factor)).collect();
    let adds = if draw.below(3) == 0 { draw.length(shape.channels()) } else { 0 };
    let adds: Vec<i32> = (0..adds).map(|_| draw.below(18_001) as i32 - 9000).collect();
    draw.odd |= !adds.is_empty() && affine.add != 0;
    draw.odd |= !adds.is_empty() && geometry.products() > 100;
    let built = layer.views().and_then(|(rules, pool)| {
        let operator = match factor {
            0 => QqConv2d::new(geometry, affine, &weights, rules, pool),
            _ => QqConv2d::new_wide(geometry, affine, &wide, rules, pool),
        };
        operator?.with_channel_adds(&adds)
    });
    let operator = match built {
        Ok(operator) => operator,
        Err(error) => return draw.refused(error),
    };
    if factor != 0 && operator.check_contents().is_err() {
        // Sums of 16-bit weights that are too large are found there alone; such an operator may overflow.
        return;
    }
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
