r"""The training loop: deterministic with a seed, resumable, one process or many.

A run lives in a folder: `recipe.json`, `log.csv` (a row an epoch), `last.pt` (a checkpoint after every epoch:
model, optimizer, average, epoch) and, at the end, `final.pt`. Every random choice of an epoch is made from
(seed, epoch), so a run that was killed and started again makes the same numbers as one that wasn't, bit for
bit on the same machine with the same number of threads.

Lightning Fabric carries the loop to GPUs and to several processes: under `torchrun --nproc-per-node N` each
process takes every N-th image of each batch, and gradients are averaged. BatchNorm's statistics are those
of a process's own share, so several processes give the same network within noise, not the same bits.
"""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import DataError, InvalidArgument, MissingExtra
from . import fused
from .data import Draws, as_input, augment
from .estimators import set_progress
from .layers import set_binarize
from .models import MODELS
from .optimizers import make_optimizer
from .recipe import Recipe
from .variation import RowVariation

__all__ = ["Trainer", "accuracy", "build_model", "load_run", "make_fabric", "predict", "recalibrate", "train"]

Progress = Callable[[int, int, str], None]


def build_model(recipe: Recipe) -> nn.Module:
    """The recipe's network, initialized from its seed.

    Raises:
        InvalidArgument: there is no such model, or an option of it is unknown.
    """
    if recipe.model not in MODELS:
        raise InvalidArgument("bad-recipe", f"recipe: model {recipe.model!r}; there are {', '.join(MODELS)}")
    state = torch.random.get_rng_state()
    try:
        torch.manual_seed(recipe.seed)
        return MODELS[recipe.model](**recipe.model_options)
    except TypeError as error:
        raise InvalidArgument("bad-recipe", f"recipe: model_options: {error}") from error
    finally:
        torch.random.set_rng_state(state)


def make_fabric(accelerator: str = "auto") -> Any:
    """A Lightning Fabric for this process: alone, or one of those that `torchrun` started.

    Raises:
        MissingExtra: Lightning Fabric is not installed.
    """
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise MissingExtra(
            "missing-extra", "training needs Lightning Fabric: pip install 'cbin-nn[torch]'"
        ) from error
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    nodes = int(os.environ.get("WORLD_SIZE", "1")) // local
    fabric = Fabric(
        accelerator=accelerator,
        devices=local,
        num_nodes=nodes,
        strategy="ddp" if local * nodes > 1 else "auto",
    )
    fabric.launch()
    return fabric


class Trainer:
    """One run of a recipe in a folder. `train` is the short way to it.

    Args:
        recipe: what to do.
        images: uint8 `[N, H, W, C]`, the training split; its last `hold_back` images are held back.
        labels: integers `[N]`.
        folder: where the run lives; a checkpoint there is resumed.
        teacher: float32 `[N, 2, classes]`, logits of each image and of its mirror image, for distillation.
        fabric: see `make_fabric`; default: this process alone, on what it finds.

    Raises:
        InvalidArgument: the recipe doesn't fit the data or the folder's checkpoint.
        DataError: a checkpoint is damaged.
    """

    def __init__(
        self,
        recipe: Recipe,
        images: npt.NDArray[np.uint8],
        labels: npt.NDArray[Any],
        folder: str | os.PathLike[str],
        *,
        teacher: npt.NDArray[np.float32] | None = None,
        fabric: Any = None,
    ) -> None:
        self.recipe, self.folder = recipe, Path(folder)
        self.fabric = fabric if fabric is not None else make_fabric()
        self.count = len(images) - recipe.hold_back
        self.steps = self.count // recipe.batch
        if self.steps < 1:
            raise InvalidArgument(
                "bad-recipe",
                f"recipe: {len(images)} images less hold_back {recipe.hold_back} make no batch "
                f"of {recipe.batch}",
            )
        if recipe.batch % self.fabric.world_size:
            raise InvalidArgument(
                "bad-recipe",
                f"recipe: batch {recipe.batch} is no multiple of {self.fabric.world_size} processes",
            )
        if recipe.distillation and teacher is None:
            raise InvalidArgument(
                "no-teacher", "the recipe distils: pass the teacher's logits, or set distillation to 0"
            )
        if teacher is not None and teacher.shape[:2] != (len(images), 2):
            raise InvalidArgument(
                "bad-shape",
                f"`teacher` has shape {list(teacher.shape)}, expected [{len(images)}, 2, classes]",
            )
        # All of it lies where the network does: 154 MB of CIFAR-10, and no copy a step.
        device = self.fabric.device
        self.images = torch.from_numpy(np.ascontiguousarray(images)).to(device)
        self.labels = torch.from_numpy(np.asarray(labels).astype(np.int64)).to(device)
        self.teacher = None if teacher is None else torch.from_numpy(np.ascontiguousarray(teacher)).to(device)
        self.model = build_model(recipe)
        self.variation = RowVariation(self.model) if recipe.variation else None
        on_cpu = self.fabric.device.type == "cpu"
        self.use_fused = (
            recipe.fused
            and on_cpu
            and recipe.model_options.get("estimator", "approx") in fused.ESTIMATORS
            and hasattr(self.model, "use_fused")
            and fused.available()
        )
        if self.use_fused:
            self.model.use_fused(True)
        optimizer = make_optimizer(self.model, recipe.optimizer, lr=recipe.lr, **recipe.optimizer_options)
        self.wrapped, self.optimizer = self.fabric.setup(self.model, optimizer)
        self.average = None
        if recipe.ema:
            from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

            self.average = AveragedModel(
                self.model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema), use_buffers=False
            )
        self.epoch = 0
        if self.fabric.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
        self.fabric.barrier()
        if self.checkpoint.exists():
            self._resume()
        elif self.fabric.is_global_zero:
            (self.folder / "recipe.json").write_text(json.dumps(recipe.to_dict(), indent=1) + "\n")
            (self.folder / "log.csv").unlink(missing_ok=True)

    @property
    def checkpoint(self) -> Path:
        """The newest checkpoint of the run."""
        return self.folder / "last.pt"

    # -- running

    def run(self, *, until: int | None = None, progress: Progress | None = None) -> nn.Module:
        """Train until the recipe's last epoch.

        Args:
            until: stop after this epoch of the schedule instead, with a checkpoint.
            progress: called with (steps done, steps in all, a line about the last epoch).

        Returns:
            The trained network, in evaluation mode; the moving average where the recipe has one.
        """
        last = self.recipe.epochs if until is None else min(until, self.recipe.epochs)
        while self.epoch < last:
            row = self._train_epoch(progress)
            self.epoch += 1
            if self.epoch == self.recipe.epochs and self.recipe.recalibrate:
                recalibrate(
                    self.result(), self.images[: self.count][: self.recipe.recalibrate], self.fabric.device
                )
            row["held_back"] = self._held_back()
            self._save(row)
        model = self.result()
        model.eval()
        if self.epoch >= self.recipe.epochs and self.fabric.is_global_zero:
            _write(self.folder / "final.pt", {"model": model.state_dict(), "recipe": self.recipe.to_dict()})
        return model

    def result(self) -> nn.Module:
        """The network that is evaluated and exported."""
        if self.average is not None:
            averaged: nn.Module = self.average.module
            return averaged
        return self.model

    def _train_epoch(self, progress: Progress | None) -> dict[str, Any]:
        recipe, rank, world = self.recipe, self.fabric.global_rank, self.fabric.world_size
        start = time.perf_counter()
        draws = Draws.of_epoch(recipe.seed, self.epoch, self.count, recipe.shift, mirror=recipe.mirror)
        draws = draws.to(self.fabric.device)
        set_binarize(self.model, self.epoch >= recipe.real_weight_epochs)
        set_progress(self.model, self.epoch / max(1, recipe.epochs - 1))
        self.wrapped.train()
        # On the device: only an optimizer's count of flips is waited for at every step.
        sums = torch.zeros(3, dtype=torch.float64, device=self.fabric.device)
        flips = rate = 0.0
        for k in range(self.steps):
            rate = recipe.rate(self.epoch * self.steps + k, self.steps)
            for group in self.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * rate
            part = slice(k * recipe.batch + rank, (k + 1) * recipe.batch, world)
            index, mirror = draws.order[part], draws.mirror[part]
            x = augment(self.images, index, draws.dy[part], draws.dx[part], mirror, use_fused=self.use_fused)
            labels = self.labels[index]
            logits = self.wrapped(x)
            loss = self._loss(logits, labels, index, mirror)
            if self.variation is not None:
                variation = self.variation()
                loss = loss + recipe.variation * variation
                sums[2] += variation.detach()
            self.optimizer.zero_grad()
            self.fabric.backward(loss)
            self.optimizer.step()
            if self.average is not None:
                self.average.update_parameters(self.model)
            sums[0] += loss.detach()
            sums[1] += (logits.detach().argmax(1) == labels).double().mean()
            flips += self._flips()
            if progress is not None:
                progress(self.epoch * self.steps + k + 1, recipe.epochs * self.steps, "")
        loss_mean, correct, variation_mean = (sums / self.steps).tolist()
        row = {
            "epoch": self.epoch + 1,
            "learning_rate": recipe.lr * rate,
            "loss": loss_mean,
            "train": correct,
            "flips_a_step": flips / self.steps,
            "seconds": time.perf_counter() - start,
        }
        return row if self.variation is None else {**row, "variation": variation_mean}

    def _flips(self) -> int:
        inner = getattr(self.optimizer, "optimizer", self.optimizer)
        flips = getattr(inner, "flips", [])
        return int(flips[0]) if flips else 0

    def _loss(self, logits: Tensor, labels: Tensor, index: Tensor, mirror: Tensor) -> Tensor:
        recipe = self.recipe
        loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
        if not recipe.distillation:
            return loss
        assert self.teacher is not None
        target = (self.teacher[index, mirror] / recipe.temperature).softmax(1)
        logs = (logits / recipe.temperature).log_softmax(1)
        taught = -(target * logs).sum(1).mean() * recipe.temperature**2
        return (1 - recipe.distillation) * loss + recipe.distillation * taught

    def _held_back(self) -> float:
        every = self.recipe.evaluate_every
        if not self.recipe.hold_back or (self.epoch % every and self.epoch != self.recipe.epochs):
            return float("nan")
        return accuracy(self.result(), self.images[self.count :], self.labels[self.count :])

    # -- checkpoints

    def _state(self) -> dict[str, Any]:
        inner = getattr(self.optimizer, "optimizer", self.optimizer)
        return {
            "model": self.model.state_dict(),
            "optimizer": inner.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "epoch": self.epoch,
            "recipe": self.recipe.to_dict(),
        }

    def _save(self, row: dict[str, Any]) -> None:
        if self.fabric.is_global_zero:
            log = self.folder / "log.csv"
            new = not log.exists()
            with log.open("a", newline="") as file:
                writer = csv.DictWriter(file, list(row))
                if new:
                    writer.writeheader()
                writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
            _write(self.checkpoint, self._state())
        self.fabric.barrier()

    def _resume(self) -> None:
        state = _read(self.checkpoint)
        before = Recipe().replace(**state["recipe"])
        changed = [k for k, v in self.recipe.to_dict().items() if before.to_dict()[k] != v]
        # A trapezoid may go on for longer than was planned, or end sooner, until its decay has begun; and
        # images that choices were made on may join the others for the rest of it, but none may leave them.
        constant = self.recipe.schedule == "trapezoid" and state["epoch"] <= min(
            r.epochs - r.decay for r in (before, self.recipe)
        )
        free = {"evaluate_every", "recalibrate"}
        if constant:
            free |= {"epochs", "decay"}
            free |= {"hold_back"} if self.recipe.hold_back < before.hold_back else set()
        wrong = [k for k in changed if k not in free]
        if wrong:
            raise InvalidArgument(
                "other-run",
                f"{self.folder} holds a run of another recipe ({', '.join(wrong)} differ): "
                "use another folder, or the recipe in it",
            )
        try:
            self.model.load_state_dict(state["model"])
            getattr(self.optimizer, "optimizer", self.optimizer).load_state_dict(state["optimizer"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
        except (RuntimeError, KeyError, ValueError) as error:
            raise DataError(
                "damaged-checkpoint", f"{self.checkpoint}: {str(error).splitlines()[0]}"
            ) from error
        self.epoch = state["epoch"]
        if self.fabric.is_global_zero:
            (self.folder / "recipe.json").write_text(json.dumps(self.recipe.to_dict(), indent=1) + "\n")
            self._trim_log()

    def _trim_log(self) -> None:
        """Drop rows of epochs after the checkpoint: the run was killed between the two writes."""
        log = self.folder / "log.csv"
        if log.exists():
            lines = log.read_text().splitlines(keepends=True)
            log.write_text("".join(lines[: self.epoch + 1]))


def train(
    recipe: Recipe,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[Any],
    folder: str | os.PathLike[str],
    *,
    teacher: npt.NDArray[np.float32] | None = None,
    fabric: Any = None,
    progress: Progress | None = None,
) -> nn.Module:
    """Train a recipe's network, or go on where its folder stands.

    Args:
        recipe: as for `Trainer`; `folder`, `teacher` and `fabric` too.
        images: uint8 `[N, H, W, C]`, the training split.
        labels: integers `[N]`.
        progress: called with (steps done, steps in all, a line about the last epoch).
    """
    return Trainer(recipe, images, labels, folder, teacher=teacher, fabric=fabric).run(progress=progress)


@torch.no_grad()
def predict(model: nn.Module, images: Tensor | npt.NDArray[np.uint8], *, batch: int = 500) -> Tensor:
    """Logits in evaluation mode and plain float32.

    Args:
        model: the network.
        images: uint8 `[N, H, W, C]`.
        batch: images at a time.

    Returns:
        float32 `[N, classes]`.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    tensor = torch.as_tensor(images)
    logits = [
        model(as_input(tensor[i : i + batch]).to(device)).float().cpu() for i in range(0, len(tensor), batch)
    ]
    model.train(was_training)
    return torch.cat(logits)


def accuracy(model: nn.Module, images: Tensor | npt.NDArray[np.uint8], labels: Tensor) -> float:
    """Share of images whose largest logit is at their label.

    Args:
        model: the network.
        images: uint8 `[N, H, W, C]`.
        labels: integers `[N]`.
    """
    return float((predict(model, images).argmax(1) == torch.as_tensor(labels).cpu()).float().mean())


@torch.no_grad()
def recalibrate(model: nn.Module, images: Tensor, device: Any = "cpu", *, batch: int = 500) -> None:
    """Set every BatchNorm's statistics to the averages over images without augmentation.

    Args:
        model: the network.
        images: uint8 `[N, H, W, C]`.
        device: where the model is.
        batch: images at a time.
    """
    from torch.optim.swa_utils import update_bn

    update_bn((as_input(images[i : i + batch]) for i in range(0, len(images), batch)), model, device=device)


def load_run(folder: str | os.PathLike[str]) -> tuple[nn.Module, Recipe, int]:
    """(network, recipe, epochs done) of a run: its final network, or its newest checkpoint.

    Raises:
        DataError: the folder holds no run, or a damaged one.
    """
    path = Path(folder) / "final.pt"
    if not path.exists():
        path = Path(folder) / "last.pt"
    state = _read(path)
    recipe = Recipe().replace(**state["recipe"])
    model = build_model(recipe)
    values = state["model"]
    if state.get("average") is not None:
        values = {
            k.removeprefix("module."): v for k, v in state["average"].items() if k.startswith("module.")
        }
    try:
        model.load_state_dict(values)
    except RuntimeError as error:
        raise DataError("damaged-checkpoint", f"{path}: {str(error).splitlines()[0]}") from error
    return model.eval(), recipe, int(state.get("epoch", recipe.epochs))


def _write(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    torch.save(state, partial)
    partial.replace(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError("no-run", f"{path.parent} holds no training run: train one into it first") from None
    except Exception as error:  # torch raises many kinds for a damaged file
        raise DataError("damaged-checkpoint", f"{path}: {str(error).splitlines()[0]}") from error
    return state
