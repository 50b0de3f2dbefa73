//! Hostile bytes: any file gives a model or an error that names the field; a model that is accepted runs
//! within its slices, whatever it computes.

mod common;

use cbin_nn_model::aligned::AlignedBytes;
use cbin_nn_model::format::{DType, Header, Layout, OperatorRecord, TensorRecord};
use cbin_nn_model::writer::seal;
use cbin_nn_model::{FormatError, Model, NoObserver, Observer};
use common::{Random, mutated, originals, small_model};

/// Opens, and runs what opens where that is cheap. `Some(accepted)`; panics and overruns fail the test by
/// themselves.
fn open_and_run(bytes: &[u8]) -> Result<(), FormatError> {
    let bytes = AlignedBytes::copy_of(bytes);
    let model = Model::new_checked(&bytes)?;
    // Every accessor, on every index and one beyond.
    let mut macs = 0;
    for index in 0..=model.operator_count() {
        let _ = (model.operator_name(index), model.constant_bytes(index), model.operator_kind(index));
        let _ = model.operator_inputs(index).count();
        macs += model.operator(index).map_or(0, |operator| operator.macs());
    }
    assert!(model.tensor(model.tensor_count()).is_none());
    for index in 0..model.tensor_count() {
        let tensor = model.tensor(index).unwrap();
        assert_eq!(model.data_bytes(&tensor).map_or(tensor.bytes, <[u8]>::len), tensor.bytes);
    }
    if macs < 1_000_000 && model.arena_bytes() < 1 << 20 && model.input_bytes() < 1 << 20 {
        let image = AlignedBytes::copy_of(&vec![0x5A; model.input_bytes()]);
        let mut output = vec![0u64; model.output_bytes().div_ceil(8)];
        let output = &mut bytemuck::cast_slice_mut(&mut output)[..model.output_bytes()];
        let mut arena = vec![0; model.arena_bytes() / 4];
        model.run(&image, output, &mut arena, &mut NoObserver).expect("a checked model runs");
    }
    Ok(())
}

#[test]
#[cfg_attr(miri, ignore = "Miri takes seconds a file; the sealed mutations go the same ways")]
fn every_truncation_is_an_error() {
    let bytes = small_model(1, Layout::ByteMask, DType::I32);
    for len in 0..bytes.len() {
        let error = open_and_run(&bytes[..len]).expect_err("a truncated file");
        assert!(matches!(error, FormatError::TooShort { .. } | FormatError::Length { .. }), "{len}: {error}");
    }
    let longer = [&bytes[..], &[0]].concat();
    assert!(matches!(open_and_run(&longer), Err(FormatError::Length { .. })));
}

#[test]
#[cfg_attr(miri, ignore = "Miri takes seconds a file; the sealed mutations go the same ways")]
fn every_flipped_bit_is_an_error() {
    let bytes = small_model(1, Layout::ByteMask, DType::I32);
    for at in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[at / 8] ^= 1 << (at % 8);
        assert!(open_and_run(&flipped).is_err(), "bit {at} went unnoticed");
    }
}

/// Mutations behind a correct checksum, so that they reach the checks of the fields.
#[test]
fn fifty_thousand_sealed_mutations_never_panic() {
    let originals = originals();
    let mut random = Random(0xB17);
    let mut slugs = std::collections::BTreeMap::new();
    let cases = if cfg!(miri) { 4 } else { 50_000 };
    for case in 0..cases {
        let bytes = mutated(&mut random, &originals[case % originals.len()]);
        let outcome = open_and_run(&bytes).map_or_else(|error| error.slug(), |()| "accepted");
        *slugs.entry(outcome).or_insert(0usize) += 1;
    }
    println!("{slugs:?}");
    if !cfg!(miri) {
        // A run that never got past the header would prove little.
        for slug in ["accepted", "bad-header", "bad-tensor", "bad-operator", "bad-argument", "arena-overlap"]
        {
            assert!(slugs.get(slug).copied().unwrap_or(0) >= 20, "too few `{slug}` in {slugs:?}");
        }
    }
}

/// What an attack does to a valid file's records.
type Change = dyn Fn(&mut Header, &mut [OperatorRecord], &mut [TensorRecord]);

/// Attacks by name: each changes one thing and must be refused for that reason.
#[test]
fn named_attacks_are_refused_for_their_reason() {
    let original = small_model(1, Layout::ByteMask, DType::I32);
    let attack = |change: &Change| {
        let mut blocks = AlignedBytes::copy_of(&original).to_vec();
        let (head, rest) = blocks.split_at_mut(size_of::<Header>());
        let mut header: Header = *bytemuck::from_bytes(&AlignedBytes::copy_of(head));
        let (operators, rest) = rest.split_at_mut(header.operators as usize * size_of::<OperatorRecord>());
        let (tensors, _) = rest.split_at_mut(header.tensors as usize * size_of::<TensorRecord>());
        let mut operator_records: Vec<OperatorRecord> =
            bytemuck::cast_slice(&AlignedBytes::copy_of(operators)).to_vec();
        let mut tensor_records: Vec<TensorRecord> =
            bytemuck::cast_slice(&AlignedBytes::copy_of(tensors)).to_vec();
        change(&mut header, &mut operator_records, &mut tensor_records);
        head.copy_from_slice(bytemuck::bytes_of(&header));
        operators.copy_from_slice(bytemuck::cast_slice(&operator_records));
        tensors.copy_from_slice(bytemuck::cast_slice(&tensor_records));
        seal(&mut blocks);
        open_and_run(&blocks).expect_err("an attack was accepted")
    };
    /// Name, change, and what the error's text must hold.
    type Attack<'a> = (&'a str, &'a Change, &'a str);
    let table: [Attack<'_>; 16] = [
        ("version from the future", &|h, _, _| h.version = 2, "version 2"),
        ("no operators", &|h, _, _| h.operators = 0, "bytes"),
        ("a million operators", &|h, _, _| h.operators = 1_000_000, "operators"),
        ("an arena of 4 GiB", &|h, _, _| h.arena_bytes = 0xFFFF_FFFC, "arena_bytes"),
        ("an arena one word short", &|h, _, _| h.arena_bytes -= 4, "offset"),
        ("an unknown flag", &|h, _, _| h.flags = 2, "flags"),
        ("a name outside the strings", &|h, _, _| h.name.bytes = 60_000, "name"),
        ("an unknown operator", &|_, o, _| o[0].kind = 99, "kind"),
        ("an operator that reads its own output", &|_, o, _| o[1].inputs[0] = 2, "inputs"),
        ("scratch on the output", &|_, o, t| t[1].offset = o[0].scratch_offset, "overlaps"),
        ("scratch outside the arena", &|h, o, _| o[0].scratch_offset = h.arena_bytes, "scratch_offset"),
        ("too little scratch", &|_, o, _| o[0].scratch_bytes -= 4, "scratch_bytes"),
        ("output over input", &|_, _, t| t[1].offset = t[2].offset, "overlaps"),
        ("a stride of 0", &|_, o, _| o[0].window.strides = [0, 1], "strides"),
        ("a kernel that the weights don't have", &|_, o, _| o[0].window.kernel = [5, 3], "weights"),
        ("a scale of NaN", &|_, _, t| t[7].scale = f64::NAN, "scale"),
    ];
    for (name, change, expected) in table.into_iter().step_by(if cfg!(miri) { 9 } else { 1 }) {
        let message = attack(change).to_string();
        assert!(message.contains(expected), "{name}: {message}");
    }
}

#[test]
fn a_bad_slice_is_named_and_nothing_is_computed() {
    let bytes = AlignedBytes::copy_of(&small_model(1, Layout::ByteMask, DType::I32));
    let model = Model::new_checked(&bytes).unwrap();
    struct Nothing;
    impl Observer for Nothing {
        fn before(&mut self, _: usize) {
            panic!("an operator ran");
        }
    }
    let image = vec![0; model.input_bytes()];
    let mut output = vec![0u32; model.output_bytes() / 4 + 1];
    let output = bytemuck::cast_slice_mut::<u32, u8>(&mut output);
    let mut arena = vec![0; model.arena_bytes() / 4];
    let short = model.run(&image[1..], &mut output[..40], &mut arena, &mut Nothing).unwrap_err();
    assert_eq!(short.to_string(), "`input` has 107 bytes, expected 108");
    let small = model.run(&image, &mut output[..40], &mut arena[1..], &mut Nothing).unwrap_err();
    assert!(small.to_string().starts_with("`arena` has"), "{small}");
    let odd = model.run(&image, &mut output[1..41], &mut arena, &mut Nothing).unwrap_err();
    assert_eq!(odd.to_string(), "`output` is not aligned to its element type");
}

#[test]
fn misaligned_and_foreign_bytes_are_named() {
    let bytes =
        AlignedBytes::copy_of(&[&[0u8; 4][..], &small_model(1, Layout::ByteMask, DType::I32)].concat());
    assert_eq!(Model::new_checked(&bytes[4..]).unwrap_err(), FormatError::Misaligned);
    let foreign = [b"\x89HDF\r\n\x1a\n".as_slice(), &[0; 100]].concat();
    assert_eq!(open_and_run(&foreign).unwrap_err(), FormatError::Magic);
    assert_eq!(open_and_run(&[]).unwrap_err(), FormatError::TooShort { got: 0 });
}
