"""`verify`: agreement is found where it is, and disagreement where it was put."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cbin_nn
import numpy as np
import pytest
from cbin_nn.errors import InvalidArgument
from cbin_nn.images import draw_images
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
        assert "Exact: yes" in str(check)
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
