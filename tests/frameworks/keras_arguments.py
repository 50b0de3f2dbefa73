"""Small Keras and Larq networks: one for each value of each argument of each layer that the reader knows.

A *frame* is a network with a place for one layer. Height, width and channels are equal in it, so that an
axis that is taken for another still fits. A *case* is a frame with the tested layer in it and one of its
arguments, or of its call's, set to another value than the frame's own. Variables that a case shares with its
frame in the same shape hold the frame's values: outputs differ by the argument alone.

`cases` yields them by the framework's own schema: the keys of `get_config`, the parameters of `__init__` and
those of `call`. `VALUES` holds what they are set to.
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from cbin_nn.images import draw_images

SIDE = 6
IMAGES = draw_images(10, SIDE, SIDE, seed=16, channels=SIDE)
TESTED = "tested"
OWN = "of one's own"
MANY, FEW = 12, 6


@dataclass
class Case:
    """One network: `argument` of `layer` is `value` (as text), in a frame."""

    layer: str
    argument: str
    value: str
    frame: str
    build: Callable[[], Any]
    #: Whether the network is the frame itself, nothing set.
    base: bool = False


@dataclass
class Library:
    """The frameworks, imported by whoever has them."""

    tf: Any
    larq: Any
    #: Place -> (number of the layer, variable) -> its values.
    drawn: dict[str, dict[tuple[int, str], np.ndarray]] = field(default_factory=dict)

    registered: int = 0

    def count(self) -> int:
        """A number that no package was registered under."""
        self.registered += 1
        return self.registered

    @property
    def layers(self) -> Any:
        return self.tf.keras.layers

    def find(self, name: str) -> Any:
        """A layer class or a quantizer by its name."""
        if name == "BatchNormalizationV1":
            return self.tf.compat.v1.keras.layers.BatchNormalization
        for module in (self.layers, self.larq.layers, self.larq.quantizers):
            if hasattr(module, name):
                return getattr(module, name)
        raise KeyError(name)


# -- frames: each takes a function that applies the tested layer, and returns (input, output)


def _quantized(library: Library, **options: Any) -> Any:
    """A binary convolution whose outputs are real numbers about 1, of both signs."""
    options = {"padding": "same", "kernel_quantizer": "magnitude_aware_sign", **options}
    return library.larq.layers.QuantConv2D(SIDE, 3, **options)


def _input(library: Library) -> Any:
    return library.layers.Input((SIDE, SIDE, SIDE))


def _head(library: Library, x: Any) -> Any:
    """From a plane of real numbers to the output."""
    return library.larq.layers.QuantDense(
        5, use_bias=False, input_quantizer="ste_sign", kernel_quantizer="ste_sign"
    )(library.layers.Flatten()(x))


def _frame_image(library: Library, apply: Callable[[Any], Any]) -> tuple[Any, Any]:
    image = _input(library)
    x = _quantized(library, kernel_quantizer="ste_sign", use_bias=False)(apply(image))
    return image, _head(library, library.layers.BatchNormalization()(x))


def _frame_first(library: Library, apply: Callable[[Any], Any]) -> tuple[Any, Any]:
    image = _input(library)
    return image, _head(library, library.layers.BatchNormalization()(apply(image)))


def _frame_stream(library: Library, apply: Callable[[Any], Any]) -> tuple[Any, Any]:
    image = _input(library)
    return image, _head(library, library.layers.BatchNormalization()(apply(_quantized(library)(image))))


def _frame_bits(library: Library, apply: Callable[[Any], Any]) -> tuple[Any, Any]:
    """The tested layer reads bits that a layer made."""
    image = _input(library)
    x = library.larq.quantizers.SteSign()(_quantized(library)(image))
    return image, _head(library, library.layers.BatchNormalization()(apply(x)))


def _frame_head(library: Library, apply: Callable[[Any], Any]) -> tuple[Any, Any]:
    image = _input(library)
    return image, apply(
        library.larq.quantizers.SteSign()(library.layers.Flatten()(_quantized(library)(image)))
    )


def _frame_quantized_head(library: Library, apply: Callable[[Any], Any]) -> tuple[Any, Any]:
    """The tested layer has a quantizer of its own."""
    image = _input(library)
    return image, apply(library.layers.Flatten()(_quantized(library)(image)))


def _frame_flatten(library: Library, apply: Callable[[Any], Any]) -> tuple[Any, Any]:
    image = _input(library)
    return image, library.larq.layers.QuantDense(
        5, use_bias=False, input_quantizer="ste_sign", kernel_quantizer="ste_sign"
    )(apply(_quantized(library)(image)))


def _frame_last(library: Library, apply: Callable[[Any], Any]) -> tuple[Any, Any]:
    image = _input(library)
    x = _head(library, _quantized(library)(image))
    return image, apply(library.layers.BatchNormalization()(x))


def _frame_merge(library: Library, apply: Callable[[Any], Any]) -> tuple[Any, Any]:
    image = _input(library)
    a = _quantized(library)(image)
    b = _quantized(library, input_quantizer="ste_sign")(a)
    return image, _head(library, library.layers.BatchNormalization()(apply([a, b])))


FRAMES: dict[str, Callable[[Library, Callable[[Any], Any]], tuple[Any, Any]]] = {
    name.removeprefix("_frame_"): value
    for name, value in list(globals().items())
    if name.startswith("_frame_")
}

#: Layer -> frames, each with the arguments that the frame's own network has.
PLACES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "Activation": [("stream", {"activation": "relu"}), ("last", {"activation": "linear"})],
    "ActivityRegularization": [("stream", {})],
    "Add": [("merge", {})],
    "AlphaDropout": [("stream", {"rate": 0.3})],
    "ApproxSign": [("stream", {})],
    "BatchNormalization": [("stream", {}), ("last", {})],
    "BatchNormalizationV1": [("stream", {})],
    "Concatenate": [("merge", {})],
    "Conv2D": [("first", {"filters": 6, "kernel_size": 3}), ("bits", {"filters": 6, "kernel_size": 3})],
    "Dense": [("head", {"units": 5})],
    "DepthwiseConv2D": [("bits", {"kernel_size": 3})],
    "Dropout": [("stream", {"rate": 0.3})],
    "Flatten": [("flatten", {})],
    "GaussianDropout": [("stream", {"rate": 0.3})],
    "GaussianNoise": [("stream", {"stddev": 0.5})],
    "LeakyReLU": [("stream", {})],
    "MagnitudeAwareSign": [("stream", {})],
    "MaxPooling2D": [("stream", {})],
    "NoOp": [("stream", {"precision": 1})],
    "Normalization": [
        ("image", {"mean": [100.0 + 9 * i for i in range(6)], "variance": [2000.0] * 6}),
        ("image", {}),
    ],
    "PReLU": [("stream", {}), ("last", {})],
    "QuantConv2D": [
        (
            "stream",
            {"filters": 6, "kernel_size": 3, "kernel_quantizer": "ste_sign", "input_quantizer": "ste_sign"},
        ),
        ("first", {"filters": 6, "kernel_size": 3, "kernel_quantizer": "ste_sign"}),
    ],
    "QuantDense": [
        ("quantized_head", {"units": 5, "kernel_quantizer": "ste_sign", "input_quantizer": "ste_sign"})
    ],
    "QuantDepthwiseConv2D": [
        ("stream", {"kernel_size": 3, "depthwise_quantizer": "ste_sign", "input_quantizer": "ste_sign"})
    ],
    "ReLU": [("stream", {})],
    "Rescaling": [("image", {"scale": 1 / 127.5, "offset": -1.0})],
    "Softmax": [("last", {})],
    "SpatialDropout2D": [("stream", {"rate": 0.3})],
    "SteSign": [("stream", {})],
    "SwishSign": [("stream", {})],
}
#: Arguments that another must be set for.
WITH: dict[tuple[str, str], dict[str, Any]] = {
    ("QuantConv2D", "pad_values"): {"padding": "same"},
    ("QuantDepthwiseConv2D", "pad_values"): {"padding": "same"},
    ("MaxPooling2D", "padding"): {"pool_size": 4, "strides": 3},
    ("BatchNormalization", "renorm_clipping"): {"renorm": True},
    ("BatchNormalization", "renorm_momentum"): {"renorm": True},
    ("BatchNormalizationV1", "renorm_clipping"): {"renorm": True},
    ("BatchNormalizationV1", "renorm_momentum"): {"renorm": True},
}


def _twice(x: Any) -> Any:
    return 2 * x


def _values(library: Library) -> dict[str, list[Any]]:
    """Argument -> what it is set to; a callable is called for each network, since layers are not shared."""
    layers, quantizers, activations = library.layers, library.larq.quantizers, library.larq.activations
    per_channel = np.array([0.5, 1, 2, 0.25, 3, 1.5], np.float32)
    every = [
        *(
            (lambda make=make: make())
            for make in (
                quantizers.ApproxSign,
                quantizers.SwishSign,
                quantizers.MagnitudeAwareSign,
                quantizers.SteTern,
                quantizers.SteHeaviside,
                quantizers.DoReFa,
            )
        ),
        lambda: quantizers.NoOp(precision=1),
        lambda: quantizers.SteSign(clip_value=None),
        lambda: quantizers.SwishSign(beta=2.0),
        lambda: quantizers.DoReFa(k_bit=1, mode="weights"),
        "ste_sign",
        "approx_sign",
        "swish_sign",
        "magnitude_aware_sign",
        None,
        lambda: _twice,
    ]
    return {
        "activation": [
            "relu", "tanh", lambda: layers.LeakyReLU(0.2), lambda: activations.hard_tanh, lambda: _twice,
            "linear", "relu6", "sigmoid", "softmax", "elu", "leaky_relu", None,
            lambda: activations.leaky_tanh,
            lambda: layers.ReLU(max_value=1.5), lambda: layers.ReLU(negative_slope=0.5),
            lambda: layers.ReLU(threshold=0.5), lambda: layers.PReLU(), lambda: layers.Softmax(),
            lambda: layers.Softmax(axis=1), lambda: layers.Activation("tanh"),
            lambda: layers.Activation("relu6"), lambda: layers.ELU(), lambda: quantizers.SteSign(),
            lambda: quantizers.SteTern(), lambda: quantizers.SwishSign(beta=3.0),
            lambda: quantizers.MagnitudeAwareSign(),
        ],
        "adjustment": [],  # a function, which no file holds
        "alpha": [0.5, -0.5, 0.0],
        "axis": [1, 2, 3, -2, -1, [1], [3], [1, 2], [1, 3], None],
        "batch_input_shape": [lambda: (None, SIDE, SIDE, SIDE)],
        "batch_size": [],
        "beta": [2.0],
        "center": [False],
        "clip_value": [0.5, None],
        "data_format": ["channels_first", "channels_last", None],
        "depth_multiplier": [2],
        "depthwise_quantizer": every,
        "dilation_rate": [2, (1, 2)],
        "dtype": ["float16", "float64", "mixed_float16"],
        "dynamic": [True],
        "epsilon": [0.5, 1e-5],
        "filters": [4],
        "fused": [False, True],
        "groups": [2, 3],
        "input_quantizer": every,
        "invert": [True],
        "k_bit": [1],
        "kernel_quantizer": every,
        "kernel_size": [1, (2, 3), 5],
        "l1": [0.5],
        "l2": [0.5],
        "mask": [],
        "max_value": [0.5, 6.0, 0.0],
        "mean": [100.0, [10.0, 30, 60, 90, 120, 150], [[10.0, 30, 60, 90, 120, 150]]],
        "metrics": [["flip_ratio"]],
        "mode": ["weights"],
        "momentum": [0.5],
        "name": ["another"],
        "negative_slope": [0.5],
        "noise_shape": [(None, 1, 1, SIDE)],
        "offset": [0.0, -0.5, per_channel.tolist(), per_channel.reshape(-1, 1).tolist(), lambda: per_channel,
                   lambda: np.float32(0.25), lambda: per_channel.reshape(1, -1, 1), [[0.5]]],
        "pad_values": [1.0, -1.0, 0.5],
        "padding": ["same", "valid", "causal"],
        "pool_size": [3, (1, 2), (2, 1)],
        "precision": [3],
        "rate": [0.9],
        "renorm": [True],
        "renorm_clipping": [lambda: {"rmax": 2.0}],
        "renorm_momentum": [0.5],
        "scale": [False, 1 / 255, 2.0, per_channel.tolist(), per_channel.reshape(-1, 1).tolist(),
                  lambda: per_channel, lambda: np.float32(0.01), lambda: per_channel.reshape(1, 1, -1),
                  [[0.5]]],
        "seed": [3],
        "shared_axes": [[1, 2], [1], [2], [3], [1, 2, 3], [1, 3]],
        "stddev": [2.0],
        "strides": [2, (1, 2), (2, 1), (3, 3), None],
        "synchronized": [True],
        "ternary_weight_networks": [True],
        "threshold": [0.5],
        "threshold_value": [0.2],
        "trainable": [False],
        "training": [True, False],
        "units": [3],
        "use_bias": [False, True],
        "variance": [400.0, [100.0, 300, 600, 900, 1200, 1500], [[1000.0]]],
        "virtual_batch_size": [5],
        **{f"{name}_{what}": [value] for name in (
            "kernel", "bias", "depthwise", "beta", "gamma", "moving_mean", "moving_variance", "alpha",
            "activity",
        ) for what, value in (("initializer", "ones"), ("regularizer", "l2"), ("constraint", "non_neg"))},
    }  # fmt: skip


def _draw(library: Library, model: Any, place: str) -> None:
    """Values for all variables: the place's own where it has them in this shape; else drawn, BatchNorms by
    what they see in this network. The first network in a place makes the place's own."""
    keras = library.tf.keras
    known = library.drawn.get(place, {})
    for index, item in enumerate(model.layers):
        for variable in item.weights:
            leaf = variable.name.split("/")[-1].split(":")[0]
            key, shape = (index, leaf), tuple(variable.shape)
            rng = np.random.default_rng(zlib.crc32(f"{index} {leaf} {shape}".encode()))
            if key in known and known[key].shape == shape:
                variable.assign(known[key])
                continue
            value: Any = None
            if leaf in ("kernel", "depthwise_kernel"):
                value = rng.normal(0, 0.002, shape)
                if "Quant" not in type(item).__name__ and " in first " not in place:
                    value = np.sign(value)  # a plain layer on bits, with weights that are bits
            elif leaf in ("gamma", "alpha"):
                value = rng.normal(size=shape)
            elif leaf in ("beta", "bias"):
                value = rng.normal(0, 0.5, shape)
            elif leaf in ("moving_mean", "mean"):
                seen = np.asarray(keras.Model(model.input, item.input)(IMAGES.astype(np.float32)))
                value = rng.normal(seen.mean(), 0.5 * seen.std() + 1e-3, shape)
            elif leaf in ("moving_variance", "variance"):
                seen = np.asarray(keras.Model(model.input, item.input)(IMAGES.astype(np.float32)))
                value = (seen.var() + 1e-3) * rng.uniform(0.5, 2, shape)
            elif leaf.startswith("renorm"):
                value = rng.uniform(0.5, 2, shape)
            if value is not None:
                variable.assign(np.asarray(value, np.float32))
        item.finalize_state()  # by which a Normalization takes the mean and variance that it was given
    if place not in library.drawn:
        library.drawn[place] = {
            (index, variable.name.split("/")[-1].split(":")[0]): variable.numpy()
            for index, item in enumerate(model.layers)
            for variable in item.weights
        }


def build(
    library: Library,
    frame: str,
    layer: str,
    own: dict[str, Any],
    options: dict[str, Any],
    call: dict[str, Any],
) -> Any:
    """A network: `layer` in `frame`, with the frame's own arguments changed by `options`, its parameters
    drawn."""

    def made(given: dict[str, Any]) -> dict[str, Any]:
        return {key: value() if callable(value) else value for key, value in given.items()}

    tested = library.find(layer)(**made({"name": TESTED, **own, **options}))
    call = made(call)
    image, output = FRAMES[frame](library, lambda x: tested(x, **call))
    model = library.tf.keras.Model(image, output)
    _draw(library, model, f"{layer} in {frame} with {sorted(own)}")
    return model


def schema(library: Library, layer: str, options: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The framework's names for the arguments of a layer: (of the layer, of its call)."""
    made = library.find(layer)(**options)
    names = set(made.get_config()) | {"batch_input_shape"}
    for base in type(made).__mro__:
        if base.__module__.split(".")[0] in ("keras", "larq") and "__init__" in vars(base):
            names |= set(inspect.signature(base.__init__).parameters)
    call = list(inspect.signature(type(made).call).parameters)[2:]
    # The last are parameters of Keras' base classes, which no user sets.
    skipped = {"self", "args", "kwargs", "inputs"}
    skipped |= {"conv_op", "force_generator", "pool_function", "rank", "rng_type"}
    return sorted(names - skipped), [name for name in call if name not in skipped]


def _show(value: Any) -> str:
    if callable(value):
        value = value()
    if hasattr(value, "get_config"):
        settings = value.get_config()
        kept = {
            k: v for k, v in settings.items() if k not in ("name", "trainable", "dtype") and "_" not in k[:1]
        }
        inner = ", ".join(f"{k}={v}" for k, v in kept.items() if not isinstance(v, dict))
        return f"{type(value).__name__}({inner})"
    return getattr(value, "__name__", None) or repr(value)


def cases(library: Library) -> Iterator[Case]:
    """Every frame, then every value of every argument in it; of a long list all in one place, and the first
    few in the others."""
    values = _values(library)
    walked: set[str] = set()
    for layer, places in PLACES.items():
        for frame, own in places:

            def make(
                options: dict[str, Any], call: dict[str, Any], frame: str = frame, layer: str = layer,
                own: dict[str, Any] = own,
            ) -> Callable[[], Any]:  # fmt: skip
                return lambda: build(library, frame, layer, own, options, call)

            yield Case(layer, "", "", frame, make({}, {}), base=True)
            arguments, call = schema(library, layer, own)
            for argument in arguments:
                chosen = values[argument]
                if argument in walked and len(chosen) > MANY:
                    chosen = chosen[:FEW]
                for value in chosen:
                    options = {**WITH.get((layer, argument), {}), argument: value}
                    yield Case(layer, argument, _show(value), frame, make(options, {}))
            walked |= set(arguments)
            for argument in call:
                for value in values[argument] or [lambda: library.tf.ones((1, SIDE), bool)]:
                    shown = _show(value) if values[argument] else "a mask"
                    yield Case(layer, f"call {argument}", shown, frame, make({}, {argument: value}))
                    if argument == "training":
                        frozen = make({"trainable": False}, {argument: value})
                        yield Case(layer, f"call {argument}", f"{shown}, frozen", frame, frozen)
    yield from _inputs(library)
    yield from _models(library)


def _inputs(library: Library) -> Iterator[Case]:
    """The arguments of `InputLayer`, and the input in other forms."""

    def make(first: bool = True, **options: Any) -> Any:
        layers = library.layers
        image = layers.Input(**{"shape": (SIDE, SIDE, SIDE), **options})
        x = layers.Rescaling(1 / 127.5, offset=-1.0)(image) if first else image
        x = _quantized(library, kernel_quantizer="ste_sign")(x)
        model = library.tf.keras.Model(image, _head(library, layers.BatchNormalization()(x)))
        _draw(library, model, "InputLayer")
        return model

    yield Case("InputLayer", "", "", "input", make, base=True)
    for dtype in ("uint8", "int8", "int32", "int64", "float16", "float64", "bfloat16", "bool", "uint16"):
        yield Case("InputLayer", "dtype", dtype, "input", lambda dtype=dtype: make(dtype=dtype))
    for argument, value in (("batch_size", 10), ("name", "picture"), ("sparse", True), ("ragged", True)):
        yield Case(
            "InputLayer", argument, repr(value), "input",
            lambda argument=argument, value=value: make(**{argument: value}),
        )  # fmt: skip
    yield Case(
        "InputLayer", "batch_input_shape", "(10, 6, 6, 6)", "input",
        lambda: make(shape=None, batch_shape=(10, SIDE, SIDE, SIDE)),
    )  # fmt: skip


def _models(library: Library) -> Iterator[Case]:
    """Models inside models, constants among inputs, and classes of the user's own."""
    keras, layers = library.tf.keras, library.layers

    def whole(image: Any, output: Any, name: str) -> Any:
        model = keras.Model(image, output)
        for item in model.layers:
            for variable in item.weights:
                leaf = variable.name.split("/")[-1].split(":")[0]
                rng = np.random.default_rng(zlib.crc32(f"{variable.name.split('/')[-2]} {leaf}".encode()))
                if leaf == "kernel":
                    variable.assign(rng.normal(0, 0.002, variable.shape))
                elif leaf == "moving_variance":
                    variable.assign(rng.uniform(0.5, 2, variable.shape))
                elif leaf in ("bias", "gamma", "beta", "moving_mean"):
                    variable.assign(rng.normal(0, 0.5, variable.shape))
        return model

    def inner(kind: str, depth: int, dtype: str = "float32", middle: Any = None) -> Any:
        if depth:
            first = inner(kind, depth - 1, dtype)
            second = inner(kind, depth - 1, dtype)
            parts = [first, second]
        else:
            parts = [
                _quantized(library, input_quantizer="ste_sign", name="part"),
                layers.BatchNormalization(),
            ]
        if middle is not None:
            parts.append(middle())
        if kind == "sequential":
            return keras.Sequential([layers.Input((SIDE, SIDE, SIDE), dtype=dtype), *parts])
        if kind == "deferred":
            return keras.Sequential(parts)
        x = image = layers.Input((SIDE, SIDE, SIDE), dtype=dtype)
        for part in parts:
            x = part(x)
        return keras.Model(image, x)

    def nested(
        kind: str = "functional", depth: int = 0, times: int = 1, dtype: str = "float32",
        middle: Any = None, **call: Any,
    ) -> Any:  # fmt: skip
        image = layers.Input((SIDE, SIDE, SIDE))
        x = _quantized(library)(image)
        model = inner(kind, depth, dtype, middle)
        for _ in range(times):
            x = model(x, **call)
        return whole(image, _head(library, x), f"{kind} {depth}")

    yield Case("Functional", "", "", "models", nested, base=True)
    for kind in ("functional", "sequential", "deferred"):
        for depth in (0, 1, 2):
            for times in (1, 2, 3):
                yield Case(
                    kind.capitalize(), "calls", f"depth {depth}, {times} times", "models",
                    lambda kind=kind, depth=depth, times=times: nested(kind, depth, times),
                )  # fmt: skip
        for value in (True, False):
            yield Case(
                kind.capitalize(), "call training", repr(value), "models",
                lambda kind=kind, value=value: nested(kind, training=value),
            )  # fmt: skip
            yield Case(
                kind.capitalize(), "call training", f"{value}, around a dropout", "models",
                lambda kind=kind, value=value: nested(
                    kind, middle=lambda: layers.Dropout(0.5), training=value
                ),
            )  # fmt: skip
    for dtype in ("int32", "float16", "float64"):
        yield Case("Functional", "dtype", dtype, "models", lambda dtype=dtype: nested(dtype=dtype))

    def constant(kind: str) -> Any:
        image = layers.Input((SIDE, SIDE, SIDE))
        x = _quantized(library)(image)
        other = library.tf.ones((1, SIDE, SIDE, SIDE)) * 3
        x = getattr(layers, kind)()([x, other])
        return whole(image, _head(library, x), kind)

    for kind in ("Add", "Concatenate"):
        yield Case(kind, "inputs", "a constant", "models", lambda kind=kind: constant(kind))

    def own(name: str, base: Any, call: Callable[[Any, Any], Any], register: bool, **options: Any) -> Any:
        cls = type(name, (base,), {"call": call})
        if register:
            cls = keras.utils.register_keras_serializable(f"Own{library.count()}")(cls)
        image = layers.Input((SIDE, SIDE, SIDE))
        x = _quantized(library)(image)
        x = cls(**options)(x)
        return whole(image, _head(library, x), name)

    for name, base in (("ReLU", layers.ReLU), ("Flatten", layers.Layer), ("SteSign", layers.Layer),
                       ("Sign", layers.Layer), ("MaxPooling2D", layers.MaxPooling2D)):  # fmt: skip
        for register in (False, True):
            yield Case(
                name, "class", f"{OWN}, registered" if register else OWN, "models",
                lambda name=name, base=base, register=register: own(
                    name, base, lambda self, x: 3 - 2 * x, register
                ),
            )  # fmt: skip

    def outputs(form: str) -> Any:
        image = layers.Input((SIDE, SIDE, SIDE))
        x = _quantized(library)(image)
        y = _head(library, x)
        other = layers.Flatten()(x)
        made: Any = {"one": {"logits": y}, "two": {"logits": y, "x": other}, "list": [y, other]}[form]
        return whole(image, made, form)

    for form in ("one", "two", "list"):
        yield Case("Functional", "outputs", form, "models", lambda form=form: outputs(form))


def answers(model: Any) -> np.ndarray:
    """The framework's outputs on `IMAGES`, in evaluation."""
    result = model(IMAGES.astype(np.float32), training=False)
    if isinstance(result, dict):
        result = next(iter(result.values()))
    if isinstance(result, (list, tuple)):
        result = result[0]
    return np.asarray(result, np.float64).reshape(len(IMAGES), -1)


@dataclass
class Saved:
    """A case as Keras saves it, with Keras' answers."""

    case: Case
    paths: list[Path]
    answers: np.ndarray
    #: Whether Keras' outputs differ from those of the frame itself.
    strong: bool


def run(library: Library, folder: Path) -> Iterator[Saved]:
    """Builds, runs and saves the cases one after the other; files are gone with the next. What Keras itself
    does not build, run or save is left out."""
    base = np.zeros(0)
    for case in cases(library):
        library.tf.keras.backend.clear_session()
        try:
            model = case.build()
            found = answers(model)
        except Exception:
            assert not case.base, case
            continue
        if case.base:
            base = found
        strong = base.shape != found.shape or bool(np.abs(base - found).max() > 1e-6)
        paths = []
        for suffix in ("h5", "keras"):
            if case.value == OWN and suffix == "h5":
                continue  # which has the class's name alone: Keras itself reads its own class then
            path = folder / f"case.{suffix}"
            path.unlink(missing_ok=True)
            try:
                model.save(path, **({"include_optimizer": False} if suffix == "h5" else {}))
            except Exception:
                continue
            paths.append(path)
        yield Saved(case, paths, found, strong)
