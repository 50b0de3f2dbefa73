"""Networks that the package trains: the seed's SmallCifar, and the float teacher that it learns from."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from . import fused
from .estimators import Sign
from .layers import BinaryConv2d, BinaryLinear, QuantizedConv2d, Shift

__all__ = ["MODELS", "BinaryBlock", "Flatten", "SmallCifar", "Teacher"]


class BinaryBlock(nn.Module):
    """Convolution, shift, PReLU, 2x2 max-pool, BatchNorm, sign: `[N, C, H, W]` to `[N, C', H/2, W/2]` of +-1.

    A shift before the PReLU and a PReLU slope below 0 let a channel answer to an *interval* of accumulators
    instead of a half-line, at no cost on the board: the whole chain is one rule.

    Args:
        conv: the convolution.
        scale: constant factor of its output; a power of two is exact.
        estimator: of the sign.
    """

    def __init__(self, conv: BinaryConv2d, scale: float, estimator: str = "approx") -> None:
        super().__init__()
        channels = len(conv.weight)
        conv.scale = scale
        self.conv = conv
        self.shift = Shift(channels)
        self.prelu = nn.PReLU(channels, 0.25)
        self.pool = nn.MaxPool2d(2)
        self.norm = nn.BatchNorm2d(channels, momentum=0.02)
        self.sign = Sign(estimator)
        #: Use `cbin_nn.train.fused` in training, where the input is bfloat16.
        self.fused = False

    def forward(self, x: Tensor) -> Tensor:
        """-1 and +1, `[N, C', H/2, W/2]`, of floating-point `[N, C, H, W]`."""
        if self.fused and self.training and x.dtype == torch.bfloat16:
            return self._forward_fused(x)
        signs: Tensor = self.sign(self.norm(self.pool(self.prelu(self.shift(self.conv(x))))))
        return signs

    def _forward_fused(self, x: Tensor) -> Tensor:
        dtype = fused.convolution_dtype()
        weight = self.conv.binary_weight().to(dtype).contiguous(memory_format=torch.channels_last)
        window = self.conv.stride, self.conv.padding, self.conv.dilation
        c = nn.functional.conv2d(x.to(dtype), weight, None, *window).to(x.dtype)
        assert isinstance(self.conv.scale, float)
        out, mean, variance = fused.block(
            c,
            self.shift.bias,
            self.prelu.weight,
            self.norm.weight,
            self.norm.bias,
            self.conv.scale,
            self.norm.eps,
            self.sign.estimator,
        )
        with torch.no_grad():
            momentum = self.norm.momentum
            assert momentum is not None
            assert self.norm.running_mean is not None and self.norm.running_var is not None
            self.norm.running_mean.lerp_(mean.float(), momentum)
            self.norm.running_var.lerp_(variance.float(), momentum)
            assert self.norm.num_batches_tracked is not None
            self.norm.num_batches_tracked += 1
        return out


class Flatten(nn.Module):
    """`[N, C, H, W]` to `[N, C*H*W]`, in torch's order, CHW."""

    def forward(self, x: Tensor) -> Tensor:
        """Every image's features, `[N, C*H*W]`, any dtype."""
        return x.flatten(1)


class SmallCifar(nn.Module):
    """The seed's network: 5x5 convolutions of 32, 32 and 64 channels, each pooled, and one dense layer.

    Takes `2 q - 255` of 32x32 RGB images, `[N, 3, 32, 32]` (see `cbin_nn.train.data.as_input`), gives
    logits `[N, 10]`.

    Args:
        first: "q8" for 8-bit weights in the first layer (`qqconv2d`), "binary" for 1-bit ones (`qbconv2d`).
        estimator: of the signs.
        weight_estimator: of the binary weights.
        classes: number of logits.
    """

    #: (height, width, channels) of its images.
    input_shape = (32, 32, 3)

    def __init__(
        self,
        first: Literal["q8", "binary"] = "q8",
        estimator: str = "approx",
        weight_estimator: str = "identity",
        classes: int = 10,
    ) -> None:
        super().__init__()
        if first == "q8":
            conv: BinaryConv2d = QuantizedConv2d(3, 32, 5, padding=2)
            scale = 2.0**-9
        else:
            conv = BinaryConv2d(3, 32, 5, padding=2, estimator=weight_estimator)
            scale = 2.0**-11
        self.block1 = BinaryBlock(conv, scale, estimator)
        self.block2 = BinaryBlock(
            BinaryConv2d(32, 32, 5, padding=2, estimator=weight_estimator), 2.0**-5, estimator
        )
        self.block3 = BinaryBlock(
            BinaryConv2d(32, 64, 5, padding=2, estimator=weight_estimator), 2.0**-5, estimator
        )
        self.features = Flatten()
        self.dense = BinaryLinear(1024, classes, scale=2.0**-5, estimator=weight_estimator)
        self.norm = nn.BatchNorm1d(classes, momentum=0.02)

    def use_fused(self, on: bool) -> None:
        """Use the fused CPU kernels in training, where they are available; inputs are bfloat16 then."""
        for block in (self.block1, self.block2, self.block3):
            block.fused = on

    def forward(self, x: Tensor) -> Tensor:
        """Logits, float32 `[N, classes]`, of floating-point `[N, 3, 32, 32]`."""
        bits = self.features(self.block3(self.block2(self.block1(x))))
        logits: Tensor = self.norm(self.dense(bits).float())
        return logits


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(_conv(channels, channels), _conv(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.inner(x)
        return y


def _conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Teacher(nn.Sequential):
    """A float residual network for distillation, 51 M MACs on a 32x32 image.

    Args:
        classes: number of logits.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__(
            nn.Conv2d(3, 32, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
            _conv(32, 48),
            _Residual(48),
            _conv(48, 96),
            nn.MaxPool2d(2),
            _Residual(96),
            _conv(96, 160),
            nn.MaxPool2d(2),
            _Residual(160),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Linear(160, classes),
        )
        self.to(memory_format=torch.channels_last)


#: What `cbin-nn train NAME` knows.
MODELS = {"smallcifar": SmallCifar}
