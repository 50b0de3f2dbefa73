"""Arguments of Keras layers without TensorFlow: answers that it gave, and what Keras 3 writes.

`tests/fixtures/arguments/keras.zip` is written by `tests/frameworks/test_keras_arguments.py` with
CBIN_NN_WRITE_FIXTURES=1. Keras 3 does not run beside Larq, so its arguments are set in the JSON of a file of
its own, `tests/fixtures/frameworks/keras3.*`; its keys are those of `get_config` in Keras 3.12 and 3.15.
"""

from __future__ import annotations

import copy
import io
import json
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arguments_replay import outcome, stored
from cbin_nn.converters import graph as g
from cbin_nn.converters import read_keras
from cbin_nn.converters.keras import signatures as tables
from cbin_nn.converters.keras.builder import Builder
from cbin_nn.converters.keras.weights import Weights
from cbin_nn.errors import ConversionError
from cbin_nn.images import draw_images

h5py = pytest.importorskip("h5py", reason="pip install 'cbin-nn[keras]'")

#: As in `tests/frameworks/keras_arguments.py`.
IMAGES = draw_images(10, 6, 6, seed=16, channels=6)
#: How a refusal names an argument where not by its own name.
SAID_AS = {
    "activation": "tested",  # and the argument of the activation
    "call mask": "mask",
    "call training": "training",
    "class": "its code is not in the file",
    "inputs": "constant",
}


def test_stored_answers_of_keras_are_given_or_refused(fixtures: Path, tmp_path: Path) -> None:
    kinds: Counter[str] = Counter()
    pairs = set()
    for case, path, answers in stored(fixtures / "arguments" / "keras.zip", tmp_path):
        about = f"{case['layer']} {case['argument']}={case['value']} in {case['frame']}, {path.suffix}"
        try:
            result = outcome(path, IMAGES, answers.astype(np.float64))
        except AssertionError as error:
            raise AssertionError(f"{about}: {error}") from error
        kind = result.split()[0].rstrip(":")
        assert (kind == "refused") == (case["outcome"] == "refused"), f"{about}: {result}"
        kinds[kind] += 1
        pairs.add((case["layer"], case["argument"]))
        signature = tables.LAYERS.get(case["layer"])
        # Not the argument's doing: it is inert, or the layer as such is refused.
        other = case["argument"] in signature.inert if signature else case["layer"] in tables.QUANTIZERS
        if result.startswith("refused by the reader") and not other:
            assert SAID_AS.get(case["argument"], case["argument"]) in result, f"{about}: {result}"
    assert len(pairs) > 335 and kinds["right"] > 600 and kinds["refused"] > 350, (len(pairs), kinds)


# -- Keras 3


def policy(kind: str, /, **settings: Any) -> dict[str, Any]:
    """A dtype policy as Keras 3 writes it."""
    module = "keras" if kind == "DTypePolicy" else "keras.dtype_policies"
    return {"module": module, "class_name": kind, "config": settings, "registered_name": None}


WEIGHTED = ("Conv2D", "Dense", "BatchNormalization")
EVERY = (*WEIGHTED, "InputLayer", "Rescaling", "MaxPooling2D", "Flatten")
NOTHING = None
#: (classes, key, value, what the refusal says besides the key, or NOTHING where the graph stays as it is).
CONFIGS: list[tuple[tuple[str, ...], str, Any, str | None]] = [
    (("Conv2D", "Dense"), "lora_rank", 4, "low-rank"),
    (("Conv2D", "Dense"), "lora_rank", None, NOTHING),
    (("Conv2D", "Dense"), "lora_alpha", 4, "low-rank"),
    (("Conv2D", "Dense"), "quantization_config", {"class_name": "Int8QuantizationConfig"}, "quantize"),
    (("Conv2D", "Dense"), "quantization_config", None, NOTHING),
    (("Conv2D", "Dense"), "kernel_initializer", "ones", NOTHING),
    (("Conv2D", "Dense"), "activity_regularizer", "l2", NOTHING),
    (("Conv2D",), "groups", 3, "groups"),
    (("BatchNormalization",), "synchronized", True, NOTHING),
    (("BatchNormalization",), "momentum", 0.5, NOTHING),
    (("BatchNormalization",), "renorm", True, "False"),
    (("BatchNormalization",), "renorm_clipping", {"rmax": 3}, NOTHING),
    (("BatchNormalization",), "renorm_momentum", 0.5, NOTHING),
    (("BatchNormalization",), "virtual_batch_size", 4, "None"),
    (("BatchNormalization",), "axis", 3, NOTHING),
    (("BatchNormalization",), "axis", [3], NOTHING),
    (("BatchNormalization",), "axis", 1, "channel axis"),
    (("BatchNormalization",), "axis", [-1, 1], "channel axis"),
    (("InputLayer",), "optional", True, "False"),
    (("InputLayer",), "sparse", True, "dense"),
    (("InputLayer",), "ragged", True, "one shape"),
    (("InputLayer",), "dtype", "uint8", NOTHING),
    (("InputLayer",), "dtype", "int8", "int8"),
    (("InputLayer",), "dtype", "bool", "bool"),
    (("MaxPooling2D", "Flatten", "Conv2D"), "data_format", "channels_first", "channels_last"),
    (EVERY, "trainable", False, NOTHING),
    (EVERY, "dtype", policy("DTypePolicy", name="float32"), NOTHING),
    (EVERY, "dtype", policy("DTypePolicy", name="mixed_float16"), "mixed_float16"),
    (EVERY, "dtype", policy("DTypePolicy", name="mixed_bfloat16"), "mixed_bfloat16"),
    (EVERY, "dtype", policy("QuantizedDTypePolicy", mode="int8", source_name="float32"), "int8"),
    (EVERY, "dtype", policy("QuantizedDTypePolicy", name="float32", mode="int8"), "int8"),
    (EVERY, "dtype", policy("QuantizedFloat8DTypePolicy", mode="float8", source_name="float32"), "float8"),
    (EVERY, "dtype", policy("GPTQDTypePolicy", mode="gptq/4/128", source_name="float32"), "gptq"),
    (EVERY, "dtype", policy("DTypePolicyMap", default_policy=None, policy_map={}), "DTypePolicyMap"),
    ((*EVERY, "Sign"), "unheard_of", 3, "does not know"),
    (("Sign",), "trainable", True, "its code is not in the file"),
]
#: (class, what a call's record becomes, what the refusal says or NOTHING).
CALLS: list[tuple[str, Callable[[dict[str, Any]], Any], str | None]] = [
    ("BatchNormalization", lambda node: node["kwargs"].update(training=True), "training=True"),
    ("BatchNormalization", lambda node: node["kwargs"].update(training=False), NOTHING),
    ("BatchNormalization", lambda node: node["kwargs"].update(mask=[True]), "mask=[True]"),
    ("BatchNormalization", lambda node: node["args"].append(True), "training=True"),
    ("BatchNormalization", lambda node: node["args"].extend([None, [1]]), "mask=[1]"),
    ("BatchNormalization", lambda node: node["args"].append(None), NOTHING),
    ("Dense", lambda node: node["args"].append(3.5), "argument 2=3.5"),
    ("Dense", lambda node: node["kwargs"].update(extra=1), "extra=1"),
    ("Sign", lambda node: node["kwargs"].update(y=1), "y=1"),
    ("Flatten", lambda node: node["args"].__setitem__(0, 1.5), "constant, 1.5"),
    ("Dense", lambda node: node.update(more=1), "connections"),
]
#: (class, what stands beside its configuration, what the refusal says or NOTHING).
ENTRIES: list[tuple[str, dict[str, Any], str | None]] = [
    ("Dense", {"module": "mylib.layers", "registered_name": "Dense"}, "the module 'mylib.layers'"),
    ("Dense", {"module": None, "registered_name": "Dense"}, "a script of your own"),
    ("Dense", {"module": "keras.layers", "registered_name": "Mine>Dense"}, "the package 'Mine'"),
    ("Dense", {"class_name": "Mine>Dense"}, "the package 'Mine'"),
    ("Sign", {"module": "mylib.ops", "registered_name": "Sign"}, "the module 'mylib.ops'"),
    ("Dense", {"shared_object_id": 7}, NOTHING),
    ("Dense", {"lora_config": {"rank": 2}}, "lora_config"),
]
#: Of the outermost model.
MODELS: list[tuple[dict[str, Any], dict[str, Any], str | None]] = [
    ({}, {"trainable": False}, NOTHING),
    ({}, {"dtype": policy("DTypePolicy", name="float32")}, NOTHING),
    ({}, {"dtype": policy("DTypePolicy", name="mixed_float16")}, "mixed_float16"),
    ({}, {"unheard_of": 1}, "unheard_of=1"),
    ({"quantization": "int8"}, {}, "quantization=int8"),
    ({"module": "mylib", "registered_name": "Mine>Functional"}, {}, "'Mine'"),
    ({"keras_version": "3.15.1", "compile_config": {}}, {}, NOTHING),
]


def rewritten(source: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """`source` with its architecture changed in place by `change`."""
    if source.suffix == ".h5":
        shutil.copy(source, target)
        with h5py.File(target, "r+") as file:
            model = json.loads(file.attrs["model_config"])
            change(model)
            file.attrs["model_config"] = json.dumps(model)
        return target
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    model = json.loads(members["config.json"])
    change(model)
    members["config.json"] = json.dumps(model).encode()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target


def entries(model: dict[str, Any], *classes: str) -> list[dict[str, Any]]:
    """The layers of these classes."""
    found = [layer for layer in model["config"]["layers"] if layer["class_name"] in classes]
    assert found, classes
    return found


def judged(path: Path, same_as: g.Graph, words: str | None, *names: str) -> None:
    """The file is read as the same graph, or refused with these words."""
    if words is NOTHING:
        graph = read_keras(path)
        assert not graph.problems, graph.problems
        assert len(graph.nodes) == len(same_as.nodes)
        for a, b in zip(graph.nodes, same_as.nodes, strict=True):
            assert type(a) is type(b)
            for name, value in vars(a).items():
                assert np.array_equal(value, getattr(b, name)), (a.name, name)
        return
    try:
        graph = read_keras(path)
        message = "; ".join(problem.message for problem in graph.problems)
    except ConversionError as error:
        message = error.message
    assert message, "it converts"
    for text in (words, *names):
        assert text in message, (text, message)


@pytest.mark.parametrize("suffix", ["h5", "keras"])
def test_arguments_of_keras_3(fixtures: Path, tmp_path: Path, suffix: str) -> None:
    source = fixtures / "frameworks" / f"keras3.{suffix}"
    target = tmp_path / f"changed.{suffix}"
    base = read_keras(source)
    count = 0
    for classes, key, value, words in CONFIGS:
        for class_name in classes:

            def change(
                model: dict[str, Any], name: str = class_name, key: str = key, value: Any = value
            ) -> None:
                entries(model, name)[0]["config"][key] = copy.deepcopy(value)

            said = () if words is NOTHING else (class_name,) if "code" in str(words) else (key, class_name)
            judged(rewritten(source, target, change), base, words, *said)
            count += 1
    for class_name, edit, words in CALLS:
        node = lambda model, name=class_name, edit=edit: edit(entries(model, name)[0]["inbound_nodes"][0])  # noqa: E731
        judged(rewritten(source, target, node), base, words)
        count += 1
    for class_name, more, words in ENTRIES:
        entry = lambda model, name=class_name, more=more: entries(model, name)[0].update(more)  # noqa: E731
        judged(rewritten(source, target, entry), base, words)
        count += 1
    for beside, inside, words in MODELS:

        def outermost(model: dict[str, Any], beside: Any = beside, inside: Any = inside) -> None:
            model.update(beside)
            model["config"].update(inside)

        judged(rewritten(source, target, outermost), base, words)
        count += 1
    assert count > 100


# -- variables


@pytest.mark.parametrize(
    "name", ["dense/dense/kernel_scale", "dense/dense/lora_kernel_a", "conv2d/other/kernel", "flatten/x"]
)
def test_variables_that_no_layer_takes_are_refused_in_hdf5(fixtures: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "more.h5"
    shutil.copy(fixtures / "frameworks" / "keras3.h5", path)
    layer, _, variable = name.partition("/")
    with h5py.File(path, "r+") as file:
        weights = file["model_weights"]
        layer = next(key for key in weights if key.startswith(layer))
        names = [*weights[layer].attrs["weight_names"], variable]
        weights[layer].attrs["weight_names"] = np.array([str(n) for n in names], h5py.string_dtype())
        weights[layer][variable] = np.zeros(3, np.float32)
    with pytest.raises(ConversionError) as caught:
        read_keras(path)
    assert caught.value.slug == "unsupported-weights" and variable in caught.value.message


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("layers/dense/vars/7", True),
        ("layers/dense/lora/vars/0", True),
        ("layers/flatten/vars/0", True),
        ("vars/0", True),
        ("layers/flatten/seed_generator/vars/0", False),
        ("optimizer/vars/0", False),
        ("metrics/mean/vars/0", False),
    ],
)
def test_variables_that_no_layer_takes_are_refused_in_archives(
    fixtures: Path, tmp_path: Path, name: str, refused: bool
) -> None:
    path = tmp_path / "more.keras"
    with zipfile.ZipFile(fixtures / "frameworks" / "keras3.keras") as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    weights = io.BytesIO(members["model.weights.h5"])
    with h5py.File(weights, "r+") as file:
        file[name] = np.zeros(3, np.float32)
    members["model.weights.h5"] = weights.getvalue()
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    if refused:
        with pytest.raises(ConversionError) as caught:
            graph = read_keras(path)
            raise ConversionError(graph.problems[0].slug, graph.problems[0].message)
        assert caught.value.slug == "unsupported-weights" and "weights" in caught.value.message
    else:
        assert not read_keras(path).problems


def test_tables_are_of_layers_that_the_reader_handles() -> None:
    handled = set(Builder(Weights()).handlers)
    assert handled <= set(tables.LAYERS)
    assert set(tables.LAYERS) == handled | tables.DROPOUTS | tables.SIGN_LAYERS | {"InputLayer"}
