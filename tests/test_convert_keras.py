"""Keras files: samples with the framework's own answers, generated variants of a small model, and hostile
files."""

from __future__ import annotations

import copy
import io
import json
import random
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cbin_nn.converters import graph as g
from cbin_nn.converters import lower, lower_file, read_keras
from cbin_nn.converters.lower import simplest_fraction
from cbin_nn.converters.weights import same_padding
from cbin_nn.errors import ConversionError, InvalidArgument
from cbin_nn.images import draw_images
from cbin_nn.operators import BBQFC, BBConv2D, BMaxPool2D, QBConv2D, Window

h5py = pytest.importorskip("h5py", reason="pip install 'cbin-nn[keras]'")

import lowered_reference as reference  # noqa: E402
import make_fixture as fixture  # noqa: E402
import oracle  # noqa: E402


def compare_bits(graph: g.Graph, images: np.ndarray, **options: Any) -> int:
    """Asserts that lowering agrees with the oracle on every sign and logit; returns the number of bits
    compared."""
    model, _ = lower(graph, **options)
    tensors = reference.run(model, images)
    truth = oracle.evaluate(graph, images)
    made = {}  # sign tensors in order are the outputs of the last operator before each binary layer
    for operator in model.operators[1:]:
        if not isinstance(operator, BMaxPool2D):
            made[operator.input] = tensors[operator.input]
    compared, certain = 0, True
    snapped = any(isinstance(node, g.Rescaling) and node.scale % 1 for node in graph.nodes)
    for got, expected, margin in zip(
        made.values(), truth.signs.values(), truth.margins.values(), strict=True
    ):
        # Float64 can't decide exact ties through square roots; there the rule is right by test_rules. Where
        # offset/scale was snapped to a fraction, the source itself is known to float32 rounding only.
        sure = np.abs(margin) > (1e-5 * max(1.0, np.abs(margin).max()) if snapped and not compared else 1e-9)
        if not certain:
            break  # a tie upstream may have gone the other way
        assert np.array_equal(got.reshape(len(images), -1)[sure.reshape(len(images), -1)], expected[sure])
        compared += int(sure.sum())
        certain = bool(np.array_equal(got.reshape(expected.shape), expected))
    head = model.operators[-1]
    assert isinstance(head, BBQFC)
    z = head.requantization
    features = head.weights.shape[1]
    bound = z.scale * (0.5 + (features + 1) * 2.0 ** -(z.shift + 1))
    if certain:
        error = np.abs(tensors[model.output] * z.scale - truth.logits)
        assert error.max() <= bound + 1e-9 * np.abs(truth.logits).max()
    return compared


# -- samples


@pytest.mark.parametrize("suffix", ["h5", "keras"])
@pytest.mark.parametrize("name", ["smallcifar", "smallcifar_prelu"])
def test_samples_agree_with_keras(samples: Path, name: str, suffix: str) -> None:
    with np.load(samples / f"{name}_ref.npz") as data:
        images, expected = data["X"], data["Y"]
    for fuse in (True, False):
        model, report = lower_file(samples / f"{name}.{suffix}", fuse=fuse)
        logits = reference.logits(model, images)
        assert (logits.argmax(axis=1) == expected.argmax(axis=1)).sum() == len(images) == 256
        power = np.exp(logits - logits.max(axis=1, keepdims=True))
        assert np.abs(power / power.sum(axis=1, keepdims=True) - expected).max() < 1e-4
        kinds = [operator.kind for operator in model.operators]
        assert kinds == (
            ["qbconv2d", "bbconv2d", "bbconv2d", "bbqfc"]
            if fuse
            else ["qbconv2d", "bmaxpool2d", "bbconv2d", "bmaxpool2d", "bbconv2d", "bmaxpool2d", "bbqfc"]
        )
        assert len(report.operators) == len(model.operators)
    assert any("softmax" in note for note in model.notes)


@pytest.mark.parametrize("name", ["smallcifar", "smallcifar_prelu"])
def test_samples_bit_for_bit(samples: Path, name: str) -> None:
    with np.load(samples / f"{name}_ref.npz") as data:
        images = data["X"][:24]
    assert compare_bits(read_keras(samples / f"{name}.h5"), images) > 100_000


# -- fixtures


@pytest.mark.parametrize("file", ["tiny.h5", "tiny.keras", "smallcifar.h5"])
def test_fixtures(fixtures: Path, file: str) -> None:
    stem = file.split(".")[0]
    images = (
        np.load(fixtures / "tiny_images.npy") if stem == "tiny" else draw_images(100, 32, 32, fixture.SEED)
    )
    with np.load(fixtures / f"{stem}_predictions.npz") as data:
        expected, argmax = data["logits"], data["argmax"]
    model, report = lower_file(fixtures / file)
    logits = reference.logits(model, images)
    assert np.array_equal(logits.argmax(axis=1), argmax)
    assert np.abs(logits - expected).max() < 1e-6
    assert compare_bits(read_keras(fixtures / file), images[:20]) > 0
    table = str(report)
    assert all(operator.name in table for operator in model.operators)
    assert json.loads(json.dumps(report.to_dict()))["operators"][0]["kind"] == "qbconv2d"


def test_both_containers_give_the_same_model(fixtures: Path) -> None:
    first, second = (lower_file(fixtures / f"tiny.{suffix}")[0] for suffix in ("h5", "keras"))
    for a, b in zip(first.operators, second.operators, strict=True):
        assert np.array_equal(a.weights, b.weights)  # type: ignore[union-attr]
        if not isinstance(a, BBQFC):
            assert np.array_equal(a.rules.lo, b.rules.lo) and np.array_equal(a.rules.flip, b.rules.flip)  # type: ignore[union-attr]
    assert any(getattr(op, "pool", None) is not None and op.pool.veto is not None for op in first.operators)  # type: ignore[union-attr]


def test_fixture_images_and_script_agree(fixtures: Path) -> None:
    assert np.array_equal(np.load(fixtures / "tiny_images.npy"), draw_images(100, 12, 12, fixture.SEED))
    assert (fixtures / "smallcifar.h5").stat().st_size < 200_000


def test_fixture_files_are_what_the_script_writes(fixtures: Path, tmp_path: Path) -> None:
    config, weights = fixture.tiny()
    fixture.write_hdf5(tmp_path / "tiny.h5", config, weights)
    fixture.write_archive(tmp_path / "tiny.keras", config, weights)
    for suffix in ("h5", "keras"):
        fresh, kept = (read_keras(folder / f"tiny.{suffix}") for folder in (tmp_path, fixtures))
        for a, b in zip(fresh.nodes, kept.nodes, strict=True):
            assert a.name == b.name
            for field, value in vars(a).items():
                if isinstance(value, np.ndarray):
                    assert np.array_equal(value, getattr(b, field))


# -- generated graphs


def random_graph(rng: random.Random) -> g.Graph:
    """A random chain: any order of PReLU, BatchNorm, bias, pool after each binary layer."""
    floats = np.random.default_rng(rng.randrange(2**32))
    nodes: list[g.Node] = []
    side, channels = rng.choice([6, 7, 9]), rng.choice([1, 3])
    shape: tuple[int, ...] = (side, side, channels)

    def add(node_class: Any, **fields: Any) -> None:
        nonlocal shape
        name = f"n{len(nodes)}"
        node = node_class(name, name, (nodes[-1].name,) if nodes else (), **fields)
        shape = node.output_shape((shape,))
        nodes.append(node)

    def chain(count: int, real: bool, allow_pool: bool) -> None:
        pools = 0
        bends = 0
        for _ in range(count):
            c = shape[-1]
            kind = rng.choice(["bn", "bn", "prelu", "bias", "pool", "clip", "drop"])
            element = len(shape) == 3 and rng.random() < 0.3
            if kind == "bn":
                scale = 255.0 if real else 3.0
                gamma = floats.normal(size=c) * (floats.random(c) > 0.1)
                add(
                    g.BatchNorm,
                    gamma=gamma.astype(np.float32),
                    beta=(0.3 * floats.normal(size=c)).astype(np.float32),
                    mean=(scale * floats.normal(size=c)).astype(np.float32),
                    variance=(scale**2 * floats.uniform(0.3, 3, c)).astype(np.float32),
                )
                real = False
            elif kind == "prelu" and not bends:
                alpha = floats.normal(size=shape if element else c).astype(np.float32)
                add(g.PReLU, alpha=alpha)
                bends += 1
            elif kind == "clip" and not bends:
                add(g.Clip, low=rng.choice([None, 0.0, -1.0]), high=rng.choice([None, 1.0, 6.0]))
            elif kind == "bias":
                add(g.Bias, values=floats.normal(size=c).astype(np.float32))
            elif kind == "pool" and allow_pool and not pools and len(shape) == 3 and min(shape[:2]) >= 3:
                size, stride = rng.choice([(2, 2), (3, 2), (2, 1)])
                padding = (0, 0, 1, 1) if rng.random() < 0.3 else (0, 0, 0, 0)
                add(g.MaxPool2D, window=Window((size, size), (stride, stride), (1, 1), padding))
                pools += 1
            elif kind == "drop":
                add(g.Identity)

    def signs(*size: int) -> np.ndarray:
        return floats.choice([-1.0, 1.0], size).astype(np.float32)

    add(g.Input, shape=shape)
    if rng.random() < 0.4:
        add(g.Rescaling, scale=float(np.float32(1 / 127.5)), offset=-1.0)
    for layer in range(2):
        if layer:
            add(g.Sign)
        kernel, stride = rng.choice([1, 3] if min(shape[:2]) >= 3 else [1]), rng.choice([1, 1, 2])
        top, bottom = same_padding(shape[0], kernel, stride, 1) if rng.random() < 0.6 else (0, 0)
        window = Window((kernel, kernel), (stride, stride), (1, 1), (top, top, bottom, bottom))
        filters = rng.choice([3, 8, 33])
        scale = floats.uniform(0.1, 2, filters).astype(np.float32) if rng.random() < 0.3 else None
        pad = float(layer and rng.random() < 0.3)
        add(
            g.Conv2D,
            kernel=signs(kernel, kernel, shape[2], filters),
            window=window,
            scale=scale,
            pad_value=pad,
        )
        chain(rng.randint(0, 4), real=layer == 0, allow_pool=True)
    if rng.random() < 0.5:
        add(g.Flatten)
        chain(rng.randint(0, 1), False, False)
        add(g.Sign)
    else:
        add(g.Sign)
        add(g.Flatten)
    if rng.random() < 0.5:
        add(g.Dense, kernel=signs(shape[0], 17))
        chain(rng.randint(0, 2), False, False)
        add(g.Sign)
    add(g.Dense, kernel=signs(shape[0], 5))
    if rng.random() < 0.5:
        add(g.PReLU, alpha=floats.normal(size=5).astype(np.float32))
    if rng.random() < 0.5:
        add(g.Bias, values=floats.normal(size=5).astype(np.float32))
    return g.Graph("random", nodes, nodes[-1].name)


def test_random_graphs_bit_for_bit() -> None:
    rng = random.Random(77)
    compared, refused, seen = 0, 0, set()
    for _ in range(150):
        graph = random_graph(rng)
        _, height, width, channels = 0, *graph.nodes[0].shape  # type: ignore[attr-defined]
        images = draw_images(6, height, width, rng.randrange(1000), channels=channels)
        try:
            compared += compare_bits(graph, images)
            compare_bits(graph, images, fuse=False, output=rng.choice(["i8", "i16", "i32", "f32"]))
        except ConversionError as error:
            assert error.slug in ("too-many-intervals", "unsupported-layer"), error
            refused += 1
            continue
        model, _ = lower(graph)
        for operator in model.operators:
            if isinstance(operator, (QBConv2D, BBConv2D)):
                pool = operator.pool
                seen.add(
                    (
                        operator.rules.grid,
                        pool is not None,
                        bool(pool and pool.veto),
                        bool(pool and pool.invert is not None),
                    )
                )
    assert compared > 100_000 and refused < 75
    assert {grid for grid, *_ in seen} == {"channel", "conv", "output"}
    assert any(veto for _, _, veto, _ in seen) and any(invert for *_, invert in seen)


# -- variants of one file


def write(tmp_path: Path, config: dict[str, Any], weights: fixture.Weights) -> Path:
    path = tmp_path / "model.h5"
    fixture.write_hdf5(path, config, weights)
    return path


def edit(config: dict[str, Any], name: str, **changes: Any) -> dict[str, Any]:
    config = copy.deepcopy(config)
    for layer in config["layers"]:
        if layer["config"]["name"] == name:
            layer["config"].update(changes)
            return config
    raise KeyError(name)


@pytest.mark.parametrize(
    ("name", "changes", "slug", "words"),
    [
        ("conv_2", {"data_format": "channels_first"}, "unsupported-option", "channels_first"),
        ("conv_2", {"groups": 2}, "unsupported-option", "groups"),
        ("conv_2", {"pad_values": -1.0}, "unsupported-option", "pad_values"),
        ("conv_1", {"pad_values": 1.0}, "unsupported-option", "pad_values"),
        ("conv_2", {"kernel_quantizer": "dorefa_quantizer"}, "unsupported-quantizer", "dorefa"),
        ("conv_2", {"kernel_quantizer": None}, "unsupported-layer", "real numbers"),
        (
            "conv_2",
            {"input_quantizer": {"class_name": "SteTern", "config": {}}},
            "unsupported-quantizer",
            "SteTern",
        ),
        ("conv_2", {"input_quantizer": None}, "unsupported-layer", "not binary"),
        ("conv_1", {"input_quantizer": "ste_sign"}, "unsupported-layer", "one channel"),
        ("conv_2", {"activation": "tanh"}, "unsupported-activation", "tanh"),
        ("conv_2", {"kernel_size": [3, 0]}, "damaged-file", "kernel_size"),
        ("conv_2", {"kernel_size": [5, 5]}, "shape-mismatch", "shape"),
        ("conv_2", {"filters": 10**15}, "damaged-file", "filters"),
        ("conv_2", {"padding": "causal"}, "unsupported-option", "causal"),
        ("conv_2", {"strides": [2, 2], "dilation_rate": [2, 2]}, "unsupported-option", "dilation_rate"),
        ("norm_1", {"axis": [1]}, "unsupported-option", "axis"),
        ("norm_1", {"epsilon": "small"}, "damaged-file", "epsilon"),
        ("norm_1", {"epsilon": -1e9}, "bad-variance", "variance"),
        ("prelu_1", {"shared_axes": [7]}, "unsupported-option", "shared_axes"),
        ("pool_1", {"pool_size": [99, 99]}, "shape-mismatch", "pool"),
        ("softmax", {"activation": "sigmoid"}, "unsupported-activation", "sigmoid"),
        ("conv_1", {"dtype": "mixed_float16"}, "unsupported-option", "mixed_float16"),
    ],
)
def test_unsupported_options_name_layer_and_option(
    tmp_path: Path, name: str, changes: dict[str, Any], slug: str, words: str
) -> None:
    config, weights = fixture.tiny()
    path = write(tmp_path, edit(config, name, **changes), weights)
    with pytest.raises(ConversionError) as caught:
        lower_file(path)
    message = str(caught.value)
    assert caught.value.slug == slug, message
    assert name in message and words in message and str(path) in message and "\n" not in message


@pytest.mark.parametrize(
    "class_name",
    [
        "GlobalAveragePooling2D",
        "QuantSeparableConv2D",
        "LSTM",
        "Lambda",
    ],
)
def test_unsupported_layers(tmp_path: Path, class_name: str) -> None:
    config, weights = fixture.tiny()
    config["layers"][4]["class_name"] = class_name
    path = write(tmp_path, config, weights)
    with pytest.raises(ConversionError, match="pool_1") as caught:
        lower_file(path)
    assert caught.value.slug == "unsupported-layer" and class_name in str(caught.value)


def test_spellings_that_mean_the_same(tmp_path: Path) -> None:
    """Strings, old records without a module, registered names, ApproxSign, and latent weights stored as
    signs."""
    config, weights = fixture.tiny()
    plain = lower_file(write(tmp_path, config, weights))[0]
    images = draw_images(20, 12, 12, 1)
    expected = reference.logits(plain, images)
    signs = [
        (
            layer,
            {
                k: np.where(v >= 0, 1, -1).astype(np.float32) if k == "kernel" else v
                for k, v in arrays.items()
            },
        )
        for layer, arrays in weights
    ]
    for spelling in (
        "ste_sign",
        "approx_sign",
        "Larq>SteSign",
        {"class_name": "SwishSign", "config": {"beta": 5.0}},
    ):
        for stored in (weights, signs):
            changed = edit(config, "conv_2", kernel_quantizer=spelling, input_quantizer=spelling)
            model = lower_file(write(tmp_path, changed, stored))[0]
            assert np.array_equal(reference.logits(model, images), expected)
    unquantized = edit(config, "conv_2", kernel_quantizer=None)  # stored as +-1: binary all the same
    assert np.array_equal(
        reference.logits(lower_file(write(tmp_path, unquantized, signs))[0], images), expected
    )


def test_magnitude_aware_sign_scales_each_channel(tmp_path: Path) -> None:
    config, weights = fixture.tiny()
    path = write(tmp_path, edit(config, "conv_2", kernel_quantizer="magnitude_aware_sign"), weights)
    graph = read_keras(path)
    node = next(n for n in graph.nodes if n.name == "conv_2")
    assert isinstance(node, g.Conv2D) and node.scale is not None
    kernel = dict(weights)["conv_2"]["kernel"]
    assert np.allclose(node.scale, np.abs(kernel).mean(axis=(0, 1, 2)), rtol=1e-6)
    assert compare_bits(graph, draw_images(10, 12, 12, 3)) > 0


def test_per_element_prelu(tmp_path: Path) -> None:
    """Keras' default PReLU has a slope a pixel: before the pool, after it, and on both sides."""
    rng = np.random.default_rng(8)
    config, weights = fixture.tiny()
    for places in (["prelu_1"], ["prelu_2"], ["prelu_1", "prelu_2"]):
        changed, arrays = config, dict(weights)
        for place, shape in (("prelu_1", (12, 12, 16)), ("prelu_2", (3, 3, 40))):
            if place in places:
                changed = edit(changed, place, shared_axes=None)
                arrays[place] = {"alpha": rng.uniform(-1, 1, shape).astype(np.float32)}
        graph = read_keras(write(tmp_path, changed, list(arrays.items())))
        assert compare_bits(graph, draw_images(10, 12, 12, 5)) > 0
    partial = edit(config, "prelu_1", shared_axes=[1])
    arrays = {**dict(weights), "prelu_1": {"alpha": rng.uniform(-1, 1, (1, 12, 16)).astype(np.float32)}}
    assert (
        compare_bits(read_keras(write(tmp_path, partial, list(arrays.items()))), draw_images(4, 12, 12, 5))
        > 0
    )


def functional(config: dict[str, Any]) -> dict[str, Any]:
    layers = copy.deepcopy(config["layers"])
    for i, layer in enumerate(layers):
        layer["name"] = layer["config"]["name"]
        layer["inbound_nodes"] = [[[layers[i - 1]["config"]["name"], 0, 0, {}]]] if i else []
    return {
        "name": "chain",
        "layers": layers,
        "input_layers": [[layers[0]["name"], 0, 0]],
        "output_layers": [[layers[-1]["name"], 0, 0]],
    }


def set_model(path: Path, model: Any) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = model if isinstance(model, (str, bytes)) else json.dumps(model)


def test_a_functional_chain_converts_and_a_branch_does_not(tmp_path: Path) -> None:
    config, weights = fixture.tiny()
    path = write(tmp_path, config, weights)
    images = draw_images(10, 12, 12, 4)
    expected = reference.logits(lower_file(path)[0], images)
    chain = functional(config)
    chain["layers"] = [chain["layers"][0], *reversed(chain["layers"][1:])]  # order in the file is no promise
    set_model(path, {"class_name": "Functional", "config": chain})
    assert np.array_equal(reference.logits(lower_file(path)[0], images), expected)
    branch = functional(config)
    branch["layers"][5]["inbound_nodes"] = [[["pool_1", 0, 0, {}], ["norm_1", 0, 0, {}]]]
    set_model(path, {"class_name": "Functional", "config": branch})
    with pytest.raises(ConversionError, match="conv_2") as caught:
        lower_file(path)
    assert caught.value.slug == "unsupported-layer"


def keras_3_nodes(config: dict[str, Any]) -> dict[str, Any]:
    """The connections of a Functional config as Keras 3 writes them."""

    def tensor(call: list[Any]) -> dict[str, Any]:
        return {"class_name": "__keras_tensor__", "config": {"shape": [None], "keras_history": call[:3]}}

    for layer in config["layers"]:
        layer["inbound_nodes"] = [
            {"args": [tensor(call) for call in node], "kwargs": {}} for node in layer["inbound_nodes"]
        ]
    return config


def test_connections_of_keras_3(tmp_path: Path) -> None:
    config, weights = fixture.tiny()
    path = write(tmp_path, config, weights)
    images = draw_images(10, 12, 12, 4)
    expected = reference.logits(lower_file(path)[0], images)
    for layer in config["layers"]:
        layer["config"]["dtype"] = {
            "module": "keras",
            "class_name": "DTypePolicy",
            "config": {"name": "float32"},
        }
    set_model(path, {"class_name": "Functional", "config": keras_3_nodes(functional(config))})
    assert np.array_equal(reference.logits(lower_file(path)[0], images), expected)


def test_circles_and_deep_nests_are_refused(tmp_path: Path) -> None:
    config, weights = fixture.tiny()
    path = write(tmp_path, config, weights)
    circle = functional(config)
    circle["layers"][1]["inbound_nodes"] = [[["pool_1", 0, 0, {}]]]
    set_model(path, {"class_name": "Functional", "config": circle})
    with pytest.raises(ConversionError, match="circle"):
        lower_file(path)
    deep: dict[str, Any] = {"class_name": "Sequential", "config": fixture.tiny()[0]}
    for i in range(40):
        deep = {"class_name": "Sequential", "config": {"name": f"m{i}", "layers": [deep]}}
    set_model(path, deep)
    with pytest.raises(ConversionError, match="nested too deeply"):
        lower_file(path)
    nodes: Any = ["conv_1", 0, 0, {}]
    for _ in range(50):
        nodes = [nodes]
    tangled = functional(fixture.tiny()[0])
    tangled["layers"][2]["inbound_nodes"] = [nodes]
    set_model(path, {"class_name": "Functional", "config": tangled})
    with pytest.raises(ConversionError, match="nested too deeply"):
        lower_file(path)


def test_one_error_lists_all_that_is_unsupported(tmp_path: Path) -> None:
    config, weights = fixture.tiny()
    config["layers"][4]["class_name"] = "LSTM"
    for layer in config["layers"]:
        if layer["config"]["name"] == "dense":
            layer["config"]["kernel_quantizer"] = "dorefa_quantizer"
        if layer["config"]["name"] == "softmax":
            layer["class_name"] = "Lambda"
    with pytest.raises(ConversionError) as caught:
        lower_file(write(tmp_path, config, weights))
    message = str(caught.value)
    assert message.count("layer '") == 3 and message.count("\n") <= 4
    assert all(word in message for word in ("LSTM", "dorefa_quantizer", "Lambda", "never run", "3 things"))


def test_conversion_is_quick(fixtures: Path) -> None:
    """A network as large as SmallCifar under a second, 5 million weights under twenty."""
    lower_file(fixtures / "tiny.h5")
    start = time.process_time()
    lower_file(fixtures / "smallcifar.h5")
    assert time.process_time() - start < 1
    rng, layers, channels = np.random.default_rng(0), list[dict[str, Any]](), 3
    for out, size in ((128, 1), (128, 2), (256, 1), (256, 2), (512, 1), (512, 2)):
        layers.append({"type": "conv2d", "weights": rng.choice([-1, 1], (out, 3, 3, channels)), "padding": 1})
        layers.append({"type": "prelu", "slope": rng.normal(size=out)})
        if size > 1:
            layers.append({"type": "max_pool2d", "size": size})
        mean, variance = 30 * rng.normal(size=out), 900 * rng.uniform(0.5, 2, out)
        norm = {"gamma": rng.normal(size=out), "beta": rng.normal(size=out), "epsilon": 1e-3}
        layers += [{"type": "batch_norm", "mean": mean, "variance": variance, **norm}, {"type": "sign"}]
        channels = out
    layers += [{"type": "flatten"}, {"type": "dense", "weights": rng.choice([-1, 1], (70, 8192))}]
    assert sum(np.size(layer["weights"]) for layer in layers if "weights" in layer) > 5_000_000
    start = time.process_time()
    lower_file({"input": (32, 32, 3), "layers": layers})
    assert time.process_time() - start < 20


def test_tensorflow_2_12_archives_count_by_two(fixtures: Path, tmp_path: Path) -> None:
    path = tmp_path / "old.keras"
    with zipfile.ZipFile(fixtures / "tiny.keras") as source, zipfile.ZipFile(path, "w") as target:
        old, new = h5py.File(io.BytesIO(source.read("model.weights.h5")), "r"), io.BytesIO()
        with h5py.File(new, "w") as file:
            for key in old["layers"]:
                stem, _, number = key.rpartition("_")
                renamed = f"{stem}_{2 * int(number)}" if number.isdigit() else key
                old.copy(old["layers"][key], file.require_group("_layer_checkpoint_dependencies"), renamed)
        target.writestr("config.json", source.read("config.json"))
        target.writestr("model.weights.h5", new.getvalue())
    images = np.load(fixtures / "tiny_images.npy")[:10]
    assert np.array_equal(
        reference.logits(lower_file(path)[0], images),
        reference.logits(lower_file(fixtures / "tiny.h5")[0], images),
    )


def test_suffix_does_not_matter(fixtures: Path, tmp_path: Path) -> None:
    for file, disguise in (("tiny.h5", "a.keras"), ("tiny.keras", "b.h5")):
        (tmp_path / disguise).write_bytes((fixtures / file).read_bytes())
        assert lower_file(tmp_path / disguise)[0].name == "tiny"


# -- input scale and output types


def test_input_scale(fixtures: Path) -> None:
    model, _ = lower_file(fixtures / "tiny.h5", input_scale=1 / 127.5, input_offset=-1)
    first = model.operators[0]
    assert isinstance(first, QBConv2D) and (first.input_mul, first.input_add) == (2, -255)
    graph = read_keras(fixtures / "tiny.h5")
    nodes = [
        graph.nodes[0],
        g.Rescaling("r", "r", (graph.nodes[0].name,), float(np.float32(1 / 127.5)), -1.0),
    ]
    nodes += [
        type(n)(**{**vars(n), "inputs": ("r",)}) if i == 1 else n for i, n in enumerate(graph.nodes) if i
    ]
    assert compare_bits(g.Graph("scaled", nodes, graph.output), draw_images(10, 12, 12, 2)) > 0
    with pytest.raises(InvalidArgument, match="input_scale: 2 values for an image of 3 channels"):
        lower_file(fixtures / "tiny.h5", input_scale=[1, 2])
    with pytest.raises(ConversionError, match="do not fit 32 bits"):
        lower_file(fixtures / "tiny.h5", input_scale=1e-9, input_offset=1)
    with pytest.raises(ConversionError, match="scale is 0"):
        lower_file(fixtures / "tiny.h5", input_scale=0)
    for bad in ("x", float("nan"), object()):
        with pytest.raises(InvalidArgument, match="input_scale"):
            lower_file(fixtures / "tiny.h5", input_scale=bad)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="output"):
        lower_file(fixtures / "tiny.h5", output="i64")


def test_simplest_fraction() -> None:
    from fractions import Fraction as F

    assert simplest_fraction(F(-1275001, 10000), F(-1274999, 10000)) == F(-255, 2)
    assert simplest_fraction(F(3, 10), F(4, 10)) == F(1, 3)
    assert simplest_fraction(F(-1), F(2)) == 0
    assert simplest_fraction(F(5, 7), F(5, 7)) == F(5, 7)


def test_a_head_without_parameters_is_exact() -> None:
    rng = np.random.default_rng(3)

    def model(*tail: g.Node, units: int = 4) -> g.Graph:
        def signs(*shape: int) -> np.ndarray:
            return rng.choice([-1.0, 1.0], shape).astype(np.float32)

        nodes = [
            g.Input("x", "x", (), (4, 4, 1)),
            g.Rescaling("scale", "scale", ("x",), 1.0, -100.0),
            g.Conv2D("c", "c", ("scale",), signs(3, 3, 1, 8), Window((3, 3))),
            g.Sign("s", "s", ("c",)),
            g.Flatten("f", "f", ("s",)),
            g.Dense("d", "d", ("f",), signs(32, units)),
            *tail,
        ]
        return g.Graph("m", nodes, nodes[-1].name)

    images = draw_images(9, 4, 4, 1, channels=1)
    for output in ("i8", "i16", "i32", "f32"):
        lowered, _ = lower(model(), output=output)
        head = lowered.operators[-1]
        assert isinstance(head, BBQFC)
        z = head.requantization
        assert (z.scale, z.shift, z.mul_above.tolist(), z.add_above.tolist()) == (1.0, 0, [1] * 4, [0] * 4)
        assert lowered.float_output == (output == "f32") and z.dtype == {"f32": "i32"}.get(output, output)
    half = g.Bias("b", "b", ("d",), np.full(4, 0.5, np.float32))
    lowered, _ = lower(model(half), output="i16")
    assert lowered.operators[-1].requantization.scale == 0.5  # type: ignore[union-attr]
    compare_bits(model(half), images)
    bends = [
        g.PReLU("p", "p", ("d",), np.full(4, -0.5, np.float32)),
        g.Bias("b", "b", ("p",), np.full(4, -3, np.float32)),
        g.PReLU("q", "q", ("b",), np.full(4, -0.25, np.float32)),
    ]
    with pytest.raises(ConversionError, match="two linear pieces"):
        lower(model(*bends))


def test_several_pools_and_pools_of_bits() -> None:
    rng = np.random.default_rng(4)

    def signs(*shape: int) -> np.ndarray:
        return rng.choice([-1.0, 1.0], shape).astype(np.float32)

    gamma = np.array([1, -1, 2, -0.5, 0, 1, -1, 1], np.float32)
    norm = {"gamma": gamma, "beta": gamma * 0 + 1, "mean": gamma * 50, "variance": gamma * 0 + 9}
    two = Window((2, 2), (2, 2))
    nodes = [
        g.Input("x", "x", (), (12, 12, 3)),
        g.Rescaling("scale", "scale", ("x",), 1.0, -100.0),
        g.Conv2D("c", "c", ("scale",), signs(3, 3, 3, 8), Window((3, 3), padding=(1, 1, 1, 1))),
        g.MaxPool2D("p1", "p1", ("c",), two),
        g.MaxPool2D("p2", "p2", ("p1",), Window((3, 3), (2, 2), (1, 1), (0, 0, 1, 1))),
        g.BatchNorm("n", "n", ("p2",), **norm),
        g.Sign("s", "s", ("n",)),
        g.MaxPool2D("p3", "p3", ("s",), Window((2, 2), (1, 1))),
        g.Flatten("f", "f", ("p3",)),
        g.Dense("d", "d", ("f",), signs(32, 5)),
    ]
    graph = g.Graph("m", nodes, "d")
    images = draw_images(30, 12, 12, 6)
    truth = oracle.evaluate(graph, images)
    for fuse in (True, False):
        model, _ = lower(graph, fuse=fuse)
        tensors = reference.run(model, images)
        assert np.array_equal(tensors["p2"], truth.signs["s"])
        assert np.array_equal(tensors[model.output], truth.logits)
        assert sum(isinstance(op, BMaxPool2D) for op in model.operators) == (2 if fuse else 3)


def test_binarized_grey_input_and_dense_on_pixels() -> None:
    rng = np.random.default_rng(5)

    def signs(*shape: int) -> np.ndarray:
        return rng.choice([-1.0, 1.0], shape).astype(np.float32)

    images = draw_images(12, 6, 6, 9, channels=1)
    nodes = [
        g.Input("x", "x", (), (6, 6, 1)),
        g.Rescaling("r", "r", ("x",), float(np.float32(1 / 127.5)), -1.0),
        g.Sign("s0", "s0", ("r",)),
        g.Conv2D("c", "c", ("s0",), signs(3, 3, 1, 8), Window((3, 3))),
        g.Sign("s", "s", ("c",)),
        g.Flatten("f", "f", ("s",)),
        g.Dense("d", "d", ("f",), signs(128, 5)),
    ]
    assert compare_bits(g.Graph("m", nodes, "d"), images) > 0
    nodes = [
        g.Input("x", "x", (), (6, 6, 3)),
        g.Rescaling("r", "r", ("x",), float(np.float32(1 / 127.5)), -1.0),
        g.Flatten("f", "f", ("r",)),
        g.Dense("h", "h", ("f",), signs(108, 40)),
        g.Sign("s", "s", ("h",)),
        g.Dense("d", "d", ("s",), signs(40, 5)),
    ]
    assert compare_bits(g.Graph("m", nodes, "d"), draw_images(12, 6, 6, 9)) > 0


def test_chains_that_need_several_intervals_name_layer_and_channels(tmp_path: Path) -> None:
    fold = {"gamma": np.ones(2), "beta": np.zeros(2), "mean": np.array([8, 0]), "variance": np.ones(2)}
    small = {"gamma": np.ones(2), "beta": np.zeros(2), "mean": np.array([3, 0]), "variance": np.ones(2)}
    f32 = lambda d: {k: v.astype(np.float32) for k, v in d.items()}  # noqa: E731
    nodes = [
        g.Input("x", "x", (), (4, 4, 3)),
        g.Conv2D("c", "c", ("x",), np.ones((3, 3, 3, 2), np.float32), Window((3, 3))),
        g.PReLU("p", "p", ("c",), np.full(2, -1, np.float32)),
        g.BatchNorm("n", "n", ("p",), **f32(fold)),
        g.PReLU("q", "q", ("n",), np.full(2, -1, np.float32)),
        g.BatchNorm("m", "m", ("q",), **f32(small)),
        g.Sign("s", "s", ("m",)),
    ]
    nodes[1] = g.Conv2D(
        "c",
        "c",
        ("x",),
        np.tile(np.array([1, -1, 1], np.float32)[None, None, :, None], (3, 3, 1, 2)),
        Window((3, 3)),
    )
    graph = g.Graph("m", nodes, "s")
    with pytest.raises(ConversionError) as caught:
        lower(graph)
    assert (
        caught.value.slug == "too-many-intervals"
        and "'c'" in str(caught.value)
        and "channels 0;" in str(caught.value)
    )


# -- hostile files


def attempt(path: Path) -> None:
    """Anything but success or a one-line ConversionError with the file's name is a failure."""
    try:
        lower_file(path)
    except ConversionError as error:
        assert str(path) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("suffix", ["h5", "keras"])
def test_truncated_and_flipped_files(fixtures: Path, tmp_path: Path, suffix: str) -> None:
    whole = (fixtures / f"tiny.{suffix}").read_bytes()
    path = tmp_path / f"hostile.{suffix}"
    rng = random.Random(1)
    for size in [0, 1, 4, 8, 9, 100, 1000, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(ConversionError, match="hostile"):
            lower_file(path)
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 4, 30])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        attempt(path)


def test_foreign_files(tmp_path: Path, fixtures: Path) -> None:
    def refused(name: str, slug: str, content: bytes | None = None) -> None:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ConversionError) as caught:
            lower_file(tmp_path / name)
        assert caught.value.slug == slug and name in str(caught.value), str(caught.value)

    refused("absent.h5", "no-such-file")
    refused("text.h5", "unsupported-file", b"hello")
    (tmp_path / "folder").mkdir()
    refused("folder", "unsupported-file")
    with zipfile.ZipFile(tmp_path / "wrong.keras", "w") as archive:
        archive.writestr("other.txt", "x")
    refused("wrong.keras", "unsupported-file")
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file.attrs["layer_names"] = np.array([b"dense"])
    refused("weights.h5", "no-architecture")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    refused("other.h5", "unsupported-file")


def test_json_of_wrong_types(tmp_path: Path) -> None:
    config, weights = fixture.tiny()
    path = write(tmp_path, config, weights)
    for model in (
        "", "[]", "null", "7", "{", '{"class_name": 3}', "[" * 100_000, b"\xff\xfe",
        {"class_name": "Sequential"}, {"class_name": "Sequential", "config": {"layers": 4}},
        {"class_name": "Sequential", "config": {"layers": [None]}},
        {"class_name": "Sequential", "config": {"layers": [{"class_name": "Dense", "config": None}]}},
        {"class_name": "Functional", "config": {"layers": config["layers"]}},
        {"class_name": "Graph", "config": config},
    ):  # fmt: skip
        set_model(path, model)
        with pytest.raises(ConversionError, match=r"model\.h5"):
            lower_file(path)
    rng = random.Random(2)
    junk = [
        None,
        True,
        -1,
        0,
        1e400,
        float("nan"),
        "",
        "same",
        [],
        [1],
        [None],
        {},
        {"a": 1},
        10**30,
        [[1, 2], 3],
    ]

    def spoil(value: Any) -> Any:
        """Replace one random entry somewhere in `value`."""
        if isinstance(value, dict) and value and rng.random() < 0.9:
            key = rng.choice(list(value))
            return {**value, key: spoil(value[key])}
        if isinstance(value, list) and value and rng.random() < 0.9:
            index = rng.randrange(len(value))
            return [*value[:index], spoil(value[index]), *value[index + 1 :]]
        return rng.choice(junk)

    for _ in range(300):
        set_model(path, json.dumps(spoil({"class_name": "Sequential", "config": config})))
        attempt(path)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    config, weights = fixture.tiny()

    def refused(layer: str, leaf: str, array: Any, slug: str) -> None:
        arrays = {name: dict(values) for name, values in weights}
        if array is None:
            del arrays[layer][leaf]
        else:
            arrays[layer][leaf] = array
        path = write(tmp_path, config, list(arrays.items()))
        with pytest.raises(ConversionError, match=layer) as caught:
            lower_file(path)
        assert caught.value.slug == slug, str(caught.value)

    refused("conv_2", "kernel", np.zeros((3, 3, 16, 41), np.float32), "shape-mismatch")
    refused("conv_2", "kernel", np.array([b"text"]), "damaged-file")
    refused("conv_2", "kernel", None, "missing-weights")
    refused("conv_2", "kernel", np.full((3, 3, 16, 40), np.nan, np.float32), "not-finite")
    refused("norm_1", "moving_variance", np.full(16, -2.0, np.float32), "bad-variance")
    refused("norm_1", "gamma", np.full(16, np.inf, np.float32), "not-finite")
    refused("norm_3", "beta", np.full(10, np.nan, np.float32), "not-finite")


@pytest.mark.skipif(sys.platform != "linux", reason="bounds a process's memory as Linux does")
def test_bombs_are_refused_in_little_memory(tmp_path: Path) -> None:
    """Files of at most a megabyte or two that would take gigabytes, with 512 MB of memory to be had."""
    side = 2**13
    dense = {
        "class_name": "Sequential",
        "config": {
            "name": "bomb",
            "layers": [
                {
                    "class_name": "Dense",
                    "config": {
                        "name": f"dense_{i}",
                        "units": side,
                        "use_bias": False,
                        "batch_input_shape": [None, side],
                    },
                }
                for i in range(40)
            ],
        },
    }
    for chunks in ("absent", "compressed"):
        with h5py.File(tmp_path / f"{chunks}.h5", "w") as file:
            file.attrs["model_config"] = json.dumps(dense)
            for i in range(40 if chunks == "absent" else 1):
                group = file.create_group(f"model_weights/dense_{i}")
                group.attrs["weight_names"] = [b"kernel:0"]
                kernel = group.create_dataset(
                    "kernel:0", (side, side), np.float32, chunks=(side // 8, side), compression="gzip"
                )
                if chunks == "compressed":
                    for row in range(0, side, side // 8):
                        kernel[row : row + side // 8] = 1
    text = json.dumps(dense)
    for name, members in {
        "config.keras": {"config.json": b" " * 2**28, "model.weights.h5": b""},
        "weights.keras": {"config.json": text.encode(), "model.weights.h5": bytes(2**29 + 1)},
    }.items():
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, content in members.items():
                archive.writestr(member, content)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 4 and max(path.stat().st_size for path in files) < 2**21
    program = """
import resource, sys
import numpy, h5py, cbin_nn.converters
from cbin_nn.errors import ConversionError
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, used + 2**29))
for path in sys.argv[1:]:
    try:
        cbin_nn.converters.lower_file(path)
    except ConversionError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, files)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4 and all(path.name in line for path, line in zip(files, lines, strict=True)), lines
    assert "expand to" in lines[0] and "expand to" in lines[1] and "too many" in lines[2] + lines[3]


def test_links_out_of_the_file_are_not_followed(tmp_path: Path) -> None:
    config, weights = fixture.tiny()
    path = write(tmp_path, config, weights)
    fixture.write_hdf5(tmp_path / "other.h5", config, weights)
    name = "model_weights/conv_2/conv_2/kernel:0"
    with h5py.File(path, "r+") as file:
        del file[name]
        file[name] = h5py.ExternalLink(str(tmp_path / "other.h5"), name)
    with pytest.raises(ConversionError, match="conv_2"):
        lower_file(path)
    np.zeros(3 * 3 * 16 * 40, np.float32).tofile(tmp_path / "raw")
    with h5py.File(path, "r+") as file:
        del file[name]
        file.create_dataset(
            name, (3, 3, 16, 40), np.float32, external=[(str(tmp_path / "raw"), 0, h5py.h5f.UNLIMITED)]
        )
    with pytest.raises(ConversionError, match="another file"):
        lower_file(path)
