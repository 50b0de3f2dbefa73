//! Boards behind a debug probe, through probe-rs.
//!
//! [`ProbeTransport::open`] attaches, makes sure that the chip is the board's and may be read, flashes the
//! runner where the flash holds another one, and starts it. After that a board is what an emulator is: two
//! ring buffers in memory, which `rtt.rs` reads and writes while the core runs.
//!
//! Every call of probe-rs is a job of a [`Worker`], which bounds it and catches its panics. A job that
//! fails asks the probe for one word more: that tells a probe that is gone from one that could not do
//! something, whatever the probe's kind reports.

use std::{
    env,
    error::Error as StdError,
    io,
    net::{TcpStream, ToSocketAddrs},
    ops::ControlFlow,
    time::{Duration, Instant},
};

use probe_rs::{
    CoreStatus, MemoryInterface, Permissions, Session,
    config::Registry,
    flashing::{DownloadOptions, FlashProgress, ProgressEvent, ProgressOperation},
    probe::{
        DebugProbeError, DebugProbeSelector, Probe, ProbeCreationError, WireProtocol,
        list::{Accessibility, Lister},
    },
};

use crate::{
    Board, Chip, DeployError, Event, Operation, Options, SIMULATED_ID, Step, Watch,
    image::RunnerImage,
    memory::TargetMemory,
    rtt::Rtt,
    select::{ProbeInfo, choose, network_address, network_probes},
    session::failed,
    transport::{Programmed, Transport, TransportError},
    worker::{Reporter, Worker},
};

type BoxError = Box<dyn StdError + Send + Sync>;

/// How long the list of probes may take.
const LIST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a network probe may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a core may take to halt.
const HALT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a waiting session asks the core whether it is locked up.
const CHECK_EVERY: Duration = Duration::from_millis(250);
/// Bytes that are read at once to compare them.
const COMPARED: usize = 4096;
/// Bytes that are written to RAM at once.
const WRITTEN: usize = 64 << 10;
/// Bytes of the control block's id.
const RTT_ID_BYTES: usize = 16;
/// CPUID: a word that every core has.
const CPUID: u64 = 0xE000_ED00;

/// All debug probes: those on the USB, and those on the network that `CBIN_NN_PROBES` names.
///
/// # Errors
///
/// When the USB can't be listed in time.
pub fn probes() -> Result<Vec<ProbeInfo>, DeployError> {
    let mut worker = Worker::<Held>::start().map_err(no_thread("any board"))?;
    list("any board", &mut worker, &mut ignore)
}

fn list(
    board: &'static str,
    worker: &mut Worker<Held>,
    watch: Watch<'_>,
) -> Result<Vec<ProbeInfo>, DeployError> {
    let found: Result<_, TransportError> = worker.call(LIST_TIMEOUT, watch, |_, _| {
        let all = Lister::new().list_all_with_access();
        let info = |item: probe_rs::probe::list::ProbeListItem| ProbeInfo {
            selector: DebugProbeSelector::from(&item.info).to_string(),
            name: item.info.identifier.clone(),
            accessible: item.accessibility == Accessibility::Accessible,
        };
        Ok(all.into_iter().map(info).collect::<Vec<_>>())
    });
    let mut found = found.map_err(|error| failed(board, error, Step::Attach, "listing the probes"))?;
    found.extend(network_probes(&env::var("CBIN_NN_PROBES").unwrap_or_default()));
    Ok(found)
}

/// A running board behind a probe.
pub struct ProbeTransport {
    worker: Worker<Held>,
    chip: Chip,
    image: Placement,
    silence: Duration,
    checked: Instant,
    simulated: bool,
}

/// What a restart has to know about a runner's image.
#[derive(Debug, Clone, Copy)]
struct Placement {
    /// Address of the RTT control block.
    rtt: u32,
    /// Address of the vector table.
    vectors: u32,
}

/// What the worker owns.
#[derive(Default)]
struct Held {
    session: Option<Session>,
    rtt: Option<Rtt>,
}

/// An error of a job: finished, or without board and step.
enum Failure {
    Finished(DeployError),
    Transport(TransportError),
}

impl From<TransportError> for Failure {
    fn from(error: TransportError) -> Self {
        Self::Transport(error)
    }
}

impl From<DeployError> for Failure {
    fn from(error: DeployError) -> Self {
        Self::Finished(error)
    }
}

impl Failure {
    fn at(self, board: &'static str, step: Step) -> DeployError {
        match self {
            Self::Finished(error) => error,
            Self::Transport(error) => failed(board, error, step, "driving the probe"),
        }
    }
}

fn ignore(_: Option<Event>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn no_thread(board: &'static str) -> impl Fn(io::Error) -> DeployError {
    move |source| DeployError::Io { board, step: Step::Attach, what: "starting a thread", source }
}

impl ProbeTransport {
    /// Attaches to the board's chip, flashes the runner where it is not there yet, and starts it.
    pub fn open(
        board: &Board,
        image: &RunnerImage,
        options: &Options,
        watch: Watch<'_>,
    ) -> Result<Self, DeployError> {
        let (name, chip) = (board.name, board.chip);
        let mut worker = Worker::<Held>::start().map_err(no_thread(name))?;
        let found = match options.probe.as_deref() {
            // No list has it, and the USB may not even be there.
            Some(wanted) if network_address(wanted).is_some() => Vec::new(),
            _ => list(name, &mut worker, watch)?,
        };
        let selector = choose(name, &found, options.probe.as_deref())?;
        let attaching = Attaching {
            board: name,
            chip,
            selector,
            khz: options.probe_khz,
            under_reset: options.under_reset,
        };
        let silence = options.probe_timeout;
        let simulated = worker
            .call(silence, watch, move |held, _| -> Result<bool, Failure> {
                let session = held.session.insert(attaching.attach()?);
                attaching.identify(session)
            })
            .map_err(|failure| failure.at(name, Step::Attach))?;

        let segments = image.segments.clone();
        let step = Step::FlashRunner;
        worker
            .call(silence, watch, move |held, reporter| -> Result<(), Failure> {
                Ok(held.write(&segments, step, chip.in_ram, reporter).map(drop)?)
            })
            .map_err(|failure| failure.at(name, step))?;

        let vectors = image.segments.iter().map(|(address, _)| *address).min().unwrap_or(0);
        let placement = Placement { rtt: image.rtt, vectors };
        let mut transport =
            Self { worker, chip, image: placement, silence, checked: Instant::now(), simulated };
        transport.restart(watch).map_err(|error| failed(name, error, Step::Start, "starting the runner"))?;
        Ok(transport)
    }

    /// Resets the chip and starts the runner. The control block that is there goes first: it would be
    /// taken for the new runner's.
    fn restart(&mut self, watch: Watch<'_>) -> Result<(), TransportError> {
        let (image, in_ram) = (self.image, self.chip.in_ram);
        self.worker.call(self.silence, watch, move |held, _| {
            held.rtt = None;
            held.use_session(|session| {
                let mut core = session.core(0)?;
                core.reset_and_halt(HALT_TIMEOUT)?;
                core.write(image.rtt.into(), &[0; RTT_ID_BYTES])?;
                drop(core);
                if in_ram {
                    session.prepare_running_on_ram(image.vectors.into(), 0)?;
                }
                session.core(0)?.run()
            })
        })
    }
}

impl Transport for ProbeTransport {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, TransportError> {
        let (at, room) = (self.image.rtt, buffer.len());
        let bytes = self.worker.call(self.silence, &mut ignore, move |held, _| {
            let mut bytes = vec![0; room];
            let count = held.with_rtt(at, |rtt, memory| rtt.read(memory, &mut bytes))?.unwrap_or_default();
            bytes.truncate(count);
            Ok::<_, TransportError>(bytes)
        })?;
        buffer[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<usize, TransportError> {
        let (at, bytes) = (self.image.rtt, bytes.to_owned());
        self.worker.call(self.silence, &mut ignore, move |held, _| {
            Ok(held.with_rtt(at, |rtt, memory| rtt.write(memory, &bytes))?.unwrap_or_default())
        })
    }

    fn check(&mut self) -> Result<(), TransportError> {
        if self.checked.elapsed() < CHECK_EVERY {
            return Ok(());
        }
        self.checked = Instant::now();
        let status = self.worker.call(self.silence, &mut ignore, |held, _| {
            held.use_session(|session| session.core(0)?.status())
        })?;
        if status == CoreStatus::LockedUp { Err(TransportError::LockedUp) } else { Ok(()) }
    }

    fn program(
        &mut self,
        address: u32,
        bytes: &[u8],
        watch: Watch<'_>,
    ) -> Result<Programmed, TransportError> {
        let (segments, in_ram) = ([(address, bytes.to_owned())], self.chip.in_ram);
        let written = self.worker.call(self.silence, watch, move |held, reporter| {
            held.write(&segments, Step::FlashModel, in_ram, reporter)
        })?;
        if !written {
            return Ok(Programmed::Unchanged);
        }
        if in_ram {
            return Ok(Programmed::Written);
        }
        // The flash algorithm has used the runner's RAM.
        self.restart(watch)?;
        Ok(Programmed::Restarted)
    }

    fn peek(&mut self, address: u32, buffer: &mut [u8]) -> Result<(), TransportError> {
        let length = buffer.len();
        let bytes = self.worker.call(self.silence, &mut ignore, move |held, _| {
            held.use_session(|session| {
                let mut bytes = vec![0; length];
                session.core(0)?.read(address.into(), &mut bytes)?;
                Ok(bytes)
            })
        })?;
        buffer.copy_from_slice(&bytes);
        Ok(())
    }

    fn simulated(&self) -> bool {
        self.simulated
    }
}

impl Held {
    fn session(&mut self) -> Result<&mut Session, TransportError> {
        let closed = || TransportError::Lost("the probe is not open".into());
        self.session.as_mut().ok_or_else(closed)
    }

    /// Does something with the session, and finds out what an error means.
    fn use_session<T>(
        &mut self,
        work: impl FnOnce(&mut Session) -> Result<T, probe_rs::Error>,
    ) -> Result<T, TransportError> {
        let session = self.session()?;
        work(session).map_err(|error| lost_or(session, error.into(), TransportError::Probe))
    }

    /// Does something with the rings, once the board has shown them.
    fn with_rtt<T>(
        &mut self,
        address: u32,
        work: impl FnOnce(&mut Rtt, &mut Memory<'_>) -> Result<T, TransportError>,
    ) -> Result<Option<T>, TransportError> {
        let Self { session, rtt } = self;
        let session = session.as_mut().ok_or_else(|| TransportError::Lost("the probe is not open".into()))?;
        let mut memory = Memory(session);
        let done = (|| {
            if rtt.is_none() {
                *rtt = Rtt::attach(&mut memory, address)?;
            }
            rtt.as_mut().map(|rtt| work(rtt, &mut memory)).transpose()
        })();
        done.map_err(|error| match error {
            TransportError::Memory(error) => lost_or(session, error.into(), TransportError::Probe),
            other => other,
        })
    }

    /// Writes what is not there yet, verified; whether it had to.
    fn write(
        &mut self,
        segments: &[(u32, Vec<u8>)],
        step: Step,
        in_ram: bool,
        reporter: &Reporter<'_>,
    ) -> Result<bool, TransportError> {
        let total = segments.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        let report = |operation, done| reporter.event(Event { step, operation, done, total });
        let holds = self.use_session(|session| {
            let mut core = session.core(0)?;
            let mut held = [0; COMPARED];
            let mut done = 0;
            for (address, bytes) in segments {
                for (index, piece) in bytes.chunks(COMPARED).enumerate() {
                    let held = &mut held[..piece.len()];
                    core.read(u64::from(*address) + (index * COMPARED) as u64, held)?;
                    if held != piece {
                        return Ok(false);
                    }
                    done += piece.len() as u64;
                    report(Operation::Compare, done);
                }
            }
            Ok(true)
        })?;
        if holds {
            return Ok(false);
        }
        // The rings are in the RAM that is about to be used.
        self.rtt = if in_ram && step == Step::FlashModel { self.rtt.take() } else { None };
        if in_ram {
            self.use_session(|session| {
                let mut core = session.core(0)?;
                if step == Step::FlashRunner {
                    core.halt(HALT_TIMEOUT)?;
                }
                let mut done = 0;
                for (address, bytes) in segments {
                    for (index, piece) in bytes.chunks(WRITTEN).enumerate() {
                        core.write(u64::from(*address) + (index * WRITTEN) as u64, piece)?;
                        done += piece.len() as u64;
                        report(Operation::Program, done);
                    }
                }
                Ok(())
            })?;
            return Ok(true);
        }
        let session = self.session()?;
        flash(session, segments, step, reporter)
            .map_err(|error| lost_or(session, error, TransportError::Flash))?;
        Ok(true)
    }
}

/// Erases the sectors under `segments`, programs them and reads them back.
fn flash(
    session: &mut Session,
    segments: &[(u32, Vec<u8>)],
    step: Step,
    reporter: &Reporter<'_>,
) -> Result<(), BoxError> {
    let mut loader = session.target().flash_loader();
    for (address, bytes) in segments {
        loader.add_data(u64::from(*address), bytes)?;
    }
    let mut totals = [0; 4];
    let mut done = [0; 4];
    let mut options = DownloadOptions::default();
    options.verify = true;
    options.progress = FlashProgress::new(move |event| {
        let (at, operation) = match &event {
            ProgressEvent::AddProgressBar { operation, .. }
            | ProgressEvent::Started(operation)
            | ProgressEvent::Progress { operation, .. }
            | ProgressEvent::Failed(operation)
            | ProgressEvent::Finished(operation) => match operation {
                ProgressOperation::Fill => (0, Operation::Compare),
                ProgressOperation::Erase => (1, Operation::Erase),
                ProgressOperation::Program => (2, Operation::Program),
                ProgressOperation::Verify => (3, Operation::Verify),
            },
            _ => return,
        };
        match event {
            ProgressEvent::AddProgressBar { total, .. } => totals[at] += total.unwrap_or(0),
            ProgressEvent::Progress { size, .. } => done[at] += size,
            _ => {}
        }
        reporter.event(Event { step, operation, done: done[at], total: totals[at] });
    });
    loader.commit(session, options)?;
    Ok(())
}

/// What an error means: a probe that answers has failed, one that doesn't is lost.
fn lost_or(
    session: &mut Session,
    error: BoxError,
    otherwise: fn(BoxError) -> TransportError,
) -> TransportError {
    let answer = session.core(0).and_then(|mut core| core.read_word_32(CPUID));
    if answer.is_ok() { otherwise(error) } else { TransportError::Lost(error) }
}

/// What attaching takes.
struct Attaching {
    board: &'static str,
    chip: Chip,
    selector: String,
    khz: Option<u32>,
    under_reset: bool,
}

impl Attaching {
    fn attach(&self) -> Result<Session, DeployError> {
        if let Some(address) = network_address(&self.selector) {
            // The library says the same of a closed port as of a machine without a USB.
            let (board, selector) = (self.board, self.selector.clone());
            connect(address).map_err(|error| match error.kind() {
                io::ErrorKind::PermissionDenied => DeployError::ProbePermission { board, selector },
                _ => {
                    let reason = format!("nothing answers at {address}: {error}");
                    DeployError::ProbeNotFound { board, selector, reason }
                }
            })?;
        }
        if !self.under_reset {
            return self.attach_once(false);
        }
        self.attach_once(true).or_else(|first| {
            // A chip that has never been attached to may need one normal attach before this works
            // (probe-rs issue 4113).
            drop(self.attach_once(false).map_err(|_| first)?);
            self.attach_once(true)
        })
    }

    fn attach_once(&self, under_reset: bool) -> Result<Session, DeployError> {
        let probe = self.probe().map_err(|error| self.not_opened(error))?;
        let not_attached = |source: BoxError| DeployError::Attach {
            board: self.board,
            selector: self.selector.clone(),
            source,
        };
        let mut registry = Registry::from_builtin_families();
        if let Some(description) = self.chip.description {
            registry.add_target_family_from_yaml(description).map_err(|error| not_attached(error.into()))?;
        }
        let target =
            registry.get_target_by_name(self.chip.target).map_err(|error| not_attached(error.into()))?;
        let permissions = Permissions::new();
        let session = if under_reset {
            probe.attach_under_reset_with_registry(target, permissions, &registry)
        } else {
            probe.attach_with_registry(target, permissions, &registry)
        };
        session.map_err(|error| not_attached(error.into()))
    }

    fn probe(&self) -> Result<Probe, DebugProbeError> {
        let selector: DebugProbeSelector = self
            .selector
            .parse()
            .map_err(|_| DebugProbeError::ProbeCouldNotBeCreated(ProbeCreationError::NotFound))?;
        let mut probe = Lister::new().open(selector)?;
        probe.select_protocol(WireProtocol::Swd)?;
        if let Some(khz) = self.khz {
            probe.set_speed(khz)?;
        }
        Ok(probe)
    }

    fn not_opened(&self, error: DebugProbeError) -> DeployError {
        let (board, selector) = (self.board, self.selector.clone());
        let mut cause: Option<&(dyn StdError + 'static)> = Some(&error);
        while let Some(one) = cause {
            let denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
            if one.downcast_ref::<io::Error>().is_some_and(denied) {
                return DeployError::ProbePermission { board, selector };
            }
            cause = one.source();
        }
        match error {
            DebugProbeError::ProbeCouldNotBeCreated(ProbeCreationError::NotFound) => {
                DeployError::ProbeNotFound { board, selector, reason: "it is gone".to_owned() }
            }
            error => DeployError::Attach { board, selector, source: error.into() },
        }
    }

    /// Checks that the chip is the board's and may be read; whether it says that it is simulated.
    fn identify(&self, session: &mut Session) -> Result<bool, Failure> {
        let Some(identity) = self.chip.identity else {
            return Ok(false);
        };
        let mut unique = [0; SIMULATED_ID.len()];
        let mut read = || -> Result<(u32, u32), probe_rs::Error> {
            let mut core = session.core(0)?;
            let found = core.read_word_32(identity.address.into())? & identity.mask;
            // What follows is at this address in the board's chip alone.
            if found != identity.value {
                return Ok((found, 0));
            }
            core.read(identity.unique.into(), &mut unique)?;
            Ok((found, core.read_word_32(identity.protection.into())?))
        };
        let (found, protection) =
            read().map_err(|error| lost_or(session, error.into(), TransportError::Probe))?;
        let board = self.board;
        if found != identity.value {
            return Err(DeployError::WrongChip { board, found, expected: identity.value }.into());
        }
        match protection >> 8 & 0xFF {
            0xAA => Ok(unique == SIMULATED_ID),
            byte => {
                let level = if byte == 0xCC { 2 } else { 1 };
                Err(DeployError::ReadProtected { board, level }.into())
            }
        }
    }
}

/// Connects to a network probe, to know that it is there.
fn connect(address: &str) -> io::Result<()> {
    let mut result = Err(io::ErrorKind::AddrNotAvailable.into());
    for address in address.to_socket_addrs()? {
        result = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).map(drop);
        if result.is_ok() {
            break;
        }
    }
    result
}

/// The chip's memory through the probe, while the core runs.
struct Memory<'a>(&'a mut Session);

impl TargetMemory for Memory<'_> {
    fn read(&mut self, address: u32, buffer: &mut [u8]) -> io::Result<()> {
        let mut core = self.0.core(0).map_err(io::Error::other)?;
        core.read(address.into(), buffer).map_err(io::Error::other)
    }

    fn write(&mut self, address: u32, bytes: &[u8]) -> io::Result<()> {
        let mut core = self.0.core(0).map_err(io::Error::other)?;
        core.write(address.into(), bytes).map_err(io::Error::other)
    }

    fn read_word(&mut self, address: u32) -> io::Result<u32> {
        let mut core = self.0.core(0).map_err(io::Error::other)?;
        core.read_word_32(address.into()).map_err(io::Error::other)
    }

    fn write_word(&mut self, address: u32, word: u32) -> io::Result<()> {
        let mut core = self.0.core(0).map_err(io::Error::other)?;
        core.write_word_32(address.into(), word).map_err(io::Error::other)
    }
}
