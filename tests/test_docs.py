"""What the README and the docs show is what happens: their examples run here."""

from __future__ import annotations

import doctest
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cbin_nn import deploy
from cbin_nn.cli import main
from cbin_nn.errors import BoardError
from conftest import ROOT, require


def test_the_bit_contract_by_hand() -> None:
    outcome = doctest.testfile(str(ROOT / "docs" / "bits.md"), module_relative=False)
    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_the_page_on_converting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    outcome = doctest.testfile(str(ROOT / "docs" / "converting.md"), module_relative=False)
    assert outcome.attempted > 8
    assert outcome.failed == 0


@pytest.mark.parametrize(("page", "examples"), [("README.md", 2), ("docs/tutorial.md", 1)])
def test_the_examples_run(page: str, examples: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    require("qemu-system-arm", shutil.which("qemu-system-arm") is not None, "apt-get install qemu-system-arm")
    try:
        deploy.runner_path("qemu-mps2-an500")
    except BoardError:
        require("the runner image", False, "make firmware")
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    assert len(blocks) >= examples
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), namespace)


def test_the_commands_of_the_tutorial_run(tmp_path: Path) -> None:
    require("qemu-system-arm", shutil.which("qemu-system-arm") is not None, "apt-get install qemu-system-arm")
    commands = re.findall(
        r"^    \.venv/bin/(.*)", (ROOT / "docs/tutorial.md").read_text(), flags=re.MULTILINE
    )
    assert len(commands) == 5
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    printed = ""
    for command in commands:
        tool, *arguments = shlex.split(command)
        program = [sys.executable] if tool == "python" else [sys.executable, "-m", "cbin_nn"]
        done = subprocess.run(
            [*program, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (command, done.stderr)
        printed += done.stdout
    assert "100 images, 0 differing bytes between host and board" in printed


def test_the_readme_names_commands_that_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    verbs = set(re.findall(r"^    cbin-nn (\w+)", readme, flags=re.MULTILINE))
    assert verbs == set(main.commands)
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make ([a-z-]+)", readme):
        assert re.search(rf"^{target}:.*## ", makefile, flags=re.MULTILINE), target


def test_every_link_of_the_docs_leads_somewhere() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
