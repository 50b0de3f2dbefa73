"""The notebooks that need PyTorch, from top to bottom."""

from __future__ import annotations

import re

import pytest
from conftest import ROOT, require_modules
from test_notebooks import execute, outputs


def test_train(monkeypatch: pytest.MonkeyPatch) -> None:
    require_modules("torch", "lightning_fabric", "matplotlib", reason="pip install 'cbin-nn[torch,notebook]'")
    monkeypatch.delenv("CBIN_NN_DATA", raising=False)  # On drawn images, in a minute.
    notebook = execute(ROOT / "notebooks" / "01_train.ipynb")
    assert len(outputs(notebook, "image/png")) == 2
    printed = "".join(outputs(notebook, "stream"))
    accuracies = [float(x) for x in re.findall(r"held-back accuracy ([\d.]+)%", printed)]
    assert len(accuracies) == 4 and accuracies[-1] > 30  # Chance is 10.
    agreements = re.findall(r"(\d+) of (\d+) predictions are torch's", printed)
    assert len(agreements) == 2
    # Near-ties of torch's own rounding may differ, few as they are.
    assert all(int(count) - int(same) <= int(count) // 100 for same, count in agreements)


def test_design_space(emulated_board: str, monkeypatch: pytest.MonkeyPatch) -> None:
    require_modules("torch", "matplotlib", reason="pip install 'cbin-nn[torch,notebook]'")
    monkeypatch.delenv("CBIN_NN_DATA", raising=False)
    notebook = execute(ROOT / "notebooks" / "05_design_space.ipynb")
    assert len(outputs(notebook, "image/png")) == 1
    rows = re.findall(
        r"^ *(\d+) +([\d.]+)% +([\d,]+) +([\d,]+) +([\d,]+)$", outputs(notebook, "stream")[-1], re.M
    )
    assert [int(row[0]) for row in rows] == [8, 16, 32, 64]
    accuracies = [float(row[1]) for row in rows]
    assert accuracies[-1] > max(50, accuracies[0])  # Chance is 10.
    for column in (2, 3, 4):  # What is wider costs more.
        values = [int(row[column].replace(",", "")) for row in rows]
        assert values == sorted(values) and values[0] > 0
