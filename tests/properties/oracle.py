"""The oracle: what an operator means, in real numbers and unpacked planes.

It shares no code with the kernels nor with `cbin_nn.rules`: a convolution is a sum over gathered taps,
BatchNorm and PReLU are their textbook formulas in float64, a max-pool is a maximum, a bit is `y >= 0` (a tie
gives +1). Requantization is arithmetic on fractions.

Float64 can't decide a sign that lies within its rounding of 0. Each value carries whether anything was
rounded on its way (`rounded`, told exactly: the residual of a sum or a product is a float64 itself), and the
magnitude of what was added up (`size`). A rounded value below 1e-12 of its size is `doubtful` and left out;
an exact one never is, so ties are decided.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

#: Twenty roundings are 2.3e-15.
TOLERANCE = 1e-12


# Steps of a chain. Arrays are float32 of shape (C,), or (H, W, C) for one parameter an element.


@dataclass(frozen=True, eq=False)
class Scale:
    """`y = factor * x`."""

    factor: Array


@dataclass(frozen=True, eq=False)
class Bias:
    """`y = x + offset`."""

    offset: Array


@dataclass(frozen=True, eq=False)
class BatchNorm:
    """`y = gamma * (x - mean) / sqrt(variance + epsilon) + beta`."""

    gamma: Array
    beta: Array
    mean: Array
    variance: Array
    epsilon: np.float32


@dataclass(frozen=True, eq=False)
class PReLU:
    """`y = x` where x >= 0, else `alpha * x`."""

    alpha: Array


Step = Scale | Bias | BatchNorm | PReLU


@dataclass(frozen=True, eq=False)
class Real:
    """Values and, beside each, the magnitude of its terms and whether it was rounded."""

    value: Array
    size: Array
    rounded: Array

    @classmethod
    def exactly(cls, value: Array) -> Real:
        return cls(value, np.abs(value), np.zeros(value.shape, bool))

    def doubtful(self) -> Array:
        """Where float64 can't tell the sign."""
        return self.rounded & (np.abs(self.value) <= TOLERANCE * self.size) & (self.size > 0)


def wide(values: Array) -> Array:
    return values.astype(np.float64)


def add(x: Array, y: Array) -> tuple[Array, Array]:
    """(x + y, rounded?): Knuth's two-sum."""
    total = x + y
    part = total - x
    return total, (x - (total - part)) + (y - part) != 0


def multiply(x: Array, y: Array) -> tuple[Array, Array]:
    """(x * y, rounded?): Dekker's product, halves of 26 bits."""

    def halves(value: Array) -> tuple[Array, Array]:
        shifted = value * 134217729.0
        high = shifted - (shifted - value)
        return high, value - high

    product = x * y
    (a, b), (c, d) = halves(x), halves(y)
    return product, ((a * c - product) + a * d + b * c) + b * d != 0


def chain(steps: list[Step], y: Real) -> Real:
    """A chain of steps."""
    for step in steps:
        if isinstance(step, Scale):
            factor = wide(step.factor)
            value, rounded = multiply(y.value, factor)
            y = Real(value, y.size * np.abs(factor), y.rounded | rounded)
        elif isinstance(step, Bias):
            offset = wide(step.offset)
            value, rounded = add(y.value, offset)
            y = Real(value, y.size + np.abs(offset), y.rounded | rounded)
        elif isinstance(step, BatchNorm):
            y = batch_norm(step, y)
        else:
            factor = np.where(y.value >= 0, 1.0, wide(step.alpha))
            value, rounded = multiply(y.value, factor)
            y = Real(value, y.size * np.abs(factor), y.rounded | rounded)
    return y


def batch_norm(step: BatchNorm, y: Real) -> Real:
    gamma, mean, beta = wide(step.gamma), wide(step.mean), wide(step.beta)
    variance = wide(step.variance) + float(step.epsilon)
    sigma = np.sqrt(variance)
    centred, off1 = add(y.value, -mean)
    scaled, off2 = multiply(gamma, centred)
    divided = scaled / sigma
    value, off3 = add(divided, beta)
    # A quotient is exact where it times the divisor is, and 0 whatever the divisor.
    root, off4 = multiply(sigma, sigma)
    back, off5 = multiply(divided, sigma)
    off = (off4 | (root != variance) | off5 | (back != scaled)) & (scaled != 0)
    size = np.abs(gamma) * (y.size + np.abs(mean)) / sigma + np.abs(beta)
    still = (gamma == 0) & np.ones_like(off3)
    return Real(value, size, (y.rounded | off1 | off2 | off3 | off) & ~still)


@dataclass(frozen=True)
class Axis:
    """The taps of a window along one axis: where each falls, and whether that is inside."""

    at: Array
    inside: Array


def axis(size: int, kernel: int, stride: int, dilation: int, before: int, after: int) -> Axis:
    """Every place of a window of `kernel` taps on `size` pixels with padding on both sides."""
    span = dilation * (kernel - 1) + 1
    starts = list(range(-before, size + after - span + 1, stride))
    at = np.array([[start + tap * dilation for tap in range(kernel)] for start in starts], np.int64)
    at = at.reshape(len(starts), kernel)
    return Axis(at, (at >= 0) & (at < size))


def axes(height: int, width: int, window: Any) -> tuple[Axis, Axis]:
    """Rows and columns of a window on a plane."""
    top, left, bottom, right = window.padding
    rows = axis(height, window.kernel[0], window.strides[0], window.dilation[0], top, bottom)
    columns = axis(width, window.kernel[1], window.strides[1], window.dilation[1], left, right)
    return rows, columns


def gather(x: Array, window: Any, outside: float) -> Array:
    """All windows of planes (N, H, W, C): (N, Ho, Wo, kh, kw, C), with `outside` where a tap is outside."""
    rows, columns = axes(x.shape[1], x.shape[2], window)
    y = np.clip(rows.at, 0, x.shape[1] - 1)
    x_ = np.clip(columns.at, 0, x.shape[2] - 1)
    seen = x[:, y[:, None, :, None], x_[None, :, None, :], :]
    inside = rows.inside[:, None, :, None] & columns.inside[None, :, None, :]
    return np.where(inside[None, ..., None], seen, outside)


def convolve(values: Array, weights: Array, window: Any, outside: float) -> Array:
    """Sum over taps of weight x value, weights (O, kh, kw, I)."""
    taps = gather(values, window, outside)
    flat = taps.reshape(*taps.shape[:3], -1) @ wide(weights).reshape(len(weights), -1).T
    return whole(flat)


def convolve_depthwise(values: Array, weights: Array, window: Any, outside: float) -> Array:
    """As `convolve` with one filter a channel, weights (kh, kw, C)."""
    return whole((gather(values, window, outside) * wide(weights)).sum(axis=(3, 4)))


def dense(values: Array, weights: Array) -> Array:
    """Fully connected: (N, H, W, C) to (N, 1, 1, units)."""
    return whole(values.reshape(len(values), -1) @ wide(weights).T)[:, None, None, :]


def whole(x: Array) -> Array:
    """Sums of integers that float64 holds exactly."""
    assert np.abs(x).max(initial=0) < 2**31
    assert (x == np.rint(x)).all()
    return x


def maximum(y: Real, window: Any) -> Real:
    """Max-pool; taps in the padding are skipped."""
    values = gather(y.value, window, -np.inf)
    largest, size = values.max(axis=(3, 4)), gather(y.size, window, 0.0).max(axis=(3, 4))
    # Only what may be the largest matters.
    near = values >= (largest - TOLERANCE * size)[:, :, :, None, None, :]
    return Real(largest, size, (gather(y.rounded, window, False) & near).any(axis=(3, 4)))


def signs(bits: Array) -> Array:
    """Bits as -1.0 and +1.0."""
    return np.where(bits, 1.0, -1.0)


def pool_bits(bits: Array, window: Any, use_and: Array) -> Array:
    """The largest sign of each window, or the smallest where `use_and`."""
    x = signs(bits)
    largest = gather(x, window, -np.inf).max(axis=(3, 4))
    smallest = gather(x, window, np.inf).min(axis=(3, 4))
    return np.where(use_and, smallest, largest) >= 0


#: Range of an output type.
RANGES = {"i8": (-(2**7), 2**7 - 1), "i16": (-(2**15), 2**15 - 1), "i32": (-(2**31), 2**31 - 1)}


def requantize(acc: int, mul: int, add: int, shift: int, dtype: str) -> tuple[int, bool, bool]:
    """`saturate(round_half_even((acc * mul + add) / 2**shift))` in fractions (whose `round` is half-even).

    Returns:
        (value, whether it was a tie, whether it was saturated).
    """
    exact = Fraction(acc * mul + add, 2**shift)
    low, high = RANGES[dtype]
    return min(max(round(exact), low), high), exact.denominator == 2, not low <= round(exact) <= high


def pack(bits: Array) -> Array:
    """(..., C) bits to (..., words): channel c is bit c % 32 of word c // 32, the rest are 0."""
    channels = bits.shape[-1]
    lanes = np.zeros((*bits.shape[:-1], -(-channels // 32) * 32), np.uint64)
    lanes[..., :channels] = bits
    lanes = lanes.reshape(*bits.shape[:-1], -1, 32)
    return (lanes << np.arange(32, dtype=np.uint64)).sum(axis=-1, dtype=np.uint64).astype("<u4")


def border_classes(height: int, width: int, window: Any) -> set[str]:
    """Which classes of output pixels a window has on a plane: clipped along no axis, one, both."""
    rows, columns = axes(height, width, window)
    row, column = rows.inside.all(axis=1), columns.inside.all(axis=1)
    kinds = {
        "interior": row.any() and column.any(),
        "edge": (row.any() and not column.all()) or (column.any() and not row.all()),
        "corner": not row.all() and not column.all(),
    }
    return {name for name, seen in kinds.items() if seen}


def every_window_sees_the_plane(height: int, width: int, window: Any) -> bool:
    """A max-pool over nothing has no value."""
    rows, columns = axes(height, width, window)
    return all(side.at.size and side.inside.any(axis=1).all() for side in (rows, columns))
