"""A runner with the operators of one model: it runs that model, and refuses others by name."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import cbin_nn
import pytest
from cbin_nn.errors import OperatorNotBuilt
from cbin_nn.model import Model
from conftest import ROOT, require

sys.path.insert(0, str(ROOT / "scripts"))
import trimmed_firmware


@pytest.fixture(scope="module")
def trained() -> Model:
    return cbin_nn.convert(ROOT / "tests" / "fixtures" / "smallcifar.h5")


@pytest.fixture(scope="module")
def runners(trained: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runner for `trained`."""
    require("cargo", shutil.which("cargo") is not None, "https://rustup.rs")
    folder = tmp_path_factory.mktemp("trimmed")
    trimmed_firmware.build("qemu-mps2-an500", trimmed_firmware.features(trained), folder)
    return folder


def golden(name: str) -> Model:
    """A model of the golden vectors."""
    return cbin_nn.load(ROOT / "tests" / "golden" / f"{name}.cbn")


def test_features_are_operators_with_the_layouts_that_matter(trained: Model) -> None:
    assert trimmed_firmware.features(trained) == [
        "bbconv2d-by-output-channel",
        "bbqfc",
        "qbconv2d-pixel-sums",
    ]
    assert trimmed_firmware.features(golden("bbconv2d_c31")) == ["bbconv2d-canonical"]
    assert trimmed_firmware.features(golden("bmaxpool2d_or")) == ["bmaxpool2d"]


def test_the_model_runs_as_on_the_host(
    trained: Model, runners: Path, emulated_board: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CBIN_NN_RUNNERS", str(runners))
    assert trained.bench(emulated_board, count=10).agree == 10


def test_the_reported_code_is_that_of_the_image(runners: Path, emulated_board: str, trained: Model) -> None:
    whole = trained.bench(emulated_board, count=1).flash["code"]
    assert trimmed_firmware.code_bytes(runners / f"{emulated_board}.elf") < 0.75 * whole
    assert trimmed_firmware.code_bytes(cbin_nn.deploy.runner_path(emulated_board)) == whole


@pytest.mark.parametrize(
    ("name", "operator"),
    [
        ("bbconv2d_c31", "bbconv2d with weights in the layout canonical"),
        ("qqconv2d_bn", "qqconv2d and this runner"),
        ("bmaxpool2d_or", "bmaxpool2d and this runner"),
        ("bqqfc_i32", "bqqfc and this runner"),
        ("bbdepthwiseconv2d_c33", "bbdepthwiseconv2d and this runner"),
    ],
)
def test_other_operators_are_refused_by_name(
    name: str, operator: str, runners: Path, emulated_board: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CBIN_NN_RUNNERS", str(runners))
    model = golden(name)
    with pytest.raises(OperatorNotBuilt, match=operator) as caught:
        model.bench(emulated_board, count=1)
    assert caught.value.slug == "operator-not-built"
    assert f"layer '{model.layers[-1].name}'" in caught.value.message
