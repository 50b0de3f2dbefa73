"""The page on PyTorch is one program, from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import ROOT, require_modules


def test_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    require_modules("torch", reason="pip install 'cbin-nn[torch]'")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```py\n(.*?)```", (ROOT / "docs" / "pytorch.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 5
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "pytorch.md", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "approximated" in printed  # Unequal scales a channel.
    assert "its weights are real numbers" in printed
