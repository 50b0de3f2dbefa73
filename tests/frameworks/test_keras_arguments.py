"""The Keras reader, argument by argument: every one that a layer of its tables has, by Keras' own schema.

Each case (`keras_arguments`) is saved by Keras as `.h5` and as `.keras`. What the reader makes of it gives
Keras' answers, or is refused; that it converts and differs is the one thing that never happens.

A case is *strong* if Keras' outputs differ from those of the network without it: only such a case can tell
that an argument was passed over. `tests/fixtures/arguments/keras.zip` holds the cases for `make test`; this
test writes it where CBIN_NN_WRITE_FIXTURES=1.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import keras_arguments as arguments
import pytest
from arguments_replay import Store, outcome
from cbin_nn.converters import read_source
from cbin_nn.converters.keras import signatures as tables
from cbin_nn.errors import ConversionError
from conftest import FIXTURES, require

#: (layer or "*", argument or "*") of the reader's tables that Keras 2.15 can't set, with why.
EXCEPTIONS = {
    ("*", "batch_shape"): "Keras 3's name of batch_input_shape",
    ("*", "lora_alpha"): "Keras 3",
    ("*", "lora_rank"): "Keras 3",
    ("*", "quantization_config"): "Keras 3",
    ("ActivityRegularization", "activity_regularizer"): "Keras 3 writes it beside l1 and l2",
    ("BatchNormalizationV2", "*"): "the name of BatchNormalization in files of TensorFlow 1",
    ("InputLayer", "optional"): "Keras 3",
    ("InputLayer", "sparse"): "no layer that converts takes a sparse tensor, so Keras builds no such network",
    ("InputLayer", "trainable"): "Keras has none; files of converters do",
    ("LeakyReLU", "negative_slope"): "Keras 3's name of alpha",
    ("QuantConv2D", "dtype"): "does not run beside float32 layers; see test_convert_keras.py",
    ("QuantDense", "dtype"): "does not run beside float32 layers",
    ("QuantDepthwiseConv2D", "dtype"): "does not run beside float32 layers",
    ("Sign", "*"): "keras.ops.sign of Keras 3",
}
#: Of what is reached (measured with TensorFlow 2.15.1, larq 0.14).
LEAST = {"pairs": 335, "strong": 95, "right": 265, "refused": 95}


@pytest.fixture(scope="module")
def library() -> arguments.Library:
    found = all(importlib.util.find_spec(name) is not None for name in ("tensorflow", "larq", "h5py"))
    require("larq and tensorflow", found, "pip install larq tensorflow-cpu==2.15.1 h5py 'numpy<2'")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import larq
    import tensorflow

    tensorflow.get_logger().setLevel("ERROR")
    logging.getLogger("absl").setLevel(logging.ERROR)
    return arguments.Library(tensorflow, larq)


def known(layer: str, argument: str) -> bool:
    """Whether Keras 2.15 can't set an entry of the reader's tables."""
    return any((a, b) in EXCEPTIONS for a in (layer, "*") for b in (argument, "*"))


@pytest.mark.filterwarnings("ignore")
def test_every_argument_is_read_or_refused(
    library: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store()
    seen: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    wrong = []
    for saved in arguments.run(library, tmp_path):
        case = saved.case
        for path in saved.paths:
            about = f"{case.layer} {case.argument}={case.value} in {case.frame}, {path.suffix}"
            try:
                result = outcome(path, arguments.IMAGES, saved.answers)
            except AssertionError as error:
                wrong.append(f"{about}: {error}")
                continue
            kind = "refused" if result.startswith("refused") else result
            seen[case.layer, case.argument][kind] += 1
            seen[case.layer, case.argument]["strong"] += saved.strong
            if path.suffix == ".keras" and not saved.strong:
                continue  # the same architecture as in .h5, and no answer of its own
            store.add(
                path, saved.answers, layer=case.layer, argument=case.argument, value=case.value,
                frame=case.frame, strong=saved.strong, outcome=kind,
            )  # fmt: skip
    if os.environ.get("CBIN_NN_WRITE_FIXTURES") == "1":
        (FIXTURES / "arguments").mkdir(exist_ok=True)
        store.write(FIXTURES / "arguments" / "keras.zip")
    pairs = {pair for pair in seen if pair[1]}
    figures = {
        "pairs": len(pairs),
        "strong": sum(bool(seen[pair]["strong"]) for pair in pairs),
        "right": sum(bool(seen[pair]["right"] + seen[pair]["read"]) for pair in pairs),
        "refused": sum(bool(seen[pair]["refused"]) for pair in pairs),
    }
    total = sum((counter for counter in seen.values()), Counter())
    with capsys.disabled():
        print(
            f"\nKeras: {figures['pairs']} (layer, argument) pairs, {figures['strong']} of them with a value "
            f"that changes Keras' outputs; values that convert right: {figures['right']} pairs, that are "
            f"refused: {figures['refused']} pairs; {total['right']} files converted, {total['read']} read, "
            f"{total['refused']} refused, {len(wrong)} wrong"
        )
        for pair in sorted(pairs):
            print(f"  {pair[0]:24} {pair[1]:24} {dict(seen[pair])}")
    assert not wrong, "\n".join(wrong)
    entries = {
        (layer, argument)
        for table in (tables.LAYERS, tables.QUANTIZERS)
        for layer, signature in table.items()
        for argument in signature.names
    }
    missing = sorted(entry for entry in entries if entry not in pairs and not known(*entry))
    assert not missing, f"entries of the reader's tables that no case covers: {missing}"
    too_few = {name: value for name, value in figures.items() if value < LEAST[name]}
    assert not too_few, (too_few, figures)
    # What the tables call inert does not change Keras' outputs where it converts.
    inert = {
        (layer, argument)
        for layer, signature in tables.LAYERS.items()
        for argument in signature.inert
        if (layer, argument) in seen and seen[layer, argument]["right"] and seen[layer, argument]["strong"]
    }
    assert not inert, f"inert arguments that change Keras' outputs: {sorted(inert)}"


@pytest.mark.filterwarnings("ignore")
def test_classes_of_ones_own_are_refused_in_live_models(library: Any) -> None:
    """An `.h5` file says a class's name alone, so the model itself is asked."""
    refused = 0
    for case in arguments._models(library):
        if case.argument == "class" and not case.value.endswith("registered"):
            with pytest.raises(ConversionError, match=case.layer):
                read_source(case.build())
            refused += 1
    keras, layers = library.tf.keras, library.layers

    def relu(x: Any) -> Any:
        return -x

    image = layers.Input((6, 6, 6))
    model = keras.Model(image, layers.Dense(2)(layers.Flatten()(layers.Activation(relu)(image))))
    with pytest.raises(ConversionError, match="relu is from"):
        read_source(model)
    assert refused >= 5
