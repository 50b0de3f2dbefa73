"""The sizes that docs/format.md gives, written down a second time, against what models state."""

from __future__ import annotations

import math
from pathlib import Path

import cbin_nn


def words(bits: int) -> int:
    return -(-bits // 32)


def sums(kernel: int, inputs: int, filters: int) -> int:
    patterns = 2 ** (inputs - 1) + (kernel > 1)
    return 4 + kernel * patterns * (kernel + 3) + 2 * filters + math.ceil(inputs * (kernel + 7) / 4)


def by_output_channel(kernel: int, inputs: int, filters: int, classes: int) -> int:
    groups, products = words(filters), kernel * kernel * inputs
    counter = 5 + math.ceil(((products + 4).bit_length() - 4) / 3) * 3
    parities = 1 + inputs % 2
    segments = math.ceil(kernel * words(inputs) / 7)
    lists = kernel * segments * (2 + 8 * min(7, kernel * words(inputs)))
    return (groups + 1) * counter + classes * groups * counter + parities * groups * (2 + 2 * counter) + lists


def pairs(kernel: int, inputs: int) -> int:
    return 11 * math.ceil(kernel * kernel * inputs / 4)


def scratch(model: cbin_nn.Model) -> list[int]:
    return [layer.scratch // 4 for layer in model.layers]


def test_sums_of_pixels_and_lanes(fixtures: Path) -> None:
    model = cbin_nn.convert(fixtures / "smallcifar.h5")
    assert scratch(model) == [
        sums(5, 3, 32),
        by_output_channel(5, 32, 32, 5),
        by_output_channel(5, 32, 64, 5),
        0,
    ]


def test_eight_bit_weights() -> None:
    model = cbin_nn.load("zoo:smallcifar")
    assert scratch(model) == [
        pairs(5, 3),
        by_output_channel(5, 32, 32, 5),
        by_output_channel(5, 32, 64, 5),
        0,
    ]


def test_depthwise_and_pointwise(fixtures: Path) -> None:
    model = cbin_nn.convert(fixtures / "frameworks" / "larq_depthwise.h5")
    assert [layer.operator for layer in model.layers][1:] == [
        "bbdepthwiseconv2d",
        "bbpointwiseconv2d",
        "bbqfc",
    ]
    # 40 channels are two words; 9 taps, rounded up, and 9 + 2 has four bits.
    counter = 4 + 2
    assert scratch(model)[1] == 12 + 2 * counter + 2 * 2 * (2 + 2 * counter)
    assert scratch(model)[3] == 0
