//! Layouts of weights that the writer chooses: those that cost a board least, with the same outputs.
#![cfg(feature = "alloc")]

mod common;

use cbin_nn_model::aligned::AlignedBytes;
use cbin_nn_model::format::{DType, Kind, Layout};
use cbin_nn_model::{Model, NoObserver, Observer};

use common::{Random, small_builder};

/// Set bits of each channel of a tensor of eight channels, less those of the others.
struct Balance([i32; 8]);

impl Observer for Balance {
    fn after(&mut self, index: usize, output: &[u8]) {
        for pixel in output.chunks_exact(4).filter(|_| index == 0) {
            for (channel, balance) in self.0.iter_mut().enumerate() {
                *balance += 2 * i32::from(pixel[0] >> channel & 1) - 1;
            }
        }
    }
}

fn run(model: &Model<'_>, image: &[u8], observer: &mut impl Observer) -> Vec<i32> {
    let mut output = vec![0i32; model.output_bytes() / 4];
    let mut arena = vec![0; model.arena_bytes() / 4];
    let bytes = bytemuck::cast_slice_mut(&mut output);
    model.run(&AlignedBytes::copy_of(image), bytes, &mut arena, observer).unwrap();
    output
}

#[test]
fn the_cheapest_layouts_give_the_same_outputs() {
    let builder = || small_builder(1, Layout::Canonical, DType::I32);
    let plain = AlignedBytes::copy_of(&builder().finish(false).unwrap());
    let plain = Model::new_checked(&plain).unwrap();
    let mut random = Random(9);
    let images: Vec<u8> = (0..5 * plain.input_bytes()).map(|_| random.next() as u8).collect();
    let chosen = AlignedBytes::copy_of(&builder().finish_for_boards(false, &images).unwrap());
    let chosen = Model::new_checked(&chosen).unwrap();
    let kinds = |model: &Model<'_>| {
        [0, 1, 3].map(|at| (model.operator_kind(at).unwrap(), model.weights(at).unwrap().layout))
    };
    assert_eq!(
        kinds(&plain),
        [Kind::QbConv2d, Kind::BbConv2d, Kind::BbPointwiseConv2d].map(|kind| (kind, Layout::Canonical))
    );
    // Eight filters of 27 weights are too few to make a table for; 40 filters of one tap are not too few to be listed for.
    assert_eq!(
        kinds(&chosen),
        [
            (Kind::QbConv2d, Layout::ByteMask),
            (Kind::BbConv2d, Layout::ByOutputChannel),
            (Kind::BbConv2d, Layout::ByOutputChannel)
        ]
    );
    let mut balance = Balance([0; 8]);
    for image in images.chunks_exact(plain.input_bytes()) {
        assert_eq!(run(&plain, image, &mut balance), run(&chosen, image, &mut NoObserver));
    }
    // Channels that are mostly +1 are stored inverted: their mask comes first.
    let stored = chosen.data_bytes(&chosen.weights(1).unwrap()).unwrap();
    let mask = (0..8).fold(0, |mask, channel| mask | u8::from(balance.0[channel] > 0) << channel);
    assert_eq!(stored[..4], [mask, 0, 0, 0]);
    assert!(mask != 0 && mask != 0xFF);
}
