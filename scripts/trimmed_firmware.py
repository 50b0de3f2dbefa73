"""A runner with the operators of one model: trimmed_firmware.py MODEL [--board BOARD] [--output FOLDER].

Reads which operators the model has, and in which layout their weights are, builds the board's runner with
the Cargo features of the same names, and puts it into FOLDER (build/trimmed) as BOARD.elf. With
CBIN_NN_RUNNERS set to that folder the package deploys with it; a model that needs more is refused by the
board, with the layer's name. What it saves is printed. It needs Rust (https://rustup.rs).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cbin_nn
from cbin_nn import deploy
from elftools.elf.elffile import ELFFile

ROOT = Path(__file__).resolve().parent.parent
TARGET = "thumbv7em-none-eabihf"
#: Operators whose kernels differ by the layout of the weights.
WITH_LAYOUTS = {"qbconv2d", "bbconv2d"}


def features(model: cbin_nn.Model) -> list[str]:
    """The runner's Cargo features that a model needs, sorted."""
    operators = model._native.operators()
    return sorted(
        {
            f"{operator.kind}-{operator.weights_layout}" if operator.kind in WITH_LAYOUTS else operator.kind
            for operator in operators
        }
    )


def build(board: str, names: list[str], folder: Path) -> Path:
    """Builds the runner of `board` with some features into `folder`, and returns its path."""
    subprocess.run([ROOT / "scripts" / "rust-target.sh", TARGET], check=True)
    target = ROOT / "firmware" / "target" / "trimmed"
    command = ["cargo", "build", "--release", "--locked", "--quiet", "--target-dir", str(target)]
    command += ["-p", f"cbin-nn-{board}", "-p", "cbin-nn-runner", "--no-default-features"]
    command += ["--features", ",".join(f"cbin-nn-runner/{name}" for name in names)]
    # From the board's folder, whose .cargo/config.toml says for what core and with which flags.
    subprocess.run(command, check=True, cwd=ROOT / "firmware" / "boards" / board)
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(target / TARGET / "release" / board, folder / f"{board}.elf"))


def code_bytes(elf: Path) -> int:
    """Flash of an image in bytes: its .text, .rodata, .data and .itcm, as the runner itself reports it."""
    with elf.open("rb") as stream:
        sections = {section.name: section["sh_size"] for section in ELFFile(stream).iter_sections()}
    return sum(sections.get(name, 0) for name in [".text", ".rodata", ".data", ".itcm"])


def main() -> None:
    """Build, and say what it saves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help=".cbn, zoo:NAME, or a file that cbin_nn.convert reads")
    boards = sorted(path.name for path in (ROOT / "firmware" / "boards").iterdir() if path.is_dir())
    parser.add_argument("--board", choices=boards, default="qemu-mps2-an500")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "trimmed", help="folder of the image")
    arguments = parser.parse_args()
    converted = arguments.model.endswith(".cbn") or arguments.model.startswith("zoo:")
    model = cbin_nn.load(arguments.model) if converted else cbin_nn.convert(arguments.model)
    names = features(model)
    elf = build(arguments.board, names, arguments.output)
    print(f"{', '.join(names)}: {code_bytes(elf):,} bytes of code in {os.path.relpath(elf)}")
    try:
        print(f"all operators: {code_bytes(deploy.runner_path(arguments.board)):,} bytes")
    except cbin_nn.errors.BoardError:
        print("all operators: not built (make firmware)", file=sys.stderr)


if __name__ == "__main__":
    main()
