r"""Folding: what stands between a layer's accumulator and its sign becomes the layer's rules.

The converter (`cbin_nn.converters.lower`) and the operators (`cbin_nn.ops`) both come here, with the chain as
`Planned` steps over a plane. `cbin_nn.rules` decides the sign of every element; this module gives it
the elements, the accumulators that can occur and, for a fused max-pool, one form (rule, veto, invert)
a channel.

**8-bit input.** An input q means `real = scale*q + offset`. With `offset/scale = p/m` in lowest terms the
convolution runs on the integer `m*q + p`, and `scale/m` joins the chain. `p/m` is the simplest fraction
within float32 rounding of `offset/scale`: 1/127.5 and -1 give m = 2, p = -255.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from . import rules as r
from .operators import Rules, Window

__all__ = [
    "AccumulatorRange",
    "FoldError",
    "FoldedPool",
    "Planned",
    "canonical_rules",
    "few",
    "fold_pool",
    "fold_sign",
    "input_by_channel",
    "integer_input",
    "simplest_fraction",
    "zeros_under_sign",
]

#: The multiplicands `m*q + p` of an 8-bit input are 16-bit.
_MAX_INPUT = 2**15 - 1

Float32 = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class FoldError(ValueError):
    """A chain or an input meaning can't be folded; the caller names the layer or the argument.

    Args:
        slug: stable identifier in kebab-case.
        message: what is wrong and what to do, without a subject.
    """

    def __init__(self, slug: str, message: str) -> None:
        super().__init__(message)
        self.slug = slug
        self.message = message


# ------------------------------------------------------------------------------------------------
# 8-bit inputs


def simplest_fraction(low: Fraction, high: Fraction) -> Fraction:
    """The fraction with the smallest denominator in [low, high] (walk of the Stern-Brocot tree)."""
    if low > high:
        raise ValueError("an empty interval has no fraction")
    if low <= 0 <= high:
        return Fraction(0)
    if high < 0:
        return -simplest_fraction(-high, -low)
    whole = math.ceil(low)
    if whole <= high:
        return Fraction(whole)
    floor = whole - 1
    return floor + 1 / simplest_fraction(1 / (high - floor), 1 / (low - floor))


def integer_input(
    scale: Fraction, offset: Fraction, least: int = 0, most: int = 255
) -> tuple[int, int, Fraction]:
    """(mul, add, factor) with `scale*q + offset = factor * (mul*q + add)` for `least <= q <= most`.

    The ratio `offset/scale` is snapped to the simplest fraction within float32 rounding.

    Raises:
        FoldError: the scale is 0, or `mul*q + add` does not fit 16 bits.
    """
    if not scale:
        raise FoldError("unsupported-scale", "the input scale is 0, so the input is lost")
    ratio = offset / scale
    # Half a float32 ulp on each of scale and offset: 2 * 2**-24 relative.
    slack = abs(ratio) / 2**23
    snapped = simplest_fraction(ratio - slack, ratio + slack)
    mul, add = snapped.denominator, snapped.numerator
    if max(abs(least * mul + add), abs(most * mul + add)) > _MAX_INPUT:
        raise FoldError(
            "unsupported-scale",
            f"input offset/scale = {float(ratio):.9g} is no fraction p/m with |m*q + p| < 2**15 "
            f"(the simplest is {snapped}); choose an offset that is a simple multiple of the scale, "
            "such as x/127.5 - 1 or x/255",
        )
    return mul, add, scale / mul


def input_by_channel(ratios: Sequence[Fraction], largest: int) -> tuple[int, Ints, float]:
    """(mul, adds, error): integers with `q + ratio = (mul*q + add) / mul` up to `error`, in steps of q.

    Of all mul for which `max |mul*q + add| <= largest`, the smallest whose error is within float32 rounding
    of the ratios (0 is returned for the error then), else the one with the smallest error.

    Args:
        ratios: `offset / scale` of each channel.
        largest: bound of the multiplicands, at least `256 + max |ratio|`.

    Raises:
        FoldError: not even mul = 1 is within the bound.
    """
    values = np.array([float(ratio) for ratio in ratios])
    reach = float(np.maximum(np.abs(values), np.abs(values + 255)).max())
    most = min(int(largest / (reach + 1)), 2**16, max(1, 2**24 // values.size))  # in bounded memory
    if most < 1:
        raise FoldError(
            "unsupported-scale",
            f"input offset/scale = {values[np.abs(values).argmax()]:.9g} is so large that its accumulators "
            "do "
            "not fit 32 bits",
        )
    muls = np.arange(1, most + 1)
    errors = np.abs(np.rint(np.outer(muls, values)) / muls[:, None] - values)
    slack = np.abs(values) / 2**23
    within = np.flatnonzero((errors <= slack).all(axis=1))
    best = int(within[0]) if within.size else int(errors.max(axis=1).argmin())
    mul = int(muls[best])
    error = 0.0 if within.size else float(errors[best].max())
    return mul, np.rint(mul * values).astype(np.int64), error


# ------------------------------------------------------------------------------------------------
# accumulators


@dataclass(frozen=True)
class AccumulatorRange:
    """The accumulators that can occur, a channel: `low, low + step, ..., high`; int64, shape (channels,)."""

    low: Ints
    high: Ints
    step: int

    @classmethod
    def of_bits(cls, filters: int, products: int, channels: int, *, zero_padded: bool) -> AccumulatorRange:
        """Sums of +-1 products: `products` a filter in full, `channels` a tap.

        Every tap inside adds `channels` times +-1, so the parity of acc is that of the taps inside.
        """
        low = np.full(filters, -products, np.int64)
        return cls(low, -low, 1 if zero_padded and channels % 2 == 1 else 2)

    @classmethod
    def of_bytes(
        cls, weights: npt.NDArray[Any], mul: int, add: int | Ints, *, zero_padded: bool
    ) -> AccumulatorRange:
        """Sums of `w * (mul*q + add)` for q in 0..255; weights (filters, products), `add` one or one a
        product."""
        least = np.broadcast_to(np.asarray(add, np.int64), weights.shape[1:])
        most = least + 255 * mul
        if zero_padded:
            least, most = np.minimum(least, 0), np.maximum(most, 0)
        positive = np.where(weights > 0, weights, 0).astype(np.int64)
        negative = np.where(weights < 0, weights, 0).astype(np.int64)
        return cls(positive @ least + negative @ most, positive @ most + negative @ least, 1)

    @classmethod
    def of_weighted_bits(cls, weights: npt.NDArray[Any]) -> AccumulatorRange:
        """Sums of `w * x` for x = -1 or +1; weights (units, features). Each has the parity of its bounds."""
        high = np.abs(weights.astype(np.int64)).sum(axis=1)
        return cls(-high, high, 2)

    @property
    def fits(self) -> bool:
        """Whether every accumulator, and its neighbours, fit 32 bits."""
        return not (np.any(self.low <= r.INT32_MIN) or np.any(self.high >= r.INT32_MAX))

    def reach(self, shape: tuple[int, ...]) -> r.Reach:
        """The range spread over the elements of `shape`, channels innermost."""
        return r.Reach(_spread(self.low, shape), _spread(self.high, shape), self.step)


# ------------------------------------------------------------------------------------------------
# chains


@dataclass(frozen=True)
class Planned:
    """A step before it is spread over elements: arrays of shape (), (channels,) or of the whole plane."""

    layer: str
    #: "linear" is (factor, offset) or (factor, offset, divisor).
    kind: Literal["linear", "batch_norm", "prelu"]
    values: tuple[Any, ...]
    epsilon: float = 0.0

    def arrays(self) -> list[Float32]:
        """The parameters that are arrays."""
        return [value for value in self.values if not isinstance(value, Fraction)]

    def gather(self, owner: tuple[Ints, Ints]) -> Planned:
        """Parameters of a pooled plane, looked up for each pixel before the pool."""
        rows, columns = owner
        values = tuple(
            value[rows][:, columns] if isinstance(value, np.ndarray) and value.ndim == 3 else value
            for value in self.values
        )
        return Planned(self.layer, self.kind, values, self.epsilon)

    def build(self, shape: tuple[int, ...] | None) -> r.Step:
        """The step over the elements of `shape`, channels innermost; None keeps the arrays' own."""
        values: list[Any] = [
            value
            if isinstance(value, Fraction)
            else np.ascontiguousarray(
                np.broadcast_to(value, shape if shape is not None else value.shape)
            ).reshape(-1)
            for value in self.values
        ]
        if self.kind == "linear":
            return r.Linear(self.layer, *values)
        if self.kind == "prelu":
            return r.PReLU(self.layer, *values)
        gamma, beta, mean, variance = values
        return r.BatchNorm(self.layer, gamma, beta, mean, variance, self.epsilon)


def _per_element(planned: Sequence[Planned], plane: tuple[int, ...]) -> bool:
    """Do the steps hold per-element parameters?"""
    return any(array.shape == plane and len(plane) == 3 for step in planned for array in step.arrays())


def _strict(planned: Sequence[Planned], strict: Bools | None, layer: str = "") -> list[Planned]:
    """The chain, negated in the channels of `strict`: `f > 0` is `NOT (-f >= 0)`."""
    if strict is None or not strict.any():
        return list(planned)
    turn = np.where(strict, np.float32(-1), np.float32(1))
    return [*planned, Planned(layer, "linear", (turn, Fraction(0)))]


def fold_sign(
    planned: Sequence[Planned],
    accumulators: AccumulatorRange,
    plane: tuple[int, ...],
    strict: Bools | None = None,
) -> tuple[Rules, tuple[int, ...]]:
    """Rules of a chain without a pool.

    Args:
        planned: the chain, the scales that belong to the accumulator itself included.
        accumulators: what can occur.
        plane: (height, width, channels) of the accumulators, or (units,).
        strict: channels where a tie is -1 instead of +1, shape (channels,); None is nowhere.

    Returns:
        (rules, (rules in all, two-sided, constant, near a tie)).

    Raises:
        TooManyIntervals: some element needs more than one interval.
    """
    grid: Literal["channel", "conv"] = "conv" if _per_element(planned, plane) else "channel"
    shape = plane if grid == "conv" else plane[-1:]
    steps = [p.build(shape) for p in _strict(planned, strict)]
    sets, near = r.sign_rules(steps, accumulators.reach(shape))
    flip = sets.flip.reshape(shape)
    if strict is not None:
        flip = flip ^ strict
    rules = canonical_rules(sets.lo.reshape(shape), sets.hi.reshape(shape), flip, grid)
    return rules, (sets.lo.size, int(sets.two_sided.sum()), int(sets.constant.sum()), int(near.sum()))


@dataclass(frozen=True)
class FoldedPool:
    """Rule, veto and invert of a chain with one max-pool inside, as `operators.Pool` states them."""

    rule: Rules
    veto: Rules | None
    invert: Bools | None
    #: Rules in all, two-sided, constant, near a tie.
    counts: tuple[int, ...]


def fold_pool(
    before: Sequence[Planned],
    after: Sequence[Planned],
    window: Window,
    accumulators: AccumulatorRange,
    plane: tuple[int, ...],
    pooled: tuple[int, ...],
    strict: Bools | None = None,
) -> FoldedPool:
    """Rule, veto and invert of `sign(after(max over the window of before(acc)))`.

    Args:
        before: the chain between accumulator and pool.
        after: the chain between pool and sign.
        window: the pool's.
        accumulators: what can occur.
        plane: (height, width, channels) of the accumulators.
        pooled: the same after the pool.
        strict: see `fold_sign`.

    Raises:
        TooManyIntervals: some element needs more than the pool's law covers.
        FoldError: per-element parameters that one operator can't hold.
    """
    channels = plane[-1]
    on_conv, on_pooled = _per_element(before, plane), _per_element(after, pooled)
    grid: Literal["channel", "conv", "output"] = "channel"
    shape: tuple[int, ...] = (channels,)
    owner: tuple[Ints, Ints] | None = None
    if on_conv:
        grid, shape = "conv", plane
        if on_pooled:
            owner = _owners(window, plane, pooled)
    elif on_pooled:
        grid, shape = "output", pooled
    first = [p.build(shape) for p in before]
    second = [(p.gather(owner) if owner is not None else p).build(shape) for p in _strict(after, strict)]
    found, near = r.pooled_rules(first, second, accumulators.reach(shape), mixed=grid == "conv")
    rule, veto, invert, clash = _one_invert_a_channel(found, channels, mixed=grid == "conv")
    if clash:
        raise FoldError(
            "too-many-intervals",
            "per-element parameters after it make both intervals and complements of intervals in "
            f"channels {few(clash)}, which one operator can't hold; use one slope a channel",
        )
    if strict is not None:
        invert = invert ^ strict
    vetoed = ~(veto.constant & ~veto.flip)
    return FoldedPool(
        canonical_rules(rule.lo.reshape(shape), rule.hi.reshape(shape), rule.flip.reshape(shape), grid),
        canonical_rules(veto.lo.reshape(shape), veto.hi.reshape(shape), veto.flip.reshape(shape), grid)
        if vetoed.any()
        else None,
        invert if invert.any() else None,
        (
            rule.lo.size,
            int((found.rule.two_sided | ~(found.veto.constant & ~found.veto.flip)).sum()),
            int((found.rule.constant & found.veto.constant).sum()),
            int(near.sum()),
        ),
    )


def _owners(window: Window, plane: tuple[int, ...], pooled: tuple[int, ...]) -> tuple[Ints, Ints]:
    """The pooled row of each convolution row, and the same for columns (a row outside every window: 0)."""
    owners = []
    for axis in (0, 1):
        kernel, stride, start = window.kernel[axis], window.strides[axis], window.padding[axis]
        if stride < kernel or window.dilation != (1, 1):
            raise FoldError(
                "unsupported-layer",
                "per-element parameters on both sides of an overlapping pool can't be folded; "
                "use one slope a channel, or strides equal to the pool's size",
            )
        index = (np.arange(plane[axis]) + start) // stride
        owners.append(np.minimum(index, pooled[axis] - 1))
    return owners[0], owners[1]


def zeros_under_sign(
    before: Sequence[Planned],
    after: Sequence[Planned],
    accumulators: AccumulatorRange,
    plane: tuple[int, ...],
    pooled: tuple[int, ...],
) -> list[int]:
    """Channels in which `after(max of before(acc))` is exactly 0 for some reachable accumulator.

    Each value of `before(acc)` may be the largest of its window, so the composite decides.
    """
    shape = plane[-1:]
    steps: list[Planned] = [*before, *after]
    if _per_element(before, plane):
        shape = plane
        if _per_element(after, pooled):
            raise FoldError(
                "unsupported-layer",
                "per-element parameters on both sides of a pool, and a sign that is 0 at 0",
            )
    elif _per_element(after, pooled):
        shape = pooled
    found = r.zero_reachable([p.build(shape) for p in steps], accumulators.reach(shape))
    return [int(c) for c in np.flatnonzero(found.reshape(-1, plane[-1]).any(axis=0))]


def _spread(values: Ints, shape: tuple[int, ...]) -> Ints:
    return np.ascontiguousarray(np.broadcast_to(values, shape)).reshape(-1)


def few(channels: Sequence[int]) -> str:
    """The first eight of a list of numbers, for a message."""
    text = ", ".join(str(c) for c in channels[:8])
    return text + (f" ... ({len(channels)} in all)" if len(channels) > 8 else "")


def canonical_rules(lo: Ints, hi: Ints, flip: Bools, grid: Literal["channel", "conv", "output"]) -> Rules:
    """Canonical also after a flip: one-sided sets carry no flip, as long as their ends are in reach of
    int32."""
    lo, hi, flip = lo.copy(), hi.copy(), flip.copy()
    below = flip & (lo == r.INT32_MIN) & (hi < r.INT32_MAX)  # NOT (acc <= h) is acc >= h + 1
    above = flip & (lo > r.INT32_MIN) & (hi == r.INT32_MAX)
    lo, hi = (
        np.where(below, hi + 1, np.where(above, r.INT32_MIN, lo)),
        np.where(below, r.INT32_MAX, np.where(above, lo - 1, hi)),
    )
    return Rules(lo.astype(np.int32), hi.astype(np.int32), flip & ~below & ~above, grid)


def _one_invert_a_channel(
    found: r.PooledIntervals, channels: int, *, mixed: bool
) -> tuple[r.Intervals, r.Intervals, Bools, list[int]]:
    """Rules whose elements share `invert` within a channel, and the channels where that is impossible.

    Only a veto fixes `invert`: an interval of y needs False, a complement True. A one-sided element fits
    both:

        OR s          (invert False)  =  NOT (1 AND NOT OR s)   (invert True, veto s)
        NOT OR s      (invert True)   =  1 AND NOT OR s         (invert False, veto s)

    A constant turns by its own flip, unless its window mixes it with other elements (`mixed`).
    """
    rule, veto, invert = found.rule, found.veto, found.invert.reshape(-1, channels)
    vetoed = ~(veto.constant & ~veto.flip).reshape(-1, channels)
    wants_true, wants_false = (vetoed & invert).any(axis=0), (vetoed & ~invert).any(axis=0)
    clash = np.flatnonzero(wants_true & wants_false)
    # Without a veto in the channel, keep what most elements have, so that most need no veto.
    majority = invert.mean(axis=0) > 0.5
    chosen = np.where(wants_true, True, np.where(wants_false, False, majority))
    turn = (invert != chosen).reshape(-1)
    one = (1, 0, True)
    constant = rule.constant & veto.constant & (not mixed)
    move = turn & ~constant
    new_rule = r.Intervals(
        np.where(move, one[0], rule.lo),
        np.where(move, one[1], rule.hi),
        np.where(move, one[2], rule.flip ^ (turn & constant)),
    )
    new_veto = r.Intervals(
        np.where(move, rule.lo, veto.lo),
        np.where(move, rule.hi, veto.hi),
        np.where(move, rule.flip, veto.flip),
    )
    return new_rule, new_veto, chosen, [int(c) for c in clash]
