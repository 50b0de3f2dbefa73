"""Writes `tests/fixtures/frameworks`: small networks as their frameworks save them, with their answers.

They stand in for PyTorch and TensorFlow in `make test`. Run once in each environment; seeded:

    PYTHONPATH=python .venv-torch/bin/python tests/frameworks/make_fixtures.py torch
    PYTHONPATH=python .venv-frameworks/bin/python tests/frameworks/make_fixtures.py larq

and in one with each TensorFlow of `larq_tf*`, from 2.16 on with `tf-keras` of that version and
`TF_USE_LEGACY_KERAS=1`:

    PYTHONPATH=python python tests/frameworks/make_fixtures.py version

and with Keras 3, hence TensorFlow 2.16 or newer without that variable: `make_fixtures.py keras3`.
`make_fixtures.py brevitas` needs torch, `brevitas`, `qonnx` and `onnxoptimizer`.

Beside NAME.pt2 (and so on) stands NAME.npz: `images` u8 `[N, H, W, C]`, `outputs` of the framework, and for
each sign in order `bits_<i>`, packed with `np.packbits`, and its shape `shape_<i>`, in the graph's layout.
"""

from __future__ import annotations

import random
import re
import sys
import zipfile
from collections.abc import Callable
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
#: Of the network that several TensorFlows save.
VERSION_SEED = 8


def write_answers(name: str, graph: g.Graph, run: FrameworkRun, images: np.ndarray) -> None:
    """NAME.npz."""
    arrays: dict[str, Any] = {"images": images, "outputs": run.outputs.astype(np.float32)}
    signs = [node for node in graph.nodes if isinstance(node, g.Sign)]
    for i, node in enumerate(signs):
        if node.name in run.values:
            bits = run.values[node.name] >= 0
            arrays[f"bits_{i}"] = np.packbits(bits)
            arrays[f"shape_{i}"] = np.array(bits.shape)
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


def brevitas_fixtures() -> None:
    import torch
    from brevitas import nn as quantized
    from brevitas.export import export_qonnx
    from brevitas.quant import SignedBinaryActPerTensorConst, SignedBinaryWeightPerTensorConst
    from torch import nn

    torch.manual_seed(0)
    weights = {"bias": False, "weight_quant": SignedBinaryWeightPerTensorConst}
    signs = [quantized.QuantIdentity(act_quant=SignedBinaryActPerTensorConst) for _ in range(2)]
    module = nn.Sequential(
        quantized.QuantConv2d(3, 16, 3, padding=1, **weights),
        nn.BatchNorm2d(16, momentum=1.0),
        signs[0],
        quantized.QuantConv2d(16, 40, 3, padding=1, **weights),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(40, momentum=1.0),
        signs[1],
        nn.Flatten(),
        quantized.QuantLinear(40 * 6 * 6, 10, **weights),
    )
    for norm in (module[1], module[5]):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    images = draw_images(12, 12, 12, seed=0)
    batch = torch.from_numpy(images).float().permute(0, 3, 1, 2)
    module.train()(batch)  # for the statistics
    module.eval()
    bits: list[np.ndarray] = []
    for sign in signs:
        sign.register_forward_hook(lambda m, i, value: bits.append(np.asarray(value) > 0))
    with torch.no_grad():
        outputs = np.asarray(module(batch))
    path = TARGET / "brevitas.onnx"
    export_qonnx(module, torch.zeros(1, 3, 12, 12), str(path))
    shorten_paths(path)  # which keeps the weights in the file itself
    path.with_suffix(".onnx.data").unlink()
    graph = read_source(path)
    nodes = [node for node in graph.nodes if isinstance(node, g.Sign)]
    found = {
        node.name: np.where(value.transpose(0, 2, 3, 1), 1.0, -1.0)
        for node, value in zip(nodes, bits, strict=False)
    }
    write_answers("brevitas", graph, FrameworkRun("brevitas", outputs, found), images)


def larq_fixtures() -> None:
    import test_larq_depthwise as depthwise

    for seed in LARQ_SEEDS:
        write_larq(f"larq_{seed}", seed)
    write_larq("larq_depthwise", 0, lambda: depthwise.network("magnitude_aware_sign", "same", 1.0, 2))


def version_fixtures() -> None:
    """The same random network as the TensorFlow that is installed saves it."""
    import tensorflow as tf

    write_larq(f"larq_tf{tf.__version__.rpartition('.')[0]}", VERSION_SEED)


def keras3_fixtures() -> None:
    """Keras 3 without Larq: `keras.ops.sign`, a hidden layer whose weights are -1 and +1."""
    import tensorflow as tf
    import test_larq_live as live

    def make() -> Any:
        keras, layers = tf.keras, tf.keras.layers
        image = layers.Input((12, 12, 3))
        value = layers.Conv2D(8, 3)(layers.Rescaling(1 / 127.5, offset=-1)(image))
        value = keras.ops.sign(layers.BatchNormalization()(value))
        hidden = layers.Conv2D(16, 3, padding="same", use_bias=False)
        value = layers.BatchNormalization()(layers.MaxPooling2D()(hidden(value)))
        value = layers.Dense(10)(layers.Flatten()(keras.ops.sign(value)))
        model = keras.Model(image, value)
        hidden.set_weights([np.where(hidden.get_weights()[0] >= 0, 1, -1)])
        live.draw_parameters(model, random.Random(0), first_spread=1.0)
        return model

    write_larq("keras3", 0, make)


def write_larq(name: str, seed: int, make: Callable[[], Any] | None = None) -> None:
    import tensorflow as tf
    import test_larq_live as live

    tf.keras.backend.clear_session()
    tf.keras.utils.set_random_seed(seed)
    model = live.random_model(tf, random.Random(1000 + seed), []) if make is None else make()
    images = draw_images(12, *model.input_shape[1:3], seed, channels=model.input_shape[-1])
    model.save(TARGET / f"{name}.h5", include_optimizer=False)
    model.save(TARGET / f"{name}.keras")
    graph = read_source(model)
    run = run_framework(model, graph, images)
    assert run is not None
    write_answers(name, graph, run, images)


if __name__ == "__main__":
    TARGET.mkdir(parents=True, exist_ok=True)
    {
        "torch": torch_fixtures,
        "brevitas": brevitas_fixtures,
        "larq": larq_fixtures,
        "version": version_fixtures,
        "keras3": keras3_fixtures,
    }[sys.argv[1]]()
