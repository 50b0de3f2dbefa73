"""CIFAR-10 from a folder, in either of its official layouts.

The folder is the `folder` argument or the environment variable `CBIN_NN_DATA`. It holds (itself, or in the
sub-folder that the archives unpack to) the binary version's `test_batch.bin` or the Python version's
`test_batch`. Nothing is downloaded unless asked for.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tarfile
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .errors import DataError

__all__ = ["CLASSES", "cifar10", "download"]

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ARCHIVE_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
#: As the data set's page gives it.
ARCHIVE_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"

#: Bytes of one record of the binary layout: a label and 3 planes of 32 x 32.
RECORD = 1 + 3 * 32 * 32
BATCH = 10_000
_FILES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
_SUBFOLDERS = ("", "cifar-10-batches-bin", "cifar-10-batches-py")

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.uint8]


def cifar10(
    folder: str | os.PathLike[str] | None = None, split: Literal["train", "test"] = "test"
) -> tuple[Images, Labels]:
    """Read a split of CIFAR-10.

    Args:
        folder: where the data is; default: the environment variable `CBIN_NN_DATA`.
        split: "train" (50,000 images) or "test" (10,000).

    Returns:
        Images uint8 `[N, 32, 32, 3]` and labels uint8 `[N]`, in the official order.

    Raises:
        DataError: the folder is not named, or a file is absent or damaged.
    """
    if split not in _FILES:
        raise DataError("bad-split", f"split {split!r} is unknown: use 'train' or 'test'")
    named = folder if folder is not None else os.environ.get("CBIN_NN_DATA")
    if not named:
        raise DataError(
            "no-data",
            "CIFAR-10 is not at hand: pass its folder (--data DIR), set CBIN_NN_DATA, "
            "or fetch it with cbin_nn.data.download(DIR)",
        )
    batches = [_read(_find(Path(named), name)) for name in _FILES[split]]
    images = np.concatenate([batch[0] for batch in batches])
    labels = np.concatenate([batch[1] for batch in batches])
    return np.ascontiguousarray(images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels


def _find(folder: Path, name: str) -> Path:
    for subfolder in _SUBFOLDERS:
        for suffix in (".bin", ""):
            path = folder / subfolder / (name + suffix)
            if path.is_file():
                return path
    raise DataError(
        "no-data",
        f"{folder} holds neither {name}.bin nor {name} of CIFAR-10: name the folder that the official "
        "archive unpacks to, or fetch it with cbin_nn.data.download(DIR)",
    )


def _read(path: Path) -> tuple[Images, Labels]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError("not-readable", f"{path}: {error.strerror or error}") from error
    if path.suffix == ".bin":
        if len(data) != BATCH * RECORD:
            raise DataError(
                "damaged-data", f"{path} has {len(data)} bytes, expected {BATCH * RECORD}: fetch it again"
            )
        records = np.frombuffer(data, np.uint8).reshape(BATCH, RECORD)
        images, labels = records[:, 1:], records[:, 0]
    else:
        images, labels = _unpickle(path, data)
    if labels.max() >= len(CLASSES):
        raise DataError(
            "damaged-data", f"{path} holds the label {labels.max()}, CIFAR-10 has 0 to 9: fetch it again"
        )
    return images, labels


class _ArraysOnly(pickle.Unpickler):
    """Unpickles NumPy arrays in plain containers, and nothing that could run code."""

    _ALLOWED = frozenset(
        (module, name)
        for module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
        for name in ("ndarray", "dtype", "_reconstruct")
    ) | {("_codecs", "encode")}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} does not belong in CIFAR-10")
        return super().find_class(module, name)


def _unpickle(path: Path, data: bytes) -> tuple[Images, Labels]:
    try:
        batch = _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
        images = np.asarray(batch[b"data"], np.uint8)
        labels = np.asarray(batch[b"labels"], np.uint8)
    except Exception as error:  # a damaged pickle may raise anything
        raise DataError(
            "damaged-data", f"{path} is no batch of CIFAR-10's Python version: {error}"
        ) from error
    if images.shape != (BATCH, RECORD - 1) or labels.shape != (BATCH,):
        raise DataError(
            "damaged-data", f"{path} holds arrays {images.shape} and {labels.shape}: fetch it again"
        )
    return images, labels


def download(folder: str | os.PathLike[str], *, url: str = ARCHIVE_URL, md5: str = ARCHIVE_MD5) -> Path:
    """Fetch CIFAR-10's binary version (162 MB), check it, and unpack it into `folder`.

    Args:
        folder: made where it does not exist.
        url: where the archive is.
        md5: its digest, hexadecimal, as the data set's page gives it.

    Returns:
        The folder, for `cifar10`.

    Raises:
        DataError: the archive can't be fetched, or its digest differs; nothing was unpacked.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    digest = hashlib.md5(usedforsecurity=False)
    with tempfile.TemporaryFile(dir=target) as archive:
        try:
            with urllib.request.urlopen(url, timeout=60) as response:
                while chunk := response.read(1 << 20):
                    digest.update(chunk)
                    archive.write(chunk)
        except (OSError, urllib.error.URLError) as error:
            raise DataError("download-failed", f"{url} can't be fetched: {error}") from error
        if digest.hexdigest() != md5:
            raise DataError(
                "bad-checksum", f"{url} has md5 {digest.hexdigest()}, expected {md5}: nothing was unpacked"
            )
        archive.seek(0)
        try:
            with tarfile.open(fileobj=archive) as tar:
                for member in tar:
                    name = Path(member.name).name
                    if not (member.isfile() and name.endswith((".bin", ".txt", ".html"))):
                        continue
                    # Only plain names: nothing in the archive may choose where it is written.
                    content = tar.extractfile(member)
                    if content is not None:
                        unpacked = target / "cifar-10-batches-bin"
                        unpacked.mkdir(exist_ok=True)
                        (unpacked / name).write_bytes(content.read())
        except tarfile.TarError as error:
            raise DataError("damaged-data", f"{url} is no tar archive: {error}") from error
    return target
