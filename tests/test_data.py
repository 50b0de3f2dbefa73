"""`cbin_nn.data`: both official layouts of CIFAR-10, and what can be wrong with them."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from cbin_nn import data
from cbin_nn.errors import DataError


@pytest.fixture(scope="module")
def records() -> np.ndarray:
    """A made-up batch in the binary layout."""
    made = np.random.default_rng(0).integers(0, 256, (data.BATCH, data.RECORD), dtype=np.uint8)
    made[:, 0] %= 10
    return made


def test_both_layouts_give_the_same_images(records: np.ndarray, tmp_path: Path) -> None:
    binary, python = tmp_path / "binary", tmp_path / "python"
    binary.mkdir()
    python.mkdir()
    (binary / "test_batch.bin").write_bytes(records.tobytes())
    batch = {b"data": records[:, 1:], b"labels": records[:, 0].tolist()}
    (python / "test_batch").write_bytes(pickle.dumps(batch, protocol=2))
    images, labels = data.cifar10(binary)
    assert (images.shape, images.dtype, labels.shape) == ((10_000, 32, 32, 3), np.uint8, (10_000,))
    # Record: label, then 1024 red, 1024 green, 1024 blue, row by row.
    assert images[7, 2, 5, 1] == records[7, 1 + 1024 + 2 * 32 + 5]
    again, labels_again = data.cifar10(python)
    np.testing.assert_array_equal(again, images)
    np.testing.assert_array_equal(labels_again, labels)


def test_the_variable_names_the_folder(
    records: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    (folder / "test_batch.bin").write_bytes(records.tobytes())
    monkeypatch.setenv("CBIN_NN_DATA", str(tmp_path))
    assert len(data.cifar10()[0]) == 10_000
    monkeypatch.delenv("CBIN_NN_DATA")
    with pytest.raises(DataError, match="CBIN_NN_DATA"):
        data.cifar10()


class _Attack:
    def __reduce__(self) -> tuple:
        return (print, ("code ran",))


def test_damaged_files_are_named(
    records: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match="neither"):
        data.cifar10(tmp_path)
    path = tmp_path / "test_batch.bin"
    path.write_bytes(records.tobytes()[:-1])
    with pytest.raises(DataError, match="30729999 bytes"):
        data.cifar10(tmp_path)
    bad = records.copy()
    bad[3, 0] = 11
    path.write_bytes(bad.tobytes())
    with pytest.raises(DataError, match="label 11"):
        data.cifar10(tmp_path)
    path.unlink()
    for content in (b"", b"garbage", pickle.dumps({b"data": 1}), pickle.dumps(_Attack())):
        (tmp_path / "test_batch").write_bytes(content)
        with pytest.raises(DataError, match="test_batch"):
            data.cifar10(tmp_path)
    assert "code ran" not in capsys.readouterr().out


def test_download_checks_before_it_unpacks(records: np.ndarray, tmp_path: Path) -> None:
    served, target = tmp_path / "served", tmp_path / "target"
    served.mkdir()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in ("cifar-10-batches-bin/test_batch.bin", "../../escape.bin"):
            member = tarfile.TarInfo(name)
            member.size = records.nbytes
            tar.addfile(member, io.BytesIO(records.tobytes()))
    (served / "cifar.tar.gz").write_bytes(buffer.getvalue())
    handler = partial(SimpleHTTPRequestHandler, directory=str(served))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/cifar.tar.gz"
    try:
        with pytest.raises(DataError, match="nothing was unpacked"):
            data.download(target, url=url, md5="0" * 32)
        assert not list(target.iterdir())
        data.download(target, url=url, md5=hashlib.md5(buffer.getvalue()).hexdigest())
        assert len(data.cifar10(target)[0]) == 10_000
        assert not (tmp_path / "escape.bin").exists()
        with pytest.raises(DataError, match="can't be fetched"):
            data.download(target, url=url + ".absent")
    finally:
        server.shutdown()


def test_real_cifar10(cifar10_folder: Path) -> None:
    _, labels = data.cifar10(cifar10_folder)
    np.testing.assert_array_equal(np.bincount(labels), [1000] * 10)
    assert data.CLASSES[labels[0]] == "cat"
    assert len(data.cifar10(cifar10_folder, "train")[0]) == 50_000
