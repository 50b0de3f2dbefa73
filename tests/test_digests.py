"""The bytes of every model that the tests convert or replay: none of them changes unless somebody says so.

`digests.json` has a SHA-256 for each. A change of the file format, of a weight layout or of the memory plan
changes digests on purpose: write the list anew then, `python tests/test_digests.py`, and say why in the
commit. Sources of `../shared` are listed beside the committed ones, and skipped elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cbin_nn
import pytest
from cbin_nn.errors import ConversionError
from conftest import ROOT, require, shared_folder

DIGESTS = Path(__file__).resolve().parent / "digests.json"
SUFFIXES = {".h5", ".keras", ".onnx", ".pt2"}
#: Ways to convert a source, by the name that follows the file's in the list.
OPTIONS: dict[str, dict[str, Any]] = {"": {}, "unfused": {"fuse": False}, "i8": {"output": "i8"}}

EXPECTED: dict[str, str] = json.loads(DIGESTS.read_text()) if DIGESTS.exists() else {}


def path_of(key: str) -> Path:
    """The file of a key: relative to the repository, or to the shared folder."""
    folder, _, rest = key.partition("/")
    return shared_folder() / rest if folder == "shared" else ROOT / key


def digest(key: str) -> str:
    """The digest of a model file, or of what a source converts to."""
    name, _, option = key.partition("#")
    path = path_of(name)
    if path.suffix == ".cbn":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return str(cbin_nn.convert(path, **OPTIONS[option]).sha256)


def keys() -> Iterator[str]:
    """Everything there is to list."""
    for folder in ("tests/golden", "python/cbin_nn/zoo"):
        yield from (str(path.relative_to(ROOT)) for path in sorted((ROOT / folder).glob("*.cbn")))
    sources = [(path, f"{path.relative_to(ROOT)}") for path in (ROOT / "tests" / "fixtures").rglob("*")]
    shared = shared_folder()
    sources += [(path, f"shared/{path.relative_to(shared)}") for path in (shared / "samples").rglob("*")]
    for path, name in sorted(sources, key=lambda each: each[1]):
        if path.suffix in SUFFIXES:
            yield from (f"{name}#{option}" if option else name for option in OPTIONS)


@pytest.mark.parametrize("key", EXPECTED)
def test_bytes_are_those_of_the_list(key: str) -> None:
    require(
        "samples", path_of(key.partition("#")[0]).exists(), "set CBIN_NN_SHARED to the folder of samples/"
    )
    assert digest(key) == EXPECTED[key]


def test_every_golden_model_is_listed() -> None:
    models = {f"tests/golden/{path.name}" for path in (ROOT / "tests" / "golden").glob("*.cbn")}
    assert models <= set(EXPECTED)


if __name__ == "__main__":
    found = {}
    for key in keys():
        try:
            found[key] = digest(key)
        except ConversionError:
            print(f"does not convert: {key}")
    DIGESTS.write_text(json.dumps(found, indent=1) + "\n")
