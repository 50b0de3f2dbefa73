"""How many bits of each packed activation are set, and how many change from a pixel to the next:
changes.py MODEL [--data DIR].

The cost of vertical counters on a board follows the second (docs/performance.md). On 32 drawn images, or on
the first 64 of CIFAR-10's test images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cbin_nn
import numpy as np
from cbin_nn.data import cifar10
from cbin_nn.images import draw_images


def main() -> None:
    """Print a line for each packed activation."""
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


if __name__ == "__main__":
    main()
