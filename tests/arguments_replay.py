"""What a reader makes of a file against the framework's answers: for live frameworks and for stored answers.

A stored set is one zip archive: `cases.json` lists the cases, each with what the framework's file holds (its
JSON and its HDF5 groups, arrays by number), and `arrays.npz` holds every array once.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from cbin_nn import _native
from cbin_nn.converters import graph as g
from cbin_nn.converters import lower, read_keras
from cbin_nn.converters.evaluate import evaluate
from cbin_nn.errors import ConversionError
from cbin_nn.model import Model

#: Of the largest output; both sides compute in float32 at best.
TOLERANCE = 2e-4


def outcome(path: Path, images: np.ndarray, answers: np.ndarray) -> str:
    """Reads and converts a file and compares it with the framework's outputs `[N, M]`.

    An image with a sign in a near-tie is left out: frameworks round there. Where a layer is approximated
    (real weights, 8 bits) or does not lower, the reader is judged by its graph in float64 alone.

    Returns:
        "right", "read" (its graph is right, and lowering refuses it or approximates), or "refused by the
        reader: " or "refused by lowering: " with the message.

    Raises:
        AssertionError: it converts, and differs.
    """
    try:
        graph = read_keras(path)
    except ConversionError as error:
        return f"refused by the reader: {error}"
    if graph.problems:
        return f"refused by the reader: {'; '.join(problem.message for problem in graph.problems)}"
    truth = None
    # `evaluate` has no sums and no softmax before the end.
    if not any(isinstance(n, (g.Add, g.Concatenate)) or _inside(graph, n) for n in graph.nodes):
        truth = evaluate(graph, images)
    clean = np.ones(len(images), bool)
    if truth is not None:
        for near in truth.near_ties.values():
            clean &= ~near.reshape(len(images), -1).any(axis=1)
        read = closed(graph, truth.logits)
        if read.shape == answers.shape and clean.sum() < len(images) // 2:
            # Ties of integers, which nobody rounds, or nothing could be told.
            clean[:] = True
        _compare("read", read, answers, clean)
    try:
        lowered, report = lower(graph)
    except ConversionError as error:
        return f"refused by lowering: {error}" if truth is None else "read"
    if any(operator.approximations for operator in report.operators):
        return "read"
    model = Model(_native.Model.from_bytes(_native.build_model(lowered)), report)
    logits = model.dequantize(model.run(images))
    _compare("converted", closed(graph, logits.reshape(len(images), -1)), answers, clean)
    return "right"


def _inside(graph: g.Graph, node: g.Node) -> bool:
    return isinstance(node, g.Softmax) and node.name != graph.output


def closed(graph: g.Graph, logits: np.ndarray) -> np.ndarray:
    """The network's outputs: through the softmax that it ends in, which lowering drops."""
    if not any(isinstance(node, g.Softmax) for node in graph.nodes):
        return logits
    power = np.exp(logits - logits.max(axis=1, keepdims=True))
    return power / power.sum(axis=1, keepdims=True)


def _compare(what: str, mine: np.ndarray, answers: np.ndarray, clean: np.ndarray) -> None:
    assert mine.shape == answers.shape, f"{what}: {mine.shape} outputs, the framework has {answers.shape}"
    error = np.abs(mine - answers)[clean]
    scale = max(1.0, float(np.abs(answers).max()))
    assert error.max(initial=0) < TOLERANCE * scale, (
        f"{what}, and differs by {error.max():.3g} of {scale:.3g}"
    )


class Store:
    """Keras files in little space."""

    def __init__(self) -> None:
        self.cases: list[dict[str, Any]] = []
        self.arrays: dict[tuple[str, tuple[int, ...], bytes], int] = {}

    def add(self, path: Path, answers: np.ndarray, **about: Any) -> None:
        """Keeps a file with the framework's outputs."""
        self.cases.append({**about, **self._pack(path), "answers": self._array(answers.astype(np.float32))})

    def _array(self, array: np.ndarray) -> int:
        key = (array.dtype.str, array.shape, array.tobytes())
        return self.arrays.setdefault(key, len(self.arrays))

    def _pack(self, path: Path) -> dict[str, Any]:
        import h5py

        if not zipfile.is_zipfile(path):
            with h5py.File(path, "r") as file:
                text = file.attrs["model_config"]
                return {"suffix": "h5", "config": json.loads(text), "groups": self._groups(file)}
        with zipfile.ZipFile(path) as archive:
            text, weights = archive.read("config.json"), archive.read("model.weights.h5")
        with h5py.File(io.BytesIO(weights), "r") as file:
            return {"suffix": "keras", "config": json.loads(text), "groups": self._groups(file)}

    def _groups(self, file: Any) -> list[Any]:
        """[name, weight_names or None, array or None] of everything below `file`."""
        found: list[Any] = []

        def visit(name: str, item: Any) -> None:
            names = item.attrs.get("weight_names")
            if names is not None:
                names = [n.decode() if isinstance(n, bytes) else str(n) for n in names]
            array = self._array(np.asarray(item[()])) if hasattr(item, "shape") else None
            found.append([name, names, array])

        file.visititems(visit)
        return [item for item in found if not item[0].startswith("optimizer")]

    def write(self, path: Path) -> None:
        """Writes the archive."""
        arrays = io.BytesIO()
        kept = {
            str(number): np.frombuffer(data, dtype).reshape(shape)
            for (dtype, shape, data), number in self.arrays.items()
        }
        np.savez(arrays, **kept)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
            for name, content in (
                ("cases.json", json.dumps(self.cases).encode()),
                ("arrays.npz", arrays.getvalue()),
            ):
                archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_LZMA)


def stored(path: Path, folder: Path) -> Iterator[tuple[dict[str, Any], Path, np.ndarray]]:
    """(case, its file written anew, the framework's outputs) of an archive; a file is gone with the next."""
    import h5py

    with zipfile.ZipFile(path) as archive:
        cases = json.loads(archive.read("cases.json"))
        with np.load(io.BytesIO(archive.read("arrays.npz"))) as data:
            arrays = {int(name): data[name] for name in data}

    def fill(file: Any, case: dict[str, Any]) -> None:
        for name, names, number in case["groups"]:
            item = file.create_dataset(name, data=arrays[number]) if number is not None else None
            if item is None:
                item = file.require_group(name)
            if names is not None:
                item.attrs["weight_names"] = np.array([n.encode() for n in names], "S") if names else []

    for case in cases:
        target = folder / f"case.{case['suffix']}"
        if case["suffix"] == "h5":
            with h5py.File(target, "w") as file:
                file.attrs["model_config"] = json.dumps(case["config"])
                fill(file, case)
        else:
            weights = io.BytesIO()
            with h5py.File(weights, "w") as file:
                fill(file, case)
            with zipfile.ZipFile(target, "w") as archive:
                archive.writestr("config.json", json.dumps(case["config"]))
                archive.writestr("model.weights.h5", weights.getvalue())
        yield case, target, arrays[case["answers"]]
