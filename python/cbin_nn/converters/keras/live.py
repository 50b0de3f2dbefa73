r"""Live Keras models, and SavedModel folders where TensorFlow is installed.

A live model is saved to an `.h5` file of its own and read from there by `keras`: one reader for all. That
file tells classes by their names alone, so the model is first searched for classes and functions of the
user that have the name of a known one.

A SavedModel is read without loading it, so none of its functions run: the architecture is JSON in
`keras_metadata.pb`, the weights are a checkpoint that `tf.train.load_checkpoint` reads as plain arrays.
"""

from __future__ import annotations

import importlib
import json
import tempfile
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import ConversionError, MissingExtra
from ..graph import Graph
from . import read_checkpoint, read_keras
from .signatures import PACKAGES, is_known

__all__ = ["read_live", "read_saved_model"]

_MAX_METADATA = 2**27
#: Where a layer has functions that change what it computes.
_FUNCTION_ATTRIBUTES = ("activation", "depthwise_quantizer", "input_quantizer", "kernel_quantizer")


def read_live(model: Any) -> Graph:
    """The source graph of a live Keras model (`tf.keras`, `tf_keras` or Keras 3).

    Raises:
        ConversionError: it can't be saved or converted.
    """
    if not hasattr(model, "save"):
        raise ConversionError(
            "unsupported-model", f"{type(model).__name__} is no Keras model; pass the model, not a layer"
        )
    _check_origins(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.h5"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model.save(str(path), include_optimizer=False)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise ConversionError(
                "unsupported-model", f"Keras can't save {type(model).__name__} as .h5 ({reason})"
            ) from error
        try:
            return read_keras(path)
        except ConversionError as error:
            raise ConversionError(
                error.slug, error.reason, layer=error.layer, kind=error.kind, advice=error.advice
            ) from error


def _check_origins(model: Any) -> None:
    """Refuses what is not from Keras or Larq and has the name of something that is."""
    seen: set[int] = set()
    waiting = [("", model)]
    while waiting:
        where, item = waiting.pop()
        if item is None or id(item) in seen:
            continue
        seen.add(id(item))
        kind = item if isinstance(item, types.FunctionType) else type(item)
        name = kind.__name__
        if is_known(name) and (kind.__module__ or "").split(".")[0] not in PACKAGES:
            raise ConversionError(
                "unsupported-layer",
                f"{where}{name} is from {kind.__module__}, and not the {name} of Keras or Larq; its code is "
                "not read, so use theirs",
            )
        place = f"layer {getattr(item, 'name', name)!r}: "
        # Keras 3 has functions, such as `keras.ops.sign`, among a model's operations.
        for inner in (getattr(item, "operations", None), getattr(item, "layers", None)):
            waiting += [("", layer) for layer in inner or ()]
        waiting += [(place, getattr(item, key, None)) for key in _FUNCTION_ATTRIBUTES]


def read_saved_model(path: Path) -> Graph:
    """The source graph of a SavedModel folder that Keras wrote.

    Raises:
        ConversionError: it is none, or can't be converted.
        MissingExtra: TensorFlow is not installed.
    """
    metadata = path / "keras_metadata.pb"
    if not (path / "saved_model.pb").is_file() or not metadata.is_file():
        raise ConversionError(
            "unsupported-file",
            "a folder, and no SavedModel that Keras wrote (saved_model.pb and keras_metadata.pb); save the "
            "model as "
            ".keras or .h5 instead",
        )
    try:
        tensorflow = importlib.import_module("tensorflow")
    except ImportError as error:
        raise MissingExtra(
            "missing-extra",
            "reading a SavedModel needs TensorFlow; install it, or save the model as .keras or .h5",
        ) from error
    if metadata.stat().st_size > _MAX_METADATA:
        raise ConversionError("damaged-file", "keras_metadata.pb is too large")
    model = _root_model(metadata.read_bytes())
    reader = tensorflow.train.load_checkpoint(str(path / "variables" / "variables"))
    return read_checkpoint(model, reader)


def _root_model(data: bytes) -> dict[str, Any]:
    """The record of the outermost model: SavedMetadata.nodes[].metadata where node_path is "root"."""
    for number, node in _fields(data):
        if number != 1 or not isinstance(node, bytes):
            continue
        parts = dict(_fields(node))
        if parts.get(3) == b"root" and isinstance(parts.get(5), bytes):
            record = json.loads(parts[5], object_hook=_plain)
            if isinstance(record, dict) and isinstance(record.get("config"), dict):
                return record
    raise ConversionError("damaged-file", "keras_metadata.pb names no model")


def _plain(record: dict[str, Any]) -> Any:
    """Tuples are records of their own in a SavedModel."""
    if record.get("class_name") == "__tuple__" and isinstance(record.get("items"), list):
        return record["items"]
    return record


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of a protobuf message's fields; bytes for those with a length."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            if at >= len(data) or shift > 63:
                raise ConversionError("damaged-file", "keras_metadata.pb ends early")
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        kind = key & 7
        if kind == 0:
            yield key >> 3, varint()
        elif kind == 2:
            length = varint()
            if at + length > len(data):
                raise ConversionError("damaged-file", "keras_metadata.pb ends early")
            yield key >> 3, data[at : at + length]
            at += length
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ConversionError("damaged-file", "keras_metadata.pb is no protobuf")
