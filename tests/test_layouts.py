"""Which layout a layer's weights take, and that every choice gives the same bits."""

from __future__ import annotations

import cbin_nn
import numpy as np
import pytest
from cbin_nn import _native
from cbin_nn.layouts import FEWEST_POINTWISE_FILTERS, choose_layouts
from cbin_nn.operators import BBConv2D, BBPointwiseConv2D, LoweredModel, Pool, Rules, Window


def pointwise(channels: int, filters: int, strides: tuple[int, int], pool: bool) -> LoweredModel:
    """A layer with random signs and thresholds."""
    rng = np.random.default_rng(channels + filters)
    weights = np.where(rng.random((filters, 1, 1, channels)) < 0.5, -1, 1).astype(np.int8)
    lo = rng.integers(-9, 9, filters).astype(np.int32)
    rules = Rules(lo, np.full(filters, channels, np.int32), rng.random(filters) < 0.5)
    window = Window((1, 1), strides)
    halves = Pool(Window((2, 2), (2, 2))) if pool else None
    operator = BBPointwiseConv2D("conv", "x", "y", weights, window, rules, halves)
    return LoweredModel("layer", "x", (6, 8, channels), [operator], "y", input_dtype="bits")


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
@pytest.mark.parametrize(("channels", "filters"), [(40, 31), (40, 32), (7, 33), (64, 96)])
def test_a_wide_pointwise_convolution_counts_vertically(
    channels: int, filters: int, strides: tuple[int, int], pool: bool
) -> None:
    lowered = pointwise(channels, filters, strides, pool)
    density = np.random.default_rng(1).random(channels)
    chosen = choose_layouts(lowered, {"x": density})
    (before,), (after,) = lowered.operators, chosen.operators
    assert isinstance(before, BBPointwiseConv2D)
    if filters < FEWEST_POINTWISE_FILTERS:
        assert after is before
        return
    assert isinstance(after, BBConv2D) and after.name == "conv" and after.pool is before.pool
    assert after.lane_mask is not None
    np.testing.assert_array_equal(after.lane_mask, density > 0.5)
    bits = cbin_nn.ops.pack(np.random.default_rng(2).random((5, 6, 8, channels)) - 0.5)
    own, vertical = (
        cbin_nn.Model(_native.Model.from_bytes(_native.build_model(model))) for model in (lowered, chosen)
    )
    expected = own.run(bits)
    np.testing.assert_array_equal(vertical.run(bits), expected)
    assert len(np.unique(expected)) > 1
