r"""A source graph evaluated in float64, as its real-number arithmetic reads: no folding, no rules, no
packing.

What `cbin_nn.verify` compares a converted model with. Integer sums are exact here (they stay far below
2**53);
BatchNorm and the like are within about 1e-15 of the real number, so a sign can only be in doubt where its
argument is that close to 0, which is far inside of what counts as a near-tie.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConversionError
from ..operators import Window
from ..rules import NEAR_TIE
from . import graph as g

__all__ = ["Evaluation", "evaluate"]

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass
class Evaluation:
    """What a network computes on a batch."""

    #: Before a closing softmax, (N, classes).
    logits: Array
    #: Sign node -> +1 or not, (N, ...), in the graph's layout.
    bits: dict[str, Bools] = field(default_factory=dict)
    #: Sign node -> where its argument is within 1e-5 of 0, relative to the largest term.
    near_ties: dict[str, Bools] = field(default_factory=dict)


def evaluate(
    graph: g.Graph, images: npt.NDArray[np.uint8], given: Mapping[str, Bools] | None = None
) -> Evaluation:
    """Evaluate a chain on images.

    Args:
        graph: a graph without branches.
        images: u8 `[N, H, W, C]`, fed as 0..255.
        given: bits that take the place of a sign's own for what follows it: each layer is then judged on the
            input that the converted model gave it.

    Raises:
        ConversionError: the graph holds something that is not evaluated.
    """
    value: Array = images.astype(np.float64)
    terms: Array = np.zeros(1)
    result = Evaluation(value)
    for node in graph.nodes[1:]:
        if isinstance(node, g.Softmax):
            continue
        if isinstance(node, g.Sign):
            bits = value > 0 if node.zero == -1 else value >= 0
            if node.strict_channels:
                bits = _strict(node, value, bits, graph)
            result.bits[node.name] = bits
            result.near_ties[node.name] = np.abs(value) < NEAR_TIE * np.maximum(1.0, terms)
            used = bits if given is None else given.get(node.name, bits).reshape(bits.shape)
            value, terms = np.where(used, 1.0, -1.0), np.zeros(1)
        else:
            value, terms = _step(node, value, terms)
    result.logits = value.reshape(len(value), -1)
    return result


def _strict(node: g.Sign, value: Array, bits: Bools, graph: g.Graph) -> Bools:
    """`x > 0` in the second half of the channels (`passes.split_ternary`)."""
    channels = 2 * len(node.strict_channels)
    table = value.reshape(len(value), -1, channels)
    strict = np.isin(np.arange(channels), node.strict_channels)
    return np.where(strict, table > 0, table >= 0).reshape(bits.shape)


def _float(value: Fraction | g.Float32) -> Any:
    return float(value) if isinstance(value, Fraction) else value.astype(np.float64)


def _step(node: g.Node, x: Array, terms: Array) -> tuple[Array, Array]:
    """(result, size of its largest term)."""
    if isinstance(node, g.Rescaling):
        return x * node.scale + node.offset, terms
    if isinstance(node, g.Linear):
        slope, offset = _float(node.factor) / _float(node.divisor), _float(node.offset)
        return x * slope + offset, _largest(np.abs(slope) * terms, np.abs(x * slope), np.abs(offset))
    if isinstance(node, g.Bias):
        offset = node.values.astype(np.float64)
        return x + offset, _largest(terms, np.abs(x), np.abs(offset))
    if isinstance(node, g.BatchNorm):
        gamma, beta, mean, variance = (
            a.astype(np.float64) for a in (node.gamma, node.beta, node.mean, node.variance)
        )
        slope = gamma / np.sqrt(variance + np.float64(np.float32(node.epsilon)))
        size = _largest(np.abs(slope) * terms, np.abs(slope * x), np.abs(slope * mean), np.abs(beta))
        return (x - mean) * slope + beta, size
    if isinstance(node, g.PReLU):
        alpha = node.alpha.astype(np.float64)
        return np.where(x >= 0, x, alpha * x), np.where(x >= 0, terms, np.abs(alpha) * terms)
    if isinstance(node, g.Clip):
        low = -np.inf if node.low is None else float(np.float32(node.low))
        high = np.inf if node.high is None else float(np.float32(node.high))
        return np.clip(x, low, high), terms
    if isinstance(node, (g.Conv2D, g.Dense)):
        # A float32 sum of real numbers rounds by its terms, not by its value. One of +-1 does not round.
        whole = node.binary and bool(np.all(np.abs(x[:1]) == 1))
        return _weighted(node, x), np.zeros(1) if whole else _weighted(node, np.abs(x), size=True)
    if isinstance(node, g.MaxPool2D):
        pooled = _windows(x, node.window, -np.inf).max(axis=(3, 4))
        spread = np.broadcast_to(terms, x.shape)
        return pooled, _windows(spread, node.window, 0.0).max(axis=(3, 4)) if terms.size > 1 else terms
    if isinstance(node, g.Flatten):
        flat = np.broadcast_to(terms, x.shape).reshape(len(x), -1) if terms.size > 1 else terms
        return x.reshape(len(x), -1), flat
    if isinstance(node, g.Identity):
        return x, terms
    raise ConversionError("unsupported-layer", f"{type(node).__name__} is not evaluated", layer=node.layer)


def _largest(*sizes: Any) -> Array:
    result: Array = np.maximum.reduce(np.broadcast_arrays(*sizes))
    return result


def _weighted(node: g.Conv2D | g.Dense, x: Array, size: bool = False) -> Array:
    """The layer's sums; with `size`, of absolute values."""
    kernel = node.kernel.astype(np.float64)
    if size:
        kernel = np.abs(kernel)
    if isinstance(node, g.Dense):
        y: Array = x @ kernel
    else:
        taps = _windows(x, node.window, node.pad_value)
        if node.depthwise:
            y = np.einsum("nyxabc,abc->nyxc", taps, kernel[:, :, 0])
            return y if node.scale is None else y * node.scale.astype(np.float64)
        y = taps.reshape(*taps.shape[:3], -1) @ kernel.reshape(-1, kernel.shape[3])
    return y if node.scale is None else y * node.scale.astype(np.float64)


def _windows(plane: Array, window: Window, fill: float) -> Array:
    """(N, Ho, Wo, kh, kw, C), a copy; taps in the padding hold `fill`."""
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
