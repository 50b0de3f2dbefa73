"""Binarized neural networks on microcontrollers.

Convert a trained Larq/Keras model, run it bit-exactly on the host, and run the same bytes on a
Cortex-M7:

    >>> import cbin_nn
    >>> model = cbin_nn.convert("model.h5")                # doctest: +SKIP
    >>> model.run(images).argmax(axis=1)                   # doctest: +SKIP
    >>> print(model.bench("qemu-mps2-an500", images))      # doctest: +SKIP

Importing this package needs NumPy alone; readers of model files and everything else are imported
where they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import deploy, errors
from ._native import __version__
from .deploy import BenchReport
from .errors import CbinError
from .model import Layer, Model, convert, load, save

if TYPE_CHECKING:
    from . import ops
    from .rule import Rule

__all__ = [
    "BenchReport",
    "CbinError",
    "Layer",
    "Model",
    "Rule",
    "__version__",
    "convert",
    "deploy",
    "errors",
    "load",
    "ops",
    "save",
]


def __getattr__(name: str) -> Any:
    """`ops` and `Rule` bring the exact arithmetic along: loaded on first use, so that import stays light."""
    if name == "ops":
        from importlib import import_module

        return import_module(".ops", __name__)
    if name == "Rule":
        from .rule import Rule

        return Rule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
