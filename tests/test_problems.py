"""One error that names everything: grouped, bounded, in the words of the user's framework."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import cbin_nn
import numpy as np
import pytest
from cbin_nn.converters import words
from cbin_nn.converters.problems import Problem, together
from cbin_nn.errors import ConversionError
from test_cli import cbin


def test_one_problem_is_one_line() -> None:
    error = together([Problem("it has no operator", "unsupported-layer", "a", "Reshape", "use Flatten")] * 3)
    assert str(error) == "layer 'a' (Reshape): it has no operator; use Flatten"
    assert (error.layer, error.kind, error.reason) == ("a", "Reshape", "it has no operator")


def test_equal_problems_are_told_once_with_their_layers() -> None:
    layers = [f"block{i}" for i in range(14)]
    problems = [Problem("no operator", layer=name, kind="Reshape", advice="use Flatten") for name in layers]
    problems += [Problem("no operator", layer="x", kind="Permute", advice="use Flatten")]
    problems += [Problem("its weights are real", layer=name) for name in ("p", "q")]
    problems += [Problem("two outputs", "unsupported-model")]
    assert str(together(problems)).splitlines() == [
        "18 things can't be converted:",
        "- layers 'block0' (Reshape), 'block1' (Reshape), 'block2' (Reshape) and 12 more: no operator; "
        "use Flatten",
        "- layers 'p' and 'q': its weights are real",
        "- two outputs",
    ]
    assert "- Reshape: layers 'block0', 'block1', 'block2' and 11 more: no operator; use Flatten" in str(
        together([*problems[:14], *problems[-1:]])
    )
    assert together(problems[:15]).slug == "unsupported-layer"


def test_advice_that_several_groups_share_is_told_once_at_the_end() -> None:
    problems = [Problem(f"reason {i}", layer=f"l{i}", advice="read the docs") for i in range(3)]
    assert str(together(problems)).splitlines()[1:] == [
        *(f"- layer 'l{i}': reason {i}" for i in range(3)),
        "Read the docs.",
    ]


@pytest.mark.parametrize("count", [2, 15, 300])
def test_the_text_has_at_most_twenty_lines_and_counts_the_rest(count: int) -> None:
    problems = [
        Problem(f"reason {i}", layer=f"layer{i}", kind=f"Kind{i}", advice=f"do {i}") for i in range(count)
    ]
    lines = str(together(problems)).splitlines()
    assert len(lines) <= 20
    told = sum(line.startswith("- layer") for line in lines)
    more = [int(m[1]) for line in lines if (m := re.match(r"- and (\d+) more", line))]
    assert told + sum(more) == count


def test_an_error_survives_pickling_and_naming_and_stays_in_its_lines() -> None:
    one = ConversionError("bad", "a\n- reason", layer="x\ny", kind="Ki\nnd")
    assert "\n" not in str(one) and str(one.inside("f.h5")).startswith("f.h5: layer 'x")
    assert str(one.inside("f.h5").inside("f.h5")) == str(one.inside("f.h5"))
    many = together([Problem("a\nb", layer="x"), Problem("c", layer="y\nz")]).inside("f.h5")
    assert len(str(many).splitlines()) == 3
    for error in (one, many):
        again = pickle.loads(pickle.dumps(error))
        assert (str(again), again.slug, again.layer, again.reason) == (
            str(error),
            error.slug,
            error.layer,
            error.reason,
        )


def test_reading_and_lowering_are_told_together(tmp_path: Path) -> None:
    """A layer that the reader does not know stands behind one that lowering refuses."""
    pytest.importorskip("h5py")
    import make_fixture as fixture
    from test_convert_keras import write

    config, weights = fixture.tiny()
    names = [layer["config"]["name"] for layer in config["layers"]]
    second = next(
        i for i, layer in enumerate(config["layers"]) if layer["class_name"] == "QuantConv2D" and i > 4
    )
    config["layers"][second]["config"]["input_quantizer"] = None
    config["layers"][-1]["class_name"] = "LSTM"
    source = write(tmp_path, config, weights)
    with pytest.raises(ConversionError) as caught:
        cbin_nn.convert(source)
    text = str(caught.value)
    assert f"{names[second]!r}" in text and "input_quantizer" in text and "LSTM" in text
    printed = cbin("convert", source, "-o", tmp_path / "m.cbn")
    assert printed.returncode == 1 and printed.stderr.splitlines()[0].startswith("cbin-nn: ")
    assert len(printed.stderr.splitlines()) == len(text.splitlines())


def networks() -> list[tuple[str, dict[str, Any]]]:
    rng = np.random.default_rng(3)
    conv = {"type": "conv2d", "weights": rng.choice([-1, 1], (8, 3, 3, 3))}
    after = {"type": "conv2d", "weights": rng.choice([-1, 1], (8, 3, 3, 8))}
    real = {"type": "conv2d", "weights": rng.normal(size=(8, 3, 3, 8))}
    three = {"type": "conv2d", "weights": rng.choice([-1, 0, 1], (8, 3, 3, 8))}
    sign, end = {"type": "sign"}, {"type": "flatten"}
    return [
        ("binary input", {"input": (8, 8, 3), "layers": [conv, after, sign, end]}),
        ("binary weights", {"input": (8, 8, 3), "layers": [conv, sign, real, sign, end]}),
        ("no zeros in weights", {"input": (8, 8, 3), "layers": [conv, sign, three, sign, end]}),
        ("real input", {"input": (8, 8, 3), "layers": [sign, conv, sign, end]}),
        ("end", {"input": (8, 8, 3), "layers": [conv, sign, end]}),
        (
            "scale of the input",
            {"input": (8, 8, 3), "layers": [{"type": "prelu", "slope": 0.5}, conv, sign, end]},
        ),
    ]


@pytest.mark.parametrize("framework", ["keras", "torch", "onnx", "description"])
def test_advice_is_in_the_words_of_the_framework(framework: str) -> None:
    from cbin_nn.converters import lower
    from cbin_nn.converters.description import read_description

    foreign = {
        "keras": r"torch|nn\.|\{\"type",
        "torch": r"quantizer|QuantConv|QuantDense|keras|Rescaling|\{\"type",
        "onnx": r"quantizer|QuantConv|QuantDense|keras|torch|Rescaling|\{\"type",
        "description": r"quantizer|QuantConv|QuantDense|keras|torch|Rescaling",
    }[framework]
    for what, network in networks():
        graph = read_description(network)
        graph = type(graph)(graph.name, graph.nodes, graph.output, framework=framework)
        with pytest.raises(ConversionError) as caught:
            lower(graph)
        text = str(caught.value)
        assert (
            words.advice(what, framework) in text.replace(". ", "; ")
            or words.advice(what, framework)[1:] in text
        )
        assert not re.search(foreign, text), text


def test_weights_with_zeros_are_counted() -> None:
    network = dict(networks())["no zeros in weights"]
    zeros = int((network["layers"][2]["weights"] == 0).sum())
    with pytest.raises(ConversionError, match=f"{zeros} of its 576 weights are 0"):
        cbin_nn.convert(network)
