"""A Black Magic Probe on the network: its remote protocol (version 1) in front of an emulated Cortex-M.

probe-rs speaks it over TCP. Versions 3 and later swap the bytes of some writes, so version 1 is offered.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections.abc import Callable

from .cortexm import CortexM, MemoryFault

VENDOR_PRODUCT = "1d50:6018"


class Unplugged(Exception):
    """Raised by a test's hook: the connection closes, and stays closed until `plug_in`."""


class DebugPort:
    """A serial-wire debug port (DPv2) with one access port, an AHB-AP, as a Cortex-M4 or M7 has it."""

    def __init__(self, target: CortexM) -> None:
        self.target = target
        self.select = self.control = self.tar = 0
        self.csw = 0x43000042

    def access_port(self, port: int, address: int, value: int | None = None) -> int:
        """Read a register of an access port, or write `value` to it."""
        if port:
            return 0
        if value is None:
            registers = {0x00: self.csw, 0x04: self.tar, 0xF8: 0xE00FD003, 0xFC: 0x74770001}
            if address != 0x0C:
                return registers.get(address, 0)
            word = int.from_bytes(self.target.read(self.tar & ~3, 4), "little")
            self._increment()
            return word
        if address == 0x00:
            self.csw = value | 0x40
        elif address == 0x04:
            self.tar = value
        elif address == 0x0C:
            size = 1 << (self.csw & 3)
            self.target.write(self.tar, struct.pack("<I", value)[self.tar & 3 :][:size])
            self._increment()
        return 0

    def _increment(self) -> None:
        if self.csw & 0x30:
            self.tar += 1 << (self.csw & 3)

    def debug_port(self, address: int, value: int | None = None) -> int:
        """Read a register of the debug port, or write `value` to it."""
        address &= 0xC
        if value is None:
            # CTRL/STAT: power-up requests are acknowledged at once.
            status = self.control | (self.control & 0x50000000) << 1
            return {0x0: 0x5BA02477, 0x4: 0 if self.select & 0xF else status}.get(address, 0)
        if address == 0x4:
            self.control = value & 0x50000FFF
        elif address == 0x8:
            self.select = value
        return 0

    def transfer(self, ap: int, address: int, value: int | None = None) -> int:
        """A transfer as the wire has it, with the bank from SELECT."""
        if ap:
            return self.access_port(self.select >> 24, self.select & 0xF0 | address, value)
        return self.debug_port(address, value)


class Wire:
    """The serial wire bit by bit: what probe-rs sends so for a line reset and for its first transfers."""

    def __init__(self, port: DebugPort) -> None:
        self.port = port
        self.ones = 0
        self.locked = True
        self.bits: list[int] = []
        self.answer: list[int] = []
        self.write: tuple[int, int] | None = None

    def put(self, value: int, count: int) -> None:
        """Bits from the host, least significant first."""
        for index in range(count):
            bit = value >> index & 1
            if self.locked:
                # A line reset is 50 ones, then a zero.
                if not bit and self.ones >= 50:
                    self.locked, self.bits = False, []
                self.ones = self.ones + 1 if bit else 0
            elif self.write is not None:
                self._data(bit)
            elif self.bits or bit:
                self.ones = self.ones + 1 if bit else 0
                self._request(bit)

    def _request(self, bit: int) -> None:
        self.bits.append(bit)
        if len(self.bits) < 8:
            return
        _, ap, reading, a2, a3, parity, stop, park = self.bits
        self.bits = []
        if stop or not park or parity != ap ^ reading ^ a2 ^ a3:
            self.locked = True
            return
        address = a2 << 2 | a3 << 3
        self.answer = [1, 0, 0]
        if reading:
            word = self.port.transfer(ap, address)
            self.answer += [word >> index & 1 for index in range(32)] + [word.bit_count() & 1, 0]
        else:
            self.write = (ap, address)

    def _data(self, bit: int) -> None:
        self.bits.append(bit)
        if len(self.bits) == 33:
            word = sum(bit << index for index, bit in enumerate(self.bits[:32]))
            assert self.write is not None
            self.port.transfer(*self.write, word)
            self.bits, self.write = [], None

    def get(self, count: int) -> int:
        """Bits to the host; the line idles high."""
        return sum((self.answer.pop(0) if self.answer else 1) << index for index in range(count))


class BlackMagicProbe:
    """A server on a thread of its own. `command`, a test's hook, is called before each command.

    Whatever a test does to the target, it does in that hook: the target belongs to the server's thread.
    """

    def __init__(self, target: CortexM, port: int = 0) -> None:
        self.target = target
        self.command: Callable[[str], None] = lambda command: None
        self.plugged = True
        #: Cleared by a test: the probe takes what comes and answers nothing.
        self.answering = threading.Event()
        self.answering.set()
        self.khz = 4000
        self.in_reset = False
        self._ended = False
        self._server = socket.create_server(("127.0.0.1", port))
        self._server.settimeout(0.05)
        self.port = self._server.getsockname()[1]
        self.selector = f"{VENDOR_PRODUCT}:127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._serve, name="simulated-probe", daemon=True)
        self._thread.start()

    def __enter__(self) -> BlackMagicProbe:
        return self

    def __exit__(self, *error: object) -> None:
        self._ended = True
        self.answering.set()
        self._thread.join(timeout=10)
        self._server.close()

    def _serve(self) -> None:
        while not self._ended:
            try:
                connection, _ = self._server.accept()
            except TimeoutError:
                self.target.advance()
                continue
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                try:
                    if self.plugged:
                        self._talk(connection)
                except Unplugged:
                    self.plugged = False
                except ConnectionError:
                    pass

    def plug_in(self) -> None:
        """Undo an `Unplugged`."""
        self.plugged = True

    def _talk(self, connection: socket.socket) -> None:
        port = DebugPort(self.target)
        wire = Wire(port)
        pending = b""
        while not self._ended:
            readable, _, _ = select.select([connection], [], [], 0 if self.target.core.running else 0.05)
            if not readable:
                self.target.advance()
                continue
            data = connection.recv(1 << 16)
            if not data:
                return
            *packets, pending = (pending + data).split(b"#")
            for packet in packets:
                command = packet.rpartition(b"!")[2].decode()
                if not command.strip(" +"):
                    continue
                self.command(command)
                while not self.answering.is_set():
                    self.answering.wait(0.05)
                if self._ended:
                    return
                if command == "SS":
                    wire = Wire(port)
                connection.sendall(b"&" + self._answer(command, port, wire).encode() + b"#")

    def _answer(self, command: str, port: DebugPort, wire: Wire) -> str:
        try:
            return self._do(command, port, wire)
        except MemoryFault:
            return "E2"

    def _do(self, command: str, port: DebugPort, wire: Wire) -> str:
        def number(start: int, length: int) -> int:
            return int(command[start : start + length], 16)

        def little(word: int) -> str:
            return struct.pack("<I", word).hex()

        match command[:2]:
            case "GA":
                return "Ksimulated probe"
            case "HC":
                return "K1"
            case "GF":
                self.khz = number(2, 8) // 1000
                return "K0"
            case "Gf":
                return f"K{self.khz:x}"
            case "GZ":
                if self.in_reset and command[2] == "0":
                    self.target.reset()
                self.in_reset = command[2] == "1"
                return "K0"
            case "GV" | "SS":
                return "K0"
            case "So":
                wire.put(int(command[4:], 16), number(2, 2))
                return "K0"
            case "Si":
                return f"K{wire.get(number(2, 2)):x}"
            case "Hd":
                return "K" + little(port.debug_port(number(6, 4)))
            case "HL":
                port.transfer(0, number(6, 4), number(10, 8))
                return "K0"
            case "Ha":
                return "K" + little(port.access_port(number(4, 2), number(6, 4) & 0xFF))
            case "HA":
                port.access_port(number(4, 2), number(6, 4) & 0xFF, number(10, 8))
                return "K0"
            case "HM":
                return "K" + self.target.read(number(14, 8), number(22, 8)).hex()
            case "Hm":
                self.target.write(number(16, 8), bytes.fromhex(command[32:]))
                return "K0"
        return "E1"


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until something is so, or fail."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
