//! Everything that can go wrong between a host and a board, in one list.

use std::{error::Error, fmt, io, path::PathBuf, time::Duration};

use cbin_nn_model::FormatError;
use cbin_nn_protocol::BoardError;

/// What a session was doing when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// Opening the debug probe and attaching to the chip.
    Attach,
    /// Writing the runner to the board's flash.
    FlashRunner,
    /// Writing the model to the board's flash.
    FlashModel,
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

impl Step {
    /// What the step may have left half done, with how it is put right; empty where it leaves nothing.
    fn left(self) -> &'static str {
        match self {
            Self::FlashRunner => {
                "; the runner in the board's flash is incomplete, and the next attempt writes it anew"
            }
            Self::FlashModel => {
                "; the model in the board's flash may be incomplete, in which case the board refuses it, and \
                 the next attempt writes it anew"
            }
            _ => "",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attach => f.write_str("attaching"),
            Self::FlashRunner => f.write_str("flashing the runner"),
            Self::FlashModel => f.write_str("flashing the model"),
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
    /// The runner was trimmed to other operators than the model's.
    #[error(
        "{board}, loading the model: layer '{layer}' needs {operator} and this runner was built without it; build \
         one for this model (scripts/trimmed_firmware.py), or take the one with all operators"
    )]
    OperatorNotBuilt {
        /// The board's name.
        board: &'static str,
        /// Name of the layer.
        layer: String,
        /// Name of the operator, and of the layout of its weights.
        operator: String,
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
    /// There is no debug probe.
    #[error(
        "{board}: no debug probe was found; plug the board in with a USB cable that carries data, on Linux \
         install the udev rules (docs/boards.md), or name a network probe with CBIN_NN_PROBES"
    )]
    NoProbe {
        /// The board's name.
        board: &'static str,
    },
    /// There are several probes, and none was named.
    #[error("{board}: {} debug probes are connected ({}); name one, as the probe to use", found.len(), found.join(", "))]
    SeveralProbes {
        /// The board's name.
        board: &'static str,
        /// Their selectors.
        found: Vec<String>,
    },
    /// The selector names no probe that is there.
    #[error("{board}: no debug probe {selector:?} was found ({reason}); `cbin-nn probes` lists them")]
    ProbeNotFound {
        /// The board's name.
        board: &'static str,
        /// The selector.
        selector: String,
        /// What was found instead.
        reason: String,
    },
    /// The selector is no selector.
    #[error("the probe {selector:?} is not VID:PID or VID:PID:SERIAL; `cbin-nn probes` lists what is there")]
    ProbeSelector {
        /// What was given.
        selector: String,
    },
    /// The probe is there, and this user may not use it.
    #[error(
        "{board}: this user may not use the debug probe {selector}; on Linux install the udev rules \
         (docs/boards.md), then unplug the board and plug it in again; a network probe may be behind a firewall"
    )]
    ProbePermission {
        /// The board's name.
        board: &'static str,
        /// The probe.
        selector: String,
    },
    /// The probe can't attach to the chip.
    #[error(
        "{board}, attaching: the probe {selector} does not reach the chip; check the board's power and cable, \
         close other debuggers, and try again with under-reset or a lower speed"
    )]
    Attach {
        /// The board's name.
        board: &'static str,
        /// The probe.
        selector: String,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The probe was unplugged, or its connection was closed.
    #[error("{board}, {step}: the probe was lost{}; check the cable and try again", step.left())]
    ProbeLost {
        /// The board's name.
        board: &'static str,
        /// The step.
        step: Step,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The probe does not answer.
    #[error(
        "{board}, {step}: the probe has not answered for {:.1} s{}; unplug it and plug it in again",
        waited.as_secs_f64(), step.left()
    )]
    ProbeStuck {
        /// The board's name.
        board: &'static str,
        /// The step.
        step: Step,
        /// How long it had.
        waited: Duration,
    },
    /// The probe answers, and could not do something.
    #[error("{board}, {step}: the probe failed{}; try again, with a lower speed if it happens twice", step.left())]
    ProbeFailed {
        /// The board's name.
        board: &'static str,
        /// The step.
        step: Step,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The library that drives the probe panicked.
    #[error(
        "{board}, {step}: the probe's library panicked ({message}){}; unplug the probe, plug it in again, \
         and report this if it happens twice", step.left()
    )]
    ProbePanicked {
        /// The board's name.
        board: &'static str,
        /// The step.
        step: Step,
        /// What it said.
        message: String,
    },
    /// Another chip than the board's is connected.
    #[error(
        "{board}, attaching: the chip says it is {found:#x} where this board's says {expected:#x}; nothing was \
         written: name the board that is connected (`cbin-nn boards`), or the probe of the other one"
    )]
    WrongChip {
        /// The board's name.
        board: &'static str,
        /// What the chip says.
        found: u32,
        /// What the board's chip says.
        expected: u32,
    },
    /// The chip does not let its flash be read.
    #[error(
        "{board}, attaching: the chip is read-protected (level {level}); nothing was written: {}",
        if *level == 2 {
            "level 2 is for good, so take another board"
        } else {
            "take the protection off with ST's STM32CubeProgrammer, which erases the chip"
        }
    )]
    ReadProtected {
        /// The board's name.
        board: &'static str,
        /// ST's level of protection: 1 or 2.
        level: u8,
    },
    /// The flash could not be written, or does not hold what was written.
    #[error("{board}, {step}: the flash could not be written{}; check the board's supply and try again", step.left())]
    FlashFailed {
        /// The board's name.
        board: &'static str,
        /// The step.
        step: Step,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The board's core is in lock-up.
    #[error("{board}, {step}: the core is locked up; flash the board anew and report this, with the model")]
    LockedUp {
        /// The board's name.
        board: &'static str,
        /// The step.
        step: Step,
    },
    /// The board holds no valid model.
    #[error("{board}: no valid model is on the board ({reason}); flash one")]
    NoModel {
        /// The board's name.
        board: &'static str,
        /// What is in its place.
        reason: String,
    },
    /// Something that the runner waits for at its start did not get ready.
    #[error("{board}, {step}: {what} did not get ready; take the board's power away and give it back")]
    NotReady {
        /// The board's name.
        board: &'static str,
        /// The step.
        step: Step,
        /// What it was.
        what: String,
    },
    /// This build can't drive probes.
    #[error("{board}: this build of cbin-nn-deploy has no probes; build it with the feature `probe`")]
    WithoutProbes {
        /// The board's name.
        board: &'static str,
    },
    /// The caller's callback stopped the session.
    #[error("{board}, {step}: stopped as asked")]
    Interrupted {
        /// The board's name.
        board: &'static str,
        /// The step.
        step: Step,
    },
    /// The session was closed.
    #[error("the board's session is closed; connect anew")]
    Closed,
    /// Another call is in progress: of another thread, or of the one whose callback this is.
    #[error("the board is busy with another call of this session; wait until that has returned")]
    Busy,
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
            Self::OperatorNotBuilt { .. } => "operator-not-built",
            Self::ImagesInvalid { .. } => "images-invalid",
            Self::Refused { .. } => "board-refused",
            Self::Garbled { .. } => "board-garbled",
            Self::NoProbe { .. } => "no-probe",
            Self::SeveralProbes { .. } => "several-probes",
            Self::ProbeNotFound { .. } => "probe-not-found",
            Self::ProbeSelector { .. } => "bad-probe",
            Self::ProbePermission { .. } => "probe-permission",
            Self::Attach { .. } => "attach-failed",
            Self::ProbeLost { .. } => "probe-lost",
            Self::ProbeStuck { .. } => "probe-stuck",
            Self::ProbeFailed { .. } => "probe-failed",
            Self::ProbePanicked { .. } => "probe-panicked",
            Self::WrongChip { .. } => "wrong-chip",
            Self::ReadProtected { .. } => "read-protected",
            Self::FlashFailed { .. } => "flash-failed",
            Self::LockedUp { .. } => "locked-up",
            Self::NoModel { .. } => "no-model",
            Self::NotReady { .. } => "not-ready",
            Self::WithoutProbes { .. } => "without-probes",
            Self::Interrupted { .. } => "interrupted",
            Self::Closed => "session-closed",
            Self::Busy => "session-busy",
            Self::Misuse { .. } => "session-misuse",
        }
    }
}
