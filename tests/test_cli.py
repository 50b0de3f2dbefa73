"""The command line, as a user types it: real processes, real exit codes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cbin_nn
import numpy as np
import pytest
from cbin_nn import deploy
from cbin_nn.errors import BoardError
from conftest import require


def cbin(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from cbin_nn.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)  # type: ignore[call-overload]


def ok(*arguments: object) -> str:
    done = cbin(*arguments)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def failed(*arguments: object) -> str:
    """The one line of a checked error."""
    done = cbin(*arguments)
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    assert not done.stdout
    assert done.stderr.startswith("cbin-nn: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.fixture
def model(fixtures: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.cbn"
    ok("convert", fixtures / "tiny.h5", "-o", path)
    return path


def test_convert_inspect_run(model: Path, fixtures: Path, tmp_path: Path) -> None:
    info = json.loads(ok("inspect", model, "--json"))
    loaded = cbin_nn.load(model)
    assert [layer["name"] for layer in info["layers"]] == [layer.name for layer in loaded.layers]
    assert (info["flash"], info["arena"], info["macs"]) == (
        loaded.file_bytes,
        loaded.arena_bytes,
        loaded.macs,
    )
    for layer in info["layers"]:
        assert layer["name"] in ok("inspect", model)

    out = tmp_path / "out.npy"
    value = json.loads(ok("run", model, fixtures / "tiny_images.npy", "-o", out, "--json"))
    assert value["shape"] == [100, 10]
    expected = np.load(fixtures / "tiny_predictions.npz")["argmax"]
    np.testing.assert_array_equal(np.load(out).argmax(axis=1), expected)
    ok("run", model, fixtures / "tiny_images.npy", "-o", out, "--force", "--dequantize")
    assert np.load(out).dtype == np.float32


def test_convert_reports_what_it_folded(fixtures: Path, tmp_path: Path) -> None:
    value = json.loads(
        ok("convert", fixtures / "tiny.keras", "-o", tmp_path / "a.cbn", "--json", "--output", "i8")
    )
    assert value["bytes"] == (tmp_path / "a.cbn").stat().st_size
    assert {"name", "kind", "layers", "near_tie"} <= set(value["operators"][0])
    assert cbin_nn.load(tmp_path / "a.cbn").output_dtype == "i8"


def test_boards_are_listed() -> None:
    assert "qemu-mps2-an500" in ok("boards")
    assert json.loads(ok("boards", "--json"))["boards"][0]["simulated"] is True


def test_bench_in_json_and_text(model: Path, fixtures: Path) -> None:
    require("qemu-system-arm", shutil.which("qemu-system-arm") is not None, "apt-get install qemu-system-arm")
    try:
        deploy.runner_path("qemu-mps2-an500")
    except BoardError:
        require("the runner image", False, "make firmware")
    images = fixtures / "tiny_images.npy"
    value = json.loads(
        ok("bench", model, "--board", "qemu-mps2-an500", "--images", images, "--count", 5, "--json")
    )
    assert (value["images"], value["agree"]) == (5, 5)
    assert "5 images, 0 differing bytes" in ok("bench", model, "--images", images, "--count", 5)
    # A source file is converted on the way.
    assert json.loads(ok("bench", fixtures / "tiny.h5", "--count", 2, "--json"))["agree"] == 2


def test_bad_input_is_one_line_and_leaves_nothing(model: Path, fixtures: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.cbn"
    damaged.write_bytes(model.read_bytes()[:-100])
    cut = tmp_path / "cut.h5"
    cut.write_bytes((fixtures / "tiny.h5").read_bytes()[:5000])
    text = tmp_path / "text.npy"
    text.write_text("not an array")
    floats = tmp_path / "floats.npy"
    np.save(floats, np.zeros((1, 12, 12, 3)))
    out = tmp_path / "out"
    assert "truncated" in failed("inspect", damaged)
    assert "damaged.cbn" in failed("run", damaged, floats, "-o", out)
    assert "cut.h5" in failed("convert", cut, "-o", out)
    assert "absent.h5" in failed("convert", tmp_path / "absent.h5", "-o", out)
    assert "text.npy" in failed("run", model, text, "-o", out)
    assert "float64" in failed("run", model, floats, "-o", out)
    assert "absent" in failed("convert", fixtures / "tiny.h5", "-o", tmp_path / "absent" / "a.cbn")
    assert "exists" in failed("convert", fixtures / "tiny.h5", "-o", model)
    assert "exists" in failed("run", model, fixtures / "tiny_images.npy", "-o", model)
    assert "unknown" in failed("bench", model, "--board", "nonsense")
    assert "CIFAR-10" in failed("eval", model, "--data", tmp_path)
    assert not out.exists()
    assert cbin_nn.load(model)


def test_wrong_usage_is_status_2(model: Path) -> None:
    for arguments in (["nonsense"], ["convert"], ["run", model], ["bench", model, "--count", "0"], ["eval"]):
        done = cbin(*arguments)
        assert done.returncode == 2, arguments
        assert not done.stdout
    assert cbin("--help").returncode == 0


def test_eval_on_cifar10_at_the_samples_accuracy(cifar10_folder: Path, samples: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.cbn"
    ok("convert", samples / "smallcifar_prelu.h5", "-o", path)
    value = json.loads(ok("eval", path, "--data", cifar10_folder, "--json"))
    assert value["images"] == 10_000
    assert 0.3 < value["accuracy"] < 0.9
    assert value["images_per_second"] > 100


def test_strange_files_and_sizes_are_one_line_too(model: Path, fixtures: Path, tmp_path: Path) -> None:
    zipped, huge = tmp_path / "zipped.npy", tmp_path / "huge.npy"
    zipped.write_bytes(b"PK\x03\x04 and nothing of a zip")
    np.save(huge, np.zeros((1, 32, 32, 3), np.uint8))
    huge.write_bytes(huge.read_bytes().replace(b"(1, 32, 32, 3), }      ", b"(1000000000000, 32, 3)}"))
    out = tmp_path / "out.npy"
    assert "zipped.npy" in failed("run", model, zipped, "-o", out)
    assert "huge.npy" in failed("run", model, huge, "-o", out)
    assert "long" in failed("run", model, fixtures / "tiny_images.npy", "-o", tmp_path / ("x" * 300))
    assert "folder" in failed("run", model, fixtures / "tiny_images.npy", "-o", "")
    assert "ordinary" in failed("run", model, fixtures / "tiny_images.npy", "-o", "/dev/null", "--force")
    assert "converted already" in failed("convert", model, "-o", out)
    assert not out.exists()
    for option in (["run", model, huge, "-o", out, "--threads", 10**23], ["bench", model, "--count", 10**11]):
        assert cbin(*option).returncode == 2


def test_a_full_disk_is_one_line(model: Path) -> None:
    full = Path("/dev/full")
    require("/dev/full", full.exists(), "it exists on Linux")
    with full.open("w") as stdout:
        command = [sys.executable, "-c", "from cbin_nn.cli import main; main()", "inspect", str(model)]
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


def test_eval_refuses_a_model_without_classes(tmp_path: Path) -> None:
    weights = np.ones((10, 32, 32, 3), np.int8)
    bits, _ = cbin_nn.ops.qbconv2d.model(np.zeros((1, 32, 32, 3), np.uint8), weights)
    path = bits.save(tmp_path / "bits.cbn")
    assert "packed bits" in failed("eval", path, "--data", tmp_path)


def test_the_shell_completes_verbs_and_options() -> None:
    def completed(words: str, at: int) -> list[str]:
        variables = {"_CBIN_NN_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(at)}
        command = Path(sys.executable).with_name("cbin-nn")
        require("the cbin-nn command", command.is_file(), "make develop")
        done = subprocess.run(
            [command], env={**os.environ, **variables}, capture_output=True, text=True, timeout=60, check=True
        )
        return [line.removeprefix("plain,") for line in done.stdout.splitlines()]

    assert completed("cbin-nn in", 1) == ["inspect"]
    assert completed("cbin-nn bench --bo", 2) == ["--board"]
