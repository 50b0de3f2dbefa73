//! What a caller may set about a session.

use std::{env, ffi::OsString, time::Duration};

/// How long to wait, for what program, and through which probe. Start from [`Options::default`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// How long the board may take to start and show its control block.
    pub start_timeout: Duration,
    /// How long the board may take to answer anything but a run.
    pub reply_timeout: Duration,
    /// How long one image may take.
    pub run_timeout: Duration,
    /// How long a debug probe may be silent: without an answer, and without progress while it flashes.
    pub probe_timeout: Duration,
    /// The emulator's program: `CBIN_NN_QEMU` where it is set, else `qemu-system-arm`.
    pub qemu: OsString,
    /// The debug probe as `VID:PID` or `VID:PID:SERIAL`; `None` takes the only one that is there. An
    /// emulated board is reached through a probe only where one is named.
    pub probe: Option<String>,
    /// The probe's clock in kHz; `None` leaves the probe's own choice.
    pub probe_khz: Option<u32>,
    /// Attach while the chip is held in reset: for firmware that turns the debug pins off.
    pub under_reset: bool,
}

impl Default for Options {
    /// Generous on purpose: a deadline is for a board that is stuck, not for one that is slow.
    fn default() -> Self {
        Self {
            start_timeout: Duration::from_secs(20),
            reply_timeout: Duration::from_secs(20),
            run_timeout: Duration::from_secs(300),
            probe_timeout: Duration::from_secs(20),
            qemu: env::var_os("CBIN_NN_QEMU")
                .filter(|program| !program.is_empty())
                .unwrap_or_else(|| "qemu-system-arm".into()),
            probe: None,
            probe_khz: None,
            under_reset: false,
        }
    }
}
