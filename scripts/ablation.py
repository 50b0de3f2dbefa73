"""Compare optimizers for binary networks at equal tuning, with the same data, epochs, schedule and seeds.

    python scripts/ablation.py --data DIR --stage tuning     # 6 epochs, one seed, every step
    python scripts/ablation.py --data DIR --stage finals     # 6, 12 and 40 epochs, three seeds, and 150, one
    python scripts/ablation.py --list                        # what has run, what is missing
    python scripts/ablation.py                               # the tables

One quantity of each method is tuned, the step of its latent weights; nothing else is. Steps are powers of two
times a declared first one: four at least, and on until the best has a worse one at either side. The
finals take each method at its own best step. Accuracy is that on the last 5,000 images of CIFAR-10's training
split after the last epoch, which no run trains on; the test split is not read.

A finished run is a JSON file in `bench/record/optimizer`, and is not run again. A run that was killed goes on
from its last epoch, in a folder under `--out`. Needs the extra `torch`.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import statistics
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HOLD_BACK = 5000
#: Steps of the tuning stage that every method gets.
FEWEST_STEPS = 4
TUNING = (6, (0,))
#: Epochs -> seeds.
FINALS = {6: (0, 1, 2), 12: (0, 1, 2), 40: (0, 1, 2), 150: (0,)}
ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "bench" / "record" / "optimizer"

#: Networks by name: the fields of the recipe that make them.
NETWORKS: dict[str, dict[str, Any]] = {
    "smallcifar": {},
    "smallcifar-binary": {"model_options": {"first": "binary"}},
}


@dataclass(frozen=True)
class Method:
    """A way to train, with everything declared but the step.

    Attributes:
        title: in tables.
        first: the first step of the grid; the others are it times powers of two, see `tuned`.
        stride: the declared steps are 2^stride apart; a power of two, above 1 where little is known.
        step: option of the optimizer that is the step of latent weights.
        optimizer: a name of `OPTIMIZERS`, `rivals`' among them; options too.
        model_options: of the network.
        recipe: other fields of the recipe, from the number of epochs.
        final: whether it is in the finals whatever the tuning says.
        variant: a change to ours that shows what matters in it; runs where `--only` asks for it.
    """

    title: str
    first: float
    stride: int = 1
    step: str = "latent_lr"
    optimizer: str = "adam"
    options: dict[str, Any] = field(default_factory=dict)
    model_options: dict[str, Any] = field(default_factory=dict)
    recipe: Callable[[int], dict[str, Any]] = lambda epochs: {}
    final: bool = False
    variant: bool = False


STE = {"estimator": "ste"}
BOP = {"step": "gamma", "optimizer": "bop", "options": {"threshold": 1e-8}}
RMS_MOMENTUM = {"momentum": 0.95, "nesterov": True, "normalize": True}
METHODS = {
    "muon": Method("LatentMuon", 5e-4, optimizer="muon", final=True),
    "adam-approx": Method("Adam + ApproxSign", 4e-3, final=True),
    "adam-ste": Method("Adam + STE", 4e-3, model_options=STE, final=True),
    "bop": Method("Bop", 2.5e-4, **BOP, final=True),
    "muon-ste": Method("LatentMuon + STE", 5e-4, optimizer="muon", model_options=STE),
    "bop-ste": Method("Bop + STE", 2.5e-4, **BOP, model_options=STE),
    "rms-momentum": Method("Momentum, RMS 1", 5e-4, optimizer="momentum", options=RMS_MOMENTUM),
    "sgd": Method("SGD with momentum 0.9", 0.01, stride=2, optimizer="momentum"),
    # gamma, threshold and sigma are the paper's for CIFAR-10.
    "bop2": Method(
        "Bop, second order",
        1e-7,
        stride=4,
        step="gamma",
        optimizer="bop2",
        options={"threshold": 1e-6, "sigma": 1e-3},
    ),
    "bayesbinn": Method("BayesBiNN", 7.5e-5, optimizer="bayesbinn"),
    "adam-reste": Method("Adam + ReSTE", 4e-3, model_options={"estimator": "reste"}),
    "adam-ede": Method("Adam + IR-Net's EDE", 4e-3, model_options={"estimator": "ede"}),
    "adam-two-stage": Method(
        "AdamBNN's two stages", 4e-3, recipe=lambda epochs: {"real_weight_epochs": epochs // 2}
    ),
    "muon-momentum-0.9": Method(
        "LatentMuon, momentum 0.9", 5e-4, optimizer="muon", options={"momentum": 0.9}, variant=True
    ),
    # Latent weights forget within 1 / (latent_lr latent_decay) steps, the later in a run the slower.
    "muon-decay-2": Method(
        "LatentMuon, decay 2", 5e-4, optimizer="muon", options={"latent_decay": 2.0}, variant=True
    ),
    # Its network has no fused kernels.
    "adam-surge": Method(
        "Adam + STE + SURGE-like auxiliary gradient",
        4e-3,
        model_options=STE,
        recipe=lambda epochs: {"model": "surge", "fused": False},
    ),
}


@dataclass(frozen=True)
class Run:
    """One training run of the comparison; `name` names its record."""

    network: str
    method: str
    step: float
    epochs: int
    seed: int
    images: int = 45_000

    @property
    def name(self) -> str:
        """Name of its record and of its folder."""
        images = "" if self.images == 45_000 else f"-{self.images}images"
        return f"{self.network}-{self.method}-{self.step:.3g}-{self.epochs}epochs-seed{self.seed}{images}"

    def recipe(self) -> dict[str, Any]:
        """Fields of its `Recipe`."""
        method = METHODS[self.method]
        network = NETWORKS[self.network]
        return {
            "epochs": self.epochs,
            "decay": self.epochs // 2,
            "warmup": self.epochs * (self.images // 100) // 20,
            "seed": self.seed,
            "hold_back": HOLD_BACK,
            "evaluate_every": self.epochs,
            **network,
            "model_options": {**network.get("model_options", {}), **method.model_options},
            "optimizer": method.optimizer,
            "optimizer_options": {**method.options, method.step: self.step},
            **method.recipe(self.epochs),
        }


class Records:
    """The finished runs, a JSON file each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: dict[Run, dict[str, Any]] = {}
        for path in sorted(folder.glob("*.json")):
            record = json.loads(path.read_text())
            self.found[Run(**record["run"])] = record

    def accuracy(self, run: Run) -> float | None:
        """Share of the held-back images, or None where the run is missing."""
        return self.found[run]["held_back"] if run in self.found else None

    def add(self, run: Run, values: dict[str, Any]) -> None:
        """Write a record whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        record = {"run": asdict(run), **values}
        partial = self.folder / f".{run.name}.partial"
        partial.write_text(json.dumps(record, indent=1) + "\n")
        partial.replace(self.folder / f"{run.name}.json")
        self.found[run] = record


# ------------------------------------------------------------------------------------------------
# what to run


def tuned(records: Records, network: str, method: str, images: int) -> dict[float, float | None]:
    """The grid of a method, ascending: step -> accuracy, None where it is still to run.

    It holds the declared steps; once these are done, the one beyond the end that the best is at; and, where
    the declared ones are further apart than a factor of 2, those around the best, until they are not.
    """
    epochs, seeds = TUNING
    first, stride = METHODS[method].first, METHODS[method].stride

    def accuracy(power: int) -> float | None:
        return records.accuracy(Run(network, method, first * 2.0**power, epochs, seeds[0], images))

    powers = set(range(0, FEWEST_STEPS * stride, stride))
    while True:
        grid = {power: accuracy(power) for power in sorted(powers)}
        done = {power: value for power, value in grid.items() if value is not None}
        if len(done) == len(grid):
            best = max(done, key=done.__getitem__)
            if stride > 1 and best not in (min(powers), max(powers)):
                stride //= 2
            around = {best - stride, best + stride}
            if not around <= powers:
                powers |= around
                continue
        return {first * 2.0**power: value for power, value in grid.items()}


def best_step(records: Records, network: str, method: str, images: int) -> float | None:
    """The step of the highest accuracy in a tuning that is complete, else None."""
    grid = tuned(records, network, method, images)
    found = {step: value for step, value in grid.items() if value is not None}
    return max(found, key=found.__getitem__) if len(found) == len(grid) else None


def finalists(records: Records, network: str, images: int) -> list[str]:
    """The declared ones, and the best of the others once all of these are tuned."""
    chosen = [name for name, method in METHODS.items() if method.final]
    others = [name for name, method in METHODS.items() if not (method.final or method.variant)]
    grids = {name: tuned(records, network, name, images).values() for name in others}
    if any(None in grid for grid in grids.values()):
        return chosen
    return [*chosen, max(others, key=lambda name: max(value or 0.0 for value in grids[name]))]


def tuning(records: Records, network: str, only: list[str], images: int) -> Iterator[Run]:
    """The runs of the tuning stage, step after step, so that what has run compares all methods."""
    grids = {name: list(tuned(records, network, name, images)) for name in only}
    epochs, seeds = TUNING
    for place in range(max(map(len, grids.values()), default=0)):
        for name, grid in grids.items():
            # From the middle outwards: the ends are the least likely best.
            order = sorted(grid, key=lambda step: abs(grid.index(step) - (len(grid) - 1) / 2))
            if place < len(order):
                yield Run(network, name, order[place], epochs, seeds[0], images)


def finals(records: Records, network: str, only: list[str], images: int, budgets: list[int]) -> Iterator[Run]:
    """The runs of the finals whose method is tuned, seed by seed."""
    steps = {
        name: best_step(records, network, name, images)
        for name in finalists(records, network, images)
        if name in only
    }
    for epochs in budgets:
        for seed in FINALS[epochs]:
            for name, step in steps.items():
                if step is not None:
                    yield Run(network, name, step, epochs, seed, images)


# ------------------------------------------------------------------------------------------------
# running


def watch_updates(optimizer: Any, path: Path, every: int) -> None:
    """Append the root mean square of some steps of the latent weights to a file, each with its rate.

    A step is measured as it was done: clipped at the bound of the latent weights.

    Args:
        optimizer: an optimizer of `cbin_nn.train.optimizers`.
        path: the file.
        every: measure one step of so many.
    """
    import torch

    latent = [p for group in optimizer.param_groups if group["binary"] for p in group["params"]]
    count, before = 0, []

    def keep(*_: Any) -> None:
        nonlocal count, before
        before = [p.detach().clone() for p in latent] if count % every == 0 else []
        count += 1

    def measure(*_: Any) -> None:
        if not before:
            return
        squares = sum(float((p.detach() - old).square().sum()) for p, old in zip(latent, before, strict=True))
        size = (squares / sum(p.numel() for p in latent)) ** 0.5
        group = optimizer.param_groups[0]
        with path.open("a") as file:
            file.write(f"{group['lr'] / group['initial_lr']:.6g},{size:.6g}\n")

    assert isinstance(optimizer, torch.optim.Optimizer)
    optimizer.register_step_pre_hook(keep)
    optimizer.register_step_post_hook(measure)


def commit() -> str:
    """The commit that ran, marked where the tree differs from it."""
    line = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(line, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def train(run: Run, images: Any, labels: Any, folder: Path) -> dict[str, Any]:
    """Run it, or the rest of it; what its record says besides the run itself."""
    import rivals
    import torch
    from cbin_nn.train import Recipe, Trainer
    from cbin_nn.train.trainer import make_fabric

    rivals.register()
    recipe = Recipe().replace(**run.recipe())
    trainer = Trainer(recipe, images, labels, folder, fabric=make_fabric("cpu"))
    updates = folder / "updates.csv"
    inner = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    watch_updates(inner, updates, every=max(1, trainer.steps // 10))
    trainer.run()
    with (folder / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    full = [float(size) for rate, size in csv.reader(updates.open()) if float(rate) == 1]
    return {
        "held_back": float(rows[-1]["held_back"]),
        "train": float(rows[-1]["train"]),
        "loss": float(rows[-1]["loss"]),
        "flips_a_step": [round(float(row["flips_a_step"]), 1) for row in rows],
        "rms_of_a_step": statistics.fmean(full) if full else None,
        "seconds_an_epoch": round(statistics.fmean(float(row["seconds"]) for row in rows), 1),
        "recipe": recipe.to_dict(),
        "fused": trainer.use_fused,
        "commit": commit(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }


# ------------------------------------------------------------------------------------------------
# tables


def percent(value: float | None) -> str:
    """For a table."""
    return "" if value is None else f"{100 * value:.2f}"


def tuning_table(records: Records, network: str, images: int) -> str:
    """A row a method, its steps ascending, the best in bold."""
    lines = [
        "| Method | Tuned | Step: held-back images | RMS of a step, at the best | Flips a step there |",
        "|---|---|---|---:|---|",
    ]
    for name, method in METHODS.items():
        grid = tuned(records, network, name, images)
        best = max((v for v in grid.values() if v is not None), default=None)
        if best is None:
            continue
        cells = [
            f"{step:.3g}: " + (f"**{percent(value)}**" if value == best else percent(value) or "to run")
            for step, value in grid.items()
        ]
        step = next(step for step, value in grid.items() if value == best)
        record = records.found[Run(network, name, step, TUNING[0], TUNING[1][0], images)]
        size, flips = record["rms_of_a_step"], record["flips_a_step"]
        state = "" if None not in grid.values() else "unfinished"
        lines.append(
            f"| {method.title} | `{method.step}` {state} | {', '.join(cells)} "
            f"| {'' if size is None else f'{size:.1e}'} | {flips[0]:.0f} to {flips[-1]:.0f} |"
        )
    return "\n".join(lines)


def finals_table(records: Records, network: str, images: int) -> str:
    """A row a method and budget: mean, sample standard deviation, each seed."""
    lines = [
        "| Epochs | Method | Step | Mean | Standard deviation | Each seed |",
        "|---|---|---|---:|---:|---|",
    ]
    for epochs, seeds in FINALS.items():
        rows = []
        for name, method in METHODS.items():
            step = best_step(records, network, name, images)
            if step is None:
                continue
            runs = [Run(network, name, step, epochs, seed, images) for seed in seeds]
            found = [records.found[run]["held_back"] for run in runs if run in records.found]
            if found:
                spread = percent(statistics.stdev(found)) if len(found) > 1 else ""
                each = ", ".join(map(percent, found))
                mean = statistics.fmean(found)
                cells = [str(epochs), method.title, f"{step:.3g}", percent(mean), spread, each]
                rows.append((mean, f"| {' | '.join(cells)} |"))
        lines += [row for _, row in sorted(rows, reverse=True)]
    return "\n".join(lines)


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, help="CIFAR-10; default: CBIN_NN_DATA")
    parser.add_argument("--stage", choices=["tuning", "finals"], help="run it; default: print the tables")
    parser.add_argument("--list", action="store_true", help="print the runs of the stage, or of both, only")
    parser.add_argument("--only", action="append", choices=list(METHODS), help="may be given again")
    parser.add_argument("--epochs", type=int, action="append", choices=list(FINALS), help="of the finals")
    parser.add_argument("--network", choices=list(NETWORKS), default="smallcifar")
    parser.add_argument("--images", type=int, default=45_000, help="of the training split; default: 45000")
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("-o", "--out", type=Path, default=Path("build/ablation"), help="folders of the runs")
    options = parser.parse_args()
    only = options.only or [name for name, method in METHODS.items() if not method.variant]
    records = Records(options.records)

    def plan(stage: str) -> list[Run]:
        if stage == "tuning":
            return list(tuning(records, options.network, only, options.images))
        return list(finals(records, options.network, only, options.images, options.epochs or list(FINALS)))

    if options.list:
        for stage in [options.stage] if options.stage else ["tuning", "finals"]:
            for run in plan(stage):
                print(f"{stage}  {run.name}  {percent(records.accuracy(run)) or 'to run'}")
        return
    if options.stage:
        import numpy as np
        import torch
        from cbin_nn.data import cifar10

        torch.set_num_threads(1)
        images, labels = cifar10(options.data, "train")
        if not 100 <= options.images <= len(images) - HOLD_BACK:
            parser.error(f"--images: expected 100 to {len(images) - HOLD_BACK}, got {options.images}")
        part = np.r_[: options.images, len(images) - HOLD_BACK : len(images)]
        images, labels = images[part], labels[part]
        # What is missing is asked for again after each run: a grid grows by what it finds.
        while run := next((run for run in plan(options.stage) if run not in records.found), None):
            records.add(run, train(run, images, labels, options.out / run.name))
            print(f"{run.name}: {percent(records.accuracy(run))}", flush=True)
    print(f"\nTuning: {options.network}, {options.images:,} images, {TUNING[0]} epochs, one seed\n")
    print(tuning_table(records, options.network, options.images))
    print(f"\nFinals: {options.network}, {options.images:,} images, each method at its best step\n")
    print(finals_table(records, options.network, options.images))


if __name__ == "__main__":
    main()
