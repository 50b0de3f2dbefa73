r"""A tensor program, as PyTorch and ONNX write one: the common form of both routes, before it becomes a
graph.

Importers (`onnx`, `torch_export`) translate names and attributes into the vocabulary below and nothing else.
What the operations mean together is decided here, on the program, and in `translate`:

- `simplify` follows aliases (identity, detach, dropout at inference), gives equal expressions one name,
  rewrites the straight-through trick `(A - B) + B` to `A`, and drops what the output does not need (the
  surrogate of a gradient, for instance). The trick must go before constants are folded, since in floating
  point it rounds.
- `ConstantFolder` evaluates the part of a program that does not depend on the input (`sign(W)`, `mean|W| *
sign(W)`,
  shape arithmetic), in float32 as the framework would.

Tensors here are as in the source: usually NCHW, batch first.

| operation | inputs | attributes |
|---|---|---|
| conv2d | x, weight (O, I/groups, kh, kw), [bias] | strides, padding (top, left, bottom, right), dilation,
groups |
| linear | x, weight (units, features), [bias] | |
| matmul | x, weight (features, units) | |
| max_pool2d | x | kernel, strides, padding, dilation, ceil_mode |
| batch_norm | x, gamma, beta, mean, variance | epsilon |
| prelu | x, slope | |
| leaky_relu | x | slope |
| clip | x, [constants, named in `limits`] | low, high; limits |
| add, sub, mul, div, neg, abs, sign, sqrt, pow, maximum, minimum | one or two | |
| compare | two | relation: ge, gt, le, lt |
| where | condition, if true, if false | |
| cast | x | dtype (a NumPy name) |
| flatten; reshape | x; x, shape | start, end |
| permute, squeeze, unsqueeze, expand | x, ... | axes |
| mean, sum | x | axes (None is all), keepdims |
| softmax | x | axis, log |
| identity | x | dropped: why it does nothing, or absent |
| shape, gather, concat, slice | | axis |
| unsupported | any | name, reason |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConversionError

__all__ = ["MAX_ELEMENTS", "ConstantFolder", "Operation", "Program", "simplify"]

Array = npt.NDArray[Any]

#: Elements of one constant; beyond that nothing here fits a microcontroller, and a file is hostile.
MAX_ELEMENTS = 2**28


@dataclass(frozen=True)
class Operation:
    """One operation. `layer` is what messages and reports call it: a module's path where there is one."""

    kind: str
    layer: str
    inputs: tuple[str, ...]
    output: str
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass
class Program:
    """Operations in topological order, one input image, one output."""

    name: str
    input: str
    #: As in the source, batch included; a dimension that is not fixed is 1.
    input_shape: tuple[int, ...]
    constants: dict[str, Array]
    operations: list[Operation]
    output: str
    notes: list[str] = field(default_factory=list)
    #: Whose words messages use: "torch" or "onnx".
    framework: str = ""
    #: True where operations have no module path, so that layers are better named after their parameters.
    name_by_parameters: bool = False

    def check(self) -> None:
        """Names are made once and before they are read.

        Raises:
            ConversionError: they are not.
        """
        known = {self.input, *self.constants}
        for operation in self.operations:
            missing = [name for name in operation.inputs if name not in known]
            if missing:
                raise ConversionError(
                    "bad-graph", f"it reads {missing[0]!r}, which nothing makes", layer=operation.layer
                )
            if operation.output in known:
                raise ConversionError("bad-graph", f"tensor {operation.output!r} is made twice")
            known.add(operation.output)
        if self.output not in known:
            raise ConversionError("bad-graph", f"the output {self.output!r} is made by no operation")


# ------------------------------------------------------------------------------------------------
# rewriting


def _key(operation: Operation, inputs: tuple[str, ...]) -> Any:
    """What two equal expressions share, or None where that can't be told."""
    try:
        key = (operation.kind, inputs, tuple(sorted((k, repr(v)) for k, v in operation.attributes.items())))
    except TypeError:
        return None
    return key


def simplify(program: Program) -> Program:
    """The same function with aliases followed, equal expressions merged, straight-through tricks removed and
    nothing that the output does not need."""
    program.check()
    alias: dict[str, str] = {}
    seen: dict[Any, str] = {}
    made: dict[str, Operation] = {}
    kept: list[Operation] = []
    notes = list(program.notes)
    equal_constants: dict[tuple[Any, ...], str] = {}
    for name, array in program.constants.items():
        if array.size == 1:  # scalars are repeated by some exporters
            key = (array.dtype.str, array.shape, array.tobytes())
            alias[name] = equal_constants.setdefault(key, name)

    def resolve(name: str) -> str:
        return alias.get(name, name)

    def surrogate(operation: Operation) -> str | None:
        """A where the operation is `(A - B) + B` or `B + (A - B)`: a gradient's detour."""
        if operation.kind != "add" or len(operation.inputs) != 2:
            return None
        first, second = operation.inputs
        for difference, other in ((first, second), (second, first)):
            inner = made.get(difference)
            if inner is not None and inner.kind == "sub" and inner.inputs[1] == other:
                return inner.inputs[0]
        return None

    for operation in program.operations:
        inputs = tuple(resolve(name) for name in operation.inputs)
        operation = replace(operation, inputs=inputs)
        if operation.kind == "identity":
            if "dropped" in operation.attributes:
                notes.append(f"layer {operation.layer!r} dropped: {operation.attributes['dropped']}")
            alias[operation.output] = inputs[0]
            continue
        target = surrogate(operation)
        if target is not None:
            alias[operation.output] = target
            continue
        key = _key(operation, inputs)
        if key is not None and key in seen:
            alias[operation.output] = seen[key]
            continue
        if key is not None:
            seen[key] = operation.output
        made[operation.output] = operation
        kept.append(operation)

    output = resolve(program.output)
    needed = {output}
    for operation in reversed(kept):
        if operation.output in needed:
            needed.update(operation.inputs)
    return Program(
        program.name,
        program.input,
        program.input_shape,
        {name: array for name, array in program.constants.items() if name in needed},
        [operation for operation in kept if operation.output in needed],
        output,
        list(dict.fromkeys(notes)),
        program.framework,
        program.name_by_parameters,
    )


# ------------------------------------------------------------------------------------------------
# constants


def _axes(value: Any) -> tuple[int, ...] | None:
    return None if value is None else tuple(int(axis) for axis in value)


def _reduce(function: Callable[..., Any], x: Array, attributes: dict[str, Any]) -> Array:
    return np.asarray(
        function(x, axis=_axes(attributes.get("axes")), keepdims=bool(attributes.get("keepdims", True)))
    )


def _reshape(x: Array, shape: Iterable[int]) -> Array:
    wanted = [x.shape[i] if side == 0 and i < x.ndim else int(side) for i, side in enumerate(shape)]
    return x.reshape(wanted)


_RELATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "ge": np.greater_equal,
    "gt": np.greater,
    "le": np.less_equal,
    "lt": np.less,
}

_EVALUATORS: dict[str, Callable[[list[Array], dict[str, Any]], Array]] = {
    "add": lambda x, a: x[0] + x[1],
    "sub": lambda x, a: x[0] - x[1],
    "mul": lambda x, a: x[0] * x[1],
    "div": lambda x, a: x[0] / x[1] if x[0].dtype.kind == "f" or x[1].dtype.kind == "f" else x[0] // x[1],
    "neg": lambda x, a: -x[0],
    "abs": lambda x, a: np.abs(x[0]),
    "sign": lambda x, a: np.sign(x[0]),
    "sqrt": lambda x, a: np.sqrt(x[0]),
    "pow": lambda x, a: np.power(x[0], x[1]).astype(x[0].dtype),
    "tanh": lambda x, a: np.tanh(x[0]),
    "maximum": lambda x, a: np.maximum(x[0], x[1]),
    "minimum": lambda x, a: np.minimum(x[0], x[1]),
    "clip": lambda x, a: _clip(x, a),
    "bipolar": lambda x, a: np.where(x[0] >= 0, x[1], -x[1]),
    "compare": lambda x, a: np.asarray(_RELATIONS[a["relation"]](x[0], x[1])),
    "where": lambda x, a: np.where(x[0], x[1], x[2]),
    "cast": lambda x, a: x[0].astype(a["dtype"]),
    "mean": lambda x, a: _reduce(np.mean, x[0], a).astype(x[0].dtype),
    "sum": lambda x, a: _reduce(np.sum, x[0], a).astype(x[0].dtype),
    "reshape": lambda x, a: _reshape(x[0], x[1].reshape(-1).tolist()),
    "flatten": lambda x, a: x[0].reshape(*x[0].shape[: a["start"]], -1),
    "permute": lambda x, a: x[0].transpose(a["axes"]),
    "squeeze": lambda x, a: np.squeeze(x[0], _axes(a.get("axes"))),
    "unsqueeze": lambda x, a: np.expand_dims(x[0], _axes(a["axes"]) or ()),
    "expand": lambda x, a: np.broadcast_to(
        x[0], np.broadcast_shapes(x[0].shape, tuple(int(v) for v in x[1].reshape(-1)))
    ),
    "shape": lambda x, a: np.array(x[0].shape[a.get("start", 0) : a.get("end")], np.int64),
    "gather": lambda x, a: np.take(x[0], x[1].astype(np.int64), axis=a.get("axis", 0)),
    "concat": lambda x, a: np.concatenate(x, axis=a.get("axis", 0)),
    "slice": lambda x, a: _slice(*x),
}


def _clip(x: list[Array], attributes: dict[str, Any]) -> Array:
    limits = dict(zip(attributes.get("limits", ()), x[1:], strict=True))
    low, high = (limits.get(end, attributes.get(end)) for end in ("low", "high"))
    return np.asarray(np.clip(x[0], low, high)).astype(x[0].dtype)


def _slice(
    x: Array, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None
) -> Array:
    places = range(len(starts)) if axes is None else axes.tolist()
    index = [slice(None)] * x.ndim
    for i, axis in enumerate(places):
        index[axis] = slice(int(starts[i]), int(ends[i]), None if steps is None else int(steps[i]))
    return x[tuple(index)]


def _size_after(operation: Operation, inputs: list[Array]) -> int:
    """An upper bound of the elements of a result, before it is made."""
    if operation.kind == "expand":
        return math.prod(max(1, abs(int(v))) for v in inputs[1].reshape(-1)[:8].tolist()) * inputs[0].size
    try:
        return math.prod(np.broadcast_shapes(*(x.shape for x in inputs)))
    except ValueError:
        return sum(x.size for x in inputs)


class ConstantFolder:
    """Values of the tensors of a program that do not depend on its input.

    Evaluated in the program's order, so that a deep chain does not recurse.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self._values: dict[str, Array | None] = dict(program.constants)
        self._values[program.input] = None
        self._order = {operation.output: i for i, operation in enumerate(program.operations)}
        self._done = 0

    def value(self, name: str) -> Array | None:
        """The value of a tensor, or None where it depends on the input.

        Raises:
            ConversionError: its expression can't be evaluated.
        """
        while self._done <= self._order.get(name, -1):
            operation = self.program.operations[self._done]
            self._done += 1
            if operation.output not in self._values:
                self._values[operation.output] = self._evaluate(operation)
        return self._values.get(name)

    def know(self, name: str, value: Array) -> None:
        """States a value that follows from more than constants: a tensor's shape."""
        self._values[name] = value

    def _evaluate(self, operation: Operation) -> Array | None:
        if operation.kind not in _EVALUATORS:
            return None
        known = []
        for name in operation.inputs:
            value = self._values.get(name)
            if value is None:
                return None
            known.append(value)
        if _size_after(operation, known) > MAX_ELEMENTS:
            raise ConversionError("damaged-file", "its constant is too large", layer=operation.layer)
        try:
            with np.errstate(all="ignore"):
                return np.asarray(_EVALUATORS[operation.kind](known, operation.attributes))
        except (ValueError, TypeError, IndexError, KeyError) as error:
            raise ConversionError(
                "damaged-file", f"its constants do not fit together ({error})", layer=operation.layer
            ) from error
