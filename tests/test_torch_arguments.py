"""The mutation test of the torch reader, replayed without torch.

`tests/fixtures/arguments/torch.*`: networks around one operator, with one argument set to a value of its own,
and torch's answers; written by `tests/frameworks/torch_arguments.py`, which says what they are.
"""

from __future__ import annotations

import io
import lzma
import tarfile
import zipfile
from pathlib import Path

import cbin_nn
import numpy as np
import pytest
from cbin_nn.converters.aten import OPERATORS
from cbin_nn.converters.evaluate import evaluate
from cbin_nn.errors import ConversionError


def files(folder: Path) -> dict[str, bytes]:
    """Name of a case -> its `.pt2` file."""
    content = lzma.decompress((folder / "torch.tar.xz").read_bytes())
    buffers: dict[str, io.BytesIO] = {}
    archives: dict[str, zipfile.ZipFile] = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for entry in archive:
            name, member = entry.name.split("|", 1)
            if name not in archives:
                buffers[name] = io.BytesIO()
                archives[name] = zipfile.ZipFile(buffers[name], "w")
            data = archive.extractfile(entry)
            assert data is not None
            archives[name].writestr(member, data.read())
    for made in archives.values():
        made.close()
    return {name: buffer.getvalue() for name, buffer in buffers.items()}


def test_every_argument_gives_torchs_answers_or_is_refused(fixtures: Path, tmp_path: Path) -> None:
    folder = fixtures / "arguments"
    with np.load(folder / "torch.npz") as data:
        images, names, kinds = data["images"], data["names"].tolist(), data["kinds"].tolist()
        answers = np.split(data["answers"], np.cumsum(data["widths"])[:-1], axis=1)
    sources = files(folder)
    right = refused = 0
    for name, kind, expected in zip(names, kinds, answers, strict=True):
        path = tmp_path / "case.pt2"
        path.write_bytes(sources.pop(name))
        if kind == "refused":
            with pytest.raises(ConversionError) as caught:
                cbin_nn.convert(path)
            assert len(str(caught.value).splitlines()) <= 20, name
            assert caught.value.slug not in ("damaged-file", "bad-graph"), (name, str(caught.value))
            refused += 1
            continue
        model = cbin_nn.convert(path)
        got = model.dequantize(model.run(images)).reshape(len(images), -1)
        if "softmax" in name:  # dropped, as the report says
            got = got - got.max(axis=1, keepdims=True)
            got = got - np.log(np.exp(got).sum(axis=1, keepdims=True))
            got = got if "log_softmax" in name else np.exp(got)
        report = model.conversion
        assert report is not None and report.graph is not None
        slack = (0.02 if report.operators[-1].approximations else 1e-4) * max(1, np.abs(expected).max())
        apart = (np.abs(got - expected) > slack).any(axis=1)
        if apart.any():
            for ties in evaluate(report.graph, images).near_ties.values():
                apart &= ~ties.reshape(len(images), -1).any(axis=1)
        assert not apart.any(), (name, float(np.abs(got - expected).max()))
        right += 1
    assert not sources
    assert {name.split("/")[0] for name in names} == set(OPERATORS)
    assert right >= 500 and refused >= 130, (right, refused)
