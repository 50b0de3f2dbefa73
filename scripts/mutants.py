"""Mutants of the reference kernels: each is one wrong line, and each must make a Rust test fail.

    python scripts/mutants.py [--only WORD]

The tests run on a copy of the tree in a temporary folder. A mutant whose text is not found exactly once is an
error (the code moved on: mend the mutant), and so is one that survives (no test sees the mistake: write one).
"""

# The table is read across.
# ruff: noqa: E501

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "target" / "mutants"
SOURCES = Path("rust/kernels/src")
#: Files with unit tests of their own against worked values.
UNITS = {"epilogue/rule.rs", "bits.rs", "epilogue/fixed.rs", "operators/bqqfc.rs", "shape.rs"}
#: Seconds that a mutant's tests may take; one that loops for ever is dead, too.
LIMIT = 120


class Mutant(NamedTuple):
    """One wrong line."""

    what: str
    file: str
    text: str
    replacement: str


MUTANTS = [
    # Rules.
    Mutant("threshold off by one", "epilogue/rule.rs", "(self.lo <= acc &&", "(self.lo < acc &&"),
    Mutant("upper bound off by one", "epilogue/rule.rs", "&& acc <= self.hi)", "&& acc < self.hi)"),
    Mutant("upper bound ignored", "epilogue/rule.rs", "self.lo <= acc && acc <= self.hi", "self.lo <= acc"),
    Mutant("flip ignored: the sign of gamma", "epilogue/rule.rs", "acc <= self.hi) != self.flip", "acc <= self.hi)"),
    Mutant("rules of the wrong pixel", "epilogue/binarization.rs", "let at = self.rules.pixel(conv_pixel, pixel);\n                                    any", "let at = self.rules.pixel(pixel, pixel);\n                                    any"),
    # Packing.
    Mutant("tie: sign(0) = -1", "bits.rs", "u32::from(s >= 0)", "u32::from(s > 0)"),
    Mutant("most significant bit first", "bits.rs", "(pixel[channel / 32] >> (channel % 32))", "(pixel[channel / 32] >> (31 - channel % 32))"),
    Mutant("padding bits not looked at", "bits.rs", "pixel[words - 1] & unused != 0)", "pixel[words - 1] & unused == unused)"),
    # The convolutions' common part.
    Mutant("veto ignored", "epilogue/binarization.rs", "(any && !vetoed) != invert", "any != invert"),
    Mutant("invert ignored", "epilogue/binarization.rs", "(any && !vetoed) != invert", "any && !vetoed"),
    Mutant("a fused pool that starts at 1", "epilogue/binarization.rs", "let (mut any, mut vetoed) = (false, false);", "let (mut any, mut vetoed) = (true, false);"),
    Mutant("padding bits set", "epilogue/binarization.rs", "    output.fill(0);", "    output.fill(1 << 31);"),
    # Accumulators.
    Mutant("border counted as -1 instead of 0", "operators/bbconv2d.rs", "_ if self.padding == Padding::Zero => continue,", "_ if self.padding == Padding::Zero => { acc -= geometry.input().channels() as i32; continue }"),
    Mutant("one-padding as zero-padding", "operators/bbconv2d.rs", "_ if self.padding == Padding::Zero => continue,", "_ if self.padding != Padding::Zero || true => continue,"),
    Mutant("zero-padding as one-padding", "operators/bbdepthwiseconv2d.rs", "_ if self.padding == Padding::Zero => continue,", "_ if false => continue,"),
    Mutant("K off by one", "operators/bbconv2d.rs", "let mut acc = 0;\n            for tap_y", "let mut acc = 1;\n            for tap_y"),
    Mutant("padding bits counted as channels", "operators/bbpointwiseconv2d.rs", "(0..shape.channels()).map(", "(0..shape.pixel_words() * 32).map("),
    Mutant("the last feature forgotten", "methods/dense.rs", "for channel in 0..self.input.channels() {", "for channel in 1..self.input.channels() {"),
    Mutant("the input's offset forgotten", "methods/bytes.rs", "affine.mul * i32::from(q) + add;", "affine.mul * i32::from(q) + 0 * add;"),
    Mutant("the first channel's offset for all", "methods/bytes.rs", "channel_adds.get(channel).copied()", "channel_adds.first().copied()"),
    Mutant("zero padding of the byte, not of its meaning", "methods/bytes.rs", "                continue;\n            };\n            for channel", "                acc += affine.add;\n                continue;\n            };\n            for channel"),
    Mutant("8-bit weights read as unsigned", "operators/qqconv2d.rs", "Weights::Byte(weights) => i32::from(weights[at]),", "Weights::Byte(weights) => i32::from(weights[at] as u8),"),
    Mutant("16-bit weights read as unsigned", "operators/qqconv2d.rs", "Weights::Wide(weights) => i32::from(weights[at]),", "Weights::Wide(weights) => i32::from(weights[at] as u16),"),
    Mutant("a bit of 0 as +1 under 8-bit weights", "operators/bqqfc.rs", "channel) { 1 } else { -1 };", "channel) { 1 } else { 1 };"),
    Mutant("1-bit weights inverted", "operators/qbconv2d.rs", "if self.weight_is_plus(filter, tap, channel) { 1 } else { -1 }", "if self.weight_is_plus(filter, tap, channel) { -1 } else { 1 }"),
    # Max-pool.
    Mutant("AND for OR", "operators/bmaxpool2d.rs", "if use_and { pooled && value } else { pooled || value }", "if use_and { pooled && value } else { pooled && value }"),
    Mutant("OR for AND", "operators/bmaxpool2d.rs", "if use_and { pooled && value } else { pooled || value }", "pooled || value"),
    Mutant("pool padding counted", "operators/bmaxpool2d.rs", "let (Some(y), Some(x)) = at else { continue };", "let (Some(y), Some(x)) = at else { pooled = !use_and; continue };"),
    # Requantization.
    Mutant("ties go up", "epilogue/fixed.rs", "(rest == half && floor & 1 == 1)", "(rest == half)"),
    Mutant("rounding towards minus infinity", "epilogue/fixed.rs", "floor + i64::from(rest > half || (rest == half && floor & 1 == 1))", "floor + i64::from(half < 0 && rest < 0)"),
    Mutant("saturation off by one", "epilogue/fixed.rs", "value.clamp(<$int>::MIN.into(), <$int>::MAX.into())", "value.clamp(<$int>::MIN.into(), i64::from(<$int>::MAX) - 1)"),
    Mutant("the knee belongs below", "epilogue/fixed.rs", "acc >= self.knee[unit]", "acc > self.knee[unit]"),
    # Geometry.
    Mutant("bottom padding forgotten", "shape.rs", "let padded = size + before + after;", "let padded = size + before;"),
    Mutant("dilation forgotten", "shape.rs", "tap * self.window.dilation[axis])", "tap)"),
]  # fmt: skip


def copy(to: Path) -> None:
    """Copy the workspace without what was built. Files are new by their dates: to cargo, the last run's mutants are old."""
    for name in ("Cargo.toml", "Cargo.lock"):
        shutil.copyfile(ROOT / name, to / name)
    ignored = shutil.ignore_patterns("target", "*.so")
    shutil.copytree(ROOT / "rust", to / "rust", ignore=ignored, copy_function=shutil.copyfile)


def test(tree: Path, *chosen: str) -> subprocess.CompletedProcess[str]:
    """Run the kernels' tests, or those that `chosen` names."""
    command = ["cargo", "test", "--quiet", "--package", "cbin-nn-kernels", *chosen]
    # A mutant is judged by its first failure; making that small takes longer than finding it.
    environment = {**os.environ, "CARGO_TARGET_DIR": str(TARGET), "PROPTEST_MAX_SHRINK_ITERS": "0"}
    environment |= {"RUST_BACKTRACE": "0", "RUSTFLAGS": "-C debuginfo=0"}
    return subprocess.run(
        command,
        cwd=tree,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=LIMIT,
    )


def killers(file: str) -> list[str]:
    """The tests that ought to see a mutant of this file: one binary is built in a third of the time of all."""
    if file in UNITS:
        return ["--lib"]
    operator = {"binarization": "bbconv2d", "bytes": "qbconv2d", "dense": "bbfc"}.get(
        Path(file).stem, Path(file).stem
    )
    return ["--test", "variants", "--", "--exact", operator]


def verdict(tree: Path, mutant: Mutant) -> tuple[bool, str]:
    """Whether a test fails for the mutant, and which."""
    path = tree / SOURCES / mutant.file
    original = path.read_text()
    found = original.count(mutant.text)
    if found != 1:
        return False, f"STALE: its text is there {found} times"
    path.write_text(original.replace(mutant.text, mutant.replacement))
    try:
        run = test(tree, *killers(mutant.file))
    except subprocess.TimeoutExpired:
        return True, "runs for ever"
    finally:
        path.write_text(original)
    if run.returncode == 0:
        return False, "SURVIVED"
    if "could not compile" in run.stdout:
        return False, "DOES NOT COMPILE"
    failed = sorted({line.split()[1] for line in run.stdout.splitlines() if line.startswith("---- ")})
    return bool(failed), ", ".join(failed) or "FAILED WITHOUT A TEST: " + run.stdout[-300:]


def main() -> int:
    """Kill them all, or say which lives."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="run the mutants whose description holds this")
    only = parser.parse_args().only
    chosen = [mutant for mutant in MUTANTS if only in mutant.what]
    began, alive = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="cbin-nn-mutants-") as folder:
        tree = Path(folder)
        copy(tree)
        unchanged = test(tree, "--lib", "--tests")
        if unchanged.returncode != 0:
            print(unchanged.stdout, file=sys.stderr)
            return 1
        for mutant in chosen:
            dead, why = verdict(tree, mutant)
            alive += not dead
            print(f"{'killed' if dead else 'ALIVE ':7} {mutant.file:30} {mutant.what:46} {why}", flush=True)
    seconds = time.monotonic() - began
    print(f"{len(chosen) - alive} of {len(chosen)} mutants killed in {seconds:.0f} s")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
