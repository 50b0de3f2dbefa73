"""What the Keras reader knows, as data: layers, quantizers and records, with every argument of theirs.

A layer, quantizer or function that stands in no table is refused, and so is an argument that stands in no
list of its signature (`signatures`). Keys are those that Keras 2 (TensorFlow 2.10 to 2.21), Keras 3 and Larq
write; `tests/frameworks/test_keras_arguments.py` sets every one of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..signatures import Signature

__all__ = [
    "ACTIVATION_ADVICE",
    "ACTIVATION_LAYERS",
    "ADVICE",
    "CALL",
    "DROPOUTS",
    "ENTRY",
    "FUNCTIONAL",
    "INPUT_DTYPES",
    "LAYERS",
    "MAGNITUDE_SIGNS",
    "MERGES",
    "MODELS",
    "NO_QUANTIZERS",
    "OPERATIONS",
    "OPTION_ADVICE",
    "OWN_CODE",
    "PACKAGES",
    "POSITIONAL",
    "QKERAS",
    "QUANTIZED",
    "QUANTIZERS",
    "QUANTIZER_HINT",
    "RANDOM",
    "RECORD",
    "ROOT",
    "SEQUENTIAL",
    "SIGNS",
    "SIGN_LAYERS",
    "STATELESS",
    "WEIGHTED",
    "is_known",
]

#: Larq's quantizers with the same forward pass, sign(x) with sign(0) = +1.
SIGN_LAYERS = {"SteSign", "ApproxSign", "SwishSign"}
SIGNS = SIGN_LAYERS | {"ste_sign", "approx_sign", "swish_sign"}
MAGNITUDE_SIGNS = {"MagnitudeAwareSign", "magnitude_aware_sign"}
NO_QUANTIZERS = {"NoOp", "no_op"}
DROPOUTS = {
    "ActivityRegularization",
    "AlphaDropout",
    "Dropout",
    "GaussianDropout",
    "GaussianNoise",
    "SpatialDropout2D",
}
_BATCH_NORMS = {"BatchNormalization", "BatchNormalizationV1", "BatchNormalizationV2"}
QUANTIZED = {"QuantConv2D", "QuantDense", "QuantDepthwiseConv2D"}
#: Layers that convert and have weights.
WEIGHTED = _BATCH_NORMS | QUANTIZED | {"Conv2D", "Dense", "DepthwiseConv2D", "Normalization", "PReLU"}
MERGES = {"Add", "Concatenate"}
#: What layers keep variables in that no answer depends on: a generator's state, how often weights flipped.
STATELESS = {
    "input_quantizer",
    "kernel_quantizer",
    "depthwise_quantizer",
    "seed_generator",
    "_random_generator",
}
#: Functions of Keras 3 that stand among a model's layers; they have a name and no policy.
OPERATIONS = {"Sign"}
#: Functions that are read as activations or quantizers, by name.
_FUNCTIONS = {*SIGNS, *MAGNITUDE_SIGNS, *NO_QUANTIZERS, "hard_tanh", "linear", "relu", "relu6", "softmax"}
ACTIVATION_ADVICE = {
    "sigmoid": "at the end of a network take it away: it keeps the order, and 0.5 becomes a logit of 0; ",
}
QUANTIZER_HINT = "use SteSign, ApproxSign or SwishSign (or MagnitudeAwareSign on kernels)"


def _layer(*reads: str, inert: Iterable[str] = (), **neutral: tuple[Any, ...]) -> Signature:
    """The signature of a layer, with what every layer has."""
    return Signature.of(
        {*reads, "dtype", "batch_input_shape", "batch_shape"}, {*inert, "name", "trainable"}, **neutral
    )


def _variables(*names: str) -> set[str]:
    """How variables start and what training does to them: nothing at inference."""
    return {f"{name}_{what}" for name in names for what in ("initializer", "regularizer", "constraint")}


#: Keras 3 alone has the last three. LoRA's variables in an `.h5` file are not merged into the kernel.
_TRAINED = {"lora_rank": (None,), "lora_alpha": (None,), "quantization_config": (None,)}
_WINDOW = ("kernel_size", "strides", "padding", "data_format", "dilation_rate", "groups")
_CONV = _layer(
    *_WINDOW,
    "filters",
    "activation",
    "use_bias",
    inert={*_variables("kernel", "bias"), "activity_regularizer"},
    **_TRAINED,
)
_DEPTHWISE = _layer(
    *_WINDOW,
    "depth_multiplier",
    "activation",
    "use_bias",
    inert={*_variables("depthwise", "bias"), "activity_regularizer"},
)
_DENSE = _layer(
    "units",
    "activation",
    "use_bias",
    inert={*_variables("kernel", "bias"), "activity_regularizer"},
    **_TRAINED,
)
_BATCH_NORM = _layer(
    "axis",
    "epsilon",
    "center",
    "scale",
    inert={
        "momentum",
        "synchronized",
        "renorm_clipping",
        "renorm_momentum",
        "moving_mean_initializer",
        "moving_variance_initializer",
        *_variables("beta", "gamma"),
    },
    fused=(None, True, False),
    renorm=(False,),
    virtual_batch_size=(None,),
)
#: Every layer that converts: what is read of its configuration.
LAYERS: dict[str, Signature] = {
    "Activation": _layer("activation"),
    "ActivityRegularization": _layer(inert=["l1", "l2", "activity_regularizer"]),
    "Add": _layer(),
    "AlphaDropout": _layer(inert=["rate", "noise_shape", "seed"]),
    "BatchNormalization": _BATCH_NORM,
    "BatchNormalizationV1": _BATCH_NORM,
    "BatchNormalizationV2": _BATCH_NORM,
    "Concatenate": _layer("axis"),
    "Conv2D": _CONV,
    "Dense": _DENSE,
    "DepthwiseConv2D": _DEPTHWISE,
    "Dropout": _layer(inert=["rate", "noise_shape", "seed"]),
    "Flatten": _layer("data_format"),
    "GaussianDropout": _layer(inert=["rate", "seed"]),
    "GaussianNoise": _layer(inert=["stddev", "seed"]),
    "InputLayer": _layer(sparse=(False, None), ragged=(False, None), optional=(False,)),
    "LeakyReLU": _layer("alpha", "negative_slope"),
    "MaxPooling2D": _layer("pool_size", "strides", "padding", "data_format"),
    "Normalization": _layer("axis", "mean", "variance", invert=(False,)),
    "PReLU": _layer("shared_axes", inert=_variables("alpha")),
    "QuantConv2D": _CONV.and_reads("input_quantizer", "kernel_quantizer", "pad_values"),
    "QuantDense": _DENSE.and_reads("input_quantizer", "kernel_quantizer"),
    "QuantDepthwiseConv2D": _DEPTHWISE.and_reads("input_quantizer", "depthwise_quantizer", "pad_values"),
    "ReLU": _layer("max_value", "negative_slope", "threshold"),
    "Rescaling": _layer("scale", "offset"),
    "Sign": Signature.of(inert=["name"]),
    "Softmax": _layer("axis"),
    "SpatialDropout2D": _layer(inert=["rate", "noise_shape", "seed", "data_format"]),
    **{name: _layer(inert=["clip_value"] if name == "SteSign" else []) for name in ("ApproxSign", "SteSign")},
    "SwishSign": _layer(inert=["beta"]),
}
#: Quantizers that convert: `clip_value` and `beta` shape the gradient alone, `precision` is a note to Bop.
QUANTIZERS: dict[str, Signature] = {
    **{name: LAYERS[name] for name in SIGN_LAYERS},
    "MagnitudeAwareSign": _layer(inert=["clip_value"]),
    "NoOp": _layer(inert=["precision"]),
}
#: Layers that may stand as another layer's activation.
ACTIVATION_LAYERS = {"LeakyReLU", "ReLU", "Softmax", *SIGN_LAYERS}
#: The arguments of a call, beside its input.
CALL = Signature.of(training=(None, False), mask=(None,))
#: By class, the names of a call's positional arguments after the input.
POSITIONAL = {
    **dict.fromkeys(_BATCH_NORMS, ("training", "mask")),
    **dict.fromkeys(DROPOUTS, ("training",)),
    "Softmax": ("mask",),
}
#: What stands beside a layer's configuration. The shape that it was built for follows from its input.
ENTRY = Signature.of(
    ["class_name", "config", "name", "inbound_nodes", "module", "registered_name"],
    ["build_config", "compile_config", "shared_object_id"],
)
#: What stands beside the outermost model's configuration.
ROOT = Signature.of(
    ["class_name", "config", "name", "module", "registered_name", "build_config"],
    ["backend", "compile_config", "keras_version", "shared_object_id"],
)
SEQUENTIAL = Signature.of(["name", "layers", "build_input_shape", "dtype"], ["trainable"])
FUNCTIONAL = Signature.of(["name", "layers", "input_layers", "output_layers", "dtype"], ["trainable"])
#: What a record of a function, quantizer or dtype policy may hold.
RECORD = Signature.of(
    ["class_name", "config", "module", "registered_name"],
    ["build_config", "shared_object_id", "__passive_serialization__"],
)
#: The types in which the pixels 0..255 are themselves.
INPUT_DTYPES = {"float16", "float32", "float64", "int16", "int32", "int64", "uint8", "uint16"}
#: The packages whose classes are read; `builtins` is what Keras writes for a plain function.
PACKAGES = {"builtins", "keras", "keras_core", "larq", "tensorflow", "tf_keras"}

OWN_CODE = "its code is not in the file"
#: What to do about layers that people use; anything else gets the general advice.
ADVICE = {
    "AveragePooling2D": "average pools are not read; train with MaxPooling2D in its place",
    "Clip": "of Keras 3's functions sign alone is read; a clip around 0 right before a sign changes nothing",
    "GlobalAveragePooling2D": "average pools are not read; train with Flatten and QuantDense in its place",
    "GlobalMaxPooling2D": "use MaxPooling2D with the size of the plane, then Flatten: the same network",
    "GreaterEqual": "of Keras 3's functions sign alone is read; keras.ops.sign says the same where the value "
    "is never 0, and larq.quantizers.SteSign everywhere",
    "Lambda": f"{OWN_CODE} as a layer and is never run; use a layer of Keras or Larq",
    "QuantSeparableConv2D": "use QuantDepthwiseConv2D and QuantConv2D, with input quantizers",
    "Reshape": "a reshape is not read; feed the network images of the shape that it makes, and use Flatten "
    "where it makes one row of features",
    "SeparableConv2D": "use DepthwiseConv2D and Conv2D, with signs before them",
    "SlicingOpLambda": "slices of tensors are not read",
    "TFOpLambda": "operations of the graph are not read; use layers: Rescaling for x * scale + offset, Add, "
    "Concatenate, SteSign",
    "Where": "of Keras 3's functions sign alone is read; keras.ops.sign says the same where the value is "
    "never 0, and larq.quantizers.SteSign everywhere",
    "ZeroPadding2D": "padding by a layer of its own is not read; where it is what padding='same' does, say "
    "so in the convolution",
}
RANDOM = (
    "augmentation does nothing at inference: leave it out of the saved model, and keep it in the data "
    "pipeline or in another model that shares the other layers"
)
QKERAS = (
    "layers of QKeras are not read",
    "build the network of Larq's layers, or describe it to cbin_nn.convert as a dict",
)
#: What to do about an argument that is not honoured.
OPTION_ADVICE = {
    "lora_alpha": "merge the low-rank weights into the kernel and save a model without them",
    "lora_rank": "merge the low-rank weights into the kernel and save a model without them",
    "mask": "masks are not read; call the layer without one",
    "quantization_config": "save the model before quantize()",
    "ragged": "feed images of one shape",
    "sparse": "feed dense images",
}
#: Models: their layers are resolved.
MODELS = {"Sequential", "Functional", "Model"}


def is_known(name: str) -> bool:
    """Whether a layer, quantizer or function of this name is read."""
    return name in LAYERS or name in QUANTIZERS or name in _FUNCTIONS or name in MODELS
