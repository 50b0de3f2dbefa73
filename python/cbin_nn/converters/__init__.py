"""Conversion of trained networks to integer operators: read a source file, lower its graph.

- `keras`: reads `.h5` and `.keras` files (Larq or plain Keras layers) without TensorFlow.
- `graph`: the framework-free graph between readers and lowering.
- `lower`: folds chains into rules and emits `cbin_nn.operators`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from ..operators import LoweredModel
from .graph import Graph
from .keras import read_keras
from .lower import ConversionReport, OperatorReport, lower

__all__ = ["ConversionReport", "Graph", "OperatorReport", "lower", "lower_file", "read_keras"]


def lower_file(
    path: str | os.PathLike[str],
    *,
    output: str = "i32",
    input_scale: float | Sequence[float] | None = None,
    input_offset: float | Sequence[float] | None = None,
    fuse: bool = True,
) -> tuple[LoweredModel, ConversionReport]:
    """Convert a model file to integer operators.

    Args:
        path: a Keras file (`.h5`, `.keras`); its kind is told by its content.
        output: "i8", "i16", "i32" or "f32".
        input_scale: a u8 pixel q means `input_scale * q + input_offset`; default 1. One value for now.
        input_offset: default 0.
        fuse: False emits convolutions and pools apart wherever the max-pool law allows it.

    Returns:
        (operators, report).

    Raises:
        ConversionError: the file can't be read or converted; one line naming the file.
        InvalidArgument: an argument has a wrong value.
        MissingExtra: the reader's dependency is not installed.
    """
    from ..errors import ConversionError

    source = read_keras(path)
    try:
        return lower(source, output=output, input_scale=input_scale, input_offset=input_offset, fuse=fuse)
    except ConversionError as error:
        raise ConversionError(error.slug, f"{os.fspath(path)}: {error.message}") from error
