"""The debug registers of a Cortex-M (ARMv7-M Architecture Reference Manual, part C) over an emulated core."""

from __future__ import annotations

import struct
from typing import Protocol

DHCSR, DCRSR, DCRDR, DEMCR = 0xE000EDF0, 0xE000EDF4, 0xE000EDF8, 0xE000EDFC
DFSR, AIRCR = 0xE000ED30, 0xE000ED0C
FP_CTRL, FP_COMP = 0xE0002000, 0xE0002008
SYSTEM = 0xE0000000

C_DEBUGEN, C_HALT, C_STEP = 1, 2, 4
VC_CORERESET = 1
#: DCRSR numbers 0 to 15 as R0 to R15, and these.
XPSR, MSP, PSP = 16, 17, 18
#: Comparators of the flash patch unit.
COMPARATORS = 8


class MemoryFault(Exception):
    """The core's bus answers an access with an error."""


class Emulated(Protocol):
    """An emulated core and its memory; stopped after its reset until it is told to run."""

    #: True while it runs.
    running: bool
    #: It can't go on: no vector table, or a fault in the fault handler.
    locked_up: bool

    def read(self, address: int, length: int) -> bytes: ...
    def write(self, address: int, data: bytes) -> None: ...
    def register(self, number: int) -> int: ...
    def set_register(self, number: int, value: int) -> None: ...
    def run(self, breakpoints: set[int]) -> None: ...
    def step(self) -> None: ...
    def stop(self) -> None: ...
    def advance(self) -> None: ...
    def reset(self) -> None: ...


class CortexM:
    """What a memory access port reaches: the debug registers, and the emulated core for all else."""

    def __init__(self, core: Emulated) -> None:
        self.core = core
        self.power_on()

    def power_on(self) -> None:
        """As after a power-on reset: no debugger, and the core running."""
        self.control = 0
        self.halted = False
        self.was_reset = True
        self.demcr = self.dfsr = self.dcrdr = 0
        self.comparators = [0] * COMPARATORS
        self.patching = False
        self.core.reset()
        self.core.run(set())

    def advance(self) -> None:
        """Let a running core go on for a moment."""
        self.core.advance()
        self._look()

    def _look(self) -> None:
        """Take notice of a core that has stopped by itself, at a breakpoint."""
        if not self.halted and not self.core.running and not self.core.locked_up:
            self._halt(2)

    def _halt(self, reason: int) -> None:
        self.core.stop()
        self.core.locked_up = False
        self.halted = True
        self.control |= C_HALT
        self.dfsr |= reason

    def _resume(self) -> None:
        enabled = {word & ~3 | (word >> 30 & 2) for word in self.comparators if word & 1}
        self.halted = False
        self.core.run(enabled if self.patching else set())

    def reset(self) -> None:
        """A system reset; the core halts at its first instruction where DEMCR asks for it."""
        self.core.stop()
        self.core.reset()
        self.was_reset = True
        self.patching = False
        if self.demcr & VC_CORERESET and self.control & C_DEBUGEN:
            self._halt(8)
        else:
            self.control &= ~C_HALT
            self._resume()

    def read(self, address: int, length: int) -> bytes:
        """Read memory, or registers word by word."""
        if address < SYSTEM or address % 4 or length % 4:
            return self.core.read(address, length)
        words = (self._read_word(address + offset) for offset in range(0, length, 4))
        return b"".join(struct.pack("<I", word) for word in words)

    def write(self, address: int, data: bytes) -> None:
        """Write memory, or registers word by word."""
        if address < SYSTEM or address % 4 or len(data) % 4:
            self.core.write(address, data)
            return
        for offset in range(0, len(data), 4):
            self._write_word(address + offset, int.from_bytes(data[offset : offset + 4], "little"))

    def _read_word(self, address: int) -> int:
        if address == DHCSR:
            self._look()
            state = self.control & 0xF | 1 << 16 | self.halted << 17
            state |= self.core.locked_up << 19 | self.was_reset << 25
            self.was_reset = False
            return state
        if FP_COMP <= address < FP_COMP + 4 * COMPARATORS:
            return self.comparators[(address - FP_COMP) // 4]
        if address == FP_CTRL:
            return 0x10000000 | COMPARATORS << 4 | self.patching
        simple = {DCRDR: self.dcrdr, DEMCR: self.demcr, DFSR: self.dfsr}
        if address in simple:
            return simple[address]
        return int.from_bytes(self.core.read(address, 4), "little")

    def _write_word(self, address: int, word: int) -> None:
        if address == DHCSR:
            if word >> 16 == 0xA05F:
                self._set_control(word & 0xF)
        elif address == DCRSR:
            self._transfer(word)
        elif address == DCRDR:
            self.dcrdr = word
        elif address == DEMCR:
            self.demcr = word
        elif address == DFSR:
            self.dfsr &= ~word
        elif address == AIRCR:
            if word >> 16 == 0x05FA and word & 4:
                self.reset()
        elif address == FP_CTRL:
            if word & 2:
                self.patching = bool(word & 1)
        elif FP_COMP <= address < FP_COMP + 4 * COMPARATORS:
            self.comparators[(address - FP_COMP) // 4] = word
        else:
            self.core.write(address, struct.pack("<I", word))

    def _set_control(self, control: int) -> None:
        self._look()
        self.control = control if control & C_DEBUGEN else 0
        if control & C_DEBUGEN and control & C_HALT:
            if not self.halted:
                self._halt(1)
        elif control & C_DEBUGEN and control & C_STEP:
            if self.halted:
                self.core.step()
                self._halt(1)
        elif self.halted:
            self._resume()

    def _transfer(self, word: int) -> None:
        number = word & 0x7F
        if word >> 16 & 1:
            self.core.set_register(number, self.dcrdr)
        else:
            self.dcrdr = self.core.register(number)
