"""`cbin_nn.deploy` on the emulated board: the real firmware on the real QEMU."""

from __future__ import annotations

from pathlib import Path

import cbin_nn
import cbin_nn.data
import cbin_nn.zoo
import numpy as np
import pytest
from cbin_nn.errors import BoardError, InvalidArgument
from cbin_nn.images import draw_images

BOARD = "qemu-mps2-an500"


@pytest.fixture(autouse=True)
def board(emulated_board: str) -> str:
    return emulated_board


@pytest.fixture(scope="module")
def model() -> cbin_nn.Model:
    return cbin_nn.convert(Path(__file__).parent / "fixtures" / "tiny.h5")


def test_host_and_board_give_the_same_bytes(model: cbin_nn.Model, fixtures: Path) -> None:
    images = np.load(fixtures / "tiny_images.npy")
    labels = np.load(fixtures / "tiny_predictions.npz")["argmax"]
    report = model.bench(BOARD, images, labels=labels)
    assert (report.images, report.agree, report.differing_bytes) == (100, 100, 0)
    assert report.accuracy == 1.0
    np.testing.assert_array_equal(report.outputs, model.run(images))
    assert report.simulated
    assert report.clock_hz is None


@pytest.mark.parametrize("output", ["i8", "i16", "f32"])
def test_every_output_type_agrees_on_the_board(output: str, fixtures: Path) -> None:
    model = cbin_nn.convert(fixtures / "tiny.h5", output=output)
    assert model.bench(BOARD, count=10).agree == 10


def test_the_unfused_model_agrees_on_the_board(fixtures: Path) -> None:
    assert cbin_nn.convert(fixtures / "tiny.h5", fuse=False).bench(BOARD, count=10).agree == 10


def test_instructions_repeat_exactly_and_add_up(model: cbin_nn.Model) -> None:
    images = draw_images(8, *model.input_shape[:2], seed=9)
    first, second = model.bench(BOARD, images), model.bench(BOARD, images)
    np.testing.assert_array_equal(first.counts, second.counts)
    assert first.to_dict() == second.to_dict()
    value = first.to_dict()
    assert value["instructions_min"] <= value["instructions"] <= value["instructions_max"]
    assert [layer["operator"] for layer in value["layers"]] == [layer.operator for layer in model.layers]
    assert all(layer["instructions"] > 0 for layer in value["layers"])
    # The timer ticks every 40 instructions.
    assert not (first.counts % 40).any()


@pytest.mark.parametrize("name", [*(f"zoo:{name}" for name in cbin_nn.zoo.names()), "smallcifar.h5"])
def test_a_thousand_images_of_cifar10_agree_byte_for_byte(
    name: str, fixtures: Path, cifar10_folder: Path
) -> None:
    images, labels = cbin_nn.data.cifar10(cifar10_folder)
    model = cbin_nn.load(name) if name.startswith("zoo:") else cbin_nn.convert(fixtures / name)
    report = model.bench(BOARD, images[:1000], labels=labels[:1000])
    assert (report.images, report.agree, report.differing_bytes) == (1000, 1000, 0)
    assert report.accuracy == (model.run(images[:1000]).argmax(axis=1) == labels[:1000]).mean()


def test_memory_is_reported_in_full(model: cbin_nn.Model) -> None:
    value = model.bench(BOARD, count=2).to_dict()
    assert value["ram"]["arena"] == model.arena_bytes
    assert value["ram"]["io"] == 12 * 12 * 3 + 4 * model.classes
    assert set(value["ram"]) == {"arena", "io", "stack", "transport", "other"}
    assert 200 < value["ram"]["stack"] < 12 * 1024
    assert value["flash"]["model"] == model.file_bytes
    assert 10_000 < value["flash"]["code"] < 100_000
    assert value["model_sha256"] == model.sha256
    assert value["simulated"] is True
    assert "cycles" not in value
    assert "milliseconds" not in value


def test_the_report_reads_well(model: cbin_nn.Model) -> None:
    report = model.bench(BOARD, count=2)
    assert "2 images, 0 differing bytes" in str(report)
    assert "not time" in str(report)
    assert report.to_markdown().count("\n| ") == len(model.layers) + 2


def test_progress_is_told_and_may_stop_the_run(model: cbin_nn.Model) -> None:
    told: list[tuple[int, int]] = []
    model.bench(BOARD, count=3, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (3, 3)

    class Enough(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done:
            raise Enough

    with pytest.raises(Enough):
        model.bench(BOARD, count=50, progress=stop)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"count": 0}, "count"),
        ({"images": np.zeros((2, 12, 12, 3), np.uint8), "count": 3}, "count.*3.*2 images"),
        ({"images": np.zeros((0, 12, 12, 3), np.uint8)}, "empty"),
        ({"images": np.zeros((2, 12, 12, 3), np.uint8), "labels": [1]}, "labels"),
        ({"images": np.zeros((2, 12, 12, 3))}, "float64"),
        ({"count": 1, "timeout": -1.0}, "timeout"),
    ],
)
def test_wrong_arguments_are_named(model: cbin_nn.Model, arguments: dict, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        model.bench(BOARD, **arguments)


def test_an_unknown_board_lists_the_known_ones(model: cbin_nn.Model) -> None:
    with pytest.raises(BoardError, match=BOARD):
        model.bench("stm32-of-my-dreams")


def test_a_missing_runner_says_how_to_get_it(
    model: cbin_nn.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CBIN_NN_RUNNERS", str(tmp_path))
    with pytest.raises(BoardError, match="make firmware"):
        model.bench(BOARD, count=1)


def test_a_missing_emulator_names_the_command(model: cbin_nn.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CBIN_NN_QEMU", "/nowhere/qemu-system-arm")
    with pytest.raises(BoardError, match="apt-get install qemu-system-arm"):
        model.bench(BOARD, count=1)


def too_large_model(side: int = 1400) -> cbin_nn.Model:
    """A model with a plane, and as many weights, of side x side x 4 bytes."""
    from cbin_nn import _native
    from cbin_nn.operators import BBQFC, LoweredModel, QBConv2D, Requantization, Rules, Window

    rules = Rules(np.zeros(1, np.int32), np.full(1, 2**31 - 1, np.int32), np.zeros(1, bool))
    conv = QBConv2D("large", "x", "y", np.ones((1, 1, 1, 1), np.int8), Window((1, 1)), rules)
    ones = np.ones(1, np.int64)
    head = Requantization(ones, 0 * ones, ones, 0 * ones, np.zeros(1, np.int32), 0, "i32", 1.0)
    weights = np.ones((1, side * side), np.int8)
    lowered = LoweredModel("large", "x", (side, side, 1), [conv, BBQFC("fc", "y", "z", weights, head)], "z")
    return cbin_nn.Model(_native.Model.from_bytes(_native.build_model(lowered)))


def test_a_model_too_large_for_the_board_is_refused_with_numbers() -> None:
    model = too_large_model()
    with pytest.raises(BoardError, match=r"\d{6,}.*\d{6,}") as caught:
        model.bench(BOARD, np.zeros((1, *model.input_shape), np.uint8))
    assert caught.value.slug in {"arena-too-small", "model-too-large"}


def test_labels_must_be_classes(model: cbin_nn.Model) -> None:
    images = draw_images(2, *model.input_shape[:2], seed=9)
    for labels in ([77, -5], [0, 10], [[0], [1, 2]], [0.5, 1.0]):
        with pytest.raises(InvalidArgument, match="labels"):
            model.bench(BOARD, images, labels=labels)
    bits, batch = cbin_nn.ops.qbconv2d.model(images, np.ones((8, 12, 12, 3), np.int8))
    with pytest.raises(InvalidArgument, match=r"labels.*bits"):
        bits.bench(BOARD, batch, labels=[0, 1])


@pytest.mark.parametrize("arguments", [{"count": "3"}, {"count": 2.5}, {"count": 1, "timeout": "x"}])
def test_no_argument_ends_in_a_foreign_error(model: cbin_nn.Model, arguments: dict) -> None:
    with pytest.raises(InvalidArgument, match=r"count|timeout"):
        model.bench(BOARD, **arguments)
