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

from . import deploy, errors
from ._native import __version__
from .deploy import BenchReport
from .errors import CbinError
from .model import Layer, Model, convert, load, save

__all__ = [
    "BenchReport",
    "CbinError",
    "Layer",
    "Model",
    "__version__",
    "convert",
    "deploy",
    "errors",
    "load",
    "save",
]
