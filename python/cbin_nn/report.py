"""Tables for people: `Model.summary` and `BenchReport`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .deploy import BenchReport
    from .model import Layer, Model

__all__ = ["bench", "markdown_table", "summary", "text_table"]

#: Wide enough for any row: a table never wraps a number.
WIDTH = 200


def text_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], footer: Sequence[str] | None = None
) -> str:
    """A plain-text table; columns after the first three are numbers, aligned right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_footer=footer is not None, pad_edge=False)
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(row[index][:1].isdigit() or row[index] in {"", "-"} for row in rows)
        table.add_column(
            column,
            footer=footer[index] if footer else "",
            justify="right" if numeric and index else "left",
            no_wrap=True,
        )
    for row in rows:
        table.add_row(*row)
    buffer = io.StringIO()
    Console(file=buffer, width=WIDTH, color_system=None, highlight=False, markup=False).print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().strip("\n").splitlines() if line.strip())


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A GitHub-flavoured Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _operator(layer: Layer) -> str:
    return f"{layer.operator} + pool" if layer.fused_pool else layer.operator


def _shape(layer: Layer) -> str:
    height, width, channels = layer.output_shape
    return f"{channels}" if (height, width) == (1, 1) else f"{height} x {width} x {channels}"


def summary(model: Model) -> str:
    """The text of `Model.summary`: one line a layer, then totals."""
    layers = model.layers
    rows = [
        [
            layer.name,
            _operator(layer),
            f"{_shape(layer)} {layer.output_dtype}",
            f"{layer.macs:,}",
            f"{layer.flash:,}",
            f"{layer.output_bytes:,}",
            f"{layer.scratch:,}",
        ]
        for layer in layers
    ]
    columns = ["Layer", "Operator", "Output", "MACs", "Flash, B", "Output, B", "Scratch, B"]
    height, width, channels = model.input_shape
    return "\n".join(
        [
            f'Model: "{model.name}"',
            f"Input: {model.input_dtype} {height} x {width} x {channels}",
            text_table(columns, rows),
            f"MACs: {model.macs:,}",
            f"Flash: {model.file_bytes:,} bytes (the .cbn file: weights, rules, graph)",
            f"RAM: {model.arena_bytes:,} bytes of arena; image {model.input_bytes:,} bytes beside it",
        ]
    )


def bench(report: BenchReport) -> str:
    """The text of a `BenchReport`: one line a layer, then memory and agreement."""
    unit = report.unit
    columns = ["Layer", "Operator", "Output", "Flash, B", "Output + scratch, B"]
    rows = [
        [
            layer.name,
            _operator(layer),
            f"{_shape(layer)} {layer.output_dtype}",
            f"{layer.flash:,}",
            f"{layer.output_bytes + layer.scratch:,}",
        ]
        for layer in report.model_layers
    ]
    title, counts = f"Board: {report.board}", []
    if unit is None:
        title += " (simulated: no counts, no time)" if report.simulated else " (counts nothing)"
    else:
        title += f" (emulated: {unit}, not time)" if report.simulated else ""
        columns.insert(3, f"{unit.capitalize()} (median)")
        for row, count in zip(rows, report.layer_counts, strict=True):
            row.insert(3, f"{count:,}")
        counts = [
            f"{unit.capitalize()} an image: {report.count_median:,} "
            f"(min {report.count_min:,}, max {report.count_max:,})"
        ]
    if unit == "cycles" and report.clock_hz is not None:
        milliseconds = 1000 * report.count_median / report.clock_hz
        counts.append(f"Milliseconds an image at {report.clock_hz / 1e6:g} MHz: {milliseconds:.3f}")
    ram, flash = report.ram, report.flash
    lines = [
        title,
        text_table(columns, rows),
        *counts,
        f"RAM, bytes: arena {ram['arena']:,}, image and output {ram['io']:,}, stack {ram['stack']:,}, "
        f"transport {ram['transport']:,}, other {ram['other']:,}; sum {sum(ram.values()):,}",
        f"Flash, bytes: code {flash['code']:,}, model {flash['model']:,}; sum {sum(flash.values()):,}",
        f"{report.images} images, {report.differing_bytes} differing bytes between host and board",
    ]
    if report.accuracy is not None:
        lines.append(f"Accuracy on these images: {report.accuracy:.2%}")
    return "\n".join(lines)
