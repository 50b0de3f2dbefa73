"""Cycles of the hand-scheduled inner loops on a Cortex-M7, as llvm-mca estimates them: mca.py RUNNER.

An estimate, not a measurement: llvm-mca takes every load to hit and every branch to be predicted, and
knows neither flash wait states nor the caches. Needs `llvm-mca` (Debian's `llvm`) and `llvm-objdump` of
the `llvm-tools` component.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

#: Functions, and what their longest straight run does.
LOOPS = {
    "vertical::add_blocks": "a block of four picks and the carries behind it",
    "byte_mask::hits": "64 words of a filter",
    "byte_pairs::hits": "eight weights against four windows",
    "pixel_sums::hits": "16 taps of a filter against eight windows",
}


def tool(name: str) -> str:
    """Path of an LLVM tool, of Rust's component or the system's."""
    command = ["rustc", "--print", "sysroot"]
    sysroot = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    found = [str(path) for path in Path(sysroot).glob(f"lib/rustlib/*/bin/{name}")]
    path = found[0] if found else shutil.which(name)
    if path is None:
        sys.exit(f"{name} is missing: run 'rustup component add llvm-tools' or 'apt-get install llvm'")
    return path


def body(runner: str, function: str) -> list[str]:
    """The instructions of a function, without addresses and branches."""
    command = [tool("llvm-objdump"), "-d", "--no-show-raw-insn", "--demangle", runner]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    block = re.search(rf"<[^>]*{function}[^\n]*>:\n(.*?)\n\n", text, re.S)
    if block is None:
        sys.exit(f"{function} is not in {runner}")
    lines = [line.split(":", 1)[1].strip() for line in block[1].splitlines() if ":" in line]
    return [re.sub(r"\s+", " ", line) for line in lines]


def straight(lines: list[str]) -> list[str]:
    """The longest run of instructions without a branch or a write to the program counter."""
    best: list[str] = []
    run: list[str] = []
    for line in lines:
        if (
            re.match(r"(b|bl|bx|it[te]*|cbn?z|beq|bne|blo|bhs|bhi|bls|pop|push)(\.w|\.n)?\s", line)
            or " pc" in line
            or "<" in line
        ):
            run = []
        else:
            run.append(line)
            best = max(best, run, key=len)
    return best


def main() -> None:
    """Print instructions, cycles and instructions a cycle of each loop's straight part."""
    runner = sys.argv[1]
    for function, what in LOOPS.items():
        lines = straight(body(runner, function))
        command = [tool("llvm-mca"), "-mtriple=thumbv7em-none-eabihf", "-mcpu=cortex-m7", "-iterations=100"]
        result = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True)
        if result.returncode != 0:
            sys.exit(result.stderr)
        cycles = int(re.search(r"Total Cycles:\s+(\d+)", result.stdout)[1]) / 100  # type: ignore[index]
        print(f"{function:24} {len(lines):4} instructions in {cycles:6.1f} cycles (estimate); {what}")


if __name__ == "__main__":
    main()
