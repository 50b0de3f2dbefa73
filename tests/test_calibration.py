"""Affine quantization of real inputs: error bounds, an exact zero, and a converted network fed by it."""

from __future__ import annotations

from typing import Any

import cbin_nn
import numpy as np
import pytest
from cbin_nn.errors import InvalidArgument
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    centre=st.floats(-50, 50),
    spread=st.floats(1e-3, 1e3),
    per_channel=st.booleans(),
)
def test_data_come_back_within_half_a_step(
    seed: int, centre: float, spread: float, per_channel: bool
) -> None:
    rng = np.random.default_rng(seed)
    data = (centre + spread * rng.normal(size=(5, 4, 4, 3)) * rng.uniform(0.1, 1, 3)).astype(np.float32)
    quantization = cbin_nn.calibrate(data, per_channel=per_channel)
    assert len(quantization.scale) == (3 if per_channel else 1)
    error = np.abs(quantization.dequantize(quantization.quantize(data)) - data)
    step = np.asarray(quantization.scale)
    assert (error <= 0.5 * step + 1e-6 * np.abs(data).max()).all()
    wide = data.max(axis=(0, 1, 2)) - data.min(axis=(0, 1, 2)) if per_channel else np.ptp(data)
    np.testing.assert_allclose(step, wide / 254, rtol=1e-6)
    for zero in quantization.zero_point:
        if 0 <= zero <= 255:
            byte = np.full((1, len(step)), zero, np.uint8)
            assert (quantization.dequantize(byte) == 0).any()


def test_bytes_are_read_as_convert_reads_them() -> None:
    quantization = cbin_nn.calibrate(np.float32([-1, 3]), coverage=1)
    for q in (0, 17, 255):
        meant = quantization.scale[0] * q + quantization.offset[0]
        assert quantization.dequantize(np.full(1, q, np.uint8))[0] == pytest.approx(meant, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 4.0, -0.25])
def test_a_constant_keeps_its_value(value: float) -> None:
    data = np.full((2, 3, 3, 1), value, np.float32)
    quantization = cbin_nn.calibrate(data)
    np.testing.assert_allclose(quantization.dequantize(quantization.quantize(data)), data, rtol=1e-6)


def test_outliers_are_clipped_where_asked() -> None:
    data = np.random.default_rng(0).normal(size=(100, 10, 10, 1))
    data[0, 0, 0, 0] = 1000
    assert cbin_nn.calibrate(data).scale[0] > 3
    clipped = cbin_nn.calibrate(data, coverage=0.999)
    assert clipped.scale[0] < 0.05
    assert clipped.quantize(data).max() == 255


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": []}, r"`data` has shape \[0\]"),
        ({"data": ["a"]}, "expected numbers"),
        ({"data": [[1.0, np.inf]]}, r"not finite at \[0, 1\]"),
        ({"data": [1.0], "coverage": 0}, "`coverage` is 0"),
    ],
)
def test_bad_data_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        cbin_nn.calibrate(**arguments)


def test_bad_values_are_named() -> None:
    quantization = cbin_nn.calibrate(np.float32([[0, 1, 2], [1, 2, 5]]), per_channel=True)
    with pytest.raises(InvalidArgument, match=r"shape \[2\], expected \[..., 3\]"):
        quantization.quantize([0.0, 1.0])
    with pytest.raises(InvalidArgument, match=r"NaN at \[2\]"):
        quantization.quantize([0.0, 1.0, np.nan])


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_network_of_real_inputs_converts_and_agrees(per_channel: bool) -> None:
    """Real weights on real inputs of two ranges: bytes give the bits of the real sums, but for rounding."""
    rng = np.random.default_rng(1)
    scales = np.array([1.0, 20.0])
    data = (rng.normal(size=(200, 10, 10, 2)) * scales - [0, 40]).astype(np.float32)
    weights = rng.normal(size=(24, 3, 3, 2)) / scales
    network = {
        "input": (10, 10, 2),
        "layers": [
            {"type": "conv2d", "weights": weights, "padding": "same"},
            {"type": "batch_norm", "mean": rng.normal(size=24), "variance": np.ones(24), "epsilon": 1e-3},
            {"type": "sign"},
            {"type": "flatten"},
            {"type": "dense", "weights": rng.choice([-1, 1], (5, 10 * 10 * 24))},
        ],
    }
    quantization = cbin_nn.calibrate(data, per_channel=per_channel)
    meaning = {"input_scale": quantization.scale, "input_offset": quantization.offset}
    model = cbin_nn.convert(network, **meaning)
    images = quantization.quantize(data)
    check = cbin_nn.verify(model, network, images, engine="built-in", **meaning)
    assert check.exact and check.top1_agree == len(images)

    padded = np.pad(data.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    sums = np.einsum("nyxcij,oijc->nyxo", windows, weights)
    norm = network["layers"][1]
    bits = (sums - norm["mean"]) >= 0
    own = model.run(images, taps=True)[1][model.layers[0].name] > 0
    assert (bits != own).mean() < (0.01 if per_channel else 0.06)  # what rounding the inputs moves
