"""STM32s on unicorn: the core, the memory map, and the flash controller, on which ST's flash algorithm runs.

Unicorn has no interrupts and no caches and models no timing. What the tests need of exceptions is made here:
an entry without a return, for SysTick and for faults. The cycle counter says in DWT_CTRL that it is absent,
and the chip's unique identity that it is simulated: no figure of this chip can be taken for a measurement.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import unicorn as uc
from unicorn import arm_const as arm

from .cortexm import MSP, PSP, XPSR, MemoryFault

KIB = 1024
#: The flash controller, and what else of the peripherals is more than a register that keeps its value.
FLASH_KEYR, FLASH_SR, FLASH_CR, FLASH_OPTCR = 0x40023C04, 0x40023C0C, 0x40023C10, 0x40023C14
RCC_CR, RCC_CFGR, PWR_CR1, PWR_CSR1 = 0x40023800, 0x40023808, 0x40007000, 0x40007004
SYST_CSR, SYST_RVR, CPUID, VTOR, MVFR0 = 0xE000E010, 0xE000E014, 0xE000ED00, 0xE000ED08, 0xE000EF40
DWT_CTRL, DWT_CYCCNT, DBGMCU_IDCODE = 0xE0001000, 0xE0001004, 0xE0042000
#: DWT_CTRL: no trace, no external match, no cycle counter, no profiling counters.
ABSENT = 0x0F000000
KEYS = (0x45670123, 0xCDEF89AB)
#: The time that a slice of execution stands for in SysTick's eyes.
SLICE_MICROSECONDS = 1000
SYSTICK, HARD_FAULT = 15, 3
HINTS = (b"\x10\xbf", b"\x20\xbf", b"\x30\xbf")
REGISTERS = [arm.UC_ARM_REG_R0 + n for n in range(13)]
REGISTERS += [arm.UC_ARM_REG_SP, arm.UC_ARM_REG_LR, arm.UC_ARM_REG_PC]


@dataclass(frozen=True)
class Part:
    """What differs between the chips."""

    cpu: int
    cpuid: int
    idcode: int
    flash: int
    sectors: tuple[int, ...]
    ram: tuple[tuple[int, int], ...]
    unique: int
    #: Value of RDP that leaves the flash readable, and all else of the option bytes.
    options: int = 0xC0FFAAFD


FLASH = 0x08000000
F746 = Part(
    cpu=arm.UC_CPU_ARM_CORTEX_M7,
    cpuid=0x411FC272,
    idcode=0x10016449,
    flash=1024 * KIB,
    sectors=(32 * KIB,) * 4 + (128 * KIB,) + (256 * KIB,) * 3,
    ram=((0x00000000, 16 * KIB), (0x20000000, 320 * KIB)),
    unique=0x1FF0F420,
)
F446 = Part(
    cpu=arm.UC_CPU_ARM_CORTEX_M4,
    cpuid=0x410FC241,
    idcode=0x10006421,
    flash=512 * KIB,
    sectors=(16 * KIB,) * 4 + (64 * KIB,) + (128 * KIB,) * 3,
    ram=((0x20000000, 128 * KIB),),
    unique=0x1FFF7A10,
    options=0x0FFFAAED,
)


@dataclass
class Counts:
    """What was done to the flash."""

    erased: list[int] = field(default_factory=list)
    programmed: int = 0


class Stm32:
    """A chip. `Emulated` in cortexm.py says what the methods are."""

    #: Why the newest fault of any chip was taken, and where: for a person, in a test that saw one.
    newest_fault = "none"

    def __init__(
        self, part: Part = F746, unique: bytes = b"SIMULATED...", cycle_counter: bool = False
    ) -> None:
        """`unique` and `cycle_counter` are for tests of what the host makes of them: the counter rises by a
        thousand with each reading, and measures nothing."""
        self.part = part
        self.cycle_counter = cycle_counter
        self._readings = 0
        self.running = self.locked_up = False
        self.counts = Counts()
        #: Called with the address of each unit that is programmed, before it is.
        self.programming: Callable[[int], None] = lambda address: None
        #: Ready flags that never come: (register, bits).
        self.never_ready: dict[int, int] = {}
        self.options = part.options
        self.idcode = part.idcode
        self.engine = engine = uc.Uc(uc.UC_ARCH_ARM, uc.UC_MODE_THUMB | uc.UC_MODE_MCLASS)
        engine.ctl_set_cpu_model(part.cpu)
        engine.mem_map(FLASH, part.flash, uc.UC_PROT_ALL)
        engine.mem_write(FLASH, b"\xff" * part.flash)
        for address, length in part.ram:
            engine.mem_map(address, length, uc.UC_PROT_ALL)
        engine.mem_map(part.unique & ~0xFFF, 4 * KIB, uc.UC_PROT_READ)
        engine.mem_write(part.unique, unique)
        for base in (0x40000000, 0xE0000000):
            engine.mmio_map(base, 0x100000, self._load, base, self._store, base)
        engine.hook_add(uc.UC_HOOK_INTR, self._exception)
        self._breakpoints: dict[int, Any] = {}
        self._writes: Any = None
        self._skip: int | None = None
        self.reset()

    # Flash and peripherals

    def _sector(self, number: int) -> tuple[int, int]:
        """Address and bytes."""
        return FLASH + sum(self.part.sectors[:number]), self.part.sectors[number]

    def _load(self, engine: uc.Uc, offset: int, size: int, base: int) -> int:
        return self._peripheral(base + offset & ~3) >> 8 * (offset & 3) & (1 << 8 * size) - 1

    def _peripheral(self, address: int) -> int:
        if address == FLASH_SR:
            self._undo()
            return self.status
        if address == DWT_CYCCNT and self.cycle_counter:
            self._readings += 1
            return 1000 * self._readings
        known = {
            FLASH_CR: self.flash_control,
            FLASH_OPTCR: self.options,
            DBGMCU_IDCODE: self.idcode,
            DWT_CTRL: 0 if self.cycle_counter else ABSENT,
            CPUID: self.part.cpuid,
            MVFR0: 0x10110221,
        }
        if address in known:
            return known[address]
        value = self.registers.get(address, 0x83 if address == RCC_CR else 0)
        if address == RCC_CR:  # each oscillator is ready as soon as it is on
            value |= (value & 0x15010001) << 1
        elif address == RCC_CFGR:  # the clock is switched at once
            value = value & ~0xC | (value & 3) << 2
        elif address == PWR_CSR1:
            value |= 0x4000 | self.registers.get(PWR_CR1, 0) & 0x30000
        return value & ~self.never_ready.get(address, 0)

    def _store(self, engine: uc.Uc, offset: int, size: int, value: int, base: int) -> None:
        address = base + offset
        if address == FLASH_KEYR:
            self.keys = (*self.keys, value)
            if self.keys == KEYS:
                self._lock(False)
            elif self.keys != KEYS[: len(self.keys)]:
                self.keys = (0, 0, 0)  # wrong: locked until the next reset
        elif address == FLASH_SR:
            self.status &= ~value
        elif address == FLASH_CR:
            if not self.flash_control >> 31:
                self._control_flash(value)
        else:
            self.registers[address] = value

    def _lock(self, locked: bool) -> None:
        """The hook costs every load and store its speed, so it is there only while writes may happen."""
        self.flash_control = self.flash_control & 0x7FFFFFFF | locked << 31
        if locked:
            self.keys = ()
        if locked and self._writes is not None:
            self.engine.hook_del(self._writes)
            self._writes = None
        elif not locked and self._writes is None:
            end = FLASH + self.part.flash - 1
            self._writes = self.engine.hook_add(uc.UC_HOOK_MEM_WRITE, self._program, None, FLASH, end)

    def _control_flash(self, value: int) -> None:
        start, erase, everything = value & 0x10000, value & 2, value & 4
        self.flash_control = value & ~0x10000
        if value >> 31:
            self._lock(True)
        elif start and everything:
            self.counts.erased += range(len(self.part.sectors))
            self.engine.mem_write(FLASH, b"\xff" * self.part.flash)
        elif start and erase:
            number = value >> 3 & 0x1F
            address, length = self._sector(number)
            self.counts.erased.append(number)
            self.engine.mem_write(address, b"\xff" * length)
        if start:
            self.status |= 1  # end of operation; never busy

    def _program(self, engine: uc.Uc, access: int, address: int, size: int, value: int, data: Any) -> None:
        old = bytes(engine.mem_read(address, size))
        if not self.flash_control & 1 or size != 1 << (self.flash_control >> 8 & 3):
            self.status |= 0xC0  # programming sequence or parallelism
            self.restore.append((address, old))
            return
        self.programming(address)
        if not self.running:  # power is gone
            self.restore.append((address, old))
            engine.emu_stop()
            return
        self.counts.programmed += size
        value &= (1 << 8 * size) - 1
        held = value & int.from_bytes(old, "little")
        if held != value:  # a bit goes from 1 to 0 and not back
            self.restore.append((address, held.to_bytes(size, "little")))

    def _undo(self) -> None:
        """What the core wrote where the flash holds something else."""
        for address, data in self.restore:
            self.engine.mem_write(address, data)
        self.restore.clear()

    # Execution

    def reset(self) -> None:
        self.running = self.locked_up = False
        self.registers: dict[int, int] = {}
        self.keys: tuple[int, ...] = ()
        self.restore: list[tuple[int, bytes]] = []
        self.flash_control = 0x80000000
        self.status = 0
        self._lock(True)
        self._left = 0.0
        self._handling = 0
        stack, entry = struct.unpack("<II", self.engine.mem_read(FLASH, 8))
        self._thumb = bool(entry & 1) and entry != 0xFFFFFFFF
        for number in range(13):
            self.set_register(number, 0)
        self.set_register(13, stack)
        self.set_register(14, 0xFFFFFFFF)
        self.set_register(15, entry)
        for special in (arm.UC_ARM_REG_PRIMASK, arm.UC_ARM_REG_FAULTMASK, arm.UC_ARM_REG_BASEPRI):
            self.engine.reg_write(special, 0)

    def power_off(self) -> None:
        """What no one expects: RAM is lost, and the flash keeps what it has."""
        self.running = False

    def power_on(self) -> None:
        self._undo()
        for address, length in self.part.ram:
            self.engine.mem_write(address, bytes(length))
        self.reset()

    def run(self, breakpoints: set[int]) -> None:
        for address in set(self._breakpoints) - breakpoints:
            self.engine.hook_del(self._breakpoints.pop(address))
        for address in breakpoints - set(self._breakpoints):
            hook = self.engine.hook_add(uc.UC_HOOK_CODE, self._breakpoint, None, address, address)
            self._breakpoints[address] = hook
        self._skip = self.register(15)
        # A core without a Thumb bit in its state faults at once, and its fault handler does, too.
        self.locked_up = not self._thumb
        self.running = not self.locked_up

    def stop(self) -> None:
        self.running = False

    def step(self) -> None:
        self._skip = self.register(15)
        self._emulate(count=1)

    def advance(self) -> None:
        if not self.running:
            return
        self._emulate(timeout=SLICE_MICROSECONDS)
        control = self.registers.get(SYST_CSR, 0)
        if self.running and control & 1:
            # 16 MHz: what the core has before anyone has set its clock up.
            self._left = self._left or self.registers.get(SYST_RVR, 0)
            self._left -= 16 * SLICE_MICROSECONDS
            if self._left <= 0:
                self._left = 0.0
                if control & 2 and not self.engine.reg_read(arm.UC_ARM_REG_PRIMASK):
                    self.enter(SYSTICK)

    def _emulate(self, **limit: int) -> None:
        self._stopped = False
        try:
            self.engine.emu_start(self.register(15) | 1, 0xFFFFFFFF, **limit)
        except uc.UcError as error:
            # Unicorn ends at a hint (YIELD, WFE, WFI) with this error, behind it: nothing is wrong.
            hint = error.errno == uc.UC_ERR_INSN_INVALID and self.read(self.register(15) - 2, 2) in HINTS
            if self.running and not hint:
                self._fault(f"unicorn: {error}")
        self._undo()
        if self._stopped:
            self.running = False

    def enter(self, number: int) -> None:
        """Take an exception, never to return from it."""
        vectors = self.registers.get(VTOR, 0) or FLASH
        (handler,) = struct.unpack("<I", self.read(vectors + 4 * number, 4))
        frame = [self.register(n) for n in (0, 1, 2, 3, 12, 14, 15, XPSR)]
        stack = (self.register(13) - 32) & ~7
        if not handler & 1 or number == self._handling:
            self.running, self.locked_up = False, True
            return
        try:
            self.engine.mem_write(stack, struct.pack("<8I", *frame))
        except uc.UcError:
            self.running, self.locked_up = False, True
            return
        self.set_register(13, stack)
        self.set_register(14, 0xFFFFFFF9)
        self.set_register(15, handler)
        self._handling = number

    def _exception(self, engine: uc.Uc, number: int, data: Any) -> None:
        if number == 7:  # BKPT
            self._stopped = True
        elif self.running:
            self._fault(f"QEMU's exception {number}")
        engine.emu_stop()

    def _fault(self, why: str) -> None:
        registers = " ".join(f"{self.register(n):x}" for n in range(16))
        status = self.engine.reg_read(arm.UC_ARM_REG_XPSR)
        try:
            code = self.read(self.register(15) - 8, 16).hex(" ", 2)
        except MemoryFault:
            code = "not readable"
        Stm32.newest_fault = f"{why}; registers {registers}, xPSR {status:x}, code around it {code}"
        self.enter(HARD_FAULT)

    def _breakpoint(self, engine: uc.Uc, address: int, size: int, data: Any) -> None:
        if address == self._skip:
            self._skip = None
            return
        self._stopped = True
        engine.emu_stop()

    # Memory and registers, from the probe

    def read(self, address: int, length: int) -> bytes:
        if address >= 0x40000000:
            first = address & ~3
            words = range(first, address + length, 4)
            data = b"".join(struct.pack("<I", self._peripheral(word)) for word in words)
            return data[address - first :][:length]
        try:
            return bytes(self.engine.mem_read(address, length))
        except uc.UcError as error:
            raise MemoryFault(hex(address)) from error

    def write(self, address: int, data: bytes) -> None:
        if address >= 0x40000000:
            base = address & 0xF0000000
            self._store(self.engine, address - base, len(data), int.from_bytes(data, "little"), base)
        elif FLASH <= address < FLASH + self.part.flash:
            raise MemoryFault("the flash is written by its controller alone")
        else:
            try:
                self.engine.mem_write(address, data)
            except uc.UcError as error:
                raise MemoryFault(hex(address)) from error

    def register(self, number: int) -> int:
        if number < 16:
            return int(self.engine.reg_read(REGISTERS[number]))
        if number == XPSR:
            return int(self.engine.reg_read(arm.UC_ARM_REG_XPSR)) & ~(1 << 24) | self._thumb << 24
        special = {MSP: arm.UC_ARM_REG_MSP, PSP: arm.UC_ARM_REG_PSP}
        return int(self.engine.reg_read(special[number])) if number in special else 0

    def set_register(self, number: int, value: int) -> None:
        if number < 16:
            mask = {13: ~3, 15: ~1}.get(number, ~0)
            self.engine.reg_write(REGISTERS[number], value & mask & 0xFFFFFFFF)
        elif number == XPSR:
            self._thumb = bool(value >> 24 & 1)
        elif number in (MSP, PSP):
            special = {MSP: arm.UC_ARM_REG_MSP, PSP: arm.UC_ARM_REG_PSP}
            self.engine.reg_write(special[number], value)
