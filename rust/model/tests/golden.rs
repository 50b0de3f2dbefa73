//! The golden vectors of `tests/golden`, replayed by both kernels. Their outputs come from an oracle outside
//! this crate; `tests/golden/make_golden.py` makes them.

use std::fs;
use std::path::PathBuf;

use cbin_nn_model::aligned::AlignedBytes;
use cbin_nn_model::{Model, NoObserver};

/// (name, model, inputs, outputs) of every vector, by name.
fn vectors() -> Vec<(String, AlignedBytes, Vec<u8>, Vec<u8>)> {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden"));
    let mut models: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cbn"))
        .collect();
    models.sort();
    models
        .into_iter()
        .map(|path| {
            let read = |suffix| fs::read(path.with_extension(suffix)).unwrap();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            (name, AlignedBytes::copy_of(&read("cbn")), read("in"), read("out"))
        })
        .collect()
}

#[test]
#[cfg_attr(miri, ignore = "reads files")]
fn every_vector_gives_its_bytes_with_both_kernels() {
    let vectors = vectors();
    assert!(vectors.len() >= 30, "{} vectors", vectors.len());
    for (name, bytes, inputs, outputs) in &vectors {
        let model = Model::new_checked(bytes).unwrap();
        let (input, output) = (model.input_bytes(), model.output_bytes());
        assert!(
            inputs.len().is_multiple_of(input) && inputs.len() / input * output == outputs.len(),
            "{name}"
        );
        for (index, (image, expected)) in inputs.chunks(input).zip(outputs.chunks(output)).enumerate() {
            // A packed input is cast to words, which a slice of a file's bytes does not promise to be.
            let image = AlignedBytes::copy_of(image);
            let mut got = vec![0u32; output.div_ceil(4)];
            let got = &mut bytemuck::cast_slice_mut::<u32, u8>(&mut got)[..output];
            let mut arena = vec![u32::MAX; model.arena_bytes() / 4];
            model.run(&image, got, &mut arena, &mut NoObserver).unwrap();
            assert_eq!(got, expected, "{name}, image {index}, optimized");
            got.fill(0xFF);
            model.run_reference(&image, got, &mut arena, &mut NoObserver).unwrap();
            assert_eq!(got, expected, "{name}, image {index}, reference");
        }
    }
}
