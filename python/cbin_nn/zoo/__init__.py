"""Trained models that ship with the package, each with its card: `cbin_nn.load("zoo:smallcifar")`.

A model NAME is three files here: `NAME.cbn`, what runs; `NAME.json`, its card; and `NAME.npz`, the trained
parameters it was converted from (latent weights included), as arrays under the names of torch's state dict.
`scripts/make_zoo.py` writes them from a training run.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidArgument

__all__ = ["PREFIX", "Card", "card", "names", "resolve"]

#: What a zoo model's name begins with, where a file is expected.
PREFIX = "zoo:"

_FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Card:
    """What there is to know about a model before using it."""

    name: str
    description: str
    #: Data set, the part that was trained on, and where choices were made.
    data: str
    #: Share of the data set's test images, of the converted model on the host (and so on a board).
    accuracy: float
    #: Test images, and how many of them get another prediction from the network in the training framework.
    images: int
    disagreements: int
    #: Accuracy on the held-back part of the training split; None where the last epochs trained on all of it.
    held_back_accuracy: float | None
    #: Fields of `cbin_nn.train.Recipe`.
    recipe: dict[str, Any]
    #: The command that trains it.
    command: str
    #: Digest of `NAME.cbn`.
    sha256: str
    license: str
    notes: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The `.cbn` file."""
        return _FOLDER / f"{self.name}.cbn"

    @property
    def parameters(self) -> Path:
        """The `.npz` file of trained parameters."""
        return _FOLDER / f"{self.name}.npz"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**self.__dict__, "notes": list(self.notes)}

    def __str__(self) -> str:
        held_back = ""
        if self.held_back_accuracy is not None:
            held_back = f" ({self.held_back_accuracy:.2%} on the held-back part of the training split)"
        lines = [
            f"{PREFIX}{self.name}: {self.description}",
            f"accuracy   {self.accuracy:.2%} on {self.images:,} test images{held_back}",
            f"data       {self.data}",
            f"agreement  {self.images - self.disagreements:,} of {self.images:,} predictions equal to "
            "the training framework's",
            f"command    {self.command}",
            f"license    {self.license}",
            f"sha256     {self.sha256}",
            *(f"note       {note}" for note in self.notes),
        ]
        return "\n".join(lines)


def names() -> list[str]:
    """The models' names, without the prefix."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


def card(name: str) -> Card:
    """The card of a model.

    Args:
        name: with or without `zoo:`.

    Raises:
        InvalidArgument: there is no such model; names those that there are.
    """
    plain = name.removeprefix(PREFIX)
    known = names()
    if plain not in known:
        raise InvalidArgument(
            "no-such-model", f"the zoo has no model {plain!r}; there are {', '.join(known) or 'none'}"
        )
    values = json.loads((_FOLDER / f"{plain}.json").read_text())
    return Card(**{**values, "notes": tuple(values.get("notes", ()))})


def resolve(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The file behind `zoo:NAME`; any other path as it is.

    Raises:
        InvalidArgument: the zoo has no such model.
    """
    text = os.fspath(path)
    if isinstance(text, str) and text.startswith(PREFIX):
        return card(text).path
    return path
