"""`Model.report`, `BenchReport` and `cbin_nn.plots`: what people read."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import cbin_nn
import numpy as np
import pytest
from cbin_nn import plots
from cbin_nn.cli import main
from cbin_nn.errors import InvalidArgument, OutputError
from cbin_nn.images import draw_images
from click.testing import CliRunner
from conftest import FIXTURES, require


@pytest.fixture(scope="module")
def model() -> cbin_nn.Model:
    return cbin_nn.convert(FIXTURES / "tiny.h5")


@pytest.fixture(scope="module")
def bench(model: cbin_nn.Model) -> cbin_nn.BenchReport:
    require("qemu-system-arm", shutil.which("qemu-system-arm") is not None, "apt-get install qemu-system-arm")
    return model.bench("qemu-mps2-an500", draw_images(3, *model.input_shape[:2], seed=1))


class Tags(HTMLParser):
    """Counts tags, and refuses a document that does not close what it opens."""

    VOID = ("meta", "br")

    def __init__(self, document: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: dict[str, int] = {}
        self.references: list[str] = []
        self.feed(document)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_every_form_of_a_report_holds_every_layer_and_count(
    model: cbin_nn.Model, bench: cbin_nn.BenchReport
) -> None:
    report = model.report(bench)
    for text in (str(report), report.to_markdown(), report.to_html(), report._repr_html_()):
        for layer, count in zip(model.layers, bench.layer_counts, strict=True):
            assert layer.name in text
            assert f"{count:,}" in text
        assert f"{model.file_bytes:,}" in text
        assert f"{bench.count_median:,}" in text
        assert "0 differing bytes" in text


def test_html_is_one_file_that_refers_to_no_other(model: cbin_nn.Model, bench: cbin_nn.BenchReport) -> None:
    document = model.report(bench).to_html()
    tags = Tags(document)
    assert tags.count["svg"] == 3
    assert tags.count["table"] == 2
    assert all(reference.startswith("#") for reference in tags.references)
    assert not re.search(r"url\((?!#)|@import|<script", document)
    assert document == model.report(bench).to_html(), "the same report is another file"
    Tags(f"<div>{bench._repr_html_()}</div>")


def test_names_are_escaped(model: cbin_nn.Model) -> None:
    data = bytearray(model.to_bytes())
    name = model.layers[0].name.encode()
    evil = b"<script>alert(1)"[: len(name)].ljust(len(name), b"!")
    at = data.find(name)
    while at >= 0:
        data[at : at + len(name)] = evil
        at = data.find(name, at + len(name))
    import zlib

    data[12:16] = zlib.crc32(data[16:]).to_bytes(4, "little")
    hostile = cbin_nn.Model.from_bytes(bytes(data))
    assert hostile.layers[0].name == evil.decode()
    document = hostile.report().to_html()
    assert evil[:7].decode() not in document
    Tags(document)


def test_a_report_is_saved_by_its_suffix(model: cbin_nn.Model, tmp_path: Path) -> None:
    report = model.report()
    assert report.save(tmp_path / "r.html").read_text().startswith("<!doctype html>")
    assert report.save(tmp_path / "r.md").read_text() == report.to_markdown()
    assert report.save(tmp_path / "r.txt").read_text() == f"{report}\n"
    assert report.save(tmp_path / "r").read_text() == f"{report}\n"
    with pytest.raises(OutputError, match="exists"):
        report.save(tmp_path / "r.md")
    for name, message in (("r.pdf", "to PDF from a browser"), ("r.docx", r"\.docx is not written")):
        with pytest.raises(InvalidArgument, match=message):
            report.save(tmp_path / name)
        assert not (tmp_path / name).exists()


def test_a_benchmark_of_another_model_is_refused(bench: cbin_nn.BenchReport) -> None:
    other = cbin_nn.convert(FIXTURES / "smallcifar.h5")
    with pytest.raises(InvalidArgument, match="another model"):
        other.report(bench)


def test_the_arena_is_what_the_model_says(model: cbin_nn.Model) -> None:
    buffers = model.arena
    total = model.memory_bytes if model.in_place else model.arena_bytes
    assert max(buffer.offset + buffer.bytes for buffer in buffers) == total
    # The image, where it is there, then all but the last layer, whose output is the model's.
    outputs = [buffer.bytes for buffer in buffers if not buffer.scratch]
    assert outputs[: model.in_place] == [model.input_bytes] * model.in_place
    assert outputs[model.in_place :] == [layer.output_bytes for layer in model.layers[:-1]]


def test_plots_show_what_they_are_given(
    model: cbin_nn.Model, bench: cbin_nn.BenchReport, tmp_path: Path
) -> None:
    axes = plots.counts(bench)
    assert [bar.get_width() for bar in axes.patches] == bench.layer_counts
    axes = plots.flash(model)
    assert [bar.get_width() for bar in axes.patches] == [layer.flash for layer in model.layers]
    axes = plots.arena(model)
    assert [(p.get_x() + 0.5, p.get_y(), p.get_width(), p.get_height()) for p in axes.patches] == [
        (b.first, b.offset, b.last - b.first + 1, b.bytes) for b in model.arena
    ]
    axes = plots.compare({"a": bench, "b": bench})
    drawn = [bar.get_width() for bar in axes.patches if bar.get_width()]
    assert drawn == [count for count in bench.layer_counts if count] * 2
    # Rendered, a picture has more than a few kinds of pixels.
    axes.figure.savefig(tmp_path / "compare.png")
    assert (tmp_path / "compare.png").stat().st_size > 5000


def test_activations_are_pictures(model: cbin_nn.Model) -> None:
    image = draw_images(1, *model.input_shape[:2], seed=1)[0]
    signs = model.taps(image)[model.layers[0].name]
    axes = plots.activations(signs, columns=4)
    sheet = axes.images[0].get_array()
    height, width, channels = signs.shape
    for channel in (0, 3, channels - 1):
        y, x = channel // 4 * (height + 1), channel % 4 * (width + 1)
        np.testing.assert_array_equal(sheet[y : y + height, x : x + width], signs[:, :, channel])
    with pytest.raises(InvalidArgument, match="signs"):
        plots.activations(signs[0])
    with pytest.raises(InvalidArgument, match="reports"):
        plots.compare({})


def test_the_command_line_writes_reports(model: cbin_nn.Model, tmp_path: Path) -> None:
    path = model.save(tmp_path / "tiny.cbn")
    target = tmp_path / "tiny.html"
    result = CliRunner().invoke(main, ["inspect", str(path), "--report", str(target)])
    assert result.exit_code == 0, result.output
    Tags(target.read_text())
    again = CliRunner().invoke(main, ["inspect", str(path), "--report", str(target)])
    assert again.exit_code == 1
    assert "exists" in again.stderr
    target = tmp_path / "tiny.pdf"
    refused = CliRunner().invoke(main, ["inspect", str(path), "--report", str(target)])
    assert refused.exit_code == 1 and not target.exists()
    assert "use .html, .md or .txt" in refused.stderr
