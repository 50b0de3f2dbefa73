//! A conversation with a board: open, load a model, run images.

use std::{
    ops::ControlFlow,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use cbin_nn_model::{Model, aligned::AlignedBytes, format::Kind as OperatorKind};
use cbin_nn_protocol::{
    self as protocol, BoardError, COUNT_BYTES, Counter, MAX_CHUNK_BYTES, MAX_FRAME_BYTES, Opened, Request,
    Response,
};

use crate::{
    Board, DeployError, Kind, Options, Step,
    image::{RunnerImage, check_model},
    transport::{Programmed, Transport, TransportError},
};

/// Called every few dozen milliseconds while a session waits, and with each [`Event`]; `Break` ends the
/// wait with [`DeployError::Interrupted`].
pub type Watch<'a> = &'a mut dyn FnMut(Option<Event>) -> ControlFlow<()>;

/// How far the flashing of a board has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// [`Step::FlashRunner`] or [`Step::FlashModel`].
    pub step: Step,
    /// What is being done to the flash.
    pub operation: Operation,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// What is being done to a flash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// Reading what it holds, to leave alone what is as it should be.
    Compare,
    /// Erasing sectors.
    Erase,
    /// Programming.
    Program,
    /// Reading back.
    Verify,
}

impl Operation {
    /// A word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Compare => "compare",
            Self::Erase => "erase",
            Self::Program => "program",
            Self::Verify => "verify",
        }
    }
}

/// How often a [`Watch`] is called.
const WATCH_EVERY: Duration = Duration::from_millis(50);
/// How long a wait polls without sleeping. A short request is answered within it.
const POLL_AWAKE: Duration = Duration::from_micros(300);
/// A wait's first sleep; each is twice as long as the last.
const SLEEP_FIRST: Duration = Duration::from_micros(20);
/// Bytes of a model's header.
const HEADER_BYTES: usize = 64;
/// The longest sleep.
const SLEEP_LONGEST: Duration = Duration::from_micros(500);

/// What a board says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BoardInfo {
    /// Version of the runner.
    pub runner_version: String,
    /// What the counts count.
    pub counter: Counter,
    /// Counts are exact to this many units.
    pub counter_resolution: u32,
    /// Address of the model region.
    pub model_address: u32,
    /// Bytes of the model region.
    pub model_bytes: u32,
    /// Bytes that arena, image, output and counts may take together.
    pub workspace_bytes: u32,
    /// Room for the stack in bytes.
    pub stack_bytes: u32,
    /// Static RAM of the transport in bytes.
    pub ram_transport_bytes: u32,
    /// All other static RAM in bytes.
    pub ram_other_bytes: u32,
    /// Flash of the runner in bytes: `.text`, `.rodata` and `.data`.
    pub code_bytes: u32,
}

/// One image's run.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageRun {
    /// The output's bytes.
    pub output: Vec<u8>,
    /// A count for each operator.
    pub counts: Vec<u64>,
    /// The sum of `counts`.
    pub total: u64,
    /// High-water mark of the stack in bytes.
    pub stack_bytes: u32,
}

/// What loading a model did to the board's flash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Loaded {
    /// The board held the model already.
    Unchanged,
    /// The model was written.
    Written,
}

/// An open board. Dropping it ends it.
pub struct Session {
    board: Board,
    options: Options,
    transport: Box<dyn Transport>,
    info: BoardInfo,
    opened: Option<Opened>,
    /// What the last [`Session::load_model`] did.
    loaded: Option<Loaded>,
    /// Bytes that have come and are no whole frame yet.
    pending: Vec<u8>,
    /// The last frame, its terminating zero included.
    received: Vec<u8>,
    /// An exchange failed half way: what the board would answer next is unknown.
    broken: bool,
}

impl Session {
    /// Starts a board with its runner and waits until it answers.
    ///
    /// # Errors
    ///
    /// When the emulator or the runner is missing or wrong, or the board does not answer in time.
    pub fn open(
        board: &Board,
        runner: &Path,
        options: Options,
        watch: Watch<'_>,
    ) -> Result<Self, DeployError> {
        let image = RunnerImage::read(board, runner)?;
        let transport = match board.kind {
            Kind::Emulated if options.probe.is_none() => emulate(board, &image, &options)?,
            _ => through_probe(board, &image, &options, watch)?,
        };
        Self::over(board, transport, options, watch)
    }

    /// Greets a board that was started, over a transport of the caller's.
    ///
    /// # Errors
    ///
    /// When the board does not answer in time, or is not the one it should be.
    pub fn over(
        board: &Board,
        transport: Box<dyn Transport>,
        options: Options,
        watch: Watch<'_>,
    ) -> Result<Self, DeployError> {
        let mut session = Self {
            board: *board,
            transport,
            info: BoardInfo {
                runner_version: String::new(),
                counter: Counter::Instructions,
                counter_resolution: 0,
                model_address: 0,
                model_bytes: 0,
                workspace_bytes: 0,
                stack_bytes: 0,
                ram_transport_bytes: 0,
                ram_other_bytes: 0,
                code_bytes: 0,
            },
            opened: None,
            loaded: None,
            pending: Vec::with_capacity(MAX_FRAME_BYTES),
            received: Vec::with_capacity(MAX_FRAME_BYTES),
            broken: false,
            options,
        };
        session.info = session.greet(watch)?;
        Ok(session)
    }

    /// The board.
    #[must_use]
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// What the board said about itself.
    #[must_use]
    pub fn info(&self) -> &BoardInfo {
        &self.info
    }

    /// The open model's sizes.
    #[must_use]
    pub fn opened(&self) -> Option<Opened> {
        self.opened
    }

    /// Whether figures of this board are a simulator's: by its kind, or because its chip says so.
    #[must_use]
    pub fn simulated(&self) -> bool {
        self.board.simulated() || self.transport.simulated()
    }

    /// What the last [`Session::load_model`] did to the board's flash.
    #[must_use]
    pub fn loaded(&self) -> Option<Loaded> {
        self.loaded
    }

    /// The emulator's process, if there is one.
    #[must_use]
    pub fn process_id(&self) -> Option<u32> {
        self.transport.process_id()
    }

    /// Opens a board for a model: checks that the two fit before anything is written to the board, then
    /// does what [`Session::open`] and [`Session::load_model`] do.
    ///
    /// # Errors
    ///
    /// What those two fail with.
    pub fn open_for(
        board: &Board,
        runner: &Path,
        model: &[u8],
        options: Options,
        watch: Watch<'_>,
    ) -> Result<Self, DeployError> {
        RunnerImage::read(board, runner)?.check_model(board, model)?;
        let mut session = Self::open(board, runner, options, watch)?;
        session.load_model(model, watch)?;
        Ok(session)
    }

    /// Writes a model to the board, unless it is there already, and opens it. Its weights stay where they
    /// are written.
    ///
    /// # Errors
    ///
    /// When the model is damaged or the board has no room for it, which is found out before anything is
    /// written; and when the board refuses it. The next model may still be loaded.
    pub fn load_model(&mut self, model: &[u8], watch: Watch<'_>) -> Result<Opened, DeployError> {
        check_model(&self.board, model, self.info.model_bytes, self.info.workspace_bytes)?;
        self.load_unchecked(model, watch)
    }

    /// [`Session::load_model`] without the host's own check, for tests of the board's.
    ///
    /// # Errors
    ///
    /// When the board has no room for the bytes or refuses them.
    pub fn load_unchecked(&mut self, model: &[u8], watch: Watch<'_>) -> Result<Opened, DeployError> {
        let step = Step::Load;
        let board = self.board.name;
        let available = self.info.model_bytes;
        if model.len() as u64 > u64::from(available) {
            let (needed, available) = (model.len() as u64, available.into());
            return Err(DeployError::ModelTooLarge { board, needed, available });
        }
        self.opened = None;
        let timeout = self.options.reply_timeout;
        match self.exchange(&Request::CloseModel, step, timeout, watch)? {
            Response::Closed => {}
            other => return Err(unexpected(board, step, &other)),
        }
        let address = self.info.model_address;
        let programmed = match self.transport.program(address, model, watch) {
            Ok(programmed) => programmed,
            Err(error) => return Err(self.failed(error, Step::FlashModel, "writing the model")),
        };
        if programmed == Programmed::Restarted {
            self.pending.clear();
            self.info = self.greet(watch)?;
        }
        self.loaded = Some(match programmed {
            Programmed::Unchanged => Loaded::Unchanged,
            Programmed::Written | Programmed::Restarted => Loaded::Written,
        });
        self.open_model(model, watch)
    }

    /// Opens the model that the board holds, and returns its bytes.
    ///
    /// # Errors
    ///
    /// When it holds none that is whole, and when the board fails.
    pub fn open_stored(&mut self, watch: Watch<'_>) -> Result<Vec<u8>, DeployError> {
        let model = self.stored()?;
        self.open_model(&model, watch)?;
        Ok(model)
    }

    /// The whole and valid model in the board's region.
    fn stored(&mut self) -> Result<Vec<u8>, DeployError> {
        let board = self.board.name;
        let none = |reason| DeployError::NoModel { board, reason };
        let (address, room) = (self.info.model_address, self.info.model_bytes as usize);
        let mut model = vec![0; HEADER_BYTES.min(room)];
        self.peek(address, &mut model)?;
        if model.iter().all(|&byte| byte == model[0]) {
            return Err(none("the region is blank".to_owned()));
        }
        // As the file format has it: `magic`, `version`, `file_bytes`.
        let length = match model.get(..12) {
            Some([b'C', b'B', b'I', b'N', _, _, _, _, rest @ ..]) => {
                rest.try_into().map_or(0, u32::from_le_bytes) as usize
            }
            _ => return Err(none("what is there is not a .cbn model".to_owned())),
        };
        if !(HEADER_BYTES..=room).contains(&length) {
            return Err(none(format!("its header says {length} bytes where there is room for {room}")));
        }
        model.resize(length, 0);
        self.peek(address, &mut model)?;
        match Model::new_checked(&AlignedBytes::copy_of(&model)) {
            Ok(_) => Ok(model),
            Err(error) => Err(none(error.to_string())),
        }
    }

    /// Reads the board's memory.
    fn peek(&mut self, address: u32, buffer: &mut [u8]) -> Result<(), DeployError> {
        match self.transport.peek(address, buffer) {
            Ok(()) => Ok(()),
            Err(error) => Err(self.failed(error, Step::Load, "reading the model")),
        }
    }

    /// Opens the model whose bytes are in the board's region.
    fn open_model(&mut self, model: &[u8], watch: Watch<'_>) -> Result<Opened, DeployError> {
        let (step, board) = (Step::Load, self.board.name);
        let bytes = u32::try_from(model.len()).unwrap_or(u32::MAX);
        let request = Request::OpenModel { bytes };
        match self.exchange(&request, step, self.options.reply_timeout, watch) {
            Ok(Response::Opened(opened)) => {
                self.opened = Some(opened);
                Ok(opened)
            }
            Ok(other) => Err(unexpected(board, step, &other)),
            Err(DeployError::Refused { source, .. }) => Err(refused_model(board, source, model)),
            Err(error) => Err(error),
        }
    }

    /// Runs one image; `number` of `count`, counted from 1, is for messages.
    ///
    /// # Errors
    ///
    /// When no model is open, the image has the wrong size, or the board fails.
    pub fn run_image(
        &mut self,
        image: &[u8],
        number: usize,
        count: usize,
        watch: Watch<'_>,
    ) -> Result<ImageRun, DeployError> {
        let step = Step::Image { number, count };
        let board = self.board.name;
        let Some(opened) = self.opened else {
            return Err(DeployError::Misuse {
                board,
                reason: "no model is loaded; load one before running images",
            });
        };
        if image.len() != opened.input_bytes as usize {
            return Err(DeployError::ImagesInvalid {
                board,
                count: 1,
                got: image.len(),
                expected: opened.input_bytes as usize,
            });
        }
        let timeout = self.options.reply_timeout;
        let mut offset = 0;
        for data in image.chunks(MAX_CHUNK_BYTES) {
            let request = Request::WriteInput { offset, data };
            match self.exchange(&request, step, timeout, watch)? {
                Response::InputWritten => offset += data.len() as u32,
                other => return Err(unexpected(board, step, &other)),
            }
        }
        let run_timeout = self.options.run_timeout;
        let ran = match self.exchange(&Request::Run, step, run_timeout, watch)? {
            Response::Ran(ran) => ran,
            other => return Err(unexpected(board, step, &other)),
        };

        let operators = opened.operators as usize;
        let mut counts = Vec::new();
        while counts.len() < operators {
            let first = counts.len() as u32;
            match self.exchange(&Request::ReadCounts { first }, step, timeout, watch)? {
                Response::Counts { first: at, data }
                    if at == first
                        && !data.is_empty()
                        && data.len().is_multiple_of(COUNT_BYTES)
                        && data.len() / COUNT_BYTES <= operators - counts.len() =>
                {
                    let (words, _) = data.as_chunks::<COUNT_BYTES>();
                    counts.extend(words.iter().map(|word| u64::from_le_bytes(*word)));
                }
                other => return Err(unexpected(board, step, &other)),
            }
        }
        let length = opened.output_bytes as usize;
        let mut output = Vec::new();
        while output.len() < length {
            let request =
                Request::ReadOutput { offset: output.len() as u32, bytes: (length - output.len()) as u32 };
            match self.exchange(&request, step, timeout, watch)? {
                Response::Output { data } if !data.is_empty() && data.len() <= length - output.len() => {
                    output.extend_from_slice(data);
                }
                other => return Err(unexpected(board, step, &other)),
            }
        }
        Ok(ImageRun { output, counts, total: ran.total, stack_bytes: ran.stack_bytes })
    }

    /// What the board's counter says for a loop of `iterations` times
    /// [`protocol::SPIN_INSTRUCTIONS`] instructions.
    ///
    /// # Errors
    ///
    /// When the board fails.
    pub fn spin(&mut self, iterations: u32, watch: Watch<'_>) -> Result<u64, DeployError> {
        let (step, timeout) = (Step::Spin, self.options.run_timeout);
        let board = self.board.name;
        match self.exchange(&Request::Spin { iterations }, step, timeout, watch)? {
            Response::Spun { count } => Ok(count),
            other => Err(unexpected(board, step, &other)),
        }
    }

    /// Sends bytes as they are, then receives `responses` frames as they are, framing undone. For
    /// tests of the runner.
    ///
    /// # Errors
    ///
    /// When the board fails.
    pub fn raw(
        &mut self,
        bytes: &[u8],
        responses: usize,
        watch: Watch<'_>,
    ) -> Result<Vec<Vec<u8>>, DeployError> {
        let mut sent = 0;
        let mut frames = Vec::new();
        let timeout = self.options.reply_timeout;
        // Both at once: a board that can't get rid of its answers takes no more requests.
        self.wait(Step::Raw, timeout, watch, |session| {
            sent += session.transport.write(&bytes[sent..])?;
            while session.receive()? {
                let mut frame = std::mem::take(&mut session.received);
                let bytes = protocol::unframe(&mut frame).unwrap_or_default();
                frames.push(bytes.to_vec());
            }
            Ok((sent == bytes.len() && frames.len() >= responses).then_some(()))
        })?;
        Ok(frames)
    }

    /// Asks the board who it is, and checks that the two understand each other.
    fn greet(&mut self, watch: Watch<'_>) -> Result<BoardInfo, DeployError> {
        let (step, board) = (Step::Start, self.board.name);
        let timeout = self.options.start_timeout;
        self.send(&Request::Hello, step, timeout, watch)?;
        self.wait(step, timeout, watch, |session| Ok(session.receive()?.then_some(())))?;
        let bytes = match protocol::unframe(&mut self.received) {
            Ok(bytes) => bytes,
            Err(error) => return Err(garbled(board, step, error.to_string())),
        };
        // The version first: the rest of another version's answer need not make sense.
        match protocol::hello_version(bytes) {
            Some(protocol::VERSION) => {}
            Some(found) => {
                return Err(DeployError::ProtocolMismatch { board, found, expected: protocol::VERSION });
            }
            None => {}
        }
        match protocol::decode(bytes) {
            Ok(Response::Hello(hello)) if hello.board == board => Ok(BoardInfo {
                runner_version: hello.runner_version.to_owned(),
                counter: hello.counter,
                counter_resolution: hello.counter_resolution,
                model_address: hello.model_address,
                model_bytes: hello.model_bytes,
                workspace_bytes: hello.workspace_bytes,
                stack_bytes: hello.stack_bytes,
                ram_transport_bytes: hello.ram_transport_bytes,
                ram_other_bytes: hello.ram_other_bytes,
                code_bytes: hello.code_bytes,
            }),
            Ok(Response::Hello(hello)) => {
                Err(DeployError::BoardMismatch { board, found: hello.board.to_owned() })
            }
            Ok(response) => {
                Err(died(board, step, &response).unwrap_or_else(|| unexpected(board, step, &response)))
            }
            Err(error) => Err(garbled(board, step, error.to_string())),
        }
    }

    /// Sends a request and waits for its response.
    fn exchange(
        &mut self,
        request: &Request<'_>,
        step: Step,
        timeout: Duration,
        watch: Watch<'_>,
    ) -> Result<Response<'_>, DeployError> {
        let board = self.board.name;
        self.send(request, step, timeout, watch)?;
        self.wait(step, timeout, watch, |session| Ok(session.receive()?.then_some(())))?;
        let response = protocol::unframe(&mut self.received).and_then(protocol::decode);
        match response {
            Ok(Response::Error(source)) => Err(DeployError::Refused { board, step, source }),
            Ok(response) => match died(board, step, &response) {
                None => Ok(response),
                Some(error) => {
                    self.broken = true;
                    Err(error)
                }
            },
            Err(error) => {
                self.broken = true;
                Err(garbled(board, step, error.to_string()))
            }
        }
    }

    /// Sends a request.
    fn send(
        &mut self,
        request: &Request<'_>,
        step: Step,
        timeout: Duration,
        watch: Watch<'_>,
    ) -> Result<(), DeployError> {
        let board = self.board.name;
        if self.broken {
            return Err(DeployError::Misuse {
                board,
                reason: "the session has failed before; open a new one",
            });
        }
        let mut frame = [0; MAX_FRAME_BYTES];
        let length =
            protocol::encode(request, &mut frame).map_err(|error| garbled(board, step, error.to_string()))?;
        let mut sent = 0;
        self.wait(step, timeout, watch, |session| {
            sent += session.transport.write(&frame[sent..length])?;
            Ok((sent == length).then_some(()))
        })
    }

    /// Takes what has come. `true` once `received` holds a frame; what follows it stays in `pending`.
    ///
    /// A sender may open with a zero, so empty frames are passed over.
    fn receive(&mut self) -> Result<bool, TransportError> {
        loop {
            if let Some(zero) = self.pending.iter().position(|&byte| byte == 0) {
                self.received.clear();
                self.received.extend(self.pending.drain(..=zero));
                if zero > 0 {
                    return Ok(true);
                }
                continue;
            }
            // A board that babbles without a zero must not fill this machine's memory: its first
            // kilobyte is a frame that will not decode.
            if self.pending.len() >= MAX_FRAME_BYTES {
                std::mem::swap(&mut self.received, &mut self.pending);
                self.pending.clear();
                return Ok(true);
            }
            let mut buffer = [0; MAX_FRAME_BYTES];
            match self.transport.read(&mut buffer)? {
                0 => return Ok(false),
                count => self.pending.extend_from_slice(&buffer[..count]),
            }
        }
    }

    /// Tries until something comes of it, the time is up, the board is dead or the watch says stop.
    fn wait<T>(
        &mut self,
        step: Step,
        timeout: Duration,
        watch: Watch<'_>,
        mut attempt: impl FnMut(&mut Self) -> Result<Option<T>, TransportError>,
    ) -> Result<T, DeployError> {
        let board = self.board.name;
        let start = Instant::now();
        let mut watched = Duration::ZERO;
        let mut sleep = SLEEP_FIRST;
        loop {
            match attempt(self) {
                Ok(Some(value)) => return Ok(value),
                Ok(None) => {}
                Err(error) => return Err(self.failed(error, step, "talking to the board")),
            }
            let waited = start.elapsed();
            if waited < POLL_AWAKE {
                thread::yield_now();
                continue;
            }
            if let Err(error) = self.transport.check() {
                // What it said before it ended tells more than that it ended.
                if let Ok(Some(value)) = attempt(self) {
                    return Ok(value);
                }
                return Err(self.failed(error, step, "looking after the emulator"));
            }
            if waited >= timeout {
                self.broken = true;
                return Err(DeployError::Timeout { board, step, waited });
            }
            if waited - watched >= WATCH_EVERY {
                watched = waited;
                if watch(None).is_break() {
                    self.broken = true;
                    return Err(DeployError::Interrupted { board, step });
                }
            }
            thread::sleep(sleep);
            sleep = (sleep * 2).min(SLEEP_LONGEST);
        }
    }

    /// A transport's error in this session's words. The session is over.
    fn failed(&mut self, error: TransportError, step: Step, what: &'static str) -> DeployError {
        self.broken = true;
        failed(self.board.name, error, step, what)
    }
}

/// A transport's error in words that name the board and the step.
pub(crate) fn failed(
    board: &'static str,
    error: TransportError,
    step: Step,
    what: &'static str,
) -> DeployError {
    match error {
        TransportError::Memory(source) => DeployError::Io { board, step, what, source },
        TransportError::Rtt(error) => garbled(board, step, error.to_string()),
        TransportError::Ended { status, stderr } => DeployError::Exited { board, step, status, stderr },
        TransportError::Lost(source) => DeployError::ProbeLost { board, step, source },
        TransportError::Probe(source) => DeployError::ProbeFailed { board, step, source },
        TransportError::Stuck(waited) => DeployError::ProbeStuck { board, step, waited },
        TransportError::Panicked(message) => DeployError::ProbePanicked { board, step, message },
        TransportError::Flash(source) => DeployError::FlashFailed { board, step, source },
        TransportError::LockedUp => DeployError::LockedUp { board, step },
        TransportError::Interrupted => DeployError::Interrupted { board, step },
    }
}

/// Starts the emulator.
#[cfg(unix)]
fn emulate(board: &Board, image: &RunnerImage, options: &Options) -> Result<Box<dyn Transport>, DeployError> {
    Ok(Box::new(crate::qemu::Emulator::start(board, image, options)?))
}

/// The emulator shares its memory as a mapped file, in a way that is only written for Unix.
#[cfg(not(unix))]
fn emulate(
    board: &Board,
    _image: &RunnerImage,
    options: &Options,
) -> Result<Box<dyn Transport>, DeployError> {
    Err(DeployError::EmulatorNotStarted {
        board: board.name,
        program: options.qemu.to_string_lossy().into_owned(),
        source: std::io::ErrorKind::Unsupported.into(),
    })
}

/// Reaches the board through a debug probe.
#[cfg(feature = "probe")]
fn through_probe(
    board: &Board,
    image: &RunnerImage,
    options: &Options,
    watch: Watch<'_>,
) -> Result<Box<dyn Transport>, DeployError> {
    Ok(Box::new(crate::probe::ProbeTransport::open(board, image, options, watch)?))
}

#[cfg(not(feature = "probe"))]
fn through_probe(
    board: &Board,
    _image: &RunnerImage,
    _options: &Options,
    _watch: Watch<'_>,
) -> Result<Box<dyn Transport>, DeployError> {
    Err(DeployError::WithoutProbes { board: board.name })
}

/// The error in a response that says the board has halted.
fn died(board: &'static str, step: Step, response: &Response<'_>) -> Option<DeployError> {
    match *response {
        Response::Panic { line, file } => {
            Some(DeployError::Panicked { board, step, file: file.to_owned(), line })
        }
        Response::Fault { pc } => Some(DeployError::Faulted { board, step, pc }),
        Response::NotReady { what } => Some(DeployError::NotReady { board, step, what: what.to_owned() }),
        _ => None,
    }
}

fn garbled(board: &'static str, step: Step, reason: String) -> DeployError {
    DeployError::Garbled { board, step, reason }
}

fn unexpected(board: &'static str, step: Step, response: &Response<'_>) -> DeployError {
    let name = match response {
        Response::Hello(_) => "Hello",
        Response::Closed => "Closed",
        Response::Opened(_) => "Opened",
        Response::InputWritten => "InputWritten",
        Response::Ran(_) => "Ran",
        Response::Output { .. } => "Output",
        Response::Counts { .. } => "Counts",
        Response::Spun { .. } => "Spun",
        Response::Error(_) => "Error",
        Response::Panic { .. } => "Panic",
        Response::Fault { .. } => "Fault",
        Response::NotReady { .. } => "NotReady",
    };
    garbled(board, step, format!("the answer {name} makes no sense here"))
}

/// Why the board refused a model, in the words of the host's own check where that agrees.
fn refused_model(board: &'static str, reason: BoardError, model: &[u8]) -> DeployError {
    match reason {
        BoardError::ArenaTooSmall { needed, available } => {
            DeployError::ArenaTooSmall { board, needed: needed.into(), available: available.into() }
        }
        BoardError::ModelTooLarge { needed, available } => {
            DeployError::ModelTooLarge { board, needed: needed.into(), available: available.into() }
        }
        BoardError::OperatorNotBuilt { index } => {
            let bytes = AlignedBytes::copy_of(model);
            let index = index as usize;
            let Ok(model) = Model::new_checked(&bytes) else {
                return DeployError::Refused { board, step: Step::Load, source: reason };
            };
            let kind = model.operator_kind(index);
            let name = kind.map_or("an operator", |kind| kind.name());
            let operator = match (kind, model.weights(index)) {
                // Those that have a layout can be built with one and without the other.
                (Some(OperatorKind::QbConv2d | OperatorKind::BbConv2d), Some(weights)) => {
                    format!("{name} with weights in the layout {}", weights.layout.name())
                }
                _ => name.to_owned(),
            };
            DeployError::OperatorNotBuilt { board, layer: model.operator_name(index).to_owned(), operator }
        }
        BoardError::BadModel { .. } => {
            // The check wants the alignment that the board's region has.
            match Model::new_checked(&AlignedBytes::copy_of(model)) {
                Err(source) => DeployError::ModelInvalid { board, source },
                Ok(_) => DeployError::Refused { board, step: Step::Load, source: reason },
            }
        }
        _ => DeployError::Refused { board, step: Step::Load, source: reason },
    }
}

// A binding opens a session on one thread and may use it on another.
const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<Session>();
    is_send::<DeployError>();
};
