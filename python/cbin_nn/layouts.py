"""Which layout each layer's weights take in the file: chosen at conversion, by what the layer costs on a
Cortex-M7.

A `bbconv2d` has two kernels (docs/performance.md). The carry-save kernel counts the bits in which a
window and a filter differ; its weights lie canonically, and its cost does not depend on the data. The
vertical counters walk the set input bits for 32 output channels at once; their weights lie by output
channel, and an input channel that is mostly +1 is stored inverted, so that there is less to walk. How
often each channel is +1 is counted on sample images.

A pointwise convolution is a `bbconv2d` of one tap as well, and becomes one where vertical counters are
cheaper than its own kernel, which counts differing bits for a filter at a time.

A `qbconv2d` has two as well. With a byte a weight it takes four products an instruction and a window at a
time; as lists of signed sums it looks a pixel's sums up for eight windows, and borders cost it nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

import numpy as np
import numpy.typing as npt

from .operators import BBConv2D, BBPointwiseConv2D, LoweredModel, Operator, QBConv2D

__all__ = ["choose_layouts"]


#: Output channels from which vertical counters are cheaper: the carry-save kernel's cost is in proportion to
#: them, the other's is one for 32. `make bench`: 8 channels take 253,000 against 347,000 instructions.
FEWEST_FILTERS = 6
#: The same for one tap: listing a pixel is much of the work then, and is paid for by many channels.
#: `make bench`: 64 channels take 161,000 against 445,000 instructions.
FEWEST_POINTWISE_FILTERS = 32
#: Longest span of a kernel for which windows may be open side by side: each takes a counter of RAM.
LONGEST_SPAN = 32


def _vertical_is_cheaper(operator: BBConv2D | BBPointwiseConv2D) -> bool:
    if isinstance(operator, BBPointwiseConv2D):
        return len(operator.weights) >= FEWEST_POINTWISE_FILTERS
    window = operator.window
    spans = [(k - 1) * d + 1 for k, d in zip(window.kernel, window.dilation, strict=True)]
    return operator.weights.shape[0] >= FEWEST_FILTERS and max(spans) <= LONGEST_SPAN


def _sums_are_cheaper(operator: QBConv2D, height: int, width: int) -> bool:
    """Whether signed sums take fewer instructions a window and filter than byte masks.

    Fitted to `make bench`; the file has byte masks anyway where sums would not fit 16 bits
    (`rust/kernels/src/sum_walk.rs`).
    """
    filters, _, columns, channels = operator.weights.shape
    taps = operator.weights.shape[1] * columns
    words = -(-taps * channels // 4)
    masks = 14 + 1.5 * words + 750 / filters
    segment = 6.5 * taps + 40 + (28 * (columns + 3) + 600) / filters
    windows = operator.window.output_size(height, width)[1]
    cheaper: bool = segment * -(-windows // 8) < masks * windows
    return cheaper


def choose_layouts(lowered: LoweredModel, densities: Mapping[str, npt.NDArray[np.float64]]) -> LoweredModel:
    """The same model, with a layout for each binary convolution's weights.

    Args:
        lowered: the operators.
        densities: how often each channel of a packed tensor is +1, by the tensor's name, shape `(C,)`.

    Returns:
        The operators, with `lane_mask` set where weights by output channel are cheaper, and `pixel_sums`
        where sums are; a `bbpointwiseconv2d` is a `bbconv2d` then.
    """

    def choose(operator: Operator) -> Operator:
        if isinstance(operator, QBConv2D):
            return replace(operator, pixel_sums=_sums_are_cheaper(operator, *lowered.input_shape[:2]))
        if not isinstance(operator, BBConv2D | BBPointwiseConv2D) or not _vertical_is_cheaper(operator):
            return operator
        if isinstance(operator, BBPointwiseConv2D):
            parts = {field.name: getattr(operator, field.name) for field in fields(operator)}
            del parts["kind"]
            operator = BBConv2D(**parts)
        density = densities.get(operator.input, np.full(operator.weights.shape[3], 0.5))
        return replace(operator, lane_mask=density > 0.5)

    return replace(lowered, operators=[choose(operator) for operator in lowered.operators])
