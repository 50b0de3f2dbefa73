//! Boards that run cbin-nn models: open one, load a model, run images, read the counts back.
//!
//! # What
//!
//! [`boards`] lists the boards, [`Session`] is a conversation with one of them, and [`bench()`] is the
//! whole of it in one call: the shape that a binding wants. A board runs one prebuilt image for any
//! model; this crate starts the board with that image, writes the model into the board's memory and
//! speaks `cbin-nn-protocol` with it.
//!
//! # How it is layered
//!
//! ```text
//! bench ─► Session         requests, deadlines, steps, errors
//!            └─ Transport    bytes to and from the board, and whether it still lives
//!                 └─ rtt       two ring buffers in the board's memory
//!                      └─ TargetMemory    reads and writes at an address
//! ```
//!
//! The emulated board implements the lower two over a file that QEMU maps too, a board behind a debug
//! probe over probe-rs (feature `probe`), whose every call runs on a thread of its own under a watchdog.
//!
//! # Invariants
//!
//! * Every wait has a deadline, and looks every few milliseconds whether the board still lives.
//! * Nothing outlives a [`Session`]: dropping it ends the emulator and removes its files, and on Linux
//!   the kernel ends the emulator even if this process is killed.
//! * What a board sends is checked like any other input: no answer can make this crate panic.
//! * Addresses and sizes are in bytes, durations are [`std::time::Duration`]s, counts are in the unit
//!   of [`BoardInfo::counter`].

mod bench;
mod board;
mod error;
mod image;
mod memory;
mod options;
#[cfg(feature = "probe")]
mod probe;
#[cfg(unix)]
mod qemu;
mod rtt;
#[cfg(any(feature = "probe", test))]
mod select;
mod session;
#[cfg(unix)]
mod shared_file;
mod transport;
#[cfg(any(feature = "probe", test))]
mod worker;

pub use bench::{BenchRun, Progress, bench, run_images};
pub use board::{Board, Chip, Identity, Kind, SIMULATED_ID, board, boards};
pub use cbin_nn_protocol::{BoardError, Counter, Opened, SPIN_INSTRUCTIONS};
pub use error::{DeployError, Step};
pub use image::{RunnerImage, check_model};
pub use memory::TargetMemory;
pub use options::Options;
#[cfg(feature = "probe")]
pub use probe::probes;
pub use rtt::{Rtt, RttError};
#[cfg(feature = "probe")]
pub use select::ProbeInfo;
pub use session::{BoardInfo, Event, ImageRun, Loaded, Operation, Session, Watch};
pub use transport::{Programmed, Transport, TransportError};

/// The examples of the README run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
