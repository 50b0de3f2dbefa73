"""The training example of Larq, as a program, on a few hundred real images."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "train_larq.py"


def test_it_trains_converts_and_agrees(cifar10_folder: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("larq") is None:
        pytest.skip("needs larq; `make test-keras` has it")
    command = [
        sys.executable,
        str(EXAMPLE),
        "--data",
        str(cifar10_folder),
        "--epochs",
        "2",
        "--images",
        "1000",
    ]
    ran = subprocess.run(
        [*command, "-o", str(tmp_path / "network.h5")], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    theirs, ours, same = (
        float(figure) for figure in re.findall(r"([\d.]+)%", ran.stdout.split("Larq on")[1])
    )
    assert same >= 99.9, ran.stdout
    assert abs(theirs - ours) <= 0.1, ran.stdout
    # Ten classes: it has learned something, so the comparison is not one of constants.
    assert theirs > 15, ran.stdout
