r"""Rules as objects: build one from thresholds or from the layers before a sign, print it, apply it.

A rule decides a bit from an integer accumulator: `bit = (lo <= acc <= hi) XOR flip`. Between a binary
layer and the next sign stand BatchNorm, PReLU, bias and scale in some order; whatever the order, they
fold into such rules exactly:

>>> rule = Rule.from_batchnorm(gamma=[-2, 1], beta=[1, 0.5], mean=[3, 0], variance=[4, 1], epsilon=0)
>>> print(rule)
channel  kind     condition
0        falling  acc <= 4
1        rising   acc >= 0
>>> rule.apply([[4, 0], [5, -1]]).tolist()
[[True, True], [False, False]]

A PReLU with a negative slope bends the line, and the rule gets two ends:

>>> bent = Rule.from_chain([PReLU([-0.5]), BatchNorm([-2], [1], [3], [4], 0)])
>>> print(bent)
channel  kind    condition
0        inside  -8 <= acc <= 4

Parameters are read as their float32 values, epsilon included, and thresholds are solved in exact arithmetic
(`cbin_nn.rules`). A tie gives +1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from . import geometry
from . import rules as r
from .errors import InvalidArgument
from .folding import AccumulatorRange, Planned, few, fold_sign
from .operators import Rules, Window

__all__ = ["BatchNorm", "Bias", "MaxPool", "PReLU", "Rule", "Scale", "Step"]

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

#: Rows of a printed rule; the rest are counted.
_ROWS = 64


# ------------------------------------------------------------------------------------------------
# steps


def parameter(argument: str, value: Any) -> Float32:
    """A step's parameter as float32 of shape (), (C,) or (H, W, C), read-only.

    Raises:
        InvalidArgument: no real numbers, another rank, NaN, infinite, or beyond float32.
    """
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.asarray(value, dtype=object)
    if array.dtype.kind not in "iuf":
        raise InvalidArgument("bad-dtype", f"`{argument}` is {_brief(value, array)}, expected real numbers")
    if array.ndim == 3 and array.shape[:2] == (1, 1):
        array = array.reshape(-1)
    if array.ndim not in (0, 1, 3) or not array.size:
        raise InvalidArgument(
            "bad-shape",
            f"`{argument}` has shape {list(array.shape)}, expected one number, [C] or [H, W, C]",
        )
    with np.errstate(over="ignore"):
        result = np.array(array, dtype=np.float32)
    bad = np.flatnonzero(~np.isfinite(result))
    if bad.size:
        raise InvalidArgument(
            "not-finite",
            f"`{argument}` is {array.reshape(-1)[bad[0]]} at element {int(bad[0])}, expected finite float32 "
            "numbers",
        )
    result.flags.writeable = False
    return result


def _brief(value: Any, array: npt.NDArray[Any]) -> str:
    return f"{array.dtype} {list(array.shape)}" if array.ndim else repr(value)


class _Affine:
    """What the steps share: parameters, and how they are spread over a plane."""

    def parameters(self) -> dict[str, Float32]:
        """Name -> float32 array of shape (), (C,) or (H, W, C)."""
        raise NotImplementedError

    def plan(self) -> Planned:
        """The step for `cbin_nn.folding`."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class BatchNorm(_Affine):
    """`y = gamma * (x - mean) / sqrt(variance + epsilon) + beta`.

    Args:
        gamma: float32, one number, one a channel `(C,)` or one an element `(H, W, C)`; may be negative or 0.
        beta: as gamma.
        mean: moving mean, as gamma.
        variance: moving variance, as gamma.
        epsilon: one number, read as its float32 value. Keras' default is 1e-3, PyTorch's 1e-5.

    Raises:
        InvalidArgument: a parameter is not finite, or `variance + epsilon` not positive.
    """

    gamma: Any
    beta: Any
    mean: Any
    variance: Any
    epsilon: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("gamma", "beta", "mean", "variance"):
            object.__setattr__(self, name, parameter(name, getattr(self, name)))
        epsilon = parameter("epsilon", self.epsilon)
        if epsilon.ndim:
            raise InvalidArgument(
                "bad-shape", f"`epsilon` has shape {list(epsilon.shape)}, expected one number"
            )
        object.__setattr__(self, "epsilon", float(epsilon))
        total = self.variance.astype(np.float64) + self.epsilon
        if np.any(total <= 0):
            raise InvalidArgument(
                "bad-variance", f"`variance` + `epsilon` is {total.min():g}, expected more than 0"
            )

    def parameters(self) -> dict[str, Float32]:
        """gamma, beta, mean, variance."""
        return {name: getattr(self, name) for name in ("gamma", "beta", "mean", "variance")}

    def plan(self) -> Planned:
        """The step for `cbin_nn.folding`."""
        return Planned("chain", "batch_norm", (self.gamma, self.beta, self.mean, self.variance), self.epsilon)


@dataclass(frozen=True, eq=False)
class PReLU(_Affine):
    """`y = x` where `x >= 0`, else `slopes * x`; slopes may be negative, and 0 makes a ReLU.

    Args:
        slopes: float32, one number, one a channel `(C,)` or one an element `(H, W, C)` (Keras' default).

    Raises:
        InvalidArgument: a slope is not finite.
    """

    slopes: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "slopes", parameter("slopes", self.slopes))

    def parameters(self) -> dict[str, Float32]:
        """The slopes."""
        return {"slopes": self.slopes}

    def plan(self) -> Planned:
        """The step for `cbin_nn.folding`."""
        return Planned("chain", "prelu", (self.slopes,))


@dataclass(frozen=True, eq=False)
class Bias(_Affine):
    """`y = x + values`.

    Args:
        values: float32, one number, one a channel `(C,)` or one an element `(H, W, C)`.

    Raises:
        InvalidArgument: a value is not finite.
    """

    values: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", parameter("values", self.values))

    def parameters(self) -> dict[str, Float32]:
        """The values."""
        return {"values": self.values}

    def plan(self) -> Planned:
        """The step for `cbin_nn.folding`."""
        return Planned("chain", "linear", (Fraction(1), self.values))


@dataclass(frozen=True, eq=False)
class Scale(_Affine):
    """`y = values * x`; values may be negative or 0.

    Args:
        values: float32, one number, one a channel `(C,)` or one an element `(H, W, C)`.

    Raises:
        InvalidArgument: a value is not finite.
    """

    values: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", parameter("values", self.values))

    def parameters(self) -> dict[str, Float32]:
        """The values."""
        return {"values": self.values}

    def plan(self) -> Planned:
        """The step for `cbin_nn.folding`."""
        return Planned("chain", "linear", (self.values, Fraction(0)))


@dataclass(frozen=True)
class MaxPool:
    """Max-pool over a window, padding skipped; at most one in a convolution's chain.

    Args:
        size: rows and columns of the window, one number for both.
        strides: steps; None is `size`.
        padding: "valid", "same" (TensorFlow's rule), one number for all sides, or
            ((top, bottom), (left, right)).

    Raises:
        InvalidArgument: a size or stride is not positive.
    """

    size: Any
    strides: Any = None
    padding: Any = "valid"

    def __post_init__(self) -> None:
        size = geometry.pair("size", self.size, 1, geometry.MAX_WINDOW)
        strides = self.size if self.strides is None else self.strides
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "strides", geometry.pair("strides", strides, 1, geometry.MAX_WINDOW))

    def window(self, height: int, width: int) -> Window:
        """The window on a plane of `height` x `width` pixels.

        Raises:
            InvalidArgument: bad padding, a window larger than the padded plane, or one in the padding alone.
        """
        window = geometry.window(
            (height, width), self.size, self.strides, self.padding, names=("size", "padding")
        )
        out = window.output_size(height, width)
        for axis, size in ((0, height), (1, width)):
            start = window.padding[axis]
            last = (out[axis] - 1) * window.strides[axis] - start
            if start >= window.kernel[axis] or last >= size:
                raise InvalidArgument(
                    "bad-padding",
                    f"`padding` is {self.padding!r}: a window of {window.kernel[0]} x {window.kernel[1]} "
                    "lies wholly in it, expected less padding than window",
                )
        return window


Step = BatchNorm | PReLU | Bias | Scale | MaxPool


def check_shapes(step: Step, plane: tuple[int, ...]) -> None:
    """Check that a step's parameters are scalars, one a channel, or one an element of `plane`.

    Raises:
        InvalidArgument: naming the parameter, its shape and the shapes that fit.
    """
    if isinstance(step, MaxPool):
        return
    for name, array in step.parameters().items():
        if array.shape not in ((), plane[-1:], plane):
            shapes = " or ".join(str(list(shape)) for shape in dict.fromkeys((plane[-1:], plane)))
            raise InvalidArgument(
                "bad-shape",
                f"`{name}` of {type(step).__name__} has shape {list(array.shape)}, expected one number or "
                f"{shapes}",
            )


# ------------------------------------------------------------------------------------------------
# rules


def _bounds(argument: str, value: Any, default: int) -> npt.NDArray[np.int64]:
    array = np.asarray(default if value is None else value)
    if array.dtype.kind not in "iu":
        raise InvalidArgument(
            "bad-dtype", f"`{argument}` is {_brief(value, array)}, expected integers within int32"
        )
    outside = (array < r.INT32_MIN) | (array > r.INT32_MAX)
    if np.any(outside):
        raise InvalidArgument(
            "out-of-range", f"`{argument}` is {array[outside].flat[0]}, expected integers within int32"
        )
    return array.astype(np.int64)


class Rule:
    """Immutable rules `bit = (lo <= acc <= hi) XOR flip`, one a channel `(C,)` or an element `(H, W, C)`.

    Stored canonically: a set of accumulators that is open on one side has no flip, and a constant is the
    empty interval (1, 0). So two rules are equal exactly when they give the same bits on every int32.

    Args:
        lo: smallest accumulator inside, integers within int32.
        hi: largest accumulator inside; where `lo > hi` the interval is empty.
        flip: bool, True where the bit is 1 outside.

    Raises:
        InvalidArgument: wrong dtype, range or shape.
    """

    __slots__ = ("flip", "hi", "lo")

    #: int32, read-only.
    lo: Int32
    #: int32, read-only.
    hi: Int32
    #: bool, read-only.
    flip: Bools

    def __init__(self, lo: npt.ArrayLike, hi: npt.ArrayLike, flip: npt.ArrayLike = False) -> None:
        low, high = _bounds("lo", lo, 0), _bounds("hi", hi, 0)
        flips = np.asarray(flip)
        if flips.dtype != np.bool_:
            raise InvalidArgument("bad-dtype", f"`flip` is {_brief(flip, flips)}, expected bool")
        try:
            low, high, flips = np.broadcast_arrays(low, high, flips)
        except ValueError:
            shapes = [list(a.shape) for a in (low, high, flips)]
            raise InvalidArgument(
                "bad-shape", f"`lo`, `hi` and `flip` have shapes {shapes}, expected one shape"
            ) from None
        if low.ndim == 0:
            low, high, flips = (a.reshape(1) for a in (low, high, flips))
        if low.ndim not in (1, 3) or not low.size:
            raise InvalidArgument(
                "bad-shape", f"`lo` has shape {list(low.shape)}, expected [C] or [H, W, C], not empty"
            )
        empty = low > high
        whole = (low == r.INT32_MIN) & (high == r.INT32_MAX)
        above = flips & ~empty & ~whole & (low == r.INT32_MIN)  # NOT (acc <= h) is acc >= h + 1
        below = flips & ~empty & ~whole & (high == r.INT32_MAX)
        constant = empty | whole
        new_low = np.where(constant, 1, np.where(above, high + 1, np.where(below, r.INT32_MIN, low)))
        new_high = np.where(constant, 0, np.where(above, r.INT32_MAX, np.where(below, low - 1, high)))
        values: list[npt.NDArray[Any]] = [
            new_low.astype(np.int32),
            new_high.astype(np.int32),
            (flips ^ whole) & ~above & ~below,
        ]
        for name, array in zip(("lo", "hi", "flip"), values, strict=True):
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Rule is immutable: {name!r} can't be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a Rule is immutable: {name!r} can't be deleted")

    def __reduce__(self) -> tuple[type[Rule], tuple[Int32, Int32, Bools]]:
        return Rule, (self.lo, self.hi, self.flip)

    # -- building

    @classmethod
    def from_thresholds(
        cls, lo: npt.ArrayLike | None = None, hi: npt.ArrayLike | None = None, *, flip: npt.ArrayLike = False
    ) -> Rule:
        """Rules from their ends; an end that is left out is open.

        Args:
            lo: bits are 1 from this accumulator on; integers, `(C,)`, `(H, W, C)` or one number.
            hi: bits are 1 up to and with this accumulator.
            flip: bool, True turns the bits around.

        Raises:
            InvalidArgument: wrong dtype, range or shape, or neither end is given.

        >>> print(Rule.from_thresholds([3, -8], [2**31 - 1, 4]))
        channel  kind    condition
        0        rising  acc >= 3
        1        inside  -8 <= acc <= 4
        """
        if lo is None and hi is None:
            raise InvalidArgument("bad-argument", "`lo` and `hi` are None, expected at least one end")
        return cls(_bounds("lo", lo, r.INT32_MIN), _bounds("hi", hi, r.INT32_MAX), flip)

    @classmethod
    def from_batchnorm(
        cls,
        gamma: npt.ArrayLike,
        beta: npt.ArrayLike,
        mean: npt.ArrayLike,
        variance: npt.ArrayLike,
        epsilon: float = 1e-3,
        *,
        accumulators: tuple[Any, Any] | None = None,
    ) -> Rule:
        """The rules of `sign(BatchNorm(acc))`: gamma < 0 turns the comparison, gamma = 0 is constant.

        Args:
            gamma: one number, or float32 of shape (C,); see `BatchNorm`, as the others up to epsilon.
            beta: see `BatchNorm`.
            mean: see `BatchNorm`.
            variance: see `BatchNorm`.
            epsilon: see `BatchNorm`.
            accumulators: see `from_chain`.

        Raises:
            InvalidArgument: see `BatchNorm` and `from_chain`.
        """
        step = BatchNorm(gamma, beta, mean, variance, epsilon)
        return cls.from_chain([step], accumulators=accumulators)

    @classmethod
    def from_chain(
        cls,
        steps: Sequence[Step],
        *,
        accumulators: tuple[Any, Any] | None = None,
        channels: int | None = None,
    ) -> Rule:
        """The rules of a chain of steps followed by sign, exactly; a tie gives +1.

        Args:
            steps: `BatchNorm`, `PReLU`, `Bias`, `Scale` in the order of their application.
            accumulators: (lowest, highest) accumulator that can occur, integers or `(C,)` arrays. A rule is
                right on these; ends that none of them reaches are dropped. None is every int32 but the
                two outermost.
            channels: number of channels where all parameters are scalars; None takes it from them.

        Returns:
            Rules `(C,)`, or `(H, W, C)` where a parameter is per element.

        Raises:
            InvalidArgument: shapes that do not fit each other, a MaxPool (which needs an operator of
                `cbin_nn.ops`), an empty range, or a chain whose sign needs more than one interval.
        """
        chain = check_steps("steps", steps)
        if any(isinstance(step, MaxPool) for step in chain):
            raise InvalidArgument(
                "bad-argument",
                "`steps` holds a MaxPool, expected steps on one accumulator; give the chain to an operator "
                "of cbin_nn.ops, which fuses the pool",
            )
        low, high = _accumulators(accumulators)
        arrays = [a for s in chain if not isinstance(s, MaxPool) for a in s.parameters().values()]
        shapes = [a.shape for a in arrays if a.ndim] + [a.shape for a in (low, high) if a.ndim]
        plane: tuple[int, ...] = max(shapes, key=len, default=(channels or 1,))
        if channels is not None and plane[-1] != geometry.integer(
            "channels", channels, 1, geometry.MAX_DIMENSION
        ):
            raise InvalidArgument(
                "bad-shape", f"`channels` is {channels}, expected {plane[-1]} as in the parameters"
            )
        for step in chain:
            check_shapes(step, plane)
        for array in (low, high):
            if array.shape not in ((), plane[-1:]):
                raise InvalidArgument(
                    "bad-shape",
                    f"`accumulators` have shape {list(array.shape)}, expected one number or [{plane[-1]}]",
                )
        ends = [np.broadcast_to(end, plane[-1:]).astype(np.int64) for end in (low, high)]
        planned = [step.plan() for step in chain if not isinstance(step, MaxPool)]
        try:
            rules, _ = fold_sign(planned, AccumulatorRange(ends[0], ends[1], 1), plane)
        except r.TooManyIntervals as error:
            raise too_many("steps", error, plane[-1]) from error
        return cls(rules.lo, rules.hi, rules.flip)

    # -- using

    def apply(self, acc: npt.ArrayLike) -> Bools:
        """The bits of accumulators.

        Args:
            acc: integers `[..., C]`, or `[..., H, W, C]` for rules an element.

        Returns:
            bool of the same shape.

        Raises:
            InvalidArgument: no integers, or another shape.
        """
        array = np.asarray(acc)
        if array.dtype.kind not in "iu":
            raise InvalidArgument("bad-dtype", f"`acc` is {_brief(acc, array)}, expected integers")
        if array.shape[-self.lo.ndim :] != self.lo.shape:
            expected = ", ".join(map(str, self.lo.shape))
            raise InvalidArgument(
                "bad-shape", f"`acc` has shape {list(array.shape)}, expected [..., {expected}]"
            )
        bits: Bools = ((array >= self.lo) & (array <= self.hi)) ^ self.flip
        return bits

    @property
    def shape(self) -> tuple[int, ...]:
        """(C,) or (H, W, C)."""
        return self.lo.shape

    @property
    def kind(self) -> npt.NDArray[np.str_]:
        """What each rule is, of the rule's shape.

        "rising" (`acc >= t`), "falling" (`acc <= t`), "inside" (`l <= acc <= h`), "outside" or "constant".
        """
        return np.select(
            [self.lo > self.hi, self.hi == r.INT32_MAX, self.lo == r.INT32_MIN, self.flip],
            ["constant", "rising", "falling", "outside"],
            "inside",
        )

    def to_rules(self) -> Rules:
        """The rules as an operator stores them (`cbin_nn.operators.Rules`)."""
        grid: Literal["channel", "conv"] = "channel" if self.lo.ndim == 1 else "conv"
        return Rules(self.lo.copy(), self.hi.copy(), self.flip.copy(), grid)

    def __len__(self) -> int:
        """Number of rules: channels, or elements."""
        return int(self.lo.size)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Rule):
            return NotImplemented
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in self.__slots__)

    def __hash__(self) -> int:
        return hash((self.shape, self.lo.tobytes(), self.hi.tobytes(), self.flip.tobytes()))

    def __repr__(self) -> str:
        counts = Counter(self.kind.reshape(-1).tolist())
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        what = "channels" if self.lo.ndim == 1 else "elements"
        return f"<Rule of {'x'.join(map(str, self.shape))} {what}: {kinds}>"

    def __str__(self) -> str:
        head = "channel" if self.lo.ndim == 1 else "element"
        rows = [(head, "kind", "condition")]
        kinds = self.kind
        for index in list(np.ndindex(self.shape))[:_ROWS]:
            name = ", ".join(map(str, index))
            condition = _condition(int(self.lo[index]), int(self.hi[index]), bool(self.flip[index]))
            rows.append((name, str(kinds[index]), condition))
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in rows]
        if len(self) > _ROWS:
            lines.append(f"... and {len(self) - _ROWS} more")
        return "\n".join(lines)


def _condition(lo: int, hi: int, flip: bool) -> str:
    if lo > hi:
        return "always +1" if flip else "always -1"
    if hi == r.INT32_MAX:
        return f"acc >= {lo}"
    if lo == r.INT32_MIN:
        return f"acc <= {hi}"
    if lo == hi:
        return f"acc != {lo}" if flip else f"acc == {lo}"
    return f"acc < {lo} or acc > {hi}" if flip else f"{lo} <= acc <= {hi}"


def _accumulators(value: tuple[Any, Any] | None) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    widest = (r.INT32_MIN + 1, r.INT32_MAX - 1)
    if value is None:
        value = widest
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise InvalidArgument("bad-argument", f"`accumulators` is {value!r}, expected (lowest, highest)")
    low, high = (_bounds("accumulators", end, 0) for end in value)
    try:
        wrong = bool(np.any(low > high))
    except ValueError:
        wrong = True
    if wrong or np.any(low < widest[0]) or np.any(high > widest[1]):
        raise InvalidArgument(
            "out-of-range",
            f"`accumulators` is {value!r}, expected lowest <= highest from {widest[0]} to {widest[1]}",
        )
    return low, high


def check_steps(argument: str, steps: object) -> tuple[Step, ...]:
    """The steps of a chain, one step or a sequence of them.

    Raises:
        InvalidArgument: something in it is no step.
    """
    if isinstance(steps, Step):
        return (steps,)
    chain = tuple(steps) if isinstance(steps, (list, tuple)) else (steps,)
    for step in chain:
        if not isinstance(step, Step):
            raise InvalidArgument(
                "bad-argument",
                f"`{argument}` holds {step!r}, expected BatchNorm, PReLU, Bias, Scale or MaxPool of "
                "cbin_nn.rule",
            )
    return chain


def too_many(argument: str, error: r.TooManyIntervals, channels: int) -> InvalidArgument:
    """What to tell a user whose chain needs more than one interval."""
    bad = few(sorted({element % channels for element in error.elements}))
    return InvalidArgument(
        "too-many-intervals",
        f"`{argument}` changes sign more than twice in channels {bad}, expected one interval of accumulators "
        "a channel: keep one PReLU before each sign, or constrain its slopes to be positive",
    )
