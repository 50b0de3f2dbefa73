r"""Reader of Keras files (`.h5` and `.keras`) with Larq or plain layers, without TensorFlow.

Both containers hold JSON for the architecture and HDF5 for the weights:

- HDF5 (`.h5`; TensorFlow 2.12 writes it under the name `.keras` too): root attribute `model_config`,
  weights at `model_weights/<layer>/<weight name>`, names in the layer group's attribute `weight_names`.
- zip (`.keras`): `config.json` and `model.weights.h5`, weights at `layers/<snake_case_class>[_n]/vars/<i>`,
  where n counts the layers of a class in order (TensorFlow 2.12: `_layer_checkpoint_dependencies/`, and n
  may skip numbers, so groups are matched by order). Layer names do not occur.

The container is told by its first bytes, never by the file's name.

The reader is a closed world (`signatures`): the tables of `keras_signatures` say what is read. Any other key,
a value that is not neutral, an argument of a call, a class that is not Keras' or Larq's own, and a variable
that no layer took are errors that name it.

A file is hostile until read: every access is checked, no link leaves the file, nothing is read before its
size has been compared with what the architecture asks for, and whatever goes wrong is one
`ConversionError` that names the file.
"""

from __future__ import annotations

import importlib
import io
import json
import math
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConversionError, MissingExtra
from ..operators import Window
from . import keras_signatures as tables
from .files import MAX_FILE, Archive, naming
from .graph import (
    Add,
    BatchNorm,
    Bias,
    Call,
    Clip,
    Concatenate,
    Conv2D,
    Dense,
    Flatten,
    Float32,
    Graph,
    Identity,
    Input,
    Linear,
    MaxPool2D,
    Node,
    Origin,
    PReLU,
    Rescaling,
    Shape,
    Sign,
    Softmax,
)
from .passes import canonicalize
from .problems import Problem, together
from .signatures import Signature
from .weights import binarized, same_padding

__all__ = ["read_checkpoint", "read_keras"]

_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_ZIP_MAGIC = b"PK\x03\x04"
_MAX_CONFIG = 2**26
_MAX_MEMBER = 2**29
_MAX_WEIGHTS = 2**26  # elements of one array: as many as a `.cbn` file may have
_MAX_EXPANSION = 64  # of a large compressed array; signs as float32 shrink to a thirtieth

#: Models inside models, and calls of shared layers.
_MAX_DEPTH = 20
_MAX_CALLS = 20_000


def _h5py() -> Any:
    try:
        return importlib.import_module("h5py")
    except ImportError as error:
        raise MissingExtra(
            "missing-extra", "reading Keras files needs h5py; run: pip install 'cbin-nn[keras]'"
        ) from error


def read_keras(path: str | os.PathLike[str]) -> Graph:
    """Read a Keras model file into a source graph.

    Args:
        path: an `.h5` or `.keras` file with a Sequential or Functional model; models inside it are resolved.

    Returns:
        The graph; tensors are named after the layers.

    Raises:
        ConversionError: the file can't be read, or holds something that can't be converted; one line
            that names the file, the layer and what to do.
        MissingExtra: h5py is not installed.
    """
    path = Path(path)
    with naming(path, "Keras", "save it again with model.save()"):
        if path.is_dir():
            raise ConversionError(
                "unsupported-file",
                "a folder (a SavedModel needs TensorFlow); save the model as .keras or .h5 instead",
            )
        if path.stat().st_size > MAX_FILE:
            raise ConversionError("damaged-file", f"{path.stat().st_size} bytes is too large for a model")
        with path.open("rb") as file:
            magic = file.read(8)
            if magic == _HDF5_MAGIC:
                with _h5py().File(path, "r") as weights:
                    return _read_hdf5(weights)
            if magic[:4] == _ZIP_MAGIC:
                file.seek(0)
                with zipfile.ZipFile(file) as archive:
                    return _read_zip(archive)
        raise ConversionError(
            "unsupported-file",
            f"neither HDF5 nor a .keras archive (it begins with {magic[:4]!r}); "
            "save the model with model.save('model.keras')",
        )


# ------------------------------------------------------------------------------------------------
# containers


class _Weights:
    """Weight arrays by layer."""

    def take(self, layer: _Layer, expected: list[tuple[str, Shape]]) -> list[Float32]:
        """The arrays of `layer`, in the order of `expected` (name, shape), as float32."""
        raise NotImplementedError

    def left(self) -> list[str]:
        """The variables of layers that no layer took."""
        raise NotImplementedError


@dataclass(frozen=True)
class _Layer:
    """One entry of the architecture: class, config, and where its weights are."""

    class_name: str
    name: str
    config: dict[str, Any]
    #: Position among the layers of the same class in its model.
    rank: int
    #: The classes of the layers of its model, in order.
    siblings: list[str]
    #: Whether each of them has weights, a model inside included.
    weighted: list[bool]
    #: Its own place among them.
    index: int
    #: The models that it is inside of, outermost first.
    parents: tuple[_Layer, ...] = ()
    #: Where its class is from if it is not Keras' or Larq's own, else empty.
    foreign: str = ""

    def refuse(self, slug: str, message: str) -> ConversionError:
        return ConversionError(slug, message, layer=self.name, kind=self.class_name)

    def require(self, signature: Signature, given: Mapping[str, Any], prefix: str = "") -> None:
        """Refuses what `signature` does not honour of `given`; `prefix` says whose arguments they are."""
        unread = signature.unread(given)
        if unread:
            raise self.refuse("unsupported-option", prefix + _unread(signature, unread))


def _unread(signature: Signature, unread: list[tuple[str, Any]]) -> str:
    """Arguments that are not honoured, each with its value and what to do."""
    parts = []
    for name, value in unread[:8]:
        if name == "training":
            advice = "what it computes then depends on the batch or on chance; call it without"
        elif name in tables.OPTION_ADVICE:
            advice = tables.OPTION_ADVICE[name]
        elif name in signature.neutral:
            advice = f"only {' or '.join(map(repr, signature.neutral[name]))} converts"
        else:
            advice = "the reader does not know this argument, so what it does would be lost; build it without"
        parts.append(f"{str(name)[:60]}={str(value)[:60]}: {advice}")
    return "; ".join(parts)


def _read_array(layer: _Layer, dataset: Any, what: str, shape: Shape) -> Float32:
    h5py = _h5py()
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


def _child(group: Any, path: str) -> Any:
    """An object below `group`, by hard links alone; None where there is none."""
    h5py = _h5py()
    for part in path.split("/"):
        if part in ("", "."):
            continue
        if not isinstance(group, h5py.Group) or not isinstance(group.get(part, getlink=True), h5py.HardLink):
            return None
        group = group[part]
    return group


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, str):
        return value
    raise ConversionError("damaged-file", f"expected text in the file, found {type(value).__name__}")


def _names(group: Any, attribute: str) -> list[str]:
    """A list attribute; Keras splits one above 64 KiB into `name0`, `name1` ..."""
    if attribute in group.attrs:
        parts = [group.attrs[attribute]]
    else:
        parts = []
        while f"{attribute}{len(parts)}" in group.attrs:
            parts.append(group.attrs[f"{attribute}{len(parts)}"])
    return [_text(name) for part in parts for name in np.asarray(part).reshape(-1).tolist()]


class _Hdf5Weights(_Weights):
    """`model_weights/<layer>/<weight name>`."""

    def __init__(self, root: Any) -> None:
        self.root = root
        #: (group, name of the variable in it).
        self.taken: set[tuple[str, str]] = set()

    def left(self) -> list[str]:
        pairs = []
        for key in self.root:
            group = _child(self.root, key)
            if group is not None:
                pairs += [(key, name) for name in _names(group, "weight_names")]
        return [f"{key}: {name}" for key, name in pairs if (key, name) not in self.taken]

    def take(self, layer: _Layer, expected: list[tuple[str, Shape]]) -> list[Float32]:
        if not expected:
            return []
        outermost = (*layer.parents, layer)[0].name
        group = _child(self.root, outermost)
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
            dataset = _child(group, name)
            if dataset is None:
                raise layer.refuse("missing-weights", f"weight {name!r} is absent")
            self.taken.add((outermost, name))
            arrays.append(_read_array(layer, dataset, leaf, shape))
        return arrays


def _snake_case(name: str) -> str:
    """Keras' `to_snake_case` (keras/src/saving/saving_lib.py)."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


class _ArchiveWeights(_Weights):
    """`layers/<snake_case_class>[_n]/vars/<i>`."""

    def __init__(self, root: Any) -> None:
        self.root = root
        #: Names of the datasets that were read.
        self.taken: set[str] = set()

    def left(self) -> list[str]:
        found: list[str] = []

        def visit(group: Any, depth: int) -> None:
            for key in group:
                item = _child(group, key)
                if item is None or key in tables.STATELESS:
                    continue
                if hasattr(item, "shape"):
                    found.append(item.name)
                elif depth < 4 * _MAX_DEPTH:
                    visit(item, depth + 1)

        for part in ("vars", "layers", "_layer_checkpoint_dependencies"):
            group = _child(self.root, part)
            if group is not None:
                visit(group, 0)
        return [name for name in found if name not in self.taken]

    @staticmethod
    def _container(root: Any) -> Any:
        for name in ("layers", "_layer_checkpoint_dependencies"):
            found = _child(root, name)
            if found is not None:
                return found
        return None

    def _group(self, root: Any, layer: _Layer, below: str) -> tuple[str, Any]:
        """(name, group) of `layer` in its model's group `root`, by class and position."""
        stem, container = _snake_case(layer.class_name), self._container(root)
        groups = []
        for key in [] if container is None else list(container):
            match = re.fullmatch(re.escape(stem) + r"(?:_(\d{1,9}))?", key)
            found = _child(container, key) if match else None
            if match and found is not None and (not below or _child(found, below) is not None):
                groups.append((int(match[1] or 0), key, found))
        groups.sort(key=lambda item: item[0])
        count = layer.siblings.count(layer.class_name)
        if len(groups) != count and below:
            groups = [item for item in groups if len(_child(item[2], below))]
        if len(groups) != count:
            raise layer.refuse(
                "missing-weights",
                f"the file has weights of {len(groups)} layers of its class, and the architecture has "
                f"{count}; save the model again with model.save('NAME.keras')",
            )
        _, key, group = groups[layer.rank]
        return key, group

    def take(self, layer: _Layer, expected: list[tuple[str, Shape]]) -> list[Float32]:
        if not expected:
            return []
        root = self.root
        for parent in layer.parents:
            _, root = self._group(root, parent, "")
        key, group = self._group(root, layer, "vars")
        variables = _child(group, "vars")
        if len(variables) != len(expected):
            raise layer.refuse(
                "missing-weights" if len(variables) < len(expected) else "unsupported-weights",
                f"expected {len(expected)} weights {[leaf for leaf, _ in expected]}, "
                f"the file has {len(variables)} under {key!r}",
            )
        arrays = []
        for i, (leaf, shape) in enumerate(expected):
            dataset = _child(variables, str(i))
            if dataset is None:
                raise layer.refuse("missing-weights", f"weight {leaf!r} ({key}/vars/{i}) is absent")
            self.taken.add(dataset.name)
            arrays.append(_read_array(layer, dataset, leaf, shape))
        return arrays


class _CheckpointWeights(_Weights):
    """A TensorFlow checkpoint: `layer_with_weights-<n>/<leaf>`, n counting the layers of a model that have
    any."""

    def __init__(self, reader: Any) -> None:
        self.reader = reader
        self.taken: set[str] = set()

    def left(self) -> list[str]:
        return [
            key
            for key in sorted(self.reader.get_variable_to_shape_map())
            if re.match(r"layer(_with_weights)?-\d+/", key)
            and ".OPTIMIZER_SLOT" not in key
            and "/keras_api/" not in key
            and not set(key.split("/")) & tables.STATELESS
            and key not in self.taken
        ]

    def take(self, layer: _Layer, expected: list[tuple[str, Shape]]) -> list[Float32]:
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


def read_checkpoint(model: dict[str, Any], reader: Any) -> Graph:
    """The graph of a model's record with the weights of a checkpoint reader (`tf.train.load_checkpoint`).

    Of the record the class and its configuration count; a SavedModel keeps its own affairs beside them.
    """
    record: dict[str, Any] = {key: model.get(key) for key in ("class_name", "config")}
    return _Builder(_CheckpointWeights(reader)).build(_network(record))


def _read_hdf5(file: Any) -> Graph:
    if "model_config" not in file.attrs:
        if "layer_names" in file.attrs or "layer_names0" in file.attrs or _child(file, "layers") is not None:
            raise ConversionError(
                "no-architecture",
                "a weights-only file carries no architecture; load it into its model and save that with "
                "model.save()",
            )
        raise ConversionError(
            "unsupported-file", "an HDF5 file, but not a Keras model (no 'model_config' attribute)"
        )
    text = _text(file.attrs["model_config"])
    root = _child(file, "model_weights")
    if root is None:
        raise ConversionError("missing-weights", "the file has an architecture but no 'model_weights'")
    return _Builder(_Hdf5Weights(root)).build(_architecture(text))


def _read_zip(archive: zipfile.ZipFile) -> Graph:
    files = Archive(archive)
    if not {"config.json", "model.weights.h5"} <= files.names:
        raise ConversionError(
            "unsupported-file",
            "a zip archive without 'config.json' and 'model.weights.h5', so not a .keras model; save the "
            "model with "
            "model.save('NAME.keras')",
        )
    text = files.read("config.json", _MAX_CONFIG).decode("utf-8")
    weights = files.read("model.weights.h5", _MAX_MEMBER)
    network = _architecture(text)
    with _h5py().File(io.BytesIO(weights), "r") as file:
        return _Builder(_ArchiveWeights(file)).build(network)


# ------------------------------------------------------------------------------------------------
# architecture


def _record(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConversionError("damaged-file", f"{what} is not a record but {type(value).__name__}")
    return value


def _class_name(value: Any) -> str:
    """The class without its package, as in `Larq>QuantConv2D`."""
    if not isinstance(value, str) or not value:
        raise ConversionError("damaged-file", f"a layer's class name is {value!r}")
    return value.rsplit(">", 1)[-1]


def _foreign(record: Mapping[str, Any]) -> str:
    """Where a record's class or function is from if that is not Keras or Larq, else an empty string.

    A class of the user's own may have the name of a known one. Keras writes the package that it was
    registered under, `MyPackage>Dense`, and since TensorFlow 2.12 its module, null for a script's own.
    """
    for key in ("class_name", "registered_name", "config"):
        value = record.get(key)
        if isinstance(value, str) and ">" in value and value.split(">")[0].lower() not in tables.PACKAGES:
            return f"the package {value.split('>')[0][:60]!r}"
    if "module" not in record:
        return ""
    module, registered = record["module"], record.get("registered_name")
    if module is None:
        return "" if registered is None else "a script of your own"
    if not isinstance(module, str) or module.split(".")[0] not in tables.PACKAGES:
        return f"the module {str(module)[:60]!r}"
    return ""


@dataclass(frozen=True)
class _Call:
    """A layer applied to tensors; `inputs` are numbers of earlier calls."""

    layer: _Layer
    inputs: tuple[int, ...]
    #: What the call was given beside its input.
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Network:
    """The calls of a model in topological order, models inside it resolved."""

    name: str
    calls: list[_Call]
    output: int
    #: The shape that the model was built with, batch first, or None.
    build_shape: Any


def _architecture(text: str) -> _Network:
    if len(text) > _MAX_CONFIG:
        raise ConversionError("damaged-file", "the architecture is too long")
    return _network(_record(json.loads(text), "the architecture"))


def _network(model: dict[str, Any]) -> _Network:
    """The calls of a model's record (class_name, config)."""
    calls: list[_Call] = []
    config = _model_config(model)
    root = _Layer(
        _class_name(model["class_name"]), str(config.get("name", "model"))[:200], config, 0, [], [], 0
    )
    root.require(tables.ROOT, model)
    origin = _foreign(model)
    if origin:
        raise root.refuse("unsupported-model", f"a model of a class from {origin}; {tables.OWN_CODE}")
    _check_model(root)
    outputs = _resolve(model, (), [], calls)
    if len(outputs) != 1:
        names = ", ".join(repr(calls[i].layer.name) for i in outputs[:8])
        raise ConversionError(
            "unsupported-model",
            f"the model has {len(outputs)} outputs, {names}; one converts: save "
            "keras.Model(model.input, model.get_layer(NAME).output)",
        )
    inputs = [call for call in calls if call.layer.class_name == "InputLayer" and not call.inputs]
    if len(inputs) > 1:
        raise ConversionError("unsupported-model", f"the model has {len(inputs)} inputs; one image converts")
    name = config.get("name")
    build = config.get("build_input_shape", _optional_record(model.get("build_config")).get("input_shape"))
    return _Network(name if isinstance(name, str) else "model", calls, outputs[0], build)


def _model_config(model: dict[str, Any]) -> dict[str, Any]:
    kind = _class_name(model.get("class_name"))
    config = model.get("config")
    if kind == "Sequential" and isinstance(config, list):  # Keras before 2.2.3
        config = {"name": "sequential", "layers": config}
    config = _record(config, "the model's config")
    if kind not in tables.MODELS:
        raise ConversionError(
            "unsupported-model",
            f"a model of class {kind}; only Sequential and Functional models convert",
        )
    return config


def _check_model(layer: _Layer) -> None:
    """Refuses what a model's own record says and nobody reads."""
    if layer.foreign:
        raise layer.refuse("unsupported-model", f"a model of a class from {layer.foreign}; {tables.OWN_CODE}")
    layer.require(tables.SEQUENTIAL if layer.class_name == "Sequential" else tables.FUNCTIONAL, layer.config)
    _check_dtype(layer)


def _resolve(
    model: dict[str, Any], parents: tuple[_Layer, ...], given: list[int], calls: list[_Call]
) -> list[int]:
    """Appends the calls of a model applied to `given` (nothing for the outermost); returns its outputs."""
    if len(parents) > _MAX_DEPTH:
        raise ConversionError("damaged-file", "models are nested too deeply")
    config = _model_config(model)
    entries = config.get("layers")
    if not isinstance(entries, list) or not entries:
        raise ConversionError("damaged-file", "the model has no list of layers")
    layers, records, siblings, weighted = [], [], list[str](), list[bool]()
    for i, item in enumerate(entries):
        entry = _record(item, f"layer number {i}")
        class_name = _class_name(entry.get("class_name"))
        settings = entry.get("config")
        if class_name == "Sequential" and isinstance(settings, list):
            settings = {"layers": settings}
        settings = _record(settings, f"the config of layer number {i}")
        name = entry.get("name", settings.get("name", f"{_snake_case(class_name)}_{i}"))
        if not isinstance(name, str) or not 0 < len(name) < 200:
            raise ConversionError("damaged-file", f"the name of layer number {i} is {str(name)[:80]!r}")
        rank, origin = siblings.count(class_name), _foreign(entry)
        layer = _Layer(class_name, name, settings, rank, siblings, weighted, i, parents, origin)
        layer.require(tables.ENTRY, entry)
        layers.append(layer)
        siblings.append(class_name)
        weighted.append(_has_weights(class_name, settings))
        records.append(entry)
    if len({layer.name for layer in layers}) != len(layers):
        raise ConversionError("damaged-file", "two layers have the same name")

    def call(layer: _Layer, record: dict[str, Any], inputs: list[int], arguments: dict[str, Any]) -> int:
        if len(calls) > _MAX_CALLS:
            raise ConversionError("damaged-file", "the model has too many layers")
        if layer.class_name in tables.MODELS:
            _check_model(layer)
            layer.require(tables.CALL, arguments, "called with ")
            outputs = _resolve(record, (*parents, layer), inputs, calls)
            if len(outputs) != 1:
                raise layer.refuse("unsupported-model", "a model inside the model must have one output")
            return outputs[0]
        calls.append(_Call(layer, tuple(inputs), arguments))
        return len(calls) - 1

    if _class_name(model.get("class_name")) == "Sequential":
        current = list(given)
        for layer, record in zip(layers, records, strict=True):
            current = [call(layer, record, current, {})]
        return current
    return _resolve_functional(config, layers, records, given, call)


def _has_weights(class_name: str, config: dict[str, Any], depth: int = 0) -> bool:
    if class_name == "Normalization" and config.get("mean") is not None:
        return False
    if class_name not in tables.MODELS or depth > _MAX_DEPTH:
        return class_name in tables.WEIGHTED
    entries = config.get("layers")
    return any(
        _has_weights(_class_name(entry.get("class_name")), _optional_record(entry.get("config")), depth + 1)
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict)
    )


def _resolve_functional(
    config: dict[str, Any],
    layers: list[_Layer],
    records: list[dict[str, Any]],
    given: list[int],
    call: Callable[[_Layer, dict[str, Any], list[int], dict[str, Any]], int],
) -> list[int]:
    """Calls of a Functional model in an order in which inputs exist."""
    by_name = {layer.name: layer for layer in layers}
    #: (layer, which of its calls) -> number of the call.
    made: dict[tuple[str, int], int] = {}
    if given:
        names = [name for name, _ in _references(config.get("input_layers"))]
        if len(names) != len(given) or not all(name in by_name for name in names):
            raise ConversionError("unsupported-model", f"a model inside the model has {len(names)} inputs")
        for layer, record in zip(layers, records, strict=True):
            if layer.name in names:
                made[layer.name, 0] = call(layer, record, [given[names.index(layer.name)]], {})
    #: (layer, its record, which of its calls, what it reads, its other arguments).
    waiting: list[tuple[_Layer, dict[str, Any], int, list[tuple[str, int]], dict[str, Any]]] = []
    for layer, record in zip(layers, records, strict=True):
        nodes = record.get("inbound_nodes")
        nodes = nodes if isinstance(nodes, list) else []
        if layer.class_name == "InputLayer":
            if (layer.name, 0) not in made:
                made[layer.name, 0] = call(layer, record, [], {})
            continue
        if not nodes:
            raise layer.refuse("damaged-file", "nothing is connected to it")
        for i, node in enumerate(nodes):
            sources, arguments = _node(layer, node)
            missing = [name for name, _ in sources if name not in by_name]
            if not sources or missing:
                raise layer.refuse(
                    "damaged-file", f"it is connected to {missing[:1] or 'nothing'}, which is no layer"
                )
            waiting.append((layer, record, i, sources, arguments))
    outputs = _references(config.get("output_layers"))
    # A model that was built with an input counts its own construction as call 0, which the file does not
    # list. Every call that it lists is read by something, so the last number tells.
    last: dict[str, int] = {}
    for name, i in [*(reference for item in waiting for reference in item[3]), *outputs]:
        last[name] = max(last.get(name, 0), i)
    listed = {layer.name: 0 for layer in layers}
    for layer, _, i, _, _ in waiting:
        listed[layer.name] = i + 1
    offset = {
        layer.name: int(last.get(layer.name, 0) == listed[layer.name])
        for layer in layers
        if layer.class_name in tables.MODELS
    }

    def source(reference: tuple[str, int]) -> tuple[str, int]:
        return reference[0], reference[1] - offset.get(reference[0], 0)

    while waiting:
        ready = [item for item in waiting if all(source(reference) in made for reference in item[3])]
        if not ready:
            raise waiting[0][0].refuse("damaged-file", "its inputs are never made: the layers form a circle")
        for layer, record, i, sources, arguments in ready:
            inputs = [made[source(reference)] for reference in sources]
            made[layer.name, i] = call(layer, record, inputs, arguments)
        waiting = [item for item in waiting if (item[0].name, item[2]) not in made]
    missing = [name for name, i in outputs if source((name, i)) not in made]
    if not outputs or missing:
        raise ConversionError(
            "damaged-file", f"the model's output is {missing[:1] or 'nothing'}, which no layer makes"
        )
    return [made[source(output)] for output in outputs]


def _node(layer: _Layer, node: Any) -> tuple[list[tuple[str, int]], dict[str, Any]]:
    """What one call of a layer reads, as (layer, which of its calls), and its other arguments.

    Keras 2: `["conv", 0, 0, {"training": true}]`, one for each input tensor, in lists of any depth, each with
    all the other arguments. Keras 3: `{"args": [...], "kwargs": {...}}`, tensors as records with
    `keras_history: ["conv", 0, 0]`.
    """
    if isinstance(node, dict):
        args, arguments = node.get("args", []), dict(_optional_record(node.get("kwargs")))
        if not isinstance(args, list) or set(node) - {"args", "kwargs"}:
            raise layer.refuse("damaged-file", "its connections are not those of a Keras 3 model")
        names = tables.POSITIONAL.get(layer.class_name, ())
        for i, value in enumerate(args[1:]):
            arguments[names[i] if i < len(names) else f"argument {i + 2}"] = value
        return _references(args[:1], layer), arguments
    arguments = {}
    return _references(node, layer, arguments), arguments


def _references(
    value: Any, layer: _Layer | None = None, arguments: dict[str, Any] | None = None, depth: int = 0
) -> list[tuple[str, int]]:
    """The tensors in a nest of Keras, as (layer, which of its calls).

    Args:
        value: tensors in lists or in a dict (which Keras flattens by sorted keys).
        layer: what reads them: a constant among them is then an error.
        arguments: where the arguments that Keras 2 writes behind a tensor go.
        depth: how deep the nest is already.
    """
    if depth > 8:
        raise ConversionError("damaged-file", "a layer's connections are nested too deeply")
    if isinstance(value, dict):
        history = _optional_record(value.get("config")).get("keras_history", value.get("keras_history"))
        parts = [value[key] for key in sorted(value)] if history is None else [history]
    elif isinstance(value, list):
        if len(value) >= 3 and isinstance(value[0], str) and all(_is_index(v) for v in value[1:3]):
            if value[2] != 0:
                raise ConversionError("unsupported-model", f"layer {value[0]!r} has several outputs")
            if arguments is not None and len(value) > 3:
                arguments.update(_optional_record(value[3]))
            return [(value[0], value[1])]
        parts = value
        if value[:2] == ["_CONSTANT_VALUE", -1]:
            parts = value[2:3]
            if layer is not None:
                raise layer.refuse("unsupported-option", _constant(value[2:3]))
    else:
        if layer is not None:
            raise layer.refuse("unsupported-option", _constant([value]))
        return []
    return [reference for item in parts for reference in _references(item, layer, arguments, depth + 1)]


def _constant(value: list[Any]) -> str:
    return (
        f"one of its inputs is a constant, {str(value[0] if value else None)[:60]}, which is not read; "
        "use Rescaling, or a bias, to add or multiply by one"
    )


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _optional_record(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


# ------------------------------------------------------------------------------------------------
# layers


class _Builder:
    """Walks the chain and adds nodes."""

    def __init__(self, weights: _Weights) -> None:
        self.weights = weights
        self.nodes: list[Node] = []
        self.problems: list[Problem] = []
        self.tensor = ""
        self.shape: Shape = ()
        #: Tensors and shapes that the current layer reads; the first is `tensor`, `shape`.
        self.inputs: list[tuple[str, Shape]] = []
        self.names: set[str] = set()
        #: Which call's result a tensor is; the call that is at work.
        self.origins: dict[str, Origin] = {}
        self.number = 0
        self.handlers: dict[str, Callable[[_Layer], None]] = {
            "Activation": self._activation_layer,
            "Add": self._merge,
            "Concatenate": self._merge,
            "BatchNormalization": self._batch_norm,
            "BatchNormalizationV1": self._batch_norm,
            "BatchNormalizationV2": self._batch_norm,
            "Conv2D": self._conv,
            "Dense": self._dense,
            "Flatten": self._flatten,
            "LeakyReLU": self._leaky_relu,
            "MaxPooling2D": self._max_pool,
            "Normalization": self._normalization,
            "PReLU": self._prelu,
            "QuantConv2D": self._conv,
            "DepthwiseConv2D": self._conv,
            "QuantDepthwiseConv2D": self._conv,
            "QuantDense": self._dense,
            "ReLU": self._relu,
            "Rescaling": self._rescaling,
            "Sign": self._sign,
            "Softmax": self._softmax,
        }

    def build(self, network: _Network) -> Graph:
        """The graph of a network."""
        #: Tensor and shape of each call; None where it can't be converted.
        results: list[tuple[str, Shape] | None] = []
        for self.number, call in enumerate(network.calls):
            result = self._call(call, [results[i] for i in call.inputs], network.build_shape)
            results.append(result)
            if result is not None:
                self.origins.setdefault(result[0], Origin(str(self.number)))
        if not self.problems:
            left = self.weights.left()
            if left:
                raise ConversionError(
                    "unsupported-weights",
                    f"the file holds weights that no layer of the architecture reads: {', '.join(left[:4])}"
                    f"{f' and {len(left) - 4} more' if len(left) > 4 else ''}; what they do would be lost",
                )
        output = results[network.output]
        name = output[0] if output is not None else self.nodes[-1].name if self.nodes else ""
        if not self.nodes:
            raise together(self.problems)
        calls = [
            Call(call.layer.name, tuple(parent.name for parent in call.layer.parents), call.inputs)
            for call in network.calls
        ]
        return canonicalize(
            Graph(
                network.name,
                self.nodes,
                name,
                problems=self.problems,
                origins=self.origins,
                calls=calls,
                framework="keras",
            )
        )

    def _call(
        self, call: _Call, inputs: list[tuple[str, Shape] | None], build_shape: Any
    ) -> tuple[str, Shape] | None:
        layer = call.layer
        try:
            if layer.class_name == "InputLayer":
                return self._input_layer(layer, inputs, build_shape)
            if not inputs:
                self._input(layer, _batch_shape(layer, build_shape))
                inputs = [(self.tensor, self.shape)]
            self._check(layer)
            layer.require(tables.CALL, call.arguments, "called with ")
            known = [value for value in inputs if value is not None]
            if len(known) != len(inputs):
                return None
            self.tensor, self.shape = known[0]
            self.inputs = known
            if layer.class_name in tables.DROPOUTS:
                self._add(Identity(layer.name, layer.name, (self.tensor,)))
            elif layer.class_name in tables.SIGN_LAYERS:
                self._add(Sign(layer.name, layer.name, (self.tensor,)))
            elif len(known) > 1 and layer.class_name not in tables.MERGES:
                raise layer.refuse("unsupported-layer", "it has several inputs")
            else:
                self.handlers[layer.class_name](layer)
        except ConversionError as error:
            if not error.slug.startswith("unsupported") or not (self.nodes or self.problems):
                raise
            self.problems.append(Problem.of(error))
            return None
        return self.tensor, self.shape

    def _input_layer(
        self, layer: _Layer, inputs: list[tuple[str, Shape] | None], build_shape: Any
    ) -> tuple[str, Shape] | None:
        """The network's input, or that of a model inside, which Keras converts its argument to."""
        layer.require(tables.LAYERS["InputLayer"], layer.config)
        dtype, value = _dtype(layer)
        if dtype not in ({"float32", "float64"} if inputs else tables.INPUT_DTYPES):
            raise layer.refuse(
                "unsupported-option",
                f"dtype={value}: what is fed would be converted to it, and not be the same; use float32",
            )
        if not inputs:
            self._input(layer, _batch_shape(layer, build_shape))
            return self.tensor, self.shape
        (given,) = inputs
        shape = _batch_shape(layer, None)
        sides = shape[1:] if isinstance(shape, list) else None
        if given is not None and (
            sides is None
            or len(sides) != len(given[1])
            or any(a is not None and a != b for a, b in zip(sides, given[1], strict=True))
        ):
            raise layer.refuse(
                "shape-mismatch", f"the model takes {str(sides)[:60]}, and is called on {given[1]}"
            )
        return given

    def _check(self, layer: _Layer) -> None:
        """What can be told without the input's shape: the kind of layer, its arguments, its type, its
        functions."""
        if re.match("Q[A-Z]", layer.class_name):
            raise layer.refuse("unsupported-layer", tables.QKERAS)
        own = layer.class_name in tables.OPERATIONS and "trainable" in layer.config
        if layer.foreign or own:
            raise layer.refuse(
                "unsupported-layer",
                f"a class from {layer.foreign or 'your own code'}, and {tables.OWN_CODE}; use layers of "
                "Keras or Larq (for a sign larq.quantizers.SteSign()), or describe the network to "
                "cbin_nn.convert as a dict",
            )
        if layer.class_name not in tables.LAYERS:
            raise layer.refuse(
                "unsupported-layer", f"this kind of layer can't be converted; {_advice(layer)}"
            )
        layer.require(tables.LAYERS[layer.class_name], layer.config)
        _check_dtype(layer)
        if layer.class_name in tables.QUANTIZED:
            self._kernel_quantizer(layer)
            self._input_quantizer(layer)

    def _add(self, node: Node) -> None:
        self.shape = node.output_shape((self.shape,))
        if min(self.shape) < 1 or any(side > 2**31 for side in self.shape):
            raise ConversionError(
                "shape-mismatch", f"its output shape {self.shape} is impossible", layer=node.layer
            )
        self._append(node)

    def _append(self, node: Node) -> None:
        """Adds a node; a layer that is called twice, or has its name in two models, gets a name of its
        own."""
        name, count = node.name, 1
        while name in self.names:
            count += 1
            name = f"{node.name}_{count}"
        self.names.add(name)
        self.nodes.append(node if name == node.name else replace(node, name=name))
        self.tensor = name

    def _merge(self, layer: _Layer) -> None:
        axis = layer.config.get("axis", -1)
        if layer.class_name == "Concatenate" and not _is_last([axis], self.shape):
            raise layer.refuse("unsupported-option", f"axis={str(axis)[:60]}: only the last axis converts")
        kind = Add if layer.class_name == "Add" else Concatenate
        node = kind(layer.name, layer.name, tuple(tensor for tensor, _ in self.inputs))
        self.shape = node.output_shape(tuple(shape for _, shape in self.inputs))
        self._append(node)

    def _normalization(self, layer: _Layer) -> None:
        """`(x - mean) / max(sqrt(variance), epsilon)`; the root as Keras computes it, in float32."""
        axis = layer.config.get("axis", -1)
        axes = [] if axis is None else axis if isinstance(axis, list) else [axis]
        if axes and not _is_last(axes, self.shape):
            raise layer.refuse(
                "unsupported-option",
                f"axis={str(axis)[:60]}: only the channel axis (the last one) or None converts",
            )
        mean, variance = layer.config.get("mean"), layer.config.get("variance")
        if mean is None or variance is None:
            shape = self.shape[-1:] if axes else ()
            mean, variance, _ = self.weights.take(
                layer, [("mean", shape), ("variance", shape), ("count", ())]
            )
        channels = self.shape[-1]
        parts = []
        for what, value in (("mean", mean), ("variance", variance)):
            array = _along_channels(layer, what, value, self.shape if axes else (1,))
            parts.append(np.broadcast_to(array, (channels,)).copy())
        divisor = np.maximum(np.sqrt(parts[1]), np.float32(1e-7))
        self._add(Linear(f"{layer.name}/mean", layer.name, (self.tensor,), offset=-parts[0]))
        self._add(Linear(layer.name, layer.name, (self.tensor,), divisor=divisor))

    def _input(self, layer: _Layer, shape: Any) -> None:
        if not isinstance(shape, list) or len(shape) < 2 or not all(_is_size(side) for side in shape[1:]):
            raise layer.refuse(
                "unsupported-option",
                f"the input shape is {str(shape)[:80]}; a fixed one is needed, such as Input(shape=(32, "
                f"32, 3))",
            )
        name = layer.name if layer.class_name == "InputLayer" else "input"
        node = Input(name, layer.name, (), tuple(shape[1:]))
        self._append(node)
        self.origins[self.tensor] = Origin("image")
        self.shape = node.shape

    def _conv(self, layer: _Layer) -> None:
        config = layer.config
        _channels_last(layer)
        kernel_size, strides = _pair(layer, "kernel_size"), _pair(layer, "strides", (1, 1))
        dilation = _pair(layer, "dilation_rate", (1, 1))
        if config.get("groups", 1) != 1:
            raise layer.refuse("unsupported-option", f"groups={config['groups']!r}; only groups=1 converts")
        if max(strides) > 1 and max(dilation) > 1:
            raise layer.refuse(
                "unsupported-option", "strides and dilation_rate above 1 exclude each other in Keras"
            )
        if len(self.shape) != 3:
            raise layer.refuse(
                "shape-mismatch", f"a convolution needs (height, width, channels), got {self.shape}"
            )
        padding = _padding(layer, self.shape, kernel_size, strides, dilation)
        pad_value = config.get("pad_values", 0.0)
        if not isinstance(pad_value, (int, float)) or isinstance(pad_value, bool):
            raise layer.refuse(
                "unsupported-option", f"pad_values={str(pad_value)[:60]}; only 0 and 1 convert"
            )
        depthwise = layer.class_name.endswith("DepthwiseConv2D")
        if depthwise and config.get("depth_multiplier", 1) != 1:
            raise layer.refuse(
                "unsupported-option",
                f"depth_multiplier={str(config['depth_multiplier'])[:60]}; only 1 converts",
            )
        channels = self.shape[2]
        shape = (*kernel_size, channels, 1 if depthwise else _size(layer, "filters"))
        kernel, bias, binary, scale = self._kernel(layer, shape)
        self._quantize_input(layer)
        window = Window(kernel_size, strides, dilation, padding)
        self._add(
            Conv2D(
                layer.name,
                layer.name,
                (self.tensor,),
                kernel,
                window,
                binary,
                scale,
                float(pad_value),
                depthwise,
            )
        )
        self._finish(layer, bias)

    def _dense(self, layer: _Layer) -> None:
        if len(self.shape) != 1:
            raise layer.refuse(
                "shape-mismatch",
                f"a dense layer on a tensor of shape {self.shape} needs a Flatten layer before it",
            )
        kernel, bias, binary, scale = self._kernel(layer, (self.shape[0], _size(layer, "units")))
        self._quantize_input(layer)
        self._add(Dense(layer.name, layer.name, (self.tensor,), kernel, binary, scale))
        self._finish(layer, bias)

    def _kernel(self, layer: _Layer, shape: Shape) -> tuple[Float32, Float32 | None, bool, Float32 | None]:
        """(quantized kernel, bias, whether it is binary, per-output scale), for a node.

        `shape` is Keras': (kh, kw, channels, 1) for a depthwise layer.
        """
        depthwise = layer.class_name.endswith("DepthwiseConv2D")
        use_bias = _flag(layer, "use_bias", True)
        expected: list[tuple[str, Shape]] = [("depthwise_kernel" if depthwise else "kernel", shape)]
        if use_bias:
            expected.append(("bias", shape[2:3] if depthwise else shape[-1:]))
        arrays = self.weights.take(layer, expected)
        kernel, bias = arrays[0], arrays[1] if use_bias else None
        if not np.isfinite(kernel).all():
            raise layer.refuse(
                "not-finite", "its kernel holds NaN or infinite values; use another checkpoint"
            )
        quantizer = self._kernel_quantizer(layer)
        scale: Float32 | None = None
        magnitude = np.abs(kernel).mean(axis=tuple(range(kernel.ndim - 1)), dtype=np.float64)
        if depthwise:  # Keras has (kh, kw, channels, 1), and Larq one magnitude for all of it.
            magnitude = np.repeat(magnitude, shape[2])
            kernel = np.ascontiguousarray(kernel.transpose(0, 1, 3, 2))
        if quantizer is None:
            # A kernel that was stored as signs (times a scale a filter) is binary whatever its quantizer.
            notes: list[str] = []
            kernel, binary, scale = binarized(kernel, layer.name, notes)
            return kernel, bias, binary, scale
        if quantizer in tables.MAGNITUDE_SIGNS:
            # One scale an output channel: the mean absolute latent weight (Bi-Real Net, Liu et al. 2018).
            scale = magnitude.astype(np.float32)
        return np.where(kernel >= 0, np.float32(1), np.float32(-1)), bias, True, scale

    def _kernel_quantizer(self, layer: _Layer) -> str | None:
        key = "depthwise_quantizer" if layer.class_name == "QuantDepthwiseConv2D" else "kernel_quantizer"
        quantizer = _quantizer(layer, key)
        if quantizer is not None and quantizer not in tables.SIGNS | tables.MAGNITUDE_SIGNS:
            raise layer.refuse(
                "unsupported-quantizer", f"{key} {quantizer} is not binary; {tables.QUANTIZER_HINT}"
            )
        return quantizer

    def _input_quantizer(self, layer: _Layer) -> str | None:
        quantizer = _quantizer(layer, "input_quantizer")
        if quantizer is not None and quantizer not in tables.SIGNS:
            raise layer.refuse(
                "unsupported-quantizer", f"input_quantizer {quantizer} is not a sign; {tables.QUANTIZER_HINT}"
            )
        return quantizer

    def _quantize_input(self, layer: _Layer) -> None:
        if self._input_quantizer(layer) is None:
            return
        self._add(Sign(f"{layer.name}/input_quantizer", layer.name, (self.tensor,)))
        self.origins[self.tensor] = Origin(f"{self.number}/input_quantizer")

    def _finish(self, layer: _Layer, bias: Float32 | None) -> None:
        if bias is not None:
            self._add(Bias(f"{layer.name}/bias", layer.name, (self.tensor,), bias))
        self._activation(layer, layer.config.get("activation"), f"{layer.name}/activation")

    def _activation_layer(self, layer: _Layer) -> None:
        self._activation(layer, layer.config.get("activation"), layer.name)

    def _activation(self, layer: _Layer, activation: Any, name: str) -> None:
        if isinstance(activation, dict) and activation.get("class_name") != "function":
            self._activation_record(layer, activation, name)
            return
        kind = _function_name(layer, "activation", activation)
        if kind in (None, "linear"):
            return
        if kind in tables.SIGNS:
            self._add(Sign(name, layer.name, (self.tensor,)))
        elif kind == "softmax":
            self._add(Softmax(name, layer.name, (self.tensor,)))
        elif kind == "relu":
            self._add(Clip(name, layer.name, (self.tensor,), 0.0, None))
        elif kind == "relu6":
            self._add(Clip(name, layer.name, (self.tensor,), 0.0, 6.0))
        elif kind == "hard_tanh":
            self._add(Clip(name, layer.name, (self.tensor,), -1.0, 1.0))
        else:
            raise layer.refuse(
                "unsupported-activation",
                f"activation {kind!r} can't be converted; {tables.ACTIVATION_ADVICE.get(str(kind), '')}"
                "supported are linear, relu, relu6, hard_tanh, softmax at the end, PReLU and LeakyReLU "
                "layers, and ste_sign, approx_sign, swish_sign",
            )

    def _activation_record(self, layer: _Layer, record: dict[str, Any], name: str) -> None:
        """A layer that stands as another's activation: read as that layer, under the name `name`."""
        class_name = _function_name(layer, "activation", record)
        settings = _optional_record(record.get("config"))
        if class_name == "Activation":
            layer.require(tables.LAYERS[class_name], settings, "its activation has ")
            self._activation(layer, settings.get("activation"), name)
            return
        if class_name not in tables.ACTIVATION_LAYERS:
            raise layer.refuse(
                "unsupported-activation",
                f"activation {class_name} can't be converted; the layers that may stand as an activation are "
                f"{', '.join(sorted(tables.ACTIVATION_LAYERS))}",
            )
        inner = replace(layer, class_name=class_name, name=name, config=settings, foreign="")
        inner.require(tables.LAYERS[class_name], settings)
        _check_dtype(inner)
        # Nodes carry the name of the layer that a user sees.
        before = len(self.nodes)
        if class_name in tables.SIGN_LAYERS:
            self._add(Sign(name, layer.name, (self.tensor,)))
        else:
            self.handlers[class_name](inner)
        self.nodes[before:] = [replace(node, layer=layer.name) for node in self.nodes[before:]]

    def _sign(self, layer: _Layer) -> None:
        """`keras.ops.sign` of Keras 3, which is 0 at 0."""
        self._add(Sign(layer.name, layer.name, (self.tensor,), zero=0))

    def _max_pool(self, layer: _Layer) -> None:
        _channels_last(layer)
        if len(self.shape) != 3:
            raise layer.refuse(
                "shape-mismatch", f"a 2-D pool needs (height, width, channels), got {self.shape}"
            )
        size = _pair(layer, "pool_size", (2, 2))
        strides = size if layer.config.get("strides") is None else _pair(layer, "strides")
        padding = _padding(layer, self.shape, size, strides, (1, 1))
        self._add(MaxPool2D(layer.name, layer.name, (self.tensor,), Window(size, strides, (1, 1), padding)))

    def _batch_norm(self, layer: _Layer) -> None:
        axis = layer.config.get("axis", -1)
        if not _is_last(axis if isinstance(axis, list) else [axis], self.shape):
            raise layer.refuse(
                "unsupported-option",
                f"axis={str(axis)[:60]}: only the channel axis (the last one) converts",
            )
        epsilon = _number(layer, "epsilon", 1e-3)
        scale, center = _flag(layer, "scale", True), _flag(layer, "center", True)
        shape = self.shape[-1:]
        names = [n for n, there in (("gamma", scale), ("beta", center)) if there]
        names += ["moving_mean", "moving_variance"]
        arrays = dict(zip(names, self.weights.take(layer, [(name, shape) for name in names]), strict=True))
        self._add(
            BatchNorm(
                layer.name,
                layer.name,
                (self.tensor,),
                arrays.get("gamma", np.ones(shape, np.float32)),
                arrays.get("beta", np.zeros(shape, np.float32)),
                arrays["moving_mean"],
                arrays["moving_variance"],
                epsilon,
            )
        )

    def _prelu(self, layer: _Layer) -> None:
        shared = layer.config.get("shared_axes")
        shared = [] if shared is None else shared if isinstance(shared, list) else [shared]
        if not all(_is_size(axis) and axis <= len(self.shape) for axis in shared):
            raise layer.refuse(
                "unsupported-option", f"shared_axes={shared!r}; expected axes 1 to {len(self.shape)}"
            )
        shape = tuple(1 if i + 1 in shared else side for i, side in enumerate(self.shape))
        (alpha,) = self.weights.take(layer, [("alpha", shape)])
        if all(side == 1 for side in shape[:-1]):
            alpha = np.broadcast_to(alpha.reshape(-1), self.shape[-1:])
        else:
            alpha = np.broadcast_to(alpha, self.shape)
        self._add(PReLU(layer.name, layer.name, (self.tensor,), np.ascontiguousarray(alpha)))

    def _leaky_relu(self, layer: _Layer) -> None:
        if {"alpha", "negative_slope"} <= set(layer.config):
            raise layer.refuse(
                "unsupported-option",
                f"alpha={str(layer.config['alpha'])[:60]} and negative_slope="
                f"{str(layer.config['negative_slope'])[:60]}: only one of them converts",
            )
        slope = _number(layer, "alpha" if "alpha" in layer.config else "negative_slope", 0.3)
        self._add(PReLU(layer.name, layer.name, (self.tensor,), np.full(self.shape[-1:], slope, np.float32)))

    def _relu(self, layer: _Layer) -> None:
        slope = 0.0 if layer.config.get("negative_slope") is None else _number(layer, "negative_slope", 0.0)
        threshold = 0.0 if layer.config.get("threshold") is None else _number(layer, "threshold", 0.0)
        maximum = None if layer.config.get("max_value") is None else _number(layer, "max_value", 0.0)
        if threshold:
            raise layer.refuse("unsupported-option", f"threshold={threshold}: only 0 converts")
        if slope < 0 or (maximum is not None and maximum < 0):
            raise layer.refuse(
                "unsupported-option",
                f"negative_slope={slope}, max_value={maximum}: Keras has no values below 0 for them",
            )
        if slope:
            alpha = np.full(self.shape[-1:], slope, np.float32)
            name = layer.name if maximum is None else f"{layer.name}/slope"
            self._add(PReLU(name, layer.name, (self.tensor,), alpha))
            if maximum is not None:
                self._add(Clip(layer.name, layer.name, (self.tensor,), None, maximum))
        else:
            self._add(Clip(layer.name, layer.name, (self.tensor,), 0.0, maximum))

    def _rescaling(self, layer: _Layer) -> None:
        values: list[Any] = []
        for key, default in (("scale", 1.0), ("offset", 0.0)):
            value = layer.config.get(key, default)
            if isinstance(_plain(value), list):
                numbers = _along_channels(layer, key, value, self.shape)
                values.append(float(numbers[0]) if np.all(numbers == numbers[0]) else numbers)
            else:
                values.append(float(np.float32(_as_number(layer, key, value))))
        if all(isinstance(value, float) for value in values):
            self._add(Rescaling(layer.name, layer.name, (self.tensor,), values[0], values[1]))
            return
        factor, offset = (Fraction(v) if isinstance(v, float) else v for v in values)
        self._add(Linear(layer.name, layer.name, (self.tensor,), factor, offset))

    def _softmax(self, layer: _Layer) -> None:
        axis = layer.config.get("axis", -1)
        if not _is_last(axis if isinstance(axis, list) else [axis], self.shape):
            raise layer.refuse("unsupported-option", f"axis={str(axis)[:60]}: only the last axis converts")
        self._add(Softmax(layer.name, layer.name, (self.tensor,)))

    def _flatten(self, layer: _Layer) -> None:
        _channels_last(layer)
        self._add(Flatten(layer.name, layer.name, (self.tensor,)))


# ------------------------------------------------------------------------------------------------
# options


def _advice(layer: _Layer) -> str:
    if layer.class_name.startswith("Random"):
        return tables.RANDOM
    general = f"supported layers are {', '.join(sorted(set(tables.LAYERS) - tables.OPERATIONS))}"
    return tables.ADVICE.get(layer.class_name, general)


def _batch_shape(layer: _Layer, otherwise: Any) -> Any:
    """The shape that a layer states for its input, batch first."""
    config = layer.config
    return config.get("batch_input_shape", config.get("batch_shape", otherwise))


def _dtype(layer: _Layer) -> tuple[str, str]:
    """A layer's type and how to show it: a name, or a policy of any Keras; "" for a policy that is none."""
    dtype = layer.config.get("dtype")
    if isinstance(dtype, dict):
        settings = _optional_record(dtype.get("config"))
        plain = _class_name(dtype.get("class_name")) in ("DTypePolicy", "Policy") and not _foreign(dtype)
        shown = f"{dtype.get('class_name')}({', '.join(f'{k}={v!r}' for k, v in settings.items())})"
        dtype = settings.get("name") if plain and set(settings) == {"name"} else shown
    else:
        shown = repr(dtype)
        dtype = "float32" if dtype is None else dtype
    return dtype if isinstance(dtype, str) else "", shown[:100]


def _check_dtype(layer: _Layer) -> None:
    """Refuses every type but float32."""
    name, shown = _dtype(layer)
    if name != "float32":
        raise layer.refuse(
            "unsupported-option",
            f"dtype={shown}: it rounds or quantizes what it computes, and only float32 layers are read; "
            "build the model with the policy float32, give it these weights and save that",
        )


def _is_last(axes: list[Any], shape: Shape) -> bool:
    """Whether `axes`, counted with the batch, are the last one alone."""
    return len(axes) == 1 and type(axes[0]) is int and axes[0] in (-1, len(shape))


def _plain(value: Any) -> Any:
    """The value of a record that Keras makes of a NumPy scalar or array."""
    return _optional_record(value.get("config")).get("value") if isinstance(value, dict) else value


def _along_channels(layer: _Layer, key: str, value: Any, shape: Shape) -> Float32:
    """One number a channel of a tensor of this shape, from one or as many in lists; as NumPy broadcasts them,
    along the last axis.
    """
    channels = shape[-1]
    value = value.tolist() if isinstance(value, np.ndarray) else _plain(value)
    sides: list[int] = []
    inner = value
    while isinstance(inner, list) and inner and len(sides) <= len(shape):
        sides.append(len(inner))
        inner = inner[0]
    if any(side != 1 for side in sides[:-1]) or (sides and sides[-1] not in (1, channels)):
        raise layer.refuse(
            "unsupported-option",
            f"{key} has the shape {tuple(sides)}: one value, or one for each of the {channels} channels, "
            "converts",
        )
    flat = value
    for _ in sides[:-1]:
        flat = flat[0]
    numbers = [_as_number(layer, key, item) for item in flat] if sides else [_as_number(layer, key, flat)]
    result: Float32 = np.broadcast_to(np.array(numbers, np.float32), (channels,)).copy()
    return result


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def _size(layer: _Layer, key: str) -> int:
    value = layer.config.get(key)
    if isinstance(value, int) and _is_size(value):
        return value
    raise layer.refuse("damaged-file", f"{key}={str(value)[:60]}; expected a positive integer")


def _pair(layer: _Layer, key: str, default: tuple[int, int] | None = None) -> tuple[int, int]:
    value = layer.config.get(key, default)
    if isinstance(value, int):
        value = [value, value]
    if isinstance(value, (list, tuple)) and len(value) == 2 and all(_is_size(item) for item in value):
        return int(value[0]), int(value[1])
    raise layer.refuse("damaged-file", f"{key}={str(value)[:60]}; expected two positive integers")


def _as_number(layer: _Layer, key: str, value: Any) -> float:
    value = _plain(value)  # Keras wraps NumPy scalars
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 3e38:
        return float(value)
    raise layer.refuse("damaged-file", f"{key}={str(value)[:60]}; expected a finite number")


def _number(layer: _Layer, key: str, default: float) -> float:
    return _as_number(layer, key, layer.config.get(key, default))


def _flag(layer: _Layer, key: str, default: bool) -> bool:
    value = layer.config.get(key, default)
    if isinstance(value, bool):
        return value
    raise layer.refuse("damaged-file", f"{key}={str(value)[:60]}; expected true or false")


def _channels_last(layer: _Layer) -> None:
    value = layer.config.get("data_format", "channels_last")
    if value not in ("channels_last", None):
        raise layer.refuse("unsupported-option", f"data_format={value!r}; train with channels_last")


def _padding(
    layer: _Layer, shape: Shape, kernel: tuple[int, int], strides: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int, int, int]:
    value = layer.config.get("padding", "valid")
    if value == "valid":
        return 0, 0, 0, 0
    if value == "same":
        top, bottom = same_padding(shape[0], kernel[0], strides[0], dilation[0])
        left, right = same_padding(shape[1], kernel[1], strides[1], dilation[1])
        return top, left, bottom, right
    raise layer.refuse("unsupported-option", f"padding={str(value)[:60]!r}; use 'same' or 'valid'")


def _function_name(layer: _Layer, key: str, value: Any) -> str | None:
    """The name of a function or quantizer given as null, string or record.

    Of a record, where the function is from is checked here; a quantizer's own arguments are `_quantizer`'s.
    """
    if value is None:
        return None
    record = value if isinstance(value, dict) else {"class_name": value, "config": None}
    layer.require(tables.RECORD, record, f"{key} has ")
    name = record.get("config") if record.get("class_name") == "function" else record.get("class_name")
    if isinstance(name, str) and name:
        origin = _foreign(record)
        if origin:
            raise layer.refuse(
                "unsupported-quantizer" if key.endswith("quantizer") else "unsupported-activation",
                f"{key} {name[:60]!r} is from {origin}, and {tables.OWN_CODE}; use one of Keras or Larq",
            )
        return name.rsplit(">", 1)[-1]
    raise layer.refuse("damaged-file", f"{key}={str(value)[:60]}; expected a name or a record")


def _quantizer(layer: _Layer, key: str) -> str | None:
    """The name of a layer's quantizer, its arguments checked; None where none is there or it does nothing."""
    value = layer.config.get(key)
    name = _function_name(layer, key, value)
    if isinstance(value, dict) and name in tables.QUANTIZERS:
        settings = _optional_record(value.get("config"))
        layer.require(tables.QUANTIZERS[name], settings, f"{key} has ")
        _check_dtype(replace(layer, config=settings))
    return None if name in tables.NO_QUANTIZERS else name
