"""Live torch: random modules through `torch.export`, and the exporters' files, against torch's own values."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import Tally
from cbin_nn.converters import lower, read_source
from cbin_nn.converters.evaluate import evaluate
from cbin_nn.errors import ConversionError
from cbin_nn.images import draw_images

if os.environ.get("CBIN_NN_REQUIRE_ALL") != "1":
    pytest.importorskip("torch", reason="make test-frameworks installs torch in .venv-torch")

import torch
import torch_networks as networks

NETWORKS = int(os.environ.get("CBIN_NN_RANDOM_NETWORKS", "200"))
ALLOWED = {"too-many-intervals", "too-many-pieces", "sign-of-zero"}


def images_for(shape: tuple[int, int, int], seed: int, count: int = 8) -> np.ndarray:
    return draw_images(count, shape[1], shape[2], seed, channels=shape[0])


def exported(module: Any, batch: int | None = None) -> Any:
    size = torch.export.Dim("batch") if batch is None else None
    example = torch.zeros(2 if batch is None else batch, *module.input_shape)
    shapes = {"input": {0: size}} if batch is None else None
    return torch.export.export(module, (example,), dynamic_shapes=shapes)


def test_random_modules(capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally()
    seed = 0
    while tally.networks < NETWORKS:
        seed += 1
        assert seed < 2 * NETWORKS + 50, f"too many refusals: {tally.refused}"
        module = networks.random_network(seed, depthwise=seed % 5 == 0)
        program = exported(module)
        images = images_for(module.input_shape, seed)
        graph = read_source(program)
        try:
            lower(graph)
        except ConversionError as error:
            assert error.slug in ALLOWED, (seed, str(error))
            tally.refused[error.slug] += 1
            continue
        try:
            assert tally.compare(graph, program, images).engine == "torch"
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        tally.kinds.update(module.kinds)
    with capsys.disabled():
        print(f"\ntorch: {tally.table()}")
    least = max(1, NETWORKS // 40)
    tally.require(
        [
            *(f"sign {kind}" for kind in networks.SIGNS),
            *(f"weight {kind}" for kind in networks.WEIGHTS),
            "gamma < 0",
            "rule rising",
            "rule falling",
            "rule inside",
            "rule outside",
            "rule constant",
            "pool before BatchNorm",
            "pool after it",
            "pool veto",
            "pool AND",
            "input normalised, 3 channels",
            "first layer real",
            "head real",
            "approximated first layer",
            "offset a channel",
            "operator qbconv2d",
            "operator qqconv2d",
            "operator bbdepthwiseconv2d",
            "operator bqqfc",
            "operator bbfc",
            "PReLU",
            "RPReLU",
            "Hardtanh before sign",
            "flattened plane of several pixels",
        ],
        least,
    )
    assert tally.bits > 500_000 * NETWORKS / 200


@pytest.mark.parametrize("route", ["pt2", "dynamo", "dynamo, optimize=False", "torchscript"])
def test_every_exporter_gives_the_same_network(tmp_path: Path, route: str) -> None:
    compared = 0
    for seed in range(500, 510):
        module = networks.random_network(seed, depthwise=seed % 5 == 0)
        images = images_for(module.input_shape, seed)
        live = read_source(module, input_shape=module.input_shape)
        try:
            expected, _ = lower(live)
        except ConversionError:
            continue
        path = tmp_path / f"{seed}.file"
        example = torch.zeros(1, *module.input_shape)
        if route == "pt2":
            torch.export.save(exported(module), path)
            path = path.with_suffix(".pt2") if path.with_suffix(".pt2").exists() else path
        elif route == "torchscript":
            pytest.importorskip("onnx")
            torch.onnx.export(module, (example,), str(path), dynamo=False)
        else:
            torch.onnx.export(
                module, (example,), str(path), dynamo=True, optimize="False" not in route, verbose=False
            )
        graph = read_source(path)
        lowered, _ = lower(graph)
        check = Tally().compare(graph, path, images)
        assert check.engine == ("torch" if route == "pt2" else "onnx.reference")
        assert [o.kind for o in lowered.operators] == [o.kind for o in expected.operators]
        compared += 1
    assert compared >= 6


class InPlace(torch.nn.Module):
    """Changes tensors in place, and reads them again by their old name."""

    input_shape = (3, 9, 9)

    def __init__(self, view: bool = False) -> None:
        super().__init__()
        self.conv = networks.BinaryConv(3, 16, 3)
        self.norm = torch.nn.BatchNorm2d(16)
        torch.nn.init.normal_(self.norm.running_mean, 0, 300)
        torch.nn.init.constant_(self.norm.running_var, 1e5)
        self.relu = torch.nn.LeakyReLU(-0.5, inplace=True)
        self.head = networks.BinaryLinear(16 * 49, 5)
        self.view = view

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x))
        seen = y.permute(0, 1, 2, 3) if self.view else y
        self.relu(y)
        y.add_(-0.25)
        y.clamp_(-1, 1)
        return self.head(torch.where((seen if self.view else y) >= 0, 1.0, -1.0).flatten(1))


def test_a_batch_of_one_may_be_squeezed_away() -> None:
    class Squeezes(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = networks.BinaryConv(3, 16, 3), networks.BinaryLinear(16, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.where(self.conv(x) >= 7.5, 1.0, -1.0)
            return self.head(torch.nn.functional.max_pool2d(-y, 7).squeeze())

    torch.manual_seed(4)
    module = Squeezes().eval()
    images = images_for((3, 9, 9), 4)
    graph = read_source(module, input_shape=(3, 9, 9))
    expected = torch.stack(
        [module(image[None]) for image in torch.from_numpy(images.transpose(0, 3, 1, 2)).float()]
    )
    assert np.allclose(evaluate(graph, images).logits, expected.detach().numpy())


def test_in_place_operations_change_what_comes_after() -> None:
    torch.manual_seed(3)
    module = InPlace().eval()
    images = images_for(module.input_shape, 3)
    graph = read_source(module, input_shape=module.input_shape)
    tally = Tally()
    tally.compare(graph, module, images, module.input_shape)
    assert tally.bits > 1000
    with pytest.raises(ConversionError, match="in place"):
        lower(read_source(InPlace(view=True).eval(), input_shape=module.input_shape))
