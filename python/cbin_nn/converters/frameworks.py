r"""A source run by its own framework, with the values of its signs: the other side of `cbin_nn.verify`.

| source | run by |
|---|---|
| `.pt2`, live torch module | torch, node by node of the exported program |
| ONNX | `onnx.reference`, the ONNX project's own evaluator in NumPy |
| Keras file, live Keras model | TensorFlow (and Larq, for its layers) |

`run_framework` is None where the framework is not installed or can't run the source; the built-in evaluator
(`evaluate`) takes its place then. To load a `.pt2` or Keras file into its framework is to trust it as that
framework does; `convert` itself never does.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from . import graph as g

__all__ = ["FrameworkRun", "run_framework"]

Bools = npt.NDArray[np.bool_]
Array = npt.NDArray[Any]
Images = npt.NDArray[np.uint8] | npt.NDArray[np.float32]


@dataclass
class FrameworkRun:
    """What a framework computed; bits are in the graph's layout."""

    framework: str
    outputs: Array
    bits: dict[str, Bools] = field(default_factory=dict)


def run_framework(
    source: Any, graph: g.Graph, images: Images, input_shape: Any = None
) -> FrameworkRun | None:
    """Run a source by its framework on images `[N, H, W, C]`, fed as they are (u8 as 0..255); None where
    that can't be done."""
    signs = [node for node in graph.nodes if isinstance(node, g.Sign)]
    if isinstance(source, (str, os.PathLike)):
        path = Path(os.fsdecode(source))
        with path.open("rb") as file:
            magic = file.read(8)
        zipped = magic[:4] == b"PK\x03\x04"
        if zipped and _is_program(path):
            return _torch(path, graph, signs, images, None)
        if zipped or magic == b"\x89HDF\r\n\x1a\n":
            return _keras(path, graph, signs, images)
        return _onnx(path, graph, signs, images)
    modules = {base.__module__.split(".")[0] for base in type(source).__mro__}
    if "torch" in modules:
        return _torch(source, graph, signs, images, input_shape)
    if modules & {"keras", "tf_keras", "tensorflow"}:
        return _keras(source, graph, signs, images)
    return None


def _is_program(path: Path) -> bool:
    import zipfile

    with zipfile.ZipFile(path) as archive:
        return "config.json" not in archive.namelist()


def _installed(*names: str) -> bool:
    return all(importlib.util.find_spec(name) is not None for name in names)


def _graph_bits(graph: g.Graph, node: g.Sign, value: Array) -> Bools:
    """Bits of a sign from the source's values (two levels, or -1, 0 and 1) in the source's layout."""
    axes, order = graph.layouts.get(node.name, ("NHWC" if value.ndim == 4 else "NF", None))
    value = value - graph.middles.get(node.name, 0.0)
    if axes == "NF":
        flat = value.reshape(len(value), -1)
        if order is not None:
            moved = np.empty_like(flat)
            moved[:, order] = flat
            flat = moved
        value = flat
    else:
        value = value.transpose([axes.index(axis) for axis in "NHWC"])
    if node.strict_channels:  # split into x >= 0 and x > 0 (`passes.split_ternary`)
        channels = len(node.strict_channels)
        table = value.reshape(len(value), -1, channels)
        both = np.concatenate([table >= 0, table > 0], axis=2)
        return both.reshape(*value.shape[:-1], -1)
    return np.asarray(value > 0 if node.zero == -1 else value >= 0)


def _batch(graph: g.Graph, images: Images) -> Array:
    """The images in the source's layout, float32."""
    first = graph.nodes[0]
    axes, _ = graph.layouts.get(first.name, ("NHWC", None))
    batch = images.astype(np.float32)
    if axes == "NF":
        return batch.reshape(len(batch), -1)
    return np.ascontiguousarray(batch.transpose(["NHWC".index(axis) for axis in axes]))


def _torch(
    source: Any, graph: g.Graph, signs: list[g.Sign], images: Images, input_shape: Any
) -> FrameworkRun | None:
    if not _installed("torch"):
        return None
    import torch

    from .torch_export import export_module

    program = (
        torch.export.load(str(source)) if isinstance(source, Path) else export_module(source, input_shape)
    )
    module = program.module()
    wanted = {node.name for node in signs}
    seen: dict[str, list[Array]] = {name: [] for name in wanted}

    class Watch(torch.fx.Interpreter):  # type: ignore[misc]
        def run_node(self, n: Any) -> Any:
            value = super().run_node(n)
            if n.name in wanted:
                seen[n.name].append(value.detach().numpy())
            return value

    watch = Watch(module)
    outputs = []
    size = _static_batch(program)
    batch = _batch(graph, images)
    with torch.no_grad():
        step = size or 64
        for begin in range(0, len(batch), step):
            part = batch[begin : begin + step]
            outputs.append(watch.run(torch.from_numpy(part)).numpy())
    return _collected("torch", graph, signs, outputs, seen)


def _static_batch(program: Any) -> int | None:
    """The batch that a program was exported for; None where it takes any."""
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs:
            size = node.meta["val"].shape[0]
            return size if isinstance(size, int) else None
    return None


def _collected(
    framework: str,
    graph: g.Graph,
    signs: list[g.Sign],
    outputs: list[Array],
    seen: dict[str, list[Array]],
) -> FrameworkRun:
    run = FrameworkRun(framework, np.concatenate(outputs))
    for node in signs:
        if seen.get(node.name):
            run.bits[node.name] = _graph_bits(graph, node, np.concatenate(seen[node.name]))
    return run


def _onnx(path: Path, graph: g.Graph, signs: list[g.Sign], images: Images) -> FrameworkRun | None:
    import onnx
    from onnx.reference import ReferenceEvaluator

    model = onnx.load(str(path))
    if any(node.domain not in ("", "ai.onnx") for node in model.graph.node):
        return None  # QONNX: the reference evaluator does not know its operators
    made = {name for node in model.graph.node for name in node.output}
    wanted = [node.name for node in signs if node.name in made]
    result = model.graph.output[0].name
    for name in wanted:
        if name != result:
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    evaluator = ReferenceEvaluator(model)
    size = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or 64
    batch = _batch(graph, images)
    outputs = []
    seen: dict[str, list[Array]] = {name: [] for name in wanted}
    for begin in range(0, len(batch), size):
        part = batch[begin : begin + size]
        if len(part) < size and model.graph.input[0].type.tensor_type.shape.dim[0].dim_value:
            break
        found: Any = evaluator.run([result, *wanted], {model.graph.input[0].name: part})
        outputs.append(np.asarray(found[0]))
        for name, value in zip(wanted, found[1:], strict=True):
            seen[name].append(np.asarray(value))
    return _collected("onnx.reference", graph, signs, outputs, seen)


def _keras(source: Any, graph: g.Graph, signs: list[g.Sign], images: Images) -> FrameworkRun | None:
    if not _installed("tensorflow"):
        return None
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    if _installed("larq"):
        with contextlib.suppress(ImportError, AttributeError):  # under Keras 3; its layers are then unknown
            importlib.import_module("larq")  # registers its layers
    keras = tf.keras
    model = keras.models.load_model(str(source), compile=False) if isinstance(source, Path) else source
    # Keras 3 has functions, as `keras.ops.sign`, among a model's operations and not among its layers.
    layers = {layer.name: layer for layer in getattr(model, "operations", model.layers)}
    tensors, names = [], []
    for node in signs:
        layer = layers.get(node.layer)
        # The value under a quantizer is the layer's input; under an activation, which is a sign, its output.
        tensor = None
        if layer is not None:
            tensor = layer.input if node.name.endswith("/input_quantizer") else layer.output
        if tensor is not None and not isinstance(tensor, (list, tuple)):
            tensors.append(tensor)
            names.append(node.name)
    watch = keras.Model(model.inputs, [*tensors, model.outputs[0]])
    predicted: Any = watch.predict(images.astype(np.float32), verbose=0)
    parts: Any = predicted if isinstance(predicted, list) else [predicted]
    run = FrameworkRun("tensorflow", np.asarray(parts[-1]))
    for name, value in zip(names, parts[:-1], strict=True):
        node = next(sign for sign in signs if sign.name == name)
        run.bits[name] = _graph_bits(graph, node, np.asarray(value))
    return run
