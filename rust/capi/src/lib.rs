/*!
`.cbn` models from C: check a model where it lies, ask what memory it takes, run it.

The library wraps [`cbin_nn_model`] and adds nothing to it but C's calling convention: the same layer walk as on
the host and in the runner, without allocation and without global state. `include/cbin_nn.h` is written from this
file (`make capi-header`), and `examples/embed-c` is a whole program for a Cortex-M7.

# Invariants

- No pointer is kept: the caller's memory is read and written during a call alone, apart from the model's bytes,
  whose address [`Model`] holds.
- Whatever the bytes, [`cbin_nn_open`] returns a status. Whatever the arguments that point to memory that
  exists, so does [`cbin_nn_run`].
- A thread or an interrupt may run a model while another one runs it too, each with an arena of its own.
*/
#![cfg_attr(target_os = "none", no_std)]

use core::ffi::{CStr, c_char, c_void};
use core::ops::Range;
use core::slice;

use cbin_nn_model::{FormatError, NoObserver, RunError, format};

/// What a call came to. `CBIN_NN_STATUS_OK` is 0; `cbin_nn_status_text` says each in words.
#[repr(i32)] // Not C's own enum, whose size depends on the compiler's -fshort-enums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// The model's bytes do not begin at a multiple of 16.
    Misaligned = 1,
    /// The bytes end inside the file's header.
    TooShort = 2,
    /// Not a .cbn file.
    BadMagic = 3,
    /// A .cbn file of a version that this library does not read.
    UnsupportedVersion = 4,
    /// The bytes are fewer or more than the file's header says.
    WrongLength = 5,
    /// The bytes were changed or damaged after the file was written.
    BadChecksum = 6,
    /// A field of the header is wrong.
    BadHeader = 7,
    /// A tensor of the file is wrong.
    BadTensor = 8,
    /// An operator of the file is wrong.
    BadOperator = 9,
    /// An operator's shapes or parameters do not fit together.
    BadArgument = 10,
    /// Tensors that live at the same time share bytes of the arena.
    ArenaOverlap = 11,
    /// A pointer is NULL.
    Null = 32,
    /// A length is not the model's: `input_bytes`, `output_bytes`, or less than `arena_bytes` or `in_place_bytes`.
    Length = 33,
    /// Input, output or arena is not aligned to its elements.
    Alignment = 34,
    /// Two of input, output, arena and model share memory.
    Overlap = 35,
    /// The model's bytes changed after they were checked.
    Changed = 36,
}

/// Type of the elements of a tensor.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DType {
    /// Packed signs: 32 channels to a uint32_t, least significant bit first, 1 is +1.
    Bits = 0,
    /// uint8_t.
    U8 = 1,
    /// int8_t.
    I8 = 2,
    /// int16_t.
    I16 = 3,
    /// int32_t.
    I32 = 4,
}

/// A checked model. `cbin_nn_open` fills it in; read the fields, write none.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Model {
    /// The bytes of the .cbn file; they must stay where they are, unchanged.
    pub bytes: *const u8,
    /// Their number.
    pub length: usize,
    /// Bytes of one input image.
    pub input_bytes: usize,
    /// Bytes of one output.
    pub output_bytes: usize,
    /// Bytes of arena that a run needs, scratch included; a multiple of 4.
    pub arena_bytes: usize,
    /// Bytes of memory that `cbin_nn_run_in_place` needs, image and arena in one, a multiple of 4; 0 for a model that can't
    /// run so.
    pub in_place_bytes: usize,
    /// Where in that memory the image begins, bytes.
    pub image_offset: usize,
    /// Height, width and channels of the input.
    pub input_shape: [u32; 3],
    /// Type of the input's elements.
    pub input_dtype: DType,
    /// Height, width and channels of the output; a classifier's are 1, 1 and the number of classes.
    pub output_shape: [u32; 3],
    /// Type of the output's elements.
    pub output_dtype: DType,
    /// One step of the output in the source network's units: its logit is output_scale * output.
    pub output_scale: f64,
}

/// Checks `length` bytes at `bytes`, the whole of a .cbn file at a 16-byte boundary (in flash, say), as hostile
/// input, and fills in `model`. The bytes must stay where they are, unchanged, as long as the model is used.
///
/// On any other status than CBIN_NN_STATUS_OK, `model` is left as it was.
///
/// # Safety
///
/// `bytes` points to `length` bytes and `model` to a model, or either is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cbin_nn_open(model: *mut Model, bytes: *const c_void, length: usize) -> Status {
    if model.is_null() || bytes.is_null() {
        return Status::Null;
    }
    if length > isize::MAX as usize {
        return Status::WrongLength;
    }
    // SAFETY: not NULL, and so, as the caller promises, `length` bytes, no more than a slice may have.
    let file = unsafe { slice::from_raw_parts(bytes.cast::<u8>(), length) };
    let view = match cbin_nn_model::Model::new_checked(file) {
        Ok(view) => view,
        Err(error) => return format_status(&error),
    };
    let (Some(input_dtype), Some(output_dtype)) = (dtype(view.input().dtype), dtype(view.output().dtype))
    else {
        return Status::BadTensor;
    };
    let in_place = view.in_place();
    let opened = Model {
        bytes: file.as_ptr(),
        length,
        input_bytes: view.input_bytes(),
        output_bytes: view.output_bytes(),
        arena_bytes: view.arena_bytes(),
        in_place_bytes: in_place.as_ref().map_or(0, |plan| plan.bytes),
        image_offset: in_place.map_or(0, |plan| plan.image.start),
        input_shape: hwc(view.input().shape),
        input_dtype,
        output_shape: hwc(view.output().shape),
        output_dtype,
        output_scale: view.output().scale,
    };
    // SAFETY: not NULL, and so, as the caller promises, a model. It may hold anything, so nothing is dropped.
    unsafe { model.write(opened) };
    Status::Ok
}

/// Runs the model on one image: `input_bytes` bytes at `input` (uint8_t, height x width x channels), `output_bytes`
/// at `output`, and at least `arena_bytes` at `arena`, aligned to their element types (the arena to 4). What
/// output and arena held before does not matter. On any other status than CBIN_NN_STATUS_OK, and save for
/// CBIN_NN_STATUS_CHANGED, nothing was written.
///
/// # Safety
///
/// `model` was filled in by `cbin_nn_open` and its bytes are unchanged; each other pointer points to as many bytes
/// as the argument after it says. Or any pointer is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cbin_nn_run(
    model: *const Model,
    input: *const c_void,
    input_bytes: usize,
    output: *mut c_void,
    output_bytes: usize,
    arena: *mut c_void,
    arena_bytes: usize,
) -> Status {
    if model.is_null() || input.is_null() || output.is_null() || (arena.is_null() && arena_bytes != 0) {
        return Status::Null;
    }
    // SAFETY: not NULL, and so, as the caller promises, a model that was filled in.
    let model = unsafe { &*model };
    if model.bytes.is_null() {
        return Status::Null;
    }
    if input_bytes != model.input_bytes
        || output_bytes != model.output_bytes
        || arena_bytes < model.arena_bytes
    {
        return Status::Length;
    }
    if !arena.cast::<u32>().is_aligned() {
        return Status::Alignment;
    }
    let arena_bytes = model.arena_bytes;
    let read = [span(input, input_bytes), span(model.bytes.cast(), model.length)];
    let written = [span(output, output_bytes), span(arena, arena_bytes)];
    if shared(&written[0], &written[1])
        || written.iter().any(|written| read.iter().any(|read| shared(read, written)))
    {
        return Status::Overlap;
    }
    // SAFETY: not NULL, of the lengths that the caller promises, and what is written shares no memory with what is
    // read or written otherwise. The arena is aligned to its words; bytes need no alignment. An arena of no bytes
    // may be NULL, and is taken from nowhere.
    let (file, input, output, arena) = unsafe {
        (
            slice::from_raw_parts(model.bytes, model.length),
            slice::from_raw_parts(input.cast::<u8>(), input_bytes),
            slice::from_raw_parts_mut(output.cast::<u8>(), output_bytes),
            if arena_bytes == 0 {
                &mut [][..]
            } else {
                slice::from_raw_parts_mut(arena.cast::<u32>(), arena_bytes / 4)
            },
        )
    };
    let Ok(view) = cbin_nn_model::Model::new_unchecked(file) else {
        return Status::Changed;
    };
    run_status(view.run(input, output, arena, &mut NoObserver))
}

/// Runs the model on the image that begins at byte `image_offset` of `memory`, and writes over it: rows of the first
/// activation take the place of rows of the image that are done with. So an image needs no memory beside the arena.
/// `memory` has at least `in_place_bytes` bytes and is aligned to 4; the rest is as for `cbin_nn_run`. A model whose
/// `in_place_bytes` is 0 can't run so: CBIN_NN_STATUS_LENGTH.
///
/// # Safety
///
/// As for `cbin_nn_run`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cbin_nn_run_in_place(
    model: *const Model,
    memory: *mut c_void,
    memory_bytes: usize,
    output: *mut c_void,
    output_bytes: usize,
) -> Status {
    if model.is_null() || memory.is_null() || output.is_null() {
        return Status::Null;
    }
    // SAFETY: not NULL, and so, as the caller promises, a model that was filled in.
    let model = unsafe { &*model };
    if model.bytes.is_null() {
        return Status::Null;
    }
    let needed = model.in_place_bytes;
    if needed == 0 || memory_bytes < needed || output_bytes != model.output_bytes {
        return Status::Length;
    }
    if !memory.cast::<u32>().is_aligned() {
        return Status::Alignment;
    }
    let file = span(model.bytes.cast(), model.length);
    let [memory_span, output_span] = [span(memory, needed), span(output, output_bytes)];
    if shared(&memory_span, &output_span) || shared(&memory_span, &file) || shared(&output_span, &file) {
        return Status::Overlap;
    }
    // SAFETY: not NULL, of the lengths that the caller promises, and no two share memory; the memory is aligned to its words.
    let (file, output, memory) = unsafe {
        (
            slice::from_raw_parts(model.bytes, model.length),
            slice::from_raw_parts_mut(output.cast::<u8>(), output_bytes),
            slice::from_raw_parts_mut(memory.cast::<u32>(), needed / 4),
        )
    };
    let Ok(view) = cbin_nn_model::Model::new_unchecked(file) else {
        return Status::Changed;
    };
    run_status(view.run_in_place(memory, output, &mut NoObserver))
}

fn shared(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

fn run_status(result: Result<(), RunError>) -> Status {
    match result {
        Ok(()) => Status::Ok,
        Err(RunError::Length { .. }) => Status::Length,
        Err(RunError::Alignment { .. }) => Status::Alignment,
        Err(_) => Status::Changed,
    }
}

/// A status in words, with what to do: a string that ends in 0 and lives for ever.
#[unsafe(no_mangle)]
pub extern "C" fn cbin_nn_status_text(status: i32) -> *const c_char {
    const TEXTS: [(Status, &CStr); 17] = [
        (Status::Ok, c"done"),
        (
            Status::Misaligned,
            c"the model's bytes must begin at a multiple of 16: align the array that holds them",
        ),
        (Status::TooShort, c"the model's bytes end inside the file's header: give the whole file"),
        (Status::BadMagic, c"not a .cbn file: write one with `cbin-nn convert`"),
        (
            Status::UnsupportedVersion,
            c"a .cbn file of another version: convert the network again with a matching cbin-nn",
        ),
        (
            Status::WrongLength,
            c"the file is longer or shorter than its header says: give all of it and nothing else",
        ),
        (Status::BadChecksum, c"the model's bytes were damaged: copy the .cbn file again"),
        (Status::BadHeader, c"a field of the model's header is wrong: convert the network again"),
        (Status::BadTensor, c"a tensor of the model is wrong: convert the network again"),
        (Status::BadOperator, c"an operator of the model is wrong: convert the network again"),
        (
            Status::BadArgument,
            c"an operator's shapes or parameters do not fit together: convert the network again",
        ),
        (Status::ArenaOverlap, c"tensors of the model share memory: convert the network again"),
        (Status::Null, c"a pointer is NULL"),
        (
            Status::Length,
            c"a length is not the model's input_bytes or output_bytes, or is below its arena_bytes or in_place_bytes",
        ),
        (Status::Alignment, c"input, output or arena is not aligned to its elements: align them to 4 bytes"),
        (Status::Overlap, c"two of input, output, arena and model share memory: give each its own"),
        (Status::Changed, c"the model's bytes changed after they were checked: open it again"),
    ];
    let found = TEXTS.iter().find(|(known, _)| *known as i32 == status);
    found.map_or(c"not a status of this library", |(_, text)| text).as_ptr()
}

/// Version of the library, for instance "0.1.0".
#[unsafe(no_mangle)]
pub extern "C" fn cbin_nn_version() -> *const c_char {
    const VERSION: &CStr =
        match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(version) => version,
            Err(_) => panic!("a version has no 0 inside"),
        };
    VERSION.as_ptr()
}

fn hwc([_, height, width, channels]: [u32; 4]) -> [u32; 3] {
    [height, width, channels]
}

/// The types that an input or an output can have.
fn dtype(dtype: format::DType) -> Option<DType> {
    match dtype {
        format::DType::Bits => Some(DType::Bits),
        format::DType::U8 => Some(DType::U8),
        format::DType::I8 => Some(DType::I8),
        format::DType::I16 => Some(DType::I16),
        format::DType::I32 => Some(DType::I32),
        _ => None,
    }
}

fn format_status(error: &FormatError) -> Status {
    match error {
        FormatError::Misaligned => Status::Misaligned,
        FormatError::TooShort { .. } => Status::TooShort,
        FormatError::Magic => Status::BadMagic,
        FormatError::Version { .. } => Status::UnsupportedVersion,
        FormatError::Length { .. } => Status::WrongLength,
        FormatError::Checksum { .. } => Status::BadChecksum,
        FormatError::Header { .. } => Status::BadHeader,
        FormatError::Tensor { .. } => Status::BadTensor,
        FormatError::Argument { .. } => Status::BadArgument,
        FormatError::Overlap { .. } => Status::ArenaOverlap,
        // The enum may grow; what is new is most likely about an operator.
        _ => Status::BadOperator,
    }
}

/// The addresses of `bytes` bytes at `start`. Only compared, never made into a pointer again.
fn span(start: *const c_void, bytes: usize) -> Range<usize> {
    start.addr()..start.addr().saturating_add(bytes)
}

/// A panic would be a defect of this library: C has no better place to go than its own `abort`.
#[cfg(all(target_os = "none", not(test)))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    unsafe extern "C" {
        safe fn abort() -> !;
    }
    abort()
}
