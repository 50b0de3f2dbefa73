"""`verify`: agreement is found where it is, and disagreement where it was put."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cbin_nn
import numpy as np
import pytest
from cbin_nn import converters, verification
from cbin_nn.converters import graph as g
from cbin_nn.converters import lower, passes, read_source
from cbin_nn.converters.evaluate import walk
from cbin_nn.converters.onnx import read_onnx
from cbin_nn.errors import InvalidArgument
from cbin_nn.images import draw_images
from cbin_nn.model import assemble
from conftest import require, require_modules, shared_folder
from sabotage import Hunt, hunt_conversions, hunt_readings
from test_cli import cbin

pytest.importorskip("h5py", reason="pip install 'cbin-nn[keras]'")


def description(rng: np.random.Generator) -> dict[str, Any]:
    norm = {"mean": rng.normal(size=16) * 9, "variance": rng.uniform(50, 100, 16), "epsilon": 1e-3}
    return {
        "input": (8, 8, 3),
        "layers": [
            {"type": "rescaling", "scale": 2, "offset": -255},
            {"type": "conv2d", "name": "first", "weights": rng.choice([-1, 1], (16, 3, 3, 3)), "padding": 1},
            {"type": "sign", "name": "one"},
            {
                "type": "conv2d",
                "name": "second",
                "weights": rng.choice([-1, 1], (16, 3, 3, 16)),
                "padding": 1,
            },
            {"type": "max_pool2d", "size": 2},
            {"type": "batch_norm", **norm},
            {"type": "sign", "name": "two"},
            {"type": "flatten"},
            {"type": "dense", "name": "last", "weights": rng.choice([-1, 1], (5, 256))},
        ],
    }


def test_a_model_agrees_with_its_source_fused_and_unfused() -> None:
    network, images = description(np.random.default_rng(0)), draw_images(40, 8, 8, 1)
    for fuse in (True, False):
        model = cbin_nn.convert(network, fuse=fuse)
        check = cbin_nn.verify(model, network, images)
        assert check.engine == "built-in" and check.images == 40 and check.top1_agree == 40
        assert check.exact and check.fused_equals_unfused and check.first_differing is None
        assert [layer.layer for layer in check.layers] == ["one", "two"]
        assert [layer.bits for layer in check.layers] == [40 * 8 * 8 * 16, 40 * 4 * 4 * 16]
        assert check.logit_error == 0 and not check.notes
        assert "Exact: yes" in str(check) and "own reading alone" in str(check) and check.unjudged
        assert [(r.tensor, r.kind, r.differing) for r in check.conversion][-1] == ("last", "numbers", 0)
        assert not check.reader and check.verdict == "yes" and check.first_fault is None
        assert json.loads(json.dumps(check.to_dict()))["exact"] is True


def test_a_changed_source_is_found_with_its_layer_and_place() -> None:
    """The second layer of the source gets another weight: its own bits differ, the first layer's do not."""
    network, images = description(np.random.default_rng(0)), draw_images(40, 8, 8, 1)
    model = cbin_nn.convert(network)
    changed = {**network, "layers": [dict(layer) for layer in network["layers"]]}
    weights = np.array(changed["layers"][3]["weights"])
    weights[3] *= -1
    changed["layers"][3]["weights"] = weights
    check = cbin_nn.verify(model, changed, images)
    assert not check.exact and "not those" in check.notes[0]
    first = check.first_differing
    assert first is not None and first.layer == "two" and first.first is not None
    assert first.first[3] == 3 and len(first.first) == 4
    one, two = check.layers
    assert (one.differing, one.own_differing) == (0, 0)
    assert 0 < two.own_unexplained <= two.own_differing == two.differing
    other = cbin_nn.convert(
        {
            "input": (8, 8, 3),
            "layers": network["layers"][:3]
            + network["layers"][7:8]
            + [{"type": "dense", "weights": np.random.default_rng(1).choice([-1, 1], (5, 1024))}],
        }
    )
    with pytest.raises(InvalidArgument, match="something else"):
        cbin_nn.verify(other, network, images)


def test_a_difference_upstream_is_no_fault_of_the_layers_below() -> None:
    network, images = description(np.random.default_rng(0)), draw_images(40, 8, 8, 1)
    model = cbin_nn.convert(network)
    changed = {**network, "layers": [dict(layer) for layer in network["layers"]]}
    changed["layers"][0]["offset"] = -0.5
    check = cbin_nn.verify(model, changed, images)
    one, two = check.layers
    assert one.own_unexplained > 0 and two.differing > 0 and two.own_differing == 0


def test_arguments_are_checked(fixtures: Path) -> None:
    model = cbin_nn.convert(fixtures / "tiny.h5")
    images = draw_images(4, 12, 12, 1)
    for options, words in (
        ({"engine": "magic"}, "engine"),
        ({"engine": "framework"}, "framework"),
    ):
        with pytest.raises(InvalidArgument, match=words):
            cbin_nn.verify(model, fixtures / "tiny.h5", images, **options)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="empty"):
        cbin_nn.verify(model, fixtures / "tiny.h5", images[:0])


def test_taps_of_a_batch_are_those_of_each_image(fixtures: Path) -> None:
    model = cbin_nn.convert(fixtures / "tiny.h5")
    images = draw_images(5, 12, 12, 1)
    outputs, taps = model.run(images, taps=True)
    assert np.array_equal(outputs, model.run(images))
    for i, image in enumerate(images):
        single = model.taps(image)
        assert list(single) == list(taps)
        assert all(np.array_equal(taps[name][i], value) for name, value in single.items())
    one, tapped = model.run(images[0], taps=True)
    assert one.shape == (10,) and np.array_equal(tapped["conv_1"], taps["conv_1"][0])
    assert model.run(images[:0], taps=True)[1] == {}


def test_the_command_line_verifies(fixtures: Path, tmp_path: Path) -> None:
    path, images = tmp_path / "tiny.cbn", tmp_path / "images.npy"
    np.save(images, draw_images(8, 12, 12, 1))
    assert cbin("convert", fixtures / "tiny.h5", "-o", path).returncode == 0
    done = cbin("verify", path, fixtures / "tiny.h5", "--images", images, "--engine", "built-in")
    assert done.returncode == 0 and "Exact: yes" in done.stdout, done.stderr
    done = cbin("verify", path, fixtures / "tiny.keras", "--images", images, "--json")
    value = json.loads(done.stdout)
    assert value["exact"] and value["top1_agree"] == 8
    done = cbin("verify", path, fixtures / "tiny.h5", "--images", images, "--input-offset", "-90", "--json")
    assert done.returncode == 1 and not json.loads(done.stdout)["exact"]
    shown = cbin("inspect", fixtures / "tiny.h5")
    assert "conv_1 + prelu_1 + norm_1" in shown.stdout
    value = json.loads(cbin("inspect", fixtures / "tiny.h5", "--json").stdout)
    assert value["conversion"]["operators"][0]["layers"][0] == "conv_1"


def test_scales_a_channel_on_the_command_line(fixtures: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.cbn"
    done = cbin(
        "convert", fixtures / "tiny.h5", "-o", path,
        "--input-scale", "0.0159,0.0161,0.015", "--input-offset", "-1.99,-1.98,-1.7", "--json",
    )  # fmt: skip
    value = json.loads(done.stdout)
    assert value["operators"][0]["kind"] == "qqconv2d" and value["operators"][0]["approximations"]
    done = cbin("convert", fixtures / "tiny.h5", "-o", path, "--force", "--input-scale", "1,x")
    assert done.returncode == 2 and "commas" in done.stderr
    for wrong in ("1/0", "/2", "1/2x"):
        assert cbin("convert", fixtures / "tiny.h5", "-o", path, "--input-scale", wrong).returncode == 2
    exact = cbin(
        "convert",
        fixtures / "tiny.h5",
        "-o",
        path,
        "--force",
        "--input-scale",
        "1/127.5",
        "--input-offset",
        "-1",
    )
    assert exact.returncode == 0, exact.stderr
    model = cbin_nn.convert(fixtures / "tiny.h5", input_scale=1 / 127.5, input_offset=-1)
    assert cbin_nn.load(path).sha256 == model.sha256


def test_a_model_knows_the_meaning_that_it_was_converted_with(fixtures: Path, tmp_path: Path) -> None:
    images = draw_images(8, 12, 12, 1)
    model = cbin_nn.convert(fixtures / "tiny.h5", input_scale=1 / 127.5, input_offset=-1)
    check = cbin_nn.verify(model, fixtures / "tiny.h5", images, engine="built-in")
    assert check.exact and check.top1_agree == 8 and not check.notes
    assert not any("pixels are read" in note for note in model.conversion.notes)
    plain = cbin_nn.convert(fixtures / "tiny.h5")
    assert any("pixels are read as 0 to 255" in note for note in plain.conversion.notes)
    model.save(tmp_path / "tiny.cbn")
    text = str(cbin_nn.verify(cbin_nn.load(tmp_path / "tiny.cbn"), fixtures / "tiny.h5", images))
    assert text.splitlines()[1].startswith("note: the model's bytes are not those")


# ------------------------------------------------------------------------------------------------
# faults that were put in


def test_faulty_readings_are_found_by_onnx(
    fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    require_modules("onnx", reason="pip install 'cbin-nn[onnx]'")
    hunt = Hunt()
    for name in ("torch_2_dynamo", "torch_9_noopt", "torch_17_torchscript", "brevitas"):
        source = fixtures / "frameworks" / f"{name}.onnx"
        images = np.load(source.parent / f"{name if name == 'brevitas' else name.rsplit('_', 1)[0]}.npz")[
            "images"
        ]
        hunt_readings(source, images[:6], tmp_path, monkeypatch, "onnx.reference", hunt, every=3)
    with capsys.disabled():
        print(f"\n{hunt.table('ONNX, readings')}")
    assert not hunt.missed and hunt.found >= 50 and hunt.placed >= 0.9 * hunt.found


def test_faulty_conversions_are_found_by_exact_arithmetic(
    fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hunt = Hunt()
    for i, name in enumerate(("larq_2.h5", "larq_8.h5", "larq_39.h5", "larq_depthwise.h5", "torch_9.pt2")):
        source = fixtures / "frameworks" / name
        images = np.load(source.with_suffix(".npz"))["images"]
        options = {"output": ("i8", "i16", "i32")[i % 3], "fuse": i % 2 == 0}
        hunt_conversions(source, images[:6], tmp_path, monkeypatch, hunt, **options)
    with capsys.disabled():
        print(f"\n{hunt.table('Conversions')}")
    assert not hunt.missed and hunt.found >= 50 and hunt.placed >= 0.9 * hunt.found


def tie_network() -> dict[str, Any]:
    """Sums of 16 signs, whose BatchNorm puts the threshold on a sum that occurs."""
    rng = np.random.default_rng(2)
    norm = {
        "mean": np.arange(16) % 5 * 2 - 4.0,
        "variance": np.full(16, 3.7),
        "gamma": rng.choice([-1.3, 0.7], 16),
        "beta": np.zeros(16),
        "epsilon": 1e-3,
    }
    return {
        "input": (6, 6, 1),
        "layers": [
            {"type": "conv2d", "weights": rng.choice([-1, 1], (16, 1, 1, 1))},
            {"type": "batch_norm", **{**norm, "mean": np.full(16, 99.5)}},
            {"type": "sign"},
            {"type": "conv2d", "name": "tied", "weights": rng.choice([-1, 1], (16, 1, 1, 16))},
            {"type": "batch_norm", **norm},
            {"type": "sign"},
            {"type": "flatten"},
            {"type": "dense", "weights": rng.choice([-1, 1], (4, 576))},
        ],
    }


def test_a_tie_that_falls_the_other_way_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact arithmetic says +1 at 0; one step of a threshold is as much."""
    source, images = tie_network(), draw_images(20, 6, 6, 3, channels=1)
    lowered, report = lower(read_source(source))
    assert cbin_nn.verify(assemble(lowered, report), source, images).exact
    rules = lowered.operators[1].rules
    rising = rules.lo > -(2**30)
    moved = replace(
        rules, lo=np.where(rising, rules.lo + 1, rules.lo), hi=np.where(rising, rules.hi, rules.hi - 1)
    )
    operators = [lowered.operators[0], replace(lowered.operators[1], rules=moved), *lowered.operators[2:]]
    faulty = replace(lowered, operators=operators)
    monkeypatch.setattr(converters, "lower", lambda *a, **k: (faulty, report))
    check = cbin_nn.verify(assemble(faulty, report), source, images)
    assert check.first_fault is not None and check.first_fault[1].tensor == "tied"
    assert check.layers[1].unexplained == 0 < check.layers[1].own_unexplained  # ties, each of them


def test_an_approximated_layer_is_held_to_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    source = {
        "input": (8, 8, 3),
        "layers": [
            {"type": "conv2d", "name": "stem", "weights": rng.normal(size=(8, 3, 3, 3)).astype(np.float32)},
            {"type": "batch_norm", "mean": np.zeros(8), "variance": np.full(8, 9e4), "epsilon": 1e-3},
            {"type": "sign"},
            {"type": "flatten"},
            {"type": "dense", "name": "head", "weights": rng.normal(size=(5, 288)).astype(np.float32)},
        ],
    }
    images = draw_images(30, 8, 8, 1)
    lowered, report = lower(read_source(source))
    stem, head = report.operators
    assert stem.bound is not None and head.bound is not None and stem.approximations and head.approximations
    check = cbin_nn.verify(assemble(lowered, report), source, images)
    assert check.exact and all(region.unexplained == 0 for region in check.conversion)
    assert check.conversion[1].differing > 0  # 8-bit weights show in 32-bit logits, within the bound
    # The same model under a bound that is too small to be true.
    tight = [replace(stem, bound=stem.bound / 1e6), replace(head, bound=head.bound / 1e6)]
    monkeypatch.setattr(converters, "lower", lambda *a, **k: (lowered, replace(report, operators=tight)))
    check = cbin_nn.verify(assemble(lowered, report), source, images)
    assert not check.exact and check.conversion[1].unexplained > 0


def test_a_fault_of_a_pass_is_found(fixtures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that loses a shift on its way."""
    require_modules("onnx", reason="pip install 'cbin-nn[onnx]'")
    source = fixtures / "frameworks" / "torch_9_noopt.onnx"
    images = np.load(source.parent / "torch_9.npz")["images"]
    assert cbin_nn.verify(cbin_nn.convert(source), source, images, engine="framework").exact

    def lossy(graph: g.Graph) -> g.Graph:
        nodes = [replace(n, beta=n.beta * 0) if isinstance(n, g.BatchNorm) else n for n in graph.nodes]
        return graph.rebuilt(nodes, graph.output)

    monkeypatch.setattr(passes, "_PASSES", (*passes._PASSES, lossy))
    graph = read_onnx(source)  # in this process, where the pass is
    monkeypatch.setattr(converters, "read_source", lambda *a, **k: graph)
    check = cbin_nn.verify(assemble(*lower(graph)), source, images, engine="framework")
    assert check.first_fault is not None and check.first_fault[0] == "reader"
    assert "In the reader: the reading of the source differs from the framework" in str(check)


def test_every_image_is_judged(fixtures: Path) -> None:
    """More images than a batch, and than an ONNX file takes at once."""
    require_modules("onnx", reason="pip install 'cbin-nn[onnx]'")
    source = fixtures / "frameworks" / "torch_2_torchscript.onnx"
    model = cbin_nn.convert(source)
    images = draw_images(75, *model.input_shape[:2], 1, channels=model.input_shape[2])
    check = cbin_nn.verify(model, source, images, engine="framework")
    assert check.exact and check.images == check.top1_agree == 75
    assert all(region.values % 75 == 0 for region in [*check.reader, *check.conversion])


def test_a_framework_that_fails_is_said_to(fixtures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_modules("onnx", reason="pip install 'cbin-nn[onnx]'")
    from cbin_nn.converters import onnx_run

    def fail(*args: Any) -> Any:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(onnx_run, "run_onnx", fail)
    source = fixtures / "frameworks" / "torch_2_torchscript.onnx"
    model = cbin_nn.convert(source)
    images = draw_images(3, *model.input_shape[:2], 1, channels=model.input_shape[2])
    check = cbin_nn.verify(model, source, images)
    assert check.engine == "built-in" and check.exact and "no such kernel" in check.unjudged
    assert check.to_dict()["reader_not_judged_since"] == check.unjudged
    assert "own reading alone" in str(check) and "nothing judged the reading" in str(check)
    with pytest.raises(InvalidArgument, match="no such kernel"):
        cbin_nn.verify(model, source, images, engine="framework")


def test_a_softmax_may_underflow_and_no_more() -> None:
    nodes = [
        g.Input("image", "image", (), (1, 1, 3)),
        g.Flatten("flat", "flat", ("image",)),
        g.Softmax("end", "end", ("flat",)),
    ]
    logits = np.array([[[[0, -86.6, -40]]]])
    *_, (_, _, found) = walk(g.Graph("net", nodes, "end"), logits)
    tiny = np.exp(-40.0)
    for given, differs in (
        ([1, 0, tiny], []),
        ([1, 0, 0], [2]),
        ([1, 0, tiny * 1.01], [2]),
        ([0.99, 0, tiny], [0]),
    ):
        wrong, _ = verification._numbers_differ(np.array([given]), found, verification._FLOAT32)
        assert np.flatnonzero(wrong).tolist() == differs


@pytest.mark.parametrize("name", ["O01.onnx", "OPS13_ts.onnx"])
def test_the_trials_of_old_operator_sets_raise_no_alarm(name: str) -> None:
    require_modules("onnx", reason="pip install 'cbin-nn[onnx]'")
    source = shared_folder() / "trials" / name
    require("the trials", source.is_file(), "set CBIN_NN_SHARED to the folder that holds trials")
    known = np.load(source.parent / f"{name.split('.')[0].split('_')[0]}.npz")
    check = cbin_nn.verify(cbin_nn.convert(source), source, known["images"], engine="framework")
    assert check.exact and check.first_differing is None and check.top1_agree == len(known["images"])
