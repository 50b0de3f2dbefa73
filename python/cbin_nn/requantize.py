r"""Requantization: from the last layer's accumulators to 8-, 16- or 32-bit integers, in stated fixed point.

`q = round_half_even((acc*mul + add) / 2**shift)`, saturated, with `mul` and `add` the exact slope and
intercept of `logit/scale`, times `2**shift`, rounded half to even. With |acc| <= K the rounding of `mul`
and `add` costs at most `(K + 1) / 2` units of `2**-shift`, so before saturation

    |q - logit/scale| <= 1/2 + (K + 1) * 2**-(shift + 1)

Where `mul` and `add` need no rounding, q is `round_half_even(logit/scale)` exactly. Where all logits are
multiples of one rational scale and fit the type, that scale is chosen, `shift` is 0 and q is exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import numpy as np
import numpy.typing as npt

from . import rules as r
from .exact import Exact
from .folding import FoldError, few
from .operators import Requantization

__all__ = ["LARGEST", "requantize"]

#: Largest value of each output type; "f32" is i32 on the board.
LARGEST = {"i8": 2**7 - 1, "i16": 2**15 - 1, "i32": 2**31 - 1}
_MAX_SHIFT = 30
_MAX_PRODUCT = 2**62

Ints = npt.NDArray[np.int64]


def requantize(
    steps: Sequence[r.Step],
    features: int,
    step: int,
    units: int,
    output: str,
    scale: Fraction | None = None,
) -> tuple[Requantization, str]:
    """Fixed point of the chain after a dense layer.

    Args:
        steps: the chain, over units.
        features: K; accumulators are `-K, -K + step, ..., K`.
        step: see `features`.
        units: outputs of the layer.
        output: "i8", "i16", "i32" or "f32" (which is stored as i32).
        scale: the stated worth of one output step, a float32 value above 0, which may saturate; None chooses
            one from the largest reachable logit, so that nothing does.

    Returns:
        (the requantization, a line that states scale, shift and error bound).

    Raises:
        FoldError: a unit's chain has more than two linear pieces, or the logits do not fit.
    """
    dtype: Literal["i8", "i16", "i32"] = (
        "i32" if output in ("i32", "f32") else "i8" if output == "i8" else "i16"
    )
    largest = LARGEST[dtype]
    lines: list[tuple[int, tuple[Exact, Exact], tuple[Exact, Exact]]] = []
    extremes: list[Exact] = []
    parts: list[Fraction] | None = []
    bent = []
    for unit in range(units):
        pieces = r.linear_pieces(steps, -features, features, step, unit)
        if len(pieces) > 2:
            bent.append(unit)
            continue
        for first, last, slope, intercept in pieces:
            extremes += [abs(slope * first + intercept), abs(slope * last + intercept)]
            a, b = slope.rational(), intercept.rational()
            if a is None or b is None or parts is None:
                parts = None
            else:
                parts += [a, b]
        below, above = pieces[0], pieces[-1]
        knee = above[0] if len(pieces) == 2 else 0
        lines.append((knee, (above[2], above[3]), (below[2], below[3])))
    if bent:
        raise FoldError(
            "too-many-pieces",
            f"the output chain of units {few(bent)} has more than two linear pieces; "
            "at most one PReLU (or ReLU) after the last dense layer converts",
        )
    peak = Exact(0)
    for value in extremes:
        if float(value) > float(peak) * (1 - 1e-12) and value > peak:
            peak = value

    stated = scale is not None
    shift = 0
    # Exact where all slopes and intercepts are multiples of one rational step and the logits fit.
    common = _common_step(parts) if parts is not None else None
    if scale is None and common is not None and peak <= common * largest and _is_float32(common):
        scale = common
    whole = scale is not None and parts is not None and all((p / scale).denominator == 1 for p in parts)
    if scale is None:
        scale = _scale_above(peak, largest)
    if not whole:
        shift = _MAX_SHIFT
    while True:
        factor = Fraction(2**shift) / scale
        table = [
            (
                knee,
                *(
                    (line[0] * factor).round_half_even(),
                    (line[1] * factor).round_half_even(),
                    *((low[0] * factor).round_half_even(), (low[1] * factor).round_half_even()),
                ),
            )
            for knee, line, low in lines
        ]
        worst = max(
            max(abs(ma) * features + abs(aa), abs(mb) * features + abs(ab)) for _, ma, aa, mb, ab in table
        )
        if worst < _MAX_PRODUCT:
            break
        if shift == 0:
            raise FoldError("output-overflow", "its logits do not fit 62-bit fixed point")
        shift -= 1
    unit_step = float(scale)
    bound = 0.5 if whole else 0.5 + (features + 1) * 2.0 ** -(shift + 1)
    if whole:
        note = f"output: exact, logit = {unit_step:g} * q"
    else:
        note = (
            f"output: logit = {unit_step:.9g} * q, |q - logit/scale| <= {bound:.9g} ({dtype}, shift {shift})"
        )
    if stated and peak > scale * largest:
        note += "; logits beyond the type's range saturate"

    def column(i: int) -> Ints:
        return np.array([row[i] for row in table], dtype=np.int64)

    knees = column(0).astype(np.int32)
    found = Requantization(column(1), column(2), column(3), column(4), knees, shift, dtype, unit_step, bound)
    return found, note


def _common_step(parts: Sequence[Fraction]) -> Fraction | None:
    """The greatest rational of which all `parts` are integer multiples; None where all are zero."""
    denominator = math.lcm(*(part.denominator for part in parts))
    step = Fraction(math.gcd(*(int(part * denominator) for part in parts)), denominator)
    return step or None


def _is_float32(value: Fraction) -> bool:
    return 2.0**-126 <= value < 2.0**127 and Fraction(float(np.float32(float(value)))) == value


def _scale_above(peak: Exact, largest: int) -> Fraction:
    """A float32 that is not below peak / largest, so that nothing saturates; 1 where all logits are zero."""
    if not peak:
        return Fraction(1)
    estimate = np.float32(float(peak * Fraction(1, largest)))
    estimate = max(estimate, np.float32(2.0**-126))
    while peak > Fraction(float(estimate)) * largest:
        estimate = np.nextafter(estimate, np.float32(np.inf))
        if not np.isfinite(estimate):
            raise FoldError("output-overflow", "its logits do not fit float32")
    return Fraction(float(estimate))
