r"""A source graph evaluated in float64, as its real-number arithmetic reads: no folding, no rules, no
packing.

What `cbin_nn.verify` compares with: with a framework (its own tensors are given, and each node computes the
next one), and with a converted model (its own bits are given). Any directed graph of nodes is evaluated.

Beside its value, a number carries what is needed to judge a difference:

- `size`, the sum of the absolute values of the terms that were added up to make it, since the last tensor
  that was given. A float32 framework is off by some 1e-7 of that, and float64 by 1e-15: a sign can only be
  in doubt where its argument is that close to 0.
- `error`, how far a converted layer whose weights were quantized may be off, propagated from the bounds that
  `errors` states.

Sums of integers are exact here (they stay far below 2**53), so a tie that no rounding touched is exactly 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConversionError
from ..operators import Window
from ..rules import NEAR_TIE
from . import graph as g

__all__ = ["Evaluation", "Numbers", "evaluate", "walk"]

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

#: Elements of the windows of a convolution that exist at once: bounds its memory.
_WINDOWS = 2**24
#: Exponentials below float32's normal numbers are cut to 0, by some kernels a little earlier.
_UNDERFLOW = 2.0**-100
#: Below this, sums of integers are exact in float32.
_FLOAT32 = 2**24


@dataclass
class Numbers:
    """A tensor, (N, ...) in the graph's layout. `size` and `error` broadcast against `value`."""

    value: Array
    #: Sum of the absolute values of its terms; 0 where it was given.
    size: Array = field(default_factory=lambda: np.zeros(1))
    #: Bound of what quantized weights changed.
    error: Array = field(default_factory=lambda: np.zeros(1))


@dataclass
class Evaluation:
    """What a network computes on a batch."""

    #: Before a closing softmax, (N, classes).
    logits: Array
    #: Sign node -> +1 or not, (N, ...), in the graph's layout.
    bits: dict[str, Bools] = field(default_factory=dict)
    #: Sign node -> where its argument is within 1e-5 of 0, relative to its terms.
    near_ties: dict[str, Bools] = field(default_factory=dict)


def evaluate(
    graph: g.Graph, images: npt.NDArray[np.uint8], given: Mapping[str, Bools] | None = None
) -> Evaluation:
    """Evaluate a graph on images.

    Args:
        graph: the graph.
        images: u8 `[N, H, W, C]`, fed as 0..255.
        given: bits that take the place of a sign's own for what follows it.

    Raises:
        ConversionError: the graph holds something that is not evaluated.
    """
    signs = {name: np.where(bits, 1.0, -1.0) for name, bits in (given or {}).items()}
    result = Evaluation(np.zeros((len(images), 0)))
    head = logits_of(graph)
    for node, inputs, found in walk(graph, images, signs):
        if isinstance(node, g.Sign):
            result.bits[node.name] = found.value >= 0
            result.near_ties[node.name] = near_tie(inputs[0])
        if node.name == head:
            result.logits = found.value.reshape(len(images), -1)
    return result


def logits_of(graph: g.Graph) -> str:
    """The tensor that the graph returns, or what a closing softmax reads."""
    nodes = {node.name: node for node in graph.nodes}
    name = graph.output
    while isinstance(nodes[name], (g.Softmax, g.Identity)):
        name = nodes[name].inputs[0]
    return name


def near_tie(argument: Numbers) -> Bools:
    """Where frameworks disagree with themselves about the sign of a number (DESIGN: Rules)."""
    close = np.abs(argument.value) < NEAR_TIE * np.maximum(1.0, argument.size)
    return np.asarray(close & (argument.size > 0))


def walk(
    graph: g.Graph,
    images: npt.NDArray[Any],
    given: Mapping[str, Array] | None = None,
    errors: Mapping[str, Array] | None = None,
) -> Iterator[tuple[g.Node, list[Numbers], Numbers]]:
    """Evaluate node by node.

    Args:
        graph: the graph.
        images: `[N, H, W, C]`, the values of its input.
        given: tensors that take the place of the computed ones for what follows them, in the graph's layout.
        errors: bounds that begin at a tensor, by channel; see `Numbers.error`.

    Yields:
        (node, its inputs, what it computes from them). Signs are -1 and +1, or 0 where `Sign.zero` is.

    Raises:
        ConversionError: the graph holds something that is not evaluated.
    """
    given, errors = given or {}, errors or {}
    left: dict[str, int] = {}
    for node in graph.nodes:
        for name in node.inputs:
            left[name] = left.get(name, 0) + 1
    tensors: dict[str, Numbers] = {}
    for node in graph.nodes:
        inputs = [tensors[name] for name in node.inputs]
        if isinstance(node, g.Input):
            found = Numbers(np.asarray(images, np.float64))
        else:
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                found = _step(node, inputs)
        if node.name in errors:
            found.error = found.error + errors[node.name]
        yield node, inputs, found
        if node.name in given:
            found = Numbers(np.asarray(given[node.name], np.float64).reshape(found.value.shape))
        tensors[node.name] = found
        for name in node.inputs:
            left[name] -= 1
            if not left[name]:
                tensors.pop(name, None)


def _float(value: Fraction | g.Float32) -> Any:
    return float(value) if isinstance(value, Fraction) else value.astype(np.float64)


def _step(node: g.Node, inputs: list[Numbers]) -> Numbers:
    x = inputs[0]
    value = x.value
    if isinstance(node, g.Sign):
        return Numbers(_sign(node, value))
    if isinstance(node, g.Rescaling):
        slope = float(np.float32(node.scale))
        return _affine(x, value * slope, slope, float(np.float32(node.offset)))
    if isinstance(node, g.Linear):
        # Divided, not multiplied by the inverse: 127.5 / 127.5 - 1 is 0.
        factor, divisor = _float(node.factor), _float(node.divisor)
        return _affine(x, value * factor / divisor, factor / divisor, _float(node.offset))
    if isinstance(node, g.Bias):
        return _affine(x, value, 1.0, node.values.astype(np.float64))
    if isinstance(node, g.BatchNorm):
        gamma, beta, mean, variance = (
            a.astype(np.float64) for a in (node.gamma, node.beta, node.mean, node.variance)
        )
        slope = gamma / np.sqrt(variance + np.float64(np.float32(node.epsilon)))
        centred = _affine(x, value, 1.0, -mean)
        return _affine(centred, centred.value * slope, slope, beta)
    if isinstance(node, g.PReLU):
        alpha = node.alpha.astype(np.float64)
        steep = np.abs(alpha)
        slopes = np.where(value >= 0, 1.0, steep)
        slopes = np.where(np.abs(value) <= x.error, np.maximum(1.0, steep), slopes)
        size = np.maximum(x.size, np.abs(value))
        return Numbers(np.where(value >= 0, value, alpha * value), size * slopes, x.error * slopes)
    if isinstance(node, g.Clip):
        low = -np.inf if node.low is None else float(np.float32(node.low))
        high = np.inf if node.high is None else float(np.float32(node.high))
        return Numbers(np.clip(value, low, high), x.size, x.error)
    if isinstance(node, (g.Conv2D, g.Dense)):
        size = np.maximum(np.abs(value), x.size)
        if node.binary and np.all(size == 1):
            # A sum of K signs is whole; a framework that transforms blocks is off by a part of its deviation.
            size = np.sqrt(float(np.prod(node.kernel.shape[:-1]))) * (
                np.ones(1) if node.scale is None else np.abs(node.scale.astype(np.float64))
            )
        else:
            size = _weighted(node, size, absolute=True)
        spread = np.zeros(1)
        if np.any(x.error):
            spread = _weighted(node, np.broadcast_to(x.error, value.shape), absolute=True)
        return Numbers(_weighted(node, value), size, spread)
    if isinstance(node, g.MaxPool2D):
        return Numbers(
            _pooled(value, node.window, value.shape, -np.inf),
            _pooled(x.size, node.window, value.shape),
            _pooled(x.error, node.window, value.shape),
        )
    if isinstance(node, g.Flatten):
        return Numbers(value.reshape(len(value), -1), _flat(x.size, value.shape), _flat(x.error, value.shape))
    if isinstance(node, g.Softmax):
        return _softmax(node, x)
    if isinstance(node, g.Add):
        return Numbers(
            np.sum([each.value for each in inputs], axis=0),
            _total([np.maximum(each.size, np.abs(each.value)) for each in inputs]),
            _total([each.error for each in inputs]),
        )
    if isinstance(node, g.Concatenate):
        return Numbers(
            *(
                np.concatenate([np.broadcast_to(getattr(x, part), x.value.shape) for x in inputs], axis=-1)
                for part in ("value", "size", "error")
            )
        )
    if isinstance(node, g.Identity):
        return x
    raise ConversionError("unsupported-layer", f"{type(node).__name__} is not evaluated", layer=node.layer)


def _affine(x: Numbers, scaled: Array, slope: Any, offset: Any) -> Numbers:
    """`scaled + offset`, where `scaled` is `slope * x`."""
    steep = np.abs(slope)
    size = np.maximum(steep * x.size, np.abs(scaled)) + np.abs(offset)
    return Numbers(scaled + offset, size, steep * x.error)


def _sign(node: g.Sign, value: Array) -> Array:
    """-1, 0 and +1; the strict half of `passes.split_ternary` is `x > 0`."""
    zero = np.full(1, float(node.zero))
    if node.strict_channels:
        channels = 2 * len(node.strict_channels)
        zero = np.where(np.isin(np.arange(channels), node.strict_channels), -1.0, 1.0)
        zero = np.tile(zero, value.shape[-1] // channels)
    return np.where(value > 0, 1.0, np.where(value < 0, -1.0, zero))


def _softmax(node: g.Softmax, x: Numbers) -> Numbers:
    """Probabilities are off, relative to themselves, by what the logits are off."""
    shifted = x.value - x.value.max(axis=-1, keepdims=True)
    total = np.exp(shifted).sum(axis=-1, keepdims=True)
    spread = np.maximum(np.abs(x.value), x.size).max(axis=-1, keepdims=True)
    if node.log:
        return Numbers(shifted - np.log(total), 1 + 2 * spread)
    found = np.exp(shifted) / total
    return Numbers(found, found * (1 + 2 * spread) + _UNDERFLOW)


def _total(parts: list[Any]) -> Array:
    result: Array = np.zeros(1)
    for part in parts:
        result = result + part
    return result


def _pooled(x: Array, window: Window, shape: tuple[int, ...], fill: float = 0.0) -> Array:
    """The largest of each window; one number stays one."""
    if x.size == 1:
        return x
    found: Array = _windows(np.broadcast_to(x, shape), window, fill).max(axis=(3, 4))
    return found


def _flat(x: Array, shape: tuple[int, ...]) -> Array:
    return x if x.size == 1 else np.broadcast_to(x, shape).reshape(shape[0], -1)


def _weighted(node: g.Conv2D | g.Dense, x: Array, absolute: bool = False) -> Array:
    """The layer's sums; with `absolute`, of absolute weights."""
    kernel = np.abs(node.kernel) if absolute else node.kernel
    scale = None if node.scale is None else node.scale.astype(np.float64)
    if absolute and scale is not None:
        scale = np.abs(scale)
    taps = int(np.prod(kernel.shape[:-1]))
    # Sums of small integers are exact in float32, which is twice as fast.
    narrow = node.binary and bool(np.all(x == np.rint(x))) and np.abs(x).max(initial=1) * taps < _FLOAT32
    dtype = np.float32 if narrow else np.float64
    kernel, x = kernel.astype(dtype), np.asarray(x, dtype)
    if isinstance(node, g.Dense):
        y = x @ kernel
    else:
        height, width = node.window.output_size(x.shape[1], x.shape[2])
        step = max(1, _WINDOWS // max(1, height * width * int(np.prod(node.window.kernel)) * x.shape[3]))
        fill = abs(node.pad_value) if absolute else node.pad_value
        parts = []
        for begin in range(0, len(x), step):
            windows = _windows(x[begin : begin + step], node.window, fill)
            if node.depthwise:
                parts.append(np.einsum("nyxabc,abc->nyxc", windows, kernel[:, :, 0]))
            else:
                flat = windows.reshape(*windows.shape[:3], -1)
                parts.append(flat @ kernel.reshape(-1, kernel.shape[3]))
        y = np.concatenate(parts)
    found = y.astype(np.float64)
    return found if scale is None else found * scale


def _windows(plane: npt.NDArray[Any], window: Window, fill: float) -> npt.NDArray[Any]:
    """(N, Ho, Wo, kh, kw, C), a view; taps in the padding hold `fill`."""
    top, left, bottom, right = window.padding
    padded = np.pad(plane, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=fill)
    height, width = window.output_size(plane.shape[1], plane.shape[2])
    (kh, kw), (sh, sw), (dh, dw) = window.kernel, window.strides, window.dilation
    n, rows, columns, channels = padded.strides
    return np.lib.stride_tricks.as_strided(
        padded,
        (len(plane), height, width, kh, kw, plane.shape[3]),
        (n, rows * sh, columns * sw, rows * dh, columns * dw, channels),
        writeable=False,
    )
