"""The main job, from a trained Larq file to a Cortex-M7: convert, run on the host, run on the board, compare.

    python examples/demo.py [--data CIFAR10_FOLDER]

The Larq file was trained briefly; the networks that ship with the package, run after it, were not. Without
CIFAR-10 it draws its own images. Without the emulator or the runner image it does the host part and says
what is missing.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import cbin_nn
import numpy as np
from cbin_nn import zoo
from cbin_nn.data import CLASSES, cifar10
from cbin_nn.errors import BoardError, DataError
from cbin_nn.images import draw_images

SOURCE = Path(__file__).parent.parent / "tests" / "fixtures" / "smallcifar.h5"
BOARD = "qemu-mps2-an500"
IMAGES = 100
#: Images that each of the zoo's networks runs on the board.
FEW = 10


def pictures(folder: Path | None) -> tuple[np.ndarray, np.ndarray | None]:
    """CIFAR-10's first test images where they are at hand, else images of our own, without labels."""
    try:
        named = folder if folder is not None and folder.is_dir() else None
        images, labels = cifar10(named)
    except DataError as error:
        print(f"Images: {IMAGES} drawn by this project ({error})")
        return draw_images(IMAGES, 32, 32, seed=1), None
    print(f"Images: the first {IMAGES} of CIFAR-10's test split")
    return images[:IMAGES], labels[:IMAGES]


def main() -> int:
    """Run the demo; 1 where host and board differ, or where CI (CBIN_NN_REQUIRE_ALL=1) finds no board."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10")
    folder = parser.parse_args().data
    images, labels = pictures(folder)

    start = time.perf_counter()
    model = cbin_nn.convert(SOURCE)
    print(f"Converted {SOURCE.name} in {1000 * (time.perf_counter() - start):.0f} ms, without TensorFlow:\n")
    print(model.conversion, "\n")
    model.summary()

    start = time.perf_counter()
    outputs = model.run(images)
    rate = len(images) / (time.perf_counter() - start)
    print(f"\nHost: {len(images)} images at {rate:,.0f} images a second", end="")
    print("" if labels is None else f", accuracy {(outputs.argmax(axis=1) == labels).mean():.0%}")
    if labels is not None:
        print(f"First image: {CLASSES[outputs[0].argmax()]} (labelled {CLASSES[labels[0]]})")

    try:
        report = model.bench(BOARD, images, labels=labels)
    except BoardError as error:
        print(f"\nThe board part was left out: {error}", file=sys.stderr)
        return int(os.environ.get("CBIN_NN_REQUIRE_ALL") == "1")
    print(f"\n{report}")
    differing = report.differing_bytes
    if labels is not None:
        print("\nThe networks that ship, on all test images on the host and a few on the board:\n")
        differing += sum(shipped(name, folder) for name in zoo.names())
    return 0 if differing == 0 else 1


def shipped(name: str, folder: Path) -> int:
    """Print a line about a network of the zoo; bytes that differ between host and board."""
    model = cbin_nn.load(f"zoo:{name}")
    images, labels = cifar10(folder)
    start = time.perf_counter()
    accuracy = (model.run(images).argmax(axis=1) == labels).mean()
    rate = len(images) / (time.perf_counter() - start)
    report = model.bench(BOARD, images[:FEW])
    print(
        f"zoo:{name}: accuracy {accuracy:.2%}, {rate:,.0f} images a second on the host; on the board "
        f"{report.count_median:,} {report.unit} an image, {report.differing_bytes} bytes differ"
    )
    return report.differing_bytes


if __name__ == "__main__":
    sys.exit(main())
