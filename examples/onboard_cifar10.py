"""Run CIFAR-10 on a board: convert a trained network, flash it, run images, read the benchmark back.

    python examples/onboard_cifar10.py                              # the emulated board; needs no hardware
    python examples/onboard_cifar10.py --board stm32f746g-disco     # the board on your desk

The images are CIFAR-10's test split where --data (or CBIN_NN_DATA) names its folder, else drawn ones.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cbin_nn
from cbin_nn import deploy
from cbin_nn.errors import BoardError, DataError
from cbin_nn.images import draw_images

NETWORK = Path(__file__).parent.parent / "tests" / "fixtures" / "smallcifar.h5"


def main() -> int:
    """Run it all; 1 if a board failed or disagreed with the host."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", type=Path, default=NETWORK, help="a .h5 or .keras file of Larq/Keras, or a .cbn"
    )
    parser.add_argument("--board", default="qemu-mps2-an500", help=", ".join(b.name for b in deploy.boards()))
    parser.add_argument("--probe", help="VID:PID[:SERIAL]; `cbin-nn probes` lists them")
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10")
    parser.add_argument("--count", type=int, default=20, help="images (default: 20)")
    arguments = parser.parse_args()

    load = cbin_nn.load if arguments.model.suffix == ".cbn" else cbin_nn.convert
    model = load(arguments.model)
    try:
        images, labels = cbin_nn.data.cifar10(arguments.data)
        images, labels = images[: arguments.count], labels[: arguments.count]
    except DataError as error:
        print(f"{error}\nOn drawn images instead.")
        images, labels = draw_images(arguments.count, *model.input_shape[:2], seed=1), None

    try:
        with deploy.connect(
            arguments.board, model, probe=arguments.probe, flash_progress=show_flash
        ) as device:
            predictions = device.run(images, progress=show_images).argmax(axis=1)
            report = device.bench(images, labels=labels)
    except BoardError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    print("\nPredictions:", " ".join(map(str, predictions)))
    print(report)
    return 0 if report.agree == report.images else 1


def show_flash(step: str, operation: str, done: int, total: int) -> None:
    """A line that is written over: how far the flashing has come."""
    print(f"\r\033[K{step}: {operation} {done:,} of {total:,} bytes", end="", flush=True)


def show_images(done: int, total: int) -> None:
    """A line that is written over: how many images have run."""
    print(f"\r\033[K{done} of {total} images", end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
