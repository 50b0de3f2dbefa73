//! The emulator, the runner and how to open them.
#![allow(dead_code, reason = "each test file uses a part")]

use std::{
    env,
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use cbin_nn_deploy::{DeployError, Event, Options, Session, board};

pub const BOARD: &str = "qemu-mps2-an500";

/// The runner's image: the packaged one, or else a fresh build.
fn runner() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    [
        format!("firmware/target/thumbv7em-none-eabihf/release/{BOARD}"),
        format!("python/cbin_nn/boards/{BOARD}.elf"),
    ]
    .iter()
    .map(|path| root.join(path))
    .find(|path| path.exists())
}

/// What the tests need, or `None` with the reason printed.
pub fn needs() -> Option<PathBuf> {
    let qemu = Options::default().qemu;
    let missing = if Command::new(&qemu).arg("--version").output().is_err() {
        format!("{qemu:?} is not installed (apt-get install qemu-system-arm)")
    } else if let Some(runner) = runner() {
        return Some(runner);
    } else {
        "there is no runner (make firmware)".to_owned()
    };
    if env::var_os("CBIN_NN_REQUIRE_ALL").is_some_and(|value| value == "1") {
        panic!("CBIN_NN_REQUIRE_ALL=1, and {missing}");
    }
    eprintln!("skipped: {missing}");
    None
}

pub fn go_on(_: Option<Event>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

pub fn open(runner: &Path, options: Options) -> Result<Session, DeployError> {
    Session::open(board(BOARD)?, runner, options, &mut go_on)
}

/// Options whose deadlines a test can wait for.
pub fn short() -> Options {
    let mut options = Options::default();
    options.reply_timeout = Duration::from_millis(1500);
    options.run_timeout = Duration::from_millis(1500);
    options
}

/// Sends a signal.
pub fn signal(process: u32, name: &str) {
    let status = Command::new("kill").args([name, &process.to_string()]).status();
    assert!(status.unwrap().success());
}
