"""Bytes for a network whose inputs are not bytes: spectrograms, sensors, images that are normalised already.

The first layer takes uint8. Where a network was trained on other numbers, `calibrate` finds the affine
quantization that covers sample data; `convert` is told its scale and offset, and `Quantization.quantize`
makes bytes of data:

    >>> import numpy as np, cbin_nn
    >>> data = np.random.default_rng(0).normal(size=(100, 16, 16, 1)).astype(np.float32)
    >>> quantization = cbin_nn.calibrate(data)
    >>> float(np.abs(quantization.dequantize(quantization.quantize(data)) - data).max()) < 0.02
    True
    >>> meaning = {"input_scale": quantization.scale, "input_offset": quantization.offset}
    >>> model = cbin_nn.convert("model.h5", **meaning)                     # doctest: +SKIP
    >>> model.run(quantization.quantize(data))                             # doctest: +SKIP

Affine quantization with an integer zero point, as Jacob et al. (2018), https://arxiv.org/abs/1712.05877,
eq. 1: a real 0, which is what `same` padding means, is a byte exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InvalidArgument

__all__ = ["Quantization", "calibrate"]


@dataclass(frozen=True)
class Quantization:
    """`real = scale * (q - zero_point)` of bytes q, one pair for all channels or one a channel.

    Attributes:
        scale: steps between neighbouring bytes, in the data's units; above 0, float32 values.
        zero_point: the byte of a real 0; outside 0 to 255 where the data are all on one side of 0.
    """

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]

    @property
    def offset(self) -> tuple[float, ...]:
        """What byte 0 means, `-scale * zero_point`: the `input_offset` of `convert`."""
        return tuple(-s * z for s, z in zip(self.scale, self.zero_point, strict=True))

    def quantize(self, values: npt.ArrayLike) -> npt.NDArray[np.uint8]:
        """The nearest bytes (ties to even); what lies outside the calibrated range becomes 0 or 255.

        Args:
            values: real numbers, `[..., C]`.

        Returns:
            uint8, of the same shape.

        Raises:
            InvalidArgument: the last axis is not C, or a value is NaN.
        """
        array = self._checked("values", values)
        steps = np.rint(array / np.asarray(self.scale)) + np.asarray(self.zero_point)
        quantized: npt.NDArray[np.uint8] = np.clip(steps, 0, 255).astype(np.uint8)
        return quantized

    def dequantize(self, values: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """What bytes mean.

        Args:
            values: uint8, `[..., C]`.

        Returns:
            float32, of the same shape.

        Raises:
            InvalidArgument: the last axis is not C.
        """
        steps = self._checked("values", values) - np.asarray(self.zero_point)
        real: npt.NDArray[np.float32] = (steps * np.asarray(self.scale)).astype(np.float32)
        return real

    def _checked(self, argument: str, values: Any) -> npt.NDArray[np.float64]:
        array = np.asarray(values, np.float64)
        channels = len(self.scale)
        if channels > 1 and (not array.ndim or array.shape[-1] != channels):
            raise InvalidArgument(
                "bad-shape", f"`{argument}` has shape {list(array.shape)}, expected [..., {channels}]"
            )
        if np.isnan(array).any():
            raise InvalidArgument("bad-value", f"`{argument}` has NaN at {_first(np.isnan(array))}")
        return array


def calibrate(data: npt.ArrayLike, *, per_channel: bool = False, coverage: float = 1.0) -> Quantization:
    """The affine quantization to uint8 that covers sample data.

    Args:
        data: what the network is fed, finite real numbers, `[N, H, W, C]` or any `[..., C]`. A few hundred
            samples that look like what the board will see.
        per_channel: a scale and a zero point for each channel: for channels of unequal ranges. The first
            layer then takes 16-bit weights, and the report says how near that is.
        coverage: share of the data inside the range, above 0 and at most 1; below 1, as many of the largest
            as of the smallest values are clipped. 1 - 1e-4 keeps single outliers from wasting the bytes.

    Returns:
        The quantization; its `scale` and `offset` are `input_scale` and `input_offset` of `convert`.

    Raises:
        InvalidArgument: no data, values that are not finite, or a coverage out of range.
    """
    array = np.asarray(data)
    if array.size == 0 or array.ndim == 0 or array.dtype.kind not in "fiub":
        raise InvalidArgument(
            "bad-shape",
            f"`data` has shape {list(array.shape)} and dtype {array.dtype}, expected numbers [..., C]",
        )
    if not 0 < coverage <= 1:
        raise InvalidArgument("bad-value", f"`coverage` is {coverage}, expected above 0 and at most 1")
    if not np.isfinite(array).all():
        raise InvalidArgument("bad-value", f"`data` is not finite at {_first(~np.isfinite(array))}")
    columns = array.reshape(-1, array.shape[-1]) if per_channel else array.reshape(-1, 1)
    tail = 50 * (1 - coverage)
    lows, highs = np.percentile(columns.astype(np.float64), [tail, 100 - tail], axis=0)
    scales, zero_points = [], []
    for low, high in zip(lows.tolist(), highs.tolist(), strict=True):
        if low == high:  # a constant: two steps from 0 to it, or any scale for 0 itself
            low, high = min(low, 0.0), max(high, 0.0)
        # 254 steps over the range leave one for rounding the zero point. Float32, as `convert` reads it.
        scale = float(np.float32((high - low) / 254)) or 1.0
        scales.append(scale)
        zero_points.append(-int(np.floor(low / scale)))
    return Quantization(tuple(scales), tuple(zero_points))


def _first(wrong: npt.NDArray[np.bool_]) -> list[int]:
    """Index of the first True."""
    index: list[int] = np.argwhere(wrong)[0].tolist()
    return index
