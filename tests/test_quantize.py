"""Real weights as integers: the bound holds, also for filters that leave a scale nothing to hold on to."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from cbin_nn.converters.quantize import quantize_weights

#: Filters of zeros, of denormal float32 values, of magnitudes far apart, of one magnitude.
VALUES = ([0.0], [1e-45], [1.0, -1e-45], [1e-30, 1e-44], [3e38, -3e38, 1e-40], [0.25, -0.5, 0.75], [-7.0])


@pytest.mark.parametrize("most", [127, 32767])
@pytest.mark.parametrize("groups", [0, 3])
def test_no_filter_makes_a_warning_and_the_bound_holds(most: int, groups: int) -> None:
    rng = np.random.default_rng(5)
    rows = np.zeros((len(VALUES) + 2, 27))
    for row, values in zip(rows, VALUES, strict=False):
        row[: len(values)] = values
    rows[-2:] = rng.normal(size=(2, 27))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = quantize_weights(rows, groups, most)
    assert np.all(np.isfinite(found.scale)) and np.all(found.scale > 0)
    assert np.abs(found.weights.astype(np.int64)).max() <= most
    inputs = rng.uniform(-1, 1, (50, 27))
    error = np.abs(inputs @ rows.T - (inputs @ found.weights.T.astype(np.float64)) * found.scale)
    bound = found.bound(np.ones(27))
    assert np.all(error <= bound * (1 + 1e-9) + 1e-12 * np.abs(rows).sum(axis=1))
    assert not bound[0] and not found.weights[0].any()
