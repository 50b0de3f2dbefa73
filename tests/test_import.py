"""Importing the package is light: NumPy, and nothing that a user did not ask for."""

from __future__ import annotations

import statistics
import subprocess
import sys

HEAVY = ("h5py", "tensorflow", "keras", "tf_keras", "torch", "rich", "click", "matplotlib", "onnx")


def test_import_pulls_numpy_alone() -> None:
    code = f"import sys, cbin_nn; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_import_adds_less_than_half_of_numpy() -> None:
    # The process's own time, user and system: how busy the machine is otherwise is no part of an import.
    # NumPy's import says how fast it is.
    code = (
        "import time; begin = time.process_time(); import numpy; middle = time.process_time(); "
        "import cbin_nn; print((time.process_time() - middle) / (middle - begin))"
    )
    command = [sys.executable, "-c", code]
    subprocess.run(command, check=True, capture_output=True)  # once, to write bytecode
    ratios = [float(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(10)]
    assert statistics.median(ratios) < 0.5, ratios
