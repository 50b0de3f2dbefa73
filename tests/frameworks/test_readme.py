"""The README's examples that need a framework: the blocks marked `py` that name one (one needs a board)."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
BLOCKS = [
    block
    for block in re.findall(r"```py\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    if "larq" in block or "torch" in block
]


def test_there_is_one_for_each_framework() -> None:
    assert sum("larq" in block for block in BLOCKS) == 1
    assert sum("torch" in block for block in BLOCKS) == 1


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split()[1].strip(","))
def test_the_example_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    framework = "tensorflow" if "larq" in block else "torch"
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"needs {framework}; the other half of `make test-frameworks` has it")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), namespace)
    assert getattr(namespace["converted"], "classes", None) == 10
