"""Shared fixtures: where the optional parts of the test suite are, and what happens without them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = Path(__file__).resolve().parent / "fixtures"

# `oracle`, `lowered_reference` and `make_fixture` are modules beside the tests.
sys.path.insert(0, str(Path(__file__).resolve().parent))


def require(part: str, found: bool, reason: str) -> None:
    """Skip the running test unless `found`; with CBIN_NN_REQUIRE_ALL=1 the absence is a failure.

    Args:
        part: what the test needs, for instance "samples" or "tensorflow".
        found: whether it is there.
        reason: what to do to have it.
    """
    if found:
        return
    if os.environ.get("CBIN_NN_REQUIRE_ALL") == "1":
        pytest.fail(f"{part} is required (CBIN_NN_REQUIRE_ALL=1): {reason}", pytrace=False)
    pytest.skip(f"needs {part}: {reason}")


def require_modules(*names: str, reason: str) -> None:
    """`require` for importable modules."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    require(" and ".join(missing) or names[0], not missing, reason)


def shared_folder() -> Path:
    """The folder of shared material: CBIN_NN_SHARED, or `../shared` beside the repository."""
    return Path(os.environ.get("CBIN_NN_SHARED", ROOT.parent / "shared"))


@pytest.fixture
def samples() -> Path:
    """Keras models with their framework's own answers; skips without them."""
    folder = shared_folder() / "samples" / "keras"
    require("samples", folder.is_dir(), "set CBIN_NN_SHARED to the folder that holds samples/keras")
    return folder


@pytest.fixture
def fixtures() -> Path:
    """Committed fixtures (`make_fixture.py` writes them)."""
    return FIXTURES


@pytest.fixture(scope="session")
def cifar10_folder() -> Path:
    """CIFAR-10: CBIN_NN_DATA, or what `make test` unpacked from the shared folder; skips without it."""
    folders = [Path(os.environ["CBIN_NN_DATA"])] if os.environ.get("CBIN_NN_DATA") else []
    folders.append(ROOT / "build" / "cifar10")
    found = next((f for f in folders if f.is_dir()), None)
    require("CIFAR-10", found is not None, "set CBIN_NN_DATA to its folder, or run `make test`")
    assert found is not None
    return found


@pytest.fixture(scope="session")
def emulated_board() -> str:
    """Name of the emulated board; skips without the emulator or the runner image."""
    from cbin_nn import deploy
    from cbin_nn.errors import BoardError

    name = "qemu-mps2-an500"
    require("qemu-system-arm", shutil.which("qemu-system-arm") is not None, "apt-get install qemu-system-arm")
    try:
        deploy.runner_path(name)
        found = True
    except BoardError:
        found = False
    require("the runner image", found, "make firmware")
    return name
