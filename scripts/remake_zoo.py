"""Convert the zoo's networks anew, from their parameters: remake_zoo.py --data DIR.

For when layouts or the memory plan have changed: each `.cbn` is made of the `.npz` beside it, and the card
keeps all but the digest. A network whose accuracy on the test split is not the card's, to the image, is not
written. Needs the extra `torch`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from cbin_nn.data import cifar10
from cbin_nn.files import write_atomically
from cbin_nn.train.export import convert_parameters

ZOO = Path(__file__).resolve().parent.parent / "python" / "cbin_nn" / "zoo"


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="CIFAR-10; default: CBIN_NN_DATA")
    images, labels = cifar10(parser.parse_args().data, "test")
    for path in sorted(ZOO.glob("*.json")):
        card = json.loads(path.read_text())
        model = convert_parameters(path.with_suffix(".npz"), card["recipe"], name=card["name"], output="i32")
        accuracy = float((model.run(images).argmax(axis=1) == labels).mean())
        if accuracy != card["accuracy"]:
            sys.exit(f"remake_zoo: {card['name']} has an accuracy of {accuracy}, not {card['accuracy']}")
        card["sha256"] = model.sha256
        model.save(path.with_suffix(".cbn"), overwrite=True)
        write_atomically(path, (json.dumps(card, indent=1) + "\n").encode(), overwrite=True)
        print(f"{card['name']}: {accuracy}, {model.file_bytes:,} bytes, {model.arena_bytes:,} of arena")


if __name__ == "__main__":
    main()
