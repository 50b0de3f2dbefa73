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
    /// What a debug probe has to know about its chip.
    pub chip: Chip,
}

/// How a board is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// It runs in an emulator on this machine; through a debug probe only where one is named.
    Emulated,
    /// It is hardware behind a debug probe.
    Probe,
}

/// A chip, as a debug probe sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Chip {
    /// probe-rs' name of the target, whose memory map and flash algorithm it brings.
    pub target: &'static str,
    /// The target's description, where it is not one of probe-rs' own.
    pub description: Option<&'static str>,
    /// Where the chip says what it is.
    pub identity: Option<Identity>,
    /// Whether the code runs from RAM, so that nothing starts it at a reset.
    pub in_ram: bool,
}

/// Registers that say what a chip is and whether it may be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Identity {
    /// Address of the identity's register.
    pub address: u32,
    /// The bits that count.
    pub mask: u32,
    /// What they must be.
    pub value: u32,
    /// Address of the register whose bits 8 to 15 are 0xAA where the flash may be read.
    pub protection: u32,
    /// Address of the 12 bytes that differ between all chips of the kind. A simulated chip has
    /// [`SIMULATED_ID`] there.
    pub unique: u32,
}

/// The unique identity of a simulated chip. Real ones are a lot's name and coordinates on a wafer, in
/// bytes that are not all letters.
pub const SIMULATED_ID: [u8; 12] = *b"SIMULATED..."; // ST's field has 96 bits

impl Board {
    /// Whether the board is simulated: its counts are instructions, not cycles.
    #[must_use]
    pub fn simulated(&self) -> bool {
        match self.kind {
            Kind::Emulated => true,
            Kind::Probe => false,
        }
    }
}

/// ST's F4 and F7 have these registers at the same addresses, the unique identity aside.
const fn stm32(device: u32, unique: u32) -> Option<Identity> {
    Some(Identity { address: 0xE004_2000, mask: 0xFFF, value: device, protection: 0x4002_3C14, unique })
}

/// The chip of two boards.
const STM32F746: Chip =
    Chip { target: "STM32F746NGHx", description: None, identity: stm32(0x449, 0x1FF0_F420), in_ram: false };

const PROBE: &str = "a debug probe (the board's own ST-Link will do), its USB cable, on Linux its udev rule";

const BOARDS: &[Board] = &[
    Board {
        name: "qemu-mps2-an500",
        description: "Cortex-M7 in QEMU; counts instructions, the same on every machine",
        kind: Kind::Emulated,
        core: "cortex-m7",
        clock_hz: None,
        needs: "qemu-system-arm (apt-get install qemu-system-arm)",
        chip: Chip {
            target: "qemu-mps2-an500",
            description: Some(include_str!("probe/qemu-mps2-an500.yaml")),
            identity: None,
            in_ram: true,
        },
    },
    Board {
        name: "stm32f746g-disco",
        description: "ST's STM32F746G Discovery: Cortex-M7, 1 MiB of flash, 320 KiB of RAM",
        kind: Kind::Probe,
        core: "cortex-m7",
        clock_hz: Some(216_000_000),
        needs: PROBE,
        chip: STM32F746,
    },
    Board {
        name: "nucleo-f746zg",
        description: "ST's Nucleo-F746ZG: the same chip",
        kind: Kind::Probe,
        core: "cortex-m7",
        clock_hz: Some(216_000_000),
        needs: PROBE,
        chip: Chip { target: "STM32F746ZGTx", ..STM32F746 },
    },
    Board {
        name: "nucleo-f446re",
        description: "ST's Nucleo-F446RE: Cortex-M4, 512 KiB of flash, 128 KiB of RAM",
        kind: Kind::Probe,
        core: "cortex-m4",
        clock_hz: Some(180_000_000),
        needs: PROBE,
        chip: Chip {
            target: "STM32F446RETx",
            description: None,
            identity: stm32(0x421, 0x1FFF_7A10),
            in_ram: false,
        },
    },
];

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
