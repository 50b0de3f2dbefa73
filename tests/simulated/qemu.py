"""QEMU's mps2-an500 for the simulated probe, through QEMU's gdb stub.

The PSRAM is a file that this process maps too, so the traffic of RTT does not stop the core; the rest of the
memory and the registers are reached through the stub, which needs the core stopped. QEMU drops what the stub
writes to the system control space, so such a store is executed by the core itself.
"""

from __future__ import annotations

import mmap
import os
import select
import shutil
import socket
import struct
import subprocess
import tempfile
from pathlib import Path

from .cortexm import MSP, PSP, XPSR, MemoryFault

PSRAM, PSRAM_BYTES = 0x60000000, 16 << 20
#: A place for a few instructions, far from what a runner uses.
SCRATCH = 0x203FF000
PROGRAM = os.environ.get("CBIN_NN_QEMU") or "qemu-system-arm"


def available() -> bool:
    """Whether the emulator is installed."""
    return shutil.which(PROGRAM) is not None


class Qemu:
    """A core in QEMU. `Emulated` in cortexm.py says what the methods are."""

    def __init__(self) -> None:
        self.running = self.locked_up = False
        self._folder = tempfile.TemporaryDirectory(prefix="cbin-nn-test-")
        shared = Path(self._folder.name) / "memory"
        shared.write_bytes(b"")
        os.truncate(shared, PSRAM_BYTES)
        with shared.open("r+b") as file:
            self._psram = mmap.mmap(file.fileno(), PSRAM_BYTES)
        stub, theirs = socket.socketpair()
        backend = f"memory-backend-file,id=shared,size={PSRAM_BYTES},mem-path={shared},share=on"
        command = [PROGRAM, "-machine", "mps2-an500,memory-backend=shared", "-object", backend]
        command += ["-cpu", "cortex-m7", "-icount", "shift=0", "-nodefaults", "-no-user-config", "-S"]
        command += ["-display", "none", "-monitor", "none", "-serial", "none"]
        # The stub's connection is a socket that only these two processes have: no port, and QEMU ends
        # with this one, whose end of the socket closes.
        command += ["-chardev", f"socket,id=gdb,fd={theirs.fileno()}", "-gdb", "chardev:gdb"]
        self._process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            preexec_fn=_die_with_parent,
        )
        theirs.close()
        stub.settimeout(20)
        self._stub = stub
        self._received = b""
        self._breakpoints: set[int] = set()
        self._ask("qSupported:xmlRegisters=arm")
        # Without this the stub has other numbers for the registers.
        self._ask("qXfer:features:read:target.xml:0,ffb")
        self._ask("?")

    def close(self) -> None:
        """End QEMU."""
        self._process.kill()
        self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()
        self._stub.close()
        self._psram.close()
        self._folder.cleanup()

    # The stub's protocol

    def _send(self, packet: str) -> None:
        data = packet.encode()
        self._stub.sendall(b"$" + data + b"#%02x" % (sum(data) & 0xFF))

    def _packet(self) -> str | None:
        """The next packet of what has come, if it is whole."""
        start = self._received.find(b"$")
        end = self._received.find(b"#", start)
        if not 0 <= start < end or len(self._received) < end + 3:
            return None
        packet = self._received[start + 1 : end]
        self._received = self._received[end + 3 :]
        self._stub.sendall(b"+")
        return packet.decode()

    def _more(self) -> None:
        data = self._stub.recv(1 << 16)
        if not data:
            raise MemoryFault("QEMU has ended")
        self._received += data

    def _receive(self) -> str:
        while (packet := self._packet()) is None:
            self._more()
        return packet

    def _ask(self, packet: str) -> str:
        self._send(packet)
        return self._receive()

    def _pausing(self) -> bool:
        """Stop a running core for an access; whether it has to go on afterwards."""
        was = self.running
        self.stop()
        return was

    # The core

    def run(self, breakpoints: set[int]) -> None:
        for address in self._breakpoints - breakpoints:
            self._ask(f"z1,{address:x},2")
        for address in breakpoints - self._breakpoints:
            self._ask(f"Z1,{address:x},2")
        self._breakpoints = set(breakpoints)
        # QEMU aborts on a lock-up, so a core without a vector table is not let run at all.
        self.locked_up = not self.register(XPSR) >> 24 & 1
        if not self.locked_up:
            self._send("c")
            self.running = True

    def stop(self) -> None:
        if self.running:
            self._stub.sendall(b"\x03")
            self._receive()
            self.running = False

    def step(self) -> None:
        self._ask("s")

    def advance(self) -> None:
        """Wait a moment, and take notice of a core that has stopped."""
        if not self.running:
            return
        if select.select([self._stub], [], [], 0.0005)[0]:
            self._more()
        if self._packet() is not None:
            self.running = False

    def reset(self) -> None:
        self._ask("qRcmd," + b"system_reset".hex())
        self.locked_up = False

    def _execute(self, *code: int, r0: int = 0, r1: int = 0) -> int:
        """Have the stopped core execute a few half-words of Thumb code; R0 afterwards."""
        kept = {number: self.register(number) for number in (0, 1, 15, XPSR)}
        self.write(SCRATCH, struct.pack(f"<{len(code)}H", *code))
        values = {0: r0, 1: r1, 15: SCRATCH, XPSR: 1 << 24}
        for number, value in values.items():
            self.set_register(number, value)
        for _ in range(8):
            if not SCRATCH <= self.register(15) < SCRATCH + 2 * len(code):
                break
            self.step()
        result = self.register(0)
        for number, value in kept.items():
            self.set_register(number, value)
        return result

    # Memory and registers, from the probe

    def read(self, address: int, length: int) -> bytes:
        offset = address - PSRAM
        if 0 <= offset <= PSRAM_BYTES - length:
            return self._psram[offset : offset + length]
        going_on = self._pausing()
        try:
            data = b""
            while len(data) < length:
                answer = self._ask(f"m{address + len(data):x},{min(length - len(data), 1024):x}")
                if answer.startswith("E"):
                    raise MemoryFault(hex(address))
                data += bytes.fromhex(answer)
            return data
        finally:
            if going_on:
                self.run(self._breakpoints)

    def write(self, address: int, data: bytes) -> None:
        offset = address - PSRAM
        if 0 <= offset <= PSRAM_BYTES - len(data):
            if len(data) == 4 and not offset % 4:
                # One store: the core must not see half of a ring's offset.
                with memoryview(self._psram) as view, view.cast("I") as words:
                    words[offset // 4] = int.from_bytes(data, "little")
            else:
                self._psram[offset : offset + len(data)] = data
            return
        going_on = self._pausing()
        try:
            if address >= 0xE0000000:
                self._execute(0x6001, r0=address, r1=int.from_bytes(data, "little"))  # str r1, [r0]
                return
            for start in range(0, len(data), 1024):
                piece = data[start : start + 1024]
                if self._ask(f"M{address + start:x},{len(piece):x}:{piece.hex()}") != "OK":
                    raise MemoryFault(hex(address))
        finally:
            if going_on:
                self.run(self._breakpoints)

    def register(self, number: int) -> int:
        if number in (MSP, PSP):
            return self._execute(0xF3EF, 0x8000 | number - 9)  # mrs r0, msp or psp
        if number > XPSR:
            return 0
        answer = self._ask(f"p{25 if number == XPSR else number:x}")
        return int.from_bytes(bytes.fromhex(answer)[:4], "little")

    def set_register(self, number: int, value: int) -> None:
        if number in (MSP, PSP):
            self._execute(0xF380, 0x8800 | number - 9, r0=value)  # msr msp or psp, r0
        elif number <= XPSR:
            value &= ~1 if number == 15 else ~0
            self._ask(f"P{25 if number == XPSR else number:x}={struct.pack('<I', value).hex()}")


def _die_with_parent() -> None:
    """On Linux: an orphan would spin at full load."""
    import ctypes

    ctypes.CDLL(None).prctl(1, 9)
