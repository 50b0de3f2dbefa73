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
from .calibration import Quantization, calibrate
from .deploy import BenchReport
from .errors import CbinError
from .model import Layer, Model, convert, load, save
from .verification import verify

if TYPE_CHECKING:
    from . import data, images, ops, plots, rule
    from .rule import Rule

__all__ = [
    "BenchReport",
    "CbinError",
    "Layer",
    "Model",
    "Quantization",
    "Rule",
    "__version__",
    "calibrate",
    "convert",
    "data",
    "deploy",
    "errors",
    "images",
    "load",
    "ops",
    "plots",
    "rule",
    "save",
    "verify",
]


def __getattr__(name: str) -> Any:
    """What `import cbin_nn` alone leaves out, loaded on first use, so that import stays light."""
    if name in ("data", "images", "ops", "plots", "rule"):
        from importlib import import_module

        return import_module(f".{name}", __name__)
    if name == "Rule":
        from .rule import Rule

        return Rule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
