"""Conversion of trained networks to integer operators: read a source, lower its graph.

- `sources`: which reader a file or a live model goes to, told by content.
- `keras`: reads `.h5` and `.keras` files (Larq or plain Keras layers) without TensorFlow.
- `onnx`, `torch_export`: read ONNX/QONNX and `.pt2` files, each into a tensor `program`; `translate` makes a
graph of it.
- `graph`: the framework-free graph between readers and lowering; `passes` change it, keeping its function.
- `lower`: folds chains into rules and emits `cbin_nn.operators`; `quantize` states how real weights become
integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import ConversionError
from ..operators import LoweredModel
from .graph import Graph
from .keras import read_keras
from .lower import ConversionReport, OperatorReport, lower
from .sources import describe, read_source

__all__ = [
    "ConversionReport",
    "Graph",
    "OperatorReport",
    "lower",
    "lower_file",
    "read_keras",
    "read_source",
]


def lower_file(
    source: Any,
    *,
    output: str = "i32",
    input_scale: float | Sequence[float] | None = None,
    input_offset: float | Sequence[float] | None = None,
    fuse: bool = True,
    input_shape: Sequence[int] | None = None,
) -> tuple[LoweredModel, ConversionReport]:
    """Convert a source to integer operators.

    Args:
        source: a file (`.h5`, `.keras`, `.pt2`, `.onnx`, a SavedModel folder), told by its content; a live
            Keras model or torch module; or a description (`cbin_nn.converters.description`).
        output: "i8", "i16", "i32" or "f32".
        input_scale: a u8 pixel q means `input_scale * q + input_offset`; default 1. One value, or one a
        channel.
        input_offset: default 0. One value, or one a channel.
        fuse: False emits convolutions and pools apart wherever the max-pool law allows it.
        input_shape: (C, H, W) of one image; only a live torch module needs it.

    Returns:
        (operators, report).

    Raises:
        ConversionError: the source can't be read or converted; one line naming the source.
        InvalidArgument: an argument has a wrong value.
        MissingExtra: the reader's dependency is not installed.
    """
    graph = read_source(source, input_shape=input_shape)
    try:
        return lower(graph, output=output, input_scale=input_scale, input_offset=input_offset, fuse=fuse)
    except ConversionError as error:
        raise error.inside(describe(source)) from error
