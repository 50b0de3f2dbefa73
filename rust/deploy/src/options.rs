//! What a caller may set about a session.

use std::{env, ffi::OsString, time::Duration};

/// How long to wait, and for what program. Start from [`Options::default`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// How long the board may take to start and show its control block.
    pub start_timeout: Duration,
    /// How long the board may take to answer anything but a run.
    pub reply_timeout: Duration,
    /// How long one image may take.
    pub run_timeout: Duration,
    /// The emulator's program: `CBIN_NN_QEMU` where it is set, else `qemu-system-arm`.
    pub qemu: OsString,
}

impl Default for Options {
    /// Generous on purpose: a deadline is for a board that is stuck, not for one that is slow.
    fn default() -> Self {
        Self {
            start_timeout: Duration::from_secs(20),
            reply_timeout: Duration::from_secs(20),
            run_timeout: Duration::from_secs(300),
            qemu: env::var_os("CBIN_NN_QEMU")
                .filter(|program| !program.is_empty())
                .unwrap_or_else(|| "qemu-system-arm".into()),
        }
    }
}
