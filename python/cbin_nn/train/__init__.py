"""Training of binary networks in PyTorch: layers, estimators, optimizers, recipes, the way to a `.cbn` model.

Needs the extra `torch` (`pip install 'cbin-nn[torch]'`).

    >>> from cbin_nn.train import BinaryConv2d, Sign, convert         # doctest: +SKIP

- `layers`: `BinaryConv2d`, `BinaryDepthwiseConv2d`, `BinaryLinear`, `QuantizedConv2d`, `RSign`, `RPReLU`,
  `Shift`.
- `estimators`: `Sign` and the gradients it can have.
- `optimizers`: `LatentAdam`, `LatentMuon`, `Bop`, `FlipRateAdam`.
- `variation`: `RowVariation`, what a loss adds for fewer instructions on a board.
- `recipe`, `trainer`: a training run as configuration; deterministic, resumable, one process or many.
- `export`: `convert` takes a trained network to a `.cbn` model, exactly.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import MissingExtra

if TYPE_CHECKING:
    from .estimators import Sign, set_progress
    from .export import convert, to_graph
    from .layers import (
        BinaryConv2d,
        BinaryDepthwiseConv2d,
        BinaryLinear,
        QuantizedConv2d,
        RPReLU,
        RSign,
        Shift,
        binary_parameters,
        set_binarize,
    )
    from .models import SmallCifar
    from .optimizers import Bop, FlipRateAdam, LatentAdam, LatentMuon, group_parameters
    from .recipe import Recipe
    from .trainer import Trainer, load_run, predict, train
    from .variation import RowVariation, row_variation

_HOME = {
    "BinaryConv2d": "layers",
    "BinaryDepthwiseConv2d": "layers",
    "BinaryLinear": "layers",
    "Bop": "optimizers",
    "FlipRateAdam": "optimizers",
    "LatentAdam": "optimizers",
    "LatentMuon": "optimizers",
    "QuantizedConv2d": "layers",
    "RPReLU": "layers",
    "RSign": "layers",
    "Recipe": "recipe",
    "RowVariation": "variation",
    "Shift": "layers",
    "Sign": "estimators",
    "SmallCifar": "models",
    "Trainer": "trainer",
    "binary_parameters": "layers",
    "convert": "export",
    "group_parameters": "optimizers",
    "load_run": "trainer",
    "predict": "trainer",
    "row_variation": "variation",
    "set_binarize": "layers",
    "set_progress": "estimators",
    "to_graph": "export",
    "train": "trainer",
}

__all__ = [
    "BinaryConv2d",
    "BinaryDepthwiseConv2d",
    "BinaryLinear",
    "Bop",
    "FlipRateAdam",
    "LatentAdam",
    "LatentMuon",
    "QuantizedConv2d",
    "RPReLU",
    "RSign",
    "Recipe",
    "RowVariation",
    "Shift",
    "Sign",
    "SmallCifar",
    "Trainer",
    "binary_parameters",
    "convert",
    "group_parameters",
    "load_run",
    "predict",
    "row_variation",
    "set_binarize",
    "set_progress",
    "to_graph",
    "train",
]


def require_torch() -> None:
    """Check that torch is there.

    Raises:
        MissingExtra: it isn't; the message has the `pip install` line.
    """
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise MissingExtra("missing-extra", "training needs PyTorch: pip install 'cbin-nn[torch]'")


def __getattr__(name: str) -> Any:
    """Load what is asked for: torch is imported here, not before."""
    if name in _HOME:
        require_torch()
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
