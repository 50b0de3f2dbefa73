r"""What `cbin_nn.convert` takes: files told by their content, live models told by their class.

| source | reader | needs |
|---|---|---|
| HDF5 or zip with `config.json` | `keras` | h5py |
| zip with `models/*.json` (`.pt2`) | `torch_export` | - |
| protobuf (`.onnx`) | `onnx` | onnx |
| SavedModel folder | `keras.live` | TensorFlow |
| live Keras model | `keras.live` | its own package, h5py |
| live `torch.nn.Module`, exported program | `torch_export` | torch 2.8 or newer |
| a dict (`description`) | `description` | - |

A live model's class is told by the module that defines a base of it, so that nothing is imported to look.

Files are foreign: `bounded` has `read_path` run in another process, within bounds of time and memory.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConversionError, InvalidArgument
from .files import MAX_FILE, Archive, naming
from .graph import Graph

__all__ = ["describe", "read_path", "read_source"]

_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_ZIP_MAGIC = b"PK\x03\x04"
#: The first byte of a protobuf ModelProto: field 1 (ir_version), or 2, 3, 7, 8 in other orders.
_ONNX_FIRST = {0x08, 0x12, 0x1A, 0x3A, 0x42}


def describe(source: Any) -> str:
    """What to call a source in messages: a file's path, or a class."""
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else type(source).__name__


def read_source(source: Any, *, input_shape: Any = None) -> Graph:
    """Read any source that converts.

    Args:
        source: see the module's text.
        input_shape: (C, H, W) of one image, for a live torch module.

    Raises:
        ConversionError: it can't be read, or holds what can't be converted.
        MissingExtra: a reader's dependency is not installed.
        InvalidArgument: it is of no kind that is known.
    """
    if isinstance(source, (str, os.PathLike)):
        from .bounded import read_file

        return read_file(Path(os.fsdecode(source)), read_path)
    if isinstance(source, Graph):
        return source
    if isinstance(source, Mapping):
        from .description import read_description

        return read_description(source)
    modules = {base.__module__.split(".")[0] for base in type(source).__mro__}
    # Keras first: with torch as its backend, its models are torch modules too.
    if modules & {"keras", "tf_keras", "tensorflow"}:
        from .keras.live import read_live

        return read_live(source)
    if "torch" in modules:
        from .torch_export import read_module

        return read_module(source, input_shape)
    raise InvalidArgument(
        "bad-argument",
        f"source: {type(source).__name__} is no file, no Keras model, no torch module and no description (a "
        "dict)",
    )


def read_path(path: Path) -> Graph:
    """Read a file or folder in this process, without bounds but those of the readers.

    Raises:
        ConversionError: it can't be read, or holds what can't be converted.
        MissingExtra: a reader's dependency is not installed.
    """
    with naming(path, "model", "save it again with its framework"):
        if path.is_dir():
            from .keras.live import read_saved_model

            return read_saved_model(path)
        if path.exists() and not path.is_file():
            raise ConversionError("unsupported-file", "neither a file nor a folder")
        if path.stat().st_size > MAX_FILE:
            raise ConversionError("damaged-file", f"{path.stat().st_size} bytes is too large for a model")
        with path.open("rb") as file:
            magic = file.read(8)
        if magic[:4] == b"CBIN":
            raise ConversionError("unsupported-file", "converted already; use cbin_nn.load or `cbin-nn run`")
        if magic == _HDF5_MAGIC:
            from .keras import read_keras

            return read_keras(path)
        if magic[:4] == _ZIP_MAGIC:
            return _read_zip(path)
        if magic[:1] == b"\x80":
            raise ConversionError("unsupported-file", f"a pickle. {_NO_PICKLE}")
        if magic and magic[0] in _ONNX_FIRST:
            from .onnx import read_onnx

            return read_onnx(path)
        raise ConversionError(
            "unsupported-file",
            f"neither HDF5, a .keras archive, a .pt2 archive nor ONNX (it begins with {magic[:4]!r}); save "
            "a Keras "
            "model with model.save('model.keras'), a torch model with torch.export.save",
        )


_NO_PICKLE = (
    "Files that torch.save writes are pickles, which run code when they are read, so they are not; save the "
    "network with torch.export.save(torch.export.export(model.eval(), (example,)), 'model.pt2')"
)


def _read_zip(path: Path) -> Graph:
    with zipfile.ZipFile(path) as archive:
        names = Archive(archive).names
    if "config.json" in names:
        from .keras import read_keras

        return read_keras(path)
    parts = {tuple(name.split("/")[-2:]) for name in names}
    if any(name.endswith("serialized_exported_program.json") for name in names) or any(
        folder == "models" and file.endswith(".json") for folder, file in (p for p in parts if len(p) == 2)
    ):
        from .torch_export import read_torch_export

        return read_torch_export(path)
    if any(name.rsplit("/", 1)[-1] == "data.pkl" for name in names):
        raise ConversionError("unsupported-file", f"a zip archive with a pickle inside. {_NO_PICKLE}")
    raise ConversionError(
        "unsupported-file",
        "a zip archive that is no .keras model (it has no 'config.json') and no .pt2 program; save the "
        "model with "
        "model.save('NAME.keras') or torch.export.save",
    )
