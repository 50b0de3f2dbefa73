"""The reader of `cbin_nn.train` (`train.export`): every argument of every module that it knows, set to other
values, gives torch's own answers or is refused."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from cbin_nn.errors import CbinError, ConversionError
from cbin_nn.images import draw_images
from conftest import require

#: Arguments without an effect on what a module computes in evaluation.
INERT = {
    "estimator": "of the gradient alone",
    "device": "where the parameters are",
    "dtype": "of the parameters: float32",
    "momentum": "of the statistics in training",
    "inplace": "where the result is stored",
    "p": "dropout does nothing in evaluation",
}
#: Arguments that follow from the shape of the network.
SHAPES = {"in_channels", "channels", "num_features", "in_features", "num_parameters", "kernel_size", "conv"}


@pytest.fixture(scope="module")
def torch() -> Any:
    require("torch", importlib.util.find_spec("torch") is not None, "pip install 'cbin-nn[torch]'")
    import torch

    torch.set_num_threads(1)
    return torch


def changes() -> dict[str, dict[str, list[Any]]]:
    """Module -> argument -> values other than its default."""
    window = {"stride": [2, (1, 2), (3, 1)], "padding": [1, (0, 1), (1, 0)], "dilation": [2, (1, 2)]}
    layer = {"scale": [0.25, -0.3, "mean"], **window, "kernel_size": [1, 2, (3, 1), (1, 3)]}
    norm = {"eps": [0.5, 30.0], "affine": [False], "bias": [False], "track_running_stats": [False]}
    return {
        "BinaryConv2d": {**layer, "out_channels": [5]},
        "QuantizedConv2d": {**layer, "out_channels": [5]},
        "BinaryDepthwiseConv2d": layer,
        "BinaryLinear": {"scale": [0.5, "mean"], "out_features": [7]},
        "MaxPool2d": {
            **window,
            "padding": [1],
            "kernel_size": [3, (3, 1)],
            "ceil_mode": [True],
            "return_indices": [True],
        },
        "BatchNorm2d": norm,
        "BatchNorm1d": norm,
        "PReLU": {"num_parameters": [1], "init": [-0.5]},
        "RPReLU": {"slope": [-0.5]},
        "RSign": {},
        "Shift": {},
        "Sign": {},
        "Identity": {},
        "Dropout": {},
        "Dropout2d": {},
        "Flatten": {"start_dim": [0, 2], "end_dim": [2, 3, -2]},
        "BinaryBlock": {"scale": [0.5]},
    }


def module_class(torch: Any, name: str) -> Any:
    from cbin_nn import train
    from cbin_nn.train import models

    try:
        return getattr(train, name)
    except AttributeError:
        return getattr(models, name, None) or getattr(torch.nn, name)


def network(torch: Any, kind: str, argument: str | None, value: Any) -> Any:
    """A chain from a 9x9 image to 4 classes with the module in the place where its result matters."""
    from cbin_nn import train
    from cbin_nn.train.models import BinaryBlock

    nn = torch.nn
    given = {} if argument is None else {argument: value}

    def make(name: str, *positional: Any, **keywords: Any) -> Any:
        cls = module_class(torch, name)
        if name == kind:
            named = [p for p in inspect.signature(cls).parameters if p not in ("args", "kwargs")]
            keywords = {**dict(zip(named, positional, strict=False)), **keywords, **given}
            positional = ()
        return cls(*positional, **keywords)

    first = make("QuantizedConv2d" if kind == "QuantizedConv2d" else "BinaryConv2d", 3, 6, kernel_size=3)
    channels = len(first.weight)
    plane = [make("Dropout"), make("Dropout2d"), make("Identity"), make("Sign"), make("Flatten")]
    if kind == "BinaryBlock":
        body = [BinaryBlock(first, **{"scale": 1.0, **given}), *plane]
    elif kind == "BatchNorm1d":  # on the features of a plane, whose order is another one here
        features = channels * 49
        body = [first, nn.BatchNorm2d(channels), nn.Flatten(), make("BatchNorm1d", features)]
        body += [nn.PReLU(features), train.Shift(features), train.Sign()]
    else:
        body = [first, make("Shift", channels), make("RPReLU", channels)]
        slopes = {} if kind == "PReLU" and argument == "num_parameters" else {"num_parameters": channels}
        step = {} if argument == "stride" else {"stride": 1}
        body += [make("PReLU", **slopes), make("MaxPool2d", 2, **step)]
        body += [make("BatchNorm2d", channels), make("RSign", channels)]
        if kind == "BinaryDepthwiseConv2d":
            body += [make(kind, channels, kernel_size=3), make("BatchNorm2d", channels), train.Sign()]
        body += plane
    with torch.no_grad():
        shape = nn.Sequential(*body).eval()(torch.zeros(1, 3, 9, 9)).shape
    if len(shape) != 2:
        raise RuntimeError(f"torch itself gives {list(shape)}")
    dense = make("BinaryLinear", shape[1], 4)
    tail = [make("BatchNorm1d", len(dense.weight))]
    return nn.Sequential(*body, dense, *tail)


def randomize(torch: Any, model: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.dtype == torch.float32:
                draw = torch.randn(tensor.shape, generator=generator)
                if name.endswith("running_var"):
                    draw = draw.abs() + 0.5
                if name.endswith(("shift.bias", "before.bias", "running_mean")):
                    draw = draw * 300
                tensor.copy_(draw)


def torchs(torch: Any, model: Any, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        batch = torch.from_numpy(2.0 * images.transpose(0, 3, 1, 2).astype(np.float32) - 255)
        return np.asarray(model.eval()(batch))


def cases() -> Iterator[tuple[str, str | None, Any]]:
    for kind, arguments in changes().items():
        yield kind, None, None
        for argument, values in arguments.items():
            for value in values:
                yield kind, argument, value


def test_every_argument_is_honoured_or_refused(torch: Any) -> None:
    from cbin_nn import train

    images = draw_images(24, 9, 9, 3)
    right, refused, changed = 0, 0, 0
    covered: set[tuple[str, str]] = set()
    usual: dict[str, np.ndarray] = {}
    for seed, (kind, argument, value) in enumerate(cases()):
        case = (kind, argument, value)
        try:
            torch.manual_seed(5)
            model = network(torch, kind, argument, value)
            randomize(torch, model, 7)
            expected = torchs(torch, model, images)
        except (RuntimeError, IndexError, TypeError, ValueError, AttributeError):
            assert argument is not None, case
            covered.add((kind, argument))  # torch itself refuses it in such a chain
            continue
        usual.setdefault(kind, expected)
        if argument is not None:
            covered.add((kind, argument))
            changed += expected.shape != usual[kind].shape or not np.allclose(
                expected, usual[kind], atol=1e-3
            )
        try:
            mine = train.convert(model, (9, 9, 3)).run(images, dequantize=True)
        except ConversionError as error:
            assert argument is not None, (case, error)
            refused += 1
            continue
        close = np.abs(mine - expected) <= 1e-4 * np.maximum(1, np.abs(expected))
        assert close.mean() > 0.98, (case, float(close.mean()), seed)
        right += 1
    known: set[tuple[str, str]] = set()
    for kind in changes():
        cls = module_class(torch, kind)
        names = set(inspect.signature(cls).parameters) - {"args", "kwargs"} - set(INERT)
        known |= {(kind, name) for name in names}
    missing = {(k, a) for k, a in known - covered if a not in SHAPES}
    print(
        f"\n{len(covered)} (module, argument) pairs: {right} networks right, {refused} refused; "
        f"{changed} values changed torch's answers"
    )
    assert not missing, missing
    assert right >= 50 and changed >= 30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda nn, m: m.append(type("Own", (nn.BatchNorm1d,), {"forward": lambda s, x: 2 * x})(4)), "Own"),
        (lambda nn, m: m[0].register_forward_hook(lambda *a: None), "hooks"),
        (lambda nn, m: m[0].register_forward_pre_hook(lambda *a: None), "hooks"),
        (lambda nn, m: m[0].weight.data.fill_(float("nan")), "NaN"),
        (lambda nn, m: m.append(nn.Tanh()), "a Tanh"),
    ],
)
def test_what_its_parameters_do_not_say_is_refused(
    torch: Any, change: Callable[..., Any], message: str
) -> None:
    from cbin_nn import train

    nn = torch.nn
    model = nn.Sequential(
        train.BinaryConv2d(3, 6, 3), nn.BatchNorm2d(6), train.Sign(), nn.Flatten(), train.BinaryLinear(294, 4)
    )
    change(nn, model)
    with pytest.raises(CbinError, match=message):
        train.convert(model, (9, 9, 3))


def test_a_module_that_runs_twice_is_read_twice(torch: Any) -> None:
    from cbin_nn import train

    nn = torch.nn
    sign, norm, conv = train.Sign(), nn.BatchNorm2d(6), train.BinaryConv2d(6, 6, 3, padding=1)
    body = [train.BinaryConv2d(3, 6, 3), norm, sign, conv, norm, sign, conv, norm, sign, nn.Flatten()]
    model = nn.Sequential(*body, train.BinaryLinear(294, 4))
    randomize(torch, model, 3)
    with torch.no_grad():
        norm.running_mean.copy_(torch.randn(6) * 9)
    images = draw_images(40, 9, 9, 4)
    mine = train.convert(model, (9, 9, 3)).run(images, dequantize=True)
    assert np.array_equal(mine, torchs(torch, model, images))
    assert len(np.unique(mine)) > 4
