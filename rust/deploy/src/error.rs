//! Everything that can go wrong between a host and a board, in one list.

use std::{fmt, io, path::PathBuf, time::Duration};

use cbin_nn_model::FormatError;
use cbin_nn_protocol::BoardError;

/// What a session was doing when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// Starting the board, up to its first answer.
    Start,
    /// Writing and opening the model.
    Load,
    /// Running an image.
    Image {
        /// Counted from 1.
        number: usize,
        /// Of how many.
        count: usize,
    },
    /// Testing the instruction counter.
    Spin,
    /// Sending bytes as they are.
    Raw,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start => f.write_str("start"),
            Self::Load => f.write_str("loading the model"),
            Self::Image { number, count } => write!(f, "image {number} of {count}"),
            Self::Spin => f.write_str("testing the counter"),
            Self::Raw => f.write_str("raw bytes"),
        }
    }
}

/// Why a board could not do what it was asked to.
///
/// Each message is one line that names the board, the step where there is one, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeployError {
    /// No board has this name.
    #[error("no board is called {name:?}; the boards are: {known}")]
    UnknownBoard {
        /// The name asked for.
        name: String,
        /// All names.
        known: String,
    },
    /// The emulator's program is not there.
    #[error(
        "{board}: the emulator {program:?} was not found; run `apt-get install qemu-system-arm`, or set \
         CBIN_NN_QEMU to the program"
    )]
    EmulatorMissing {
        /// The board's name.
        board: &'static str,
        /// The program that was looked for.
        program: String,
    },
    /// The emulator's program is there and can't be started.
    #[error("{board}: the emulator {program:?} could not be started ({source}); check CBIN_NN_QEMU")]
    EmulatorNotStarted {
        /// The board's name.
        board: &'static str,
        /// The program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// The image of the runner can't be read.
    #[error("{board}: the runner {path:?} can't be read ({source}); build it with `make firmware`")]
    RunnerMissing {
        /// The board's name.
        board: &'static str,
        /// The image's path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The image is not a runner for this board.
    #[error("{board}: {path:?} is {reason}; build the board's runner with `make firmware`")]
    RunnerInvalid {
        /// The board's name.
        board: &'static str,
        /// The image's path.
        path: PathBuf,
        /// What it is instead.
        reason: String,
    },
    /// The runner speaks another version of the protocol.
    #[error(
        "{board}: the runner speaks protocol version {found} and this host version {expected}; build \
         both from the same sources (`make firmware`)"
    )]
    ProtocolMismatch {
        /// The board's name.
        board: &'static str,
        /// The runner's version.
        found: u16,
        /// This crate's version.
        expected: u16,
    },
    /// The board introduced itself as another one.
    #[error("{board}: the runner is for board {found:?}; build the board's runner with `make firmware`")]
    BoardMismatch {
        /// The board's name.
        board: &'static str,
        /// The name in the board's answer.
        found: String,
    },
    /// A file that the host shares with the emulator failed.
    #[error("{board}, {step}: {what} failed ({source}); check the space in the temporary folder")]
    Io {
        /// The board's name.
        board: &'static str,
        /// The step.
        step: Step,
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The board did not answer in time.
    #[error(
        "{board}, {step}: no answer within {:.1} s; the board is stopped or stuck: try again, on a slow \
         machine with a longer timeout",
        waited.as_secs_f64()
    )]
    Timeout {
        /// The board's name.
        board: &'static str,
        /// The step.
        step: Step,
        /// How long it had.
        waited: Duration,
    },
    /// The emulator has ended.
    #[error(
        "{board}, {step}: the emulator ended ({status}){}; try again, and report it if it happens twice",
        said(stderr)
    )]
    Exited {
        /// The board's name.
        board: &'static str,
        /// The step.
        step: Step,
        /// Its exit status in words.
        status: String,
        /// What it wrote to standard error, in one line.
        stderr: String,
    },
    /// The runner panicked.
    #[error("{board}, {step}: the runner panicked at {file}:{line}; please report this, with the model")]
    Panicked {
        /// The board's name.
        board: &'static str,
        /// The step.
        step: Step,
        /// Source file.
        file: String,
        /// Line in it.
        line: u32,
    },
    /// The processor took a fault.
    #[error(
        "{board}, {step}: the processor took a fault at address {pc:#010x}; please report this, with the model"
    )]
    Faulted {
        /// The board's name.
        board: &'static str,
        /// The step.
        step: Step,
        /// Address of the instruction.
        pc: u32,
    },
    /// The model is damaged, foreign or of another version.
    #[error("{board}, loading the model: {source}")]
    ModelInvalid {
        /// The board's name.
        board: &'static str,
        /// The field that is wrong.
        source: FormatError,
    },
    /// The model does not fit the board's model region.
    #[error(
        "{board}, loading the model: the model has {needed} bytes and the board holds {available}; make it \
         smaller, or use a board with more flash"
    )]
    ModelTooLarge {
        /// The board's name.
        board: &'static str,
        /// Bytes of the model.
        needed: u64,
        /// Bytes of the model region.
        available: u64,
    },
    /// The model does not fit the board's RAM.
    #[error(
        "{board}, loading the model: the model needs {needed} bytes of RAM for a run and the board has \
         {available}; make its largest tensors smaller, or use a board with more RAM"
    )]
    ArenaTooSmall {
        /// The board's name.
        board: &'static str,
        /// Bytes needed: arena, image, output and counts.
        needed: u64,
        /// Bytes of the workspace.
        available: u64,
    },
    /// The images are not `count` times the model's input.
    #[error(
        "{board}: {count} images have {got} bytes and the model takes {expected} each ({count} x {expected})"
    )]
    ImagesInvalid {
        /// The board's name.
        board: &'static str,
        /// Number of images.
        count: usize,
        /// Bytes that were given.
        got: usize,
        /// Bytes of one image.
        expected: usize,
    },
    /// The board refused a request for a reason that has no variant of its own.
    #[error("{board}, {step}: the board refused: {source}; please report this, with the model")]
    Refused {
        /// The board's name.
        board: &'static str,
        /// The step.
        step: Step,
        /// The board's reason.
        source: BoardError,
    },
    /// The board sent something that makes no sense.
    #[error("{board}, {step}: {reason}; build the runner from the same sources (`make firmware`)")]
    Garbled {
        /// The board's name.
        board: &'static str,
        /// The step.
        step: Step,
        /// What was wrong.
        reason: String,
    },
    /// The caller's callback stopped the session.
    #[error("{board}, {step}: stopped as asked")]
    Interrupted {
        /// The board's name.
        board: &'static str,
        /// The step.
        step: Step,
    },
    /// The session has failed before, or has no model.
    #[error("{board}: {reason}")]
    Misuse {
        /// The board's name.
        board: &'static str,
        /// What is the matter, and what to do.
        reason: &'static str,
    },
}

/// `: ` and the text, if there is any.
fn said(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!(": {stderr}") }
}

impl DeployError {
    /// A stable name for programs.
    #[must_use]
    pub fn slug(&self) -> &'static str {
        match self {
            Self::UnknownBoard { .. } => "unknown-board",
            Self::EmulatorMissing { .. } => "emulator-missing",
            Self::EmulatorNotStarted { .. } => "emulator-not-started",
            Self::RunnerMissing { .. } => "runner-missing",
            Self::RunnerInvalid { .. } => "runner-invalid",
            Self::ProtocolMismatch { .. } => "protocol-mismatch",
            Self::BoardMismatch { .. } => "board-mismatch",
            Self::Io { .. } => "board-io",
            Self::Timeout { .. } => "board-timeout",
            Self::Exited { .. } => "emulator-exited",
            Self::Panicked { .. } => "runner-panicked",
            Self::Faulted { .. } => "runner-faulted",
            Self::ModelInvalid { .. } => "model-invalid",
            Self::ModelTooLarge { .. } => "model-too-large",
            Self::ArenaTooSmall { .. } => "arena-too-small",
            Self::ImagesInvalid { .. } => "images-invalid",
            Self::Refused { .. } => "board-refused",
            Self::Garbled { .. } => "board-garbled",
            Self::Interrupted { .. } => "interrupted",
            Self::Misuse { .. } => "session-misuse",
        }
    }
}
