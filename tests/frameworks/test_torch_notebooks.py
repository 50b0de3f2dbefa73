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
