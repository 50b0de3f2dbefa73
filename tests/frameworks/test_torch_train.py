"""Training with real torch: estimators, layers, optimizers, fused kernels, runs that are killed and resumed,
two processes, and the exactness of what is converted."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cbin_nn
import numpy as np
import pytest
import synthetic
from cbin_nn.errors import CbinError, ConversionError, DataError, InvalidArgument
from cbin_nn.images import draw_images
from conftest import require

PROGRAM = Path(__file__).with_name("synthetic.py")


@pytest.fixture(scope="module", autouse=True)
def torch() -> Any:
    found = all(importlib.util.find_spec(name) is not None for name in ("torch", "lightning_fabric"))
    require("torch and lightning-fabric", found, "pip install 'cbin-nn[torch]'")
    import torch

    torch.set_num_threads(1)
    return torch


# ------------------------------------------------------------------------------------------------
# estimators


def derivative(name: str, x: float, progress: float) -> float:
    """What the table in `estimators` says, one number at a time."""
    size = abs(x)
    if name == "identity":
        return 1.0
    if name == "ste":
        return float(size <= 1)
    if name == "approx":
        return max(0.0, 2 - 2 * size)
    if name == "swish":
        return 5 * (2 - 5 * x * math.tanh(5 * x / 2)) / (1 + math.cosh(5 * x))
    if name == "ede":
        t = 10 ** (-1 + 2 * progress)
        return max(1 / t, 1) * t * (1 - math.tanh(t * x) ** 2)
    o = 1 + 2 * progress
    return max(size, 0.1) ** (1 / o - 1) / o if size <= 1.5 else 0.0


@pytest.mark.parametrize("name", ["identity", "ste", "approx", "swish", "ede", "reste"])
@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_an_estimator_is_sign_forwards_and_its_derivative_backwards(
    torch: Any, name: str, progress: float
) -> None:
    from cbin_nn.train import Sign, set_progress

    values = [-7.0, -1.4, -1.0, -0.6, -0.05, -0.0, 0.0, 1e-30, 0.05, 0.3, 1.0, 1.2, 1.6, 7.0]
    x = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    module = torch.nn.Sequential(Sign(name))
    set_progress(module, progress)
    y = module(x)
    assert y.tolist() == [1.0 if v >= 0 else -1.0 for v in values]
    upstream = torch.arange(1.0, len(values) + 1, dtype=torch.float64)
    y.backward(upstream)
    expected = [derivative(name, v, progress) * u for v, u in zip(values, upstream.tolist(), strict=True)]
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_an_unknown_estimator_is_named() -> None:
    from cbin_nn.train import Sign

    with pytest.raises(InvalidArgument, match=r"estimator: expected one of .*approx.*, got 'magic'"):
        Sign("magic")


# ------------------------------------------------------------------------------------------------
# layers, exactly


def scramble(torch: Any, model: Any, seed: int) -> None:
    """Parameters and statistics as a hard training could leave them: every sign, some zeros."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Any, low: float, high: float) -> None:
        with torch.no_grad():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    for module in model.modules():
        if isinstance(module, (torch.nn.BatchNorm2d, torch.nn.BatchNorm1d)):
            uniform(module.weight, -1, 1)
            uniform(module.bias, -0.5, 0.5)
            uniform(module.running_mean, -0.5, 0.5)
            uniform(module.running_var, 0.2, 2)
            module.weight.data[0] = 0
        elif isinstance(module, torch.nn.PReLU):
            uniform(module.weight, -1, 1)
        elif hasattr(module, "bias") and type(module).__name__ == "Shift":
            uniform(module.bias, -0.5, 0.5)


def settle(torch: Any, model: Any, images: Any) -> None:
    """Running statistics of real activations, so that bits aren't all alike."""
    from cbin_nn.train.data import as_input

    model.train()
    with torch.no_grad():
        for _ in range(80):
            model(as_input(images))
    model.eval()


def networks(torch: Any) -> dict[str, Any]:
    """One network for each kind of module, last the shipped topology."""
    from cbin_nn.train import (
        BinaryConv2d,
        BinaryLinear,
        QuantizedConv2d,
        RPReLU,
        RSign,
        Shift,
        Sign,
        SmallCifar,
    )

    nn = torch.nn

    def chain(*modules: Any) -> Any:
        return nn.Sequential(*modules)

    return {
        "binary-first": chain(
            BinaryConv2d(3, 24, 3, scale=2**-10),
            nn.BatchNorm2d(24),
            Sign(),
            nn.Flatten(),
            BinaryLinear(24 * 100, 10),
        ),
        "quantized-first-rprelu": chain(
            QuantizedConv2d(3, 33, 3, stride=2, padding=1, scale=2**-9),
            RPReLU(33),
            nn.BatchNorm2d(33),
            Sign("ste"),
            nn.Flatten(),
            BinaryLinear(33 * 36, 7, scale=2**-5),
            nn.BatchNorm1d(7),
        ),
        "rsign-mean-scale-pools": chain(
            QuantizedConv2d(3, 40, 3, scale=2**-9),
            nn.PReLU(40),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(40),
            RSign(40),
            BinaryConv2d(40, 31, 3, padding=1, scale="mean"),
            nn.BatchNorm2d(31),
            nn.MaxPool2d(3, 2, 1),
            nn.PReLU(),
            Shift(31),
            Sign("ede"),
            nn.Dropout(0.5),
            nn.Flatten(),
            BinaryLinear(31 * 9, 16, scale="mean"),
            nn.BatchNorm1d(16),
            Sign(),
            BinaryLinear(16, 5),
        ),
        "smallcifar": SmallCifar("q8"),
        "smallcifar-binary": SmallCifar("binary"),
    }


@pytest.mark.parametrize(
    "kind",
    ["binary-first", "quantized-first-rprelu", "rsign-mean-scale-pools", "smallcifar", "smallcifar-binary"],
)
@pytest.mark.parametrize("seed", range(4))
def test_every_module_converts_exactly(torch: Any, kind: str, seed: int) -> None:
    from cbin_nn.train import convert, predict

    torch.manual_seed(seed)
    model = networks(torch)[kind]
    size = 32 if kind.startswith("smallcifar") else 12
    images = draw_images(120, size, size, seed=seed)
    scramble(torch, model, seed)
    settle(torch, model, images)
    expected = predict(model, images).numpy()
    converted = convert(model, (size, size, 3), name=kind)
    logits = converted.run(images, dequantize=True)
    report = converted.conversion
    assert report is not None
    wrong = np.abs(logits - expected).max(axis=1) > 1e-4 * (1 + np.abs(expected).max())
    # Only channels that the converter reports as near a tie may differ, and few images meet one.
    near = sum(operator.near_tie for operator in report.operators)
    assert not wrong.any() or (near and wrong.mean() <= 0.05), (int(wrong.sum()), near)
    assert len(np.unique(logits.argmax(axis=1))) > 1, "a network that answers always the same shows nothing"


@pytest.mark.parametrize("scale", [None, 0.25, "mean"])
@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (2, 0)])
def test_depthwise_layers_convert_exactly(
    torch: Any, tmp_path: Path, scale: Any, stride: int, padding: int
) -> None:
    """By the trainer's own converter, live, and from a file: the same bytes, and torch's classes."""
    from cbin_nn.train import BinaryConv2d, BinaryDepthwiseConv2d, BinaryLinear, Sign, convert, predict

    torch.manual_seed(stride)
    side = 7 if stride == 1 else 3
    network = torch.nn.Sequential(
        BinaryConv2d(3, 40, 3, scale=2**-9),
        torch.nn.BatchNorm2d(40),
        Sign(),
        BinaryDepthwiseConv2d(40, 3, stride=stride, padding=padding, scale=scale),
        torch.nn.PReLU(40, 0.2),
        torch.nn.MaxPool2d(2),
        torch.nn.BatchNorm2d(40),
        Sign(),
        BinaryConv2d(40, 24, 1),
        torch.nn.BatchNorm2d(24),
        Sign(),
        torch.nn.Flatten(),
        BinaryLinear(24 * side * side, 10),
    )
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # gammas of either sign
            torch.nn.init.normal_(module.weight)
            torch.nn.init.normal_(module.bias)
    images = draw_images(200, 16, 16, seed=1)
    pixels = torch.from_numpy(2 * images.astype(np.float32) - 255).permute(0, 3, 1, 2)
    network.train()
    for _ in range(5):
        network(pixels)
    network.eval()
    model = convert(network, input_shape=(16, 16, 3))
    operators = [layer.operator for layer in model.layers]
    assert operators == ["qbconv2d", "bbdepthwiseconv2d", "bbpointwiseconv2d", "bbqfc"]
    classes = model.run(images).argmax(axis=1)
    assert (classes == predict(network, images).argmax(1).numpy()).mean() >= 0.99  # near-ties
    assert len(np.unique(classes)) > 1
    meaning = {"input_scale": 2, "input_offset": -255}
    live = cbin_nn.convert(network, input_shape=(3, 16, 16), **meaning)
    program = torch.export.export(network, (torch.zeros(1, 3, 16, 16),))
    torch.export.save(program, tmp_path / "network.pt2")
    saved = cbin_nn.convert(tmp_path / "network.pt2", **meaning)
    for other in (live, saved):
        np.testing.assert_array_equal(other.run(images), model.run(images))
    check = cbin_nn.verify(saved, tmp_path / "network.pt2", images, engine="framework", **meaning)
    assert check.exact and check.engine == "torch"


def test_what_cannot_be_exported_is_named(torch: Any) -> None:
    from cbin_nn.train import BinaryConv2d, BinaryDepthwiseConv2d, convert, set_binarize, to_graph

    with pytest.raises(ConversionError, match=r"layer '1': a Softplus has no counterpart"):
        to_graph(torch.nn.Sequential(BinaryConv2d(3, 8, 3), torch.nn.Softplus()), (8, 8, 3))
    with pytest.raises(ConversionError, match=r"layer '0': a depthwise convolution of the image"):
        convert(torch.nn.Sequential(BinaryDepthwiseConv2d(3, 3)), (8, 8, 3))
    with pytest.raises(ConversionError, match=r"input_shape: expected \(height, width, channels\)"):
        to_graph(torch.nn.Sequential(BinaryConv2d(3, 8, 3)))
    half = torch.nn.Sequential(BinaryConv2d(3, 8, 3))
    set_binarize(half, False)
    with pytest.raises(ConversionError, match=r"layer '0': a layer with binarize off"):
        to_graph(half, (8, 8, 3))


def test_layers_compute_what_they_say(torch: Any) -> None:
    from cbin_nn.train import BinaryConv2d, BinaryDepthwiseConv2d, BinaryLinear, QuantizedConv2d

    torch.manual_seed(0)
    x = torch.where(torch.rand(2, 6, 9, 7) < 0.5, -1.0, 1.0)
    signs = lambda w: torch.where(w >= 0, 1.0, -1.0)  # noqa: E731
    conv = BinaryConv2d(6, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), scale="mean")
    mean = conv.weight.abs().mean(dim=(1, 2, 3)).view(4, 1, 1)
    expected = torch.nn.functional.conv2d(x, signs(conv.weight), None, (2, 1), (1, 0), (1, 2)) * mean
    assert torch.equal(conv(x), expected)
    depthwise = BinaryDepthwiseConv2d(6, 3, padding=1, scale=0.5)
    expected = torch.nn.functional.conv2d(x, signs(depthwise.weight), padding=1, groups=6) * 0.5
    assert torch.equal(depthwise(x), expected)
    dense = BinaryLinear(63, 5)
    flat = x[:, 0].flatten(1)
    assert torch.equal(dense(flat), flat @ signs(dense.weight).t())
    quantized = QuantizedConv2d(6, 4, 3)
    quantized.weight.data[0, 0, 0] = torch.tensor([5.0, -5.0, 0.0])
    integers = quantized.integer_weight()
    assert integers.dtype == torch.int8 and integers[0, 0, 0].tolist() == [127, -127, 0]
    assert torch.equal(quantized(x) * 128, torch.nn.functional.conv2d(x, integers.float()))
    # A weight's gradient passes through.
    quantized(x).sum().backward()
    assert quantized.weight.grad.abs().min() >= 0 and quantized.weight.grad.abs().max() > 0


# ------------------------------------------------------------------------------------------------
# fused kernels


def fused_module(torch: Any) -> Any:
    from cbin_nn.train import fused

    require("a C++ compiler and ninja", fused.available(), "apt-get install g++; pip install ninja")
    return fused


@pytest.mark.parametrize("channels", [32, 64])
@pytest.mark.parametrize("estimator", ["approx", "ste"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_fused_block_is_the_modules(
    torch: Any, monkeypatch: pytest.MonkeyPatch, channels: int, estimator: str, dtype: str
) -> None:
    fused = fused_module(torch)
    from cbin_nn.train import BinaryConv2d
    from cbin_nn.train.models import BinaryBlock

    assert estimator in fused.ESTIMATORS
    monkeypatch.setattr(fused, "convolution_dtype", lambda: getattr(torch, dtype))
    torch.manual_seed(channels)
    block = BinaryBlock(BinaryConv2d(8, channels, 3, padding=1), 2**-3, estimator)
    scramble(torch, block, channels)
    x = (
        torch.where(torch.rand(10, 8, 12, 6) < 0.5, -1.0, 1.0)
        .bfloat16()
        .to(memory_format=torch.channels_last)
    )
    upstream = torch.randn(10, channels, 6, 3).bfloat16()
    results = []
    for fuse in (False, True):
        block.fused = fuse
        block.norm.reset_running_stats()
        block.zero_grad()
        y = block(x if fuse else x.float())
        (y.float() * upstream.float()).sum().backward()
        gradients = {name: p.grad.clone() for name, p in block.named_parameters()}
        results.append(
            (y.float(), gradients, block.norm.running_mean.clone(), block.norm.running_var.clone())
        )
    plain, quick = results
    # 72 products a sum: bfloat16 holds them exactly, so the bits must be the same.
    assert torch.equal(plain[0], quick[0])
    assert set(plain[1]) == set(quick[1]) and len(plain[1]) == 5
    for name, gradient in plain[1].items():
        scale = gradient.norm()
        assert scale > 0, name
        # The gradient of the convolution's output is rounded to 8 bits.
        assert (quick[1][name] - gradient).norm() <= 4e-3 * scale, name
    np.testing.assert_allclose(plain[2], quick[2], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(plain[3], quick[3], rtol=1e-5, atol=1e-6)


def test_fused_augmentation_is_the_plain_one(torch: Any) -> None:
    fused_module(torch)
    from cbin_nn.train.data import Draws, augment

    images = torch.from_numpy(draw_images(50, 32, 32, seed=3))
    draws = Draws.of_epoch(1, 2, 50, 4)
    arguments = (images, draws.order, draws.dy, draws.dx, draws.mirror)
    plain, quick = augment(*arguments), augment(*arguments, use_fused=True)
    assert quick.dtype == torch.bfloat16 and torch.equal(plain, quick.float())
    # By hand: one pixel of a mirrored, shifted image.
    n = int(torch.nonzero((draws.mirror == 1) & (draws.dx > 0) & (draws.dy < 0))[0])
    source = images[draws.order[n], 10 + int(draws.dy[n]), 31 - 7 + int(draws.dx[n])]
    assert plain[n, :, 10, 7].tolist() == (source.float() * 2 - 255).tolist()


# ------------------------------------------------------------------------------------------------
# optimizers


def test_adam_is_torchs_where_nothing_is_binary(torch: Any) -> None:
    from cbin_nn.train import LatentAdam

    start = torch.randn(50, generator=torch.Generator().manual_seed(1))
    results = []
    for kind in (torch.optim.Adam, LatentAdam):
        p = torch.nn.Parameter(start.clone())
        optimizer = kind([p], lr=0.01)
        for k in range(20):
            p.grad = torch.sin(p.detach() * (k + 1))
            optimizer.step()
        results.append(p.detach())
    np.testing.assert_allclose(results[0], results[1], rtol=1e-4, atol=1e-6)


def test_latent_weights_are_clipped_and_flips_counted(torch: Any) -> None:
    from cbin_nn.train import LatentAdam

    p = torch.nn.Parameter(torch.tensor([0.99, -0.99, 0.001, -0.001]))
    optimizer = LatentAdam([{"params": [p], "binary": True}], lr=0.05)
    p.grad = torch.tensor([-1.0, 1.0, 1.0, -1.0])
    optimizer.step()
    np.testing.assert_allclose(p.detach(), [1.0, -1.0, -0.049, 0.049], atol=1e-6)
    assert optimizer.flips == [2]


def test_bop_flips_by_its_rule(torch: Any) -> None:
    from cbin_nn.train import Bop

    rng = np.random.default_rng(0)
    w = np.where(rng.normal(size=200) >= 0, 1.0, -1.0)
    p = torch.nn.Parameter(torch.tensor(w * 0.3, dtype=torch.float32))
    optimizer = Bop([{"params": [p], "binary": True}], gamma=0.1, threshold=0.05)
    average = np.zeros(200)
    flipped = 0
    for _ in range(30):
        gradient = rng.normal(size=200).astype(np.float32)
        average = 0.9 * average + 0.1 * gradient
        flip = (np.abs(average) > 0.05) & (np.sign(average) == np.sign(w))
        w = np.where(flip, -w, w)
        flipped += int(flip.sum())
        p.grad = torch.tensor(gradient)
        optimizer.step()
        assert optimizer.flips == [int(flip.sum())]
    assert flipped > 100
    np.testing.assert_array_equal(p.detach().numpy(), w)


@pytest.mark.parametrize("gradient_scale", [1e-6, 1.0, 1e3])
def test_flip_rate_adam_holds_its_rate(torch: Any, gradient_scale: float) -> None:
    from cbin_nn.train import FlipRateAdam

    generator = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.rand(5000, generator=generator) * 2 - 1)
    optimizer = FlipRateAdam([{"params": [p], "binary": True}], lr=1e-3, flip_rate=2e-3)
    for phase, factor in enumerate((1.0, 0.25)):
        counts = []
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * factor
        for _ in range(800):
            p.grad = torch.randn(5000, generator=generator) * gradient_scale
            optimizer.step()
            counts.append(optimizer.flips[0])
        rate = float(np.mean(counts[400:])) / 5000
        assert 0.7 < rate / (2e-3 * factor) < 1.4, (phase, rate)
    optimizer.param_groups[0]["lr"] = 0.0
    before = p.detach().clone()
    p.grad = torch.randn(5000, generator=generator)
    optimizer.step()
    assert torch.equal(before, p.detach())


def test_optimizer_options_are_checked(torch: Any) -> None:
    from cbin_nn.train import SmallCifar
    from cbin_nn.train.optimizers import make_optimizer

    model = SmallCifar()
    known = "adam, flip-rate, bop, muon"
    with pytest.raises(InvalidArgument, match=f"optimizer: expected one of {known}, got 'sgd'"):
        make_optimizer(model, "sgd")
    with pytest.raises(InvalidArgument, match=r"optimizer 'adam': .*gamma"):
        make_optimizer(model, "adam", gamma=1)
    with pytest.raises(InvalidArgument, match="flip_rate: expected a positive number"):
        make_optimizer(model, "flip-rate", flip_rate=0.0)
    with pytest.raises(InvalidArgument, match="latent_lr: expected a positive number"):
        make_optimizer(model, "adam", latent_lr=-1.0)
    with pytest.raises(InvalidArgument, match="momentum: expected 0 to below 1, got 1"):
        make_optimizer(model, "muon", momentum=1.0)
    groups = make_optimizer(model, "bop", lr=0.5).param_groups
    assert [g["binary"] for g in groups] == [True, False] and len(groups[0]["params"]) == 4
    assert [g["lr"] for g in groups] == [0.5, 0.5]


def test_latent_weights_have_a_learning_rate_of_their_own(torch: Any) -> None:
    """In the parameter groups, so that torch's own schedulers drive both from where each began."""
    from cbin_nn.train import LatentAdam

    latent, other = (torch.nn.Parameter(torch.full((3,), 0.5)) for _ in range(2))
    optimizer = LatentAdam(
        [{"params": [latent], "binary": True}, {"params": [other]}], lr=1e-3, latent_lr=1e-2
    )
    assert [g["lr"] for g in optimizer.param_groups] == [1e-2, 1e-3]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "binary": True, "lr": 0.1})
    assert [g["initial_lr"] for g in optimizer.param_groups] == [1e-2, 1e-3, 0.1]
    moved = []
    for _ in range(2):
        before = latent.detach().clone(), other.detach().clone()
        latent.grad, other.grad = torch.ones(3), torch.ones(3)
        optimizer.step()
        moved.append([float((b - p.detach())[0]) for b, p in zip(before, (latent, other), strict=True)])
        for group, rate in zip(optimizer.param_groups, scheduler.lr_lambdas, strict=False):
            group["lr"] = group["initial_lr"] * rate(1)
    np.testing.assert_allclose(moved, [[1e-2, 1e-3], [5e-3, 5e-4]], rtol=1e-4)


#: Shapes of latent tensors: wide and tall convolutions, depthwise, dense.
SHAPES = [(6, 5, 3, 3), (40, 2, 3, 3), (8, 1, 3, 3), (10, 64)]


def naive_orthogonalized(matrix: Any) -> Any:
    """Newton-Schulz on the singular values alone, in float64: U p(p(...p(S / |S|))) V^T."""
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    s = s / np.sqrt((s**2).sum())
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s) @ v


@pytest.mark.parametrize("shape", SHAPES)
def test_latent_muon_steps_by_its_rule(torch: Any, shape: tuple[int, ...]) -> None:
    from cbin_nn.train import LatentMuon

    rng = np.random.default_rng(3)
    weights = rng.uniform(-1, 1, shape)
    p = torch.nn.Parameter(torch.tensor(weights, dtype=torch.float32))
    optimizer = LatentMuon([{"params": [p], "binary": True}], latent_lr=0.05)
    average = np.zeros(shape)
    flipped = 0
    for _ in range(20):
        gradient = rng.normal(size=shape)
        average = 0.95 * average + 0.05 * gradient
        direction = naive_orthogonalized((0.95 * average + 0.05 * gradient).reshape(shape[0], -1))
        direction = direction.reshape(shape) * math.sqrt(max(direction.shape))
        before = weights >= 0
        weights = np.clip(weights - 0.05 * direction, -1, 1)
        p.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
        np.testing.assert_allclose(p.detach(), weights, atol=2e-5)
        assert optimizer.flips == [int((before != (weights >= 0)).sum())]
        flipped += optimizer.flips[0]
    assert flipped > 20


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_of_latent_muon_does_not_see_the_gradients_scale(torch: Any, shape: tuple[int, ...]) -> None:
    """Its root mean square is about the learning rate, from the first step on, in any layer."""
    from cbin_nn.train import LatentMuon

    walks = []
    for scale in (1.0, 1e-8, 1e6):
        generator = torch.Generator().manual_seed(1)
        p = torch.nn.Parameter(torch.zeros(shape))
        optimizer = LatentMuon([{"params": [p], "binary": True}], latent_lr=1e-3)
        walk = [p.detach().clone()]
        for _ in range(5):
            p.grad = torch.randn(shape, generator=generator) * scale
            optimizer.step()
            walk.append(p.detach().clone())
            assert 0.68e-3 < float((walk[-1] - walk[-2]).square().mean().sqrt()) < 1.21e-3
        walks.append(torch.stack(walk))
    for other in walks[1:]:
        torch.testing.assert_close(other, walks[0], rtol=0, atol=1e-6)
    p.grad = torch.zeros(shape)
    optimizer.state[p]["average"].zero_()
    optimizer.step()  # no gradient at all: no step, and no division by 0
    assert torch.equal(p.detach(), walks[-1][-1])


def test_flips_of_latent_muon_die_out_with_the_schedule(torch: Any) -> None:
    from cbin_nn.train import LatentMuon

    generator = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.rand(32, 16, 3, 3, generator=generator) * 2 - 1)
    optimizer = LatentMuon([{"params": [p], "binary": True}], latent_lr=1e-2)
    rates = []
    for share in (1.0, 0.5, 0.1, 0.01, 0.0):
        optimizer.param_groups[0]["lr"] = 1e-2 * share
        flips = 0
        for _ in range(100):
            before = p.detach().clone()
            p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()
            # No weight flips that was further from 0 than the step is long.
            step = (p.detach() - before).abs().max()
            assert optimizer.flips[0] <= int((before.abs() <= step).sum())
            flips += optimizer.flips[0]
        rates.append(flips)
    assert rates[0] > 1000 and rates[-1] == 0
    for share, flips in zip((0.5, 0.1, 0.01), rates[1:], strict=False):
        assert 0.5 * share < flips / rates[0] < 2 * share, rates


def test_orthogonalize_brings_singular_values_to_about_one(torch: Any) -> None:
    from cbin_nn.train.optimizers import orthogonalize

    for shape in ((12, 40), (40, 12)):
        generator = torch.Generator().manual_seed(2)
        u, _, v = torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False)
        singular = torch.logspace(0, -1.8, 12)
        result = orthogonalize((u * singular) @ v)
        core = u.T @ result @ v.T
        values = core.diagonal()
        assert float(values.min()) > 0.68 and float(values.max()) < 1.21
        torch.testing.assert_close(core, torch.diag(values), rtol=0, atol=1e-4)
    assert torch.equal(orthogonalize(torch.zeros(3, 5)), torch.zeros(3, 5))


# ------------------------------------------------------------------------------------------------
# activations that vary little along a row


def share_of_changes(x: Any) -> float:
    """Counted one pixel after the other."""
    rows = x.detach().float().numpy().reshape(-1, x.shape[-1])
    changes = sum(int(row[j] != row[j - 1]) for row in rows for j in range(1, len(row)))
    return changes / (len(rows) * (x.shape[-1] - 1))


def test_row_variation_counts_changes_and_its_gradient_pulls_neighbours_together(torch: Any) -> None:
    from cbin_nn.train import Sign, row_variation

    generator = torch.Generator().manual_seed(1)
    x = (torch.rand(3, 4, 5, 6, generator=generator) - 0.4).requires_grad_()
    y = Sign("ste")(x)
    value = row_variation(y)
    assert value.item() == pytest.approx(share_of_changes(y)) and 0.2 < value.item() < 0.7
    value.backward()
    middle = slice(1, -1)
    signs, gradient = y.detach().numpy(), x.grad.numpy()
    unlike = (signs[..., :-2] != signs[..., middle]) & (signs[..., 2:] != signs[..., middle])
    alike = (signs[..., :-2] == signs[..., middle]) & (signs[..., 2:] == signs[..., middle])
    assert unlike.sum() > 20 and alike.sum() > 20
    # A step against the gradient takes a lone pixel towards its neighbours.
    assert (np.sign(gradient[..., middle])[unlike] == signs[..., middle][unlike]).all()
    assert (gradient[..., middle][alike] == 0).all()


@pytest.mark.parametrize("fused", [False, True])
def test_row_variation_of_a_network_goes_by_multiply_accumulates(torch: Any, fused: bool) -> None:
    from cbin_nn.train import RowVariation, SmallCifar
    from cbin_nn.train import fused as kernels
    from cbin_nn.train.data import as_input

    if fused:
        require("a C++ compiler", kernels.available(), "apt-get install g++")
    model = SmallCifar()
    model.use_fused(fused)
    variation = RowVariation(model)
    inputs = []
    for block in (model.block2, model.block3):
        block.register_forward_pre_hook(lambda _, x: inputs.append(x[0]))
    x = as_input(draw_images(8, 32, 32)).to(torch.bfloat16 if fused else torch.float32)
    model(x)
    value = variation()
    # 16 x 16 pixels to 32 filters, and 8 x 8 to 64.
    shares = [share_of_changes(x) for x in inputs]
    assert value.item() == pytest.approx((2 * shares[0] + shares[1]) / 3, rel=1e-5)
    value.backward()
    assert float(model.block1.conv.weight.grad.abs().sum()) > 0
    assert model.dense.weight.grad is None
    with pytest.raises(InvalidArgument, match="call the network, with gradients, first"):
        variation()
    with torch.no_grad():
        model(x)
    with pytest.raises(InvalidArgument, match="call the network, with gradients, first"):
        variation()


def test_row_variation_of_a_chain_of_layers(torch: Any) -> None:
    from cbin_nn.train import BinaryConv2d, QuantizedConv2d, RowVariation, Sign

    layers = [
        QuantizedConv2d(3, 8, 3, padding=1),
        torch.nn.BatchNorm2d(8),
        Sign(),
        BinaryConv2d(8, 6, 3, stride=2),
        torch.nn.BatchNorm2d(6),
        Sign(),
    ]
    variation = RowVariation(torch.nn.Sequential(*layers))
    x = torch.rand(2, 3, 9, 9) - 0.5
    bits = torch.nn.Sequential(*layers)(x)
    first = torch.nn.Sequential(*layers[:3])(x)
    assert bits.shape == (2, 6, 4, 4)
    assert variation().item() == pytest.approx(share_of_changes(first), rel=1e-5)
    with pytest.raises(InvalidArgument, match="no binary convolution after its first"):
        RowVariation(torch.nn.Sequential(*layers[:3]))


def test_a_run_with_row_variation_in_its_loss_comes_to_less_of_it(torch: Any, tmp_path: Path) -> None:
    from cbin_nn.train import Recipe, train

    images, labels = synthetic.draw(600)
    last = []
    for weight in (1e-9, 20.0):
        recipe = Recipe(epochs=8, decay=2, batch=50, hold_back=100, warmup=5, variation=weight)
        train(recipe, images, labels, tmp_path / str(weight))
        log = rows(tmp_path / str(weight))
        assert all(0 < float(row["variation"]) < 1 for row in log)
        last.append(float(log[-1]["variation"]))
        assert float(log[-1]["held_back"]) > 0.3
    assert last[1] < 0.9 * last[0], last


# ------------------------------------------------------------------------------------------------
# runs


def start(folder: Path, *changes: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, PROGRAM, folder, *changes], stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open() as file:
        return list(csv.DictReader(file))


def assert_same_numbers(torch: Any, a: Path, b: Path) -> None:
    first, second = (torch.load(f / "final.pt", weights_only=True)["model"] for f in (a, b))
    assert set(first) == set(second)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    for x, y in zip(rows(a), rows(b), strict=True):
        assert {**x, "seconds": 0} == {**y, "seconds": 0}


@pytest.mark.parametrize("optimizer", ["adam", "flip-rate", "bop", "muon"])
def test_a_killed_run_goes_on_to_the_same_numbers(torch: Any, tmp_path: Path, optimizer: str) -> None:
    changes = (f"optimizer={optimizer}", "epochs=5", "decay=2", "recalibrate=400")
    finish(start(tmp_path / "whole", *changes))
    process = start(tmp_path / "killed", *changes)
    log = tmp_path / "killed" / "log.csv"
    deadline = time.monotonic() + 200
    while not (log.exists() and len(log.read_text().splitlines()) >= 3):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed" / "final.pt").exists()
    finish(start(tmp_path / "killed", *changes))
    assert [row["epoch"] for row in rows(tmp_path / "killed")] == ["1", "2", "3", "4", "5"]
    assert_same_numbers(torch, tmp_path / "whole", tmp_path / "killed")
    assert float(rows(tmp_path / "whole")[-1]["held_back"]) > 0.3  # it does learn: chance is 0.1


def test_a_trapezoid_may_go_on_and_another_recipe_may_not(torch: Any, tmp_path: Path) -> None:
    from cbin_nn.train import Recipe, Trainer

    images, labels = synthetic.draw(300)
    recipe = Recipe(epochs=3, decay=1, batch=50, hold_back=50, fused=False)
    Trainer(recipe, images, labels, tmp_path).run(until=1)
    longer = Trainer(recipe.replace(epochs=4), images, labels, tmp_path)
    assert longer.epoch == 1
    with pytest.raises(InvalidArgument, match=r"another recipe \(hold_back differ\)"):
        Trainer(recipe.replace(epochs=4, hold_back=100), images, labels, tmp_path)  # it has trained on them
    more = Trainer(recipe.replace(epochs=4, hold_back=0), images, labels, tmp_path)
    assert (more.epoch, longer.steps, more.steps) == (1, 5, 6)
    more.run()
    recipe = recipe.replace(hold_back=0)
    assert json.loads((tmp_path / "recipe.json").read_text())["epochs"] == 4
    with pytest.raises(InvalidArgument, match=r"another recipe \(lr differ\)"):
        Trainer(recipe.replace(epochs=4, lr=0.5), images, labels, tmp_path)
    with pytest.raises(InvalidArgument, match=r"another recipe \(epochs differ\)"):
        Trainer(recipe.replace(epochs=9), images, labels, tmp_path)  # its decay is over
    (tmp_path / "last.pt").write_bytes(b"no checkpoint")
    with pytest.raises(DataError, match=r"last\.pt"):
        Trainer(recipe, images, labels, tmp_path)


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_two_processes_make_the_same_network_within_noise(torch: Any, tmp_path: Path, optimizer: str) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    changes = ["epochs=6", "decay=3", "ema=0", f"optimizer={optimizer}"]
    done = subprocess.run(
        [*launcher, str(PROGRAM), str(tmp_path / "two"), *changes],
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    finish(start(tmp_path / "one", *changes))
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert len(one) == len(two) == 6
    first, second = (
        torch.load(tmp_path / n / "final.pt", weights_only=True)["model"] for n in ("one", "two")
    )
    # Most weights end with the same sign (chance is a half), and both networks know the patterns.
    same = np.mean(
        [
            float(((first[k] >= 0) == (second[k] >= 0)).float().mean())
            for k in first
            if k.endswith("conv.weight")
        ]
    )
    assert same > 0.8, same
    assert abs(float(one[-1]["loss"]) - float(two[-1]["loss"])) < 0.35 * float(one[0]["loss"])
    assert min(float(one[-1]["held_back"]), float(two[-1]["held_back"])) > 0.5


def test_distillation_two_stages_and_smoothing_run(
    torch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cbin_nn.train import Recipe, Trainer, teacher
    from cbin_nn.train.teacher import cached_logits

    # 240 small steps: a batch of the usual size would take all the images there are.
    monkeypatch.setattr(teacher, "_BATCH", 50)

    images, labels = synthetic.draw(500)
    path = tmp_path / "teacher.npz"
    logits = cached_logits(path, images, labels, 100, epochs=30)
    assert logits.shape == (500, 2, 10)
    assert (logits[400:].sum(axis=1).argmax(axis=1) == labels[400:]).mean() > 0.5
    np.testing.assert_array_equal(cached_logits(path, images, labels, 100), logits)
    recipe = Recipe(
        epochs=4,
        batch=50,
        hold_back=100,
        schedule="cosine",
        distillation=0.5,
        label_smoothing=0.1,
        real_weight_epochs=2,
        model_options={"first": "binary", "estimator": "ede"},
    )
    with pytest.raises(InvalidArgument, match="the recipe distils: pass the teacher's logits"):
        Trainer(recipe, images, labels, tmp_path / "run")
    trainer = Trainer(recipe, images, labels, tmp_path / "run", teacher=logits)
    model = trainer.run()
    assert all(m.binarize for m in model.modules() if hasattr(m, "binarize"))
    log = rows(tmp_path / "run")
    assert float(log[-1]["loss"]) < float(log[0]["loss"])
    assert cbin_nn.train.convert(model).run(images[:5]).shape == (5, 10)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("lr", 0.0),
        ("lr", "fast"),
        ("distillation", 1.5),
        ("variation", -0.1),
        ("schedule", "steps"),
        ("fused", 1),
        ("epoch", 3),
        ("batch", 2.5),
    ],
)
def test_a_wrong_recipe_names_the_field(field: str, value: Any) -> None:
    from cbin_nn.train import Recipe

    with pytest.raises(InvalidArgument, match=rf"recipe: (no field )?'?{field}"):
        Recipe().replace(**{field: value})


def test_schedules() -> None:
    from cbin_nn.train import Recipe

    trapezoid = Recipe(epochs=10, decay=4, warmup=5, lr=1.0)
    rates = [trapezoid.learning_rate(step, 10) for step in range(100)]
    assert rates[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert trapezoid.replace(lr=0.5).rate(1, 10) == 0.4  # a share, whatever the rate
    assert set(rates[5:60]) == {1.0}
    np.testing.assert_allclose(rates[60:], 1 - np.arange(40) / 40)
    cosine = Recipe(epochs=10, schedule="cosine", warmup=0, lr=1.0)
    assert cosine.learning_rate(0, 10) == 1.0
    assert cosine.learning_rate(50, 10) == pytest.approx(0.5)
    assert cosine.learning_rate(99, 10) < 1e-3


# ------------------------------------------------------------------------------------------------
# the command


@pytest.fixture(scope="module")
def synthetic_cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic images in CIFAR-10's binary layout."""
    folder = tmp_path_factory.mktemp("cifar")
    for i in range(1, 6):
        images, labels = synthetic.draw(10_000, seed=i)
        planes = images.transpose(0, 3, 1, 2).reshape(10_000, -1)
        records = np.concatenate([labels[:, None].astype(np.uint8), planes], axis=1)
        (folder / f"data_batch_{i}.bin").write_bytes(records.tobytes())
    return folder


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", "from cbin_nn.cli import main; main()", "train", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=500, check=False)


def test_the_command_trains_converts_and_resumes(torch: Any, synthetic_cifar: Path, tmp_path: Path) -> None:
    options = ["smallcifar", "--data", synthetic_cifar, "-o", tmp_path / "run", "--json"]
    small = ["--set", "hold_back=46000", "--set", "warmup=10", "--set", "epochs=2", "--set", "decay=1"]
    small += ["--set", "distillation=0"]
    done = command(*options, *small, "--until", 1)
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert (value["epoch"], value["epochs"], value["model"]) == (1, 2, None)
    done = command(*options)  # the recipe in the folder goes on
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    model = cbin_nn.load(tmp_path / "run" / "smallcifar.cbn")
    images, labels = synthetic.draw(10_000, seed=5)
    assert value["disagreements"] <= 46
    assert value["held_back_accuracy"] > 0.3
    assert (model.run(images[:500]).argmax(axis=1) == labels[:500]).mean() > 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "there is no recipe 'nothing'; there are smallcifar"),
        (["smallcifar", "--set", "lr"], "--set lr: expected FIELD=VALUE"),
        (["smallcifar", "--set", "speed=1"], "no field 'speed'"),
        (["smallcifar", "--set", "model=resnet", "--set", "distillation=0"], "model 'resnet'"),
    ],
)
def test_the_command_names_what_is_wrong(
    synthetic_cifar: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = command(*arguments, "--data", synthetic_cifar, "-o", tmp_path / "run")
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("cbin-nn: ") and message in done.stderr.replace("\n", " ")


def test_errors_are_this_packages(torch: Any) -> None:
    from cbin_nn.train import load_run

    with pytest.raises(CbinError, match="holds no training run"):
        load_run(Path("nowhere"))


# ------------------------------------------------------------------------------------------------
# the zoo


@pytest.mark.parametrize("name", cbin_nn.zoo.names())
def test_a_zoo_model_is_what_its_parameters_convert_to(torch: Any, name: str) -> None:
    from cbin_nn.train import predict
    from cbin_nn.train.export import load_parameters

    card = cbin_nn.zoo.card(name)
    shipped, converted = cbin_nn.load(f"zoo:{name}"), cbin_nn.convert(f"zoo:{name}")
    assert converted.sha256 == shipped.sha256 == card.sha256
    images = draw_images(300, 32, 32, seed=9)
    expected = predict(load_parameters(card.parameters, card.recipe), images).argmax(1).numpy()
    assert (shipped.run(images).argmax(axis=1) != expected).sum() <= 1
