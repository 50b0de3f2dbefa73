//! A model with every set of instructions that this CPU has, against its references.

mod common;

use cbin_nn_model::batch::{Kernel, OwnedModel};
use cbin_nn_model::format::{DType, Kind, Layout};
use cbin_nn_model::host::{HostModel, Instructions};
use cbin_nn_model::{NoObserver, Observer};
use common::{Random, small_model};

/// Every operator's output, in order.
#[derive(Default)]
struct Taps(Vec<Vec<u8>>);

impl Observer for Taps {
    fn after(&mut self, _index: usize, output: &[u8]) {
        self.0.push(output.to_vec());
    }
}

#[test]
fn every_operator_equals_its_reference_with_all_instructions() {
    for (seed, layout, dtype) in [
        (1, Layout::ByteMask, DType::I8),
        (2, Layout::Canonical, DType::I16),
        (3, Layout::Canonical, DType::I32),
    ] {
        if cfg!(miri) && seed == 3 {
            continue;
        }
        let bytes = small_model(seed, layout, dtype);
        for instructions in Instructions::available() {
            let owned = OwnedModel::with_instructions(&bytes, instructions).unwrap();
            let model = owned.view();
            let host = HostModel::new(model, owned.host_layers());
            let mut workspace = owned.host_layers().workspace(&model);
            let mut arena = vec![0; model.arena_bytes() / 4];
            let mut output = vec![0u32; model.output_bytes().div_ceil(4)];
            let output = &mut bytemuck::cast_slice_mut::<u32, u8>(&mut output)[..model.output_bytes()];
            let mut random = Random(seed);
            for _ in 0..if cfg!(miri) { 1 } else { 20 } {
                let image: Vec<u8> = (0..model.input_bytes()).map(|_| random.next() as u8).collect();
                let (mut fast, mut reference) = (Taps::default(), Taps::default());
                model.run_reference(&image, output, &mut arena, &mut reference).unwrap();
                host.run(&image, output, &mut workspace, &mut fast).unwrap();
                for (index, (fast, reference)) in fast.0.iter().zip(&reference.0).enumerate() {
                    assert_eq!(fast, reference, "{} with {instructions}", model.operator_name(index));
                }
                assert_eq!(fast.0.len(), model.operator_count());
            }
        }
    }
}

#[test]
fn convolutions_and_fully_connected_layers_are_rewritten() {
    let bytes = small_model(1, Layout::ByteMask, DType::I8);
    for instructions in Instructions::available() {
        let model = OwnedModel::with_instructions(&bytes, instructions).unwrap();
        for index in 0..model.view().operator_count() {
            let kind = model.view().operator(index).unwrap().kind();
            let expected = instructions != Instructions::PORTABLE && kind != Kind::BMaxPool2d;
            assert_eq!(model.host_layers().is_rewritten(index), expected, "{kind:?} with {instructions}");
        }
    }
}

#[test]
fn instructions_go_by_name() {
    for instructions in Instructions::available() {
        assert_eq!(Instructions::from_name(instructions.name()), Ok(instructions));
    }
    let error = Instructions::from_name("sse9").unwrap_err().to_string();
    assert!(error.contains("\"sse9\"") && error.contains("portable, arrays"), "{error}");
    let best = Instructions::best();
    assert!(Instructions::available().any(|instructions| instructions == best));
}

#[test]
fn an_image_alone_gives_the_same_bytes_on_either_kernel() {
    let model = OwnedModel::new(&small_model(5, Layout::ByteMask, DType::I32)).unwrap();
    let image: Vec<u8> = (0..model.view().input_bytes()).map(|i| (i * 31) as u8).collect();
    let mut outputs = [[0u32; 10]; 2];
    for (kernel, output) in [Kernel::Reference, Kernel::Optimized].into_iter().zip(&mut outputs) {
        model.run_batch_with(kernel, &image, bytemuck::cast_slice_mut(output), 1).unwrap();
    }
    assert_eq!(outputs[0], outputs[1]);
    let host = HostModel::new(model.view(), model.host_layers());
    let mut workspace = model.host_layers().workspace(&model.view());
    assert!(host.run(&image[1..], &mut [0; 40], &mut workspace, &mut NoObserver).is_err());
}
