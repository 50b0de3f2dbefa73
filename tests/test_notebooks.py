"""The notebooks run from top to bottom, and are committed without their outputs.

Those that train or need a framework run in `tests/frameworks`.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, require, require_modules

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
#: Run in tests/frameworks instead.
NEED_FRAMEWORKS = {"01_train", "05_design_space"}


def execute(path: Path) -> Any:
    """The executed notebook. Raises at the first cell that fails."""
    require_modules("nbclient", "nbformat", "ipykernel", reason='pip install "cbin-nn[notebook]"')
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
    return notebook


def outputs(notebook: Any, kind: str) -> list[str]:
    """Every output of one MIME type, or what was printed ("stream")."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and kind == "stream":
                found.append(output.text)
            elif kind in output.get("data", {}):
                found.append(output.data[kind])
    return found


def test_there_are_notebooks() -> None:
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_is_run_by_a_test(path: Path) -> None:
    elsewhere = ROOT / "tests" / "frameworks" / "test_torch_notebooks.py"
    where = elsewhere if path.stem in NEED_FRAMEWORKS else Path(__file__)
    assert f'execute(ROOT / "notebooks" / "{path.name}")' in where.read_text()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs(path: Path) -> None:
    import json

    for cell in json.loads(path.read_text())["cells"]:
        assert not cell.get("outputs"), f"{path.name}: strip the outputs before you commit"
        assert cell.get("execution_count") is None, path.name


def test_convert_and_verify() -> None:
    notebook = execute(ROOT / "notebooks" / "02_convert_and_verify.ipynb")
    assert len(outputs(notebook, "image/png")) == 1
    printed = outputs(notebook, "stream")
    assert [text.count("Exact: yes") for text in printed].count(1) == 2
    wrong = next(text for text in printed if "Exact: NO" in text)
    # The layer whose weights were turned over, in the channel where they were.
    assert "First difference: layer 'sign_6'" in wrong and ", 5)" in wrong
    assert any("layer 'second': its weights are real numbers" in text for text in printed)
    assert "the same answers: True" in printed[-1]


def test_inspect_and_run() -> None:
    notebook = execute(ROOT / "notebooks" / "03_inspect_and_run.ipynb")
    assert len(outputs(notebook, "image/png")) == 3
    printed = outputs(notebook, "stream")
    # Jupyter shows the summary where it was printed, and in its order.
    assert printed[0].index('Model: "') < printed[0].index("qbconv2d") < printed[0].index("Flash: ")
    assert "acc <= 4" in "".join(printed)


def test_deploy_and_benchmark() -> None:
    require("qemu-system-arm", shutil.which("qemu-system-arm") is not None, "apt-get install qemu-system-arm")
    notebook = execute(ROOT / "notebooks" / "04_deploy_and_benchmark.ipynb")
    assert len(outputs(notebook, "image/png")) == 3
    assert "10 of 10 outputs equal" in "".join(outputs(notebook, "stream"))
    assert "0 differing bytes" in "".join(outputs(notebook, "text/html"))
