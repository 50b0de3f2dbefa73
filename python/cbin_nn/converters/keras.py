r"""Reader of Keras files (`.h5` and `.keras`) with Larq or plain layers, without TensorFlow.

Both containers hold JSON for the architecture and HDF5 for the weights:

- HDF5 (`.h5`; TensorFlow 2.12 writes it under the name `.keras` too): root attribute `model_config`,
  weights at `model_weights/<layer>/<weight name>`, names in the layer group's attribute `weight_names`.
- zip (`.keras`): `config.json` and `model.weights.h5`, weights at `layers/<snake_case_class>[_n]/vars/<i>`,
  where n counts the layers of a class in order (TensorFlow 2.12: `_layer_checkpoint_dependencies/`, and n
  may skip numbers, so groups are matched by order). Layer names do not occur.

The container is told by its first bytes, never by the file's name.

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConversionError, MissingExtra
from ..operators import Window
from .graph import (
    BatchNorm,
    Bias,
    Clip,
    Conv2D,
    Dense,
    Flatten,
    Float32,
    Graph,
    Identity,
    Input,
    MaxPool2D,
    Node,
    PReLU,
    Rescaling,
    Shape,
    Sign,
    Softmax,
)

__all__ = ["read_keras", "same_padding"]

_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_ZIP_MAGIC = b"PK\x03\x04"
_MAX_FILE = 2**31
_MAX_CONFIG = 2**26
_MAX_MEMBER = 2**29
_MAX_WEIGHTS = 2**28  # elements of one array

#: Larq's quantizers with the same forward pass, sign(x) with sign(0) = +1.
_SIGNS = {"SteSign", "ste_sign", "ApproxSign", "approx_sign", "SwishSign", "swish_sign"}
_MAGNITUDE_SIGNS = {"MagnitudeAwareSign", "magnitude_aware_sign"}
_NO_QUANTIZERS = {"NoOp", "no_op"}
_DROPOUTS = {
    "ActivityRegularization",
    "AlphaDropout",
    "Dropout",
    "GaussianDropout",
    "GaussianNoise",
    "SpatialDropout2D",
}
_QUANTIZER_HINT = "use SteSign, ApproxSign or SwishSign (or MagnitudeAwareSign on kernels)"

#: What to do about layers that people use; anything else gets the general advice.
_ADVICE = {
    "GlobalAveragePooling2D": "use Flatten and QuantDense instead",
    "GlobalMaxPooling2D": "use MaxPooling2D with the size of the plane, then Flatten",
    "AveragePooling2D": "use MaxPooling2D instead",
    "ZeroPadding2D": "use padding='same' in the convolution (or pad_values=1) instead",
    "QuantSeparableConv2D": "use QuantConv2D instead",
    "SeparableConv2D": "use QuantConv2D instead",
    "QuantDepthwiseConv2D": "use QuantConv2D instead",
    "DepthwiseConv2D": "use QuantConv2D instead",
    "Add": "shortcuts are not supported yet",
    "Concatenate": "branches are not supported yet",
    "Sequential": "nested models are not supported: add their layers to the outer model",
    "Functional": "nested models are not supported: add their layers to the outer model",
    "Model": "nested models are not supported: add their layers to the outer model",
}


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """TensorFlow's "same" rule for one axis: (before, after); the odd pixel goes to the end.

    Source: https://www.tensorflow.org/api_docs/python/tf/nn (notes on padding).
    """
    outputs = -(-size // stride)
    total = max(0, (outputs - 1) * stride + dilation * (kernel - 1) + 1 - size)
    return total // 2, total - total // 2


def _h5py() -> Any:
    try:
        return importlib.import_module("h5py")
    except ImportError as error:
        raise MissingExtra(
            "missing-extra", "reading Keras files needs h5py; run: pip install 'cbin-nn[keras]'"
        ) from error


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns whatever a hostile file provokes into one ConversionError of one line with the file's name."""
    try:
        yield
    except MissingExtra:
        raise
    except ConversionError as error:
        message = " ".join(error.message.split())
        raise ConversionError(
            error.slug, message if str(path) in message else f"{path}: {message}"
        ) from error
    except FileNotFoundError as error:
        raise ConversionError("no-such-file", f"{path}: no such file") from error
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ConversionError(
            "damaged-file", f"{path}: not a readable Keras file ({reason}); save it again with model.save()"
        ) from error


def read_keras(path: str | os.PathLike[str]) -> Graph:
    """Read a Keras model file into a source graph.

    Args:
        path: an `.h5` or `.keras` file with a Sequential model, or a Functional one that is a chain.

    Returns:
        The graph; tensors are named after the layers.

    Raises:
        ConversionError: the file can't be read, or holds something that can't be converted; one line
            that names the file, the layer and what to do.
        MissingExtra: h5py is not installed.
    """
    path = Path(path)
    with _naming(path):
        if path.is_dir():
            raise ConversionError(
                "unsupported-file",
                f"{path}: a folder (a SavedModel needs TensorFlow); save the model as .keras or .h5 instead",
            )
        with path.open("rb") as file:
            magic = file.read(8)
            if path.stat().st_size > _MAX_FILE:
                raise ConversionError(
                    "damaged-file", f"{path}: {path.stat().st_size} bytes is too large for a model"
                )
            if magic == _HDF5_MAGIC:
                with _h5py().File(path, "r") as weights:
                    return _read_hdf5(weights)
            if magic[:4] == _ZIP_MAGIC:
                file.seek(0)
                with zipfile.ZipFile(file) as archive:
                    return _read_zip(archive)
    if magic[:4] == b"CBIN":
        raise ConversionError(
            "unsupported-file", f"{path}: converted already; use cbin_nn.load or `cbin-nn run`"
        )
    raise ConversionError(
        "unsupported-file",
        f"{path}: neither HDF5 nor a .keras archive (it begins with {magic[:4]!r}); "
        "save the model with model.save('model.keras')",
    )


# ------------------------------------------------------------------------------------------------
# containers


class _Weights:
    """Weight arrays by layer."""

    def take(self, layer: _Layer, expected: list[tuple[str, Shape]]) -> list[Float32]:
        """The arrays of `layer`, in the order of `expected` (name, shape), as float32."""
        raise NotImplementedError


@dataclass(frozen=True)
class _Layer:
    """One entry of the architecture: class, config, and where its weights are."""

    class_name: str
    name: str
    config: dict[str, Any]
    #: Position among the layers of the same class.
    rank: int

    def refuse(self, slug: str, message: str) -> ConversionError:
        return ConversionError(slug, f"layer {self.name!r} ({self.class_name}): {message}")


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

    def take(self, layer: _Layer, expected: list[tuple[str, Shape]]) -> list[Float32]:
        if not expected:
            return []
        group = _child(self.root, layer.name)
        if group is None:
            raise layer.refuse("missing-weights", "the file holds no weights for it")
        names = _names(group, "weight_names")
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
            arrays.append(_read_array(layer, dataset, leaf, shape))
        return arrays


def _snake_case(name: str) -> str:
    """Keras' `to_snake_case` (keras/src/saving/saving_lib.py)."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


class _ArchiveWeights(_Weights):
    """`layers/<snake_case_class>[_n]/vars/<i>`."""

    def __init__(self, root: Any, layers: list[_Layer]) -> None:
        self.container: Any = None
        for name in ("layers", "_layer_checkpoint_dependencies"):
            self.container = self.container if self.container is not None else _child(root, name)
        self.counts: dict[str, int] = {}
        for layer in layers:
            self.counts[layer.class_name] = self.counts.get(layer.class_name, 0) + 1

    def take(self, layer: _Layer, expected: list[tuple[str, Shape]]) -> list[Float32]:
        if not expected:
            return []
        stem = _snake_case(layer.class_name)
        groups = []
        for key in [] if self.container is None else list(self.container):
            match = re.fullmatch(re.escape(stem) + r"(?:_(\d{1,9}))?", key)
            variables = _child(self.container, f"{key}/vars") if match else None
            if match and variables is not None:
                groups.append((int(match[1] or 0), key, variables))
        groups.sort(key=lambda item: item[0])
        if len(groups) != self.counts[layer.class_name]:
            groups = [item for item in groups if len(item[2])]
        if len(groups) != self.counts[layer.class_name]:
            raise layer.refuse(
                "missing-weights",
                f"the file has weights of {len(groups)} layers of its class, and the architecture has "
                f"{self.counts[layer.class_name]}; save the model again with model.save('NAME.keras')",
            )
        _, key, variables = groups[layer.rank]
        if len(variables) != len(expected):
            raise layer.refuse(
                "missing-weights",
                f"expected {len(expected)} weights {[leaf for leaf, _ in expected]}, "
                f"the file has {len(variables)} under {key!r}",
            )
        arrays = []
        for i, (leaf, shape) in enumerate(expected):
            dataset = _child(variables, str(i))
            if dataset is None:
                raise layer.refuse("missing-weights", f"weight {leaf!r} ({key}/vars/{i}) is absent")
            arrays.append(_read_array(layer, dataset, leaf, shape))
        return arrays


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
    name, layers, build_shape = _architecture(text)
    return _Builder(_Hdf5Weights(root)).build(name, layers, build_shape)


def _member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    names = archive.namelist()
    if names.count(name) != 1:
        raise ConversionError(
            "unsupported-file",
            f"a zip archive without exactly one member {name!r}, so not a .keras model (PyTorch's .pt2 and "
            "archives of arrays can't be converted); save the model with model.save('NAME.keras')",
        )
    info = archive.getinfo(name)
    if info.file_size > limit:
        raise ConversionError("damaged-file", f"member {name!r} has {info.file_size} bytes, too many")
    with archive.open(info) as member:
        content = member.read(limit + 1)
    if len(content) != info.file_size:
        raise ConversionError("damaged-file", f"member {name!r} has another size than it states")
    return content


def _read_zip(archive: zipfile.ZipFile) -> Graph:
    text = _member(archive, "config.json", _MAX_CONFIG).decode("utf-8")
    weights = _member(archive, "model.weights.h5", _MAX_MEMBER)
    name, layers, build_shape = _architecture(text)
    with _h5py().File(io.BytesIO(weights), "r") as file:
        return _Builder(_ArchiveWeights(file, layers)).build(name, layers, build_shape)


# ------------------------------------------------------------------------------------------------
# architecture


def _record(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConversionError("damaged-file", f"{what} is not a record but {type(value).__name__}")
    return value


def _class_name(value: Any) -> str:
    """`Larq>QuantConv2D` and the like lose their package."""
    if not isinstance(value, str) or not value:
        raise ConversionError("damaged-file", f"a layer's class name is {value!r}")
    return value.rsplit(">", 1)[-1]


def _architecture(text: str) -> tuple[str, list[_Layer], Any]:
    """(model name, layers of the chain in order, the shape it was built with or None)."""
    if len(text) > _MAX_CONFIG:
        raise ConversionError("damaged-file", "the architecture is too long")
    model = _record(json.loads(text), "the architecture")
    kind = _class_name(model.get("class_name"))
    config = model.get("config")
    if kind == "Sequential" and isinstance(config, list):  # Keras before 2.2.3
        config = {"name": "sequential", "layers": config}
    config = _record(config, "the model's config")
    if kind not in ("Sequential", "Functional", "Model"):
        raise ConversionError(
            "unsupported-model",
            f"a model of class {kind}; only Sequential models and Functional chains convert",
        )
    entries = config.get("layers")
    if not isinstance(entries, list) or not entries:
        raise ConversionError("damaged-file", "the model has no list of layers")
    ranks: dict[str, int] = {}
    layers, inbound = [], []
    for i, item in enumerate(entries):
        entry = _record(item, f"layer number {i}")
        class_name = _class_name(entry.get("class_name"))
        settings = _record(entry.get("config"), f"the config of layer number {i}")
        name = entry.get("name", settings.get("name", f"{_snake_case(class_name)}_{i}"))
        if not isinstance(name, str) or not 0 < len(name) < 200:
            raise ConversionError("damaged-file", f"the name of layer number {i} is {str(name)[:80]!r}")
        layers.append(_Layer(class_name, name, settings, ranks.get(class_name, 0)))
        ranks[class_name] = ranks.get(class_name, 0) + 1
        inbound.append(entry.get("inbound_nodes"))
    if len({layer.name for layer in layers}) != len(layers):
        raise ConversionError("damaged-file", "two layers have the same name")
    if kind != "Sequential":
        layers = _chain(layers, inbound, config)
    name = config.get("name")
    build = config.get("build_input_shape", _optional_record(model.get("build_config")).get("input_shape"))
    return (name if isinstance(name, str) else "model"), layers, build


def _optional_record(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _chain(layers: list[_Layer], inbound: list[Any], config: dict[str, Any]) -> list[_Layer]:
    """The layers of a Functional model in order, if it is a chain."""

    def refuse(layer: _Layer) -> ConversionError:
        return layer.refuse(
            "unsupported-model",
            "this Functional model has branches, shared layers or several inputs here; "
            "only a simple chain of layers converts for now",
        )

    by_name = {layer.name: layer for layer in layers}
    before: dict[str, str] = {}
    for layer, nodes in zip(layers, inbound, strict=True):
        if layer.class_name == "InputLayer":
            if nodes:
                raise refuse(layer)
            continue
        if not isinstance(nodes, list) or len(nodes) != 1:
            raise refuse(layer)
        node = nodes[0]
        # [["previous", 0, 0, {}]]; some versions unwrap a single input.
        call = node[0] if isinstance(node, list) and len(node) == 1 and isinstance(node[0], list) else node
        if not isinstance(call, list) or len(call) < 3 or call[0] not in by_name or list(call[1:3]) != [0, 0]:
            raise refuse(layer)
        if len(call) > 3 and call[3]:
            raise refuse(layer)
        before[layer.name] = call[0]
    if len(set(before.values())) != len(before) or len(before) != len(layers) - 1:
        counts = list(before.values())
        shared = next((by_name[n] for n in counts if counts.count(n) > 1), layers[0])
        raise refuse(shared)
    after = {previous: name for name, previous in before.items()}
    current: str | None = next(layer.name for layer in layers if layer.name not in before)
    ordered = []
    while current is not None:
        ordered.append(by_name[current])
        current = after.get(current)
    outputs = config.get("output_layers")
    if isinstance(outputs, list) and len(outputs) == 1 and isinstance(outputs[0], list):
        outputs = outputs[0]
    if len(ordered) != len(layers) or not isinstance(outputs, list) or outputs[:1] != [ordered[-1].name]:
        raise refuse(ordered[-1])
    return ordered


# ------------------------------------------------------------------------------------------------
# layers


class _Builder:
    """Walks the chain and adds nodes."""

    def __init__(self, weights: _Weights) -> None:
        self.weights = weights
        self.nodes: list[Node] = []
        self.tensor = ""
        self.shape: Shape = ()
        self.handlers: dict[str, Callable[[_Layer], None]] = {
            "Activation": self._activation_layer,
            "BatchNormalization": self._batch_norm,
            "BatchNormalizationV1": self._batch_norm,
            "BatchNormalizationV2": self._batch_norm,
            "Conv2D": self._conv,
            "Dense": self._dense,
            "Flatten": self._flatten,
            "LeakyReLU": self._leaky_relu,
            "MaxPooling2D": self._max_pool,
            "PReLU": self._prelu,
            "QuantConv2D": self._conv,
            "QuantDense": self._dense,
            "ReLU": self._relu,
            "Rescaling": self._rescaling,
            "Softmax": self._softmax,
        }

    def build(self, name: str, layers: list[_Layer], build_shape: Any) -> Graph:
        """The graph of `layers`."""
        first = layers[0]
        shape = first.config.get("batch_input_shape", first.config.get("batch_shape", build_shape))
        self._input(first, shape)
        for layer in layers[1:] if first.class_name == "InputLayer" else layers:
            dtype = layer.config.get("dtype", "float32")
            if dtype not in ("float32", None):
                raise layer.refuse(
                    "unsupported-option",
                    f"dtype {str(dtype)[:60]!r}; only float32 layers convert, save it as such",
                )
            if layer.class_name in _DROPOUTS:
                self._add(Identity(layer.name, layer.name, (self.tensor,)))
            elif layer.class_name in _SIGNS:
                self._add(Sign(layer.name, layer.name, (self.tensor,)))
            elif layer.class_name in self.handlers:
                self.handlers[layer.class_name](layer)
            else:
                advice = _ADVICE.get(
                    layer.class_name, f"supported layers are {', '.join(sorted(self.handlers))}, Dropout"
                )
                raise layer.refuse("unsupported-layer", f"this kind of layer can't be converted; {advice}")
        return Graph(name, self.nodes, self.tensor)

    def _add(self, node: Node) -> None:
        self.shape = node.output_shape((self.shape,))
        if min(self.shape) < 1 or any(side > 2**31 for side in self.shape):
            raise ConversionError(
                "shape-mismatch", f"layer {node.layer!r}: its output shape {self.shape} is impossible"
            )
        self.nodes.append(node)
        self.tensor = node.name

    def _input(self, layer: _Layer, shape: Any) -> None:
        if not isinstance(shape, list) or len(shape) < 2 or not all(_is_size(side) for side in shape[1:]):
            raise layer.refuse(
                "unsupported-option",
                f"the input shape is {str(shape)[:80]}; a fixed one is needed, such as Input(shape=(32, "
                f"32, 3))",
            )
        name = layer.name if layer.class_name == "InputLayer" else "input"
        node = Input(name, layer.name, (), tuple(shape[1:]))
        self.nodes.append(node)
        self.tensor, self.shape = node.name, node.shape

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
        filters = _size(layer, "filters")
        shape = (*kernel_size, self.shape[2], filters)
        kernel, bias, binary, scale = self._kernel(layer, shape)
        self._quantize_input(layer)
        window = Window(kernel_size, strides, dilation, padding)
        self._add(
            Conv2D(layer.name, layer.name, (self.tensor,), kernel, window, binary, scale, float(pad_value))
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
        """(quantized kernel, bias, whether it is binary, per-output scale)."""
        use_bias = _flag(layer, "use_bias", True)
        expected: list[tuple[str, Shape]] = [("kernel", shape)]
        if use_bias:
            expected.append(("bias", shape[-1:]))
        arrays = self.weights.take(layer, expected)
        kernel, bias = arrays[0], arrays[1] if use_bias else None
        if not np.isfinite(kernel).all():
            raise layer.refuse(
                "not-finite", "its kernel holds NaN or infinite values; use another checkpoint"
            )
        quantizer = _quantizer(layer, "kernel_quantizer")
        scale: Float32 | None = None
        if quantizer is None:
            # A kernel that was stored as signs is binary whatever its quantizer.
            return kernel, bias, bool(np.all(np.abs(kernel) == 1)), None
        if quantizer in _MAGNITUDE_SIGNS:
            # One scale an output channel: the mean absolute latent weight (Bi-Real Net, Liu et al. 2018).
            scale = (
                np.abs(kernel).mean(axis=tuple(range(kernel.ndim - 1)), dtype=np.float64).astype(np.float32)
            )
        elif quantizer not in _SIGNS:
            raise layer.refuse(
                "unsupported-quantizer", f"kernel_quantizer {quantizer} is not binary; {_QUANTIZER_HINT}"
            )
        return np.where(kernel >= 0, np.float32(1), np.float32(-1)), bias, True, scale

    def _quantize_input(self, layer: _Layer) -> None:
        quantizer = _quantizer(layer, "input_quantizer")
        if quantizer is None:
            return
        if quantizer not in _SIGNS:
            raise layer.refuse(
                "unsupported-quantizer", f"input_quantizer {quantizer} is not a sign; {_QUANTIZER_HINT}"
            )
        self._add(Sign(f"{layer.name}/input_quantizer", layer.name, (self.tensor,)))

    def _finish(self, layer: _Layer, bias: Float32 | None) -> None:
        if bias is not None:
            self._add(Bias(f"{layer.name}/bias", layer.name, (self.tensor,), bias))
        self._activation(layer, layer.config.get("activation"), f"{layer.name}/activation")

    def _activation_layer(self, layer: _Layer) -> None:
        self._activation(layer, layer.config.get("activation"), layer.name)

    def _activation(self, layer: _Layer, activation: Any, name: str) -> None:
        kind = _function_name(layer, "activation", activation)
        if kind in (None, "linear"):
            return
        if kind in _SIGNS:
            self._add(Sign(name, layer.name, (self.tensor,)))
        elif kind in ("softmax", "Softmax"):
            self._add(Softmax(name, layer.name, (self.tensor,)))
        elif kind in ("relu", "ReLU"):
            self._add(Clip(name, layer.name, (self.tensor,), 0.0, None))
        elif kind == "relu6":
            self._add(Clip(name, layer.name, (self.tensor,), 0.0, 6.0))
        elif kind in ("hard_tanh", "HardTanh"):
            self._add(Clip(name, layer.name, (self.tensor,), -1.0, 1.0))
        else:
            raise layer.refuse(
                "unsupported-activation",
                f"activation {kind!r} can't be converted; supported are linear, relu, hard_tanh, softmax "
                f"at the end, PReLU and LeakyReLU layers, and ste_sign, approx_sign, swish_sign",
            )

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
        axes = axis if isinstance(axis, list) else [axis]
        if axes not in ([len(self.shape)], [-1]):
            raise layer.refuse(
                "unsupported-option", f"axis={axis!r}; only the channel axis (the last one) converts"
            )
        if layer.config.get("renorm", False):
            raise layer.refuse("unsupported-option", "renorm=True; train with plain batch normalization")
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
        slope = _number(layer, "alpha" if "alpha" in layer.config else "negative_slope", 0.3)
        self._add(PReLU(layer.name, layer.name, (self.tensor,), np.full(self.shape[-1:], slope, np.float32)))

    def _relu(self, layer: _Layer) -> None:
        slope = 0.0 if layer.config.get("negative_slope") is None else _number(layer, "negative_slope", 0.0)
        threshold = 0.0 if layer.config.get("threshold") is None else _number(layer, "threshold", 0.0)
        maximum = None if layer.config.get("max_value") is None else _number(layer, "max_value", 0.0)
        if threshold or (maximum is not None and maximum < 0):
            raise layer.refuse(
                "unsupported-option", f"threshold={threshold}, max_value={maximum}; use threshold=0"
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
        values = []
        for key, default in (("scale", 1.0), ("offset", 0.0)):
            value = layer.config.get(key, default)
            while isinstance(value, list) and value and all(item == value[0] for item in value):
                value = value[0]
            if isinstance(value, (list, dict)):
                raise layer.refuse(
                    "unsupported-option",
                    f"{key} differs from channel to channel; only one {key} for all converts for now",
                )
            values.append(float(np.float32(_as_number(layer, key, value))))
        self._add(Rescaling(layer.name, layer.name, (self.tensor,), values[0], values[1]))

    def _softmax(self, layer: _Layer) -> None:
        axis = layer.config.get("axis", -1)
        if axis not in (-1, len(self.shape), [-1]):
            raise layer.refuse("unsupported-option", f"axis={axis!r}; only the last axis converts")
        self._add(Softmax(layer.name, layer.name, (self.tensor,)))

    def _flatten(self, layer: _Layer) -> None:
        if layer.config.get("data_format", "channels_last") not in ("channels_last", None):
            raise layer.refuse("unsupported-option", "data_format='channels_first'; train with channels_last")
        self._add(Flatten(layer.name, layer.name, (self.tensor,)))


# ------------------------------------------------------------------------------------------------
# options


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
    if isinstance(value, dict):  # Keras wraps NumPy scalars
        value = _optional_record(value.get("config")).get("value")
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
    """The name of a function or quantizer given as null, string or record."""
    if value is None:
        return None
    if isinstance(value, dict):
        inner = value.get("config")
        name = inner if value.get("class_name") == "function" else value.get("class_name")
        if name == "Activation" and isinstance(inner, dict):
            name = inner.get("activation")
        value = name
    if isinstance(value, str) and value:
        return value.rsplit(">", 1)[-1]
    raise layer.refuse("damaged-file", f"{key}={str(value)[:60]}; expected a name or a record")


def _quantizer(layer: _Layer, key: str) -> str | None:
    name = _function_name(layer, key, layer.config.get(key))
    return None if name in _NO_QUANTIZERS else name
