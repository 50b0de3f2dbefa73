//! Arguments of `bqqfc`.

use std::fmt::Debug;

use cbin_nn_kernels::epilogue::{Output, Requantization};
use cbin_nn_kernels::operators::bqqfc::BqqFc;
use cbin_nn_kernels::shape::Shape;
use cbin_nn_kernels::{Kernel, Run};

use crate::bbqfc::factors;
use crate::draw::Draw;

/// See the crate's documentation.
pub fn run(data: &[u8]) {
    let mut draw = Draw::new(data);
    let Ok(shape) = draw.shape() else { return };
    let units = draw.channels();
    if Shape::new(1, 1, units).is_err() || shape.elements() * units > 100_000 {
        let requantization = Requantization::new(&[], &[], &[], 0).expect("no unit, no shift");
        assert!(BqqFc::new(shape, units, &[], requantization).is_err());
        return;
    }
    let has_knee = draw.below(2) == 1;
    let rows = if has_knee { 2 * units } else { units };
    let (mul, add) = (factors(&mut draw, rows), factors(&mut draw, rows));
    let knee = if has_knee { draw.length(units) } else { 0 };
    let knee: Vec<i32> = (0..knee).map(|_| draw.threshold()).collect();
    let shift = draw.below(70) as u32;
    draw.odd |= shift > 62;
    let length = draw.length(units * shape.elements());
    let weights: Vec<i8> = match draw.rarely(4) {
        true => vec![i8::MIN; length],
        false => draw.image(length).into_iter().map(|byte| byte as i8).collect(),
    };
    let built = Requantization::new(&mul, &add, &knee, shift)
        .and_then(|requantization| BqqFc::new(shape, units, &weights, requantization));
    let operator = match built {
        Ok(operator) => operator,
        Err(error) => return draw.refused(error),
    };
    // Products may overflow, and do with a panic, where `check_contents` says so.
    if operator.check_contents().is_err() {
        return;
    }
    let length = draw.length(shape.words());
    let image = draw.packed(length, shape.channels());
    let (fits, length) = (image.len() == shape.words(), draw.length(units));
    agree::<i8>(&operator, &image, fits, length);
    agree::<i16>(&operator, &image, fits, length);
    agree::<i32>(&operator, &image, fits, length);
}

fn agree<T: Output + Default + PartialEq + Debug>(
    operator: &BqqFc<'_>,
    image: &[u32],
    fits: bool,
    length: usize,
) {
    let mut outputs = [vec![T::default(); length], vec![T::default(); length]];
    let fits = fits && length == operator.units();
    assert_eq!(operator.reference(image, &mut outputs[0]).is_ok(), fits);
    assert_eq!(operator.optimized(image, &mut outputs[1], &mut []).is_ok(), fits);
    assert_eq!(outputs[0], outputs[1]);
}
