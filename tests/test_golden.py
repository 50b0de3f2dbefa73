"""Golden vectors in Python: the committed bytes, replayed by both kernels and made again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from cbin_nn import _native

FOLDER = Path(__file__).resolve().parent / "golden"
INDEX = json.loads((FOLDER / "index.json").read_text())["vectors"]
DTYPES = {"u8": np.uint8, "bits": np.uint32}


@pytest.mark.parametrize("reference", [False, True], ids=["optimized", "reference"])
@pytest.mark.parametrize("vector", INDEX, ids=lambda vector: vector["name"])
def test_replay(vector: dict, reference: bool) -> None:
    read = {suffix: (FOLDER / f"{vector['name']}.{suffix}").read_bytes() for suffix in ("cbn", "in", "out")}
    model = _native.Model.from_bytes(read["cbn"])
    height, width, _ = model.input_shape
    images = np.frombuffer(read["in"], DTYPES[model.input_dtype])
    images = images.reshape(vector["images"], height, width, -1)
    assert model.run(images, 1, reference).tobytes() == read["out"], vector["shows"]
    assert vector["family"] in {operator.kind for operator in model.operators()}


def test_the_index_lists_every_file_and_family() -> None:
    names = {vector["name"] for vector in INDEX}
    assert names == {path.stem for path in FOLDER.glob("*.cbn")}
    assert len({vector["family"] for vector in INDEX}) == 9
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 250_000


def test_the_generator_makes_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    import make_golden

    made = make_golden.files()
    committed = {
        path.name: path.read_bytes()
        for path in FOLDER.iterdir()
        if path.suffix in (".json", ".cbn", ".in", ".out")
    }
    assert made.keys() == committed.keys()
    changed = [name for name, content in made.items() if committed[name] != content]
    assert not changed, f"run tests/golden/make_golden.py if this is meant: {changed}"


def test_outputs_are_not_constant() -> None:
    """Every vector has both bits, or several integers."""
    for vector in INDEX:
        output = (FOLDER / f"{vector['name']}.out").read_bytes()
        assert len(set(output)) > 2, vector["name"]
