"""What people read: `Model.summary`, `BenchReport` and `Model.report`, as text, Markdown and HTML."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from . import html
from .errors import InvalidArgument
from .files import write_atomically

if TYPE_CHECKING:
    from .deploy import BenchReport
    from .model import Layer, Model

__all__ = ["ModelReport", "bench", "bench_html", "markdown_table", "report_kind", "summary", "text_table"]

#: Wide enough for any row: a table never wraps a number.
WIDTH = 200


_KINDS: dict[str, Literal["html", "md", "txt"]] = {
    ".html": "html",
    ".htm": "html",
    ".md": "md",
    ".txt": "txt",
    "": "txt",
}


def report_kind(path: str | os.PathLike[str]) -> Literal["html", "md", "txt"]:
    """What a report is written as, by the suffix of `path`.

    Raises:
        InvalidArgument: a suffix of a kind that is not written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _KINDS:
        hint = "; print the .html to PDF from a browser" if suffix == ".pdf" else ""
        raise InvalidArgument(
            "bad-report", f"report {os.fspath(path)}: {suffix} is not written; use .html, .md or .txt{hint}"
        )
    return _KINDS[suffix]


def text_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], footer: Sequence[str] | None = None
) -> str:
    """A plain-text table of `columns` and `rows`, with a `footer` or without; numbers are aligned right."""
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
    # In Jupyter rich would show the table itself instead of writing it.
    console = Console(
        file=buffer, width=WIDTH, color_system=None, highlight=False, markup=False, force_jupyter=False
    )
    console.print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().strip("\n").splitlines() if line.strip())


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A GitHub-flavoured Markdown table of `columns` and `rows`."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _operator(layer: Layer) -> str:
    return f"{layer.operator} + pool" if layer.fused_pool else layer.operator


def _shape(layer: Layer) -> str:
    height, width, channels = layer.output_shape
    return f"{channels}" if (height, width) == (1, 1) else f"{height} x {width} x {channels}"


#: Columns of `_layer_rows`.
_LAYER_COLUMNS = ["Layer", "Operator", "Output", "MACs", "Flash, B", "Output, B", "Scratch, B"]


def _layer_rows(model: Model) -> list[list[str]]:
    return [
        [
            layer.name,
            _operator(layer),
            f"{_shape(layer)} {layer.output_dtype}",
            f"{layer.macs:,}",
            f"{layer.flash:,}",
            f"{layer.output_bytes:,}",
            f"{layer.scratch:,}",
        ]
        for layer in model.layers
    ]


def _totals(model: Model) -> list[str]:
    return [
        f"MACs: {model.macs:,}",
        f"Flash: {model.file_bytes:,} bytes (the .cbn file: weights, rules, graph)",
        f"RAM: {model.arena_bytes:,} bytes of arena; image {model.input_bytes:,} bytes "
        f"{'in one with it' if model.in_place else 'beside it'}",
    ]


def _input(model: Model) -> str:
    height, width, channels = model.input_shape
    return f"Input: {model.input_dtype} {height} x {width} x {channels}"


def summary(model: Model) -> str:
    """The text of `Model.summary`: one line a layer, then totals."""
    table = text_table(_LAYER_COLUMNS, _layer_rows(model))
    return "\n".join([f'Model: "{model.name}"', _input(model), table, *_totals(model)])


def _bench_rows(report: BenchReport) -> tuple[list[str], list[list[str]]]:
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
    if report.unit is not None:
        columns.insert(3, f"{report.unit.capitalize()} (median)")
        for row, count in zip(rows, report.layer_counts, strict=True):
            row.insert(3, f"{count:,}")
    return columns, rows


def _bench_head(report: BenchReport) -> str:
    head = f"Board: {report.board}"
    if report.unit is None:
        return head + (" (simulated: no counts, no time)" if report.simulated else " (counts nothing)")
    return head + (f" (emulated: {report.unit}, not time)" if report.simulated else "")


def _bench_counts(report: BenchReport) -> list[str]:
    if report.unit is None:
        return []
    lines = [
        f"{report.unit.capitalize()} an image: {report.count_median:,} "
        f"(min {report.count_min:,}, max {report.count_max:,})"
    ]
    if report.milliseconds is not None and report.clock_hz is not None:
        megahertz = report.clock_hz / 1e6
        lines.append(f"Milliseconds an image at {megahertz:g} MHz: {report.milliseconds:.3f}")
    return lines


def _bench_totals(report: BenchReport) -> list[str]:
    ram, flash = report.ram, report.flash
    lines = [
        *_bench_counts(report),
        f"RAM, bytes: arena {ram['arena']:,}, image and output {ram['io']:,}, stack {ram['stack']:,}, "
        f"transport {ram['transport']:,}, other {ram['other']:,}; sum {sum(ram.values()):,}",
        f"Flash, bytes: code {flash['code']:,}, model {flash['model']:,}; sum {sum(flash.values()):,}",
        f"{report.images} images, {report.differing_bytes} differing bytes between host and board",
    ]
    if report.accuracy is not None:
        lines.append(f"Accuracy on these images: {report.accuracy:.2%}")
    return lines


def bench(report: BenchReport) -> str:
    """The text of a `BenchReport`: one line a layer, then memory and agreement."""
    return "\n".join([_bench_head(report), text_table(*_bench_rows(report)), *_bench_totals(report)])


def bench_html(report: BenchReport) -> str:
    """A `BenchReport` as a fragment of HTML, without pictures."""
    return (
        html.text([_bench_head(report)]) + html.table(*_bench_rows(report)) + html.text(_bench_totals(report))
    )


@dataclass(frozen=True, eq=False)
class ModelReport:
    """Layers, memory, the conversion and benchmarks of a model, for people; `Model.report` makes it.

    `print` shows text, Jupyter shows HTML.

    Raises:
        InvalidArgument: a benchmark is another model's.
    """

    model: Model
    benches: tuple[BenchReport, ...] = ()

    def __post_init__(self) -> None:
        for report in self.benches:
            if report.model_sha256 != self.model.sha256:
                raise InvalidArgument(
                    "other-model",
                    f"`benches` holds a benchmark of another model (sha256 {report.model_sha256[:12]}..., "
                    f"this one is {self.model.sha256[:12]}...): pass benchmarks of this model",
                )

    def __str__(self) -> str:
        parts = [summary(self.model)]
        if self.model.conversion is not None:
            parts.append(str(self.model.conversion))
        return "\n\n".join(parts + [bench(report) for report in self.benches])

    def to_markdown(self) -> str:
        """The report as Markdown."""
        model = self.model
        parts = [f"# {model.name}", _input(model), markdown_table(_LAYER_COLUMNS, _layer_rows(model))]
        parts.append("\n".join(f"- {line}" for line in _totals(model)))
        if model.conversion is not None:
            parts.append(f"## Conversion\n\n```\n{model.conversion}\n```")
        for report in self.benches:
            parts.append(f"## {report.board}\n\n{markdown_table(*_bench_rows(report))}")
            parts.append("\n".join(f"- {line}" for line in _bench_totals(report)))
        return "\n\n".join(parts) + "\n"

    def _sections(self) -> list[tuple[str, str]]:
        model = self.model
        layers = html.table(_LAYER_COLUMNS, _layer_rows(model)) + html.text(_totals(model))
        sections = [("Layers", html.text([_input(model)]) + layers)]
        sections += [(report.board, bench_html(report)) for report in self.benches]
        if model.conversion is not None:
            sections.append(("Conversion", html.preformatted(str(model.conversion))))
        return sections

    def to_html(self) -> str:
        """The report as one self-contained file of HTML, with pictures.

        Raises:
            MissingExtra: matplotlib (extra `plot`) is not installed.
        """
        from . import plots

        drawn = [("RAM over time", plots.arena(self.model)), ("Flash by layer", plots.flash(self.model))]
        counted = [report for report in self.benches if report.unit is not None]
        drawn += [(f"Time by layer, {report.board}", plots.counts(report)) for report in counted]
        pictures = [(heading, html.figure(axes)) for heading, axes in drawn]
        layers, *others = self._sections()
        return html.page(self.model.name or "A .cbn model", [layers, *pictures, *others])

    def _repr_html_(self) -> str:
        return "".join(f"<h3>{html.escape(heading)}</h3>{content}" for heading, content in self._sections())

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the report: HTML to `.html`, Markdown to `.md`, text to `.txt` or a name without a suffix.

        Args:
            path: the file.
            overwrite: replace a file that exists.

        Raises:
            InvalidArgument: a suffix of a kind that is not written.
            OutputError: the file exists (and `overwrite` is False) or can't be written.
            MissingExtra: for HTML, matplotlib (extra `plot`) is not installed.
        """
        kind = report_kind(path)
        content = self.to_html() if kind == "html" else self.to_markdown() if kind == "md" else f"{self}\n"
        return write_atomically(path, content.encode(), overwrite=overwrite)
