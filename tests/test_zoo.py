"""The zoo without a deep-learning framework: cards, `zoo:NAME` wherever a model is expected, what ships."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cbin_nn
import numpy as np
import pytest
from cbin_nn import zoo
from cbin_nn.errors import InvalidArgument
from cbin_nn.images import draw_images

CARD: dict[str, Any] = {
    "description": "two lines about it",
    "data": "CIFAR-10",
    "accuracy": 0.5,
    "images": 10_000,
    "disagreements": 3,
    "held_back_accuracy": 0.51,
    "recipe": {"epochs": 3},
    "command": "cbin-nn train small",
    "license": "MIT OR Apache-2.0",
    "notes": ["a note"],
}


@pytest.fixture
def small(tmp_path: Path, fixtures: Path, monkeypatch: pytest.MonkeyPatch) -> cbin_nn.Model:
    """A zoo of one model, `small`: a converted fixture."""
    model = cbin_nn.convert(fixtures / "smallcifar.h5")
    model.save(tmp_path / "small.cbn")
    card = {"name": "small", "sha256": model.sha256, **CARD}
    (tmp_path / "small.json").write_text(json.dumps(card))
    monkeypatch.setattr(zoo, "_FOLDER", tmp_path)
    return model


def test_a_model_is_loaded_by_name(small: cbin_nn.Model) -> None:
    assert zoo.names() == ["small"]
    loaded = cbin_nn.load("zoo:small")
    assert loaded.sha256 == small.sha256
    images = draw_images(5, 32, 32)
    np.testing.assert_array_equal(loaded.run(images), small.run(images))


def test_a_card_has_every_figure(small: cbin_nn.Model) -> None:
    card = zoo.card("zoo:small")
    assert card == zoo.card("small")
    assert card.to_dict() == {"name": "small", "sha256": small.sha256, **CARD}
    text = str(card)
    for part in ("zoo:small", "50.00%", "51.00%", "9,997 of 10,000", "cbin-nn train small", "a note"):
        assert part in text, part


@pytest.mark.parametrize("name", ["zoo:nothing", "zoo:", "zoo:../small", "zoo:small.cbn"])
def test_an_unknown_name_is_refused_and_the_known_ones_named(small: cbin_nn.Model, name: str) -> None:
    with pytest.raises(InvalidArgument, match=r"the zoo has no model .*; there are small"):
        cbin_nn.load(name)


def test_other_paths_are_left_alone(tmp_path: Path) -> None:
    for path in ("model.cbn", tmp_path / "zoo" / "a.cbn", "./zoo:a", b"zoo:a"):
        assert zoo.resolve(path) == path


def test_a_source_of_the_zoo_takes_no_input_meaning(small: cbin_nn.Model) -> None:
    with pytest.raises(InvalidArgument, match=r"zoo:small takes pixels as they are"):
        cbin_nn.convert("zoo:small", input_scale=0.5)


# ------------------------------------------------------------------------------------------------
# what ships


def test_every_file_of_the_zoo_belongs_to_a_card() -> None:
    folder = Path(zoo.__file__).parent
    files = {path.name for path in folder.iterdir() if path.is_file()}
    expected = {f"{name}.{suffix}" for name in zoo.names() for suffix in ("cbn", "json", "npz")}
    assert files == expected | {"__init__.py"}


def test_the_papers_network_ships() -> None:
    card = zoo.card("smallcifar")
    assert card.images == 10_000 and card.disagreements <= 10
    assert card.accuracy > 0.78  # Measured: 78.40 %.


@pytest.mark.parametrize("name", zoo.names())
def test_a_model_that_ships_is_what_its_card_says(name: str) -> None:
    card = zoo.card(name)
    model = cbin_nn.load(f"zoo:{name}")
    assert card.name == name == model.name
    assert card.sha256 == model.sha256 == hashlib.sha256(card.path.read_bytes()).hexdigest()
    assert model.input_shape == (32, 32, 3) and model.classes == 10
    with np.load(card.parameters, allow_pickle=False) as arrays:
        latent = [arrays[key] for key in arrays.files if key.endswith("conv.weight")]
        assert len(latent) == 3
        assert all(np.isfinite(arrays[key]).all() for key in arrays.files)
        assert latent[1].shape == (32, 32, 5, 5)


@pytest.mark.parametrize("name", zoo.names())
def test_the_accuracy_on_the_card_is_measured_again(name: str, cifar10_folder: Path) -> None:
    images, labels = cbin_nn.data.cifar10(cifar10_folder)
    card = zoo.card(name)
    assert len(images) == card.images
    measured = (cbin_nn.load(f"zoo:{name}").run(images).argmax(axis=1) == labels).mean()
    assert measured == pytest.approx(card.accuracy, abs=1e-9)


# ------------------------------------------------------------------------------------------------
# the command line


def cbin(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", "from cbin_nn.cli import main; main()", *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)


def test_the_command_lists_the_zoo() -> None:
    done = cbin("zoo", "--json")
    assert done.returncode == 0, done.stderr
    assert [card["name"] for card in json.loads(done.stdout)["models"]] == zoo.names()
    assert cbin("zoo").returncode == 0


def test_the_command_refuses_an_unknown_name() -> None:
    for arguments in (["zoo", "nothing"], ["inspect", "zoo:nothing"], ["eval", "zoo:nothing"]):
        done = cbin(*arguments)
        assert done.returncode == 1 and not done.stdout
        assert done.stderr.startswith("cbin-nn: the zoo has no model 'nothing'"), done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", zoo.names())
def test_the_command_takes_a_name_for_a_model(name: str) -> None:
    done = cbin("inspect", f"zoo:{name}", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sha256"] == zoo.card(name).sha256
    shown = cbin("zoo", name)
    assert shown.returncode == 0 and f"zoo:{name}" in shown.stdout


@pytest.mark.parametrize(
    "use", ["cbin_nn.train.Recipe", *(f"cbin_nn.convert('zoo:{n}')" for n in zoo.names())]
)
def test_without_torch_the_extra_is_named(use: str) -> None:
    code = f"""
import sys
sys.modules["torch"] = None
import cbin_nn, cbin_nn.train
try:
    {use}
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("MissingExtra") and "pip install 'cbin-nn[torch]'" in done.stdout, (
        done.stdout
    )
