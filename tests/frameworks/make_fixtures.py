"""Writes `tests/fixtures/frameworks`: small networks as their frameworks save them, with their answers.

They stand in for PyTorch and TensorFlow in `make test`. Run once in each environment; seeded:

    PYTHONPATH=python .venv-torch/bin/python tests/frameworks/make_fixtures.py torch
    PYTHONPATH=python .venv-frameworks/bin/python tests/frameworks/make_fixtures.py larq

Beside NAME.pt2 (and so on) stands NAME.npz: `images` u8 `[N, H, W, C]`, `outputs` of the framework, and for
each sign in order `bits_<i>`, packed with `np.packbits`, and its shape `shape_<i>`, in the graph's layout.
"""

from __future__ import annotations

import random
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
TARGET = ROOT / "tests" / "fixtures" / "frameworks"
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "frameworks")]

from cbin_nn.converters import graph as g  # noqa: E402
from cbin_nn.converters import read_source  # noqa: E402
from cbin_nn.converters.frameworks import FrameworkRun, run_framework  # noqa: E402
from cbin_nn.images import draw_images  # noqa: E402

#: Seeds of random networks that together hold every way to write a sign, a weight and an input.
TORCH_SEEDS = (2, 6, 9, 17)
LARQ_SEEDS = (2, 5, 8, 21, 39)


def write_answers(name: str, graph: g.Graph, run: FrameworkRun, images: np.ndarray) -> None:
    """NAME.npz."""
    arrays: dict[str, Any] = {"images": images, "outputs": run.outputs.astype(np.float32)}
    signs = [node for node in graph.nodes if isinstance(node, g.Sign)]
    for i, node in enumerate(signs):
        if node.name in run.bits:
            arrays[f"bits_{i}"] = np.packbits(run.bits[node.name])
            arrays[f"shape_{i}"] = np.array(run.bits[node.name].shape)
    np.savez_compressed(TARGET / f"{name}.npz", **arrays)


def shorten_paths(path: Path) -> None:
    """Leave the file names alone of this machine's paths, which exporters keep in stack traces."""
    if path.suffix == ".pt2":
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                if name.endswith("model.json"):
                    data = re.sub(rb'(File \\")[^"]*/', rb"\1", data)
                archive.writestr(zipfile.ZipInfo(name), data)  # ZipInfo: no date
        return
    import onnx

    model = onnx.load(path)
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    for node in nodes:
        node.doc_string = re.sub(r'(File ")[^"]*/', r"\1", node.doc_string)
        for entry in node.metadata_props:
            entry.value = re.sub(r'(File ")[^"]*/', r"\1", entry.value)
    onnx.save(model, path)


def torch_fixtures() -> None:
    import torch
    import torch_networks

    for seed in TORCH_SEEDS:
        module = torch_networks.random_network(seed)
        shape = module.input_shape
        images = draw_images(12, shape[1], shape[2], seed, channels=shape[0])
        name = f"torch_{seed}"
        example = (torch.zeros(2, *shape),)
        program = torch.export.export(
            module, example, dynamic_shapes={"input": {0: torch.export.Dim("batch")}}
        )
        torch.export.save(program, TARGET / f"{name}.pt2")
        one = (torch.zeros(1, *shape),)
        torch.onnx.export(module, one, str(TARGET / f"{name}_dynamo.onnx"), dynamo=True, external_data=False)
        torch.onnx.export(
            module, one, str(TARGET / f"{name}_noopt.onnx"), dynamo=True, optimize=False, external_data=False
        )
        torch.onnx.export(module, one, str(TARGET / f"{name}_torchscript.onnx"), dynamo=False)
        for path in TARGET.glob(f"{name}[._]*[!z]"):
            shorten_paths(path)
        graph = read_source(program)
        run = run_framework(program, graph, images)
        assert run is not None
        write_answers(name, graph, run, images)


def larq_fixtures() -> None:
    import tensorflow as tf
    import test_larq_depthwise as depthwise
    import test_larq_live as live

    for seed in (*LARQ_SEEDS, None):
        tf.keras.backend.clear_session()
        tf.keras.utils.set_random_seed(seed or 0)
        if seed is None:
            model, name = depthwise.network("magnitude_aware_sign", "same", 1.0, 2), "larq_depthwise"
        else:
            model, name = live.random_model(tf, random.Random(1000 + seed), []), f"larq_{seed}"
        images = draw_images(12, *model.input_shape[1:3], seed or 0, channels=model.input_shape[-1])
        model.save(TARGET / f"{name}.h5", include_optimizer=False)
        model.save(TARGET / f"{name}.keras")
        graph = read_source(model)
        run = run_framework(model, graph, images)
        assert run is not None
        write_answers(name, graph, run, images)


if __name__ == "__main__":
    TARGET.mkdir(parents=True, exist_ok=True)
    {"torch": torch_fixtures, "larq": larq_fixtures}[sys.argv[1]]()
