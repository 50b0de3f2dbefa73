"""Mutants of model files: 500 of those that `make mutate-containers` draws, and every file on which anything
was found before."""

from __future__ import annotations

import sys
from pathlib import Path

import container_mutants
import pytest

ROOT = Path(__file__).resolve().parent.parent
DAMAGED = sorted((ROOT / "tests" / "fixtures" / "damaged").iterdir())
sys.path.append(str(ROOT / "scripts"))

from mutate_containers import outcome  # noqa: E402


@pytest.mark.parametrize("kind", container_mutants.KINDS)
def test_mutants_convert_or_are_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"mutant.{kind}"
    outcomes = set()
    for seed in range(125):
        made = container_mutants.mutant(kind, seed)
        path.write_bytes(made.content)
        result = outcome(path)
        assert result["finding"] is None, (seed, made.how, made.source, result["finding"])
        outcomes.add(result["outcome"])
    # A share gets past the container, and into what can't be converted.
    assert {"converted", "damaged-file"} < outcomes


@pytest.mark.parametrize("path", DAMAGED, ids=lambda path: path.name)
def test_what_was_found_stays_mended(path: Path) -> None:
    assert outcome(path)["finding"] is None


def test_mutants_are_the_same_everywhere() -> None:
    for kind in container_mutants.KINDS:
        assert container_mutants.mutant(kind, 7) == container_mutants.mutant(kind, 7)
        assert len({container_mutants.mutant(kind, seed).content for seed in range(40)}) > 35
