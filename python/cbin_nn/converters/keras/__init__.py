r"""Reader of Keras files (`.h5` and `.keras`) with Larq or plain layers, without TensorFlow.

Both containers hold JSON for the architecture and HDF5 for the weights:

- HDF5 (`.h5`; TensorFlow 2.12 writes it under the name `.keras` too): root attribute `model_config`,
  weights at `model_weights/<layer>/<weight name>`, names in the layer group's attribute `weight_names`.
- zip (`.keras`): `config.json` and `model.weights.h5`, weights at `layers/<snake_case_class>[_n]/vars/<i>`,
  where n counts the layers of a class in order (TensorFlow 2.12: `_layer_checkpoint_dependencies/`, and n
  may skip numbers, so groups are matched by order). Layer names do not occur.

The container is told by its first bytes, never by the file's name.

The reader is a closed world: the tables of `signatures` say what is read. Any other key,
a value that is not neutral, an argument of a call, a class that is not Keras' or Larq's own, and a variable
that no layer took are errors that name it.

A file is hostile until read: every access is checked, no link leaves the file, nothing is read before its
size has been compared with what the architecture asks for, and whatever goes wrong is one
`ConversionError` that names the file.
"""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

from ...errors import ConversionError
from ..files import MAX_FILE, Archive, naming
from ..graph import Graph
from .architecture import MAX_CONFIG, read_architecture, read_network
from .builder import Builder
from .layer import as_text
from .weights import ArchiveWeights, CheckpointWeights, Hdf5Weights, child_of, import_h5py

__all__ = ["read_checkpoint", "read_keras"]


_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"


_ZIP_MAGIC = b"PK\x03\x04"


_MAX_MEMBER = 2**29


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
                with import_h5py().File(path, "r") as weights:
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


def read_checkpoint(model: dict[str, Any], reader: Any) -> Graph:
    """The graph of a model's record with the weights of a checkpoint reader (`tf.train.load_checkpoint`).

    Of the record the class and its configuration count; a SavedModel keeps its own affairs beside them.
    """
    record: dict[str, Any] = {key: model.get(key) for key in ("class_name", "config")}
    return Builder(CheckpointWeights(reader)).build(read_network(record))


def _read_hdf5(file: Any) -> Graph:
    if "model_config" not in file.attrs:
        if (
            "layer_names" in file.attrs
            or "layer_names0" in file.attrs
            or child_of(file, "layers") is not None
        ):
            raise ConversionError(
                "no-architecture",
                "a weights-only file carries no architecture; load it into its model and save that with "
                "model.save()",
            )
        raise ConversionError(
            "unsupported-file", "an HDF5 file, but not a Keras model (no 'model_config' attribute)"
        )
    text = as_text(file.attrs["model_config"])
    root = child_of(file, "model_weights")
    if root is None:
        raise ConversionError("missing-weights", "the file has an architecture but no 'model_weights'")
    return Builder(Hdf5Weights(root)).build(read_architecture(text))


def _read_zip(archive: zipfile.ZipFile) -> Graph:
    files = Archive(archive)
    if not {"config.json", "model.weights.h5"} <= files.names:
        raise ConversionError(
            "unsupported-file",
            "a zip archive without 'config.json' and 'model.weights.h5', so not a .keras model; save the "
            "model with "
            "model.save('NAME.keras')",
        )
    text = files.read("config.json", MAX_CONFIG).decode("utf-8")
    weights = files.read("model.weights.h5", _MAX_MEMBER)
    network = read_architecture(text)
    with import_h5py().File(io.BytesIO(weights), "r") as file:
        return Builder(ArchiveWeights(file)).build(network)
