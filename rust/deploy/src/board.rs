//! The boards, in one table.

use crate::DeployError;

/// A board that this crate can run models on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Board {
    /// What users call it.
    pub name: &'static str,
    /// One line about it.
    pub description: &'static str,
    /// How it is reached.
    pub kind: Kind,
    /// Its processor core.
    pub core: &'static str,
    /// Its clock in Hz; `None` for an emulated board, whose figures are never times.
    pub clock_hz: Option<u32>,
    /// What must be there to use it, with the command that brings it.
    pub needs: &'static str,
}

/// How a board is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// It runs in an emulator on this machine.
    Emulated,
}

impl Board {
    /// Whether the board is simulated: its counts are instructions, not cycles.
    #[must_use]
    pub fn simulated(&self) -> bool {
        match self.kind {
            Kind::Emulated => true,
        }
    }
}

const BOARDS: &[Board] = &[Board {
    name: "qemu-mps2-an500",
    description: "Cortex-M7 in QEMU; counts instructions, the same on every machine",
    kind: Kind::Emulated,
    core: "cortex-m7",
    clock_hz: None,
    needs: "qemu-system-arm (apt-get install qemu-system-arm)",
}];

/// All boards.
#[must_use]
pub fn boards() -> &'static [Board] {
    BOARDS
}

/// The board of that name.
pub fn board(name: &str) -> Result<&'static Board, DeployError> {
    BOARDS.iter().find(|board| board.name == name).ok_or_else(|| DeployError::UnknownBoard {
        name: name.to_owned(),
        known: BOARDS.iter().map(|board| board.name).collect::<Vec<_>>().join(", "),
    })
}
