//! The C functions, called as C calls them: the golden vectors, and everything that can be wrong with a call.

use std::ffi::{CStr, c_void};
use std::mem::MaybeUninit;
use std::ptr::{null, null_mut};

use cbin_nn::{
    Model, Status, cbin_nn_open, cbin_nn_run, cbin_nn_run_in_place, cbin_nn_status_text, cbin_nn_version,
};
use cbin_nn_model::aligned::AlignedBytes;

/// 33 channels in and out.
const FILE: &[u8] = include_bytes!("../../../tests/golden/bbconv2d_c33.cbn");
const INPUTS: &[u8] = include_bytes!("../../../tests/golden/bbconv2d_c33.in");
const OUTPUTS: &[u8] = include_bytes!("../../../tests/golden/bbconv2d_c33.out");

fn open(file: &[u8]) -> Result<Model, Status> {
    let mut model = MaybeUninit::<Model>::uninit();
    // SAFETY: the slice is as long as it says, and the model a place for one.
    match unsafe { cbin_nn_open(model.as_mut_ptr(), file.as_ptr().cast(), file.len()) } {
        // SAFETY: that status says that the model was filled in.
        Status::Ok => Ok(unsafe { model.assume_init() }),
        status => Err(status),
    }
}

fn run(model: &Model, input: &[u8], output: &mut [u8], arena: &mut [u32]) -> Status {
    let (arena_bytes, arena) = (size_of_val(arena), arena.as_mut_ptr().cast());
    let (output_bytes, output) = (output.len(), output.as_mut_ptr().cast());
    // SAFETY: a model that was opened, and slices as long as they say.
    unsafe {
        cbin_nn_run(model, input.as_ptr().cast(), input.len(), output, output_bytes, arena, arena_bytes)
    }
}

#[test]
#[cfg_attr(miri, ignore = "reads files")]
fn every_golden_vector_gives_its_bytes() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden");
    let mut vectors = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "cbn") {
            continue;
        }
        vectors += 1;
        let read = |suffix| AlignedBytes::copy_of(&std::fs::read(path.with_extension(suffix)).unwrap());
        let file = read("cbn");
        let model = open(&file).unwrap();
        for (image, expected) in
            read("in").chunks(model.input_bytes).zip(read("out").chunks(model.output_bytes))
        {
            let mut words = vec![u32::MAX; expected.len().div_ceil(4)];
            let got = &mut bytemuck::cast_slice_mut::<u32, u8>(&mut words)[..expected.len()];
            let mut arena = vec![u32::MAX; model.arena_bytes / 4];
            assert_eq!(run(&model, &AlignedBytes::copy_of(image), got, &mut arena), Status::Ok, "{path:?}");
            assert_eq!(got, expected, "{path:?}");
        }
    }
    assert!(vectors >= 30, "{vectors} vectors");
}

#[test]
fn a_model_says_what_memory_it_takes() {
    let file = AlignedBytes::copy_of(FILE);
    let model = open(&file).unwrap();
    assert_eq!((model.bytes, model.length), (file.as_ptr(), FILE.len()));
    assert_eq!((model.input_shape[2], model.output_shape[2]), (33, 33));
    assert_eq!(model.output_scale, 1.0);
    let input = AlignedBytes::copy_of(&INPUTS[..model.input_bytes]);
    let mut output = vec![0u32; model.output_bytes / 4];
    let mut arena = vec![7u32; model.arena_bytes / 4 + 3];
    assert_eq!(run(&model, &input, bytemuck::cast_slice_mut(&mut output), &mut arena), Status::Ok);
    assert_eq!(bytemuck::cast_slice::<_, u8>(&output), &OUTPUTS[..model.output_bytes]);
}

/// A network that runs in place.
const ZOO: &[u8] = include_bytes!("../../../python/cbin_nn/zoo/smallcifar-binary.cbn");

#[test]
#[cfg_attr(miri, ignore = "a whole network")]
fn a_run_in_place_gives_the_bytes_of_a_run() {
    let file = AlignedBytes::copy_of(ZOO);
    let model = open(&file).unwrap();
    assert!(model.in_place_bytes > 0 && model.in_place_bytes < model.arena_bytes + model.input_bytes);
    let image: Vec<u8> = (0..model.input_bytes).map(|at| (at * at / 7) as u8).collect();
    let mut expected = vec![0u32; model.output_bytes / 4];
    let mut arena = vec![7u32; model.arena_bytes / 4];
    assert_eq!(run(&model, &image, bytemuck::cast_slice_mut(&mut expected), &mut arena), Status::Ok);
    let (mut memory, mut output) = (vec![7u32; model.in_place_bytes / 4 + 1], vec![0u32; expected.len() + 1]);
    bytemuck::cast_slice_mut(&mut memory)[model.image_offset..][..image.len()].copy_from_slice(&image);
    let (place, result) = (memory.as_mut_ptr().cast::<c_void>(), output.as_mut_ptr().cast::<c_void>());
    let (bytes, output_bytes) = (model.in_place_bytes, model.output_bytes);
    let closed = Model { bytes: null(), ..model };
    let plain = AlignedBytes::copy_of(FILE);
    let plain = open(&plain).unwrap();
    assert_eq!((plain.in_place_bytes, plain.image_offset), (0, 0));
    let next = |pointer: *mut c_void| pointer.wrapping_byte_add(1);
    let inside = file.as_ptr().cast_mut().cast::<c_void>();
    let calls = [
        (Status::Null, null(), place, bytes, result, output_bytes),
        (Status::Null, &raw const closed, place, bytes, result, output_bytes),
        (Status::Null, &raw const model, null_mut(), bytes, result, output_bytes),
        (Status::Null, &raw const model, place, bytes, null_mut(), output_bytes),
        (Status::Length, &raw const model, place, bytes - 4, result, output_bytes),
        (Status::Length, &raw const model, place, bytes, result, output_bytes - 4),
        (Status::Length, &raw const plain, place, bytes, result, plain.output_bytes),
        (Status::Alignment, &raw const model, next(place), bytes, result, output_bytes),
        (Status::Alignment, &raw const model, place, bytes, next(result), output_bytes),
        (Status::Overlap, &raw const model, place, bytes, place, output_bytes),
        (Status::Overlap, &raw const model, place, bytes, inside, output_bytes),
        (Status::Ok, &raw const model, place, bytes, result, output_bytes),
    ];
    for (at, (expected, model, memory, bytes, output, output_bytes)) in calls.into_iter().enumerate() {
        // SAFETY: what is not NULL points to as much as its length says, or is refused before it is read.
        let status = unsafe { cbin_nn_run_in_place(model, memory, bytes, output, output_bytes) };
        assert_eq!(status, expected, "call {at}");
    }
    assert_eq!(&output[..expected.len()], expected);
}

#[test]
fn bytes_that_are_no_model_have_a_status() {
    let file = AlignedBytes::copy_of(FILE);
    let damaged = |at: usize, byte: u8| {
        let mut bytes = FILE.to_vec();
        bytes[at] = byte;
        open(&AlignedBytes::copy_of(&bytes)).unwrap_err()
    };
    assert_eq!(damaged(0, b'X'), Status::BadMagic);
    assert_eq!(damaged(4, 9), Status::UnsupportedVersion);
    assert_eq!(damaged(FILE.len() - 1, 0x55), Status::BadChecksum);
    assert_eq!(open(&file[..40]).unwrap_err(), Status::TooShort);
    assert_eq!(open(&file[..FILE.len() - 16]).unwrap_err(), Status::WrongLength);
    let shifted = AlignedBytes::copy_of(&[&[0], FILE].concat());
    assert_eq!(open(&shifted[1..]).unwrap_err(), Status::Misaligned);
    let mut model = MaybeUninit::<Model>::uninit();
    // SAFETY: NULL is allowed.
    unsafe {
        assert_eq!(cbin_nn_open(null_mut(), file.as_ptr().cast(), file.len()), Status::Null);
        assert_eq!(cbin_nn_open(model.as_mut_ptr(), null(), 16), Status::Null);
        assert_eq!(cbin_nn_open(model.as_mut_ptr(), file.as_ptr().cast(), usize::MAX), Status::WrongLength);
    }
}

/// One call of `cbin_nn_run`, to be spoiled.
#[derive(Clone, Copy)]
struct Call {
    model: *const Model,
    input: *const c_void,
    input_bytes: usize,
    output: *mut c_void,
    output_bytes: usize,
    arena: *mut c_void,
    arena_bytes: usize,
}

#[test]
fn arguments_that_do_not_fit_have_a_status_and_nothing_is_written() {
    let file = AlignedBytes::copy_of(FILE);
    let model = open(&file).unwrap();
    let mut closed = model;
    closed.bytes = null();
    let mut input = vec![0u32; model.input_bytes / 4 + 1];
    let mut output = vec![0xA5A5_A5A5_u32; model.output_bytes / 4 + 1];
    let mut arena = vec![0xA5A5_A5A5_u32; model.arena_bytes / 4 + 1];
    let call = Call {
        model: &model,
        input: input.as_mut_ptr().cast(),
        input_bytes: model.input_bytes,
        output: output.as_mut_ptr().cast(),
        output_bytes: model.output_bytes,
        arena: arena.as_mut_ptr().cast(),
        arena_bytes: model.arena_bytes,
    };
    let next = |pointer: *mut c_void| pointer.wrapping_byte_add(1);
    let spoiled = [
        (Status::Null, Call { model: null(), ..call }),
        (Status::Null, Call { model: &closed, ..call }),
        (Status::Null, Call { input: null(), ..call }),
        (Status::Null, Call { output: null_mut(), ..call }),
        (Status::Null, Call { arena: null_mut(), ..call }),
        (Status::Length, Call { input_bytes: model.input_bytes - 1, ..call }),
        (Status::Length, Call { input_bytes: model.input_bytes + 1, ..call }),
        (Status::Length, Call { output_bytes: model.output_bytes + 4, ..call }),
        (Status::Length, Call { arena_bytes: model.arena_bytes - 4, ..call }),
        (Status::Length, Call { arena: null_mut(), arena_bytes: 0, ..call }),
        (Status::Alignment, Call { arena: next(call.arena), ..call }),
        (Status::Alignment, Call { output: next(call.output), ..call }),
        (Status::Alignment, Call { input: next(call.input.cast_mut()), ..call }),
        (Status::Overlap, Call { output: call.input.cast_mut(), ..call }),
        (Status::Overlap, Call { arena: call.output, ..call }),
        (Status::Overlap, Call { output: file.as_ptr().cast_mut().cast(), ..call }),
    ];
    for (at, (expected, call)) in spoiled.into_iter().enumerate() {
        let Call { model, input, input_bytes, output, output_bytes, arena, arena_bytes } = call;
        // SAFETY: what is not NULL points to as much as its length says, or is refused before it is read.
        let status =
            unsafe { cbin_nn_run(model, input, input_bytes, output, output_bytes, arena, arena_bytes) };
        assert_eq!(status, expected, "call {at}");
    }
    assert!(output.iter().chain(&arena).all(|&word| word == 0xA5A5_A5A5));
}

#[test]
fn every_status_has_a_text_of_its_own() {
    let text = |status: i32| {
        // SAFETY: the function returns a string.
        unsafe { CStr::from_ptr(cbin_nn_status_text(status)) }.to_str().unwrap()
    };
    let unknown = text(-1);
    let known: Vec<&str> = (0..=36).map(text).filter(|&text| text != unknown).collect();
    let mut distinct = known.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!((known.len(), distinct.len()), (17, 17));
    // SAFETY: as above.
    let version = unsafe { CStr::from_ptr(cbin_nn_version()) };
    assert_eq!(version.to_str().unwrap(), env!("CARGO_PKG_VERSION"));
}
