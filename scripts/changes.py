"""What the cost of a model on a board follows: changes.py MODEL [--data DIR].

How many bits of each packed activation are set, and how many change from a pixel to the next, on 32 drawn
images or the first 64 of CIFAR-10's test images; and how many taps of a first layer of 1-bit weights are
looked up two at a time (docs/performance.md, "The kernels").
"""

from __future__ import annotations

import argparse
from itertools import groupby
from pathlib import Path

import cbin_nn
import numpy as np
import numpy.typing as npt
from cbin_nn.data import cifar10
from cbin_nn.images import draw_images


def taps_in_twos(weights: npt.NDArray[np.int8]) -> int:
    """Taps `[filters, kh, kw, C]` that have their like, in all channels, above or below: runs go in twos."""
    grey = weights.sum(axis=3) / weights.shape[3]
    pairs = 0
    for column in grey.transpose(0, 2, 1).reshape(-1, grey.shape[1]):
        pairs += sum(len(list(run)) // 2 for value, run in groupby(column) if abs(value) == 1)
    return 2 * pairs


def main() -> None:
    """Print a line for each packed activation, and one for the first layer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help=".h5, .keras, .cbn or zoo:NAME")
    parser.add_argument("--data", type=Path, help="CIFAR-10, instead of drawn images")
    options = parser.parse_args()
    is_keras = Path(options.model).suffix in {".h5", ".keras"}
    model = cbin_nn.convert(options.model) if is_keras else cbin_nn.load(options.model)
    height, width, channels = model.input_shape
    if options.data:
        images = cifar10(options.data, "test")[0][:64]
    else:
        images = draw_images(32, height, width, channels=channels)
    taps = [model.taps(np.ascontiguousarray(image)) for image in images]
    print(f"{'':24} {'set':>6} {'masked':>7} {'change':>7}")
    for layer in model.layers[:-1]:
        bits = np.stack([tap[layer.name] for tap in taps]) > 0
        share = bits.mean((0, 1, 2))
        change = (bits[:, :, 1:] != bits[:, :, :-1]).mean()
        print(f"{layer.name:24} {bits.mean():6.3f} {np.minimum(share, 1 - share).mean():7.3f} {change:7.3f}")
    first = model.layers[0]
    if first.operator == "qbconv2d":
        weights = model.weights()[first.name]
        print(f"{first.name}: {taps_in_twos(weights)} of {weights[..., 0].size} taps in twos")


if __name__ == "__main__":
    main()
