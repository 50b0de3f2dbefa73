"""Recipes: everything that decides a training run, as configuration that is written beside its result."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import InvalidArgument

__all__ = ["RECIPES", "Recipe"]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. The same recipe on the same data gives the same network.

    Raises:
        InvalidArgument: a value is out of range; names the field.
    """

    #: A name of `cbin_nn.train.models.MODELS`, and arguments of that class.
    model: str = "smallcifar"
    model_options: dict[str, Any] = field(default_factory=dict)
    epochs: int = 60
    batch: int = 100
    seed: int = 0
    #: Images at the end of the training split that are not trained on; choices are made by the accuracy
    #: there. A trapezoid's run may go on with fewer of them, until its decay has begun.
    hold_back: int = 5000
    #: "cosine"; or "trapezoid": constant, then a straight line to 0 over the last `decay` epochs, so that a
    #: run can go on for longer without having been planned to.
    schedule: Literal["cosine", "trapezoid"] = "trapezoid"
    decay: int = 20
    #: Steps of a linear warm-up.
    warmup: int = 500
    lr: float = 1e-3
    #: A name of `cbin_nn.train.optimizers.OPTIMIZERS`, and arguments of that class besides `lr`.
    optimizer: str = "adam"
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    #: Epochs at the start with real weights (and binary activations): two-stage training.
    real_weight_epochs: int = 0
    #: Augmentation: crops move by up to this many pixels each way; half of the images are mirrored.
    shift: int = 2
    mirror: bool = True
    label_smoothing: float = 0.0
    #: Share of the loss that follows a teacher's logits, softened by `temperature`; needs a teacher.
    distillation: float = 0.0
    temperature: float = 3.0
    #: Weight in the loss of the share of activations that differ from their left neighbour
    #: (`cbin_nn.train.RowVariation`): the fewer, the fewer instructions a board takes.
    variation: float = 0.0
    #: Decay of a moving average of all parameters that is evaluated and kept beside them; 0 is none.
    ema: float = 0.0
    #: Recompute the BatchNorms' statistics at the end, over this many images without augmentation; 0 leaves
    #: them.
    recalibrate: int = 0
    #: Evaluate on the held-back images every so many epochs, and at the end.
    evaluate_every: int = 2
    #: bfloat16 and fused CPU kernels where they are available; False is plain float32 everywhere.
    fused: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "evaluate_every"):
            self._check(name, getattr(self, name) >= 1, "1 or more")
        for name in ("hold_back", "decay", "warmup", "real_weight_epochs", "shift", "recalibrate", "seed"):
            self._check(name, getattr(self, name) >= 0, "0 or more")
        for name in ("label_smoothing", "distillation"):
            self._check(name, 0 <= getattr(self, name) <= 1, "0 to 1")
        self._check("variation", math.isfinite(self.variation) and self.variation >= 0, "0 or more")
        self._check("ema", 0 <= self.ema < 1, "0 to below 1")
        for name in ("lr", "temperature"):
            self._check(name, math.isfinite(getattr(self, name)) and getattr(self, name) > 0, "above 0")
        self._check("schedule", self.schedule in ("cosine", "trapezoid"), "'cosine' or 'trapezoid'")

    def _check(self, name: str, fine: bool, expected: str) -> None:
        if not fine:
            raise InvalidArgument(
                "bad-recipe", f"recipe: {name} is {getattr(self, name)!r}, expected {expected}"
            )

    def learning_rate(self, step: int, steps: int) -> float:
        """Learning rate of a step: `lr` times its `rate`.

        Args:
            step: from 0, over the whole run.
            steps: of an epoch.
        """
        return self.lr * self.rate(step, steps)

    def rate(self, step: int, steps: int) -> float:
        """Share of the full learning rate at a step, 0 to 1.

        Args:
            step: from 0, over the whole run.
            steps: in an epoch.
        """
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        left = self.epochs * steps - step
        if self.schedule == "cosine":
            return warm * 0.5 * (1 + math.cos(math.pi * step / (self.epochs * steps)))
        return min(warm, left / (min(self.decay, self.epochs) * steps)) if self.decay else warm

    def replace(self, **changes: Any) -> Recipe:
        """A copy with some fields changed.

        Raises:
            InvalidArgument: there is no such field, or a value is out of range.
        """
        unknown = sorted(set(changes) - {f.name for f in dataclasses.fields(self)})
        if unknown:
            known = ", ".join(f.name for f in dataclasses.fields(self))
            raise InvalidArgument("bad-recipe", f"recipe: no field {unknown[0]!r}; there are {known}")
        for f in dataclasses.fields(self):
            if f.name in changes:
                changes[f.name] = _typed(f.name, changes[f.name], getattr(self, f.name))
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Read a recipe that `to_dict` and JSON wrote; fields that are absent keep their default.

        Raises:
            InvalidArgument: no JSON, no such field, or a value out of range.
        """
        try:
            values = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise InvalidArgument("bad-recipe", f"recipe {path}: {error}") from error
        if not isinstance(values, dict):
            raise InvalidArgument("bad-recipe", f"recipe {path}: expected an object of fields")
        return cls().replace(**values)


def _typed(name: str, value: Any, like: Any) -> Any:
    """`value` as the type of the field; integers do for floats."""
    if isinstance(like, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, type(like)) and not (isinstance(value, bool) and not isinstance(like, bool)):
        return value
    raise InvalidArgument("bad-recipe", f"recipe: {name} is {value!r}, expected {type(like).__name__}")


#: What `cbin-nn train NAME` runs.
RECIPES = {
    "smallcifar": Recipe(epochs=440, decay=160, distillation=0.5, temperature=1.0),
    "smallcifar-binary": Recipe(
        epochs=500,
        decay=200,
        distillation=0.5,
        temperature=1.0,
        variation=0.5,
        model_options={"first": "binary"},
    ),
}
