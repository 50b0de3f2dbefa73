"""Pictures of a model and of a benchmark, with matplotlib (extra `plot`). Readable in black and white.

Each function draws into `ax`, or into a new figure where that is None, and returns the axes;
`plots.arena(model).figure` is the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .errors import InvalidArgument, MissingExtra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .deploy import BenchReport
    from .model import Model

__all__ = ["activations", "arena", "compare", "counts", "flash"]

#: Fill and hatch of the layers, in turn: told apart without colour, too.
STYLES: list[dict[str, Any]] = [
    {"facecolor": "#4c78a8", "hatch": ""},
    {"facecolor": "#f2cf5b", "hatch": "//"},
    {"facecolor": "#72b7b2", "hatch": ".."},
    {"facecolor": "#e8e8e8", "hatch": ""},
    {"facecolor": "#b279a2", "hatch": "\\\\"},
    {"facecolor": "#9ecae9", "hatch": "xx"},
]


def _axes(ax: Axes | None, width: float, height: float) -> Axes:
    """`ax`, or that of a new figure of this size in inches. No window is ever opened."""
    if ax is not None:
        return ax
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("missing-extra", 'plots need matplotlib: pip install "cbin-nn[plot]"') from error
    # No pyplot: it keeps every figure alive, and picks a back end by the machine it runs on.
    return Figure(figsize=(width, height), layout="constrained").subplots()


def _style(index: int) -> dict[str, Any]:
    return {**STYLES[index % len(STYLES)], "edgecolor": "black", "linewidth": 0.8}


def _bars(ax: Axes, names: Sequence[str], values: Sequence[int], unit: str) -> Axes:
    """Horizontal bars from the top down, each with its number and its share."""
    total = max(sum(values), 1)
    for index, value in enumerate(values):
        ax.barh(index, value, **_style(0))
        ax.annotate(f" {value:,} ({value / total:.0%})", (value, index), va="center", fontsize=9)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.3 * max([*values, 1]))
    ax.set_xlabel(unit)
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.locator_params(axis="x", nbins=5)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def counts(report: BenchReport, ax: Axes | None = None) -> Axes:
    """Where the time goes: median instructions (or cycles) of each layer.

    Args:
        report: the benchmark.
        ax: where to draw; None makes a figure.

    Raises:
        InvalidArgument: the board counted nothing, as a simulated chip does.
        MissingExtra: matplotlib is not installed. So for every function here.
    """
    if report.unit is None:
        raise InvalidArgument(
            "no-counts", f"`report` has no counts: {report.board} counts nothing that means something"
        )
    names = [layer.name for layer in report.model_layers]
    ax = _axes(ax, 7, 0.9 + 0.42 * len(names))
    _bars(ax, names, report.layer_counts, f"{report.unit} an image, median")
    ax.set_title(f"{report.board}: {report.count_median:,} {report.unit} an image", fontsize=11)
    return ax


def flash(model: Model, ax: Axes | None = None) -> Axes:
    """Bytes of flash by layer (weights and rules).

    Args:
        model: the model.
        ax: where to draw; None makes a figure.
    """
    layers = model.layers
    ax = _axes(ax, 7, 0.9 + 0.42 * len(layers))
    _bars(ax, [layer.name for layer in layers], [layer.flash for layer in layers], "bytes of flash")
    ax.set_title(f"{model.name}: {model.file_bytes:,} bytes of flash", fontsize=11)
    return ax


def arena(model: Model, ax: Axes | None = None) -> Axes:
    """RAM over time: what lies where in the arena while each layer runs. Hatched is scratch.

    Args:
        model: the model.
        ax: where to draw; None makes a figure.
    """
    layers = model.layers
    ax = _axes(ax, 7, 3.6)
    total = max((buffer.offset + buffer.bytes for buffer in model.arena), default=0)
    for buffer in model.arena:
        width = buffer.last - buffer.first + 1
        style = _style(3 if buffer.scratch else 0) | {"hatch": "//" if buffer.scratch else ""}
        ax.bar(buffer.first - 0.5, buffer.bytes, width=width, bottom=buffer.offset, align="edge", **style)
        if buffer.bytes >= 0.06 * total:
            ax.annotate(
                f"{buffer.name}{' scratch' if buffer.scratch else ''}\n{buffer.bytes:,}",
                (buffer.first - 0.5 + width / 2, buffer.offset + buffer.bytes / 2),
                ha="center",
                va="center",
                fontsize=8,
                bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
            )
    ax.set_xticks(range(len(layers)), [layer.name for layer in layers], rotation=20, ha="right")
    ax.set_xlim(-0.5, len(layers) - 0.5)
    ax.set_ylim(0, max(total, 1))
    ax.set_ylabel("byte of the arena")
    image = ", image included," if model.in_place else ""
    ax.set_title(f"{model.name}: {total:,} bytes of arena{image} while each layer runs", fontsize=11)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def compare(reports: Mapping[str, BenchReport], ax: Axes | None = None) -> Axes:
    """Several benchmarks, a bar each, cut by layer.

    Args:
        reports: name -> benchmark; all in one unit.
        ax: where to draw; None makes a figure.

    Raises:
        InvalidArgument: there is none, or their units differ.
    """
    units = {report.unit or "nothing" for report in reports.values()}
    if len(units) != 1:
        raise InvalidArgument(
            "bad-reports",
            f"`reports` count {' and '.join(sorted(units)) or 'nothing'}, expected benchmarks in one unit",
        )
    unit = units.pop()
    ax = _axes(ax, 7, 1.2 + 0.55 * len(reports))
    most = max(len(report.layer_counts) for report in reports.values())
    for index in range(most):
        ax.barh(0, 0, **_style(index), label=f"layer {index + 1}")
    for row, report in enumerate(reports.values()):
        left = 0
        for index, count in enumerate(report.layer_counts):
            ax.barh(row, count, left=left, **_style(index))
            left += count
        ax.annotate(f" {report.count_median:,}", (left, row), va="center", fontsize=9)
    ax.set_yticks(range(len(reports)), list(reports))
    ax.invert_yaxis()
    ax.set_xlim(0, 1.25 * max(sum(report.layer_counts) for report in reports.values()))
    ax.set_xlabel(f"{unit} an image, median, layer by layer")
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.locator_params(axis="x", nbins=5)
    ax.spines[["top", "right"]].set_visible(False)
    if most > 1:
        ax.legend(ncols=min(most, 6), fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(1, 1))
    return ax


def activations(signs: npt.NDArray[np.int8], columns: int = 16, ax: Axes | None = None) -> Axes:
    """A packed tensor as pictures, one a channel: +1 is white, -1 is black.

    Args:
        signs: int8 `[H, W, C]` of -1 and +1, as `Model.taps` gives it.
        columns: pictures in a row.
        ax: where to draw; None makes a figure.

    Raises:
        InvalidArgument: `signs` has another shape or other values.
    """
    if signs.ndim != 3 or not np.isin(signs, (-1, 1)).all():
        raise InvalidArgument(
            "bad-shape",
            f"`signs` is {signs.dtype} {list(signs.shape)}, expected [H, W, C] of -1 and +1, as taps gives",
        )
    height, width, channels = signs.shape
    columns = max(1, min(columns, channels))
    rows = -(-channels // columns)
    # A grey pixel between two pictures.
    sheet = np.zeros((rows * (height + 1) - 1, columns * (width + 1) - 1), np.int8)
    for channel in range(channels):
        y, x = channel // columns * (height + 1), channel % columns * (width + 1)
        sheet[y : y + height, x : x + width] = signs[:, :, channel]
    ax = _axes(ax, 8, 8 * sheet.shape[0] / sheet.shape[1] + 0.3)
    ax.imshow(sheet, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
    ax.set_axis_off()
    return ax
