r"""The weights of a Keras model by layer: of an `.h5` file, a `.keras` archive or a TensorFlow checkpoint.

A file is hostile until read: no link leaves it, and nothing is read before its size has been compared with
what the architecture asks for. What no layer took is told (`Weights.left`).
"""

from __future__ import annotations

import importlib
import math
import re
from typing import Any

import numpy as np

from ...errors import MissingExtra
from ..graph import Float32, Shape
from . import signatures as tables
from .architecture import _MAX_DEPTH
from .layer import Layer, as_text, snake_case

__all__ = ["ArchiveWeights", "CheckpointWeights", "Hdf5Weights", "Weights", "child_of", "import_h5py"]

_MAX_WEIGHTS = 2**26  # elements of one array: as many as a `.cbn` file may have


_MAX_EXPANSION = 64  # of a large compressed array; signs as float32 shrink to a thirtieth


def import_h5py() -> Any:
    """h5py, or an error that names the extra."""
    try:
        return importlib.import_module("h5py")
    except ImportError as error:
        raise MissingExtra(
            "missing-extra", "reading Keras files needs h5py; run: pip install 'cbin-nn[keras]'"
        ) from error


class Weights:
    """Weight arrays by layer."""

    def take(self, layer: Layer, expected: list[tuple[str, Shape]]) -> list[Float32]:
        """The arrays of `layer`, in the order of `expected` (name, shape), as float32."""
        raise NotImplementedError

    def left(self) -> list[str]:
        """The variables of layers that no layer took."""
        raise NotImplementedError


def _read_array(layer: Layer, dataset: Any, what: str, shape: Shape) -> Float32:
    h5py = import_h5py()
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "fiub":
        raise layer.refuse("damaged-file", f"{what} is not an array of numbers")
    if dataset.external or dataset.is_virtual:
        raise layer.refuse("damaged-file", f"{what} lies in another file, which is not followed")
    if dataset.shape != shape:
        raise layer.refuse(
            "shape-mismatch", f"{what} has shape {dataset.shape}, the architecture asks for {shape}"
        )
    if math.prod(shape) > _MAX_WEIGHTS:
        raise layer.refuse("shape-mismatch", f"{what} of shape {shape} is too large")
    stored = dataset.id.get_storage_size()
    if dataset.nbytes > max(2**24, _MAX_EXPANSION * stored):
        raise layer.refuse("damaged-file", f"{what}: {stored} bytes that expand to {dataset.nbytes}")
    return np.asarray(dataset[()]).astype(np.float32)


def child_of(group: Any, path: str) -> Any:
    """An object below `group`, by hard links alone; None where there is none."""
    h5py = import_h5py()
    for part in path.split("/"):
        if part in ("", "."):
            continue
        if not isinstance(group, h5py.Group) or not isinstance(group.get(part, getlink=True), h5py.HardLink):
            return None
        group = group[part]
    return group


def _names(group: Any, attribute: str) -> list[str]:
    """A list attribute; Keras splits one above 64 KiB into `name0`, `name1` ..."""
    if attribute in group.attrs:
        parts = [group.attrs[attribute]]
    else:
        parts = []
        while f"{attribute}{len(parts)}" in group.attrs:
            parts.append(group.attrs[f"{attribute}{len(parts)}"])
    return [as_text(name) for part in parts for name in np.asarray(part).reshape(-1).tolist()]


class Hdf5Weights(Weights):
    """`model_weights/<layer>/<weight name>`."""

    def __init__(self, root: Any) -> None:
        self.root = root
        #: (group, name of the variable in it).
        self.taken: set[tuple[str, str]] = set()

    def left(self) -> list[str]:
        """As `Weights.left`."""
        pairs = []
        for key in self.root:
            group = child_of(self.root, key)
            if group is not None:
                pairs += [(key, name) for name in _names(group, "weight_names")]
        return [f"{key}: {name}" for key, name in pairs if (key, name) not in self.taken]

    def take(self, layer: Layer, expected: list[tuple[str, Shape]]) -> list[Float32]:
        """As `Weights.take`."""
        if not expected:
            return []
        outermost = (*layer.parents, layer)[0].name
        group = child_of(self.root, outermost)
        if group is None:
            raise layer.refuse("missing-weights", "the file holds no weights for it")
        names = _names(group, "weight_names")
        if layer.parents:  # a model inside the model lists the weights of all its layers
            names = [name for name in names if layer.name in name.split("/")[:-1]]
        by_leaf: dict[str, str] = {}
        for name in names:
            by_leaf.setdefault(name.rsplit("/", 1)[-1].split(":", 1)[0], name)
        wanted = [leaf for leaf, _ in expected]
        if all(leaf in by_leaf for leaf in wanted):
            chosen = [by_leaf[leaf] for leaf in wanted]
        elif len(names) == len(expected):
            chosen = names
        else:
            raise layer.refuse("missing-weights", f"expected the weights {wanted}, the file has {names}")
        arrays = []
        for name, (leaf, shape) in zip(chosen, expected, strict=True):
            dataset = child_of(group, name)
            if dataset is None:
                raise layer.refuse("missing-weights", f"weight {name!r} is absent")
            self.taken.add((outermost, name))
            arrays.append(_read_array(layer, dataset, leaf, shape))
        return arrays


class ArchiveWeights(Weights):
    """`layers/<snake_case_class>[_n]/vars/<i>`."""

    def __init__(self, root: Any) -> None:
        self.root = root
        #: Names of the datasets that were read.
        self.taken: set[str] = set()

    def left(self) -> list[str]:
        """As `Weights.left`."""
        found: list[str] = []

        def visit(group: Any, depth: int) -> None:
            for key in group:
                item = child_of(group, key)
                if item is None or key in tables.STATELESS:
                    continue
                if hasattr(item, "shape"):
                    found.append(item.name)
                elif depth < 4 * _MAX_DEPTH:
                    visit(item, depth + 1)

        for part in ("vars", "layers", "_layer_checkpoint_dependencies"):
            group = child_of(self.root, part)
            if group is not None:
                visit(group, 0)
        return [name for name in found if name not in self.taken]

    @staticmethod
    def _container(root: Any) -> Any:
        for name in ("layers", "_layer_checkpoint_dependencies"):
            found = child_of(root, name)
            if found is not None:
                return found
        return None

    def _group(self, root: Any, layer: Layer, below: str) -> tuple[str, Any]:
        """(name, group) of `layer` in its model's group `root`, by class and position."""
        stem, container = snake_case(layer.class_name), self._container(root)
        groups = []
        for key in [] if container is None else list(container):
            match = re.fullmatch(re.escape(stem) + r"(?:_(\d{1,9}))?", key)
            found = child_of(container, key) if match else None
            if match and found is not None and (not below or child_of(found, below) is not None):
                groups.append((int(match[1] or 0), key, found))
        groups.sort(key=lambda item: item[0])
        count = layer.siblings.count(layer.class_name)
        if len(groups) != count and below:
            groups = [item for item in groups if len(child_of(item[2], below))]
        if len(groups) != count:
            raise layer.refuse(
                "missing-weights",
                f"the file has weights of {len(groups)} layers of its class, and the architecture has "
                f"{count}; save the model again with model.save('NAME.keras')",
            )
        _, key, group = groups[layer.rank]
        return key, group

    def take(self, layer: Layer, expected: list[tuple[str, Shape]]) -> list[Float32]:
        """As `Weights.take`."""
        if not expected:
            return []
        root = self.root
        for parent in layer.parents:
            _, root = self._group(root, parent, "")
        key, group = self._group(root, layer, "vars")
        variables = child_of(group, "vars")
        if len(variables) != len(expected):
            raise layer.refuse(
                "missing-weights" if len(variables) < len(expected) else "unsupported-weights",
                f"expected {len(expected)} weights {[leaf for leaf, _ in expected]}, "
                f"the file has {len(variables)} under {key!r}",
            )
        arrays = []
        for i, (leaf, shape) in enumerate(expected):
            dataset = child_of(variables, str(i))
            if dataset is None:
                raise layer.refuse("missing-weights", f"weight {leaf!r} ({key}/vars/{i}) is absent")
            self.taken.add(dataset.name)
            arrays.append(_read_array(layer, dataset, leaf, shape))
        return arrays


class CheckpointWeights(Weights):
    """A TensorFlow checkpoint: `layer_with_weights-<n>/<leaf>`, n counting the layers of a model that have
    any."""

    def __init__(self, reader: Any) -> None:
        self.reader = reader
        self.taken: set[str] = set()

    def left(self) -> list[str]:
        """As `Weights.left`."""
        return [
            key
            for key in sorted(self.reader.get_variable_to_shape_map())
            if re.match(r"layer(_with_weights)?-\d+/", key)
            and ".OPTIMIZER_SLOT" not in key
            and "/keras_api/" not in key
            and not set(key.split("/")) & tables.STATELESS
            and key not in self.taken
        ]

    def take(self, layer: Layer, expected: list[tuple[str, Shape]]) -> list[Float32]:
        """As `Weights.take`."""
        parts = []
        for each in (*layer.parents, layer):
            parts.append(f"layer_with_weights-{sum(each.weighted[: each.index])}")
        arrays = []
        for leaf, shape in expected:
            key = "/".join([*parts, leaf, ".ATTRIBUTES", "VARIABLE_VALUE"])
            if not self.reader.has_tensor(key):
                raise layer.refuse("missing-weights", f"the checkpoint holds no {key!r}")
            self.taken.add(key)
            array = np.asarray(self.reader.get_tensor(key))
            if array.shape != shape or array.dtype.kind not in "fiub":
                raise layer.refuse(
                    "shape-mismatch", f"{leaf} has shape {array.shape}, the architecture asks for {shape}"
                )
            arrays.append(array.astype(np.float32))
        return arrays
