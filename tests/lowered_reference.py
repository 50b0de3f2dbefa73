"""A plain NumPy interpreter of `LoweredModel`, written to be read: the meaning of `cbin_nn.operators`.

Everything is integers (float64 only carries the dot products, whose values stay below 2**53).
Speed is no goal.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from cbin_nn.operators import (
    BBFC,
    BBQFC,
    BBConv2D,
    BBPointwiseConv2D,
    BMaxPool2D,
    LoweredModel,
    QBConv2D,
    Requantization,
    Rules,
    Window,
)

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def windows(plane: npt.NDArray, window: Window, fill: float) -> npt.NDArray:
    """All windows of (N, H, W, C) planes: (N, Ho, Wo, kh, kw, C); taps in the padding hold `fill`."""
    n, h, w, c = plane.shape
    top, left, bottom, right = window.padding
    padded = np.full((n, h + top + bottom, w + left + right, c), fill, plane.dtype)
    padded[:, top : top + h, left : left + w] = plane
    ho, wo = window.output_size(h, w)
    kh, kw = window.kernel
    out = np.empty((n, ho, wo, kh, kw, c), plane.dtype)
    for i in range(kh):
        for j in range(kw):
            y, x = i * window.dilation[0], j * window.dilation[1]
            out[:, :, :, i, j] = padded[
                :,
                y : y + (ho - 1) * window.strides[0] + 1 : window.strides[0],
                x : x + (wo - 1) * window.strides[1] + 1 : window.strides[1],
            ]
    return out


def apply_rules(acc: Ints, rules: Rules) -> Bools:
    """bit = (lo <= acc <= hi) XOR flip, broadcast over (..., C) or (..., H, W, C)."""
    return ((acc >= rules.lo) & (acc <= rules.hi)) ^ rules.flip


def convolve(op: QBConv2D | BBConv2D | BBPointwiseConv2D, x: npt.NDArray) -> Ints:
    """Accumulators (N, Ho, Wo, filters): taps outside contribute 0, or their weight with one-padding."""
    if isinstance(op, QBConv2D):
        values = x.astype(np.float64) * op.input_mul + op.input_add
    else:
        values = np.where(x, 1.0, -1.0)
    fill = 1.0 if isinstance(op, BBConv2D) and op.one_padding else 0.0
    taps = windows(values, op.window, fill)
    flat = taps.reshape(*taps.shape[:3], -1) @ op.weights.reshape(len(op.weights), -1).T.astype(np.float64)
    acc = flat.astype(np.int64)
    assert np.abs(acc).max(initial=0) < 2**31
    return acc


def pooled_or(bits: Bools, window: Window) -> Bools:
    """OR over each window, padding skipped."""
    return windows(bits, window, False).any(axis=(3, 4))


def run_conv(op: QBConv2D | BBConv2D | BBPointwiseConv2D, x: npt.NDArray) -> Bools:
    acc = convolve(op, x)
    if op.pool is None:
        assert op.rules.grid != "output"
        return apply_rules(acc, op.rules)
    pool = op.pool
    if op.rules.grid == "output":
        # Each window has its own rule: apply it to the window's accumulators; padding taps hold no
        # accumulator.
        taps = windows(acc, pool.window, 0)
        inside = windows(np.ones_like(acc, dtype=bool), pool.window, False)

        def gathered(rules: Rules) -> Bools:
            lo, hi, flip = (a[None, :, :, None, None, :] for a in (rules.lo, rules.hi, rules.flip))
            return ((((taps >= lo) & (taps <= hi)) ^ flip) & inside).any(axis=(3, 4))
    else:

        def gathered(rules: Rules) -> Bools:
            return pooled_or(apply_rules(acc, rules), pool.window)

    bits = gathered(op.rules)
    if pool.veto is not None:
        assert pool.veto.grid == op.rules.grid
        bits &= ~gathered(pool.veto)
    return bits if pool.invert is None else bits ^ pool.invert


def run_pool(op: BMaxPool2D, bits: Bools) -> Bools:
    use_and = np.zeros(bits.shape[-1], bool) if op.use_and is None else op.use_and
    return pooled_or(bits ^ use_and, op.window) ^ use_and  # AND(x) = NOT OR(NOT x)


def dot(weights: npt.NDArray[np.int8], bits: Bools) -> Ints:
    features = np.where(bits.reshape(len(bits), -1), 1.0, -1.0)
    return (features @ weights.T.astype(np.float64)).astype(np.int64)


def requantize(acc: Ints, z: Requantization) -> Ints:
    above = acc >= z.knee
    total = acc * np.where(above, z.mul_above, z.mul_below) + np.where(above, z.add_above, z.add_below)
    assert np.abs(total).max(initial=0) < 2**62
    if z.shift:
        floor = total >> z.shift
        rest = total - (floor << z.shift)
        half = 1 << (z.shift - 1)
        total = floor + ((rest > half) | ((rest == half) & (floor % 2 == 1)))
    limit = {"i8": 2**7, "i16": 2**15, "i32": 2**31}[z.dtype]
    return np.clip(total, -limit, limit - 1)


def run(model: LoweredModel, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray]:
    """Every tensor by name: bits as bool (N, H, W, C) or (N, units), the output as int64 (N, units)."""
    assert images.dtype == np.uint8 and images.shape[1:] == model.input_shape
    tensors: dict[str, npt.NDArray] = {model.input: images}
    for op in model.operators:
        x = tensors[op.input]
        if isinstance(op, (QBConv2D, BBConv2D, BBPointwiseConv2D)):
            y: npt.NDArray = run_conv(op, x)
        elif isinstance(op, BMaxPool2D):
            y = run_pool(op, x)
        elif isinstance(op, BBFC):
            y = apply_rules(dot(op.weights, x), op.rules)
        else:
            assert isinstance(op, BBQFC)
            y = requantize(dot(op.weights, x), op.requantization)
        assert op.output not in tensors
        tensors[op.output] = y
    return tensors


def logits(model: LoweredModel, images: npt.NDArray[np.uint8], batch: int = 64) -> npt.NDArray[np.float64]:
    """Dequantized outputs."""
    head = model.operators[-1]
    assert isinstance(head, BBQFC)
    parts = [run(model, images[i : i + batch])[model.output] for i in range(0, len(images), batch)]
    return np.concatenate(parts) * head.requantization.scale
