"""The calls of a Keras model, in an order in which inputs exist: Sequential and Functional records, models
inside models resolved, of Keras 2 and 3."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ...errors import ConversionError
from . import signatures as tables
from .layer import Layer, as_record, check_dtype, class_name_of, foreign_of, optional_record, snake_case

__all__ = ["MAX_CONFIG", "LayerCall", "Network", "read_architecture", "read_network"]

MAX_CONFIG = 2**26


#: Models inside models, and calls of shared layers.
_MAX_DEPTH = 20


_MAX_CALLS = 20_000


@dataclass(frozen=True)
class LayerCall:
    """A layer applied to tensors; `inputs` are numbers of earlier calls."""

    layer: Layer
    inputs: tuple[int, ...]
    #: What the call was given beside its input.
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass
class Network:
    """The calls of a model in topological order, models inside it resolved."""

    name: str
    calls: list[LayerCall]
    output: int
    #: The shape that the model was built with, batch first, or None.
    build_shape: Any


def read_architecture(text: str) -> Network:
    """The calls of a model's JSON."""
    if len(text) > MAX_CONFIG:
        raise ConversionError("damaged-file", "the architecture is too long")
    return read_network(as_record(json.loads(text), "the architecture"))


def read_network(model: dict[str, Any]) -> Network:
    """The calls of a model's record (class_name, config)."""
    calls: list[LayerCall] = []
    config = _model_config(model)
    root = Layer(
        class_name_of(model["class_name"]), str(config.get("name", "model"))[:200], config, 0, [], [], 0
    )
    root.require(tables.ROOT, model)
    origin = foreign_of(model)
    if origin:
        raise root.refuse("unsupported-model", f"a model of a class from {origin}; {tables.OWN_CODE}")
    _check_model(root)
    outputs = _resolve(model, (), [], calls)
    if len(outputs) != 1:
        names = ", ".join(repr(calls[i].layer.name) for i in outputs[:8])
        raise ConversionError(
            "unsupported-model",
            f"the model has {len(outputs)} outputs, {names}; one converts: save "
            "keras.Model(model.input, model.get_layer(NAME).output)",
        )
    inputs = [call for call in calls if call.layer.class_name == "InputLayer" and not call.inputs]
    if len(inputs) > 1:
        raise ConversionError("unsupported-model", f"the model has {len(inputs)} inputs; one image converts")
    name = config.get("name")
    build = config.get("build_input_shape", optional_record(model.get("build_config")).get("input_shape"))
    return Network(name if isinstance(name, str) else "model", calls, outputs[0], build)


def _model_config(model: dict[str, Any]) -> dict[str, Any]:
    kind = class_name_of(model.get("class_name"))
    config = model.get("config")
    if kind == "Sequential" and isinstance(config, list):  # Keras before 2.2.3
        config = {"name": "sequential", "layers": config}
    config = as_record(config, "the model's config")
    if kind not in tables.MODELS:
        raise ConversionError(
            "unsupported-model",
            f"a model of class {kind}; only Sequential and Functional models convert",
        )
    return config


def _check_model(layer: Layer) -> None:
    """Refuses what a model's own record says and nobody reads."""
    if layer.foreign:
        raise layer.refuse("unsupported-model", f"a model of a class from {layer.foreign}; {tables.OWN_CODE}")
    layer.require(tables.SEQUENTIAL if layer.class_name == "Sequential" else tables.FUNCTIONAL, layer.config)
    check_dtype(layer)


def _resolve(
    model: dict[str, Any], parents: tuple[Layer, ...], given: list[int], calls: list[LayerCall]
) -> list[int]:
    """Appends the calls of a model applied to `given` (nothing for the outermost); returns its outputs."""
    if len(parents) > _MAX_DEPTH:
        raise ConversionError("damaged-file", "models are nested too deeply")
    config = _model_config(model)
    entries = config.get("layers")
    if not isinstance(entries, list) or not entries:
        raise ConversionError("damaged-file", "the model has no list of layers")
    layers, records, siblings, weighted = [], [], list[str](), list[bool]()
    for i, item in enumerate(entries):
        entry = as_record(item, f"layer number {i}")
        class_name = class_name_of(entry.get("class_name"))
        settings = entry.get("config")
        if class_name == "Sequential" and isinstance(settings, list):
            settings = {"layers": settings}
        settings = as_record(settings, f"the config of layer number {i}")
        name = entry.get("name", settings.get("name", f"{snake_case(class_name)}_{i}"))
        if not isinstance(name, str) or not 0 < len(name) < 200:
            raise ConversionError("damaged-file", f"the name of layer number {i} is {str(name)[:80]!r}")
        rank, origin = siblings.count(class_name), foreign_of(entry)
        layer = Layer(class_name, name, settings, rank, siblings, weighted, i, parents, origin)
        layer.require(tables.ENTRY, entry)
        layers.append(layer)
        siblings.append(class_name)
        weighted.append(_has_weights(class_name, settings))
        records.append(entry)
    if len({layer.name for layer in layers}) != len(layers):
        raise ConversionError("damaged-file", "two layers have the same name")

    def call(layer: Layer, record: dict[str, Any], inputs: list[int], arguments: dict[str, Any]) -> int:
        if len(calls) > _MAX_CALLS:
            raise ConversionError("damaged-file", "the model has too many layers")
        if layer.class_name in tables.MODELS:
            _check_model(layer)
            layer.require(tables.CALL, arguments, "called with ")
            outputs = _resolve(record, (*parents, layer), inputs, calls)
            if len(outputs) != 1:
                raise layer.refuse("unsupported-model", "a model inside the model must have one output")
            return outputs[0]
        calls.append(LayerCall(layer, tuple(inputs), arguments))
        return len(calls) - 1

    if class_name_of(model.get("class_name")) == "Sequential":
        current = list(given)
        for layer, record in zip(layers, records, strict=True):
            current = [call(layer, record, current, {})]
        return current
    return _resolve_functional(config, layers, records, given, call)


def _has_weights(class_name: str, config: dict[str, Any], depth: int = 0) -> bool:
    if class_name == "Normalization" and config.get("mean") is not None:
        return False
    if class_name not in tables.MODELS or depth > _MAX_DEPTH:
        return class_name in tables.WEIGHTED
    entries = config.get("layers")
    return any(
        _has_weights(class_name_of(entry.get("class_name")), optional_record(entry.get("config")), depth + 1)
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict)
    )


def _resolve_functional(
    config: dict[str, Any],
    layers: list[Layer],
    records: list[dict[str, Any]],
    given: list[int],
    call: Callable[[Layer, dict[str, Any], list[int], dict[str, Any]], int],
) -> list[int]:
    """Calls of a Functional model in an order in which inputs exist."""
    by_name = {layer.name: layer for layer in layers}
    #: (layer, which of its calls) -> number of the call.
    made: dict[tuple[str, int], int] = {}
    if given:
        names = [name for name, _ in _references(config.get("input_layers"))]
        if len(names) != len(given) or not all(name in by_name for name in names):
            raise ConversionError("unsupported-model", f"a model inside the model has {len(names)} inputs")
        for layer, record in zip(layers, records, strict=True):
            if layer.name in names:
                made[layer.name, 0] = call(layer, record, [given[names.index(layer.name)]], {})
    #: (layer, its record, which of its calls, what it reads, its other arguments).
    waiting: list[tuple[Layer, dict[str, Any], int, list[tuple[str, int]], dict[str, Any]]] = []
    for layer, record in zip(layers, records, strict=True):
        nodes = record.get("inbound_nodes")
        nodes = nodes if isinstance(nodes, list) else []
        if layer.class_name == "InputLayer":
            if (layer.name, 0) not in made:
                made[layer.name, 0] = call(layer, record, [], {})
            continue
        if not nodes:
            raise layer.refuse("damaged-file", "nothing is connected to it")
        for i, node in enumerate(nodes):
            sources, arguments = _node(layer, node)
            missing = [name for name, _ in sources if name not in by_name]
            if not sources or missing:
                raise layer.refuse(
                    "damaged-file", f"it is connected to {missing[:1] or 'nothing'}, which is no layer"
                )
            waiting.append((layer, record, i, sources, arguments))
    outputs = _references(config.get("output_layers"))
    # A model that was built with an input counts its own construction as call 0, which the file does not
    # list. Every call that it lists is read by something, so the last number tells.
    last: dict[str, int] = {}
    for name, i in [*(reference for item in waiting for reference in item[3]), *outputs]:
        last[name] = max(last.get(name, 0), i)
    listed = {layer.name: 0 for layer in layers}
    for layer, _, i, _, _ in waiting:
        listed[layer.name] = i + 1
    offset = {
        layer.name: int(last.get(layer.name, 0) == listed[layer.name])
        for layer in layers
        if layer.class_name in tables.MODELS
    }

    def source(reference: tuple[str, int]) -> tuple[str, int]:
        return reference[0], reference[1] - offset.get(reference[0], 0)

    while waiting:
        ready = [item for item in waiting if all(source(reference) in made for reference in item[3])]
        if not ready:
            raise waiting[0][0].refuse("damaged-file", "its inputs are never made: the layers form a circle")
        for layer, record, i, sources, arguments in ready:
            inputs = [made[source(reference)] for reference in sources]
            made[layer.name, i] = call(layer, record, inputs, arguments)
        waiting = [item for item in waiting if (item[0].name, item[2]) not in made]
    missing = [name for name, i in outputs if source((name, i)) not in made]
    if not outputs or missing:
        raise ConversionError(
            "damaged-file", f"the model's output is {missing[:1] or 'nothing'}, which no layer makes"
        )
    return [made[source(output)] for output in outputs]


def _node(layer: Layer, node: Any) -> tuple[list[tuple[str, int]], dict[str, Any]]:
    """What one call of a layer reads, as (layer, which of its calls), and its other arguments.

    Keras 2: `["conv", 0, 0, {"training": true}]`, one for each input tensor, in lists of any depth, each with
    all the other arguments. Keras 3: `{"args": [...], "kwargs": {...}}`, tensors as records with
    `keras_history: ["conv", 0, 0]`.
    """
    if isinstance(node, dict):
        args, arguments = node.get("args", []), dict(optional_record(node.get("kwargs")))
        if not isinstance(args, list) or set(node) - {"args", "kwargs"}:
            raise layer.refuse("damaged-file", "its connections are not those of a Keras 3 model")
        names = tables.POSITIONAL.get(layer.class_name, ())
        for i, value in enumerate(args[1:]):
            arguments[names[i] if i < len(names) else f"argument {i + 2}"] = value
        return _references(args[:1], layer), arguments
    arguments = {}
    return _references(node, layer, arguments), arguments


def _references(
    value: Any, layer: Layer | None = None, arguments: dict[str, Any] | None = None, depth: int = 0
) -> list[tuple[str, int]]:
    """The tensors in a nest of Keras, as (layer, which of its calls).

    Args:
        value: tensors in lists or in a dict (which Keras flattens by sorted keys).
        layer: what reads them: a constant among them is then an error.
        arguments: where the arguments that Keras 2 writes behind a tensor go.
        depth: how deep the nest is already.
    """
    if depth > 8:
        raise ConversionError("damaged-file", "a layer's connections are nested too deeply")
    if isinstance(value, dict):
        history = optional_record(value.get("config")).get("keras_history", value.get("keras_history"))
        parts = [value[key] for key in sorted(value)] if history is None else [history]
    elif isinstance(value, list):
        if len(value) >= 3 and isinstance(value[0], str) and all(_is_index(v) for v in value[1:3]):
            if value[2] != 0:
                raise ConversionError("unsupported-model", f"layer {value[0]!r} has several outputs")
            if arguments is not None and len(value) > 3:
                arguments.update(optional_record(value[3]))
            return [(value[0], value[1])]
        parts = value
        if value[:2] == ["_CONSTANT_VALUE", -1]:
            parts = value[2:3]
            if layer is not None:
                raise layer.refuse("unsupported-option", _constant(value[2:3]))
    else:
        if layer is not None:
            raise layer.refuse("unsupported-option", _constant([value]))
        return []
    return [reference for item in parts for reference in _references(item, layer, arguments, depth + 1)]


def _constant(value: list[Any]) -> str:
    return (
        f"one of its inputs is a constant, {str(value[0] if value else None)[:60]}, which is not read; "
        "use Rescaling, or a bias, to add or multiply by one"
    )


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
