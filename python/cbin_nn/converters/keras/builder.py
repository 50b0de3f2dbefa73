"""From the calls of a Keras model to nodes of the source graph, a handler for each class of layers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np

from ...errors import ConversionError
from ...operators import Window
from ..graph import (
    Add,
    BatchNorm,
    Bias,
    Call,
    Clip,
    Concatenate,
    Conv2D,
    Dense,
    Flatten,
    Float32,
    Graph,
    Identity,
    Input,
    Linear,
    MaxPool2D,
    Node,
    Origin,
    PReLU,
    Rescaling,
    Shape,
    Sign,
    Softmax,
)
from ..passes import canonicalize
from ..problems import Problem, together
from ..weights import binarized
from . import signatures as tables
from .architecture import LayerCall, Network
from .layer import (
    Layer,
    advice_for,
    along_channels,
    as_number,
    batch_shape_of,
    check_dtype,
    dtype_of,
    flag_of,
    function_name,
    is_last,
    is_size,
    number_of,
    optional_record,
    padding_of,
    pair_of,
    plain_value,
    quantizer_of,
    require_channels_last,
    size_of,
)
from .weights import Weights

__all__ = ["Builder"]


class Builder:
    """Walks the chain and adds nodes."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.nodes: list[Node] = []
        self.problems: list[Problem] = []
        self.tensor = ""
        self.shape: Shape = ()
        #: Tensors and shapes that the current layer reads; the first is `tensor`, `shape`.
        self.inputs: list[tuple[str, Shape]] = []
        self.names: set[str] = set()
        #: Which call's result a tensor is; the call that is at work.
        self.origins: dict[str, Origin] = {}
        self.number = 0
        self.handlers: dict[str, Callable[[Layer], None]] = {
            "Activation": self._activation_layer,
            "Add": self._merge,
            "Concatenate": self._merge,
            "BatchNormalization": self._batch_norm,
            "BatchNormalizationV1": self._batch_norm,
            "BatchNormalizationV2": self._batch_norm,
            "Conv2D": self._conv,
            "Dense": self._dense,
            "Flatten": self._flatten,
            "LeakyReLU": self._leaky_relu,
            "MaxPooling2D": self._max_pool,
            "Normalization": self._normalization,
            "PReLU": self._prelu,
            "QuantConv2D": self._conv,
            "DepthwiseConv2D": self._conv,
            "QuantDepthwiseConv2D": self._conv,
            "QuantDense": self._dense,
            "ReLU": self._relu,
            "Rescaling": self._rescaling,
            "Sign": self._sign,
            "Softmax": self._softmax,
        }

    def build(self, network: Network) -> Graph:
        """The graph of a network."""
        #: Tensor and shape of each call; None where it can't be converted.
        results: list[tuple[str, Shape] | None] = []
        for self.number, call in enumerate(network.calls):
            result = self._call(call, [results[i] for i in call.inputs], network.build_shape)
            results.append(result)
            if result is not None:
                self.origins.setdefault(result[0], Origin(str(self.number)))
        if not self.problems:
            left = self.weights.left()
            if left:
                raise ConversionError(
                    "unsupported-weights",
                    f"the file holds weights that no layer of the architecture reads: {', '.join(left[:4])}"
                    f"{f' and {len(left) - 4} more' if len(left) > 4 else ''}; what they do would be lost",
                )
        output = results[network.output]
        name = output[0] if output is not None else self.nodes[-1].name if self.nodes else ""
        if not self.nodes:
            raise together(self.problems)
        calls = [
            Call(call.layer.name, tuple(parent.name for parent in call.layer.parents), call.inputs)
            for call in network.calls
        ]
        return canonicalize(
            Graph(
                network.name,
                self.nodes,
                name,
                problems=self.problems,
                origins=self.origins,
                calls=calls,
                framework="keras",
            )
        )

    def _call(
        self, call: LayerCall, inputs: list[tuple[str, Shape] | None], build_shape: Any
    ) -> tuple[str, Shape] | None:
        layer = call.layer
        try:
            if layer.class_name == "InputLayer":
                return self._input_layer(layer, inputs, build_shape)
            if not inputs:
                self._input(layer, batch_shape_of(layer, build_shape))
                inputs = [(self.tensor, self.shape)]
            self._check(layer)
            layer.require(tables.CALL, call.arguments, "called with ")
            known = [value for value in inputs if value is not None]
            if len(known) != len(inputs):
                return None
            self.tensor, self.shape = known[0]
            self.inputs = known
            if layer.class_name in tables.DROPOUTS:
                self._add(Identity(layer.name, layer.name, (self.tensor,)))
            elif layer.class_name in tables.SIGN_LAYERS:
                self._add(Sign(layer.name, layer.name, (self.tensor,)))
            elif len(known) > 1 and layer.class_name not in tables.MERGES:
                raise layer.refuse("unsupported-layer", "it has several inputs")
            else:
                self.handlers[layer.class_name](layer)
        except ConversionError as error:
            if not error.slug.startswith("unsupported") or not (self.nodes or self.problems):
                raise
            self.problems.append(Problem.of(error))
            return None
        return self.tensor, self.shape

    def _input_layer(
        self, layer: Layer, inputs: list[tuple[str, Shape] | None], build_shape: Any
    ) -> tuple[str, Shape] | None:
        """The network's input, or that of a model inside, which Keras converts its argument to."""
        layer.require(tables.LAYERS["InputLayer"], layer.config)
        dtype, value = dtype_of(layer)
        if dtype not in ({"float32", "float64"} if inputs else tables.INPUT_DTYPES):
            raise layer.refuse(
                "unsupported-option",
                f"dtype={value}: what is fed would be converted to it, and not be the same; use float32",
            )
        if not inputs:
            self._input(layer, batch_shape_of(layer, build_shape))
            return self.tensor, self.shape
        (given,) = inputs
        shape = batch_shape_of(layer, None)
        sides = shape[1:] if isinstance(shape, list) else None
        if given is not None and (
            sides is None
            or len(sides) != len(given[1])
            or any(a is not None and a != b for a, b in zip(sides, given[1], strict=True))
        ):
            raise layer.refuse(
                "shape-mismatch", f"the model takes {str(sides)[:60]}, and is called on {given[1]}"
            )
        return given

    def _check(self, layer: Layer) -> None:
        """What can be told without the input's shape: the kind of layer, its arguments, its type, its
        functions."""
        if re.match("Q[A-Z]", layer.class_name):
            raise layer.refuse("unsupported-layer", *tables.QKERAS)
        own = layer.class_name in tables.OPERATIONS and "trainable" in layer.config
        if layer.foreign or own:
            raise layer.refuse(
                "unsupported-layer",
                f"a class from {layer.foreign or 'your own code'}, and {tables.OWN_CODE}; use layers of "
                "Keras or Larq (for a sign larq.quantizers.SteSign()), or describe the network to "
                "cbin_nn.convert as a dict",
            )
        if layer.class_name not in tables.LAYERS:
            raise layer.refuse(
                "unsupported-layer", "this kind of layer can't be converted", advice_for(layer)
            )
        layer.require(tables.LAYERS[layer.class_name], layer.config)
        check_dtype(layer)
        if layer.class_name in tables.QUANTIZED:
            self._kernel_quantizer(layer)
            self._input_quantizer(layer)

    def _add(self, node: Node) -> None:
        self.shape = node.output_shape((self.shape,))
        if min(self.shape) < 1 or any(side > 2**31 for side in self.shape):
            raise ConversionError(
                "shape-mismatch", f"its output shape {self.shape} is impossible", layer=node.layer
            )
        self._append(node)

    def _append(self, node: Node) -> None:
        """Adds a node; a layer that is called twice, or has its name in two models, gets a name of its
        own."""
        name, count = node.name, 1
        while name in self.names:
            count += 1
            name = f"{node.name}_{count}"
        self.names.add(name)
        self.nodes.append(node if name == node.name else replace(node, name=name))
        self.tensor = name

    def _merge(self, layer: Layer) -> None:
        axis = layer.config.get("axis", -1)
        if layer.class_name == "Concatenate" and not is_last([axis], self.shape):
            raise layer.refuse("unsupported-option", f"axis={str(axis)[:60]}: only the last axis converts")
        kind = Add if layer.class_name == "Add" else Concatenate
        node = kind(layer.name, layer.name, tuple(tensor for tensor, _ in self.inputs))
        self.shape = node.output_shape(tuple(shape for _, shape in self.inputs))
        self._append(node)

    def _normalization(self, layer: Layer) -> None:
        """`(x - mean) / max(sqrt(variance), epsilon)`; the root as Keras computes it, in float32."""
        axis = layer.config.get("axis", -1)
        axes = [] if axis is None else axis if isinstance(axis, list) else [axis]
        if axes and not is_last(axes, self.shape):
            raise layer.refuse(
                "unsupported-option",
                f"axis={str(axis)[:60]}: only the channel axis (the last one) or None converts",
            )
        mean, variance = layer.config.get("mean"), layer.config.get("variance")
        if mean is None or variance is None:
            shape = self.shape[-1:] if axes else ()
            mean, variance, _ = self.weights.take(
                layer, [("mean", shape), ("variance", shape), ("count", ())]
            )
        channels = self.shape[-1]
        parts = []
        for what, value in (("mean", mean), ("variance", variance)):
            array = along_channels(layer, what, value, self.shape if axes else (1,))
            parts.append(np.broadcast_to(array, (channels,)).copy())
        divisor = np.maximum(np.sqrt(parts[1]), np.float32(1e-7))
        self._add(Linear(f"{layer.name}/mean", layer.name, (self.tensor,), offset=-parts[0]))
        self._add(Linear(layer.name, layer.name, (self.tensor,), divisor=divisor))

    def _input(self, layer: Layer, shape: Any) -> None:
        if not isinstance(shape, list) or len(shape) < 2 or not all(is_size(side) for side in shape[1:]):
            raise layer.refuse(
                "unsupported-option",
                f"the input shape is {str(shape)[:80]}; a fixed one is needed, such as Input(shape=(32, "
                f"32, 3))",
            )
        name = layer.name if layer.class_name == "InputLayer" else "input"
        node = Input(name, layer.name, (), tuple(shape[1:]))
        self._append(node)
        self.origins[self.tensor] = Origin("image")
        self.shape = node.shape

    def _conv(self, layer: Layer) -> None:
        config = layer.config
        require_channels_last(layer)
        kernel_size, strides = pair_of(layer, "kernel_size"), pair_of(layer, "strides", (1, 1))
        dilation = pair_of(layer, "dilation_rate", (1, 1))
        if config.get("groups", 1) != 1:
            raise layer.refuse("unsupported-option", f"groups={config['groups']!r}; only groups=1 converts")
        if max(strides) > 1 and max(dilation) > 1:
            raise layer.refuse(
                "unsupported-option", "strides and dilation_rate above 1 exclude each other in Keras"
            )
        if len(self.shape) != 3:
            raise layer.refuse(
                "shape-mismatch", f"a convolution needs (height, width, channels), got {self.shape}"
            )
        padding = padding_of(layer, self.shape, kernel_size, strides, dilation)
        pad_value = config.get("pad_values", 0.0)
        if not isinstance(pad_value, (int, float)) or isinstance(pad_value, bool):
            raise layer.refuse(
                "unsupported-option", f"pad_values={str(pad_value)[:60]}; only 0 and 1 convert"
            )
        depthwise = layer.class_name.endswith("DepthwiseConv2D")
        if depthwise and config.get("depth_multiplier", 1) != 1:
            raise layer.refuse(
                "unsupported-option",
                f"depth_multiplier={str(config['depth_multiplier'])[:60]}; only 1 converts",
            )
        channels = self.shape[2]
        shape = (*kernel_size, channels, 1 if depthwise else size_of(layer, "filters"))
        kernel, bias, binary, scale = self._kernel(layer, shape)
        self._quantize_input(layer)
        window = Window(kernel_size, strides, dilation, padding)
        self._add(
            Conv2D(
                layer.name,
                layer.name,
                (self.tensor,),
                kernel,
                window,
                binary,
                scale,
                float(pad_value),
                depthwise,
            )
        )
        self._finish(layer, bias)

    def _dense(self, layer: Layer) -> None:
        if len(self.shape) != 1:
            raise layer.refuse(
                "shape-mismatch",
                f"a dense layer on a tensor of shape {self.shape} needs a Flatten layer before it",
            )
        kernel, bias, binary, scale = self._kernel(layer, (self.shape[0], size_of(layer, "units")))
        self._quantize_input(layer)
        self._add(Dense(layer.name, layer.name, (self.tensor,), kernel, binary, scale))
        self._finish(layer, bias)

    def _kernel(self, layer: Layer, shape: Shape) -> tuple[Float32, Float32 | None, bool, Float32 | None]:
        """(quantized kernel, bias, whether it is binary, per-output scale), for a node.

        `shape` is Keras': (kh, kw, channels, 1) for a depthwise layer.
        """
        depthwise = layer.class_name.endswith("DepthwiseConv2D")
        use_bias = flag_of(layer, "use_bias", True)
        expected: list[tuple[str, Shape]] = [("depthwise_kernel" if depthwise else "kernel", shape)]
        if use_bias:
            expected.append(("bias", shape[2:3] if depthwise else shape[-1:]))
        arrays = self.weights.take(layer, expected)
        kernel, bias = arrays[0], arrays[1] if use_bias else None
        if not np.isfinite(kernel).all():
            raise layer.refuse(
                "not-finite", "its kernel holds NaN or infinite values; use another checkpoint"
            )
        quantizer = self._kernel_quantizer(layer)
        scale: Float32 | None = None
        magnitude = np.abs(kernel).mean(axis=tuple(range(kernel.ndim - 1)), dtype=np.float64)
        if depthwise:  # Keras has (kh, kw, channels, 1), and Larq one magnitude for all of it.
            magnitude = np.repeat(magnitude, shape[2])
            kernel = np.ascontiguousarray(kernel.transpose(0, 1, 3, 2))
        if quantizer is None:
            # A kernel that was stored as signs (times a scale a filter) is binary whatever its quantizer.
            notes: list[str] = []
            kernel, binary, scale = binarized(kernel, layer.name, notes)
            return kernel, bias, binary, scale
        if quantizer in tables.MAGNITUDE_SIGNS:
            # One scale an output channel: the mean absolute latent weight (Bi-Real Net, Liu et al. 2018).
            scale = magnitude.astype(np.float32)
        return np.where(kernel >= 0, np.float32(1), np.float32(-1)), bias, True, scale

    def _kernel_quantizer(self, layer: Layer) -> str | None:
        key = "depthwise_quantizer" if layer.class_name == "QuantDepthwiseConv2D" else "kernel_quantizer"
        quantizer = quantizer_of(layer, key)
        if quantizer is not None and quantizer not in tables.SIGNS | tables.MAGNITUDE_SIGNS:
            raise layer.refuse(
                "unsupported-quantizer", f"{key} {quantizer} is not binary; {tables.QUANTIZER_HINT}"
            )
        return quantizer

    def _input_quantizer(self, layer: Layer) -> str | None:
        quantizer = quantizer_of(layer, "input_quantizer")
        if quantizer is not None and quantizer not in tables.SIGNS:
            raise layer.refuse(
                "unsupported-quantizer", f"input_quantizer {quantizer} is not a sign; {tables.QUANTIZER_HINT}"
            )
        return quantizer

    def _quantize_input(self, layer: Layer) -> None:
        if self._input_quantizer(layer) is None:
            return
        self._add(Sign(f"{layer.name}/input_quantizer", layer.name, (self.tensor,)))
        self.origins[self.tensor] = Origin(f"{self.number}/input_quantizer")

    def _finish(self, layer: Layer, bias: Float32 | None) -> None:
        if bias is not None:
            self._add(Bias(f"{layer.name}/bias", layer.name, (self.tensor,), bias))
        self._activation(layer, layer.config.get("activation"), f"{layer.name}/activation")

    def _activation_layer(self, layer: Layer) -> None:
        self._activation(layer, layer.config.get("activation"), layer.name)

    def _activation(self, layer: Layer, activation: Any, name: str) -> None:
        if isinstance(activation, dict) and activation.get("class_name") != "function":
            self._activation_record(layer, activation, name)
            return
        kind = function_name(layer, "activation", activation)
        if kind in (None, "linear"):
            return
        if kind in tables.SIGNS:
            self._add(Sign(name, layer.name, (self.tensor,)))
        elif kind == "softmax":
            self._add(Softmax(name, layer.name, (self.tensor,)))
        elif kind == "relu":
            self._add(Clip(name, layer.name, (self.tensor,), 0.0, None))
        elif kind == "relu6":
            self._add(Clip(name, layer.name, (self.tensor,), 0.0, 6.0))
        elif kind == "hard_tanh":
            self._add(Clip(name, layer.name, (self.tensor,), -1.0, 1.0))
        else:
            raise layer.refuse(
                "unsupported-activation",
                f"activation {kind!r} can't be converted; {tables.ACTIVATION_ADVICE.get(str(kind), '')}"
                "supported are linear, relu, relu6, hard_tanh, softmax at the end, PReLU and LeakyReLU "
                "layers, and ste_sign, approx_sign, swish_sign",
            )

    def _activation_record(self, layer: Layer, record: dict[str, Any], name: str) -> None:
        """A layer that stands as another's activation: read as that layer, under the name `name`."""
        class_name = function_name(layer, "activation", record)
        settings = optional_record(record.get("config"))
        if class_name == "Activation":
            layer.require(tables.LAYERS[class_name], settings, "its activation has ")
            self._activation(layer, settings.get("activation"), name)
            return
        if class_name not in tables.ACTIVATION_LAYERS:
            raise layer.refuse(
                "unsupported-activation",
                f"activation {class_name} can't be converted; the layers that may stand as an activation are "
                f"{', '.join(sorted(tables.ACTIVATION_LAYERS))}",
            )
        inner = replace(layer, class_name=class_name, name=name, config=settings, foreign="")
        inner.require(tables.LAYERS[class_name], settings)
        check_dtype(inner)
        # Nodes carry the name of the layer that a user sees.
        before = len(self.nodes)
        if class_name in tables.SIGN_LAYERS:
            self._add(Sign(name, layer.name, (self.tensor,)))
        else:
            self.handlers[class_name](inner)
        self.nodes[before:] = [replace(node, layer=layer.name) for node in self.nodes[before:]]

    def _sign(self, layer: Layer) -> None:
        """`keras.ops.sign` of Keras 3, which is 0 at 0."""
        self._add(Sign(layer.name, layer.name, (self.tensor,), zero=0))

    def _max_pool(self, layer: Layer) -> None:
        require_channels_last(layer)
        if len(self.shape) != 3:
            raise layer.refuse(
                "shape-mismatch", f"a 2-D pool needs (height, width, channels), got {self.shape}"
            )
        size = pair_of(layer, "pool_size", (2, 2))
        strides = size if layer.config.get("strides") is None else pair_of(layer, "strides")
        padding = padding_of(layer, self.shape, size, strides, (1, 1))
        self._add(MaxPool2D(layer.name, layer.name, (self.tensor,), Window(size, strides, (1, 1), padding)))

    def _batch_norm(self, layer: Layer) -> None:
        axis = layer.config.get("axis", -1)
        if not is_last(axis if isinstance(axis, list) else [axis], self.shape):
            raise layer.refuse(
                "unsupported-option",
                f"axis={str(axis)[:60]}: only the channel axis (the last one) converts",
            )
        epsilon = number_of(layer, "epsilon", 1e-3)
        scale, center = flag_of(layer, "scale", True), flag_of(layer, "center", True)
        shape = self.shape[-1:]
        names = [n for n, there in (("gamma", scale), ("beta", center)) if there]
        names += ["moving_mean", "moving_variance"]
        arrays = dict(zip(names, self.weights.take(layer, [(name, shape) for name in names]), strict=True))
        self._add(
            BatchNorm(
                layer.name,
                layer.name,
                (self.tensor,),
                arrays.get("gamma", np.ones(shape, np.float32)),
                arrays.get("beta", np.zeros(shape, np.float32)),
                arrays["moving_mean"],
                arrays["moving_variance"],
                epsilon,
            )
        )

    def _prelu(self, layer: Layer) -> None:
        shared = layer.config.get("shared_axes")
        shared = [] if shared is None else shared if isinstance(shared, list) else [shared]
        if not all(is_size(axis) and axis <= len(self.shape) for axis in shared):
            raise layer.refuse(
                "unsupported-option", f"shared_axes={shared!r}; expected axes 1 to {len(self.shape)}"
            )
        shape = tuple(1 if i + 1 in shared else side for i, side in enumerate(self.shape))
        (alpha,) = self.weights.take(layer, [("alpha", shape)])
        if all(side == 1 for side in shape[:-1]):
            alpha = np.broadcast_to(alpha.reshape(-1), self.shape[-1:])
        else:
            alpha = np.broadcast_to(alpha, self.shape)
        self._add(PReLU(layer.name, layer.name, (self.tensor,), np.ascontiguousarray(alpha)))

    def _leaky_relu(self, layer: Layer) -> None:
        if {"alpha", "negative_slope"} <= set(layer.config):
            raise layer.refuse(
                "unsupported-option",
                f"alpha={str(layer.config['alpha'])[:60]} and negative_slope="
                f"{str(layer.config['negative_slope'])[:60]}: only one of them converts",
            )
        slope = number_of(layer, "alpha" if "alpha" in layer.config else "negative_slope", 0.3)
        self._add(PReLU(layer.name, layer.name, (self.tensor,), np.full(self.shape[-1:], slope, np.float32)))

    def _relu(self, layer: Layer) -> None:
        slope = 0.0 if layer.config.get("negative_slope") is None else number_of(layer, "negative_slope", 0.0)
        threshold = 0.0 if layer.config.get("threshold") is None else number_of(layer, "threshold", 0.0)
        maximum = None if layer.config.get("max_value") is None else number_of(layer, "max_value", 0.0)
        if threshold:
            raise layer.refuse("unsupported-option", f"threshold={threshold}: only 0 converts")
        if slope < 0 or (maximum is not None and maximum < 0):
            raise layer.refuse(
                "unsupported-option",
                f"negative_slope={slope}, max_value={maximum}: Keras has no values below 0 for them",
            )
        if slope:
            alpha = np.full(self.shape[-1:], slope, np.float32)
            name = layer.name if maximum is None else f"{layer.name}/slope"
            self._add(PReLU(name, layer.name, (self.tensor,), alpha))
            if maximum is not None:
                self._add(Clip(layer.name, layer.name, (self.tensor,), None, maximum))
        else:
            self._add(Clip(layer.name, layer.name, (self.tensor,), 0.0, maximum))

    def _rescaling(self, layer: Layer) -> None:
        values: list[Any] = []
        for key, default in (("scale", 1.0), ("offset", 0.0)):
            value = layer.config.get(key, default)
            if isinstance(plain_value(value), list):
                numbers = along_channels(layer, key, value, self.shape)
                values.append(float(numbers[0]) if np.all(numbers == numbers[0]) else numbers)
            else:
                values.append(float(np.float32(as_number(layer, key, value))))
        if all(isinstance(value, float) for value in values):
            self._add(Rescaling(layer.name, layer.name, (self.tensor,), values[0], values[1]))
            return
        factor, offset = (Fraction(v) if isinstance(v, float) else v for v in values)
        self._add(Linear(layer.name, layer.name, (self.tensor,), factor, offset))

    def _softmax(self, layer: Layer) -> None:
        axis = layer.config.get("axis", -1)
        if not is_last(axis if isinstance(axis, list) else [axis], self.shape):
            raise layer.refuse("unsupported-option", f"axis={str(axis)[:60]}: only the last axis converts")
        self._add(Softmax(layer.name, layer.name, (self.tensor,)))

    def _flatten(self, layer: Layer) -> None:
        require_channels_last(layer)
        self._add(Flatten(layer.name, layer.name, (self.tensor,)))
