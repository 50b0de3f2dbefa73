"""What readers share about weights and windows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConversionError

__all__ = ["binarized", "same_padding"]

Array = npt.NDArray[Any]

#: Relative spread of |w| within a filter that float32 rounding explains: `(s - c) + c`, fused BatchNorm.
_SPREAD = 2.0**-20


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """TensorFlow's "same" rule for one axis: (before, after); the odd pixel goes to the end.

    Source: https://www.tensorflow.org/api_docs/python/tf/nn (notes on padding).
    """
    outputs = -(-size // stride)
    total = max(0, (outputs - 1) * stride + dilation * (kernel - 1) + 1 - size)
    return total // 2, total - total // 2


def binarized(kernel: Array, layer: str, notes: list[str]) -> tuple[Array, bool, Array | None]:
    """(kernel, whether it is binary, scale a filter or None) of a kernel whose last axis is the filters.

    A filter whose weights share one absolute value is signs times a scale. Where they share it up to the
    rounding of float32, the median is taken and a note says so.
    """
    if not np.isfinite(kernel).all():
        raise ConversionError(
            "not-finite", "its weights hold NaN or infinite values; use another checkpoint", layer=layer
        )
    flat = np.abs(kernel.reshape(-1, kernel.shape[-1]).astype(np.float64))
    largest, smallest = flat.max(axis=0), flat.min(axis=0)
    if not flat.size or not np.all(smallest > 0) or np.any(largest - smallest > _SPREAD * largest):
        return kernel, False, None
    scale = largest.astype(np.float32)
    if np.any(largest != smallest):
        scale = np.median(flat, axis=0).astype(np.float32)
        spread = float(((largest - smallest) / largest).max())
        notes.append(
            f"layer {layer!r}: |w| of a filter varies by up to {spread:.1e} of itself, float32 rounding in "
            "the "
            "source; read as one scale a filter"
        )
    signs = np.where(kernel > 0, np.float32(1), np.float32(-1))
    return signs, True, None if np.all(scale == 1) else scale
