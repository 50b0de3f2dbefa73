//! The walk against a walk of references: every operator's output, through the `Observer`.

mod common;

use cbin_nn_kernels::epilogue::Grid;
use cbin_nn_kernels::operators::qbconv2d::Affine;
use cbin_nn_kernels::shape::{Shape, Window};
use cbin_nn_model::aligned::AlignedBytes;
use cbin_nn_model::batch::OwnedModel;
use cbin_nn_model::format::{DType, Layout};
use cbin_nn_model::writer::{Builder, OperatorSpec};
use cbin_nn_model::{Model, NoObserver, Observer, RunError};
use common::{Random, in_place_model, small_model};

/// Miri is some thousand times slower.
const IMAGES: usize = if cfg!(miri) { 2 } else { 50 };
/// Threads that rayon chooses; one under Miri, which takes the threads of rayon's global pool, never joined,
/// for leaks.
const ALL_CORES: usize = if cfg!(miri) { 1 } else { 0 };

/// Every operator's output, in order.
#[derive(Default)]
struct Taps(Vec<Vec<u8>>);

impl Observer for Taps {
    fn before(&mut self, index: usize) {
        assert_eq!(index, self.0.len());
    }

    fn after(&mut self, _index: usize, output: &[u8]) {
        self.0.push(output.to_vec());
    }
}

#[test]
fn every_operator_of_a_run_equals_its_reference() {
    for (seed, dtype) in [(1, DType::I8), (2, DType::I16), (3, DType::I32)] {
        for layout in [Layout::ByteMask, Layout::PixelSums, Layout::Canonical] {
            // Half a minute each under Miri: one model with either first layer, in a layout that boards run.
            if cfg!(miri) && !matches!((seed, layout), (1, Layout::PixelSums) | (2, Layout::ByteMask)) {
                continue;
            }
            let bytes = AlignedBytes::copy_of(&small_model(seed, layout, dtype));
            let model = Model::new_checked(&bytes).unwrap();
            let mut random = Random(seed);
            for _ in 0..if cfg!(miri) { 1 } else { 20 } {
                let image: Vec<u8> = (0..model.input_bytes()).map(|_| random.next() as u8).collect();
                let mut output = vec![0u32; model.output_bytes().div_ceil(4)];
                let output = &mut bytemuck::cast_slice_mut::<u32, u8>(&mut output)[..model.output_bytes()];
                // What the arena held before must not matter.
                let mut arena: Vec<u32> = (0..model.arena_bytes() / 4).map(|_| random.next()).collect();
                let (mut optimized, mut reference) = (Taps::default(), Taps::default());
                model.run_reference(&image, output, &mut arena, &mut reference).unwrap();
                model.run(&image, output, &mut arena, &mut optimized).unwrap();
                assert_eq!(optimized.0.len(), model.operator_count());
                for (index, (optimized, reference)) in optimized.0.iter().zip(&reference.0).enumerate() {
                    assert_eq!(optimized, reference, "{}", model.operator_name(index));
                }
                assert_eq!(optimized.0.last().unwrap(), output);
            }
        }
    }
}

#[test]
fn both_weight_layouts_give_the_same_bytes() {
    let run = |layout| {
        let model = OwnedModel::new(&small_model(7, layout, DType::I16)).unwrap();
        let images: Vec<u8> =
            (0..IMAGES * model.view().input_bytes()).map(|i| ((i * 7919) >> 3) as u8).collect();
        let mut outputs = vec![0u16; IMAGES * 10];
        model.run_batch(&images, bytemuck::cast_slice_mut(&mut outputs), ALL_CORES).unwrap();
        outputs
    };
    assert_eq!(run(Layout::ByteMask), run(Layout::Canonical));
}

#[test]
fn a_batch_equals_its_images_one_by_one_on_any_number_of_threads() {
    let model = OwnedModel::new(&small_model(5, Layout::ByteMask, DType::I32)).unwrap();
    let (input, output) = (model.view().input_bytes(), model.view().output_bytes());
    let images: Vec<u8> = (0..IMAGES * input).map(|i| (i * 31 + i / 7) as u8).collect();
    let mut expected = vec![0u32; IMAGES * output / 4];
    let mut arena = vec![0; model.view().arena_bytes() / 4];
    for (image, output) in
        images.chunks(input).zip(bytemuck::cast_slice_mut::<u32, u8>(&mut expected).chunks_mut(output))
    {
        model.view().run(image, output, &mut arena, &mut NoObserver).unwrap();
    }
    for threads in if cfg!(miri) { 1..2 } else { 0..4 } {
        let mut outputs = vec![0u32; expected.len()];
        model.run_batch(&images, bytemuck::cast_slice_mut(&mut outputs), threads).unwrap();
        assert_eq!(outputs, expected, "{threads} threads");
    }
    let mut none: [u32; 0] = [];
    model.run_batch(&[], bytemuck::cast_slice_mut(&mut none), ALL_CORES).unwrap();
    assert!(model.run_batch(&images[1..], bytemuck::cast_slice_mut(&mut expected), ALL_CORES).is_err());
}

/// Starting thousands of threads for two images would take the machine down.
#[test]
#[cfg_attr(miri, ignore = "rayon's pools look like leaks to Miri")]
fn no_more_threads_than_images_are_started() {
    let model = OwnedModel::new(&small_model(5, Layout::ByteMask, DType::I32)).unwrap();
    let images = vec![7; 2 * model.view().input_bytes()];
    let mut outputs = vec![0u32; 2 * model.view().output_bytes() / 4];
    let start = std::time::Instant::now();
    model.run_batch(&images, bytemuck::cast_slice_mut(&mut outputs), 5_000).unwrap();
    assert!(start.elapsed() < std::time::Duration::from_millis(500), "{:?}", start.elapsed());
}

#[test]
#[cfg_attr(miri, ignore = "Miri takes seconds a file; the plan has tests of its own")]
fn the_arena_is_smaller_than_the_sum_of_its_tensors() {
    let bytes = AlignedBytes::copy_of(&small_model(1, Layout::ByteMask, DType::I32));
    let model = Model::new_checked(&bytes).unwrap();
    let tensors: usize = (1..model.operator_count()).map(|t| model.tensor(t).unwrap().bytes).sum();
    let scratch: usize =
        (0..model.operator_count()).map(|i| model.operator(i).unwrap().scratch_bytes()).sum();
    assert!(model.arena_bytes() < tensors + scratch);
}

#[test]
fn the_arena_holds_what_is_in_use_and_no_more() {
    let bytes = AlignedBytes::copy_of(&small_model(1, Layout::ByteMask, DType::I8));
    let model = Model::new_checked(&bytes).unwrap();
    let buffers: Vec<_> = model.arena_buffers(false).collect();
    // Every operator writes to the arena, but for the last, whose output is the model's.
    assert_eq!(buffers.iter().filter(|b| !b.scratch).count(), model.operator_count() - 1);
    assert_eq!(buffers.iter().map(|b| b.offset + b.bytes).max(), Some(model.arena_bytes()));
    for (i, a) in buffers.iter().enumerate() {
        assert!(a.bytes != 0 && a.first <= a.last && a.last < model.operator_count());
        for b in &buffers[i + 1..] {
            let meet = a.first <= b.last && b.first <= a.last;
            assert!(!meet || a.offset + a.bytes <= b.offset || b.offset + b.bytes <= a.offset, "{a:?} {b:?}");
        }
    }
    // A tensor lives from the operator that writes it to the last that reads it.
    let output = buffers.iter().find(|b| !b.scratch && b.first == 0).unwrap();
    let mut readers = (0..model.operator_count()).filter(|&at| model.operator_inputs(at).any(|t| t == 1));
    assert_eq!(Some(output.last), readers.next_back());
}

#[test]
#[cfg_attr(miri, ignore = "minutes; the kernel's own tests write over images under Miri")]
fn a_run_in_place_is_a_run() {
    let bytes = AlignedBytes::copy_of(&in_place_model());
    let model = Model::new_checked(&bytes).unwrap();
    let plan = model.in_place().unwrap();
    assert!(plan.bytes < model.arena_bytes() + model.input_bytes());
    let mut random = Random(3);
    for _ in 0..IMAGES {
        let image: Vec<u8> = (0..model.input_bytes()).map(|_| random.next() as u8).collect();
        let mut arena: Vec<u32> = (0..model.arena_bytes() / 4).map(|_| random.next()).collect();
        let mut memory: Vec<u32> = (0..plan.bytes / 4).map(|_| random.next()).collect();
        let mut outputs = [(); 2].map(|()| vec![0u32; model.output_bytes() / 4]);
        let [beside, inside] = outputs.each_mut().map(|output| bytemuck::cast_slice_mut::<u32, u8>(output));
        let mut taps = [(); 2].map(|()| Taps::default());
        model.run(&image, beside, &mut arena, &mut taps[0]).unwrap();
        bytemuck::cast_slice_mut(&mut memory)[plan.image.clone()].copy_from_slice(&image);
        model.run_in_place(&mut memory, inside, &mut taps[1]).unwrap();
        assert_eq!(inside, beside);
        assert_eq!(taps[1].0, taps[0].0);
    }
}

#[test]
fn a_run_in_place_takes_a_plan_and_its_memory() {
    let bytes = AlignedBytes::copy_of(&in_place_model());
    let model = Model::new_checked(&bytes).unwrap();
    let plan = model.in_place().unwrap();
    let mut output = vec![0xA5; model.output_bytes()];
    let mut memory = vec![0u32; plan.bytes / 4 - 1];
    let error = model.run_in_place(&mut memory, &mut output, &mut NoObserver).unwrap_err();
    assert_eq!(error, RunError::Length { argument: "memory", expected: plan.bytes, got: plan.bytes - 4 });
    // A veto looks at the image twice.
    let bytes = AlignedBytes::copy_of(&small_model(1, Layout::PixelSums, DType::I8));
    let model = Model::new_checked(&bytes).unwrap();
    assert_eq!(model.in_place(), None);
    let (mut output, mut memory) = (vec![0; model.output_bytes()], vec![0; 10_000]);
    assert_eq!(model.run_in_place(&mut memory, &mut output, &mut NoObserver), Err(RunError::NotInPlace));
}

#[test]
fn weights_as_sums_are_the_canonical_ones_in_another_layout() {
    let [sums, canonical] = [Layout::PixelSums, Layout::Canonical].map(|layout| {
        let spec = OperatorSpec::QbConv2d {
            weights: Random(3).bits(5 * 15, 3),
            filters: 5,
            window: Window::of(3, 5),
            affine: Affine { mul: 2, add: -255 },
            channel_adds: vec![],
            layout,
            rules: Random(4).rules(Grid::Channel, 1, 5, 900),
            pool: None,
        };
        let mut builder = Builder::new("sums", "image", DType::U8, Shape::new(4, 6, 3).unwrap());
        builder.operator("conv", builder.input(), "bits", spec).unwrap();
        AlignedBytes::copy_of(&builder.finish(false).unwrap())
    });
    let (sums, canonical) = (Model::new_checked(&sums).unwrap(), Model::new_checked(&canonical).unwrap());
    let (a, b) = (sums.weights(0).unwrap(), canonical.weights(0).unwrap());
    assert_eq!((a.layout, b.layout), (Layout::PixelSums, Layout::Canonical));
    let packed = sums.repacked(&a).unwrap();
    assert_eq!(bytemuck::cast_slice::<u32, u8>(&packed), canonical.data_bytes(&b).unwrap());
}

#[test]
fn weights_by_output_channel_are_the_canonical_ones_in_another_order() {
    let [by_output_channel, canonical] = [Layout::ByteMask, Layout::Canonical]
        .map(|layout| AlignedBytes::copy_of(&small_model(4, layout, DType::I8)));
    let (by_output_channel, canonical) =
        (Model::new_checked(&by_output_channel).unwrap(), Model::new_checked(&canonical).unwrap());
    let mut seen = 0;
    for index in 0..by_output_channel.operator_count() {
        assert!(by_output_channel.constant_bytes(index) > 0 || by_output_channel.weights(index).is_none());
        let (Some(a), Some(b)) = (by_output_channel.weights(index), canonical.weights(index)) else {
            continue;
        };
        let Some(packed) = by_output_channel.repacked(&a) else { continue };
        seen += 1;
        assert_eq!(bytemuck::cast_slice::<u32, u8>(&packed), canonical.data_bytes(&b).unwrap());
        assert!(canonical.repacked(&b).is_none());
    }
    assert_eq!(seen, 1);
    assert_eq!(by_output_channel.constant_bytes(usize::MAX), 0);
}

#[test]
fn a_head_of_real_weights_runs_alike_with_both_kernels() {
    let mut random = Random(9);
    let mut builder = Builder::new("head", "plane", DType::Bits, Shape::new(2, 2, 33).unwrap());
    let head = OperatorSpec::BqqFc {
        weights: (0..3 * 132).map(|_| random.next() as i8).collect(),
        units: 3,
        mul: vec![1 << 20, -(1 << 19), 77],
        add: vec![5, 0, -(1 << 22)],
        knee: vec![],
        shift: 20,
        dtype: DType::I16,
        scale: 0.5,
    };
    let input = builder.input();
    builder.operator("logits", input, "y", head).unwrap();
    let bytes = AlignedBytes::copy_of(&builder.finish(false).unwrap());
    let model = Model::new_checked(&bytes).unwrap();
    assert_eq!(model.macs(), 3 * 132);
    for _ in 0..if cfg!(miri) { 2 } else { 50 } {
        let image = random.bits(4, 33);
        let mut out = [[0u16; 4]; 2];
        let [optimized, reference] = &mut out;
        let cut = model.output_bytes();
        let image: &[u8] = bytemuck::cast_slice(&image);
        model.run(image, &mut bytemuck::cast_slice_mut(optimized)[..cut], &mut [], &mut NoObserver).unwrap();
        model
            .run_reference(image, &mut bytemuck::cast_slice_mut(reference)[..cut], &mut [], &mut NoObserver)
            .unwrap();
        assert_eq!(out[0], out[1]);
    }
}
