"""Put the network of a training run into the zoo, with its card.

    python scripts/make_zoo.py RUN NAME --data DIR --command 'cbin-nn train ...' --description '...'

RUN is a folder of `cbin-nn train`; its network must have finished. The test split is read here and nowhere
before: the accuracy on the card is that of the converted model, and every image that torch sees otherwise is
looked at again in float64. Needs the extra `torch`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cbin_nn.data import cifar10
from cbin_nn.train import convert, load_run, predict
from cbin_nn.train.data import as_input
from cbin_nn.train.export import load_parameters, save_parameters
from cbin_nn.zoo import Card

ZOO = Path(__file__).resolve().parent.parent / "python" / "cbin_nn" / "zoo"
FIRST = {"q8": "8-bit", "binary": "1-bit"}


def differences(model: torch.nn.Module, converted: Any, images: Any) -> dict[str, int]:
    """Images that torch in float32 sees otherwise than the converted model, and how many of them it sees
    like it in float64: there the difference is torch's own rounding."""
    ours = converted.run(images).argmax(axis=1)
    theirs = predict(model, images).argmax(1).numpy()
    where = np.flatnonzero(ours != theirs)
    if not len(where):
        return {"float32": 0, "explained_by_float64": 0}
    with torch.no_grad():
        precise = model.double()(as_input(torch.from_numpy(images[where])).double()).argmax(1).numpy()
    model.float()
    return {"float32": len(where), "explained_by_float64": int((precise == ours[where]).sum())}


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--data", type=Path, help="CIFAR-10; default: CBIN_NN_DATA")
    parser.add_argument("--command", required=True, help="what trains it, for the card")
    parser.add_argument("--description", help="a line for the card")
    parser.add_argument(
        "--trained-on", help="a line for the card on the data, where it isn't one part throughout"
    )
    parser.add_argument("--note", action="append", default=[], help="for the card; may be given again")
    parser.add_argument("--out", type=Path, default=ZOO)
    options = parser.parse_args()

    if not (options.run / "final.pt").exists():
        sys.exit(f"make_zoo: {options.run} has no final.pt: the run has not finished")
    _, recipe, epochs = load_run(options.run)
    options.out.mkdir(parents=True, exist_ok=True)
    parameters = options.out / f"{options.name}.npz"
    network, _, _ = load_run(options.run)
    save_parameters(parameters, network)
    # From the file that ships, not from the run, so that the card is about what a user can load.
    model = load_parameters(parameters, recipe.to_dict())
    converted = convert(model, name=options.name)
    converted.save(options.out / f"{options.name}.cbn", overwrite=True)

    images, labels = cifar10(options.data, "train")
    trained, held_back = len(images) - recipe.hold_back, None
    if recipe.hold_back:
        part = slice(len(images) - recipe.hold_back, None)
        held_back = float((converted.run(images[part]).argmax(axis=1) == labels[part]).mean())
    images, labels = cifar10(options.data, "test")
    accuracy = float((converted.run(images).argmax(axis=1) == labels).mean())
    found = differences(model, converted, images)
    notes = list(options.note)
    if found["float32"]:
        notes.append(
            f"of {found['float32']} images that torch in float32 sees otherwise, torch in float64 sees "
            f"{found['explained_by_float64']} like the converted model"
        )
    first = recipe.model_options.get("first", "q8")
    card = Card(
        name=options.name,
        description=options.description
        or f"5x5 convolutions of 32, 32 and 64 channels, one dense layer; {FIRST[first]} first-layer weights",
        data=options.trained_on
        or f"CIFAR-10: trained on the first {trained:,} training images, choices made on "
        f"the last {recipe.hold_back:,}",
        accuracy=accuracy,
        images=len(images),
        disagreements=found["float32"],
        held_back_accuracy=held_back,
        recipe=recipe.to_dict(),
        command=options.command,
        sha256=converted.sha256,
        license="MIT OR Apache-2.0",
        notes=tuple(notes),
    )
    text = json.dumps(card.to_dict(), indent=1) + "\n"
    with tempfile.NamedTemporaryFile("w", dir=options.out, delete=False) as file:
        file.write(text)
    Path(file.name).chmod(0o644)
    Path(file.name).replace(options.out / f"{options.name}.json")
    print(card)
    print(f"epochs     {epochs}")


if __name__ == "__main__":
    main()
