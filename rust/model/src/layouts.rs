/*!
Which layout each operator's weights take in the file: the one with which a board takes the fewest instructions.

What a layout costs stands beside it in the kernels ([`layouts`](cbin_nn_kernels::layouts)). The vertical counters walk the set
input bits; so an input channel that is mostly +1 is stored inverted, and how often each is +1 is counted on sample images. A
pointwise convolution is a `bbconv2d` of one tap as well, and becomes one where that is cheaper than its own kernel.
*/

use alloc::vec;
use alloc::vec::Vec;

use cbin_nn_kernels::ArgumentError;
use cbin_nn_kernels::bits::words_for;
use cbin_nn_kernels::layouts::by_output_channel::{self, FEWEST_FILTERS, FEWEST_POINTWISE_FILTERS};
use cbin_nn_kernels::layouts::{byte_mask, pixel_sums};
use cbin_nn_kernels::shape::{Conv2dGeometry, Padding, Shape, Window};

use crate::aligned::AlignedBytes;
use crate::format::{DType, Layout};
use crate::writer::{BuildError, Builder, OperatorSpec, TensorId};
use crate::{Model, Observer, RunError};

impl Builder {
    /// As [`finish`](Self::finish), with the weights of each operator in the layout that takes a board the fewest
    /// instructions: see the head of this file. A wide `bbpointwiseconv2d` becomes a `bbconv2d`.
    ///
    /// `images` are samples, one behind the other as [`Model::run`] takes them: the cost of some layouts depends on how often
    /// an activation is +1.
    ///
    /// # Errors
    /// As [`finish`](Self::finish).
    pub fn finish_for_boards(self, float_output: bool, images: &[u8]) -> Result<Vec<u8>, BuildError> {
        let plain = AlignedBytes::copy_of(&self.write(float_output)?);
        let densities = Densities::of(&Model::new_checked(&plain)?, images)?;
        let Self { name, activations, operators, .. } = self;
        let input = &activations[0];
        let mut chosen = Self::new(&name, &input.name, input.dtype, input.shape);
        for (draft, output) in operators.into_iter().zip(&activations[1..]) {
            let source = draft.record.inputs[0] as usize;
            let spec = cheapest(draft.spec, activations[source].shape, densities.mostly_plus(source))
                .map_err(|error| BuildError::Argument { layer: draft.name.clone(), error })?;
            chosen.operator(&draft.name, TensorId(source as u32), &output.name, spec)?;
        }
        chosen.write(float_output)
    }
}

/// How often each channel of each tensor of bits was +1.
struct Densities {
    /// Pixels that were seen, and those of them that were +1 by channel; by tensor.
    tensors: Vec<(u64, Vec<u64>)>,
}

impl Densities {
    /// Runs `model` on images, one behind the other as [`Model::run`] takes them.
    fn of(model: &Model<'_>, images: &[u8]) -> Result<Self, RunError> {
        let tensors = (0..=model.operator_count()).map(|tensor| {
            let shape = model.tensor(tensor).filter(|tensor| tensor.dtype == DType::Bits).map(|t| t.shape);
            (0, vec![0; shape.map_or(0, |shape| shape[3] as usize)])
        });
        let mut densities = Self { tensors: tensors.collect() };
        let mut arena = vec![0; model.arena_bytes() / 4];
        let mut output = vec![0u64; model.output_bytes().div_ceil(8)];
        let output = &mut bytemuck::cast_slice_mut(&mut output)[..model.output_bytes()];
        for image in images.chunks_exact(model.input_bytes()) {
            let image = AlignedBytes::copy_of(image);
            densities.count(0, &image);
            model.run(&image, output, &mut arena, &mut densities)?;
        }
        Ok(densities)
    }

    fn count(&mut self, tensor: usize, bytes: &[u8]) {
        let (pixels, counts) = &mut self.tensors[tensor];
        if counts.is_empty() {
            return;
        }
        let words = words_for(counts.len());
        for pixel in bytes.chunks_exact(4 * words) {
            *pixels += 1;
            for (channel, count) in counts.iter_mut().enumerate() {
                *count += u64::from(pixel[channel / 8] >> (channel % 8) & 1);
            }
        }
    }

    /// The channels of a tensor that are mostly +1, as the packed bits of one pixel.
    fn mostly_plus(&self, tensor: usize) -> Vec<u32> {
        let (pixels, counts) = &self.tensors[tensor];
        let mut mask = vec![0; words_for(counts.len())];
        for (channel, &count) in counts.iter().enumerate() {
            mask[channel / 32] |= u32::from(2 * count > *pixels) << (channel % 32);
        }
        mask
    }
}

impl Observer for Densities {
    fn after(&mut self, index: usize, output: &[u8]) {
        self.count(index + 1, output);
    }
}

/// `spec` with its weights in the cheapest layout. `input` is the shape of its input, whose channels of `mask` are mostly +1.
fn cheapest(mut spec: OperatorSpec, input: Shape, mask: Vec<u32>) -> Result<OperatorSpec, ArgumentError> {
    match &mut spec {
        OperatorSpec::QbConv2d { filters, window, layout, .. } => {
            let geometry = Conv2dGeometry::new(input, *window, *filters)?;
            let sums = pixel_sums::instructions(&geometry) < byte_mask::instructions(&geometry);
            *layout = if sums { Layout::PixelSums } else { Layout::ByteMask };
        }
        OperatorSpec::BbConv2d { filters, window, by_output_channel, .. } => {
            let geometry = Conv2dGeometry::new(input, *window, *filters)?;
            if by_output_channel::is_cheaper(&geometry, FEWEST_FILTERS) {
                *by_output_channel = Some(mask);
            }
        }
        OperatorSpec::BbPointwiseConv2d { weights, filters, strides, rules, pool } => {
            let window = Window { strides: *strides, ..Window::of(1, 1) };
            let geometry = Conv2dGeometry::new(input, window, *filters)?;
            if by_output_channel::is_cheaper(&geometry, FEWEST_POINTWISE_FILTERS) {
                let (weights, rules) = (core::mem::take(weights), rules.clone());
                let (filters, pool, padding) = (*filters, pool.take(), Padding::Zero);
                let by_output_channel = Some(mask);
                spec = OperatorSpec::BbConv2d {
                    weights,
                    filters,
                    window,
                    padding,
                    by_output_channel,
                    rules,
                    pool,
                };
            }
        }
        _ => {}
    }
    Ok(spec)
}
