"""Boards: which there are, and running a model on one, compared with the host byte for byte."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from . import _native
from .errors import BoardError, InvalidArgument
from .geometry import array, integer

if TYPE_CHECKING:
    from .model import Layer, Model

__all__ = ["BenchReport", "Board", "Progress", "bench", "boards", "runner_path"]

#: Called with (images done, images in all).
Progress = Callable[[int, int], None]

DEFAULT_IMAGES = 20
#: Most images of one benchmark.
MAX_IMAGES = 1_000_000


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


@dataclass(frozen=True, eq=False)
class BenchReport:
    """What a board did with some images. Sizes are in bytes; counts are in `unit` an image."""

    board: str
    simulated: bool
    #: "instructions" or "cycles".
    unit: str
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

    def to_dict(self) -> dict[str, Any]:
        """The report as `cbin-nn bench --json` prints it."""
        layers = [
            {"name": layer.name, "operator": layer.operator, self.unit: count}
            for layer, count in zip(self.model_layers, self.layer_counts, strict=True)
        ]
        result: dict[str, Any] = {
            "board": self.board,
            "simulated": self.simulated,
            "images": self.images,
            "agree": self.agree,
            "differing_bytes": self.differing_bytes,
            self.unit: self.count_median,
            f"{self.unit}_min": self.count_min,
            f"{self.unit}_max": self.count_max,
            "layers": layers,
            "ram": dict(self.ram),
            "flash": dict(self.flash),
            "model_sha256": self.model_sha256,
            "runner_version": self.runner_version,
        }
        if self.accuracy is not None:
            result["accuracy"] = self.accuracy
        if self.clock_hz is not None and not self.simulated:
            result["clock_hz"] = self.clock_hz
            result["milliseconds"] = 1000 * self.count_median / self.clock_hz
        return result

    def to_markdown(self) -> str:
        """The layers as a Markdown table, and the totals below it."""
        from .report import markdown_table

        rows = [
            [layer.name, layer.operator, f"{count:,}"]
            for layer, count in zip(self.model_layers, self.layer_counts, strict=True)
        ]
        rows.append(["**total, median of images**", "", f"{self.count_median:,}"])
        table = markdown_table(["layer", "operator", self.unit], rows)
        agreement = f"{self.images} images on `{self.board}`, {self.agree} equal to the host byte for byte."
        return f"{table}\n\n{agreement}"

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
    truth = array("labels", labels)
    if model.output_dtype == "bits":
        raise InvalidArgument(
            "no-classes", "`labels` are given, but this model ends in packed bits, not in classes"
        )
    if truth.ndim != 1 or len(truth) != count or truth.dtype.kind not in "iu":
        raise InvalidArgument(
            "bad-labels", f"`labels` is {truth.dtype} {list(truth.shape)}, expected {count} integers"
        )
    if truth.size and not (truth.min() >= 0 and truth.max() < model.classes):
        raise InvalidArgument(
            "bad-labels",
            f"`labels` run from {truth.min()} to {truth.max()}, expected 0 to {model.classes - 1}",
        )
    return truth


def bench(
    model: Model,
    board: str,
    images: npt.ArrayLike | None = None,
    *,
    labels: npt.ArrayLike | None = None,
    count: int | None = None,
    timeout: float | None = None,
    progress: Progress | None = None,
) -> BenchReport:
    """Run images on a board and compare each output with the host's, byte for byte.

    Args:
        model: the model; the board gets the very bytes that the host runs.
        board: a name of `boards()`.
        images: uint8 `[N, H, W, C]`, or packed uint32 `[N, H, W, words]` where the model's input is bits;
            None draws 20 of our own (`cbin_nn.images`).
        labels: integers `[N]`, for the accuracy.
        count: use only the first `count` images.
        timeout: seconds that the board may be silent; None takes generous defaults.
        progress: called with (done, total) between images.

    Returns:
        Counts an operator and an image, memory, agreement.

    Raises:
        BoardError: the board or its emulator is missing, failed or fell silent, or the model does not fit it.
        InvalidArgument: images, labels or count are wrong.
    """
    if count is not None:
        count = integer("count", count, 1, MAX_IMAGES)
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, (int, float))):
        raise InvalidArgument("bad-timeout", f"`timeout` is {timeout!r}, expected seconds, or None")
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
    host = model.run_integers(batch)
    data = model.to_bytes()
    run = _native.run_on_board(
        board,
        runner_path(board),
        data,
        np.ascontiguousarray(batch.reshape(len(batch), -1)).view(np.uint8),
        progress,
        timeout,
    )
    outputs = np.frombuffer(run.outputs, host.dtype).reshape(host.shape)
    differing = (
        outputs.reshape(len(batch), -1).view(np.uint8) != host.reshape(len(batch), -1).view(np.uint8)
    ).sum(axis=1)
    known = next(row for row in boards() if row.name == board)
    accuracy = None
    if truth is not None:
        accuracy = float((outputs.argmax(axis=1) == truth).mean())
    io = model.input_bytes + host[0].nbytes
    return BenchReport(
        board=board,
        simulated=known.simulated,
        unit=run.unit,
        clock_hz=known.clock_hz,
        images=len(batch),
        agree=int((differing == 0).sum()),
        differing_bytes=int(differing.sum()),
        outputs=outputs,
        counts=np.array(run.counts, np.uint64).reshape(len(batch), -1),
        model_layers=model.layers,
        accuracy=accuracy,
        ram={
            "arena": run.arena_bytes,
            "io": io,
            "stack": run.stack_bytes,
            "transport": run.transport_bytes,
            "other": run.other_bytes,
        },
        flash={"code": run.code_bytes, "model": len(data)},
        model_sha256=model.sha256,
        runner_version=run.runner_version,
    )
