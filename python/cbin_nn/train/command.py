"""What `cbin-nn train` does: recipe, teacher, run, conversion, and a check of the one against the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InvalidArgument

__all__ = ["TrainReport", "read_changes", "run"]


@dataclass(frozen=True)
class TrainReport:
    """What a run came to."""

    run: str
    #: Epochs done, and those that the recipe asks for.
    epoch: int
    epochs: int
    #: The converted model; None before the last epoch.
    model: str | None
    #: Accuracy of the converted model on the held-back images, and how many of them torch sees otherwise.
    held_back_accuracy: float | None
    held_back_images: int
    disagreements: int | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        if self.model is None:
            return f"{self.run}: {self.epoch} of {self.epochs} epochs done; the same command goes on"
        if self.held_back_accuracy is None:
            return f"{self.model}: {self.epochs} epochs"
        return (
            f"{self.model}: {self.epochs} epochs, accuracy {self.held_back_accuracy:.2%} on "
            f"{self.held_back_images:,} held-back images; torch predicts {self.disagreements} otherwise"
        )


def read_changes(changes: Iterable[str]) -> dict[str, Any]:
    """`FIELD=VALUE` strings as values: JSON where it is JSON, else the text itself.

    Raises:
        InvalidArgument: there is no `=`.
    """
    values: dict[str, Any] = {}
    for change in changes:
        name, found, text = change.partition("=")
        if not found:
            raise InvalidArgument("bad-recipe", f"--set {change}: expected FIELD=VALUE")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return values


def run(
    name: str,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[Any],
    out: Path,
    *,
    recipe_file: Path | None = None,
    changes: dict[str, Any] | None = None,
    until: int | None = None,
    teacher_epochs: int = 7,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> TrainReport | None:
    """Train, or go on with a run, and convert its network at the end; None in processes other than the first.

    Args:
        name: a name of `RECIPES`; the converted model is `out/NAME.cbn`.
        images: uint8 `[N, H, W, C]`, the training split.
        labels: integers `[N]`.
        out: folder of the run; a recipe in it is used unless another is asked for.
        recipe_file: a recipe in JSON instead.
        changes: fields of the recipe to change.
        until: stop after this epoch.
        teacher_epochs: of the float teacher, where the recipe distils; its logits are kept in
        `out/teacher.npz`.
        threads: of torch on the CPU; the result depends on it in the last bits.
        progress: called with (steps done, steps in all).

    Raises:
        InvalidArgument: the name, a field or a value is wrong.
        DataError: the folder holds a damaged run.
    """
    import torch

    from .export import convert, save_parameters
    from .recipe import RECIPES, Recipe
    from .teacher import cached_logits
    from .trainer import Trainer, make_fabric, predict

    if name not in RECIPES:
        raise InvalidArgument(
            "no-such-recipe", f"there is no recipe {name!r}; there are {', '.join(RECIPES)}"
        )
    kept = out / "recipe.json"
    recipe = (
        Recipe.read(recipe_file) if recipe_file else Recipe.read(kept) if kept.exists() else RECIPES[name]
    )
    recipe = recipe.replace(**(changes or {}))
    torch.set_num_threads(threads)
    fabric = make_fabric()

    def tell(done: int, total: int, _: str) -> None:
        if progress is not None:
            progress(done, total)

    teacher = None
    if recipe.distillation:
        if fabric.is_global_zero:
            out.mkdir(parents=True, exist_ok=True)
            options = {
                "epochs": teacher_epochs,
                "seed": recipe.seed,
                "device": fabric.device,
                "progress": tell,
            }
            teacher = cached_logits(out / "teacher.npz", images, labels, recipe.hold_back, **options)
        fabric.barrier()
        if teacher is None:
            teacher = cached_logits(out / "teacher.npz", images, labels, recipe.hold_back)
    trainer = Trainer(recipe, images, labels, out, teacher=teacher, fabric=fabric)
    model = trainer.run(until=until, progress=tell)
    if not fabric.is_global_zero:
        return None
    if trainer.epoch < recipe.epochs:
        return TrainReport(str(out), trainer.epoch, recipe.epochs, None, None, recipe.hold_back, None)
    path = out / f"{name}.cbn"
    converted = convert(model.cpu(), name=name)
    converted.save(path, overwrite=True)
    save_parameters(out / f"{name}.npz", model)
    held, disagreements = None, None
    if recipe.hold_back:
        part = images[-recipe.hold_back :]
        classes = converted.run(part).argmax(axis=1)
        held = float((classes == labels[-recipe.hold_back :]).mean())
        disagreements = int((classes != predict(model, part).argmax(1).numpy()).sum())
    return TrainReport(
        str(out), trainer.epoch, recipe.epochs, str(path), held, recipe.hold_back, disagreements
    )
