//! The emulated board: `qemu-system-arm` with a file for memory.
//!
//! QEMU maps the board's PSRAM from a file in a private temporary folder, and this process reads and
//! writes the same file: RTT at its start, the model region further on. There is no socket, no
//! semihosting and no debugger.
//!
//! The process is spawned by a thread that lives as long as the session, because Linux ties "die with
//! your parent" to the *thread* that spawned. QEMU gets a process group of its own, so that a Ctrl-C
//! at the terminal reaches this process alone, which then ends the session in order.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread::{self, JoinHandle},
};

use tempfile::TempDir;

use crate::{
    Board, DeployError, Options, Step,
    image::RunnerImage,
    memory::TargetMemory,
    rtt::Rtt,
    session::Watch,
    shared_file::SharedFile,
    transport::{Programmed, Transport, TransportError},
};

/// Address of the memory shared with the host: the machine's PSRAM.
const SHARED_BASE: u32 = 0x6000_0000;
/// Its bytes.
const SHARED_BYTES: u64 = 16 << 20;
/// How much of the end of QEMU's standard error is looked at, in bytes.
const STDERR_READ: u64 = 16 << 10;
/// How much of that an error message shows, in characters.
const STDERR_SHOWN: usize = 400;

/// A running emulator.
pub struct Emulator {
    // Dropped in this order: the process before the files it uses.
    process: Process,
    memory: SharedFile,
    rtt: Option<Rtt>,
    /// The folder of the files, until the emulator has opened them.
    folder: Option<TempDir>,
}

impl Emulator {
    /// Starts the emulator with a runner.
    pub fn start(board: &Board, runner: &RunnerImage, options: &Options) -> Result<Self, DeployError> {
        let failed =
            |what| move |source| DeployError::Io { board: board.name, step: Step::Start, what, source };
        let folder = tempfile::Builder::new()
            .prefix("cbin-nn-")
            .tempdir()
            .map_err(failed("making a temporary folder"))?;
        let open = |name: &str| {
            File::options().read(true).write(true).create_new(true).open(folder.path().join(name))
        };
        let memory = open("memory")
            .and_then(|file| SharedFile::new(file, SHARED_BASE, SHARED_BYTES))
            .map_err(failed("making the shared memory"))?;
        let stderr = open("stderr").map_err(failed("making a temporary file"))?;
        let output = stderr.try_clone().map_err(failed("making a temporary file"))?;

        // A path is the caller's, and must not be looked for in the folder; a bare name goes by PATH.
        let program = Path::new(&options.qemu);
        let program = if program.components().count() > 1 {
            program.canonicalize().map_err(|source| spawn_error(board, &options.qemu, source))?
        } else {
            program.to_owned()
        };
        let mut command = Command::new(program);
        command
            .args(["-machine", "mps2-an500,memory-backend=shared"])
            .args(["-cpu", "cortex-m7"])
            // A path relative to the folder needs no escaping, whatever the folder is called.
            .arg("-object")
            .arg(format!("memory-backend-file,id=shared,size={SHARED_BYTES},mem-path=memory,share=on"))
            .args(["-icount", "shift=0"])
            .args(["-nodefaults", "-no-user-config"])
            .args(["-display", "none", "-monitor", "none", "-serial", "none"])
            .arg("-kernel")
            .arg(&runner.path)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output);
        let process =
            Process::spawn(command, stderr).map_err(|source| spawn_error(board, &options.qemu, source))?;
        Ok(Self { process, memory, rtt: None, folder: Some(folder) })
    }

    /// Looks for the rings, until the board has shown them.
    fn attach(&mut self) -> Result<(), TransportError> {
        if self.rtt.is_none() {
            self.rtt = Rtt::attach(&mut self.memory, SHARED_BASE)?;
            if self.rtt.is_some() {
                // The board runs, so the emulator has opened all it needs. Without names the files
                // go with the last process that holds them, even if this one is killed.
                drop(self.folder.take());
            }
        }
        Ok(())
    }
}

impl Transport for Emulator {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, TransportError> {
        self.attach()?;
        match &mut self.rtt {
            Some(rtt) => rtt.read(&mut self.memory, buffer),
            None => Ok(0),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<usize, TransportError> {
        self.attach()?;
        match &mut self.rtt {
            Some(rtt) => rtt.write(&mut self.memory, bytes),
            None => Ok(0),
        }
    }

    fn check(&mut self) -> Result<(), TransportError> {
        self.process.check()
    }

    fn program(
        &mut self,
        address: u32,
        bytes: &[u8],
        _watch: Watch<'_>,
    ) -> Result<Programmed, TransportError> {
        self.memory.write(address, bytes)?;
        Ok(Programmed::Written)
    }

    fn peek(&mut self, address: u32, buffer: &mut [u8]) -> Result<(), TransportError> {
        Ok(self.memory.read(address, buffer)?)
    }

    fn process_id(&self) -> Option<u32> {
        Some(self.process.child.id())
    }
}

/// The emulator's process and the thread that spawned it.
struct Process {
    child: Child,
    stderr: File,
    /// Dropped to let the keeper go.
    release: Option<mpsc::Sender<()>>,
    keeper: Option<JoinHandle<()>>,
}

impl Process {
    fn spawn(mut command: Command, stderr: File) -> io::Result<Self> {
        command.process_group(0);
        die_with_parent(&mut command);
        let (release, released) = mpsc::channel::<()>();
        let (spawned, result) = mpsc::channel();
        let keeper = thread::Builder::new().name("cbin-nn-keeper".into()).spawn(move || {
            let _ = spawned.send(command.spawn());
            // Returns when `release` is dropped.
            let _ = released.recv();
        })?;
        let child = result.recv().unwrap_or_else(|_| Err(io::Error::other("the keeper thread ended")))?;
        Ok(Self { child, stderr, release: Some(release), keeper: Some(keeper) })
    }

    /// Fails if the process has ended.
    fn check(&mut self) -> Result<(), TransportError> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => {
                Err(TransportError::Ended { status: status.to_string(), stderr: told(&mut self.stderr) })
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SIGKILL ends a stopped process too, so the wait is short. Errors mean that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        drop(self.release.take());
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
    }
}

/// Asks Linux to kill the process when its parent dies, however that dies.
#[cfg(target_os = "linux")]
fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    // SAFETY: between fork and exec this calls prctl and getppid, which are async-signal-safe, and
    // touches no memory but its copy of `parent`.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before the call.
            if u32::try_from(libc::getppid()) != Ok(parent) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            Ok(())
        });
    }
}

/// Elsewhere an emulator whose parent was killed has to be ended by hand.
#[cfg(not(target_os = "linux"))]
fn die_with_parent(_command: &mut Command) {}

/// What a log tells, in one line: its last message of the emulator's own, which a dump of registers may
/// follow, or else its end.
fn told(log: &mut File) -> String {
    let mut bytes = Vec::new();
    let length = log.metadata().map_or(0, |metadata| metadata.len());
    // A log that can't be read is an empty one: the exit status is already being reported.
    if log.seek(SeekFrom::Start(length.saturating_sub(STDERR_READ))).is_ok() {
        let _ = log.take(STDERR_READ).read_to_end(&mut bytes);
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if let Some(message) = lines.iter().rfind(|line| line.starts_with("qemu")) {
        return message.chars().take(STDERR_SHOWN).collect();
    }
    let line = lines.join(" | ");
    let skipped = line.chars().count().saturating_sub(STDERR_SHOWN);
    line.chars().skip(skipped).collect()
}

fn spawn_error(board: &Board, program: &OsStr, source: io::Error) -> DeployError {
    let program = program.to_string_lossy().into_owned();
    if source.kind() == io::ErrorKind::NotFound {
        DeployError::EmulatorMissing { board: board.name, program }
    } else {
        DeployError::EmulatorNotStarted { board: board.name, program, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_told_in_one_line() {
        use std::io::Write;
        let mut log = tempfile::tempfile().unwrap();
        assert_eq!(told(&mut log), "");
        log.write_all("é".repeat(50_000).as_bytes()).unwrap();
        log.write_all(b"\n\n the end \n").unwrap();
        let end = told(&mut log);
        assert!(end.ends_with("é | the end") && end.chars().count() == STDERR_SHOWN, "{end}");
        log.write_all(b"qemu: fatal: Lockup\n\n R00=0 \n").unwrap();
        assert_eq!(told(&mut log), "qemu: fatal: Lockup");
    }
}
