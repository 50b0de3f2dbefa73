"""Where the instructions of one image go, by function, on the emulated board: profile_board.py MODEL.

QEMU writes a line for each instruction it executes (`-singlestep -d exec`); this counts them by address and
adds them up by the runner's symbols. It takes some ten seconds for ten million instructions. Start-up, the
model's check and the transport are in it too. Needs a POSIX system (a FIFO) and `llvm-nm` of the
`llvm-tools` component.
"""

from __future__ import annotations

import argparse
import bisect
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

import cbin_nn
from cbin_nn.deploy import runner_path
from cbin_nn.images import draw_images

BOARD = "qemu-mps2-an500"


def symbols(runner: Path) -> tuple[list[int], list[str]]:
    """Addresses and names of the runner's functions, in order of address."""
    sysroot = subprocess.run(
        ["rustc", "--print", "sysroot"], check=True, capture_output=True, text=True
    ).stdout.strip()
    tools = list(Path(sysroot).glob("lib/rustlib/*/bin/llvm-nm"))
    if not tools:
        sys.exit("llvm-nm is missing: run 'rustup component add llvm-tools'")
    command = [str(tools[0]), "--demangle", "--numeric-sort", "--defined-only", str(runner)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    found = [(int(line[:8], 16), line[11:]) for line in lines if line[9] in "tT"]
    return [address for address, _ in found], [name for _, name in found]


def trace(model: cbin_nn.Model, folder: Path) -> Counter[int]:
    """Executed instructions by address, of one image."""
    fifo, wrapper = folder / "trace", folder / "qemu"
    os.mkfifo(fifo)
    program = os.environ.get("CBIN_NN_QEMU", "qemu-system-arm")
    wrapper.write_text(f'#!/bin/sh\nexec {program} -singlestep -d exec,nochain -D {fifo} "$@"\n')
    wrapper.chmod(0o755)
    os.environ["CBIN_NN_QEMU"] = str(wrapper)
    counts: Counter[int] = Counter()
    line = re.compile(rb"\[[0-9a-f]+/([0-9a-f]+)/")

    def read() -> None:
        with fifo.open("rb") as stream:
            counts.update(int(match[1], 16) for match in map(line.search, stream) if match)

    # A daemon: where QEMU fails to start, nobody ever opens the FIFO's other end.
    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    height, width, channels = model.input_shape
    model.bench(BOARD, draw_images(1, height, width, seed=1, channels=channels), timeout=600)
    reader.join()
    return counts


def main() -> None:
    """Print the functions that take the most instructions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help=".cbn, .h5 or .keras")
    parser.add_argument("--top", type=int, default=15, help="functions to show")
    arguments = parser.parse_args()
    converted = arguments.model.suffix == ".cbn"
    model = cbin_nn.load(arguments.model) if converted else cbin_nn.convert(arguments.model)
    addresses, names = symbols(runner_path(BOARD))
    with tempfile.TemporaryDirectory() as folder:
        counts = trace(model, Path(folder))
    functions: Counter[str] = Counter()
    for address, count in counts.items():
        at = bisect.bisect_right(addresses, address) - 1
        functions[names[at] if at >= 0 else "?"] += count
    for name, count in functions.most_common(arguments.top):
        print(f"{count:>12,}  {name}")


if __name__ == "__main__":
    main()
