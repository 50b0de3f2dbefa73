"""Optimizers that only the comparison of `ablation.py` needs: what the methods of others do to latent weights.

Each is a `LatentAdam` with another step for the `binary` groups; all else, the other parameters and the bound
of the latent weights among it, is the same, so that what is compared is the step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from cbin_nn.train.optimizers import Bop, LatentAdam
from torch import Tensor


class LatentMomentum(LatentAdam):
    r"""Momentum: p = p - lr u, with m = momentum m + g and u = m, or u = g + momentum m with Nesterov's.

    `normalize` divides u by its root mean square over the tensor: what orthogonalised momentum is without the
    orthogonalisation.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        momentum: float = 0.9,
        nesterov: bool = False,
        normalize: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(params, lr, **options)
        self._add_options(momentum=momentum, nesterov=nesterov, normalize=normalize)

    def _direction(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        if not group["binary"]:
            return super()._direction(p, group)
        state = self.state[p]
        if not state:
            state["average"] = torch.zeros_like(p)
        assert p.grad is not None
        average: Tensor = state["average"].mul_(group["momentum"]).add_(p.grad)
        u = p.grad.add(average, alpha=group["momentum"]) if group["nesterov"] else average
        if group["normalize"]:
            u = u / u.norm().clamp_min(torch.finfo(u.dtype).tiny) * math.sqrt(u.numel())
        return u


class SecondOrderBop(Bop):
    r"""Bop with a second moment (Suarez-Ramirez et al., "Bop and beyond", 2021), without its bias correction.

        m = (1 - gamma) m + gamma g;  v = (1 - sigma) v + sigma g^2
        w = -w where |m / (sqrt(v) + eps)| > threshold and sign(m) = sign(w)
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, *, sigma: float = 1e-3, **options: Any
    ) -> None:
        super().__init__(params, lr, **options)
        self._add_options(sigma=sigma)

    def _direction(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        average = super()._direction(p, group)
        if not group["binary"]:
            return average
        assert p.grad is not None
        square = self.state[p].setdefault("square", torch.zeros_like(p))
        square.mul_(1 - group["sigma"]).addcmul_(p.grad, p.grad, value=group["sigma"])
        return average / (square.sqrt() + group["eps"])


#: Joins `cbin_nn.train.optimizers.OPTIMIZERS` while the comparison runs.
OPTIMIZERS = {"momentum": LatentMomentum, "bop2": SecondOrderBop}
