//! Arguments of `bbfc`.

use cbin_nn_kernels::operators::bbfc::{BbFc, Dense};
use cbin_nn_kernels::shape::Shape;
use cbin_nn_kernels::{Kernel, Run};

use crate::draw::Draw;
use crate::layer::{OwnedRules, agree};

/// See the crate's documentation.
pub fn run(data: &[u8]) {
    let mut draw = Draw::new(data);
    let Some((shape, units, weights)) = dense(&mut draw) else { return };
    let output = Shape::new(1, 1, units).expect("dense() checked it");
    let rules = OwnedRules::draw(&mut draw, &output, &output);
    let built = Dense::new(shape, units, &weights).and_then(|dense| BbFc::new(dense, rules.view()?));
    let operator = match built {
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

/// Input shape, units and weights of a fully connected layer that is cheap to run.
pub(crate) fn dense(draw: &mut Draw<'_>) -> Option<(Shape, usize, Vec<u32>)> {
    let shape = draw.shape().ok()?;
    let units = draw.channels();
    if Shape::new(1, 1, units).is_err() || shape.elements() * units > 100_000 {
        // Too large to run, but the constructor must survive it; without weights it can only refuse.
        assert!(Dense::new(shape, units, &[]).is_err());
        return None;
    }
    let length = draw.length(units * shape.words());
    let weights = draw.parameter(length, shape.channels());
    Some((shape, units, weights))
}
