r"""From chains of BatchNorm, bias, scale and PReLU to rules on an integer accumulator, exactly.

A chain is a list of steps, each a vector over *elements* (channels, or pixels times channels). Applied
to the integer accumulator of a binary dot product it is a continuous piecewise-linear function `f`
for every element, and the rule of that element is the set `{acc : f(acc) >= 0}`.

Two ways lead there, and both are proofs:

- **In float64 with an error bound, for all elements at once.** Breakpoints and roots are estimated, and
  the chain is evaluated at the neighbours of each. Where every sign is certain (the value is larger
  than its error bound) and the signs of all PReLU arguments agree across each gap between candidates,
  the chain is linear in the gap, so the sign is constant there. The estimates need not be trusted.
- **In exact arithmetic** (`cbin_nn.exact`) for the elements where that fails: ties, near-ties, overflow.

**Max-pool.** With `A` before the pool and `B` after it, the bit is `B(max A(acc)) >= 0`. `B` is continuous,
so `{y : B(y) >= 0}` is a union of closed intervals with ends `t_1 <= t_2 <= ...`, and "y is at or past an
end" is `max A(acc) >= t` (or `> t`), which is an OR over the window. With at most two ends that matter on
reachable values:

    y >= t           OR[A >= t]                          l <= y <= h     OR[A >= l] AND NOT OR[A > h]
    y <= t           NOT OR[A > t]                       its complement  NOT (OR[A > l] AND NOT OR[A >= h])

Ends are roots of linear functions `a*y + b`, so `A(acc) >= t` is the sign of `a*A(acc) + b`: nothing is
divided and irrational ends need no rounding. Where `B` is monotone, one end is enough whatever the
shape of `A`, and the composite `B(A(acc))` decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from .errors import ConversionError
from .exact import Exact, first_nonnegative

__all__ = [
    "INT32_MAX",
    "INT32_MIN",
    "BatchNorm",
    "Intervals",
    "Linear",
    "PReLU",
    "PooledIntervals",
    "Reach",
    "Step",
    "TooManyIntervals",
    "clip_steps",
    "linear_pieces",
    "pooled_rules",
    "sign_rules",
    "zero_reachable",
]

INT32_MIN = -(2**31)
INT32_MAX = 2**31 - 1

#: A channel is a near-tie where |y| is below this times the largest term (DESIGN: Rules).
NEAR_TIE = 1e-5

Floats = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

#: Elements handled at once by the float64 pass: bounds its memory.
_CHUNK = 16384
#: Half an ulp of float64 is 2**-53; a step does at most ten roundings. 32 leaves a margin.
_ROUNDING = 32 * 2.0**-53


def _column(layer: str, what: str, values: Float32) -> Float32:
    array = np.ascontiguousarray(values, dtype=np.float32)
    if array.ndim != 1:
        raise ValueError(f"{what} of layer {layer!r} must be one-dimensional, got shape {array.shape}")
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise ConversionError(
            "not-finite",
            f"{what} is {array[bad[0]]} at element {int(bad[0])} ({bad.size} of {array.size} values are NaN "
            "or infinite); the training diverged, use another checkpoint",
            layer=layer,
        )
    return array


@dataclass(frozen=True, eq=False)
class Linear:
    """`y = factor * x / divisor + offset`. Each is one rational for all elements or float32 values, shape
    (elements,)."""

    layer: str
    factor: Fraction | Float32
    offset: Fraction | Float32
    divisor: Fraction | Float32 = Fraction(1)

    def __post_init__(self) -> None:
        for what in ("factor", "offset", "divisor"):
            value = getattr(self, what)
            if not isinstance(value, Fraction):
                object.__setattr__(self, what, _column(self.layer, what, value))
        divisor = self.divisor
        if (not divisor) if isinstance(divisor, Fraction) else bool(np.any(divisor == 0)):
            raise ConversionError("not-finite", "it divides by zero", layer=self.layer)

    def exact(self, element: int) -> tuple[Exact, Exact]:
        """(slope, intercept) of one element."""
        factor, offset, divisor = (
            value if isinstance(value, Fraction) else Fraction(float(value[element]))
            for value in (self.factor, self.offset, self.divisor)
        )
        return Exact(factor / divisor), Exact(offset)

    def columns(self, elements: slice) -> tuple[Floats, Floats, Floats]:
        """(slope, centre, offset) with `y = slope * (x - centre) + offset`, float64, two ulps or better."""
        factor = _float_column(self.factor, elements) / _float_column(self.divisor, elements)
        return factor, np.zeros_like(factor), _float_column(self.offset, elements)

    def direction(self, elements: slice) -> Ints:
        """Sign of the slope, shape (elements,) or (1,)."""
        signs = np.sign(_float_column(self.factor, elements)) * np.sign(_float_column(self.divisor, elements))
        return signs.astype(np.int64)[:, 0]

    def parameters(self) -> list[Float32]:
        """The per-element arrays."""
        values = (self.factor, self.offset, self.divisor)
        return [value for value in values if not isinstance(value, Fraction)]


@dataclass(frozen=True, eq=False)
class BatchNorm:
    """`y = gamma * (x - mean) / sqrt(variance + epsilon) + beta` (Ioffe and Szegedy 2015, at inference).

    Float32 arrays of shape (elements,); `epsilon` is read as its float32 value.
    """

    layer: str
    gamma: Float32
    beta: Float32
    mean: Float32
    variance: Float32
    epsilon: float

    def __post_init__(self) -> None:
        for what in ("gamma", "beta", "mean", "variance"):
            object.__setattr__(self, what, _column(self.layer, what, getattr(self, what)))
        with np.errstate(over="ignore"):
            epsilon = float(np.float32(self.epsilon))
        if not np.isfinite(epsilon):
            raise ConversionError("not-finite", f"epsilon is {self.epsilon}", layer=self.layer)
        object.__setattr__(self, "epsilon", epsilon)
        # The float64 sum of two float32 values has the sign of the exact sum.
        bad = np.flatnonzero(self.variance.astype(np.float64) + epsilon <= 0)
        if bad.size:
            raise ConversionError(
                "bad-variance",
                f"moving variance + epsilon is not positive at element {int(bad[0])} "
                f"({float(self.variance[bad[0]])} + {epsilon}); a variance can't be negative, the file is "
                "damaged",
                layer=self.layer,
            )

    def exact(self, element: int) -> tuple[Exact, Exact]:
        """(slope, intercept) of one element."""
        variance = Fraction(float(self.variance[element])) + Fraction(self.epsilon)
        slope = Exact.sqrt(variance) * (Fraction(float(self.gamma[element])) / variance)
        return slope, slope * -Fraction(float(self.mean[element])) + Fraction(float(self.beta[element]))

    def columns(self, elements: slice) -> tuple[Floats, Floats, Floats]:
        """(slope, centre, offset) with `y = slope * (x - centre) + offset`, float64, a few ulps."""
        variance = _float_column(self.variance, elements) + self.epsilon
        slope = _float_column(self.gamma, elements) / np.sqrt(variance)
        return slope, _float_column(self.mean, elements), _float_column(self.beta, elements)

    def direction(self, elements: slice) -> Ints:
        """Sign of the slope, shape (elements,)."""
        return np.sign(_float_column(self.gamma, elements)).astype(np.int64)[:, 0]

    def parameters(self) -> list[Float32]:
        """The per-element arrays."""
        return [self.gamma, self.beta, self.mean, self.variance]


@dataclass(frozen=True, eq=False)
class PReLU:
    """`y = x` where `x >= 0`, else `alpha * x` (He et al. 2015). One rational, or float32 of shape
    (elements,)."""

    layer: str
    alpha: Fraction | Float32

    def __post_init__(self) -> None:
        if not isinstance(self.alpha, Fraction):
            object.__setattr__(self, "alpha", _column(self.layer, "alpha", self.alpha))

    def exact(self, element: int) -> Fraction:
        """The slope below zero of one element."""
        return self.alpha if isinstance(self.alpha, Fraction) else Fraction(float(self.alpha[element]))

    def column(self, elements: slice) -> Floats:
        """The slopes below zero, float64, shape (elements, 1) or (1, 1)."""
        return _float_column(self.alpha, elements)

    def parameters(self) -> list[Float32]:
        """The per-element arrays."""
        return [] if isinstance(self.alpha, Fraction) else [self.alpha]


Step = Linear | BatchNorm | PReLU


def clip_steps(layer: str, low: Fraction | None, high: Fraction | None) -> list[Step]:
    """`min(max(x, low), high)` as steps: ReLU and hard tanh need no kind of their own.

    Source: `max(x, l) = relu(x - l) + l` and `min(x, h) = h - relu(h - x)`.
    """
    one, zero = Fraction(1), Fraction(0)
    steps: list[Step] = []
    if low is not None:
        steps += [Linear(layer, one, -low), PReLU(layer, zero), Linear(layer, one, low)]
    if high is not None:
        steps += [Linear(layer, -one, high), PReLU(layer, zero), Linear(layer, -one, high)]
    return steps


@dataclass(frozen=True, eq=False)
class Reach:
    """The accumulators that can occur: `low, low + step, ..., high` for each element.

    `low` and `high` have shape (elements,), int64, and `high - low` is a multiple of `step`. A range that
    is too wide costs nothing but a needless near-tie or a refusal; one that is too narrow would be wrong.
    """

    low: Ints
    high: Ints
    step: int = 1

    def __post_init__(self) -> None:
        if self.step < 1 or np.any(self.low > self.high) or np.any((self.high - self.low) % self.step):
            raise ValueError("Reach needs low <= high, a whole number of steps apart")
        if np.any(self.low <= INT32_MIN) or np.any(self.high >= INT32_MAX):
            raise ValueError("Reach does not fit the 32-bit accumulator")

    @property
    def elements(self) -> int:
        """Number of elements."""
        return int(self.low.size)


class TooManyIntervals(ValueError):
    """A sign needs more than one interval (or its complement) of accumulators at `elements`."""

    def __init__(self, elements: list[int]) -> None:
        super().__init__(f"more than one interval at elements {elements}")
        self.elements = elements


@dataclass(frozen=True, eq=False)
class Intervals:
    """Sets of accumulators, `(lo <= acc <= hi) XOR flip`; arrays of shape (elements,).

    Canonical: a set that is open below has `lo = INT32_MIN`, one open above `hi = INT32_MAX`; the empty
    interval is (1, 0), so a constant is (1, 0, value); `flip` is set on complements and on the constant 1.
    """

    lo: Ints
    hi: Ints
    flip: Bools

    @property
    def constant(self) -> Bools:
        """Elements whose set is empty or everything."""
        return self.lo > self.hi

    @property
    def two_sided(self) -> Bools:
        """Elements whose set has two finite ends."""
        return ~self.constant & (self.lo > INT32_MIN) & (self.hi < INT32_MAX)

    def contains(self, acc: Ints) -> Bools:
        """Membership of `acc`, broadcast against (elements,)."""
        inside: Bools = ((acc >= self.lo) & (acc <= self.hi)) ^ self.flip
        return inside


@dataclass(frozen=True, eq=False)
class PooledIntervals:
    """`bit = (OR rule AND NOT OR veto) XOR invert` over a pooling window; `invert` has shape (elements,)."""

    rule: Intervals
    veto: Intervals
    invert: Bools


def _empty(elements: int) -> Intervals:
    return Intervals(np.ones(elements, np.int64), np.zeros(elements, np.int64), np.zeros(elements, np.bool_))


# ------------------------------------------------------------------------------------------------
# float64 with error bounds


def _float_column(values: Fraction | Float32, elements: slice) -> Floats:
    if isinstance(values, Fraction):
        return np.array([[float(values)]])
    return values[elements].astype(np.float64)[:, None]


@dataclass
class _Trace:
    """A chain evaluated in float64: value, error bound, size of its terms, and each PReLU's argument."""

    value: Floats
    error: Floats
    terms: Floats
    arguments: list[tuple[Floats, Floats]]


def _evaluate(steps: Sequence[Step], x: Floats, elements: slice) -> _Trace:
    value, error, terms = x, np.zeros_like(x), np.zeros_like(x)
    arguments = []
    for step in steps:
        if isinstance(step, PReLU):
            arguments.append((value, error))
            alpha = step.column(elements)
            negative = value < 0
            # max(1, |alpha|) is the Lipschitz constant, so a wrong branch near zero is covered too.
            error = error * np.maximum(1.0, np.abs(alpha)) + np.where(
                negative, _ROUNDING * np.abs(alpha * value), 0.0
            )
            terms = np.where(negative, np.abs(alpha) * terms, terms)
            value = np.where(negative, alpha * value, value)
        else:
            slope, centre, offset = step.columns(elements)
            size = np.abs(slope) * (np.abs(value) + np.abs(centre)) + np.abs(offset)
            error = np.abs(slope) * error * (1 + _ROUNDING) + _ROUNDING * size
            terms = np.maximum.reduce(
                np.broadcast_arrays(
                    np.abs(slope) * terms, np.abs(slope * value), np.abs(slope * centre), np.abs(offset)
                )
            )
            value = slope * (value - centre) + offset
    return _Trace(value, error, terms, arguments)


def _cuts(steps: Sequence[Step]) -> list[int]:
    """Lengths of the prefixes whose roots matter: up to each PReLU, and the whole chain."""
    return [i for i, step in enumerate(steps) if isinstance(step, PReLU)] + [len(steps)]


def _candidates(steps: Sequence[Step], reach: Reach, elements: slice) -> Floats:
    """Sorted positions k (acc = low + step*k) around every estimated breakpoint and root; float64, whole."""
    low = reach.low[elements].astype(np.float64)[:, None]
    last = ((reach.high - reach.low)[elements] // reach.step).astype(np.float64)[:, None]
    breaks = np.concatenate([np.zeros_like(last), last], axis=1)
    for cut in _cuts(steps):
        trace = _evaluate(steps[:cut], low + reach.step * breaks, elements)
        value = np.broadcast_to(trace.value, breaks.shape)
        left, right, before, after = breaks[:, :-1], breaks[:, 1:], value[:, :-1], value[:, 1:]
        crossing = (before >= 0) != (after >= 0)
        drop = np.where(crossing, before - after, 1.0)
        root = np.where(crossing, left + (right - left) * (before / drop), left)
        root = np.where(np.isfinite(root), root, left)
        breaks = np.sort(np.clip(np.concatenate([breaks, root], axis=1), 0.0, last), axis=1)
    floor = np.floor(breaks)
    near = np.concatenate([floor + shift for shift in (-1.0, 0.0, 1.0, 2.0)], axis=1)
    return np.sort(np.clip(near, 0.0, last), axis=1)


@dataclass
class _Found:
    """Sets {acc : f(acc) >= 0} of a chunk of elements, where `proven`."""

    sets: Intervals
    ends: Ints
    proven: Bools
    near_tie: Bools


def _float_pass(steps: Sequence[Step], reach: Reach, elements: slice, negate: Bools) -> _Found:
    """The sets {f >= 0} ({f < 0} where `negate`) of `elements`, with a mask of those that are proven."""
    positions = _candidates(steps, reach, elements)
    low = reach.low[elements][:, None]
    acc = low + reach.step * positions.astype(np.int64)
    trace = _evaluate(steps, acc.astype(np.float64), elements)
    value, error = np.broadcast_to(trace.value, acc.shape), np.broadcast_to(trace.error, acc.shape)
    terms = np.broadcast_to(trace.terms, acc.shape)

    def certain(value: Floats, error: Floats) -> Bools:
        result: Bools = (value > error) | (value < -error) | ((value == 0) & (error == 0))
        return np.broadcast_to(result, acc.shape)

    bits = value >= 0
    gap = np.diff(positions, axis=1) > 1
    proven: Bools = np.asarray(certain(value, error).all(axis=1))
    for argument, bound in [*trace.arguments, (value, error)]:
        sure = certain(argument, bound)
        side = np.broadcast_to(argument >= 0, acc.shape)
        steady = sure[:, :-1] & sure[:, 1:] & (side[:, :-1] == side[:, 1:])
        proven &= (steady | ~gap).all(axis=1)

    near: Bools = np.asarray((np.abs(value) < NEAR_TIE * np.maximum(1.0, terms)).any(axis=1))

    bits = bits ^ negate[:, None]
    change = bits[:, 1:] != bits[:, :-1]
    ends = change.sum(axis=1)
    rows = np.arange(len(acc))
    first = change.argmax(axis=1)
    final = change.shape[1] - 1 - change[:, ::-1].argmax(axis=1)
    # The first accumulator after the first change, the last one before the second change.
    return _Found(
        _intervals(bits[:, 0], ends, acc[rows, first + 1], acc[rows, first], acc[rows, final]),
        ends.astype(np.int64),
        proven,
        near,
    )


def _intervals(start: Bools, ends: Ints, after: Ints, before: Ints, until: Ints) -> Intervals:
    """Canonical intervals of sets that begin with `start` and change at `ends` (0, 1 or 2) places.

    `before` | `after` are the accumulators around the first change, `until` the last one before the second.
    """
    lo = np.where(ends == 0, 1, np.where((ends == 1) & start, INT32_MIN, after))
    hi = np.where(ends == 0, 0, np.where(ends == 1, np.where(start, before, INT32_MAX), until))
    flip = np.where(ends == 1, False, start)
    return Intervals(lo.astype(np.int64), hi.astype(np.int64), flip.astype(np.bool_))


# ------------------------------------------------------------------------------------------------
# exact arithmetic

#: (first position, last position, slope, intercept) of acc = low + step*position, in order and without holes.
_Piece = tuple[int, int, Exact, Exact]


def linear_pieces(steps: Sequence[Step], low: int, high: int, step: int, element: int) -> list[_Piece]:
    """The chain of one element as linear pieces over `acc = low, low + step, ..., high`.

    Returns:
        (first acc, last acc, slope, intercept) of each piece, in order; neighbours differ.
    """
    pieces = [(low, high, Exact(1), Exact(0))]
    for operation in steps:
        if isinstance(operation, PReLU):
            alpha = operation.exact(element)
            pieces = [part for piece in pieces for part in _bend(piece, alpha, low, step)]
        else:
            slope, intercept = operation.exact(element)
            pieces = [(a, b, s * slope, c * slope + intercept) for a, b, s, c in pieces]
    merged: list[_Piece] = []
    for piece in pieces:
        if merged and merged[-1][2] == piece[2] and merged[-1][3] == piece[3]:
            merged[-1] = (merged[-1][0], piece[1], piece[2], piece[3])
        else:
            merged.append(piece)
    return merged


def _split(piece: _Piece, low: int, step: int, strict: bool) -> list[tuple[int, int, bool]]:
    """Runs (first acc, last acc, f >= 0 or f > 0) of one piece."""
    first, last, slope, intercept = piece
    sign = slope.sign()
    if sign == 0:
        level = intercept.sign()
        return [(first, last, level > 0 or (level == 0 and not strict))]
    # In positions k the piece is slope*step*k + (slope*first + intercept), k = 0 .. count - 1.
    count = (last - first) // step + 1
    a, b = slope * step, slope * first + intercept
    if sign > 0:
        k = first_nonnegative(a, b, 0, count - 1, strict=strict)
        runs = [(0, k - 1, False), (k, count - 1, True)]
    else:  # falling: f >= 0 until -f > 0
        k = first_nonnegative(-a, -b, 0, count - 1, strict=not strict)
        runs = [(0, k - 1, True), (k, count - 1, False)]
    return [(first + step * p, first + step * q, state) for p, q, state in runs if p <= q]


def _bend(piece: _Piece, alpha: Fraction, low: int, step: int) -> list[_Piece]:
    """One piece after a PReLU."""
    _, _, slope, intercept = piece
    return [
        (p, q, slope, intercept) if positive else (p, q, slope * alpha, intercept * alpha)
        for p, q, positive in _split(piece, low, step, strict=False)
    ]


def _exact_set(
    pieces: Sequence[_Piece],
    low: int,
    step: int,
    a: Exact | None = None,
    b: Exact | None = None,
    strict: bool = False,
) -> tuple[bool, list[int]]:
    """{acc : a*f(acc) + b >= 0} (`> 0` where strict): whether it holds first, and the acc of each change."""
    start, changes, state = False, [], None
    for first, last, slope, intercept in pieces:
        if a is not None and b is not None:
            slope, intercept = slope * a, intercept * a + b
        for p, _, value in _split((first, last, slope, intercept), low, step, strict):
            if state is None:
                start = value
            elif value != state:
                changes.append(p)
            state = value
    return start, changes


@dataclass
class _End:
    """An end t of {y : B(y) >= 0}, the root of `a*y + b` with a > 0; the set begins (closed) or stops
    there."""

    a: Exact
    b: Exact
    begins: bool


#: (left end as a linear form or None for -infinity, slope, intercept)
_RealPiece = tuple["tuple[Exact, Exact] | None", Exact, Exact]


def _positive_form(a: Exact, b: Exact) -> tuple[Exact, Exact]:
    return (a, b) if a.sign() > 0 else (-a, -b)


def _root_before(p: tuple[Exact, Exact], q: tuple[Exact, Exact]) -> int:
    """Sign of root(q) - root(p) for forms with positive slopes: root = -b/a."""
    return (p[1] * q[0] - q[1] * p[0]).sign()


def _real_pieces(steps: Sequence[Step], element: int) -> list[_RealPiece]:
    """The chain of one element as a function of a real y."""
    pieces: list[_RealPiece] = [(None, Exact(1), Exact(0))]
    for step in steps:
        if not isinstance(step, PReLU):
            slope, intercept = step.exact(element)
            pieces = [(left, s * slope, c * slope + intercept) for left, s, c in pieces]
            continue
        alpha = step.exact(element)
        bent: list[_RealPiece] = []
        for left, slope, intercept, positive in _real_runs(pieces):
            scale = 1 if positive else alpha
            bent.append((left, slope * scale, intercept * scale))
        pieces = bent
    return pieces


def _real_runs(pieces: Sequence[_RealPiece]) -> list[tuple[tuple[Exact, Exact] | None, Exact, Exact, bool]]:
    """Pieces cut at their roots, each with the sign of its inside (True: >= 0 on the inside)."""
    runs = []
    for i, (left, slope, intercept) in enumerate(pieces):
        right = pieces[i + 1][0] if i + 1 < len(pieces) else None
        sign = slope.sign()
        if sign == 0:
            runs.append((left, slope, intercept, intercept.sign() >= 0))
            continue
        root = _positive_form(slope, intercept)
        if left is not None and _root_before(left, root) <= 0:
            runs.append((left, slope, intercept, sign > 0))
        elif right is not None and _root_before(root, right) <= 0:
            runs.append((left, slope, intercept, sign < 0))
        else:
            runs.append((left, slope, intercept, sign < 0))
            runs.append((root, slope, intercept, sign > 0))
    return runs


def _ends(steps: Sequence[Step], element: int) -> tuple[bool, list[_End]]:
    """{y : B(y) >= 0}: whether it holds at -infinity, and its ends in order.

    Isolated points (B touches zero from below) are two ends at one root.
    """
    pieces = _real_pieces(steps, element)
    runs = _real_runs(pieces)
    start = runs[0][3]
    ends: list[_End] = []
    state = start
    for left, slope, intercept, positive in runs[1:]:
        assert left is not None
        a, b = left
        if positive != state:
            ends.append(_End(a, b, begins=positive))
        elif not positive and _vanishes(slope, intercept, a, b):
            # Negative on both sides, zero at the break itself: the set is the one point there.
            ends += [_End(a, b, begins=True), _End(a, b, begins=False)]
        state = positive
    return start, ends


def _vanishes(slope: Exact, intercept: Exact, a: Exact, b: Exact) -> bool:
    """Is slope*y + intercept zero at the root of a*y + b (y = -b/a)?"""
    return not (intercept * a - slope * b)


def _shape(start: bool, changes: list[int], step: int) -> tuple[int, int, bool] | None:
    """A set as (lo, hi, flip), canonical, or None where it takes more than one interval."""
    if not changes:
        return 1, 0, start
    if len(changes) == 1:
        return (INT32_MIN, changes[0] - step, False) if start else (changes[0], INT32_MAX, False)
    if len(changes) == 2:
        return changes[0], changes[1] - step, start
    return None


# ------------------------------------------------------------------------------------------------
# public entry points


def _unique_elements(steps: Sequence[Step], reach: Reach, elements: Ints, extra: Bools) -> tuple[Ints, Ints]:
    """Representatives of `elements` with the same parameters, and each element's representative's index."""
    columns = [p[elements].astype(np.float64) for step in steps for p in step.parameters()]
    columns += [reach.low[elements].astype(np.float64), reach.high[elements].astype(np.float64)]
    columns.append(extra[elements].astype(np.float64))
    table = np.stack(columns, axis=1) + 0.0  # -0.0 and 0.0 are the same parameter
    _, index, inverse = np.unique(table, axis=0, return_index=True, return_inverse=True)
    return elements[index], inverse.reshape(-1)


def _composite_sets(steps: Sequence[Step], reach: Reach, negate: Bools) -> tuple[Intervals, Ints, Bools]:
    """({f >= 0}, or {f < 0} where `negate`; number of ends; near-tie), all exact except the near-tie
    estimate."""
    count = reach.elements
    lo, hi, ends = np.ones(count, np.int64), np.zeros(count, np.int64), np.zeros(count, np.int64)
    flip, proven, near = (np.zeros(count, np.bool_) for _ in range(3))
    with np.errstate(all="ignore"):
        for begin in range(0, count, _CHUNK):
            part = slice(begin, min(begin + _CHUNK, count))
            found = _float_pass(steps, reach, part, negate[part])
            lo[part], hi[part], flip[part] = found.sets.lo, found.sets.hi, found.sets.flip
            ends[part], proven[part], near[part] = found.ends, found.proven, found.near_tie
    doubtful = np.flatnonzero(~proven)
    if doubtful.size:
        representatives, index = _unique_elements(steps, reach, doubtful, negate)
        answers = []
        for element in representatives.tolist():
            low, high = int(reach.low[element]), int(reach.high[element])
            pieces = linear_pieces(steps, low, high, reach.step, element)
            start, changes = _exact_set(pieces, low, reach.step)
            shape = _shape(start ^ bool(negate[element]), changes, reach.step) or (1, 0, False)
            answers.append((*shape, len(changes)))
        table = np.array(answers, dtype=np.int64)[index]
        lo[doubtful], hi[doubtful], ends[doubtful] = table[:, 0], table[:, 1], table[:, 3]
        flip[doubtful] = table[:, 2] != 0
    return Intervals(lo, hi, flip), ends, near


def _refuse(elements: Bools) -> None:
    bad = np.flatnonzero(elements)
    if bad.size:
        raise TooManyIntervals([int(e) for e in bad])


def sign_rules(steps: Sequence[Step], reach: Reach) -> tuple[Intervals, Bools]:
    """The rule of each element of a chain followed by sign (a tie gives +1).

    Args:
        steps: the chain, first step first; every per-element array has `reach.elements` entries.
        reach: the accumulators that can occur.

    Returns:
        (sets of accumulators with bit 1, near-tie mask of shape (elements,)).

    Raises:
        TooManyIntervals: some element's set is neither an interval nor the complement of one.
    """
    sets, ends, near = _composite_sets(steps, reach, np.zeros(reach.elements, np.bool_))
    _refuse(ends > 2)
    return sets, near


def zero_reachable(steps: Sequence[Step], reach: Reach) -> Bools:
    """Elements whose chain is exactly 0 on some reachable accumulator, shape (elements,); proven.

    Where `torch.sign` follows, these are the elements that it maps to 0.
    """
    count = reach.elements
    doubtful = np.zeros(count, np.bool_)
    with np.errstate(all="ignore"):
        for begin in range(0, count, _CHUNK):
            part = slice(begin, min(begin + _CHUNK, count))
            doubtful[part] = ~_certainly_not_zero(steps, reach, part)
    elements = np.flatnonzero(doubtful)
    found = np.zeros(count, np.bool_)
    if elements.size:
        representatives, index = _unique_elements(steps, reach, elements, np.zeros(count, np.bool_))
        answers = []
        for element in representatives.tolist():
            low, high = int(reach.low[element]), int(reach.high[element])
            pieces = linear_pieces(steps, low, high, reach.step, element)
            closed, opened = (_exact_set(pieces, low, reach.step, strict=strict) for strict in (False, True))
            answers.append(closed != opened)
        found[elements] = np.array(answers, np.bool_)[index]
    return found


def _certainly_not_zero(steps: Sequence[Step], reach: Reach, elements: slice) -> Bools:
    """Elements for which float64 with its error bounds excludes 0 (see `_float_pass`)."""
    positions = _candidates(steps, reach, elements)
    acc = reach.low[elements][:, None] + reach.step * positions.astype(np.int64)
    trace = _evaluate(steps, acc.astype(np.float64), elements)
    gap = np.diff(positions, axis=1) > 1
    sure: Bools = np.ones(len(acc), np.bool_)
    for argument, bound in [*trace.arguments, (trace.value, trace.error)]:
        away = np.broadcast_to(np.abs(argument) > bound, acc.shape)
        side = np.broadcast_to(argument >= 0, acc.shape)
        steady = away[:, :-1] & away[:, 1:] & (side[:, :-1] == side[:, 1:])
        sure &= (steady | ~gap).all(axis=1)
    result: Bools = sure & np.broadcast_to(np.abs(trace.value) > trace.error, acc.shape).all(axis=1)
    return result


def pooled_rules(
    before: Sequence[Step], after: Sequence[Step], reach: Reach, *, mixed: bool = False
) -> tuple[PooledIntervals, Bools]:
    """Rules of `sign(after(max over a window of before(acc)))`; see the module's text for the law.

    Args:
        before: the chain between accumulator and pool.
        after: the chain between pool and sign.
        reach: the accumulators that can occur.
        mixed: one window holds several elements, whose `before` may differ but whose `after` must not. Then
            the form (rule, veto, invert) may depend on `after` alone, and an element that does not
            reach an end keeps its constant sets instead of a simpler form of its own.

    Returns:
        (rule, veto and invert of each element; near-tie mask of the composite chain).

    Raises:
        TooManyIntervals: some element needs more than the law covers.
    """
    count = reach.elements
    steps = [*before, *after]
    rising = np.ones(count, np.int64)
    monotone = np.ones(count, np.bool_)
    for step in after:
        if isinstance(step, PReLU):
            monotone &= np.broadcast_to(step.column(slice(None))[:, 0] >= 0, count)
        else:
            rising = rising * step.direction(slice(None))
    falling = rising < 0
    sets, ends, near = _composite_sets(steps, reach, falling & monotone)
    lo, hi, flip = sets.lo.copy(), sets.hi.copy(), sets.flip.copy()
    invert = falling & monotone
    veto = _empty(count)

    # A constant needs no invert: write it as the constant itself.
    steady = monotone & (ends == 0) & (not mixed)
    flip[steady] ^= invert[steady]
    invert = invert & ~steady

    bad = monotone & (ends > 2)
    folded = _fold_law(before, after, reach, ~monotone, mixed) if not monotone.all() else None
    solved = np.zeros(count, np.bool_)
    if folded is not None:
        fold, solved = folded
        lo[solved], hi[solved], flip[solved] = (
            fold.rule.lo[solved],
            fold.rule.hi[solved],
            fold.rule.flip[solved],
        )
        veto.lo[solved], veto.hi[solved] = fold.veto.lo[solved], fold.veto.hi[solved]
        veto.flip[solved], invert[solved] = fold.veto.flip[solved], fold.invert[solved]
    bent = np.flatnonzero(~monotone & ~solved)
    if bent.size:
        representatives, index = _unique_elements(steps, reach, bent, np.zeros(count, np.bool_))
        answers = [_pool_law(before, after, reach, element, mixed) for element in representatives.tolist()]
        failed = np.array([answer is None for answer in answers])[index]
        filled = [answer if answer is not None else (1, 0, False, 1, 0, False, False) for answer in answers]
        table = np.array(filled, dtype=np.int64)[index]
        bad[bent] = failed
        lo[bent], hi[bent], flip[bent] = table[:, 0], table[:, 1], table[:, 2] != 0
        veto.lo[bent], veto.hi[bent], veto.flip[bent] = table[:, 3], table[:, 4], table[:, 5] != 0
        invert[bent] = table[:, 6] != 0
    _refuse(bad)
    return PooledIntervals(Intervals(lo, hi, flip), veto, invert), near


def _fold_law(
    before: Sequence[Step], after: Sequence[Step], reach: Reach, wanted: Bools, mixed: bool = False
) -> tuple[PooledIntervals, Bools] | None:
    """The max-pool law for many elements at once, where `after` has one PReLU and it has a negative slope.

    There `B` is a fold: with `y0` the root of the PReLU's argument, it equals the linear `left` below y0
    and the
    linear `right` above, one rising and one falling. A valley (V) with `B(y0) < 0` is negative between the
    roots of `left` and `right`; a ridge with `B(y0) >= 0` is not negative between them; else it is constant.
    Past the left root means `left` has changed sign, which `left(A(acc))` decides like any chain
    without a pool.

    Returns:
        (rules, mask of the elements they hold for), or None where `after` has several PReLUs.
        The exact path does the rest.
    """
    bends = [i for i, step in enumerate(after) if isinstance(step, PReLU)]
    if len(bends) != 1:
        return None
    bend = after[bends[0]]
    assert isinstance(bend, PReLU)
    head, tail = list(after[: bends[0]]), list(after[bends[0] + 1 :])
    count = reach.elements
    alpha: Float32 = (
        np.full(count, float(bend.alpha), np.float32) if isinstance(bend.alpha, Fraction) else bend.alpha
    )
    if isinstance(bend.alpha, Fraction) and Fraction(float(alpha[0])) != bend.alpha:
        return None

    def direction(steps: Sequence[Step]) -> Ints:
        result = np.ones(count, np.int64)
        for step in steps:
            if not isinstance(step, PReLU):
                result = result * step.direction(slice(None))
        return result

    inner, outer = direction(head), direction(tail)
    with np.errstate(all="ignore"):
        bottom = _evaluate(tail, np.zeros((count, 1)), slice(None))
        value, error = (
            np.broadcast_to(bottom.value, (count, 1))[:, 0],
            np.broadcast_to(bottom.error, (count, 1))[:, 0],
        )
        sure = (value > error) | (value < -error) | ((value == 0) & (error == 0))
    solved = wanted & (inner != 0) & (outer != 0) & (alpha < 0) & sure
    valley = outer > 0
    one = np.float32(1)
    sides = [np.where((inner > 0) == right, one, alpha).astype(np.float32) for right in (False, True)]
    left, right = ([*before, *head, Linear(bend.layer, side, Fraction(0)), *tail] for side in sides)
    rule, rule_ends, _ = _composite_sets(left, reach, valley)
    veto, veto_ends, _ = _composite_sets(right, reach, ~valley)
    solved &= (rule_ends <= 2) & (veto_ends <= 2)
    invert = valley

    # Simplify on reachable values: `rule` is "past the left root", `veto` "past the right root", a subset.
    steady = valley != (value < 0)
    turned = np.zeros(count, np.bool_)
    if not mixed:
        never = rule.constant & ~rule.flip
        same = (rule.lo == veto.lo) & (rule.hi == veto.hi) & (rule.flip == veto.flip)
        steady = steady | never | same
        # Past the left root always: only the right one matters, OR veto, inverted the other way.
        turned = rule.constant & rule.flip & ~steady
    empty = _empty(count)
    final = Intervals(
        np.where(steady, 1, np.where(turned, veto.lo, rule.lo)),
        np.where(steady, 0, np.where(turned, veto.hi, rule.hi)),
        np.where(steady, valley, np.where(turned, veto.flip, rule.flip)),
    )
    drop = steady | turned | (veto.constant & ~veto.flip)
    stop = Intervals(
        np.where(drop, empty.lo, veto.lo), np.where(drop, empty.hi, veto.hi), np.where(drop, False, veto.flip)
    )
    invert = (invert ^ turned) & ~steady
    plain = final.constant & stop.constant & ~stop.flip & (not mixed)  # a constant needs no invert
    return PooledIntervals(
        Intervals(final.lo, final.hi, final.flip ^ (plain & invert)), stop, invert & ~plain
    ), solved


def _pool_law(
    before: Sequence[Step], after: Sequence[Step], reach: Reach, element: int, mixed: bool = False
) -> tuple[int, int, bool, int, int, bool, bool] | None:
    """(rule lo, hi, flip, veto lo, hi, flip, invert) of one element, or None where the law does not reach."""
    low, high, step = int(reach.low[element]), int(reach.high[element]), reach.step
    pieces = linear_pieces(before, low, high, step, element)
    state, ends = _ends(after, element)
    # past[i] is the set of accumulators at or past end i: it shrinks with i.
    kept: list[tuple[tuple[bool, list[int]], bool]] = []
    for end in ends:
        past = _exact_set(pieces, low, step, end.a, end.b, strict=not end.begins)
        if mixed:
            kept.append((past, end.begins))
        elif past == (True, []):  # every reachable value lies past this end
            state, kept = end.begins, []
        elif past == (False, []):
            break
        elif kept and kept[-1][0] == past:  # no reachable value between two ends
            kept.pop()
        else:
            kept.append((past, end.begins))
    if len(kept) > 2:
        return None
    shapes = [_shape(*past, step) for past, _ in kept]
    shapes += [(1, 0, False)] * (2 - len(shapes))
    rule, veto = shapes
    if rule is None or veto is None:
        return None
    if not kept:
        return 1, 0, state, 1, 0, False, False
    return (*rule, *veto, state)
