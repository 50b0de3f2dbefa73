r"""A network as a plain description: for people whose framework has no reader here.

A description is a dict, which JSON or NumPy files can hold; arrays are anything that NumPy reads. Layouts are
those of `cbin_nn.ops`: images `[H, W, C]`, convolutions `[O, kh, kw, C]`, dense weights `[units, features]`
with features in HWC order.

    {"input": (32, 32, 3),
     "layers": [
         {"type": "rescaling", "scale": 1 / 127.5, "offset": -1},
         {"type": "conv2d", "weights": w1, "padding": "same"},
         {"type": "max_pool2d", "size": 2},
         {"type": "batch_norm", "gamma": ..., "beta": ..., "mean": ..., "variance": ..., "epsilon": 1e-3},
         {"type": "sign"},
         {"type": "flatten"},
         {"type": "dense", "weights": w2}]}

| type | keys, with defaults |
|---|---|
| conv2d | weights; bias; strides 1; padding "valid", "same", a number or ((top, bottom), (left, right));
dilation 1; pad_values 0 |
| dense | weights; bias |
| max_pool2d | size; strides (the size); padding |
| batch_norm | gamma 1; beta 0; mean; variance; epsilon |
| prelu | slope: one, one a channel, or one an element |
| clip | low; high |
| scale | factor 1, offset 0, divisor 1: one, or one a channel |
| rescaling | the same as scale, named for the input |
| sign, flatten, softmax | |

Weights of -1 and +1 (or of one absolute value a filter) are binary; real ones convert in the first and in the
last layer. Each layer may have a `name`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from .. import geometry
from ..errors import CbinError, ConversionError
from . import graph as g
from .passes import canonicalize
from .weights import Array, binarized

__all__ = ["read_description"]

_MAX_LAYERS = 10_000


def read_description(description: Mapping[str, Any]) -> g.Graph:
    """The source graph of a description.

    Raises:
        ConversionError: a layer is of no known type, lacks a key, has one too many, or does not fit.
    """
    return canonicalize(_Reader(description).graph())


class _Reader:
    def __init__(self, description: Mapping[str, Any]) -> None:
        self.description = description
        self.nodes: list[g.Node] = []
        self.shape: g.Shape = ()
        self.notes: list[str] = []
        self.name = ""
        self.layer: dict[str, Any] = {}

    def graph(self) -> g.Graph:
        """Reads all layers."""
        unknown = set(self.description) - {"input", "layers", "name"}
        layers = self.description.get("layers")
        if unknown or not isinstance(layers, (list, tuple)) or not 0 < len(layers) <= _MAX_LAYERS:
            raise ConversionError(
                "bad-description",
                f'a description has "input", "layers" (a list) and perhaps "name"; '
                f"got {sorted(self.description)}",
            )
        try:
            shape = tuple(int(side) for side in self.description["input"])
        except (KeyError, TypeError, ValueError) as error:
            raise ConversionError("bad-description", '"input" must be (height, width, channels)') from error
        if len(shape) != 3:
            raise ConversionError(
                "bad-description", f'"input" is {shape}, expected (height, width, channels)'
            )
        self.nodes.append(g.Input("input", "input", (), shape))
        self.shape = shape
        types: dict[str, Callable[[], None]] = {name: getattr(self, f"_{name}") for name in _TYPES}
        for i, layer in enumerate(layers):
            if not isinstance(layer, Mapping) or layer.get("type") not in types:
                kind = layer.get("type") if isinstance(layer, Mapping) else layer
                raise ConversionError(
                    "bad-description",
                    f"layer number {i}: type {str(kind)[:60]!r}; known types are {', '.join(sorted(_TYPES))}",
                )
            self.name = str(layer.get("name", f"{layer['type']}_{i}"))[:200]
            self.layer = {key: value for key, value in layer.items() if key not in ("type", "name")}
            try:
                types[layer["type"]]()
            except ConversionError:
                raise
            except (CbinError, TypeError, ValueError) as error:
                raise self._refuse(str(error)) from error
            if self.layer:
                raise self._refuse(f"unknown keys {sorted(map(str, self.layer))}")
        name = self.description.get("name", "model")
        output = self.nodes[-1].name
        return g.Graph(str(name), self.nodes, output, self.notes, framework="description")

    def _refuse(self, message: str) -> ConversionError:
        return ConversionError("bad-description", message, layer=self.name)

    def _take(self, key: str, default: Any = ...) -> Any:
        value = self.layer.pop(key, default)
        if value is ...:
            raise self._refuse(f"{key!r} is missing")
        return value

    def _array(self, key: str, default: Any = ...) -> Array:
        value = self._take(key, default)
        try:
            return np.ascontiguousarray(value, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise self._refuse(f"{key!r} is no array of numbers ({error})") from error

    def _parameter(self, key: str, default: float) -> Fraction | Array:
        array = self._array(key, default)
        return Fraction(float(array.reshape(-1)[0])) if array.size == 1 else array

    def _channels(self, key: str, default: Any = ...) -> Array:
        array = self._array(key, default)
        return np.broadcast_to(array, self.shape[-1:]).copy() if array.ndim < 2 else array

    def _emit(self, kind: type[g.Node], suffix: str = "", **fields: Any) -> None:
        name, count = self.name + suffix, 1
        while any(node.name == name for node in self.nodes):
            count += 1
            name = f"{self.name}{suffix}_{count}"
        node = kind(name, self.name, (self.nodes[-1].name,), **fields)
        self.shape = node.output_shape((self.shape,))
        self.nodes.append(node)

    def _conv2d(self) -> None:
        weights = self._array("weights")
        if weights.ndim != 4 or len(self.shape) != 3:
            raise self._refuse(f"weights of shape {weights.shape} on {self.shape}; [O, kh, kw, C] on a plane")
        window = geometry.window(
            (self.shape[0], self.shape[1]),
            (weights.shape[1], weights.shape[2]),
            geometry.pair("strides", self._take("strides", 1), 1, geometry.MAX_WINDOW),
            self._take("padding", "valid"),
            geometry.pair("dilation", self._take("dilation", 1), 1, geometry.MAX_WINDOW),
        )
        pad_value = float(self._take("pad_values", 0))
        kernel = np.ascontiguousarray(weights.transpose(1, 2, 3, 0))
        signs, binary, scale = binarized(kernel, self.name, self.notes)
        self._emit(g.Conv2D, kernel=signs, window=window, binary=binary, scale=scale, pad_value=pad_value)
        self._bias()

    def _dense(self) -> None:
        weights = self._array("weights")
        if weights.ndim != 2:
            raise self._refuse(f"weights of shape {weights.shape}; [units, features] is needed")
        signs, binary, scale = binarized(np.ascontiguousarray(weights.T), self.name, self.notes)
        self._emit(g.Dense, kernel=signs, binary=binary, scale=scale)
        self._bias()

    def _bias(self) -> None:
        if self.layer.get("bias") is not None:
            self._emit(g.Bias, "/bias", values=self._channels("bias"))
        self.layer.pop("bias", None)

    def _max_pool2d(self) -> None:
        if len(self.shape) != 3:
            raise self._refuse(f"a pool needs a plane, got {self.shape}")
        size = geometry.pair("size", self._take("size"), 1, geometry.MAX_WINDOW)
        window = geometry.window(
            (self.shape[0], self.shape[1]),
            size,
            geometry.pair("strides", self._take("strides", size), 1, geometry.MAX_WINDOW),
            self._take("padding", "valid"),
            names=("size", "padding"),
        )
        self._emit(g.MaxPool2D, window=window)

    def _batch_norm(self) -> None:
        self._emit(
            g.BatchNorm,
            gamma=self._channels("gamma", 1.0),
            beta=self._channels("beta", 0.0),
            mean=self._channels("mean"),
            variance=self._channels("variance"),
            epsilon=float(self._take("epsilon")),
        )

    def _prelu(self) -> None:
        self._emit(g.PReLU, alpha=self._channels("slope"))

    def _clip(self) -> None:
        ends: dict[str, Any] = {
            key: None if (v := self._take(key, None)) is None else float(v) for key in ("low", "high")
        }
        self._emit(g.Clip, **ends)

    def _scale(self) -> None:
        self._emit(
            g.Linear,
            factor=self._parameter("factor", 1.0),
            offset=self._parameter("offset", 0.0),
            divisor=self._parameter("divisor", 1.0),
        )

    def _rescaling(self) -> None:
        if "scale" in self.layer:
            self.layer["factor"] = self.layer.pop("scale")
        self._scale()

    def _sign(self) -> None:
        self._emit(g.Sign)

    def _flatten(self) -> None:
        self._emit(g.Flatten)

    def _softmax(self) -> None:
        self._emit(g.Softmax)


_TYPES = {
    "batch_norm",
    "clip",
    "conv2d",
    "dense",
    "flatten",
    "max_pool2d",
    "prelu",
    "rescaling",
    "scale",
    "sign",
    "softmax",
}
