"""What only the comparison of `ablation.py` needs: the steps of others on latent weights, their gradients.

Each optimizer is a `LatentAdam` with another step for the `binary` groups; all else, the other parameters and
the bound of the latent weights among it, is the same, so that what is compared is the step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from cbin_nn.train.models import MODELS, SmallCifar
from cbin_nn.train.optimizers import OPTIMIZERS, Bop, LatentAdam
from torch import Tensor, nn


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


class BayesBiNN(LatentAdam):
    r"""The Bayesian learning rule on Bernoulli weights (Meng et al. 2020), as their code does it on CIFAR-10.

        w = sign(l + r), with r = logit(uniform) / 2                 (their tanh of 1e10 (l + r))
        l = l - lr (N g / (1 - tanh(l)^2 + 1e-10) + l)               (the prior's natural parameter is 0)

    for a training set of N images and the gradient g at the sampled w, which the network computes with. l
    starts at 10 times the weights' signs, as theirs. In float32 the factor of g is 1e10 there, so l soon
    leaves all sampling noise behind: its sign is that of an average of gradients that forgets at the rate lr,
    Bop without a threshold.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, *, train_set_size: int = 45_000, **options: Any
    ) -> None:
        super().__init__(params, lr, **options)
        self._add_options(train_set_size=train_set_size)

    def _direction(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        if not group["binary"]:
            return super()._direction(p, group)
        state = self.state[p]
        if not state:
            state["step"] = 0
            state["natural"] = torch.where(p >= 0, 10.0, -10.0)
        state["step"] += 1
        natural: Tensor = state["natural"]
        assert p.grad is not None
        return group["train_set_size"] * p.grad / (1 - natural.tanh().square() + 1e-10) + natural

    def _move(self, p: Tensor, direction: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        natural: Tensor = state["natural"].sub_(direction, alpha=group["lr"])
        # From the step alone, so that a resumed run draws the same.
        generator = torch.Generator().manual_seed(state["step"])
        noise = torch.rand(p.shape, generator=generator).logit().to(p.device) / 2
        p.copy_(torch.where(natural + noise >= 0, 1.0, -1.0))


class _Balance(torch.autograd.Function):
    """x twice; its gradient is that of the first, plus that of the second scaled to `share` of its norm."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> tuple[Tensor, Tensor]:
        ctx.share = share
        return x.view_as(x), x.view_as(x)

    @staticmethod
    def backward(ctx: Any, binary: Tensor, auxiliary: Tensor) -> tuple[Tensor, None]:
        scale = ctx.share * binary.norm() / (auxiliary.norm() + 1e-8)
        return binary + scale * auxiliary, None


class Compensated(nn.Module):
    r"""A binary layer on real inputs with SURGE's auxiliary gradient (Huang et al. 2026).

        y = layer(sign(x)) + (f(x) - f(x)'),   f a real layer of the same form, ' without gradient

    The forward pass is the binary layer's alone. The gradient of x is that through sign's estimator, and that
    through f scaled to `share` of its norm; f learns from the gradient of y.

    Args:
        layer: the binary layer.
        sign: what binarizes its input.
        real: f.
        share: eta of the paper, which gives no value; 0.1 here.
    """

    def __init__(self, layer: nn.Module, sign: nn.Module, real: nn.Module, share: float = 0.1) -> None:
        super().__init__()
        self.layer, self.sign, self.real, self.share = layer, sign, real, share

    def forward(self, x: Tensor) -> Tensor:
        """The binary layer's output of the signs of `x`."""
        if not self.training:
            signs: Tensor = self.layer(self.sign(x))
            return signs
        x, copy = _Balance.apply(x, self.share)
        auxiliary = self.real(copy)
        y: Tensor = self.layer(self.sign(x)) + (auxiliary - auxiliary.detach())
        return y


class SurgeCifar(SmallCifar):
    """`SmallCifar` whose layers after the first have SURGE's auxiliary gradient."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for before, block in ((self.block1, self.block2), (self.block2, self.block3)):
            outputs, inputs, *window = block.conv.weight.shape
            real = nn.Conv2d(inputs, outputs, window, padding=block.conv.padding, bias=False)
            block.conv = Compensated(block.conv, before.sign, real)
            before.sign = nn.Identity()
        outputs, inputs = self.dense.weight.shape
        self.dense = Compensated(self.dense, self.block3.sign, nn.Linear(inputs, outputs, bias=False))
        self.block3.sign = nn.Identity()


def register() -> None:
    """Let recipes name what is here."""
    OPTIMIZERS.update(bayesbinn=BayesBiNN, bop2=SecondOrderBop, momentum=LatentMomentum)
    MODELS.update(surge=SurgeCifar)
