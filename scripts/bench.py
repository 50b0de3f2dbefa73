"""Instructions by layer on the emulated Cortex-M7, and the memory that goes with them: bench.py
[--record].

Prints two tables, for SmallCifar as it was trained (also on a runner with its operators alone), for a
SmallCifar with random weights whose activations are half +1 (the cost of vertical counters follows how many
bits are set), and for single layers of many shapes. With `--record` they are kept as bench/record/DATE.json;
`tests/test_bench.py` measures again and fails where a layer, the stack or the code takes 2 % more than in the
latest record. Counts are exact to 40 instructions and the same on every machine. They are no cycles.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import cbin_nn
import numpy as np
import trimmed_firmware
from cbin_nn import _native, zoo
from cbin_nn.images import draw_images
from cbin_nn.model import Model
from cbin_nn.operators import (
    BBFC,
    BBQFC,
    BBConv2D,
    BBDepthwiseConv2D,
    BBPointwiseConv2D,
    LoweredModel,
    Operator,
    Pool,
    QBConv2D,
    Requantization,
    Rules,
    Window,
)

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "bench" / "record"
BOARD = "qemu-mps2-an500"
#: Images of SmallCifar, and of a single layer.
IMAGES, LAYER_IMAGES = 20, 2

HALVES = Window((2, 2), (2, 2))


def same(kernel: int) -> Window:
    """A kernel whose output has the size of its input."""
    return Window((kernel, kernel), padding=(kernel // 2,) * 4)


def signs(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    """Random weights."""
    return np.where(rng.random(shape) < 0.5, -1, 1).astype(np.int8)


def threshold(lo: Any) -> Rules:
    """Rules `acc >= lo`, one a channel."""
    lo = np.asarray(lo, np.int32)
    return Rules(lo, np.full(len(lo), np.iinfo(np.int32).max, np.int32), np.zeros(len(lo), bool))


def accumulators(values: Any, weights: Any) -> Any:
    """`[H, W, O]` of a stride-1 convolution with zero padding, pooled 2 x 2 by the maximum."""
    kernel = weights.shape[1]
    padded = np.pad(values.astype(np.int64), ((kernel // 2,) * 2, (kernel // 2,) * 2, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(0, 1))
    acc = np.einsum("yxcij,oijc->yxo", windows, weights.astype(np.int64), optimize=True)
    height, width, filters = acc.shape
    return acc.reshape(height // 2, 2, width // 2, 2, filters).max(axis=(1, 3))


def half_dense() -> LoweredModel:
    """SmallCifar with random weights, each threshold at its channel's median over two images."""
    rng = np.random.default_rng(1)
    values = list(draw_images(2, 32, 32, seed=2))
    operators: list[Operator] = []
    for index, (channels, filters) in enumerate([(3, 32), (32, 32), (32, 64)], 1):
        weights = signs(rng, (filters, 5, 5, channels))
        pooled = [accumulators(each, weights) for each in values]
        lo = np.ceil(np.median(np.concatenate([p.reshape(-1, filters) for p in pooled]), axis=0))
        values = [np.where(p >= lo, 1, -1) for p in pooled]
        kind = QBConv2D if index == 1 else BBConv2D
        source = "image" if index == 1 else f"bits{index - 1}"
        operators.append(
            kind(f"conv{index}", source, f"bits{index}", weights, same(5), threshold(lo), Pool(HALVES))
        )
    factor = np.ones(10, np.int64)
    requantization = Requantization(
        factor, 0 * factor, factor, 0 * factor, np.zeros(10, np.int32), shift=0, dtype="i32", scale=1.0
    )
    operators.append(BBQFC("fc", "bits3", "logits", signs(rng, (10, 4, 4, 64)), requantization))
    return LoweredModel("half-dense", "image", (32, 32, 3), operators, "logits")


def layers() -> Iterator[tuple[str, LoweredModel]]:
    """Single layers over a grid of shapes, thresholds at 0, random bits in."""
    for channels, filters, kernel in [
        (32, 32, 3),
        (64, 64, 3),
        (32, 64, 5),
        (40, 24, 3),
        (128, 128, 3),
        (16, 8, 5),
    ]:
        rng = np.random.default_rng(channels + filters)
        weights = signs(rng, (filters, kernel, kernel, channels))
        for layout, mask in [("carry-save", None), ("vertical", np.zeros(channels, bool))]:
            operator: Operator = BBConv2D(
                "conv", "x", "y", weights, same(kernel), threshold(np.zeros(filters)), lane_mask=mask
            )
            name = f"bbconv2d 8x8x{channels} -> {filters}, {kernel}x{kernel}, {layout}"
            yield name, LoweredModel("layer", "x", (8, 8, channels), [operator], "y", input_dtype="bits")
    for channels, filters, kernel, add in [(3, 32, 5, 0), (3, 32, 5, -255), (1, 16, 3, 0), (3, 64, 7, 0)]:
        rng = np.random.default_rng(channels + filters)
        weights = signs(rng, (filters, kernel, kernel, channels))
        # 7 x 7 x 3 bytes are beyond the 16 bits of sums.
        for sums in (False, True)[: 1 if kernel == 7 else 2]:
            operator = QBConv2D(
                "conv",
                "x",
                "y",
                weights,
                same(kernel),
                threshold(np.zeros(filters)),
                input_mul=2 if add else 1,
                input_add=add,
                pixel_sums=sums,
            )
            meaning, layout = "2q - 255" if add else "q", "sums" if sums else "byte masks"
            name = f"qbconv2d 16x16x{channels} -> {filters}, {kernel}x{kernel}, {meaning}, {layout}"
            yield name, LoweredModel("layer", "x", (16, 16, channels), [operator], "y")
    for channels, filters in [(64, 64), (32, 96)]:
        weights = signs(np.random.default_rng(channels), (filters, 1, 1, channels))
        parts = ("conv", "x", "y", weights, same(1), threshold(np.zeros(filters)))
        mask = np.zeros(channels, bool)
        for operator in (BBPointwiseConv2D(*parts), BBConv2D(*parts, lane_mask=mask)):
            layout = ", 1x1, vertical" if operator.kind == "bbconv2d" else ""
            name = f"{operator.kind} 8x8x{channels} -> {filters}{layout}"
            yield name, LoweredModel("layer", "x", (8, 8, channels), [operator], "y", input_dtype="bits")
    for channels, kernel in [(64, 3), (96, 5)]:
        weights = signs(np.random.default_rng(channels), (kernel, kernel, channels))
        operator = BBDepthwiseConv2D("conv", "x", "y", weights, same(kernel), threshold(np.zeros(channels)))
        name = f"bbdepthwiseconv2d 8x8x{channels}, {kernel}x{kernel}"
        yield name, LoweredModel("layer", "x", (8, 8, channels), [operator], "y", input_dtype="bits")
    weights = signs(np.random.default_rng(0), (128, 4, 4, 64))
    operator = BBFC("fc", "x", "y", weights, threshold(np.zeros(128)))
    yield "bbfc 4x4x64 -> 128", LoweredModel("layer", "x", (4, 4, 64), [operator], "y", input_dtype="bits")


def build(lowered: LoweredModel, samples: Any = None) -> Model:
    """The model of operators as they are, or with the layouts that suit boards best for some images."""
    samples = None if samples is None else samples.tobytes()
    return Model(_native.Model.from_bytes(_native.build_model(lowered, samples)))


def run(model: Model, count: int) -> dict[str, Any]:
    """What the board says of a model: counts of each layer, sizes."""
    height, width, channels = model.input_shape
    if model.input_dtype == "u8":
        images: Any = draw_images(count, height, width, seed=1, channels=channels)
    else:
        bits = np.random.default_rng(3).random((count, height, width, channels)) - 0.5
        images = cbin_nn.ops.pack(bits)
    report = model.bench(BOARD, images)
    assert report.agree == report.images, "the board's outputs differ from the host's"
    return {
        "layers": dict(zip([layer.name for layer in model.layers], report.layer_counts, strict=True)),
        "instructions": report.count_median,
        "instructions_min": report.count_min,
        "instructions_max": report.count_max,
        "ram": report.ram,
        "flash": report.flash,
    }


def run_trimmed(model: Model, count: int) -> dict[str, Any]:
    """As `run`, on a runner with the operators of the model alone."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, CBIN_NN_RUNNERS=folder):
        trimmed_firmware.build(BOARD, trimmed_firmware.features(model), Path(folder))
        return run(model, count)


def measure() -> dict[str, Any]:
    """Everything that is recorded: name of a network or layer -> counts and sizes."""
    half = build(half_dense(), draw_images(8, 32, 32, seed=1))
    trained = cbin_nn.convert(ROOT / "tests/fixtures/smallcifar.h5")
    results = {
        "SmallCifar, trained": run(trained, IMAGES),
        "SmallCifar, trimmed runner": run_trimmed(trained, IMAGES),
        "SmallCifar, half-dense": run(half, IMAGES),
        **{f"zoo:{name}": run(cbin_nn.load(f"zoo:{name}"), IMAGES) for name in zoo.names()},
    }
    for name, layer in layers():
        results[name] = run(build(layer), LAYER_IMAGES)
    return results


def latest() -> tuple[str, dict[str, Any]]:
    """Name and results of the latest record."""
    path = max(RECORDS.glob("*.json"))
    return path.name, json.loads(path.read_text())["results"]


def table(results: dict[str, Any]) -> str:
    """Both tables as text."""
    lines = [f"{'instructions (median of images)':60} {'count':>12}"]
    for name, result in results.items():
        lines.append(f"{name:60} {result['instructions']:>12,}")
        if len(result["layers"]) > 1:
            lines += [f"    {layer:56} {count:>12,}" for layer, count in result["layers"].items()]
    lines += ["", f"{'bytes':26} {'arena':>7} {'I/O':>7} {'stack':>7} {'sum':>7} {'code':>8} {'model':>8}"]
    for name, result in results.items():
        if len(result["layers"]) > 1:
            arena, io, stack = (result["ram"][part] for part in ("arena", "io", "stack"))
            code, model = result["flash"]["code"], result["flash"]["model"]
            total = arena + io + stack
            lines.append(f"{name:26} {arena:>7,} {io:>7,} {stack:>7,} {total:>7,} {code:>8,} {model:>8,}")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and record where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="keep the figures in bench/record")
    record = parser.parse_args().record
    results = measure()
    print(table(results))
    if record:
        RECORDS.mkdir(parents=True, exist_ok=True)
        date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
        path = RECORDS / f"{date}.json"
        content = {"date": date, "board": BOARD, "unit": "instructions", "results": results}
        path.write_text(json.dumps(content, indent=1) + "\n")
        print(f"\nrecorded in {path.relative_to(ROOT)}", file=sys.stderr)


if __name__ == "__main__":
    main()
