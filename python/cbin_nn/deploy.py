"""Boards: which there are, flashing a model to one, running it there, compared with the host byte for byte.

    >>> from cbin_nn import deploy
    >>> with deploy.connect("stm32f746g-disco", model) as device:     # doctest: +SKIP
    ...     logits = device.run(images)                               # as model.run(images), on the board

Every function takes the emulated board as it takes a real one. A real board is reached through a debug probe:
the only one that is connected, or the one that `probe` names as `probes()` lists them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from . import _native
from .errors import BoardError, InvalidArgument, NoModelOnBoard
from .geometry import check_labels, integer

if TYPE_CHECKING:
    from .model import Layer, Model

__all__ = [
    "BenchReport",
    "Board",
    "Device",
    "FlashProgress",
    "FlashReport",
    "Probe",
    "Progress",
    "bench",
    "boards",
    "connect",
    "flash",
    "probes",
    "runner_path",
]

#: Called with (images done, images in all).
Progress = Callable[[int, int], None]
#: Called with ("runner" or "model", "compare", "erase", "program" or "verify", bytes done, bytes in all).
FlashProgress = Callable[[str, str, int, int], None]

DEFAULT_IMAGES = 20
#: Most images of one benchmark.
MAX_IMAGES = 1_000_000
#: No debug probe's clock is faster.
MAX_SPEED_KHZ = 100_000


@dataclass(frozen=True)
class Board:
    """A board that runs models."""

    name: str
    description: str
    #: Processor core, for instance "cortex-m7".
    core: str
    #: Clock in Hz; None for an emulated board.
    clock_hz: int | None
    #: What has to be there, with the command that brings it.
    needs: str
    #: True where figures are instruction counts and never times.
    simulated: bool


@dataclass(frozen=True)
class Probe:
    """A debug probe."""

    #: What names it: `VID:PID` or `VID:PID:SERIAL`.
    selector: str
    name: str
    #: False where this user may not use it; on Linux the udev rules of docs/boards.md mend that.
    accessible: bool


@dataclass(frozen=True)
class FlashReport:
    """What `flash` did."""

    board: str
    #: True where the model was written, False where the board held it already.
    written: bool
    model_sha256: str
    runner_version: str
    simulated: bool


@dataclass(frozen=True, eq=False)
class BenchReport:
    """What a board did with some images. Sizes are in bytes; counts are in `unit` an image."""

    board: str
    #: True for an emulated board, and for a real one's chip that says it is simulated.
    simulated: bool
    #: "instructions" or "cycles"; None where the board counts nothing that means something.
    unit: str | None
    clock_hz: int | None
    images: int
    #: Images whose output equals the host's byte for byte.
    agree: int
    differing_bytes: int
    #: The board's outputs, `[images, classes]`, in the model's integer type.
    outputs: npt.NDArray[Any]
    #: Counts `[images, operators]`, uint64.
    counts: npt.NDArray[np.uint64]
    model_layers: list[Layer]
    #: Share of images whose argmax is their label, 0 to 1; None without labels.
    accuracy: float | None
    #: arena, io, stack, transport, other.
    ram: dict[str, int]
    #: code, model.
    flash: dict[str, int]
    model_sha256: str
    runner_version: str

    @property
    def layer_counts(self) -> list[int]:
        """Median count of each operator."""
        return [int(x) for x in np.median(self.counts, axis=0)]

    @property
    def count_median(self) -> int:
        """Median count of an image."""
        return int(np.median(self.counts.sum(axis=1)))

    @property
    def count_min(self) -> int:
        """Smallest count of an image."""
        return int(self.counts.sum(axis=1).min())

    @property
    def count_max(self) -> int:
        """Largest count of an image."""
        return int(self.counts.sum(axis=1).max())

    @property
    def milliseconds(self) -> float | None:
        """Median time of an image at the board's nominal clock; None for anything but silicon."""
        if self.unit != "cycles" or self.clock_hz is None or self.simulated:
            return None
        return 1000 * self.count_median / self.clock_hz

    def to_dict(self) -> dict[str, Any]:
        """The report as `cbin-nn bench --json` prints it."""
        layers: list[dict[str, Any]] = [
            {"name": layer.name, "operator": layer.operator} for layer in self.model_layers
        ]
        result: dict[str, Any] = {
            "board": self.board,
            "simulated": self.simulated,
            "images": self.images,
            "agree": self.agree,
            "differing_bytes": self.differing_bytes,
            "layers": layers,
            "ram": dict(self.ram),
            "flash": dict(self.flash),
            "model_sha256": self.model_sha256,
            "runner_version": self.runner_version,
        }
        if self.unit is not None:
            result[self.unit] = self.count_median
            result[f"{self.unit}_min"] = self.count_min
            result[f"{self.unit}_max"] = self.count_max
            for layer, count in zip(layers, self.layer_counts, strict=True):
                layer[self.unit] = count
        if self.accuracy is not None:
            result["accuracy"] = self.accuracy
        if self.milliseconds is not None:
            result["clock_hz"] = self.clock_hz
            result["milliseconds"] = self.milliseconds
        return result

    def _table(self) -> tuple[list[str], list[list[str]]]:
        """Columns and rows, a layer each and the total last."""
        columns = ["layer", "operator"]
        rows = [[layer.name, layer.operator] for layer in self.model_layers]
        if self.unit is not None:
            columns.append(self.unit)
            rows = [[*row, f"{count:,}"] for row, count in zip(rows, self.layer_counts, strict=True)]
            rows.append(["total, median of images", "", f"{self.count_median:,}"])
        return columns, rows

    @property
    def _agreement(self) -> str:
        kind = " (simulated)" if self.simulated else ""
        return f"{self.images} images on `{self.board}`{kind}, {self.agree} equal to the host byte for byte."

    def to_markdown(self) -> str:
        """The layers as a Markdown table, and the totals below it."""
        from .report import markdown_table

        columns, rows = self._table()
        if self.unit is not None:
            rows[-1][0] = f"**{rows[-1][0]}**"
        return f"{markdown_table(columns, rows)}\n\n{self._agreement}"

    def __str__(self) -> str:
        from .report import bench as text

        return text(self)

    def _repr_html_(self) -> str:
        from .report import bench_html

        return bench_html(self)


def boards() -> list[Board]:
    """Every board this version knows."""
    return [
        Board(
            name=row.name,
            description=row.description,
            core=row.core,
            clock_hz=row.clock_hz,
            needs=row.needs,
            simulated=row.simulated,
        )
        for row in _native.list_boards()
    ]


def probes() -> list[Probe]:
    """Every debug probe that is connected, and those on the network that `CBIN_NN_PROBES` names.

    Raises:
        ProbeStuck: the USB can't be listed.
    """
    return [
        Probe(selector=row.selector, name=row.name, accessible=row.accessible)
        for row in _native.list_probes()
    ]


def runner_path(board: str) -> Path:
    """The prebuilt runner image of a board: in the package, or where `CBIN_NN_RUNNERS` names a folder.

    Raises:
        BoardError: the board is unknown, or its image is not in this installation.
    """
    names = [known.name for known in boards()]
    if board not in names:
        raise BoardError("unknown-board", f"board {board!r} is unknown; there are: {', '.join(names)}")
    folder = Path(os.environ.get("CBIN_NN_RUNNERS") or Path(__file__).parent / "runners")
    path = folder / f"{board}.elf"
    if not path.is_file():
        raise BoardError(
            "no-runner",
            f"board {board!r}: its runner image {path} is not there; run `make firmware` in the source "
            "tree, install a wheel, or set CBIN_NN_RUNNERS to the folder that holds it",
        )
    return path


def _labels(model: Model, labels: npt.ArrayLike, count: int) -> npt.NDArray[Any]:
    """Check labels: one class index an image."""
    if model.output_dtype == "bits":
        raise InvalidArgument(
            "no-classes", "`labels` are given, but this model ends in packed bits, not in classes"
        )
    truth = check_labels(labels, model.classes)
    if len(truth) != count:
        raise InvalidArgument("bad-labels", f"`labels` holds {len(truth)} labels for {count} images")
    return truth


class Device:
    """An open board; `connect` makes one. To be closed, best by a `with` statement."""

    def __init__(self, session: _native.BoardSession, board: str, model: Model | None) -> None:
        self._session = session
        #: Name of the board.
        self.board = board
        self._model = model

    @property
    def model(self) -> Model:
        """The model that is open on the board.

        Raises:
            NoModelOnBoard: none is.
        """
        if self._model is None:
            raise NoModelOnBoard("no-model", f"{self.board}: no model is open; load one with `load`")
        return self._model

    @property
    def simulated(self) -> bool:
        """True where figures are a simulator's."""
        return self._session.simulated

    @property
    def runner_version(self) -> str:
        """Version of the runner on the board."""
        return self._session.runner_version

    def load(self, model: Model, *, flash_progress: FlashProgress | None = None) -> bool:
        """Write a model to the board, unless it is there already, and open it in place of the last one.

        Args:
            model: the model.
            flash_progress: called while the board is flashed.

        Returns:
            True if it was written, False if the board held it.

        Raises:
            ModelTooLarge: it does not fit; nothing was written.
            BoardError: the board or its probe failed.
        """
        self._model = None
        self._session.load(model.to_bytes(), flash_progress)
        self._model = model
        return self._session.loaded == "written"

    def run(
        self, images: npt.ArrayLike, *, dequantize: bool = False, progress: Progress | None = None
    ) -> npt.NDArray[Any]:
        """Run a batch of images on the board: what `Model.run` returns, made by the board.

        Args:
            images: as for `Model.run`: uint8 `[N, H, W, C]`, or one image `[H, W, C]`; packed uint32 words
                where the model's input is bits.
            dequantize: return float32 logits, the integers times `output_scale`.
            progress: called with (done, total) between images.

        Returns:
            `[N, classes]` (`[classes]` for one image) of the model's output type.

        Raises:
            BoardError: the board or its probe failed, or no model is open.
            InvalidArgument: the images are wrong.
        """
        batch = self.model.check_input(images)
        if dequantize and self.model.output_dtype == "bits":
            raise InvalidArgument("no-logits", "`dequantize` is True, but this model ends in packed bits")
        outputs, _ = self._run(batch[None] if batch.ndim == 3 else batch, progress)
        if dequantize or self.model._native.float_output:
            outputs = self.model.dequantize(outputs)
        return outputs[0] if batch.ndim == 3 else outputs

    def _run(
        self, batch: npt.NDArray[Any], progress: Progress | None
    ) -> tuple[npt.NDArray[Any], _native.BoardRun]:
        """The integers for a checked batch, and all else that came back."""
        told = None if progress is None else lambda step, operation, done, total: progress(done, total)
        rows = np.ascontiguousarray(batch.reshape(len(batch), -1)).view(np.uint8)
        run = self._session.run(rows, told)
        like = self.model.run_integers(batch[:1])
        return np.frombuffer(run.outputs, like.dtype).reshape(len(batch), *like.shape[1:]), run

    def bench(
        self,
        images: npt.ArrayLike | None = None,
        *,
        labels: npt.ArrayLike | None = None,
        count: int | None = None,
        progress: Progress | None = None,
    ) -> BenchReport:
        """Run images and compare each output with the host's, byte for byte.

        Args:
            images: as for `run`; None draws 20 uint8 images `[N, H, W, C]` of our own.
            labels: integers `[N]`, for the accuracy.
            count: use only the first `count` images.
            progress: called with (done, total) between images.

        Returns:
            Counts an operator and an image, memory, agreement.

        Raises:
            BoardError: the board or its probe failed, or no model is open.
            InvalidArgument: images, labels or count are wrong.
        """
        batch, truth = _batch(self.model, images, labels, count)
        return _report(self, batch, truth, progress)

    def close(self) -> None:
        """Let go of the probe, or end the emulator. A second call does nothing."""
        self._session.close()

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        name = "no model" if self._model is None else repr(self._model)
        return f"<cbin_nn.deploy.Device {self.board}: {name}>"


def connect(
    board: str,
    model: Model | None = None,
    *,
    probe: str | None = None,
    speed_khz: int | None = None,
    under_reset: bool = False,
    timeout: float | None = None,
    flash_progress: FlashProgress | None = None,
) -> Device:
    """Open a board: flash its runner where another one is there, start it, and load a model.

    Args:
        board: a name of `boards()`.
        model: what to load. None opens the model that the board holds; an emulated board holds none, and
            waits for `Device.load`.
        probe: the debug probe, as `VID:PID` or `VID:PID:SERIAL`; None takes the only one. With a probe the
            emulated board is reached through it, too.
        speed_khz: the probe's clock in kHz; None leaves the probe's own choice.
        under_reset: attach while the chip is held in reset.
        timeout: seconds that board and probe may be silent; None takes generous defaults.
        flash_progress: called while the board is flashed.

    Returns:
        The open board, to be used in a `with` statement.

    Raises:
        BoardError: the board is unknown or failed; the subclasses in `cbin_nn.errors` say how.
        ProbeError: there is no probe, or it failed.
        ModelTooLarge: the model does not fit; nothing was written.
        NoModelOnBoard: `model` is None, and the board holds no valid one.
        InvalidArgument: `probe`, `speed_khz` or `timeout` is wrong.
    """
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, (int, float))):
        raise InvalidArgument("bad-timeout", f"`timeout` is {timeout!r}, expected seconds, or None")
    if probe is not None and not isinstance(probe, str):
        raise InvalidArgument("bad-probe", f"`probe` is {probe!r}, expected VID:PID[:SERIAL], or None")
    if speed_khz is not None:
        speed_khz = integer("speed_khz", speed_khz, 1, MAX_SPEED_KHZ)
    session = _native.BoardSession(
        board,
        runner_path(board),
        None if model is None else model.to_bytes(),
        probe=probe,
        speed_khz=speed_khz,
        under_reset=bool(under_reset),
        timeout_s=timeout,
        progress=flash_progress,
    )
    known = next(row for row in boards() if row.name == board)
    if model is None and not (known.simulated and probe is None):
        from .model import Model as AnyModel

        try:
            model = AnyModel(_native.Model.from_bytes(session.open_stored()))
        except BaseException:
            session.close()
            raise
    return Device(session, board, model)


def flash(
    model: Model,
    board: str,
    *,
    probe: str | None = None,
    speed_khz: int | None = None,
    under_reset: bool = False,
    timeout: float | None = None,
    flash_progress: FlashProgress | None = None,
) -> FlashReport:
    """Write a model to a board, with the runner where another one is there; the board checks and opens it.

    What the board holds already is not written again. See `connect` for the arguments and the errors.

    Returns:
        Whether the model was written, and to what.
    """
    with connect(
        board,
        model,
        probe=probe,
        speed_khz=speed_khz,
        under_reset=under_reset,
        timeout=timeout,
        flash_progress=flash_progress,
    ) as device:
        return FlashReport(
            board=board,
            written=device._session.loaded == "written",
            model_sha256=model.sha256,
            runner_version=device.runner_version,
            simulated=device.simulated,
        )


def _batch(
    model: Model, images: npt.ArrayLike | None, labels: npt.ArrayLike | None, count: int | None
) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
    """Checked images and labels of a benchmark."""
    if count is not None:
        count = integer("count", count, 1, MAX_IMAGES)
    if images is None:
        from .images import draw_images

        height, width, channels = model.input_shape
        images = draw_images(
            DEFAULT_IMAGES if count is None else count, height, width, seed=1, channels=channels
        )
        if model.input_dtype == "bits":
            from .ops import pack

            images = pack(images.astype(np.int16) - 128)
    batch = model.check_input(images)
    batch = batch[None] if batch.ndim == 3 else batch
    truth = None if labels is None else _labels(model, labels, len(batch))
    if count is not None:
        if count > len(batch):
            raise InvalidArgument("bad-count", f"`count` is {count}, but there are {len(batch)} images")
        batch = batch[:count]
        truth = None if truth is None else truth[:count]
    if not len(batch):
        raise InvalidArgument("no-images", "`images` is empty: a benchmark needs at least one image")
    return batch, truth


def _report(
    device: Device,
    batch: npt.NDArray[Any],
    truth: npt.NDArray[Any] | None,
    progress: Progress | None,
) -> BenchReport:
    """Run a checked batch on an open board and compare."""
    model = device.model
    host = model.run_integers(batch)
    outputs, run = device._run(batch, progress)
    differing = (
        outputs.reshape(len(batch), -1).view(np.uint8) != host.reshape(len(batch), -1).view(np.uint8)
    ).sum(axis=1)
    known = next(row for row in boards() if row.name == device.board)
    accuracy = None
    if truth is not None:
        accuracy = float((outputs.argmax(axis=1) == truth).mean())
    return BenchReport(
        board=device.board,
        simulated=run.simulated,
        unit=run.unit,
        clock_hz=None if run.simulated else known.clock_hz,
        images=len(batch),
        agree=int((differing == 0).sum()),
        differing_bytes=int(differing.sum()),
        outputs=outputs,
        counts=np.array(run.counts, np.uint64).reshape(len(batch), -1),
        model_layers=model.layers,
        accuracy=accuracy,
        ram={
            "arena": run.arena_bytes,
            "io": model.input_bytes + host[0].nbytes,
            "stack": run.stack_bytes,
            "transport": run.transport_bytes,
            "other": run.other_bytes,
        },
        flash={"code": run.code_bytes, "model": model.file_bytes},
        model_sha256=model.sha256,
        runner_version=run.runner_version,
    )


def bench(
    model: Model,
    board: str,
    images: npt.ArrayLike | None = None,
    *,
    labels: npt.ArrayLike | None = None,
    count: int | None = None,
    probe: str | None = None,
    speed_khz: int | None = None,
    under_reset: bool = False,
    timeout: float | None = None,
    progress: Progress | None = None,
    flash_progress: FlashProgress | None = None,
) -> BenchReport:
    """Run images on a board and compare each output with the host's, byte for byte.

    Args:
        model: the model; the board gets the very bytes that the host runs.
        board: a name of `boards()`.
        images: uint8 `[N, H, W, C]`, or packed uint32 `[N, H, W, words]` where the model's input is bits;
            None draws 20 of our own (`cbin_nn.images`).
        labels: integers `[N]`, for the accuracy.
        count: use only the first `count` images.
        probe: the debug probe; see `connect`, also for the next two.
        speed_khz: the probe's clock in kHz.
        under_reset: attach while the chip is held in reset.
        timeout: seconds that the board may be silent; None takes generous defaults.
        progress: called with (done, total) between images.
        flash_progress: called while the board is flashed.

    Returns:
        Counts an operator and an image, memory, agreement.

    Raises:
        BoardError: the board, its probe or its emulator is missing, failed or fell silent, or the model does
            not fit it; the subclasses in `cbin_nn.errors` say how.
        InvalidArgument: images, labels or count are wrong.
    """
    batch, truth = _batch(model, images, labels, count)
    with connect(
        board,
        model,
        probe=probe,
        speed_khz=speed_khz,
        under_reset=under_reset,
        timeout=timeout,
        flash_progress=flash_progress,
    ) as device:
        return _report(device, batch, truth, progress)
