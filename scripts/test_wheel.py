"""Check a wheel: what it is called, how large it is, and that it deploys from an empty environment.

    python scripts/test_wheel.py dist/cbin_nn-*.whl

The wheel goes into a virtual environment of its own, which sees neither the source tree nor a compiler, and
its `cbin-nn` benches a model on an STM32F746 behind the tests' simulated probe.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BOARD = "stm32f746g-disco"
MOST_BYTES = 15_000_000


def main(wheel: Path) -> None:
    """Fail with the first thing that is wrong."""
    name = wheel.name
    assert "-abi3-" in name, f"{name} is no abi3 wheel"
    if sys.platform == "linux":
        assert "manylinux_2_28" in name, f"{name} is no manylinux_2_28 wheel"
    size = wheel.stat().st_size
    assert size < MOST_BYTES, f"{name} has {size:,} bytes"
    with zipfile.ZipFile(wheel) as archive:
        inside = {Path(entry).stem for entry in archive.namelist() if entry.startswith("cbin_nn/runners/")}
    boards = {folder.name for folder in (ROOT / "firmware" / "boards").iterdir()}
    assert inside == boards, f"{name} holds the runners of {sorted(inside)}, not of {sorted(boards)}"

    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder) / "environment"
        venv.create(environment, with_pip=True)
        subprocess.run([environment / "bin" / "pip", "install", "--quiet", f"{wheel}[keras]"], check=True)
        server = [sys.executable, "-m", "simulated", "--board", BOARD]
        paths = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
        with subprocess.Popen(server, stdout=subprocess.PIPE, text=True, env=paths) as simulated:
            try:
                assert simulated.stdout is not None
                selector = simulated.stdout.readline().split()[-1]
                model = ROOT / "tests" / "fixtures" / "smallcifar.h5"
                command = [environment / "bin" / "cbin-nn", "bench", model, "--board", BOARD]
                command += ["--probe", selector, "--count", "3", "--json"]
                # Nothing but the environment itself.
                done = subprocess.run(
                    command,
                    cwd=folder,
                    env={"PATH": str(environment / "bin")},
                    capture_output=True,
                    text=True,
                )
            finally:
                simulated.terminate()
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["agree"] == 3 and report["simulated"], report
    assert "cycles" not in report and "milliseconds" not in report, report
    print(
        f"{name}: {size:,} bytes; {report['agree']} of 3 images equal on {BOARD}, from an empty environment"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
