"""A small learnable data set, and a training run on it as a program: synthetic.py FOLDER [FIELD=VALUE ...]"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np


def draw(count: int, seed: int = 0) -> tuple[Any, Any]:
    """uint8 `[count, 32, 32, 3]` and labels: ten coarse patterns under noise."""
    rng = np.random.default_rng(seed)
    patterns = np.random.default_rng(1000).integers(60, 196, (10, 4, 4, 3))
    labels = rng.integers(0, 10, count)
    images = patterns[labels].repeat(8, axis=1).repeat(8, axis=2) + rng.normal(0, 50, (count, 32, 32, 3))
    return np.clip(images, 0, 255).astype(np.uint8), labels


def main() -> None:
    import torch
    from cbin_nn.train import Recipe, Trainer
    from cbin_nn.train.command import read_changes
    from cbin_nn.train.trainer import make_fabric

    torch.set_num_threads(1)
    options = {"batch": 50, "hold_back": 200, "warmup": 5, "decay": 1, "epochs": 4, "ema": 0.9}
    recipe = Recipe().replace(**{**options, **read_changes(sys.argv[2:])})
    images, labels = draw(1200)
    Trainer(recipe, images, labels, Path(sys.argv[1]), fabric=make_fabric("cpu")).run()


if __name__ == "__main__":
    main()
