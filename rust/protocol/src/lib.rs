//! The messages between a host and a board that runs cbin-nn models.
//!
//! # What
//!
//! A conversation is strictly request, response: the host sends a [`Request`], the board answers
//! with exactly one [`Response`], and says nothing unasked except [`Response::Panic`],
//! [`Response::Fault`] and [`Response::NotReady`], after which it has halted. The usual order is
//!
//! ```text
//! Hello ─► CloseModel ─► (the host writes the model region) ─► OpenModel
//!       ─► per image: WriteInput… ─► Run ─► ReadCounts… ─► ReadOutput…
//! ```
//!
//! # Why like this
//!
//! * The same bytes travel over an emulator's shared file and over a debug probe, whose channel
//!   buffers are about 1 KiB. So no message is larger than [`MAX_FRAME_BYTES`], and images, outputs
//!   and counts are streamed in chunks of at most [`MAX_CHUNK_BYTES`].
//! * The model itself is *not* a message. The host writes it straight into the board's model region
//!   (flash on a real board) and the board executes it in place.
//! * A message is serialized by postcard and framed by COBS with a terminating zero. A receiver
//!   that joined late, or met garbage, is in step again at the next zero; an empty frame means
//!   nothing, so a sender may open with a zero to cut off whatever came before.
//!
//! # Invariants
//!
//! * Decoding never panics, whatever the bytes, and borrows from the frame: no allocation.
//! * Every message that this crate's constants admit fits one frame ([`encode`] reports the rest).
//! * [`Request::Hello`] is encoded alike in every version, and the answer begins with the version:
//!   [`hello_version`] reads it from a frame that is otherwise not understood.
//! * All sizes, offsets and addresses are in bytes. Counts are in the unit of [`Hello::counter`].
#![no_std]

use serde::{Deserialize, Serialize};

/// Version of the messages. It changes with every change that an older reader would misunderstand.
pub const VERSION: u16 = 3;

/// The longest frame in bytes, terminating zero included.
pub const MAX_FRAME_BYTES: usize = 1024;

/// The most payload bytes in one message.
///
/// Besides its payload a message has at most 1 byte of tag, 5 of offset and 2 of length; COBS adds
/// one byte for each started 254 (at most 4 here) and the zero: 992 + 8 + 4 + 1 = 1005 <= 1024.
pub const MAX_CHUNK_BYTES: usize = 992;

/// The most bytes of a file name in [`Response::Panic`]; a longer name loses its beginning.
pub const MAX_FILE_BYTES: usize = 200;

/// Bytes of one count in [`Response::Counts`]: a little-endian `u64`.
pub const COUNT_BYTES: usize = 8;

/// Instructions in one iteration of [`Request::Spin`]'s loop: a subtraction and a taken branch.
pub const SPIN_INSTRUCTIONS: u64 = 2;

/// What the host asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request<'a> {
    /// Who are you? Answered by [`Response::Hello`], at any time.
    Hello,
    /// Let go of the model: the host is about to write the model region. Answered by
    /// [`Response::Closed`], also where no model was open.
    CloseModel,
    /// Check the first `bytes` of the model region and carve the workspace for that model.
    /// Answered by [`Response::Opened`].
    OpenModel {
        /// Length of the model in bytes.
        bytes: u32,
    },
    /// A piece of the image. Pieces come in order: `offset` is the number of bytes written so far,
    /// or 0 to begin a new image. Answered by [`Response::InputWritten`].
    WriteInput {
        /// Where in the image the piece begins, in bytes.
        offset: u32,
        /// The piece, at most [`MAX_CHUNK_BYTES`].
        data: &'a [u8],
    },
    /// Run the model once over the image. Answered by [`Response::Ran`].
    Run,
    /// Read a piece of the last run's output. Answered by [`Response::Output`].
    ReadOutput {
        /// Where in the output the piece begins, in bytes.
        offset: u32,
        /// Its length in bytes; the answer holds at most [`MAX_CHUNK_BYTES`] of them.
        bytes: u32,
    },
    /// Read the last run's counts, from operator `first` on. Answered by [`Response::Counts`].
    ReadCounts {
        /// Index of the first operator.
        first: u32,
    },
    /// Count a loop of `iterations` times [`SPIN_INSTRUCTIONS`] instructions in the way operators
    /// are counted, so that the host can test the counter. Answered by [`Response::Spun`].
    Spin {
        /// Times around the loop, at least 1.
        iterations: u32,
    },
}

/// What the board answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response<'a> {
    /// To [`Request::Hello`].
    #[serde(borrow)]
    Hello(Hello<'a>),
    /// To [`Request::CloseModel`].
    Closed,
    /// To [`Request::OpenModel`].
    Opened(Opened),
    /// To [`Request::WriteInput`].
    InputWritten,
    /// To [`Request::Run`].
    Ran(Ran),
    /// To [`Request::ReadOutput`].
    Output {
        /// The bytes asked for, possibly fewer: never more than [`MAX_CHUNK_BYTES`].
        data: &'a [u8],
    },
    /// To [`Request::ReadCounts`].
    Counts {
        /// Index of the first operator here, as asked.
        first: u32,
        /// [`COUNT_BYTES`] for each operator; as many as fit [`MAX_CHUNK_BYTES`].
        data: &'a [u8],
    },
    /// To [`Request::Spin`].
    Spun {
        /// What the counter said.
        count: u64,
    },
    /// The request was refused; the board is ready for the next one.
    Error(BoardError),
    /// The runner panicked and has halted.
    Panic {
        /// Line in `file`.
        line: u32,
        /// Source file, its last [`MAX_FILE_BYTES`] bytes.
        file: &'a str,
    },
    /// The processor took a fault and has halted.
    Fault {
        /// Address of the instruction.
        pc: u32,
    },
    /// Something that the start-up waits for did not get ready in time; the board has halted.
    NotReady {
        /// What it was, in a few words.
        what: &'a str,
    },
}

/// A board introduces itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello<'a> {
    /// [`VERSION`] of the board's image. Stays first in every version.
    pub version: u16,
    /// Version of the runner, as Cargo has it.
    pub runner_version: &'a str,
    /// Name of the board the image was built for.
    pub board: &'a str,
    /// What the counts count.
    pub counter: Counter,
    /// Counts are exact to this many units.
    pub counter_resolution: u32,
    /// Address of the model region.
    pub model_address: u32,
    /// Length of the model region in bytes.
    pub model_bytes: u32,
    /// Length of the workspace (arena, image, output and counts) in bytes.
    pub workspace_bytes: u32,
    /// Room for the stack in bytes.
    pub stack_bytes: u32,
    /// Static RAM of the transport in bytes: RTT control block, channels and frame buffers.
    pub ram_transport_bytes: u32,
    /// All other static RAM in bytes: `.data`, `.bss` and `.uninit`.
    pub ram_other_bytes: u32,
    /// Flash of the image in bytes: `.text`, `.rodata` and `.data`.
    pub code_bytes: u32,
}

/// What a board's counter counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Counter {
    /// Instructions executed, under an emulator.
    Instructions,
    /// Cycles of the core's clock, on silicon.
    Cycles,
    /// Nothing: the core says that it has no cycle counter, and all counts are 0.
    Absent,
}

/// A model is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// Number of operators, each of which is counted.
    pub operators: u32,
    /// Bytes of the arena, scratch included.
    pub arena_bytes: u32,
    /// Bytes of one image.
    pub input_bytes: u32,
    /// Bytes of one output.
    pub output_bytes: u32,
}

/// A run has ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ran {
    /// Sum of all operators' counts.
    pub total: u64,
    /// High-water mark of the stack in bytes, from painting: the request loop's part included.
    pub stack_bytes: u32,
}

/// Why a board refused a request. Nothing has changed on the board, except that a refused
/// [`Request::OpenModel`] leaves no model open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum BoardError {
    /// More than [`MAX_FRAME_BYTES`] came without a zero.
    #[error("a frame was longer than {MAX_FRAME_BYTES} bytes")]
    FrameTooLong,
    /// A frame was no message of this version.
    #[error("a frame was not a request of protocol version {VERSION}")]
    BadFrame,
    /// The request needs an open model.
    #[error("no model is open")]
    NoModel,
    /// The request needs a run since the last image or model.
    #[error("the model has not run yet")]
    NotRun,
    /// The model region is smaller than the model.
    #[error("the model needs {needed} bytes and the model region holds {available}")]
    ModelTooLarge {
        /// Bytes asked for.
        needed: u32,
        /// Bytes of the region.
        available: u32,
    },
    /// The bytes are not a model.
    #[error("the bytes are not a valid model (code {code})")]
    BadModel {
        /// The model format's error code; the host has the words for it.
        code: u16,
    },
    /// Arena, image, output and counts do not fit the workspace.
    #[error("the model needs {needed} bytes of RAM and the board has {available}")]
    ArenaTooSmall {
        /// Bytes needed.
        needed: u32,
        /// Bytes of the workspace.
        available: u32,
    },
    /// A piece of the image that does not continue the last one.
    #[error("a piece of the image begins at byte {offset} where {expected} was due")]
    OutOfOrder {
        /// Offset in the request.
        offset: u32,
        /// Offset that was due.
        expected: u32,
    },
    /// An offset or a length points past the end.
    #[error("the request reaches {end}, past the limit of {limit}")]
    OutOfRange {
        /// End of what was asked, saturated.
        end: u32,
        /// The most it may be.
        limit: u32,
    },
    /// A run was asked for before the whole image was there.
    #[error("only {written} of the image's {needed} bytes were written")]
    InputIncomplete {
        /// Bytes written.
        written: u32,
        /// Bytes of an image.
        needed: u32,
    },
    /// The image was built without an operator of the model, or without the layout of its weights.
    #[error("this runner was built without the operator with index {index}")]
    OperatorNotBuilt {
        /// The operator's index in the model.
        index: u32,
    },
    /// The layer walk failed on a model that had passed its check.
    #[error("the run failed on the board")]
    RunFailed,
}

/// A message that could not be put into a frame, or taken out of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The message does not fit the buffer.
    #[error("the message does not fit a frame of {MAX_FRAME_BYTES} bytes")]
    TooLong,
    /// The bytes between two zeros are not COBS.
    #[error("the frame is not COBS")]
    NotCobs,
    /// The frame's content is no message of this version.
    #[error("the frame is not a message of protocol version {VERSION}")]
    NotAMessage,
}

/// Serializes a message into `frame`, terminating zero included, and returns its length in bytes.
///
/// A buffer of [`MAX_FRAME_BYTES`] takes every message whose payload keeps to
/// [`MAX_CHUNK_BYTES`] and [`MAX_FILE_BYTES`].
pub fn encode(message: &impl Serialize, frame: &mut [u8]) -> Result<usize, FrameError> {
    match postcard::to_slice_cobs(message, frame) {
        Ok(encoded) => Ok(encoded.len()),
        Err(_) => Err(FrameError::TooLong),
    }
}

/// Undoes the framing in place. `frame` is what stood between two zeros, with or without them.
pub fn unframe(frame: &mut [u8]) -> Result<&[u8], FrameError> {
    let length = frame.iter().position(|&byte| byte == 0).unwrap_or(frame.len());
    let frame = &mut frame[..length];
    match cobs::decode_in_place(frame) {
        Ok(length) => frame.get(..length).ok_or(FrameError::NotCobs),
        Err(_) => Err(FrameError::NotCobs),
    }
}

/// Reads a message from what [`unframe`] returned. Bytes after the message are an error.
pub fn decode<'a, M: Deserialize<'a>>(bytes: &'a [u8]) -> Result<M, FrameError> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        _ => Err(FrameError::NotAMessage),
    }
}

/// The protocol version in a [`Response::Hello`] of any version, from what [`unframe`] returned.
#[must_use]
pub fn hello_version(bytes: &[u8]) -> Option<u16> {
    // An enum's tag is a varint, and that of `Hello` is 0 in every version.
    match postcard::take_from_bytes::<(u32, u16)>(bytes) {
        Ok(((0, version), _)) => Some(version),
        _ => None,
    }
}

/// The last [`MAX_FILE_BYTES`] of a file name, or a little less so as not to split a character.
#[must_use]
pub fn file_tail(file: &str) -> &str {
    let mut start = file.len().saturating_sub(MAX_FILE_BYTES);
    while !file.is_char_boundary(start) {
        start += 1;
    }
    file.get(start..).unwrap_or("")
}

#[cfg(test)]
mod tests;

/// The examples of the README run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
