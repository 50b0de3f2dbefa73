r"""Binary layers as ordinary `nn.Module`s: they train with latent real weights and convert exactly.

A layer's forward is the arithmetic of the integer operator: weights of -1 and +1 (or 8-bit integers, for a
first layer), times a scale that is a constant, or `mean |w|` of each filter. `cbin_nn.train.export` maps each
module to a graph node, and the shapes of these forwards (`torch.where(w >= 0, 1, -1)`, constant
or mean scale, `torch.where(x >= 0, x, slope * x)`) are those that exporters see too.

Inputs of binary layers are +-1 where the model is to be converted: put a `Sign` or `RSign` before them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InvalidArgument
from .estimators import Sign, check, estimate

__all__ = [
    "BinaryConv2d",
    "BinaryDepthwiseConv2d",
    "BinaryLinear",
    "QuantizedConv2d",
    "RPReLU",
    "RSign",
    "binary_parameters",
]


class _Binary(nn.Module):
    """A latent weight, its binarization and its scale.

    Args:
        estimator: of the weights' gradient; "identity" with clipped latent weights is the usual choice.
        scale: a constant factor of the output (exact in float32 if it is a power of two), or "mean" for
            `mean |w|` of each filter, or None.
    """

    weight: nn.Parameter

    def __init__(self, estimator: str, scale: float | str | None) -> None:
        super().__init__()
        if isinstance(scale, str) and scale != "mean":
            raise InvalidArgument("bad-argument", f"scale: expected a number, 'mean' or None, got {scale!r}")
        self.estimator = check(estimator)
        self.scale = scale
        self.progress = 0.0
        #: False trains real weights, the first stage of two-stage training.
        self.binarize = True

    def _make_weight(self, *shape: int) -> None:
        self.weight = nn.Parameter(torch.empty(shape))
        self.weight.latent = True
        nn.init.uniform_(self.weight, -0.1, 0.1)

    def binary_weight(self) -> Tensor:
        """-1 and +1, in the latent weight's shape; the latent weight itself where `binarize` is off."""
        return estimate(self.weight, self.estimator, self.progress) if self.binarize else self.weight

    def filter_scale(self) -> Tensor | None:
        """The factor of each filter, float32 `[filters]`, or None."""
        if self.scale is None:
            return None
        if self.scale == "mean":
            return self.weight.flatten(1).abs().mean(dim=1)
        return self.weight.new_full((len(self.weight),), float(self.scale))

    def _scaled(self, y: Tensor) -> Tensor:
        if self.scale is None:
            return y
        if self.scale == "mean":
            factor = self.filter_scale()
            assert factor is not None
            return y * (factor.view(-1, 1, 1) if y.ndim == 4 else factor)
        return y * self.scale

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"{list(self.weight.shape)}, scale={self.scale}, estimator={self.estimator}"


class BinaryConv2d(_Binary):
    """2-D convolution with weights of -1 and +1; zero padding; no bias (see `cbin_nn.train.Shift`).

    Args:
        in_channels: channels of the input `[N, C, H, W]`.
        out_channels: filters.
        kernel_size: one number or (height, width).
        stride: see `torch.nn.Conv2d`; padding and dilation too, as numbers.
        padding: zeros around the image: taps there contribute nothing.
        dilation: distance between taps.
        scale: constant factor of the output, or "mean" (XNOR-Net's mean |w| of each filter), or None.
        estimator: of the weights' gradient.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        scale: float | str | None = None,
        estimator: str = "identity",
    ) -> None:
        super().__init__(estimator, scale)
        self.kernel_size, self.stride = _pair(kernel_size), _pair(stride)
        self.padding, self.dilation = _pair(padding), _pair(dilation)
        self._make_weight(out_channels, in_channels, *self.kernel_size)

    def accumulate(self, x: Tensor) -> Tensor:
        """The convolution without the scale: integers where the input, `[N, C, H, W]`, is."""
        weight = self.binary_weight().to(x.dtype)
        return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation)

    def forward(self, x: Tensor) -> Tensor:
        """Maps float32 `[N, C, H, W]` to `[N, filters, H', W']`."""
        return self._scaled(self.accumulate(x))


class QuantizedConv2d(BinaryConv2d):
    """2-D convolution with 8-bit weights, for a first layer on 8-bit images (`qqconv2d`).

    The weight is `round(128 w) / 128`, between -127/128 and 127/128; rounding passes the gradient. With an
    input of integers below 2^8 (such as `2 q - 255`) every sum is exact in float32.
    """

    #: Steps of the weight in 1.
    STEPS = 128

    def _make_weight(self, *shape: int) -> None:
        super()._make_weight(*shape)
        nn.init.uniform_(self.weight, -0.5, 0.5)

    def binary_weight(self) -> Tensor:
        """The quantized weight; the latent weight itself where `binarize` is off."""
        if not self.binarize:
            return self.weight
        weight: Tensor = _Round.apply(self.weight, self.STEPS)
        return weight

    def integer_weight(self) -> Tensor:
        """int8, the quantized weight times `STEPS`."""
        return (self.binary_weight().detach() * self.STEPS).to(torch.int8)


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, steps: int) -> Tensor:
        return (w * steps).round().clamp(1 - steps, steps - 1) / steps

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class BinaryDepthwiseConv2d(_Binary):
    """Depthwise 2-D convolution, one filter of -1 and +1 a channel (`bbdepthwiseconv2d`).

    Args:
        channels: of the input and of the output.
        kernel_size: see `BinaryConv2d`, and for the rest too.
        stride: step of the window.
        padding: zeros around the image.
        dilation: distance between taps.
        scale: see `BinaryConv2d`.
        estimator: see `BinaryConv2d`.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        scale: float | str | None = None,
        estimator: str = "identity",
    ) -> None:
        super().__init__(estimator, scale)
        self.kernel_size, self.stride = _pair(kernel_size), _pair(stride)
        self.padding, self.dilation = _pair(padding), _pair(dilation)
        self._make_weight(channels, 1, *self.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """Maps float32 `[N, C, H, W]` to `[N, C, H', W']`."""
        weight = self.binary_weight().to(x.dtype)
        y = F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, groups=len(weight))
        return self._scaled(y)


class BinaryLinear(_Binary):
    """Fully connected with weights of -1 and +1: float32 `[N, in]` to `[N, out]`.

    Args:
        in_features: length of an input.
        out_features: units.
        scale: see `BinaryConv2d`.
        estimator: see `BinaryConv2d`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        scale: float | str | None = None,
        estimator: str = "identity",
    ) -> None:
        super().__init__(estimator, scale)
        self._make_weight(out_features, in_features)

    def forward(self, x: Tensor) -> Tensor:
        """Maps float32 `[N, in]` to `[N, out]`."""
        return self._scaled(F.linear(x, self.binary_weight().to(x.dtype)))


class Shift(nn.Module):
    """`x + bias`, one learnable bias a channel (axis 1).

    Args:
        channels: length of axis 1.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C]` or `[N, C, H, W]`."""
        return x + (self.bias.view(-1, 1, 1) if x.ndim == 4 else self.bias)


class RSign(nn.Module):
    """Sign with a learnable threshold a channel: `sign(x + bias)` (Liu et al., ReActNet, 2020).

    Args:
        channels: length of axis 1.
        estimator: see `Sign`.
    """

    def __init__(self, channels: int, estimator: str = "approx") -> None:
        super().__init__()
        self.shift = Shift(channels)
        self.sign = Sign(estimator)

    def forward(self, x: Tensor) -> Tensor:
        """-1 and +1 in the shape of `x`."""
        return self.sign(self.shift(x))


class RPReLU(nn.Module):
    """PReLU with learnable shifts, `PReLU(x + before) + after` (Liu et al., ReActNet, 2020).

    Args:
        channels: length of axis 1.
        slope: the slope below 0 at the start.
    """

    def __init__(self, channels: int, slope: float = 0.25) -> None:
        super().__init__()
        self.before = Shift(channels)
        self.prelu = nn.PReLU(channels, slope)
        self.after = Shift(channels)

    def forward(self, x: Tensor) -> Tensor:
        """In the shape of `x`, floating-point `[N, C]` or `[N, C, H, W]`."""
        return self.after(self.prelu(self.before(x)))


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def binary_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The latent weights of a model, in order: what a BNN optimizer treats in its own way."""
    return [m.weight for m in model.modules() if isinstance(m, _Binary)]


def set_binarize(model: nn.Module, on: bool) -> None:
    """Switch weight binarization on or off (two-stage training), in every layer of a model."""
    for module in model.modules():
        if isinstance(module, _Binary):
            module.binarize = on
