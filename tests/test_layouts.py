"""Which layout a layer's weights take, and that every choice gives the same bits."""

from __future__ import annotations

import cbin_nn
import numpy as np
import numpy.typing as npt
import pytest
from cbin_nn import _native
from cbin_nn.operators import BBPointwiseConv2D, LoweredModel, Pool, Rules, Window


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


def density_of(channels: int) -> npt.NDArray[np.float64]:
    """How often each channel is +1: mostly or mostly not."""
    return np.random.default_rng(1).choice([0.2, 0.8], channels)


def sample(density: npt.NDArray[np.float64]) -> bytes:
    """Nine packed inputs of the layer."""
    return cbin_nn.ops.pack(density - np.random.default_rng(4).random((9, 6, 8, len(density)))).tobytes()


#: From so many filters on, vertical counters are cheaper for one tap (`rust/kernels/src/layouts`).
FEWEST_POINTWISE_FILTERS = 32


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
@pytest.mark.parametrize(("channels", "filters"), [(40, 31), (40, 32), (7, 33), (64, 96)])
def test_a_wide_pointwise_convolution_counts_vertically(
    channels: int, filters: int, strides: tuple[int, int], pool: bool
) -> None:
    lowered = pointwise(channels, filters, strides, pool)
    plain = _native.Model.from_bytes(_native.build_model(lowered))
    chosen = _native.Model.from_bytes(_native.build_model(lowered, sample(density_of(channels))))
    ((old,), (new,)) = (plain.operators(), chosen.operators())
    assert (old.kind, old.weights_layout) == ("bbpointwiseconv2d", "canonical")
    if filters < FEWEST_POINTWISE_FILTERS:
        assert chosen.to_bytes() == plain.to_bytes()
        return
    assert (new.name, new.kind, new.weights_layout) == ("conv", "bbconv2d", "by-output-channel")
    assert new.fused_pool == old.fused_pool == pool
    bits = cbin_nn.ops.pack(np.random.default_rng(2).random((5, 6, 8, channels)) - 0.5)
    expected, got = (cbin_nn.Model(model).run(bits) for model in (plain, chosen))
    np.testing.assert_array_equal(got, expected)
    assert len(np.unique(expected)) > 1


def test_channels_that_are_mostly_plus_one_are_stored_inverted() -> None:
    density = density_of(40)
    data = _native.build_model(pointwise(40, 32, (1, 1), False), sample(density))
    mask, other = (
        cbin_nn.ops.pack(bits[None, None, None]).tobytes() for bits in (density - 0.5, 0.5 - density)
    )
    assert mask in data and other not in data
