"""A layer's record in a Keras architecture, and its options, each checked when it is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...errors import ConversionError
from ..graph import Float32, Shape
from ..signatures import Signature
from ..weights import same_padding
from . import signatures as tables

__all__ = [
    "Layer",
    "advice_for",
    "along_channels",
    "as_number",
    "as_record",
    "as_text",
    "batch_shape_of",
    "check_dtype",
    "class_name_of",
    "dtype_of",
    "flag_of",
    "foreign_of",
    "function_name",
    "is_last",
    "is_size",
    "number_of",
    "optional_record",
    "padding_of",
    "pair_of",
    "plain_value",
    "quantizer_of",
    "require_channels_last",
    "size_of",
    "snake_case",
]


@dataclass(frozen=True)
class Layer:
    """One entry of the architecture: class, config, and where its weights are."""

    class_name: str
    name: str
    config: dict[str, Any]
    #: Position among the layers of the same class in its model.
    rank: int
    #: The classes of the layers of its model, in order.
    siblings: list[str]
    #: Whether each of them has weights, a model inside included.
    weighted: list[bool]
    #: Its own place among them.
    index: int
    #: The models that it is inside of, outermost first.
    parents: tuple[Layer, ...] = ()
    #: Where its class is from if it is not Keras' or Larq's own, else empty.
    foreign: str = ""

    def refuse(self, slug: str, reason: str, advice: str = "") -> ConversionError:
        """An error that names the layer."""
        return ConversionError(slug, reason, layer=self.name, kind=self.class_name, advice=advice)

    def require(self, signature: Signature, given: Mapping[str, Any], prefix: str = "") -> None:
        """Refuses what `signature` does not honour of `given`; `prefix` says whose arguments they are."""
        unread = signature.unread(given)
        if unread:
            raise self.refuse("unsupported-option", prefix + _unread(signature, unread))


def _unread(signature: Signature, unread: list[tuple[str, Any]]) -> str:
    """Arguments that are not honoured, each with its value and what to do."""
    parts = []
    for name, value in unread[:8]:
        if name == "training":
            advice = "what it computes then depends on the batch or on chance; call it without"
        elif name in tables.OPTION_ADVICE:
            advice = tables.OPTION_ADVICE[name]
        elif name in signature.neutral:
            advice = f"only {' or '.join(map(repr, signature.neutral[name]))} converts"
        else:
            advice = "the reader does not know this argument, so what it does would be lost; build it without"
        parts.append(f"{str(name)[:60]}={str(value)[:60]}: {advice}")
    return "; ".join(parts)


def as_text(value: Any) -> str:
    """Text of a file, which may be bytes there."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, str):
        return value
    raise ConversionError("damaged-file", f"expected text in the file, found {type(value).__name__}")


def snake_case(name: str) -> str:
    """Keras' `to_snake_case` (keras/src/saving/saving_lib.py)."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def as_record(value: Any, what: str) -> dict[str, Any]:
    """A record; `what` is what messages call it."""
    if not isinstance(value, dict):
        raise ConversionError("damaged-file", f"{what} is not a record but {type(value).__name__}")
    return value


def class_name_of(value: Any) -> str:
    """The class without its package, as in `Larq>QuantConv2D`."""
    if not isinstance(value, str) or not value:
        raise ConversionError("damaged-file", f"a layer's class name is {value!r}")
    return value.rsplit(">", 1)[-1]


def foreign_of(record: Mapping[str, Any]) -> str:
    """Where a record's class or function is from if that is not Keras or Larq, else an empty string.

    A class of the user's own may have the name of a known one. Keras writes the package that it was
    registered under, `MyPackage>Dense`, and since TensorFlow 2.12 its module, null for a script's own.
    """
    for key in ("class_name", "registered_name", "config"):
        value = record.get(key)
        if isinstance(value, str) and ">" in value and value.split(">")[0].lower() not in tables.PACKAGES:
            return f"the package {value.split('>')[0][:60]!r}"
    if "module" not in record:
        return ""
    module, registered = record["module"], record.get("registered_name")
    if module is None:
        return "" if registered is None else "a script of your own"
    if not isinstance(module, str) or module.split(".")[0] not in tables.PACKAGES:
        return f"the module {str(module)[:60]!r}"
    return ""


def optional_record(value: Any) -> dict[str, Any]:
    """A record, or an empty one in its place."""
    return value if isinstance(value, dict) else {}


def advice_for(layer: Layer) -> str:
    """What to do about a layer that is not read."""
    if layer.class_name.startswith("Random"):
        return tables.RANDOM
    general = f"supported layers are {', '.join(sorted(set(tables.LAYERS) - tables.OPERATIONS))}"
    return tables.ADVICE.get(layer.class_name, general)


def batch_shape_of(layer: Layer, otherwise: Any) -> Any:
    """The shape that a layer states for its input, batch first."""
    config = layer.config
    return config.get("batch_input_shape", config.get("batch_shape", otherwise))


def dtype_of(layer: Layer) -> tuple[str, str]:
    """A layer's type and how to show it: a name, or a policy of any Keras; "" for a policy that is none."""
    dtype = layer.config.get("dtype")
    if isinstance(dtype, dict):
        settings = optional_record(dtype.get("config"))
        plain = class_name_of(dtype.get("class_name")) in ("DTypePolicy", "Policy") and not foreign_of(dtype)
        shown = f"{dtype.get('class_name')}({', '.join(f'{k}={v!r}' for k, v in settings.items())})"
        dtype = settings.get("name") if plain and set(settings) == {"name"} else shown
    else:
        shown = repr(dtype)
        dtype = "float32" if dtype is None else dtype
    return dtype if isinstance(dtype, str) else "", shown[:100]


def check_dtype(layer: Layer) -> None:
    """Refuses every type but float32."""
    name, shown = dtype_of(layer)
    if name != "float32":
        raise layer.refuse(
            "unsupported-option",
            f"dtype={shown}: it rounds or quantizes what it computes, and only float32 layers are read; "
            "build the model with the policy float32, give it these weights and save that",
        )


def is_last(axes: list[Any], shape: Shape) -> bool:
    """Whether `axes`, counted with the batch, are the last one alone."""
    return len(axes) == 1 and type(axes[0]) is int and axes[0] in (-1, len(shape))


def plain_value(value: Any) -> Any:
    """The value of a record that Keras makes of a NumPy scalar or array."""
    return optional_record(value.get("config")).get("value") if isinstance(value, dict) else value


def along_channels(layer: Layer, key: str, value: Any, shape: Shape) -> Float32:
    """One number a channel of a tensor of this shape, from one or as many in lists; as NumPy broadcasts them,
    along the last axis.
    """
    channels = shape[-1]
    value = value.tolist() if isinstance(value, np.ndarray) else plain_value(value)
    sides: list[int] = []
    inner = value
    while isinstance(inner, list) and inner and len(sides) <= len(shape):
        sides.append(len(inner))
        inner = inner[0]
    if any(side != 1 for side in sides[:-1]) or (sides and sides[-1] not in (1, channels)):
        raise layer.refuse(
            "unsupported-option",
            f"{key} has the shape {tuple(sides)}: one value, or one for each of the {channels} channels, "
            "converts",
        )
    flat = value
    for _ in sides[:-1]:
        flat = flat[0]
    numbers = [as_number(layer, key, item) for item in flat] if sides else [as_number(layer, key, flat)]
    result: Float32 = np.broadcast_to(np.array(numbers, np.float32), (channels,)).copy()
    return result


def is_size(value: Any) -> bool:
    """Whether a value is a positive 32-bit integer."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def size_of(layer: Layer, key: str) -> int:
    """An option that is a positive integer."""
    value = layer.config.get(key)
    if isinstance(value, int) and is_size(value):
        return value
    raise layer.refuse("damaged-file", f"{key}={str(value)[:60]}; expected a positive integer")


def pair_of(layer: Layer, key: str, default: tuple[int, int] | None = None) -> tuple[int, int]:
    """An option that is one positive integer or two."""
    value = layer.config.get(key, default)
    if isinstance(value, int):
        value = [value, value]
    if isinstance(value, (list, tuple)) and len(value) == 2 and all(is_size(item) for item in value):
        return int(value[0]), int(value[1])
    raise layer.refuse("damaged-file", f"{key}={str(value)[:60]}; expected two positive integers")


def as_number(layer: Layer, key: str, value: Any) -> float:
    """A finite number among a layer's options, plain or wrapped."""
    value = plain_value(value)  # Keras wraps NumPy scalars
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 3e38:
        return float(value)
    raise layer.refuse("damaged-file", f"{key}={str(value)[:60]}; expected a finite number")


def number_of(layer: Layer, key: str, default: float) -> float:
    """An option that is a finite number."""
    return as_number(layer, key, layer.config.get(key, default))


def flag_of(layer: Layer, key: str, default: bool) -> bool:
    """An option that is true or false."""
    value = layer.config.get(key, default)
    if isinstance(value, bool):
        return value
    raise layer.refuse("damaged-file", f"{key}={str(value)[:60]}; expected true or false")


def require_channels_last(layer: Layer) -> None:
    """Refuses planes whose channels come first."""
    value = layer.config.get("data_format", "channels_last")
    if value not in ("channels_last", None):
        raise layer.refuse("unsupported-option", f"data_format={value!r}; train with channels_last")


def padding_of(
    layer: Layer, shape: Shape, kernel: tuple[int, int], strides: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of a window on a plane of `shape`."""
    value = layer.config.get("padding", "valid")
    if value == "valid":
        return 0, 0, 0, 0
    if value == "same":
        top, bottom = same_padding(shape[0], kernel[0], strides[0], dilation[0])
        left, right = same_padding(shape[1], kernel[1], strides[1], dilation[1])
        return top, left, bottom, right
    raise layer.refuse("unsupported-option", f"padding={str(value)[:60]!r}; use 'same' or 'valid'")


def function_name(layer: Layer, key: str, value: Any) -> str | None:
    """The name of a function or quantizer given as null, string or record.

    Of a record, where the function is from is checked here; a quantizer's own arguments are `quantizer_of`'s.
    """
    if value is None:
        return None
    record = value if isinstance(value, dict) else {"class_name": value, "config": None}
    layer.require(tables.RECORD, record, f"{key} has ")
    name = record.get("config") if record.get("class_name") == "function" else record.get("class_name")
    if isinstance(name, str) and name:
        origin = foreign_of(record)
        if origin:
            raise layer.refuse(
                "unsupported-quantizer" if key.endswith("quantizer") else "unsupported-activation",
                f"{key} {name[:60]!r} is from {origin}, and {tables.OWN_CODE}; use one of Keras or Larq",
            )
        return name.rsplit(">", 1)[-1]
    raise layer.refuse("damaged-file", f"{key}={str(value)[:60]}; expected a name or a record")


def quantizer_of(layer: Layer, key: str) -> str | None:
    """The name of a layer's quantizer, its arguments checked; None where none is there or it does nothing."""
    value = layer.config.get(key)
    name = function_name(layer, key, value)
    if isinstance(value, dict) and name in tables.QUANTIZERS:
        settings = optional_record(value.get("config"))
        layer.require(tables.QUANTIZERS[name], settings, f"{key} has ")
        check_dtype(replace(layer, config=settings))
    return None if name in tables.NO_QUANTIZERS else name
