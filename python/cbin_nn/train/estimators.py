r"""Sign with a gradient: what BNN training uses in place of the derivative that sign doesn't have.

Every estimator has one forward, `sign(x)` with `sign(0) = +1`, so the choice changes training and nothing
that is converted. With `g` the gradient of the output, the gradient of the input is `g * d(x)`:

| name | d(x) | source |
|---|---|---|
| `identity` | 1 | Bengio et al. 2013 |
| `ste` | 1 where \|x\| <= 1, else 0 | Courbariaux and Hubara et al. 2016 |
| `approx` | max(0, 2 - 2\|x\|) | ApproxSign; Liu et al., Bi-Real Net, 2018 |
| `swish` | b (2 - b x tanh(b x / 2)) / (1 + cosh(b x)), b = 5 | SwishSign; Darabi et al., BNN+, 2019 |
| `ede` | k t (1 - tanh^2(t x)), t from 0.1 to 10, k = max(1/t, 1) | Qin et al., IR-Net, 2020 |
| `reste` | max(\|x\|, 0.1)^(1/o - 1) / o, o from 1 to 3; 0 where \|x\| > 1.5 | Wu et al., ReSTE, 2023 |

`ede` and `reste` change with the progress of training, from 0 to 1, which `set_progress` sets on every
module of a model.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidArgument

__all__ = ["ESTIMATORS", "Sign", "estimate", "set_progress", "sign"]


def sign(x: Tensor) -> Tensor:
    """+1 where `x >= 0`, else -1, in the shape and dtype of `x`, any floating ones; the gradient is 0."""
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


def _identity(x: Tensor, progress: float) -> Tensor:
    return torch.ones_like(x)


def _ste(x: Tensor, progress: float) -> Tensor:
    return (x.abs() <= 1).to(x.dtype)


def _approx(x: Tensor, progress: float) -> Tensor:
    return (2 - 2 * x.abs()).clamp_(min=0)


def _swish(x: Tensor, progress: float) -> Tensor:
    scaled = (5.0 * x).clamp(-60, 60)  # cosh overflows beyond; the derivative is 0 there
    return 5.0 * (2 - scaled * torch.tanh(scaled / 2)) / (1 + torch.cosh(scaled))


def _ede(x: Tensor, progress: float) -> Tensor:
    t = 0.1 * math.pow(100.0, progress)
    return max(1 / t, 1.0) * t * (1 - torch.tanh(t * x) ** 2)


#: ReSTE's power at the end of training, the ends of its interval and the plateau around 0 that keeps it
#: finite.
_RESTE_POWER, _RESTE_END, _RESTE_PLATEAU = 3.0, 1.5, 0.1


def _reste(x: Tensor, progress: float) -> Tensor:
    power = 1 + (_RESTE_POWER - 1) * progress
    size = x.abs()
    derivative = size.clamp(min=_RESTE_PLATEAU) ** (1 / power - 1) / power
    return torch.where(size <= _RESTE_END, derivative, 0.0)


#: name -> d(x, progress)
ESTIMATORS = {
    "identity": _identity,
    "ste": _ste,
    "approx": _approx,
    "swish": _swish,
    "ede": _ede,
    "reste": _reste,
}


class _Estimate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str, progress: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.name, ctx.progress = name, progress
        return sign(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return gradient * ESTIMATORS[ctx.name](x, ctx.progress), None, None


def estimate(x: Tensor, estimator: str = "approx", progress: float = 0.0) -> Tensor:
    """`sign(x)` whose gradient is that of an estimator.

    Where no gradient is asked for this is a plain `torch.where(x >= 0, 1, -1)`, which exporters see.

    Args:
        x: any shape, floating point.
        estimator: a name of `ESTIMATORS`.
        progress: how much of the training is done, 0 to 1.

    Raises:
        InvalidArgument: the name is unknown.
    """
    check(estimator)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return sign(x)
    signs: Tensor = _Estimate.apply(x, estimator, progress)
    return signs


def check(estimator: str) -> str:
    """The name itself, if there is such an estimator."""
    if estimator not in ESTIMATORS:
        raise InvalidArgument(
            "bad-argument", f"estimator: expected one of {', '.join(ESTIMATORS)}, got {estimator!r}"
        )
    return estimator


class Sign(nn.Module):
    """+1 where `x >= 0`, else -1, any shape; `estimator` gives the gradient.

    Args:
        estimator: a name of `ESTIMATORS`.
    """

    def __init__(self, estimator: str = "approx") -> None:
        super().__init__()
        self.estimator = check(estimator)
        self.progress = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Signs of `x`, in its shape and dtype."""
        return estimate(x, self.estimator, self.progress)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return self.estimator


def set_progress(model: nn.Module, progress: float) -> None:
    """Tell every estimator of `model` how much of the training is done: `progress`, 0 to 1."""
    for module in model.modules():
        if hasattr(module, "progress") and hasattr(module, "estimator"):
            module.progress = float(progress)
