"""The operators of a converted model, as plain data: what a converter hands to the `.cbn` writer.

A model is a list of operators in execution order, joined by tensor names. Weights are +-1 in int8
and unpacked here; packing, the arena plan and the file belong to Rust (`cbin_nn._native.ModelBuilder`).

Rules are intervals on the integer accumulator `acc`: `bit = (lo <= acc <= hi) XOR flip`, and
`lo > hi` makes a constant. With a fused max-pool, an output bit is

    bit = (OR over the pool window of rule(acc)  AND NOT  OR over the window of veto(acc)) XOR invert

which covers the three cases of a max-pool between two chains (`docs/bits.md`): OR (no veto, no
invert), AND (the rule carries flipped bits, and `invert` flips the result back) and two-sided
(rule and veto).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = [
    "BBFC",
    "BBQFC",
    "BQQFC",
    "BBConv2D",
    "BBDepthwiseConv2D",
    "BBPointwiseConv2D",
    "BMaxPool2D",
    "LoweredModel",
    "Operator",
    "Pool",
    "QBConv2D",
    "QQConv2D",
    "Requantization",
    "Rules",
    "Window",
]

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
Signs = npt.NDArray[np.int8]
Wide = npt.NDArray[np.int16]


@dataclass(frozen=True)
class Window:
    """How a kernel slides over a plane: taps, steps and explicit padding, all in pixels."""

    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    #: (top, left, bottom, right)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Output height and width of a plane of `height` x `width` pixels (0 where it does not fit)."""
        top, left, bottom, right = self.padding
        sizes = []
        for size, pad, kernel, stride, dilation in (
            (height, top + bottom, self.kernel[0], self.strides[0], self.dilation[0]),
            (width, left + right, self.kernel[1], self.strides[1], self.dilation[1]),
        ):
            span = dilation * (kernel - 1) + 1
            sizes.append(max(0, (size + pad - span) // stride + 1))
        return sizes[0], sizes[1]


@dataclass(frozen=True)
class Rules:
    """Rules `bit = (lo <= acc <= hi) XOR flip`; `lo > hi` is the empty interval.

    All three arrays have one shape: `(C,)` for one rule a channel, `(H, W, C)` for one a element of
    the plane named by `grid`: the convolution's own output plane ("conv") or the pooled one ("output").
    """

    lo: Int32
    hi: Int32
    flip: Bool
    grid: Literal["channel", "conv", "output"] = "channel"


@dataclass(frozen=True)
class Pool:
    """A max-pool fused into the convolution before it. Padding taps are skipped."""

    window: Window
    #: Bits that stop a pooled bit from being set (two-sided rules after the pool), or None.
    veto: Rules | None = None
    #: Per-channel XOR on the pooled bit, shape `(C,)`; None is all False.
    invert: Bool | None = None


@dataclass(frozen=True)
class _Convolution:
    """What every convolution has."""

    name: str
    input: str
    output: str
    weights: Signs
    window: Window
    rules: Rules
    pool: Pool | None = None


@dataclass(frozen=True)
class QBConv2D(_Convolution):
    """8-bit input, +-1 weights, packed output: `acc = sum over taps inside of w * (mul * q + add)`.

    Weights: (output channels, kernel height, kernel width, input channels), values -1 and +1.
    """

    #: Integer meaning of a u8 input q: `mul * q + add`, with mul >= 1. `2 q - 255` is (2, -255).
    input_mul: int = 1
    input_add: int = 0
    #: An offset for each input channel, shape (C,), in place of `input_add`, which is 0 then.
    channel_adds: Int32 | None = None
    #: The file holds the weights as lists of signed sums of pixels, for at most four input channels. False:
    #: as a byte each. With sample images `build_model` chooses by itself, and so it does for `lane_mask`.
    pixel_sums: bool = False
    kind: Literal["qbconv2d"] = "qbconv2d"


@dataclass(frozen=True)
class BBConv2D(_Convolution):
    """Packed input, +-1 weights, packed output: `acc = sum over taps of w * x`.

    Taps outside the image contribute 0, or their weight where `one_padding` (Larq's `pad_values=1`).

    Weights: (output channels, kernel height, kernel width, input channels), values -1 and +1.
    """

    one_padding: bool = False
    #: The file holds the weights by output channel, with the input channels that are True stored inverted
    #: (shape `(input channels,)`). None: in the canonical layout.
    lane_mask: Bool | None = None
    kind: Literal["bbconv2d"] = "bbconv2d"


@dataclass(frozen=True)
class QQConv2D(_Convolution):
    """8-bit input, 8-bit weights, packed output: `acc = sum over taps inside of w * (mul * q + add)`.

    Weights: (output channels, kernel height, kernel width, input channels), int8, or int16 where 8 bits would
    change real weights too much.
    """

    weights: Signs | Wide  # type: ignore[assignment]

    #: Integer meaning of a u8 input q: `mul * q + add`, with mul >= 1.
    input_mul: int = 1
    input_add: int = 0
    #: As in `QBConv2D`.
    channel_adds: Int32 | None = None
    kind: Literal["qqconv2d"] = "qqconv2d"


@dataclass(frozen=True)
class BBPointwiseConv2D(_Convolution):
    """Packed input, +-1 weights, 1 x 1 kernel without padding, packed output: `acc = sum of w * x`.

    Weights: (output channels, 1, 1, input channels), values -1 and +1. Only the strides of `window` matter.
    """

    kind: Literal["bbpointwiseconv2d"] = "bbpointwiseconv2d"


@dataclass(frozen=True)
class BBDepthwiseConv2D(_Convolution):
    """Packed input, +-1 weights, one filter a channel, packed output: `acc = sum over taps of w * x`.

    Taps outside the image contribute 0, or their weight where `one_padding` (Larq's `pad_values=1`).

    Weights: (kernel height, kernel width, channels), values -1 and +1.
    """

    one_padding: bool = False
    kind: Literal["bbdepthwiseconv2d"] = "bbdepthwiseconv2d"


@dataclass(frozen=True)
class BMaxPool2D:
    """Max-pool of packed bits: OR (or AND where `use_and`, per channel) of the bits in a window."""

    name: str
    input: str
    output: str
    window: Window
    #: shape (C,), or None for OR everywhere.
    use_and: Bool | None = None
    kind: Literal["bmaxpool2d"] = "bmaxpool2d"


@dataclass(frozen=True)
class BBFC:
    """Fully connected, packed to packed. Features are in HWC order of the input tensor."""

    name: str
    input: str
    output: str
    #: (units, true features), values -1 and +1.
    weights: Signs
    rules: Rules
    kind: Literal["bbfc"] = "bbfc"


@dataclass(frozen=True)
class Requantization:
    """From accumulator to output integer, in stated fixed point, per unit:

        q = saturate(round_half_even((acc * mul + add) / 2**shift))

    with `(mul, add)` = `(mul_above, add_above)` where `acc >= knee`, else `(mul_below, add_below)`.
    The knee carries a PReLU; without one both halves are equal. Arrays have shape `(units,)`.
    """

    mul_above: Int64
    add_above: Int64
    mul_below: Int64
    add_below: Int64
    knee: Int32
    shift: int
    dtype: Literal["i8", "i16", "i32"]
    #: One output step in the units of the source network's logits: `logit ~= scale * q`.
    scale: float
    #: Bound of `|q - logit/scale|` before saturation.
    bound: float = 0.5


@dataclass(frozen=True)
class BBQFC:
    """Fully connected, packed input, 8-, 16- or 32-bit output."""

    name: str
    input: str
    output: str
    #: (units, true features), values -1 and +1, HWC order of the input tensor.
    weights: Signs
    requantization: Requantization
    kind: Literal["bbqfc"] = "bbqfc"


@dataclass(frozen=True)
class BQQFC:
    """Fully connected, packed input, 8-bit weights, 8-, 16- or 32-bit output: `acc = sum of w * x`."""

    name: str
    input: str
    output: str
    #: (units, true features), int8, HWC order of the input tensor.
    weights: Signs
    requantization: Requantization
    kind: Literal["bqqfc"] = "bqqfc"


Operator = (
    QBConv2D | QQConv2D | BBConv2D | BBPointwiseConv2D | BBDepthwiseConv2D | BMaxPool2D | BBFC | BBQFC | BQQFC
)


@dataclass(frozen=True)
class LoweredModel:
    """A whole converted network."""

    name: str
    #: Tensor name of the input and its (height, width, channels).
    input: str
    input_shape: tuple[int, int, int]
    operators: list[Operator]
    output: str
    #: True where the caller asked for `output="f32"`: the file holds i32, and the host scales it.
    float_output: bool = False
    #: "u8", or "bits" for packed input.
    input_dtype: Literal["u8", "bits"] = "u8"
    #: One line a fact the user should know (dropped softmax, snapped scale ...).
    notes: list[str] = field(default_factory=list)
