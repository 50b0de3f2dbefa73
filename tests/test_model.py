"""`cbin_nn.model`: convert, load, save, run."""

from __future__ import annotations

import concurrent.futures
import copy
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cbin_nn
import numpy as np
import pytest
from cbin_nn.errors import InvalidArgument, ModelFileError, OutputError
from cbin_nn.images import draw_images


@pytest.fixture(scope="module")
def model() -> cbin_nn.Model:
    return cbin_nn.convert(Path(__file__).parent / "fixtures" / "tiny.h5")


@pytest.fixture(scope="module")
def images(model: cbin_nn.Model) -> np.ndarray:
    return draw_images(40, *model.input_shape[:2], seed=3)


def test_a_saved_model_is_the_same_model(model: cbin_nn.Model, images: np.ndarray, tmp_path: Path) -> None:
    path = model.save(tmp_path / "tiny.cbn")
    loaded = cbin_nn.load(path)
    assert loaded.to_bytes() == model.to_bytes() == path.read_bytes()
    assert loaded.sha256 == model.sha256
    np.testing.assert_array_equal(loaded.run(images), model.run(images))
    assert loaded.name == model.name
    assert loaded.layers == model.layers


def test_save_never_replaces_a_file_unasked(model: cbin_nn.Model, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists"):
        model.save(path)
    assert path.read_bytes() == b"mine"
    cbin_nn.save(model, path, overwrite=True)
    assert path.read_bytes() == model.to_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["precious"], "a temporary file was left behind"


def test_save_to_a_folder_that_is_absent_changes_nothing(model: cbin_nn.Model, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="can't be written"):
        model.save(tmp_path / "absent" / "tiny.cbn")
    with pytest.raises(OutputError, match="folder"):
        model.save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_threads_batches_and_memory_order_do_not_matter(model: cbin_nn.Model, images: np.ndarray) -> None:
    expected = model.run(images)
    for threads in (1, 2, 3):
        np.testing.assert_array_equal(model.run(images, threads=threads), expected)
    np.testing.assert_array_equal(np.stack([model.run(image) for image in images]), expected)
    np.testing.assert_array_equal(model.run(np.asfortranarray(images)), expected)
    np.testing.assert_array_equal(model.run(np.repeat(images, 2, axis=0)[::2]), expected)
    assert model.run(images[:0]).shape == (0, model.classes)


def test_the_interpreter_is_free_during_a_run(model: cbin_nn.Model, images: np.ndarray) -> None:
    batch = np.repeat(images, 200, axis=0)
    ticks, done = 0, threading.Event()

    def count() -> None:
        nonlocal ticks
        while not done.is_set():
            ticks += 1

    counter = threading.Thread(target=count)
    counter.start()
    before = ticks
    model.run(batch, threads=1)
    after = ticks
    done.set()
    counter.join()
    # A held interpreter would give the counter no turn at all while the batch ran.
    assert after - before > 100


def test_many_python_threads_share_a_model(model: cbin_nn.Model, images: np.ndarray) -> None:
    expected = model.run(images)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for outputs in pool.map(lambda _: model.run(images), range(32)):
            np.testing.assert_array_equal(outputs, expected)


@pytest.mark.parametrize(
    "output, dtype", [("i8", np.int8), ("i16", np.int16), ("i32", np.int32), ("f32", np.float32)]
)
def test_output_types_agree_within_half_a_step(
    output: str, dtype: type, images: np.ndarray, fixtures: Path
) -> None:
    exact = np.load(fixtures / "tiny_predictions.npz")["logits"]
    committed = np.load(fixtures / "tiny_images.npy")
    model = cbin_nn.convert(fixtures / "tiny.h5", output=output)
    outputs = model.run(committed)
    assert outputs.dtype == dtype
    assert model.output_dtype == output
    logits = model.run(committed, dequantize=True)
    assert logits.dtype == np.float32
    tolerance = 0.5 * model.output_scale * (1 + 1e-3) + 1e-5 * np.abs(exact).max()
    assert np.abs(logits - exact).max() <= tolerance
    if output == "f32":
        np.testing.assert_array_equal(outputs, logits)
        assert model.run_integers(committed).dtype == np.int32


def test_taps_end_in_the_output_and_hold_signs(model: cbin_nn.Model, images: np.ndarray) -> None:
    taps = model.taps(images[0])
    assert list(taps) == [layer.name for layer in model.layers]
    for layer in model.layers[:-1]:
        assert taps[layer.name].shape == layer.output_shape
        assert set(np.unique(taps[layer.name])) <= {-1, 1}
    np.testing.assert_array_equal(taps[model.layers[-1].name], model.run(images[0]))


def test_unfused_and_fused_models_agree(fixtures: Path, images: np.ndarray) -> None:
    fused = cbin_nn.convert(fixtures / "tiny.h5")
    unfused = cbin_nn.convert(fixtures / "tiny.h5", fuse=False)
    assert len(unfused.layers) > len(fused.layers)
    np.testing.assert_array_equal(unfused.run(images), fused.run(images))


@pytest.mark.parametrize(
    "value, message",
    [
        (np.zeros((2, 12, 12, 3), np.float32), r"float32.*uint8.*0\.\.1"),
        (np.full((1, 12, 12, 3), 300), r"int64.*300 to 300"),
        (np.full((1, 12, 12, 3), -1.5), r"float64.*-1\.5"),
        (np.full((1, 12, 12, 3), 7), r"int64.*astype"),
        (np.zeros((2, 12, 12, 3), bool), "bool"),
        (np.zeros((2, 3, 12, 12), np.uint8), r"\[2, 3, 12, 12\].*channels first.*transpose"),
        (np.zeros((12, 12), np.uint8), r"\[12, 12\]"),
        (np.zeros((2, 12, 12, 4), np.uint8), r"12, 12, 4.*transparency.*images\[\.\.\., :3\]"),
        (np.zeros((2, 12, 12, 1), np.uint8), r"grey.*images.repeat\(3, axis=-1\)"),
        (np.zeros((2, 12, 12, 7), np.uint8), "takes 3 channels, and the images have 7"),
        ("an image", "uint8"),
    ],
)
def test_wrong_images_are_named(model: cbin_nn.Model, value: object, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        model.run(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("threads", [0, -1, True])
def test_wrong_thread_counts_are_named(model: cbin_nn.Model, images: np.ndarray, threads: int) -> None:
    with pytest.raises(InvalidArgument, match="threads"):
        model.run(images, threads=threads)


def test_summary_reads_like_keras(model: cbin_nn.Model) -> None:
    lines: list[str] = []
    model.summary(print_fn=lines.append)
    text = "\n".join(lines)
    for layer in model.layers:
        assert layer.name in text
        assert layer.operator in text
    assert f"{model.arena_bytes:,} bytes of arena" in text
    assert model.name in repr(model)


def test_load_names_the_file_and_the_field(model: cbin_nn.Model, fixtures: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.cbn"
    data = model.to_bytes()
    table = [
        (b"", "too few"),
        (data[: len(data) // 2], "truncated"),
        (b"GIF89a" + data[6:], "CBIN"),
        (data[:-1] + bytes([data[-1] ^ 1]), "checksum"),
        (data[:4] + b"\x02" + data[5:], "version 2"),
    ]
    for content, message in table:
        path.write_bytes(content)
        with pytest.raises(ModelFileError, match=message) as caught:
            cbin_nn.load(path)
        assert str(path) in str(caught.value)
    with pytest.raises(ModelFileError, match="convert it first"):
        cbin_nn.load(fixtures / "tiny.h5")
    with pytest.raises(ModelFileError, match="No such file"):
        cbin_nn.load(tmp_path / "absent.cbn")


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, list, int])
def test_what_is_no_path_is_not_printed(model: cbin_nn.Model, kind: type) -> None:
    value = 7 if kind is int else kind(model.to_bytes())
    with pytest.raises(InvalidArgument, match=kind.__name__) as caught:
        cbin_nn.load(value)
    assert len(str(caught.value)) < 120
    assert ("Model.from_bytes" in str(caught.value)) == (kind in (bytes, bytearray, memoryview))


def test_ctrl_c_ends_a_long_run(fixtures: Path) -> None:
    code = (
        "import cbin_nn, numpy as np, signal\n"
        # A process started in the background ignores the signal from birth.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"model = cbin_nn.convert({str(fixtures / 'smallcifar.h5')!r})\n"
        "batch = np.zeros((100_000, 32, 32, 3), np.uint8)\n"
        "print('ready', flush=True)\n"
        "model.run(batch, threads=1)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=15)
    assert "KeyboardInterrupt" in errors
    assert process.returncode != 0


def test_a_model_survives_pickle_and_copy(model: cbin_nn.Model, images: np.ndarray) -> None:
    for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert again.to_bytes() == model.to_bytes()
        assert str(again.conversion) == str(model.conversion)
        np.testing.assert_array_equal(again.run(images), model.run(images))


def test_logits_are_not_scaled_twice(fixtures: Path, images: np.ndarray) -> None:
    model = cbin_nn.convert(fixtures / "tiny.h5", output="f32")
    logits = model.run(images)
    np.testing.assert_array_equal(model.dequantize(model.run_integers(images)), logits)
    with pytest.raises(InvalidArgument, match=r"outputs.*float32"):
        model.dequantize(logits)


def test_no_argument_ends_in_a_foreign_error(model: cbin_nn.Model, images: np.ndarray) -> None:
    for threads in ("2", 2.5, 10**20):
        with pytest.raises(InvalidArgument, match="threads"):
            model.run(images, threads=threads)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="threads"):
            model.run_integers(images, threads=threads)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="images"):
        model.run([[1, 2], [3]])  # type: ignore[list-item]
    with pytest.raises(InvalidArgument, match="NaN"):
        model.run(np.full((1, 12, 12, 3), np.nan))
    with pytest.raises(ModelFileError, match="null byte"):
        cbin_nn.load("a\0b")
    with pytest.raises(TypeError):
        cbin_nn.Model.from_bytes(5)  # type: ignore[arg-type]


def test_the_package_offers_its_parts() -> None:
    assert {"data", "images", "ops", "rule", "Rule"} <= set(dir(cbin_nn))
    assert callable(cbin_nn.data.cifar10)
    assert callable(cbin_nn.images.draw_images)
