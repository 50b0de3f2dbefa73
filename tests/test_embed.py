"""The engine in a user's own firmware, in C and in Rust: the examples print what the host computes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import cbin_nn
import numpy as np
import numpy.typing as npt
import pytest
from cbin_nn.images import draw_images
from conftest import ROOT, require

IMAGES = 20
TARGET = "thumbv7em-none-eabihf"


def require_programs(*names: str) -> None:
    missing = [name for name in names if shutil.which(name) is None]
    require(" and ".join(missing) or names[0], not missing, "run `make test-python`, which installs them")


@pytest.fixture(scope="module", params=["smallcifar.h5", "tiny.h5"])
def assets(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model.cbn and images.bin, and beside it what the host makes of them."""
    folder = tmp_path_factory.mktemp("assets")
    model = cbin_nn.convert(ROOT / "tests" / "fixtures" / request.param)
    model.save(folder / "model.cbn")
    height, width, _ = model.input_shape
    images = draw_images(IMAGES, height, width, seed=7)
    images.tofile(folder / "images.bin")
    np.save(folder / "expected.npy", model.run(images))
    return folder


def run(command: list[str], folder: Path, succeeds: bool = True, **environment: str) -> str:
    """Standard output of a command that has to succeed, or to fail."""
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode == 0) == succeeds, f"{command}: {done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def run_c(model: Path, images: Path, build: Path, succeeds: bool = True) -> str:
    require_programs("arm-none-eabi-gcc", "qemu-system-arm", "cargo", "make")
    command = ["make", "run", f"BUILD={build}", f"MODEL={model}", f"IMAGES={images}"]
    return run(command, ROOT / "examples" / "embed-c", succeeds)


def check(printed: str, expected: npt.NDArray[np.int32]) -> None:
    lines = [line.split(" class ") for line in printed.splitlines() if " class " in line]
    assert len(lines) == IMAGES, printed
    np.testing.assert_array_equal([[int(x) for x in values.split()] for values, _ in lines], expected)
    np.testing.assert_array_equal([int(best) for _, best in lines], expected.argmax(axis=1))


def test_c(assets: Path, tmp_path: Path) -> None:
    printed = run_c(assets / "model.cbn", assets / "images.bin", tmp_path)
    check(printed, np.load(assets / "expected.npy"))


def test_rust(assets: Path) -> None:
    require_programs("qemu-system-arm", "cargo")
    printed = run(
        ["cargo", "run", "--release", "--locked", "--quiet"],
        ROOT / "examples" / "embed-rust",
        EMBED_ASSETS=str(assets),
        CARGO_TARGET_DIR=str(ROOT / "build" / "embed-rust"),
    )
    check(printed, np.load(assets / "expected.npy"))


def test_c_says_what_is_wrong_with_a_model(assets: Path, tmp_path: Path) -> None:
    damaged = bytearray((assets / "model.cbn").read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "damaged.cbn").write_bytes(damaged)
    printed = run_c(tmp_path / "damaged.cbn", assets / "images.bin", tmp_path, succeeds=False)
    assert "open: the model's bytes were damaged: copy the .cbn file again" in printed
