"""`cbin_nn.evaluation`: accuracy on data of any size."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cbin_nn
import numpy as np
import pytest
from cbin_nn.errors import InvalidArgument
from cbin_nn.images import draw_images
from click.testing import CliRunner

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="module")
def model() -> cbin_nn.Model:
    return cbin_nn.convert(FIXTURES / "tiny.h5")


@pytest.fixture(scope="module")
def images(model: cbin_nn.Model) -> np.ndarray:
    return draw_images(90, *model.input_shape[:2], seed=8)


@pytest.fixture(scope="module")
def labels(model: cbin_nn.Model, images: np.ndarray) -> np.ndarray:
    """What the model says, but for every third image."""
    labels = model.run(images).argmax(axis=1)
    labels[::3] = (labels[::3] + 1) % model.classes
    return labels


def test_the_accuracy_is_the_share_of_images_whose_largest_output_is_their_label(
    model: cbin_nn.Model, images: np.ndarray, labels: np.ndarray
) -> None:
    result = model.evaluate(images, labels)
    assert (result.images, result.correct, result.accuracy) == (90, 60, 2 / 3)
    assert result.confusion.sum() == 90
    expected = np.zeros_like(result.confusion)
    np.add.at(expected, (labels, model.run(images).argmax(axis=1)), 1)
    np.testing.assert_array_equal(result.confusion, expected)
    assert "66.67% on 90 images" in str(result)


def test_every_source_of_the_same_images_gives_the_same_counts(
    model: cbin_nn.Model, images: np.ndarray, labels: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", images)
    np.save(tmp_path / "y.npy", labels)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")

    def batches(size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for at in range(0, len(images), size):
            yield images[at : at + size], labels[at : at + size]

    expected = model.evaluate(images, labels)
    sources = {
        "path": model.evaluate(tmp_path / "x.npy", str(tmp_path / "y.npy")),
        "mapped": model.evaluate(mapped, labels),
        "a part of a mapped array, copied on write": model.evaluate(
            np.load(tmp_path / "x.npy", mmap_mode="c")[:], labels
        ),
        "batches": model.evaluate(batches(7)),
        "list of batches": model.evaluate(list(batches(64)), threads=1),
        "single images": model.evaluate(zip(images, labels, strict=True)),
        "backwards": model.evaluate(images[::-1], labels[::-1]),
    }
    for name, result in sources.items():
        np.testing.assert_array_equal(result.confusion, expected.confusion, err_msg=name)
    # The pages were given back, not lost.
    np.testing.assert_array_equal(mapped, images)


def test_changes_to_a_copy_on_write_mapping_survive(
    model: cbin_nn.Model, images: np.ndarray, labels: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", images)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="c")
    mapped[:] = 255 - mapped
    model.evaluate(mapped, labels)
    np.testing.assert_array_equal(mapped, 255 - images)


def test_progress_counts_up_to_all_images(
    model: cbin_nn.Model, images: np.ndarray, labels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cbin_nn.evaluation.PART_IMAGES", 40)
    calls: list[tuple[int, int]] = []
    result = model.evaluate(images, labels, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(40, 90), (80, 90), (90, 90)]
    assert result.images == 90
    calls.clear()
    model.evaluate([(images, labels)], progress=lambda done, total: calls.append((done, total)))
    assert calls == [(40, 0), (80, 0), (90, 0)]


def test_no_images_have_no_accuracy(model: cbin_nn.Model, images: np.ndarray) -> None:
    for result in (model.evaluate([]), model.evaluate(images[:0], np.zeros(0, np.int64))):
        assert result.images == 0
        assert np.isnan(result.accuracy)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x, y: (x, None), "`labels` is None"),
        (lambda x, y: (x, y[:5]), r"`labels` has shape \[5\]"),
        (lambda x, y: (x[0], y[:1]), "N labels for N images"),
        (
            lambda x, y: (x, y.astype(np.float32)),
            r"`labels` is float32.*whole; use labels.astype\(np.int64\)",
        ),
        (lambda x, y: (x, y + 0.5), "index of each class"),
        (lambda x, y: (x, np.eye(10)[y]), r"one-hot; use labels.argmax\(axis=1\)"),
        (lambda x, y: (x, np.eye(10, dtype=bool)[y]), r"one-hot; use labels.argmax\(axis=1\)"),
        (lambda x, y: (x, np.eye(10)[y] * 0.8 + 0.02), "a score for each class"),
        (lambda x, y: (x, y[:, None]), r"one column; use labels\[:, 0\]"),
        (lambda x, y: (x, y.reshape(-1, 2)), "index of each image's class"),
        (lambda x, y: (x, np.array(["cat"] * len(y))), "index of each image's class"),
        (lambda x, y: (x, np.resize(np.arange(1, 11), len(y))), "counted from 0: use labels - 1"),
        (lambda x, y: (x.repeat(2, axis=-1)[..., :4], y), r"transparency.*use images\[\.\.\., :3\]"),
        (lambda x, y: (x, y + 1000), "classes 0 to"),
        (lambda x, y: (x, y - 1000), "classes 0 to"),
        (lambda x, y: (x.astype(np.float32), y), "use .astype"),
        (lambda x, y: (7, None), "iterable of pairs"),
        (lambda x, y: ([x[0]], None), "yields ndarray"),
        (lambda x, y: ([(x, y[:3])], None), r"yields shapes \[90, "),
        (lambda x, y: ("absent.npy", y), "absent.npy: No such file"),
        (lambda x, y: (__file__, y), "is no .npy array"),
    ],
)
def test_wrong_data_is_named(
    model: cbin_nn.Model, images: np.ndarray, labels: np.ndarray, make, message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        model.evaluate(*make(images, labels))


def test_several_arrays_in_one_file_are_refused(
    model: cbin_nn.Model, images: np.ndarray, labels: np.ndarray, tmp_path: Path
) -> None:
    np.savez(tmp_path / "both.npz", x=images, y=labels)
    with pytest.raises(InvalidArgument, match="several arrays"):
        model.evaluate(tmp_path / "both.npz", labels)


def test_eval_takes_images_and_labels(
    model: cbin_nn.Model, images: np.ndarray, labels: np.ndarray, tmp_path: Path
) -> None:
    from cbin_nn.cli import main

    paths = [str(model.save(tmp_path / "m.cbn")), str(tmp_path / "x.npy"), str(tmp_path / "y.npy")]
    np.save(paths[1], images)
    np.save(paths[2], labels)
    result = CliRunner().invoke(
        main, ["eval", paths[0], "--images", paths[1], "--labels", paths[2], "--json"]
    )
    assert result.exit_code == 0, result.output
    value = json.loads(result.stdout)
    assert (value["images"], value["accuracy"]) == (90, 2 / 3)
    assert value["kernels"] == model.kernels
    assert CliRunner().invoke(main, ["eval", paths[0], "--images", paths[1]]).exit_code == 2


MEMORY = """
import sys
from pathlib import Path
import numpy as np
import cbin_nn
model = cbin_nn.load(sys.argv[1])
count = int(sys.argv[3])
result = model.evaluate(sys.argv[2], np.zeros(count, np.uint8))
assert result.images == count
# Not getrusage, whose peak a process inherits from the one that started it.
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc and the sparse file are Linux's")
def test_a_mapped_data_set_larger_than_the_limit_stays_below_it(tmp_path: Path) -> None:
    """100,000 images are 293 MiB; the file is sparse and takes no space on disk."""
    count, path = 100_000, tmp_path / "x.npy"
    np.lib.format.open_memmap(path, "w+", np.uint8, (count, 32, 32, 3)).flush()
    saved = cbin_nn.convert(FIXTURES / "smallcifar.h5").save(tmp_path / "m.cbn")
    command = [sys.executable, "-c", MEMORY, str(saved), str(path), str(count)]
    peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert peak < 200, f"{peak} MiB"


@pytest.mark.parametrize("name", ["portable", "arrays", ""])
def test_the_environment_chooses_the_kernels(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = cbin_nn.convert(FIXTURES / "tiny.h5")
    images = draw_images(10, *model.input_shape[:2], seed=9)
    expected = model.run(images)
    monkeypatch.setenv("CBIN_NN_KERNELS", name)
    chosen = cbin_nn.Model.from_bytes(model.to_bytes())
    assert chosen.kernels == (name or model.kernels)
    np.testing.assert_array_equal(chosen.run(images), expected)


def test_kernels_that_do_not_exist_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CBIN_NN_KERNELS", "mmx")
    with pytest.raises(InvalidArgument, match=r'CBIN_NN_KERNELS is "mmx".*portable, arrays') as raised:
        cbin_nn.convert(FIXTURES / "tiny.h5")
    assert raised.value.slug == "bad-kernels"
