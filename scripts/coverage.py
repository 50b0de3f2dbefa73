"""Line coverage of `kernels` and `model` by their own Rust tests, per file and per crate.

    python scripts/coverage.py [--minimum 95]

Fails where a crate is below the minimum. Runs on the stable toolchain with its `llvm-tools`. A file's unit
tests (behind its `#[cfg(test)]`) are no part of the count: they would cover themselves. Lines that are not
compiled here (another architecture's) have no count.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CRATES = ("kernels", "model")
TARGET = ROOT / "target" / "coverage"


def llvm_tools() -> Path:
    """The folder of the toolchain's llvm-profdata and llvm-cov; installs them where rustup can."""
    host = re.search(r"host: (\S+)", output(["rustc", "-vV"]))
    assert host is not None
    folder = Path(output(["rustc", "--print", "sysroot"]).strip()) / "lib" / "rustlib" / host[1] / "bin"
    if not (folder / "llvm-profdata").exists():
        subprocess.run(["rustup", "component", "add", "llvm-tools"], check=True)
    return folder


def output(command: list[str]) -> str:
    """What a command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout


def build() -> list[str]:
    """The instrumented test binaries."""
    packages = [flag for crate in CRATES for flag in ("-p", f"cbin-nn-{crate}")]
    command = ["cargo", "test", *packages, "--features", "cbin-nn-model/std", "--tests", "--no-run"]
    command += ["--message-format=json", "--quiet", "--target-dir", str(TARGET)]
    environment = {**os.environ, "RUSTFLAGS": "-C instrument-coverage"}
    # Build scripts are instrumented too, and write where they stand unless told otherwise.
    environment["LLVM_PROFILE_FILE"] = str(TARGET / "build-%p.profraw")
    built = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    messages = [json.loads(line) for line in built.stdout.splitlines()]
    return [m["executable"] for m in messages if m.get("executable") and m["profile"]["test"]]


def lines_of(lcov: str) -> dict[Path, dict[int, int]]:
    """File -> line -> count, of an lcov report."""
    files: dict[Path, dict[int, int]] = defaultdict(dict)
    source = Path()
    for record in lcov.splitlines():
        kind, _, value = record.partition(":")
        if kind == "SF":
            source = Path(value).relative_to(ROOT)
        elif kind == "DA":
            line, count = value.split(",")[:2]
            files[source][int(line)] = max(int(count), files[source].get(int(line), 0))
    return files


def main() -> int:
    """Run the tests, print the table, compare with the minimum."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minimum", type=float, default=95.0, help="per cent of lines, of each crate")
    minimum = parser.parse_args().minimum
    tools, binaries = llvm_tools(), build()
    profiles = TARGET / "profiles"
    shutil.rmtree(profiles, ignore_errors=True)
    for at, binary in enumerate(binaries):
        # Where `cargo test` would run it: proptest looks for the sources from there.
        crate = "kernels" if b"cbin-nn-kernels" in Path(binary).with_suffix(".d").read_bytes() else "model"
        environment = {**os.environ, "LLVM_PROFILE_FILE": str(profiles / f"{at}.profraw")}
        command = [binary, "--quiet"]
        subprocess.run(
            command, check=True, cwd=ROOT / "rust" / crate, env=environment, stdout=subprocess.DEVNULL
        )
    merged = TARGET / "merged.profdata"
    raw = [str(profile) for profile in sorted(profiles.glob("*.profraw"))]
    subprocess.run([str(tools / "llvm-profdata"), "merge", "-sparse", *raw, "-o", str(merged)], check=True)
    objects = [flag for binary in binaries for flag in ("-object", binary)][1:]
    sources = [str(ROOT / "rust" / crate / "src") for crate in CRATES]
    export = [str(tools / "llvm-cov"), "export", "--format=lcov", f"--instr-profile={merged}", *objects]
    files = lines_of(output([*export, "--sources", *sources]))
    return report(files, minimum)


def report(files: dict[Path, dict[int, int]], minimum: float) -> int:
    """Print the tables; 1 where a crate is below `minimum`."""
    low = []
    for crate in CRATES:
        covered = total = 0
        for path in sorted(files):
            if not path.is_relative_to(Path("rust") / crate / "src"):
                continue
            source = (ROOT / path).read_text().splitlines()
            end = next((at for at, text in enumerate(source, 1) if text == "#[cfg(test)]"), len(source) + 1)
            counts = {line: count for line, count in files[path].items() if line < end}
            missed = sorted(line for line, count in counts.items() if count == 0)
            covered, total = covered + len(counts) - len(missed), total + len(counts)
            share = 100 * (1 - len(missed) / len(counts)) if counts else 100.0
            print(f"{path!s:44} {share:6.1f}% of {len(counts):4} lines  {spans(missed)}")
        share = 100 * covered / total
        print(f"{crate:44} {share:6.1f}% of {total:4} lines\n")
        if share < minimum:
            low.append(f"{crate} has {share:.1f}% line coverage, below {minimum}%")
    for line in low:
        print(line, file=sys.stderr)
    return 1 if low else 0


def spans(lines: list[int]) -> str:
    """Line numbers with neighbours joined: 3-5, 9."""
    joined: list[list[int]] = []
    for line in lines:
        if joined and line == joined[-1][1] + 1:
            joined[-1][1] = line
        else:
            joined.append([line, line])
    return ", ".join(f"{a}-{b}" if a < b else str(a) for a, b in joined)


if __name__ == "__main__":
    sys.exit(main())
