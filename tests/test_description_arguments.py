"""The reader of descriptions: every key of every type of layer, set to other values, gives what plain NumPy
computes, or is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import cbin_nn
import numpy as np
import pytest
from cbin_nn.converters import description
from cbin_nn.errors import ConversionError
from cbin_nn.images import draw_images

Array = np.ndarray
RNG = np.random.default_rng(8)
SIDE = 7


def signs(*shape: int) -> Array:
    return RNG.choice([-1.0, 1.0], shape)


# ------------------------------------------------------------------------------------------------
# the truth: as naive as it can be written


def pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def sides(padding: Any, plane: tuple[int, int], kernel: tuple[int, int], strides: Any, dilation: Any) -> Any:
    """((top, bottom), (left, right)), TensorFlow's rule for "same"."""
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding == "same":
        found = []
        for size, k, s, d in zip(plane, kernel, strides, dilation, strict=True):
            total = max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size)
            found.append((total // 2, total - total // 2))
        return found[0], found[1]
    return ((padding, padding), (padding, padding)) if isinstance(padding, int) else padding


def windows(x: Array, kernel: Any, strides: Any, dilation: Any, padding: Any, fill: float) -> Iterator[Any]:
    strides, dilation = pair(strides), pair(dilation)
    ends = sides(padding, x.shape[1:3], kernel, strides, dilation)
    x = np.pad(x, ((0, 0), *ends, (0, 0)), constant_values=fill)
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    for i, top in enumerate(range(0, x.shape[1] - spans[0] + 1, strides[0])):
        for j, left in enumerate(range(0, x.shape[2] - spans[1] + 1, strides[1])):
            rows, columns = slice(top, top + spans[0], dilation[0]), slice(left, left + spans[1], dilation[1])
            yield i, j, x[:, rows, columns]


def plane_of(found: dict[tuple[int, int], Array]) -> Array:
    height, width = max(i for i, _ in found) + 1, max(j for _, j in found) + 1
    return np.stack([np.stack([found[i, j] for j in range(width)], 1) for i in range(height)], 1)


def conv2d(x: Array, a: dict[str, Any]) -> Array:
    w = np.asarray(a["weights"], np.float64)
    taps = windows(
        x, w.shape[1:3], a.get("strides", 1), a.get("dilation", 1), a.get("padding", "valid"),
        a.get("pad_values", 0),
    )  # fmt: skip
    return plane_of({(i, j): np.einsum("nhwc,ohwc->no", t, w) for i, j, t in taps}) + a.get("bias", 0)


def max_pool2d(x: Array, a: dict[str, Any]) -> Array:
    size = pair(a["size"])
    taps = windows(x, size, a.get("strides", size), 1, a.get("padding", "valid"), -np.inf)
    return plane_of({(i, j): t.max(axis=(1, 2)) for i, j, t in taps})


def scale(x: Array, a: dict[str, Any]) -> Array:
    return x * a.get("factor", a.get("scale", 1)) / a.get("divisor", 1) + a.get("offset", 0)


def batch_norm(x: Array, a: dict[str, Any]) -> Array:
    return (x - a["mean"]) / np.sqrt(a["variance"] + a["epsilon"]) * a.get("gamma", 1) + a.get("beta", 0)


TRUTH: dict[str, Callable[[Array, dict[str, Any]], Array]] = {
    "batch_norm": batch_norm,
    "clip": lambda x, a: np.clip(x, a.get("low", -np.inf), a.get("high", np.inf)),
    "conv2d": conv2d,
    "dense": lambda x, a: x @ np.asarray(a["weights"]).T + a.get("bias", 0),
    "flatten": lambda x, a: x.reshape(len(x), -1),
    "max_pool2d": max_pool2d,
    "prelu": lambda x, a: np.where(x >= 0, x, np.asarray(a["slope"]) * x),
    "rescaling": scale,
    "scale": scale,
    "sign": lambda x, a: np.where(x >= 0, 1.0, -1.0),
    "softmax": lambda x, a: x,  # keeps the order: the output holds logits
}


def truth(layers: list[dict[str, Any]], images: Array) -> Array:
    """In float64, of parameters that are read as their float32 values."""
    x = images.astype(np.float64)
    for layer in layers:
        given = {
            k: np.float64(np.float32(v)) if isinstance(v, (float, Array)) else v for k, v in layer.items()
        }
        x = TRUTH[layer["type"]](x, given)
    return x


# ------------------------------------------------------------------------------------------------
# the cases

CHANNELS = 6
PER_CHANNEL = RNG.uniform(-2, 2, CHANNELS)
#: Type of layer -> key -> values other than the default; the first layers are binary, the image is 7 x 7 x 3.
VALUES: dict[str, dict[str, list[Any]]] = {
    "conv2d": {
        "weights": [
            signs(CHANNELS, 3, 3, 3),
            0.5 * signs(CHANNELS, 2, 3, 3),
            RNG.normal(size=(CHANNELS, 3, 3, 3)),
        ],
        "bias": [40 * PER_CHANNEL, 17.0],
        "strides": [2, (1, 2), (3, 1)],
        "padding": ["same", 1, ((0, 1), (2, 0))],
        "dilation": [2, (1, 2)],
        "pad_values": [1, -1],
    },
    "dense": {"weights": [signs(4, 150), RNG.normal(size=(4, 150))], "bias": [np.arange(4.0), 3.0]},
    "max_pool2d": {"size": [3, (2, 3)], "strides": [1, (1, 2)], "padding": ["same", 1, ((1, 0), (0, 1))]},
    "batch_norm": {
        "gamma": [PER_CHANNEL, -1.5],
        "beta": [PER_CHANNEL, 0.75],
        "mean": [50 * PER_CHANNEL],
        "variance": [np.abs(PER_CHANNEL) * 900],
        "epsilon": [1e-3, 500.0],
    },
    "prelu": {"slope": [0.25, -0.5, PER_CHANNEL, RNG.uniform(-1, 1, (5, 5, CHANNELS))]},
    "clip": {"low": [-30.0, 5.0], "high": [10.0, -20.0]},
    "scale": {
        "factor": [-2.0, PER_CHANNEL],
        "offset": [30.5, 60 * PER_CHANNEL],
        "divisor": [-3.0, np.abs(PER_CHANNEL) + 0.5],
    },
    "rescaling": {
        "scale": [2, np.array([0.5, 1.5, 2.5])],
        "factor": [3],
        "offset": [-255, np.array([-10.0, -100.0, -200.0])],
        "divisor": [127.5, np.array([1.0, 2.0, 4.0])],
    },
    "sign": {},
    "flatten": {},
    "softmax": {},
}


def network(kind: str, key: str | None, value: Any) -> list[dict[str, Any]]:
    """A chain in which the layer's result decides bits, or is the output."""
    given = {} if key is None else {key: value}
    ones = {"mean": 20 * PER_CHANNEL, "variance": np.full(CHANNELS, 400.0), "epsilon": 0.5}

    def layer(name: str, **usual: Any) -> dict[str, Any]:
        return {"type": name, **usual, **(given if name == kind else {})}

    first = signs(CHANNELS, 3, 3, 3) if kind != "conv2d" else VALUES["conv2d"]["weights"][0]
    body = [{"type": "rescaling", **given}] if kind == "rescaling" else []
    body += [
        {"type": "conv2d", "weights": first, **(given if kind == "conv2d" and key != "pad_values" else {})}
    ]
    if kind in ("prelu", "clip", "scale", "batch_norm"):
        usual = {"prelu": {"slope": 0.1}, "clip": {"low": -400.0}, "batch_norm": ones}.get(kind, {})
        body.append(layer(kind, **usual))
    body += [{"type": "scale", "offset": 12.5}, {"type": "sign"}]
    if kind == "max_pool2d":
        body.append(layer(kind, size=2))
    if key == "pad_values":  # of bits
        body += [
            {"type": "conv2d", "weights": signs(CHANNELS, 3, 3, CHANNELS), "padding": 1, **given},
            {"type": "sign"},
        ]
    body.append({"type": "flatten"})
    features = truth(body, np.zeros((1, SIDE, SIDE, 3))).shape[1]
    weights = signs(4, features)
    if kind == "dense" and key == "weights":
        weights = value
    return [
        *body,
        {"type": "dense", "weights": weights, **({key: value} if kind == "dense" and key == "bias" else {})},
    ]


def test_every_key_is_honoured_or_refused() -> None:
    assert set(VALUES) == set(description._TYPES) == set(TRUTH)
    images = draw_images(30, SIDE, SIDE, 5)
    outcome: Counter[str] = Counter()
    for kind, keys in VALUES.items():
        for key, values in ({None: [None]} | keys).items():
            for value in values:
                layers = network(kind, key, value)
                expected = truth(layers, images)
                try:
                    model = cbin_nn.convert({"input": (SIDE, SIDE, 3), "layers": layers})
                except ConversionError as error:
                    assert key is not None, (kind, str(error))
                    outcome["refused"] += 1
                    continue
                assert model.conversion is not None
                exact = not any(o.approximations for o in model.conversion.operators)
                slack = 1e-4 if exact else 0.02 * np.abs(expected).max()  # of weights in 8 or 16 bits
                close = np.isclose(model.run(images, dequantize=True), expected, rtol=1e-4, atol=slack)
                assert close.mean() > (0.99 if exact else 0.9), (kind, key, value, float(close.mean()))
                outcome["right"] += 1
    pairs = sum(map(len, VALUES.values()))
    print(f"\n{pairs} (type, key) pairs: {outcome['right']} networks right, {outcome['refused']} refused")
    assert outcome["right"] >= 55 and pairs >= 22


@pytest.mark.parametrize("kind", sorted(VALUES))
def test_a_key_that_is_not_known_is_refused(kind: str) -> None:
    layers = network(kind, None, None)
    if all(layer["type"] != kind for layer in layers):
        layers = [*layers, {"type": kind}]
    next(layer for layer in layers if layer["type"] == kind)["groups"] = 1
    with pytest.raises(ConversionError, match=r"unknown keys.*groups"):
        cbin_nn.convert({"input": (SIDE, SIDE, 3), "layers": layers})
