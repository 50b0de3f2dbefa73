"""Larq's depthwise layers on real TensorFlow: every bit and logit of the converted network is its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cbin_nn
import numpy as np
import pytest
from cbin_nn.errors import ConversionError
from cbin_nn.images import draw_images
from conftest import require_modules


def network(quantizer: str | None, padding: str, pad_values: float, strides: int, multiplier: int = 1) -> Any:
    """Depthwise and pointwise layers in turn, as in MobileNet; BatchNorms with gammas of either sign."""
    import larq as lq
    import tensorflow as tf

    binary = {
        "input_quantizer": "ste_sign",
        "kernel_quantizer": "ste_sign",
        "kernel_constraint": "weight_clip",
    }
    depthwise = {"depthwise_quantizer": quantizer, "depthwise_constraint": "weight_clip"}
    model = tf.keras.Sequential(
        [
            tf.keras.layers.InputLayer((14, 14, 3)),
            lq.layers.QuantConv2D(
                40, 3, kernel_quantizer="ste_sign", kernel_constraint="weight_clip", use_bias=False
            ),
            tf.keras.layers.BatchNormalization(momentum=0),
            lq.layers.QuantDepthwiseConv2D(
                3,
                strides=strides,
                padding=padding,
                pad_values=pad_values,
                depth_multiplier=multiplier,
                input_quantizer="ste_sign",
                **depthwise,
            ),
            tf.keras.layers.PReLU(shared_axes=[1, 2]),
            tf.keras.layers.BatchNormalization(momentum=0),
            lq.layers.QuantConv2D(24, 1, use_bias=False, **binary),
            tf.keras.layers.MaxPooling2D(),
            tf.keras.layers.BatchNormalization(momentum=0),
            tf.keras.layers.Flatten(),
            lq.layers.QuantDense(10, use_bias=False, **binary),
        ]
    )
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if weight.name.split("/")[-1].split(":")[0] in ("gamma", "beta", "alpha", "bias"):
            weight.assign(0.3 * rng.normal(size=weight.shape))
    # Momentum 0: the moving statistics become those of these images.
    model(draw_images(100, 14, 14, seed=0).astype("float32"), training=True)
    return model


@pytest.fixture(autouse=True)
def larq() -> None:
    require_modules("larq", reason="make test-keras")


@pytest.mark.parametrize("quantizer", ["ste_sign", "magnitude_aware_sign"])
@pytest.mark.parametrize(
    ("padding", "pad_values", "strides"), [("same", 0.0, 1), ("same", 1.0, 2), ("valid", 0.0, 1)]
)
def test_every_bit_and_logit(
    tmp_path: Path, quantizer: str, padding: str, pad_values: float, strides: int
) -> None:
    model = network(quantizer, padding, pad_values, strides)
    images = draw_images(100, 14, 14, seed=1)
    for name in ("network.h5", "network.keras"):
        model.save(tmp_path / name)
        converted = cbin_nn.convert(tmp_path / name)
        operators = [layer.operator for layer in converted.layers]
        assert operators == ["qbconv2d", "bbdepthwiseconv2d", "bbpointwiseconv2d", "bbqfc"]
        check = cbin_nn.verify(converted, tmp_path / name, images)
        assert check.engine == "tensorflow" and check.exact and check.top1_agree >= 99
    live = cbin_nn.convert(model)
    np.testing.assert_array_equal(live.run(images), converted.run(images))
    assert len(np.unique(live.run(images), axis=0)) > 50  # The answers depend on the image.


def test_what_does_not_convert_is_named() -> None:
    with pytest.raises(ConversionError, match=r"quant_depthwise_conv2d.*depth_multiplier=2; only 1 converts"):
        cbin_nn.convert(network("ste_sign", "same", 0.0, 1, multiplier=2))
    with pytest.raises(ConversionError, match=r"quant_depthwise_conv2d.*its weights are real numbers"):
        cbin_nn.convert(network(None, "same", 0.0, 1))
