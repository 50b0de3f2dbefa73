"""Sizes and chains that a file may state, and that would take minutes: refused at once, with what to do."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import cbin_nn
import numpy as np
import pytest
from cbin_nn.converters import graph as g
from cbin_nn.converters import lower
from cbin_nn.converters.quantize import quantize_weights
from cbin_nn.errors import ConversionError
from cbin_nn.model import assemble
from cbin_nn.operators import Window

Make = Callable[[str, str, int], g.Node]
floats = np.random.default_rng(0)


def signs(*shape: int) -> g.Float32:
    return np.where(floats.random(shape) > 0.5, 1, -1).astype(np.float32)


def network(nodes: list[g.Node], after: list[g.Node] | None = None) -> g.Graph:
    """`nodes`, which begin with an input, then sign, flatten and a dense layer, then `after`."""
    last = nodes[-1].name
    nodes = [*nodes, g.Sign("sign", "sign", (last,)), g.Flatten("flat", "flat", ("sign",))]
    features = g.Graph("n", nodes, "flat").shapes["flat"][0]
    nodes = [*nodes, g.Dense("head", "head", ("flat",), signs(features, 10)), *(after or [])]
    return g.Graph("n", nodes, nodes[-1].name)


def chain(make: Make, count: int, channels: int, first: str) -> list[g.Node]:
    nodes: list[g.Node] = []
    for i in range(count):
        nodes.append(make(f"{first}_{i}", nodes[-1].name if nodes else first, channels))
    return nodes


def norm(name: str, before: str, channels: int) -> g.Node:
    parameters = (floats.random((4, channels)) + 0.5).astype(np.float32)
    return g.BatchNorm(name, name, (before,), *parameters)


def prelu(name: str, before: str, channels: int) -> g.Node:
    return g.PReLU(name, name, (before,), floats.random(channels).astype(np.float32))


def relu(name: str, before: str, channels: int) -> g.Node:
    return g.Clip(name, name, (before,), 0.0, None)


def refused(graph: g.Graph, slug: str) -> str:
    begun = time.process_time()
    with pytest.raises(ConversionError) as caught:
        lower(graph)
    assert caught.value.slug == slug, str(caught.value)
    assert time.process_time() - begun < 5
    return str(caught.value)


def start(side: int = 8) -> list[g.Node]:
    image = g.Input("image", "image", (), (side, side, 3))
    return [image, g.Conv2D("first", "first", ("image",), signs(3, 3, 3, 16), Window((3, 3)))]


@pytest.mark.parametrize("make", [norm, prelu, relu])
def test_chains_before_a_sign(make: Make) -> None:
    """The pieces of a chain double with each bend, and its square roots multiply with each BatchNorm."""
    few = lower(network([*start(), *chain(make, 6, 16, "first")]))[0]
    assert assemble(few, lower(network(start()))[1]).classes == 10
    message = refused(network([*start(), *chain(make, 100, 16, "first")]), "chain-too-long")
    assert "'first'" in message and "100 layers" in message and "leave out what repeats" in message


@pytest.mark.parametrize("make", [norm, relu])
def test_chains_of_the_head(make: Make) -> None:
    count = 1 if make is relu else 6
    assert lower(network(start(), chain(make, count, 10, "head")))[0].operators
    assert "'head'" in refused(network(start(), chain(make, 150, 10, "head")), "chain-too-long")


def test_parameters_by_element() -> None:
    """A rule for each element: so many that no board holds them."""

    def with_slopes(side: int) -> g.Graph:
        nodes = start(side + 2)
        slopes = floats.random((side, side, 16)).astype(np.float32)
        pool = Window((side, side), (side, side))
        return network(
            [
                *nodes,
                g.PReLU("slopes", "slopes", ("first",), slopes),
                g.MaxPool2D("p", "p", ("slopes",), pool),
            ]
        )

    assert lower(with_slopes(16))[0].operators
    assert "524288 convert" in refused(with_slopes(200), "too-many-rules")


def test_wide_planes_choose_layouts_from_fewer_images() -> None:
    """Kernels of 400 x 400 on a plane of 500 x 500: eight images of them would take minutes."""
    image = g.Input("image", "image", (), (500, 500, 1))
    window = Window((400, 400), padding=(200, 200, 200, 200))
    conv = g.Conv2D("wide", "wide", ("image",), signs(400, 400, 1, 4), window)
    pool = g.MaxPool2D("pool", "pool", ("wide",), Window((50, 50), (50, 50)))
    begun = time.process_time()
    model = assemble(*lower(network([image, conv, pool])))
    assert model.macs > 10**11 and time.process_time() - begun < 10


def test_more_layers_than_a_model_has_operators() -> None:
    nodes = [*start(), g.Sign("s", "s", ("first",))]
    for i in range(1100):
        nodes.append(g.Conv2D(f"c{i}", "c", (nodes[-1].name,), signs(1, 1, 16, 16), Window((1, 1))))
        nodes.append(g.Sign(f"s{i}", "c", (nodes[-1].name,)))
    assert "at most 1024" in refused(network(nodes[:-1]), "too-many-operators")


@pytest.mark.parametrize("place", ["image", "first", "head"])
def test_scales_beyond_float64(place: str) -> None:
    """Exact rationals have no largest number; the floats that estimate them do."""

    def scale(name: str, before: str, channels: int) -> g.Node:
        return g.Linear(name, name, (before,), Fraction(10**450))

    image, conv = start()
    if place == "image":
        scales = chain(scale, 2, 3, "image")
        graph = network([image, *scales, replace(conv, inputs=(scales[-1].name,))])
    elif place == "first":
        graph = network([image, conv, *chain(scale, 2, 16, "first")])
    else:
        graph = network([image, conv], chain(scale, 2, 10, "head"))
    with pytest.raises(ConversionError):
        lower(graph)


@pytest.mark.parametrize("magnitudes", [3, 500_000])
def test_a_large_head_is_quantized_in_little_memory(magnitudes: int) -> None:
    """Trying every scale on every weight at once would take 6 GB."""
    values = floats.random(magnitudes) + 0.5
    real = values[np.arange(250 * 250 * 8) % magnitudes][None, :].repeat(2, axis=0)
    tracemalloc.start()
    found = quantize_weights(real, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300 * 2**20
    assert found.errors.max() <= found.scale.max() * 0.51


def test_limits_of_the_operators_name_the_source() -> None:
    """What the file format does not hold is an error about the source, not about an argument."""
    image = g.Input("image", "image", (), (8, 8, 1))
    wide = g.Conv2D(
        "wide", "wide", ("image",), signs(1, 1, 1, 8), Window((1, 1), padding=(5000, 5000, 5000, 5000))
    )
    pool = g.MaxPool2D("pool", "pool", ("wide",), Window((10008, 10008), (10008, 10008)))
    with pytest.raises(ConversionError, match=r"^Graph: layer `wide`: .*above the limit"):
        cbin_nn.convert(network([image, wide, pool]))


@pytest.mark.parametrize("where", ["name", "layer", "model"])
def test_names_that_are_no_text(where: str) -> None:
    """JSON may state half of a surrogate pair, which no UTF-8 file can hold."""
    half = "\ud800"
    name, layer = (half if where == each else "image" for each in ("name", "layer"))
    image = g.Input(name, layer, (), (8, 8, 3))
    with pytest.raises(ConversionError, match=r"'\\ud800' is no valid text"):
        g.Graph(half if where == "model" else "n", [image], name)


@pytest.mark.filterwarnings("error")
def test_a_head_of_the_largest_weights_warns_of_nothing() -> None:
    """The sum of a unit's weights is beyond float32, though each of them is within."""
    graph = network(start())
    weights = (floats.normal(size=graph.nodes[-1].kernel.shape) * 1e38).clip(-3e38, 3e38)  # type: ignore[attr-defined]
    head = replace(graph.nodes[-1], kernel=weights.astype(np.float32), binary=False)
    try:
        lower(g.Graph("n", [*graph.nodes[:-1], head], "head"))
    except ConversionError as error:
        assert error.slug == "output-overflow"
