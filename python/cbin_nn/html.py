"""Reports as HTML: one file without any reference to another, and fragments for Jupyter."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["escape", "figure", "page", "preformatted", "table", "text"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 }
th, td { padding: .3em .8em; border-bottom: 1px solid #ccc }
th { text-align: left } td.n { text-align: right; font-variant-numeric: tabular-nums }
pre { overflow-x: auto; font-size: 13px }
svg { max-width: 100%; height: auto } h1, h2 { line-height: 1.2 }
"""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; cells that are numbers are aligned right."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = ""
    for row in rows:
        cells = (
            f'<td class="n">{escape(cell)}</td>' if cell[:1].isdigit() else f"<td>{escape(cell)}</td>"
            for cell in row
        )
        body += f"<tr>{''.join(cells)}</tr>\n"
    return f"<table>\n<tr>{head}</tr>\n{body}</table>\n"


def text(lines: Iterable[str]) -> str:
    """Lines of plain text."""
    return "<p>" + "<br>\n".join(escape(line) for line in lines) + "</p>\n"


def preformatted(content: str) -> str:
    """Text whose columns line up."""
    return f"<pre>{escape(content)}</pre>\n"


def figure(axes: Axes) -> str:
    """A plot as inline SVG, its text kept as text."""
    import matplotlib

    buffer = io.StringIO()
    # A fixed salt and no date: the same report is the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cbin-nn"}):
        cast("Figure", axes.figure).savefig(buffer, format="svg", metadata={"Date": None})
    drawing = buffer.getvalue()
    return f"<figure>{drawing[drawing.index('<svg') :]}</figure>\n"


def page(title: str, sections: Iterable[tuple[str, str]]) -> str:
    """A whole document of (heading, HTML) sections."""
    body = "".join(f"<h2>{escape(heading)}</h2>\n{content}" for heading, content in sections)
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n<h1>{escape(title)}</h1>\n{body}</html>\n"
    )
