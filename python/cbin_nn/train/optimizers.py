r"""Optimizers for binary networks, as ordinary `torch.optim.Optimizer`s.

The latent weights of `cbin_nn.train` layers only matter by their sign, so an ordinary learning rate has no
meaning of its own there: what a step does to the network is which weights flip. The optimizers here differ
in who decides that:

- `LatentAdam`: Adam, with latent weights clipped to [-1, 1] (Courbariaux and Hubara et al. 2016): flips are
  where the walk of the latent weights happens to cross 0, at a rate that nobody chose.
- `Bop` (Helwegen et al. 2019): no latent weights; a weight flips when the moving average of its gradient
  passes a threshold.
- `FlipRateAdam`: Adam's direction, at a step size that a controller holds so that a *chosen share*
  of each layer's weights flips at a step. The schedule then is one of flips.
- `LatentMuon`: the momentum of each latent tensor, orthogonalised (Muon; Jordan et al. 2024), at a step whose
  root mean square is the learning rate.

Each takes parameter groups: `{"params": latent, "binary": True}` for latent weights, the others are
trained by Adam. `group_parameters(model)` makes them. A group's `lr` is what schedules change, each from the
`initial_lr` that it began with; `latent_lr` is that of the `binary` groups. `FlipRateAdam` and `Bop` scale
their flip rate and `gamma` by `lr / initial_lr`, so one schedule drives all.

`flips` of an optimizer counts the weights that changed sign at the last step, by group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidArgument
from .layers import binary_parameters

__all__ = [
    "OPTIMIZERS",
    "Bop",
    "FlipRateAdam",
    "LatentAdam",
    "LatentMuon",
    "group_parameters",
    "make_optimizer",
    "orthogonalize",
]


def group_parameters(model: nn.Module) -> list[dict[str, Any]]:
    """Two parameter groups: the latent weights (`binary: True`) and everything else."""
    latent = binary_parameters(model)
    ids = {id(p) for p in latent}
    rest = [p for p in model.parameters() if id(p) not in ids]
    return [{"params": latent, "binary": True}, {"params": rest, "binary": False}]


class LatentAdam(torch.optim.Optimizer):
    """Adam; the latent weights of `binary` groups are clipped to [-clip, clip] after each step.

    Args:
        params: parameters or groups.
        lr: learning rate.
        latent_lr: learning rate of the `binary` groups that have none of their own; default: `lr`.
        betas: decay of the moving averages of the gradient and of its square.
        eps: added to the root of the second average.
        weight_decay: decoupled, of the groups that are not `binary`.
        latent_decay: decoupled, of the `binary` groups.
        clip: bound of the latent weights.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        latent_lr: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        latent_decay: float = 0.0,
        clip: float = 1.0,
    ) -> None:
        latent_lr = lr if latent_lr is None else latent_lr
        _positive(lr=lr, latent_lr=latent_lr, eps=eps, clip=clip)
        defaults = {
            "lr": lr,
            "latent_lr": latent_lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "latent_decay": latent_decay,
            "clip": clip,
            "binary": False,
        }
        super().__init__(params, defaults)
        self.flips: list[int] = []

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """See `torch.optim.Optimizer`; a group's first learning rate stays in it as `initial_lr`."""
        if param_group.get("binary", False):
            param_group.setdefault("lr", self.defaults["latent_lr"])
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group.setdefault("initial_lr", group["lr"])

    def _add_options(self, **values: Any) -> None:
        """A subclass's own options, in every group that doesn't set them."""
        self.defaults.update(values)
        for group in self.param_groups:
            for name, value in values.items():
                group.setdefault(name, value)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; `flips` then holds the number of weights that changed sign, one number a group."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.flips = []
        for group in self.param_groups:
            flips = 0
            for p in group["params"]:
                if p.grad is None:
                    continue
                direction = self._direction(p, group)
                if group["binary"]:
                    before = p >= 0
                    self._move(p, direction, group)
                    p.clamp_(-group["clip"], group["clip"])
                    changed = int((before != (p >= 0)).sum())
                    self._after(p, changed, group)
                    flips += changed
                else:
                    if group["weight_decay"]:
                        p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(direction, alpha=-group["lr"])
            self.flips.append(flips)
        return loss

    def _direction(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        """Adam's step for a learning rate of 1."""
        state = self.state[p]
        if not state:
            state["step"] = 0
            state["average"] = torch.zeros_like(p)
            state["square"] = torch.zeros_like(p)
        state["step"] += 1
        assert p.grad is not None
        first, second = group["betas"]
        state["average"].lerp_(p.grad, 1 - first)
        state["square"].mul_(second).addcmul_(p.grad, p.grad, value=1 - second)
        root = (state["square"] / (1 - second ** state["step"])).sqrt_().add_(group["eps"])
        direction: Tensor = (state["average"] / (1 - first ** state["step"])).div_(root)
        return direction

    def _move(self, p: Tensor, direction: Tensor, group: dict[str, Any]) -> None:
        if group["latent_decay"]:
            p.mul_(1 - group["lr"] * group["latent_decay"])
        p.add_(direction, alpha=-group["lr"])

    def _after(self, p: Tensor, changed: int, group: dict[str, Any]) -> None:
        """For subclasses that act on the number of flips."""


class FlipRateAdam(LatentAdam):
    r"""Adam whose latent step size keeps the share of weights that flip at a step near a chosen rate.

    For each latent tensor with n weights, the step is `p -= s * direction`, direction being Adam's, and the
    log of s moves after each step towards the target:

        target = flip_rate * lr / initial_lr
        average = (1 - 1/window) * average + flips / n / window       (bias-corrected)
        s *= clip((target / average) ** gain, 1/2, 2)

    so a schedule of `lr` is a schedule of flips, whatever the scale of the latent weights, of the gradients
    or of the layer. Groups that are not `binary` are trained by Adam at `lr`.

    Args:
        params: parameters or groups.
        lr: learning rate of the other groups, and the start of the controlled step size.
        flip_rate: share of a tensor's weights that flips at a step, at the full learning rate.
        window: steps that the flip rate is averaged over.
        gain: how fast the step size follows.
        **options: see `LatentAdam`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        flip_rate: float = 1e-3,
        window: int = 50,
        gain: float = 0.05,
        **options: Any,
    ) -> None:
        _positive(flip_rate=flip_rate, window=window, gain=gain)
        super().__init__(params, lr, **options)
        self._add_options(flip_rate=flip_rate, window=window, gain=gain)

    def _move(self, p: Tensor, direction: Tensor, group: dict[str, Any]) -> None:
        size = self.state[p].setdefault("size", group["lr"])
        # The controller can't reach a rate of 0: at the end of a schedule the step ends with the learning
        # rate.
        p.add_(direction, alpha=-size if group["lr"] > 0 else 0.0)

    def _after(self, p: Tensor, changed: int, group: dict[str, Any]) -> None:
        state, keep = self.state[p], 1 - 1 / group["window"]
        state["flips"] = keep * state.get("flips", 0.0) + (1 - keep) * changed / p.numel()
        average = state["flips"] / (1 - keep ** state["step"])
        target = group["flip_rate"] * group["lr"] / group["initial_lr"]
        # Half a flip in the window at least, so that a tensor too small to flip now and then doesn't run
        # away.
        average = max(average, 0.5 / (group["window"] * p.numel()))
        target = max(target, 0.5 / (group["window"] * p.numel()))
        state["size"] *= min(2.0, max(0.5, math.pow(target / average, group["gain"])))


class Bop(LatentAdam):
    r"""Binary optimizer (Helwegen et al., "Latent weights do not exist", 2019), for `binary` groups.

        m = (1 - gamma) m + gamma grad;   w = -w where |m| > threshold and sign(m) = sign(w)

    Weights are kept as -1 and +1. `gamma` falls with the schedule: it is multiplied by `lr / initial_lr`.
    Other groups are trained by Adam.

    Args:
        params: parameters or groups.
        lr: learning rate of the other groups.
        gamma: adaptivity rate.
        threshold: of a flip.
        **options: see `LatentAdam`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        gamma: float = 1e-4,
        threshold: float = 1e-8,
        **options: Any,
    ) -> None:
        _positive(gamma=gamma)
        super().__init__(params, lr, **options)
        self._add_options(gamma=gamma, threshold=threshold)

    def _direction(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        if not group["binary"]:
            return super()._direction(p, group)
        state = self.state[p]
        if not state:
            state["average"] = torch.zeros_like(p)
            p.copy_(torch.where(p >= 0, 1.0, -1.0))
        assert p.grad is not None
        average: Tensor = state["average"]
        return average.lerp_(p.grad, min(1.0, group["gamma"] * group["lr"] / group["initial_lr"]))

    def _move(self, p: Tensor, direction: Tensor, group: dict[str, Any]) -> None:
        flip = (direction.abs() > group["threshold"]) & ((direction >= 0) == (p >= 0))
        p.copy_(torch.where(flip, -p, p))


class LatentMuon(LatentAdam):
    r"""Orthogonalised momentum on the latent weights of `binary` groups; Adam on the others.

    For a latent tensor p with gradient g, taken as a matrix with a row for each filter,

        m = momentum m + (1 - momentum) g;   u = momentum m + (1 - momentum) g         (Nesterov)
        p = clip(p - lr sqrt(max(rows, columns)) orthogonalize(u), -clip, clip)

    where `orthogonalize` replaces every singular value by about 1: of all matrices whose largest singular
    value is 1, U V^T is the one that goes furthest along u = U S V^T (Muon; Jordan et al. 2024). An r x c
    matrix with min(r, c) singular values of 1 has entries of root mean square 1 / sqrt(max(r, c)), hence the
    factor: a step's root mean square is about `lr`, in any layer.

    Why this suits latent weights. A binary layer sees only their signs, so neither their size nor that of
    their gradient means anything, and a weight is as far from its flip as a sum of *steps* is. What has to be
    chosen is the size of a step against the weights' first range and their bound. Here it is the learning
    rate and nothing else, whatever the scale of the gradient or the shape of the layer. Momentum may lie
    along few directions that all filters share, most so in a first layer; orthogonalised, the others flip
    weights too. A step moves no weight across 0 that is further from it than the step is long, so flips die
    out with the schedule of `lr`.

    Args:
        params: parameters or groups.
        lr: learning rate of the other groups.
        latent_lr: root mean square of a step of the latent weights.
        momentum: decay of the average of the gradient.
        iterations: of `orthogonalize`.
        **options: see `LatentAdam`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        latent_lr: float = 1e-3,
        momentum: float = 0.95,
        iterations: int = 5,
        **options: Any,
    ) -> None:
        _positive(iterations=iterations)
        if not 0 <= momentum < 1:
            raise InvalidArgument("bad-argument", f"momentum: expected 0 to below 1, got {momentum!r}")
        super().__init__(params, lr, latent_lr=latent_lr, **options)
        self._add_options(momentum=momentum, iterations=iterations)

    def _direction(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        if not group["binary"]:
            return super()._direction(p, group)
        state = self.state[p]
        if not state:
            state["average"] = torch.zeros_like(p)
        assert p.grad is not None
        average: Tensor = state["average"].lerp_(p.grad, 1 - group["momentum"])
        matrix = p.grad.lerp(average, group["momentum"]).reshape(len(p), -1)
        factor = math.sqrt(max(matrix.shape))
        return orthogonalize(matrix, group["iterations"]).mul_(factor).view_as(p)


def orthogonalize(matrix: Tensor, iterations: int = 5) -> Tensor:
    """About U V^T of a matrix U S V^T, by a Newton-Schulz iteration.

    With X = matrix / |matrix| (Frobenius), wide rather than tall, each iteration is
    X <- 3.4445 X + (-4.7750 A + 2.0315 A^2) X with A = X X^T. It acts on each singular value alone, as an odd
    polynomial; five take all that are above 1/100 of the norm to between 0.68 and 1.21, which is near enough
    for a step. The coefficients are Jordan's (Muon, 2024).

    Args:
        matrix: floating point `[rows, columns]`.
        iterations: the more, the smaller the singular values that are brought up.

    Returns:
        The same shape and dtype; 0 where the matrix is 0.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / x.norm().clamp_min(torch.finfo(x.dtype).tiny)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


OPTIMIZERS: dict[str, type[LatentAdam]] = {
    "adam": LatentAdam,
    "flip-rate": FlipRateAdam,
    "bop": Bop,
    "muon": LatentMuon,
}


def make_optimizer(model: nn.Module, name: str, **options: Any) -> LatentAdam:
    """The optimizer called `name` of `OPTIMIZERS` over the parameters of `model`, with its `options`.

    Raises:
        InvalidArgument: there is no such optimizer, or an option is wrong.
    """
    if name not in OPTIMIZERS:
        raise InvalidArgument(
            "bad-argument", f"optimizer: expected one of {', '.join(OPTIMIZERS)}, got {name!r}"
        )
    try:
        return OPTIMIZERS[name](group_parameters(model), **options)
    except TypeError as error:
        raise InvalidArgument("bad-argument", f"optimizer {name!r}: {error}") from error


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise InvalidArgument("bad-argument", f"{name}: expected a positive number, got {value!r}")
