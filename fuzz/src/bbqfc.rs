//! Arguments of `bbqfc`.

use std::fmt::Debug;

use cbin_nn_kernels::epilogue::{Output, Requantization};
use cbin_nn_kernels::operators::bbfc::Dense;
use cbin_nn_kernels::operators::bbqfc::BbqFc;
use cbin_nn_kernels::{Kernel, Run};

use crate::bbfc::dense;
use crate::draw::Draw;

/// See the crate's documentation.
pub fn run(data: &[u8]) {
    let mut draw = Draw::new(data);
    let Some((shape, units, weights)) = dense(&mut draw) else { return };
    let has_knee = draw.below(2) == 1;
    let rows = if has_knee { 2 * units } else { units };
    let (mul, add) = (factors(&mut draw, rows), factors(&mut draw, rows));
    let knee = if has_knee { draw.length(units) } else { 0 };
    let knee: Vec<i32> = (0..knee).map(|_| draw.threshold()).collect();
    let shift = draw.below(70) as u32;
    draw.odd |= shift > 62;
    let built = Dense::new(shape, units, &weights)
        .and_then(|dense| BbqFc::new(dense, Requantization::new(&mul, &add, &knee, shift)?));
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

/// Values of one magnitude, or at times of any.
pub(crate) fn factors(draw: &mut Draw<'_>, rows: usize) -> Vec<i64> {
    let (length, keep) = (draw.length(rows), draw.below(65) as u32);
    (0..length)
        .map(|_| {
            let value = i64::from(draw.value()) << 32 | i64::from(draw.value());
            value.checked_shr(64 - keep).unwrap_or(0)
        })
        .collect()
}

fn agree<T: Output + Default + PartialEq + Debug>(
    operator: &BbqFc<'_>,
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
