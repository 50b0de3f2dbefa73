"""An independent evaluator of source graphs in float64: real-number arithmetic, layer by layer, no folding.

It takes nodes and their parameters from the reader and shares no code with rules or lowering.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from cbin_nn.converters import graph as g
from cbin_nn.converters.keras import read_keras
from cbin_nn.operators import Window

Array = npt.NDArray[np.float64]


@dataclass
class Evaluation:
    """What a network computes."""

    #: Before a final softmax, (N, classes).
    logits: Array
    #: As the network returns them: after softmax where it has one.
    outputs: Array
    #: Sign node's name -> bits (N, ...), True for +1, in order.
    signs: dict[str, npt.NDArray[np.bool_]]
    #: Sign node's name -> the real values under the sign.
    margins: dict[str, Array]


def taps(x: Array, window: Window, fill: float) -> Array:
    """(N, Ho, Wo, kh*kw, C)."""
    top, left, bottom, right = window.padding
    x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=fill)
    (kh, kw), (sh, sw), (dh, dw) = window.kernel, window.strides, window.dilation
    ho = (x.shape[1] - dh * (kh - 1) - 1) // sh + 1
    wo = (x.shape[2] - dw * (kw - 1) - 1) // sw + 1
    rows = np.arange(ho)[:, None] * sh + np.arange(kh)[None, :] * dh
    columns = np.arange(wo)[:, None] * sw + np.arange(kw)[None, :] * dw
    picked = x[:, rows[:, None, :, None], columns[None, :, None, :], :]
    return picked.reshape(len(x), ho, wo, kh * kw, x.shape[3])


def step(node: g.Node, x: Array) -> Array:
    if isinstance(node, g.Rescaling):
        return x * np.float64(node.scale) + np.float64(node.offset)
    if isinstance(node, g.Conv2D):
        kernel = node.kernel.astype(np.float64)
        seen = taps(x, node.window, node.pad_value)
        if node.depthwise:
            y = (seen * kernel.reshape(-1, kernel.shape[3])).sum(axis=3)
            return y if node.scale is None else y * node.scale.astype(np.float64)
        y = np.einsum("nhwtc,tcf->nhwf", seen, kernel.reshape(-1, *kernel.shape[2:]), optimize=True)
        return y if node.scale is None else y * node.scale.astype(np.float64)
    if isinstance(node, g.Dense):
        y = x @ node.kernel.astype(np.float64)
        return y if node.scale is None else y * node.scale.astype(np.float64)
    if isinstance(node, g.MaxPool2D):
        return taps(x, node.window, -np.inf).max(axis=3)
    if isinstance(node, g.BatchNorm):
        gamma, beta, mean, variance = (
            a.astype(np.float64) for a in (node.gamma, node.beta, node.mean, node.variance)
        )
        return (x - mean) * gamma / np.sqrt(variance + np.float64(np.float32(node.epsilon))) + beta
    if isinstance(node, g.Linear):
        factor, offset, divisor = (
            float(value) if isinstance(value, Fraction) else value.astype(np.float64)
            for value in (node.factor, node.offset, node.divisor)
        )
        return x * factor / divisor + offset
    if isinstance(node, g.Bias):
        return x + node.values.astype(np.float64)
    if isinstance(node, g.PReLU):
        return np.maximum(x, 0) - node.alpha.astype(np.float64) * np.maximum(-x, 0)
    if isinstance(node, g.Clip):
        x = x if node.low is None else np.maximum(x, np.float64(np.float32(node.low)))
        return x if node.high is None else np.minimum(x, np.float64(np.float32(node.high)))
    if isinstance(node, g.Flatten):
        return x.reshape(len(x), -1)
    if isinstance(node, g.Identity):
        return x
    raise NotImplementedError(type(node).__name__)


def evaluate(graph: g.Graph, images: npt.NDArray[np.uint8]) -> Evaluation:
    """The network on u8 images (N, H, W, C), fed as 0..255."""
    x = images.astype(np.float64)
    signs: dict[str, npt.NDArray[np.bool_]] = {}
    margins: dict[str, Array] = {}
    logits = outputs = x
    for node in graph.nodes[1:]:
        if isinstance(node, g.Sign):
            signs[node.name], margins[node.name] = x >= 0, x
            x = np.where(x >= 0, 1.0, -1.0)
        elif isinstance(node, g.Softmax):
            power = np.exp(x - x.max(axis=-1, keepdims=True))
            outputs = power / power.sum(axis=-1, keepdims=True)
            return Evaluation(x, outputs, signs, margins)
        else:
            x = step(node, x)
        logits = outputs = x
    return Evaluation(logits, outputs, signs, margins)


def evaluate_file(path: str | os.PathLike[str], images: npt.NDArray[np.uint8]) -> Evaluation:
    """`evaluate` of a Keras file."""
    return evaluate(read_keras(path), images)
