"""Boards behind a debug probe: the real probe-rs, ST's flash algorithm and the very runner images that ship,
on a simulated probe (`tests/simulated`)."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import struct
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cbin_nn
import numpy as np
import pytest
from cbin_nn import deploy, errors
from cbin_nn.errors import BoardError
from cbin_nn.images import draw_images
from conftest import FIXTURES, require, require_modules

DISCOVERY = "stm32f746g-disco"
STM32 = [DISCOVERY, "nucleo-f746zg", "nucleo-f446re"]
QEMU = "qemu-mps2-an500"

if importlib.util.find_spec("unicorn") is not None:
    from simulated.blackmagic import BlackMagicProbe, Unplugged, wait_for
    from simulated.cortexm import CortexM
    from simulated.qemu import Qemu, available
    from simulated.stm32 import F446, F746, HARD_FAULT, PWR_CSR1, RCC_CR, Stm32


@pytest.fixture(autouse=True)
def parts() -> None:
    require_modules("unicorn", reason="pip install unicorn")
    for board in [QEMU, *STM32]:
        try:
            deploy.runner_path(board)
        except BoardError as error:
            require(f"the runner image of {board}", False, error.message)


class Simulated:
    """A chip, its core and the probe in front of it."""

    def __init__(self, chip: Stm32, target: CortexM, probe: BlackMagicProbe) -> None:
        self.chip, self.target, self.probe = chip, target, probe

    @property
    def selector(self) -> str:
        return self.probe.selector

    def flash(self, address: int, length: int) -> bytes:
        return bytes(self.chip.engine.mem_read(address, length))


@contextmanager
def simulated(board: str = DISCOVERY, **chip_options: object) -> Iterator[Simulated]:
    """A blank board."""
    chip = Stm32(F446 if board == "nucleo-f446re" else F746, **chip_options)  # type: ignore[arg-type]
    target = CortexM(chip)
    with BlackMagicProbe(target) as probe:
        yield Simulated(chip, target, probe)


@pytest.fixture
def board() -> Iterator[Simulated]:
    with simulated() as found:
        yield found


@pytest.fixture(scope="module")
def model() -> cbin_nn.Model:
    return cbin_nn.convert(FIXTURES / "tiny.h5")


@pytest.fixture(scope="module")
def other(model: cbin_nn.Model) -> cbin_nn.Model:
    """A model of other bytes."""
    return cbin_nn.convert(FIXTURES / "tiny.h5", output="i8")


@pytest.fixture
def images(model: cbin_nn.Model) -> np.ndarray:
    return draw_images(3, *model.input_shape[:2], seed=4)


def model_region(board: str) -> int:
    return 0x08020000 if board == "nucleo-f446re" else 0x08040000


def runs(model: cbin_nn.Model, board: Simulated, images: np.ndarray) -> None:
    """The board takes the model and gives the host's bytes: the next attempt, after a fault."""
    with deploy.connect(DISCOVERY, model, probe=board.selector) as device:
        np.testing.assert_array_equal(device.run(images), model.run(images))


# ------------------------------------------------------------------------------------------------
# The whole path


def again_after_a_fault(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test up to three times where the simulated core takes a fault; warn of it, with the core's state.

    On a busy machine unicorn did so about once in thirty runs of the same bytes, at another place each time;
    why is not known, and 600 later runs at loads of 3 to 5 showed none. A runner that is at fault faults each
    time, and any other error counts at once.
    """

    @functools.wraps(test)
    def attempts(*arguments: object, **named: object) -> None:
        for _ in range(2):
            try:
                return test(*arguments, **named)
            except BoardError as error:
                if "took a fault" not in str(error):
                    raise
                warnings.warn(f"{test.__name__} tries again: {Stm32.newest_fault}", stacklevel=2)
        return test(*arguments, **named)

    return attempts


@pytest.mark.parametrize("name", STM32)
@again_after_a_fault
def test_twenty_cifar10_images_on_a_blank_board_equal_the_host(name: str, cifar10_folder: Path) -> None:
    from cbin_nn.data import cifar10

    pixels, labels = cifar10(cifar10_folder)
    pixels, labels = pixels[:20], labels[:20]
    model = cbin_nn.convert(FIXTURES / "smallcifar.h5")
    with simulated(name) as board:
        wait_for(lambda: board.chip.locked_up)
        told: list[tuple] = []
        done: list[tuple[int, int]] = []
        report = deploy.bench(
            model,
            name,
            pixels,
            labels=labels,
            probe=board.selector,
            progress=lambda *news: done.append(news),
            flash_progress=lambda *news: told.append(news),
        )
        assert (report.images, report.agree, report.differing_bytes) == (20, 20, 0)
        np.testing.assert_array_equal(report.outputs, model.run_integers(pixels))
        assert report.accuracy == float((model.run(pixels).argmax(axis=1) == labels).mean())
        # ST's algorithm erased the sectors under the runner and the model, and no other.
        region = model_region(name)
        assert board.flash(region, model.file_bytes) == model.to_bytes()
        assert sorted(set(board.chip.counts.erased)) == (
            [0, 1, 2, 3, 4, 5] if "f446" in name else [0, 1, 2, 5]
        )
        # Progress of everything, in order, from nothing to all of it.
        assert done[-1] == (20, 20)
        steps = list(dict.fromkeys((step, operation) for step, operation, _, _ in told))
        for step in ("runner", "model"):
            assert [op for at, op in steps if at == step and op != "compare"][:3] == [
                "erase",
                "program",
                "verify",
            ]
            last = [(done, total) for at, op, done, total in told if (at, op) == (step, "program")][-1]
            assert last[0] == last[1] > 0
        # A simulator's figures are no measurements.
        value = report.to_dict()
        assert value["simulated"] is True
        assert not {"cycles", "instructions", "milliseconds", "clock_hz"} & set(value)
        assert all(set(layer) == {"name", "operator"} for layer in value["layers"])
        assert "simulated" in str(report) and "ycles" not in str(report)
        assert "simulated" in report._repr_html_() and "ycles" not in report._repr_html_()
        page = model.report(report).to_html()
        assert "simulated" in page and "ycles" not in page
        assert value["ram"]["arena"] == model.arena_bytes and 500 < value["ram"]["stack"] < 12 * 1024


WAFER = bytes.fromhex("2b003a000c51363432383739")  # a lot and its coordinates, as a real chip has them


@pytest.mark.parametrize(
    ("unique", "counter", "unit"),
    [(WAFER, True, "cycles"), (WAFER, False, None), (b"SIMULATED...", True, None)],
    ids=["as silicon", "no counter", "simulated with a counter"],
)
def test_cycles_and_time_are_silicons_alone(
    unique: bytes, counter: bool, unit: str | None, model: cbin_nn.Model
) -> None:
    """What the host makes of a chip's two signs. The counts of "as silicon" are a made-up counter's."""
    with simulated(unique=unique, cycle_counter=counter) as board:
        report = deploy.bench(model, DISCOVERY, count=3, probe=board.selector)
    value = report.to_dict()
    assert value["simulated"] is (unique != WAFER) and value["agree"] == 3
    assert report.unit == unit
    if unit is None:
        assert report.milliseconds is None
        assert not {"cycles", "instructions", "milliseconds", "clock_hz"} & set(value)
    else:
        assert value["cycles_min"] <= value["cycles"] <= value["cycles_max"]
        assert all(layer["cycles"] > 0 for layer in value["layers"])
        assert value["clock_hz"] == 216_000_000
        assert value["milliseconds"] == pytest.approx(value["cycles"] / 216_000)
        assert "Milliseconds an image at 216 MHz" in str(report)


def test_the_same_on_qemu_with_the_counts_of_a_board_without_a_probe(cifar10_folder: Path) -> None:
    from cbin_nn.data import cifar10

    require("qemu-system-arm", available(), "apt-get install qemu-system-arm")
    pixels = cifar10(cifar10_folder)[0][:20]
    model = cbin_nn.convert(FIXTURES / "smallcifar.h5")
    emulator = Qemu()
    try:
        with BlackMagicProbe(CortexM(emulator)) as probe:
            report = deploy.bench(model, QEMU, pixels, probe=probe.selector)
    finally:
        emulator.close()
    assert (report.images, report.agree, report.differing_bytes) == (20, 20, 0)
    assert report.to_dict() == deploy.bench(model, QEMU, pixels).to_dict()


def test_what_the_board_holds_is_not_written_again(
    board: Simulated, model: cbin_nn.Model, other: cbin_nn.Model, images: np.ndarray
) -> None:
    first = deploy.flash(model, DISCOVERY, probe=board.selector)
    assert first.written and first.simulated and first.model_sha256 == model.sha256
    erased = list(board.chip.counts.erased)
    second = deploy.flash(model, DISCOVERY, probe=board.selector)
    assert not second.written
    assert board.chip.counts.erased == erased
    third = deploy.flash(other, DISCOVERY, probe=board.selector)
    assert third.written
    assert board.chip.counts.erased == [*erased, 5], "the runner stays"
    runs(other, board, images)


def test_a_device_feels_like_a_model(board: Simulated, model: cbin_nn.Model, other: cbin_nn.Model) -> None:
    images = draw_images(5, *model.input_shape[:2], seed=3)
    with deploy.connect(DISCOVERY, model, probe=board.selector, speed_khz=1000) as device:
        assert board.probe.khz == 1000
        assert device.simulated and DISCOVERY in repr(device)
        np.testing.assert_array_equal(device.run(images), model.run(images))
        np.testing.assert_array_equal(device.run(images[0]), model.run(images[0]))
        np.testing.assert_array_equal(device.run(images, dequantize=True), model.run(images, dequantize=True))
        assert device.bench(images, count=2).agree == 2
        with pytest.raises(errors.InvalidArgument, match="float64"):
            device.run(images.astype(float))
        assert device.load(other) is True
        np.testing.assert_array_equal(device.run(images), other.run(images))
        assert device.load(other) is False
    with pytest.raises(BoardError, match="closed"):
        device.run(images)
    device.close()
    # Without a model: what the board holds.
    with deploy.connect(DISCOVERY, probe=board.selector) as device:
        assert device.model.sha256 == other.sha256
        np.testing.assert_array_equal(device.run(images), other.run(images))


def test_every_output_type_comes_back(board: Simulated) -> None:
    for output in ("i16", "f32"):
        model = cbin_nn.convert(FIXTURES / "tiny.h5", output=output)
        runs(model, board, draw_images(2, *model.input_shape[:2], seed=5))


def test_attaching_under_reset_works_on_a_blank_board(
    board: Simulated, model: cbin_nn.Model, images: np.ndarray
) -> None:
    with deploy.connect(DISCOVERY, model, probe=board.selector, under_reset=True) as device:
        np.testing.assert_array_equal(device.run(images), model.run(images))


def test_attaching_under_reset_is_tried_again_after_a_normal_attach(
    board: Simulated, model: cbin_nn.Model, images: np.ndarray
) -> None:
    """A chip that no debugger has ever touched may refuse the first time (probe-rs issue 4113)."""
    seen = []

    def refuse_once(command: str) -> None:
        if command == "GZ1":
            seen.append(command)
            if len(seen) == 1:
                raise ConnectionResetError

    board.probe.command = refuse_once
    with deploy.connect(DISCOVERY, model, probe=board.selector, under_reset=True) as device:
        np.testing.assert_array_equal(device.run(images), model.run(images))
    assert len(seen) == 2


def test_the_emulated_board_takes_the_same_calls(model: cbin_nn.Model, images: np.ndarray) -> None:
    require("qemu-system-arm", available(), "apt-get install qemu-system-arm")
    assert deploy.flash(model, QEMU).simulated
    with deploy.connect(QEMU, model) as device:
        np.testing.assert_array_equal(device.run(images), model.run(images))
    with deploy.connect(QEMU) as device:
        with pytest.raises(errors.NoModelOnBoard, match="load"):
            device.run(images)
        device.load(model)
        np.testing.assert_array_equal(device.run(images), model.run(images))


def test_the_command_line_flashes_and_benches_through_a_probe(
    board: Simulated, model: cbin_nn.Model, tmp_path: Path
) -> None:
    model.save(tmp_path / "model.cbn")
    options = ["--board", DISCOVERY, "--probe", board.selector, "--json"]

    def command(*arguments: str, **environment: str) -> dict:
        line = [str(Path(sys.executable).with_name("cbin-nn")), *arguments]
        done = subprocess.run(line, capture_output=True, text=True, env={**os.environ, **environment})
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return json.loads(done.stdout)

    listed = command("probes", "--json", CBIN_NN_PROBES=board.selector)
    assert board.selector in [probe["selector"] for probe in listed["probes"]]
    assert command("flash", str(tmp_path / "model.cbn"), *options)["written"] is True
    report = command("bench", str(tmp_path / "model.cbn"), *options, "--count", "3")
    assert (report["agree"], report["simulated"]) == (3, True)
    assert "cycles" not in report and "milliseconds" not in report


def test_the_example_runs_on_the_board(board: Simulated) -> None:
    example = Path(__file__).parent.parent / "examples" / "onboard_cifar10.py"
    arguments = ["--board", DISCOVERY, "--probe", board.selector, "--count", "2"]
    done = subprocess.run([sys.executable, example, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 images, 0 differing bytes" in done.stdout
    assert "model: program" in done.stdout and "2 of 2 images" in done.stdout


def test_progress_that_raises_ends_the_call_and_not_the_board(
    board: Simulated, model: cbin_nn.Model, images: np.ndarray
) -> None:
    class Enough(Exception):
        pass

    def stop(*news: object) -> None:
        raise Enough

    with pytest.raises(Enough):
        deploy.flash(model, DISCOVERY, probe=board.selector, flash_progress=stop)
    runs(model, board, images)


def test_a_call_from_a_callback_is_refused_and_no_deadlock(
    board: Simulated, model: cbin_nn.Model, images: np.ndarray
) -> None:
    with deploy.connect(DISCOVERY, model, probe=board.selector) as device:
        said = []

        def again(done: int, total: int) -> None:
            with pytest.raises(BoardError, match="busy"):
                device.run(images)
            said.append(done)

        device.run(images, progress=again)
        assert said


# ------------------------------------------------------------------------------------------------
# Faults


def fails(
    kind: type[Exception], match: str, model: cbin_nn.Model, selector: str | None, **options: object
) -> str:
    """Flashing fails in that way, in one line that says what to do."""
    with pytest.raises(kind, match=match) as caught:
        deploy.flash(model, DISCOVERY, probe=selector, **options)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_probe(model: cbin_nn.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CBIN_NN_PROBES", raising=False)
    if deploy.probes():
        pytest.skip("a debug probe is connected to this machine")
    fails(errors.ProbeNotFound, "no debug probe was found.*plug.*udev", model, None)


def test_a_probe_that_is_not_there(model: cbin_nn.Model) -> None:
    fails(errors.ProbeNotFound, "0483:374b.*cbin-nn probes", model, "0483:374b")
    fails(errors.ProbeNotFound, "nothing answers at 127.0.0.1:1", model, "1d50:6018:127.0.0.1:1")
    fails(errors.InvalidArgument, "VID:PID", model, "my probe")


def test_two_probes_and_no_selector(
    board: Simulated, model: cbin_nn.Model, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    with simulated() as second:
        monkeypatch.setenv("CBIN_NN_PROBES", f"{board.selector},{second.selector}")
        listed = [probe.selector for probe in deploy.probes()]
        assert {board.selector, second.selector} <= set(listed)
        message = fails(errors.AmbiguousProbe, "2 debug probes are connected", model, None)
        assert board.selector in message and second.selector in message
        assert not board.chip.counts.erased and not second.chip.counts.erased
        runs(model, second, images)
        monkeypatch.setenv("CBIN_NN_PROBES", board.selector)
        assert deploy.flash(model, DISCOVERY).written, "the only one needs no name"


def test_a_wrong_chip(board: Simulated, model: cbin_nn.Model, images: np.ndarray) -> None:
    board.chip.idcode = 0x20006451
    fails(errors.WrongChip, r"0x451.*0x449.*nothing was written", model, board.selector)
    assert not board.chip.counts.erased
    board.chip.idcode = F746.idcode
    runs(model, board, images)


@pytest.mark.parametrize(("option", "level"), [(0xC0FF55FD, 1), (0xC0FFCCFD, 2)])
def test_a_read_protected_chip(
    option: int, level: int, board: Simulated, model: cbin_nn.Model, images: np.ndarray
) -> None:
    board.chip.options = option
    fails(errors.ReadProtected, rf"level {level}.*nothing was written", model, board.selector)
    assert not board.chip.counts.erased
    board.chip.options = F746.options
    runs(model, board, images)


def unplug_when(board: Simulated, condition: Callable[[str], bool]) -> None:
    def look(command: str) -> None:
        if condition(command):
            raise Unplugged

    board.probe.command = look


def plug_in(board: Simulated) -> None:
    board.probe.command = lambda command: None
    board.probe.plug_in()


def test_unplugged_while_the_runner_is_flashed(
    board: Simulated, model: cbin_nn.Model, images: np.ndarray
) -> None:
    unplug_when(board, lambda command: board.chip.counts.programmed > 20_000)
    fails(errors.ProbeLost, "flashing the runner.*lost.*incomplete.*next attempt", model, board.selector)
    plug_in(board)
    runs(model, board, images)


def test_unplugged_while_the_model_is_flashed(
    board: Simulated, model: cbin_nn.Model, images: np.ndarray
) -> None:
    deploy.flash(model, DISCOVERY, probe=board.selector)
    large = cbin_nn.convert(FIXTURES / "smallcifar.h5")
    start = board.chip.counts.programmed
    unplug_when(board, lambda command: board.chip.counts.programmed > start + 4000)
    fails(errors.ProbeLost, "flashing the model.*lost.*may be incomplete", large, board.selector)
    plug_in(board)
    with pytest.raises(errors.NoModelOnBoard, match="no valid model"):
        deploy.connect(DISCOVERY, probe=board.selector)
    runs(large, board, draw_images(1, 32, 32, seed=1))
    runs(model, board, images)


def test_unplugged_during_a_run(board: Simulated, model: cbin_nn.Model, images: np.ndarray) -> None:
    with deploy.connect(DISCOVERY, model, probe=board.selector) as device:
        told: list[int] = []

        def unplug(done: int, total: int) -> None:
            if done == 1:
                unplug_when(board, lambda command: True)
            told.append(done)

        with pytest.raises(errors.ProbeLost, match=r"image 2 of 3.*cable"):
            device.run(images, progress=unplug)
        with pytest.raises(BoardError, match="open a new one"):
            device.run(images)
    plug_in(board)
    runs(model, board, images)


@pytest.mark.parametrize("moment", ["attach", "flash", "run"])
def test_a_stuck_transport(moment: str, board: Simulated, model: cbin_nn.Model, images: np.ndarray) -> None:
    def stuck(command: str) -> None:
        if moment == "attach" or board.chip.counts.programmed > 20_000:
            board.probe.answering.clear()

    if moment == "run":
        deploy.flash(model, DISCOVERY, probe=board.selector)
        with deploy.connect(DISCOVERY, model, probe=board.selector, timeout=5.0) as device:
            board.probe.answering.clear()
            with pytest.raises(errors.ProbeStuck, match=r"image 1 of 3.*unplug"):
                device.run(images)
    else:
        board.probe.command = stuck
        where = {"attach": "attaching", "flash": "flashing the runner.*incomplete"}[moment]
        fails(errors.ProbeStuck, f"{where}.*unplug", model, board.selector, timeout=3.0)
    # The process goes on, with this very board once it answers again.
    board.probe.command = lambda command: None
    board.probe.answering.set()
    runs(model, board, images)


def test_a_stale_rtt_block_is_not_taken_for_the_runners(
    board: Simulated, model: cbin_nn.Model, images: np.ndarray
) -> None:
    deploy.flash(model, DISCOVERY, probe=board.selector)
    control_block = 0x20003000
    assert board.chip.read(control_block, 10) == b"SEGGER RTT"
    # What an earlier firmware may leave: an id, and rings that lead nowhere.
    stale = (
        b"SEGGER RTT".ljust(16, b"\0")
        + struct.pack("<2I", 1, 1)
        + struct.pack("<6I", 0, 0x20010000, 64, 9, 2, 0) * 2
    )
    board.chip.engine.mem_write(control_block, stale)
    runs(model, board, images)


def test_a_runner_of_an_older_protocol(
    board: Simulated,
    model: cbin_nn.Model,
    images: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = deploy.runner_path(DISCOVERY).read_bytes()
    mark = b"cbin-nn-protocol"
    assert image.count(mark) == 1
    at = image.index(mark) + len(mark)
    (version,) = struct.unpack_from("<H", image, at)
    older = image[:at] + struct.pack("<H", version - 1) + image[at + 2 :]
    (tmp_path / f"{DISCOVERY}.elf").write_bytes(older)
    monkeypatch.setenv("CBIN_NN_RUNNERS", str(tmp_path))
    pattern = rf"protocol version {version - 1} and this host version {version}.*make firmware"
    fails(errors.RunnerMismatch, pattern, model, board.selector)
    monkeypatch.delenv("CBIN_NN_RUNNERS")
    runs(model, board, images)


def test_a_model_with_a_bad_checksum_in_flash(
    board: Simulated, model: cbin_nn.Model, images: np.ndarray
) -> None:
    deploy.flash(model, DISCOVERY, probe=board.selector)
    address = model_region(DISCOVERY) + model.file_bytes // 2
    (byte,) = board.flash(address, 1)
    board.chip.engine.mem_write(address, bytes([byte ^ 4]))
    with pytest.raises(errors.NoModelOnBoard, match=r"no valid model.*checksum.*flash one"):
        deploy.connect(DISCOVERY, probe=board.selector)
    runs(model, board, images)


def test_a_blank_model_region(board: Simulated, model: cbin_nn.Model, images: np.ndarray) -> None:
    with pytest.raises(errors.NoModelOnBoard, match=r"blank.*flash one"):
        deploy.connect(DISCOVERY, probe=board.selector)
    runs(model, board, images)


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.98])
def test_power_lost_while_the_model_is_written(
    part: float, board: Simulated, model: cbin_nn.Model, other: cbin_nn.Model, images: np.ndarray
) -> None:
    deploy.flash(model, DISCOVERY, probe=board.selector)
    end = model_region(DISCOVERY) + int(part * other.file_bytes)

    def lose_power(address: int) -> None:
        if address >= end:
            board.chip.power_off()
            board.probe.plugged = False

    board.chip.programming = lose_power
    # The board's own probe has lost its power with it.
    unplug_when(board, lambda command: not board.probe.plugged)
    fails(errors.ProbeLost, "flashing the model", other, board.selector)
    board.chip.programming = lambda address: None
    board.chip.power_on()
    board.target.power_on()
    plug_in(board)
    with pytest.raises(errors.NoModelOnBoard, match="no valid model"):
        deploy.connect(DISCOVERY, probe=board.selector)
    runs(other, board, images)


def test_power_lost_before_the_model_is_touched_leaves_the_old_one(
    board: Simulated, model: cbin_nn.Model, other: cbin_nn.Model, images: np.ndarray
) -> None:
    deploy.flash(model, DISCOVERY, probe=board.selector)
    erased = len(board.chip.counts.erased)

    def algorithm_is_loaded(command: str) -> bool:
        """A write below the runner's transport: nothing else goes there."""
        return command.startswith("Hm") and 0x20000000 <= int(command[16:24], 16) < 0x20003000

    unplug_when(board, algorithm_is_loaded)
    fails(errors.ProbeLost, "flashing the model", other, board.selector)
    assert len(board.chip.counts.erased) == erased
    plug_in(board)
    with deploy.connect(DISCOVERY, probe=board.selector) as device:
        assert device.model.sha256 == model.sha256
        np.testing.assert_array_equal(device.run(images), model.run(images))
    runs(other, board, images)


def test_flash_that_does_not_hold_what_was_written(
    board: Simulated, model: cbin_nn.Model, images: np.ndarray
) -> None:
    worn = model_region(DISCOVERY) + 512

    def wear(address: int) -> None:
        if address > worn:
            (word,) = struct.unpack("<I", board.flash(worn, 4))
            board.chip.engine.mem_write(worn, struct.pack("<I", word & ~0xFF if word & 0xFF else 0))

    board.chip.programming = wear
    fails(errors.FlashError, "flashing the model.*could not be written.*try again", model, board.selector)
    board.chip.programming = lambda address: None
    runs(model, board, images)


@pytest.mark.parametrize(
    ("side", "numbers"), [(1400, r"7840\d{3} bytes.*786432"), (400, r"8000\d\d bytes of RAM.*307200")]
)
def test_a_model_that_does_not_fit_is_refused_before_anything_is_erased(
    side: int, numbers: str, board: Simulated
) -> None:
    from test_deploy import too_large_model

    message = fails(errors.ModelTooLarge, numbers, too_large_model(side), board.selector)
    assert "more flash" in message or "more RAM" in message
    assert not board.chip.counts.erased and not board.chip.counts.programmed


@pytest.mark.parametrize("register", ["oscillators", "over-drive"])
def test_a_clock_that_does_not_get_ready_is_reported(
    register: str, board: Simulated, model: cbin_nn.Model, images: np.ndarray
) -> None:
    ready = {"oscillators": {RCC_CR: 1 << 25}, "over-drive": {PWR_CSR1: 1 << 16}}[register]
    board.chip.never_ready.update(ready)
    fails(errors.BoardNotReady, "start: the system clock did not get ready.*power", model, board.selector)
    board.chip.never_ready.clear()
    runs(model, board, images)


def after_the_first_image(board: Simulated, event: Callable[[], None]) -> deploy.Progress:
    """Progress that has something happen to the chip after the first image, on the probe's own thread."""

    def once(command: str) -> None:
        board.probe.command = lambda command: None
        event()

    def progress(done: int, total: int) -> None:
        if done == 1:
            board.probe.command = once

    return progress


def test_a_core_that_locks_up_during_a_run(
    board: Simulated, model: cbin_nn.Model, images: np.ndarray
) -> None:
    def lock_up() -> None:
        board.chip.running, board.chip.locked_up = False, True

    with deploy.connect(DISCOVERY, model, probe=board.selector) as device:
        progress = after_the_first_image(board, lock_up)
        with pytest.raises(errors.BoardLockedUp, match=r"image 2 of 3.*flash the board anew"):
            device.run(images, progress=progress)
    runs(model, board, images)


def test_a_fault_of_the_core_is_reported(board: Simulated, model: cbin_nn.Model, images: np.ndarray) -> None:
    with deploy.connect(DISCOVERY, model, probe=board.selector) as device:
        fault = after_the_first_image(board, lambda: board.chip.enter(HARD_FAULT))
        with pytest.raises(BoardError, match=r"image 2 of 3.*took a fault at address") as caught:
            device.run(images, progress=fault)
        assert caught.value.slug == "runner-faulted"
    runs(model, board, images)


def test_a_silent_board(board: Simulated, model: cbin_nn.Model, images: np.ndarray) -> None:
    deploy.flash(model, DISCOVERY, probe=board.selector)
    with deploy.connect(DISCOVERY, model, probe=board.selector, timeout=5.0) as device:
        advance, board.chip.advance = board.chip.advance, lambda: None  # type: ignore[method-assign]
        with pytest.raises(errors.BoardTimeout, match=r"image 1 of 3.*no answer within"):
            device.run(images)
        board.chip.advance = advance  # type: ignore[method-assign]
    runs(model, board, images)


def symbol(image: bytes, wanted: str) -> int:
    """Value of a symbol in a little-endian 32-bit ELF file."""
    sections, size, count = struct.unpack_from("<I", image, 32)[0], *struct.unpack_from("<2H", image, 46)
    headers = [struct.unpack_from("<10I", image, sections + size * index) for index in range(count)]
    (table,) = [header for header in headers if header[1] == 2]
    strings = headers[table[6]][4]
    for at in range(table[4], table[4] + table[5], 16):
        name, value = struct.unpack_from("<2I", image, at)
        if image[strings + name :].startswith(wanted.encode() + b"\0"):
            return int(value)
    raise KeyError(wanted)


def test_a_panic_of_the_runner_is_reported(
    board: Simulated, model: cbin_nn.Model, images: np.ndarray
) -> None:
    """Reaching `main` a second time is a panic of the very image that ships."""
    main = symbol(deploy.runner_path(DISCOVERY).read_bytes(), "main")
    with deploy.connect(DISCOVERY, model, probe=board.selector) as device:
        panic = after_the_first_image(board, lambda: board.chip.set_register(15, main))
        with pytest.raises(BoardError, match=r"image 2 of 3.*the runner panicked at .*\.rs:\d+") as caught:
            device.run(images, progress=panic)
        assert caught.value.slug == "runner-panicked"
    runs(model, board, images)


def test_every_fault_of_a_probe_or_board_has_a_class_of_its_own() -> None:
    """Also the ones that no simulation can bring about: a device file that this user may not open."""
    slugs = "several-probes probe-not-found probe-permission probe-lost probe-stuck probe-failed wrong-chip"
    slugs += " read-protected flash-failed locked-up no-model not-ready board-timeout protocol-mismatch"
    classes = {type(errors.board_error(slug, "what to do")) for slug in slugs.split()}
    assert len(classes) == len(slugs.split())
    assert all(issubclass(kind, BoardError) for kind in classes)
    assert type(errors.board_error("probe-permission", "udev")) is errors.ProbePermission


def test_a_panic_of_the_library_is_an_error(
    board: Simulated, model: cbin_nn.Model, images: np.ndarray
) -> None:
    """probe-rs 0.32 unwraps the debug port's start: a port that refuses to power up makes it panic."""
    from simulated import blackmagic

    original = blackmagic.DebugPort.debug_port

    def refuses(self: object, address: int, value: int | None = None) -> int:
        return 0 if value is None and address & 0xC == 4 else original(self, address, value)  # type: ignore[arg-type]

    blackmagic.DebugPort.debug_port = refuses  # type: ignore[method-assign]
    try:
        with pytest.raises(errors.ProbeError) as caught:
            deploy.flash(model, DISCOVERY, probe=board.selector)
        assert caught.value.slug == "probe-panicked", caught.value
    finally:
        blackmagic.DebugPort.debug_port = original  # type: ignore[method-assign]
    runs(model, board, images)


def test_other_threads_go_on_while_a_probe_is_waited_for(board: Simulated, model: cbin_nn.Model) -> None:
    beats = 0
    ended = threading.Event()

    def beat() -> None:
        nonlocal beats
        while not ended.wait(0.01):
            beats += 1

    thread = threading.Thread(target=beat)
    thread.start()
    board.probe.answering.clear()
    fails(errors.ProbeStuck, "attaching", model, board.selector, timeout=1.0)
    ended.set()
    thread.join()
    assert beats > 20
