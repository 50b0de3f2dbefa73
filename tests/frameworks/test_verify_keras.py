"""`verify` against live Keras: faulty readings, layers that are called several times, sources that change."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import cbin_nn
import numpy as np
import pytest
from cbin_nn.images import draw_images
from conftest import FIXTURES, require, shared_folder

NETWORKS = ("larq_2.h5", "larq_8.keras", "larq_21.h5", "larq_depthwise.h5")


@pytest.fixture(scope="module")
def tf() -> Any:
    found = all(importlib.util.find_spec(name) is not None for name in ("tensorflow", "larq", "h5py"))
    require("larq and tensorflow", found, "pip install larq tensorflow-cpu==2.15.1 h5py 'numpy<2'")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow

    tensorflow.get_logger().setLevel("ERROR")
    return tensorflow


def test_faulty_readings_are_found_by_keras(
    tf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sabotage import Hunt, hunt_readings

    hunt = Hunt()
    for name in NETWORKS:
        source = FIXTURES / "frameworks" / name
        images = np.load(source.with_suffix(".npz"))["images"]
        hunt_readings(source, images[:6], tmp_path, monkeypatch, "tensorflow", hunt, every=2)
    with capsys.disabled():
        print(f"\n{hunt.table('Keras, readings')}")
    assert not hunt.missed and hunt.found >= 50 and hunt.placed >= 0.9 * hunt.found


def sign_layers(tf: Any) -> tuple[Any, dict[str, Any]]:
    import larq

    return larq.layers, {"kernel_quantizer": "ste_sign", "use_bias": False}


def settle(tf: Any, model: Any, images: np.ndarray) -> None:
    """Statistics of every BatchNorm drawn, gammas of both signs."""
    rng = np.random.default_rng(3)
    for variable in model.weights:
        kind, shape = variable.name.split("/")[-1].split(":")[0], tuple(variable.shape)
        if kind == "gamma":
            variable.assign(rng.normal(size=shape).astype(np.float32))
        elif kind == "moving_mean":
            variable.assign(rng.normal(0, 9, shape).astype(np.float32))
        elif kind == "moving_variance":
            variable.assign(rng.uniform(20, 60, shape).astype(np.float32))


def shared(tf: Any) -> Any:
    """One BatchNorm and one convolution called three times, one of them in a model in a model."""
    layers, binary = sign_layers(tf)
    keras = tf.keras
    conv = layers.QuantConv2D(8, 3, padding="same", input_quantizer="ste_sign", name="conv", **binary)
    norm = keras.layers.BatchNormalization(name="norm")
    block = keras.Sequential([keras.Input((8, 8, 8)), conv, norm], name="block")
    outer = keras.Sequential([keras.Input((8, 8, 8)), block], name="outer")
    image = keras.Input((8, 8, 3))
    x = norm(layers.QuantConv2D(8, 3, padding="same", name="first", **binary)(image))
    x = norm(conv(x))
    x = outer(block(x))
    x = keras.layers.Flatten()(x)
    x = layers.QuantDense(5, input_quantizer="ste_sign", name="head", **binary)(x)
    return keras.Model(image, keras.layers.Softmax(name="closing")(x))


def test_a_layer_that_is_called_several_times_is_judged_call_by_call(tf: Any) -> None:
    model = shared(tf)
    images = draw_images(12, 8, 8, 1)
    settle(tf, model, images)
    before = [value.copy() for value in model.get_weights()]
    called = vars(tf.keras.layers.Layer)["__call__"]
    converted = cbin_nn.convert(model)
    check = cbin_nn.verify(converted, model, images, engine="framework")
    assert check.exact and not check.notes, str(check)
    assert [r.layer for r in check.reader].count("norm") == 4 and [r.layer for r in check.reader].count(
        "conv"
    ) == 6  # three times its input's signs and its sums
    assert check.logit_error is None and check.top1_agree == 12
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert vars(tf.keras.layers.Layer)["__call__"] is called
    assert model.trainable and model.get_layer("norm").trainable


def test_nothing_stays_patched_after_an_error(tf: Any) -> None:
    model = shared(tf)
    images = draw_images(2, 8, 8, 1)
    settle(tf, model, images)
    converted = cbin_nn.convert(model)
    called = vars(tf.keras.layers.Layer)["__call__"]

    class Broken(Exception):
        pass

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise Broken("half way")

    model.get_layer("norm").call = fail
    check = cbin_nn.verify(converted, model, images)
    assert check.engine == "built-in" and "half way" in check.unjudged and "own reading alone" in str(check)
    assert check.to_dict()["reader_judged_by"] is None
    assert vars(tf.keras.layers.Layer)["__call__"] is called


def test_a_source_that_depends_on_chance_is_not_called_exact(
    tf: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class that goes by the name of Dropout, and drops in evaluation too; the reader is kept from
    seeing it."""
    monkeypatch.setattr("cbin_nn.converters.keras.live.is_known", lambda name: False)
    layers, binary = sign_layers(tf)
    keras = tf.keras

    class Dropout(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return x * tf.cast(tf.random.uniform(tf.shape(x)) > 0.3, x.dtype)

    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.QuantConv2D(8, 3, name="first", **binary),
            keras.layers.BatchNormalization(name="norm"),
            Dropout(name="chance"),
            keras.layers.Flatten(),
            layers.QuantDense(5, input_quantizer="ste_sign", name="head", **binary),
        ]
    )
    images = draw_images(8, 8, 8, 1)
    settle(tf, model, images)
    check = cbin_nn.verify(cbin_nn.convert(model), model, images, engine="framework")
    assert not check.exact and check.verdict == "can't be judged"
    assert [region.layer for region in check.reader if not region.judged] == ["chance"]
    assert "when it is run again, first at layer 'chance'" in str(check)
    assert check.to_dict()["deterministic"] is False


@pytest.mark.parametrize("output", ["i8", "i16", "i32", "f32"])
def test_a_real_head_and_every_output_type(tf: Any, output: Any) -> None:
    """Approximated layers are within their stated bound; a wrong output scale is not."""
    layers, binary = sign_layers(tf)
    keras = tf.keras
    keras.utils.set_random_seed(7)
    model = keras.Sequential(
        [
            keras.Input((9, 9, 3)),
            keras.layers.Rescaling(1 / 127.5, offset=-1),
            keras.layers.Conv2D(12, 3, name="stem"),
            keras.layers.MaxPooling2D(),
            keras.layers.BatchNormalization(name="norm", momentum=0.5),
            keras.layers.Flatten(),
            layers.QuantDense(16, input_quantizer="ste_sign", name="hidden", **binary),
            keras.layers.BatchNormalization(name="norm_2"),
            layers.QuantDense(5, input_quantizer="ste_sign", name="head", activation="softmax"),
        ]
    )
    images = draw_images(16, 9, 9, 1)
    converted = cbin_nn.convert(model, output=output)
    check = cbin_nn.verify(converted, model, images, engine="framework")
    assert check.exact and any(layer.approximated for layer in check.layers), str(check)
    assert [region.tensor for region in check.conversion][-1] == "head"


def test_the_trial_of_a_layer_that_is_called_three_times(tf: Any) -> None:
    source = shared_folder() / "trials" / "K09.h5"
    require("the trials", source.is_file(), "set CBIN_NN_SHARED to the folder that holds trials")
    known = np.load(source.with_suffix(".npz"))
    check = cbin_nn.verify(cbin_nn.convert(source), source, known["images"], engine="framework")
    assert check.exact and check.first_differing is None and check.logit_error == 0
