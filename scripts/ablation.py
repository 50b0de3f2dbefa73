"""Compare optimizers on SmallCifar with equal budgets: the same data, epochs, schedule, batches and seeds.

    python scripts/ablation.py --data DIR [--images N] [--epochs N] [--seeds N] [-o FOLDER]

The accuracy is that on the last 5,000 images of CIFAR-10's training split, which no method trains on;
the test split is not read. Prints a Markdown table of mean, sample standard deviation and every seed's
figure. Each run is a folder of its own: one that was stopped goes on, one that has finished is only read.
Needs the extra `torch`.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cbin_nn.data import cifar10
from cbin_nn.train import Recipe, Trainer
from cbin_nn.train.trainer import make_fabric

HOLD_BACK = 5000


def methods(epochs: int) -> dict[str, dict[str, Any]]:
    """Name -> fields of the recipe that differ. Options are those of the sources, not tuned here."""
    return {
        "Adam + STE": {"model_options": {"estimator": "ste"}},
        "Adam + ApproxSign": {},
        "Two-stage Adam": {"real_weight_epochs": epochs // 2},
        "Bop": {"optimizer": "bop", "optimizer_options": {"gamma": 1e-3, "threshold": 1e-8}},
        "Bop + STE": {
            "model_options": {"estimator": "ste"},
            "optimizer": "bop",
            "optimizer_options": {"gamma": 1e-3, "threshold": 1e-8},
        },
        "FlipRateAdam": {"optimizer": "flip-rate"},
    }


def run(recipe: Recipe, images: Any, labels: Any, folder: Path) -> tuple[float, float]:
    """(held-back accuracy after the last epoch, seconds of all epochs); trains what is missing."""
    trainer = Trainer(recipe, images, labels, folder, fabric=make_fabric("cpu"))
    trainer.run()
    with (folder / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    return float(rows[-1]["held_back"]), sum(float(row["seconds"]) for row in rows)


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, help="CIFAR-10; default: CBIN_NN_DATA")
    parser.add_argument("--images", type=int, default=45_000, help="of the training split; default: 45000")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", action="append", help="a method's name; may be given again")
    parser.add_argument("-o", "--out", type=Path, default=Path("runs/ablation"))
    options = parser.parse_args()

    torch.set_num_threads(1)
    images, labels = cifar10(options.data, "train")
    if not 0 < options.images <= len(images) - HOLD_BACK:
        parser.error(f"--images: expected 1 to {len(images) - HOLD_BACK}, got {options.images}")
    part = np.r_[: options.images, len(images) - HOLD_BACK : len(images)]
    images, labels = images[part], labels[part]
    plan = methods(options.epochs)
    if set(options.only or ()) - set(plan):
        parser.error(f"--only: expected one of {', '.join(plan)}")
    found: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    # Seed by seed, so that what has run when it is stopped compares all methods.
    for seed in range(options.seeds):
        for name, changes in plan.items():
            if options.only and name not in options.only:
                continue
            recipe = Recipe(
                epochs=options.epochs,
                decay=options.epochs // 2,
                warmup=options.epochs * options.images // 100 // 20,
                seed=seed,
                hold_back=HOLD_BACK,
                evaluate_every=options.epochs,
            ).replace(**changes)
            slug = name.lower().replace(" ", "").replace("+", "-")
            start = time.perf_counter()
            accuracy, duration = run(recipe, images, labels, options.out / f"{slug}-{seed}")
            found.setdefault(name, []).append(accuracy)
            seconds.setdefault(name, []).append(duration)
            print(f"{name}, seed {seed}: {accuracy:.2%}, {time.perf_counter() - start:.0f} s", flush=True)

    print(f"\n{options.images:,} images, {options.epochs} epochs, {options.seeds} seeds\n")
    print("| Method | Mean | Standard deviation | Each seed | Seconds a run |")
    print("|---|---:|---:|---|---:|")
    for name, values in sorted(found.items(), key=lambda item: -statistics.mean(item[1])):
        spread = f"{100 * statistics.stdev(values):.2f}" if len(values) > 1 else "-"
        each = ", ".join(f"{100 * v:.2f}" for v in values)
        duration = statistics.mean(seconds[name])
        print(f"| {name} | {100 * statistics.mean(values):.2f} % | {spread} | {each} | {duration:.0f} |")


if __name__ == "__main__":
    main()
