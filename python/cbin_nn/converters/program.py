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
  shape arithmetic), in the type that the framework computes in.

Tensors here are as in the source: usually NCHW, batch first.

**Types.** An importer whose source states the type of every tensor (`.pt2` files do) lists them in
`Program.types`; the arithmetic on constants is then done in the stated type of its result, which is the
framework's own promotion, and a value that comes out with another type or shape is an error. Where nothing is
stated (ONNX, whose operators take operands of one type), the operands' type is the result's.

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
| add, sub, mul, neg, abs, sign, sqrt, pow, maximum, minimum, remainder | one or two | |
| exp, exp2, log, log2, floor, ceil, trunc, round (half to even), tanh | one, of constants | |
| div | two | rounding: true, floor or trunc; absent: integers by trunc, others true (ONNX) |
| compare | two | relation: ge, gt, le, lt, eq, ne; computing: the type of the comparison, or absent |
| where | condition, if true, if false | |
| cast | x | dtype (a NumPy name) |
| flatten; reshape | x; x, shape | start, end: the axes that become one |
| permute, squeeze, unsqueeze, expand | x, ... | axes |
| mean, sum | x | axes (None is all), keepdims |
| variance | x | axes, keepdims, correction |
| softmax | x | axis, log |
| identity | x | dropped: why it does nothing, or absent |
| shape, gather, concat, slice | | axis |
| unsupported | any | name, reason; slug, or absent |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConversionError

__all__ = [
    "MAX_ELEMENTS",
    "ConstantFolder",
    "Operation",
    "Program",
    "TensorType",
    "computing_type",
    "simplify",
]

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


@dataclass(frozen=True)
class TensorType:
    """What a source states of a tensor: its type, and its shape with None for sides that it leaves open."""

    #: A NumPy name, or "bfloat16", whose values are kept as float32.
    dtype: str
    shape: tuple[int | None, ...]

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape is what is stated."""
        return len(shape) == len(self.shape) and all(
            stated in (None, side) for stated, side in zip(self.shape, shape, strict=True)
        )


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
    #: Name -> type, for the tensors whose type the source states.
    types: Mapping[str, TensorType] = field(default_factory=dict)
    #: The batch that the source was written down for, where it states one.
    batch: int | None = None

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
                # Not where the sum has another shape or rounds to another type than A.
                stated = program.types.get(inner.inputs[0]), program.types.get(operation.output)
                if stated[0] == stated[1]:
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
        program.types,
        program.batch,
    )


# ------------------------------------------------------------------------------------------------
# constants


#: What a type computes in: sums and products of half precision are made in float32 and rounded once.
_HALF = {"float16": "float32", "bfloat16": "float32"}

#: Kinds whose operands are brought to the stated type of the result before anything is computed.
_PROMOTING = {
    *("add", "sub", "mul", "div", "remainder", "pow", "maximum", "minimum", "neg", "abs", "sign", "sqrt"),
    *("exp", "exp2", "log", "log2", "floor", "ceil", "trunc", "round", "tanh", "leaky_relu"),
    *("clip", "mean", "sum", "variance", "concat"),
}


def computing_type(dtype: str) -> np.dtype[Any]:
    """The NumPy type in which arithmetic with results of `dtype` is done."""
    return np.dtype(_HALF.get(dtype, dtype))


class _NotComputed(Exception):
    """Why the value of a constant is not computed: the framework raises, or its answer is not defined."""


def _cast(x: Array, dtype: str) -> Array:
    """A value in another type, rounded half to even; bfloat16 is kept as float32.

    Raises:
        _NotComputed: a number has no place in an integer type.
    """
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
        nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
        return np.where(np.isnan(x), np.float32(np.nan), nearest).astype(np.float32).reshape(x.shape)
    target = np.dtype(dtype)
    if x.dtype.kind == "f" and target.kind in "iu":
        whole, limits = np.trunc(x), np.iinfo(target)
        if not np.all((whole >= limits.min) & (whole < float(limits.max) + 1)):
            raise _NotComputed(f"a number has no place in {dtype}")
    return x.astype(target)


def _axes(value: Any) -> tuple[int, ...] | None:
    return None if value is None else tuple(int(axis) for axis in value)


def _reduce(function: Callable[..., Any], x: Array, attributes: dict[str, Any], **options: Any) -> Array:
    """Summed in float64 and rounded once: frameworks sum in orders of their own, and this is between them."""
    wide = x.astype(np.float64) if x.dtype.kind == "f" else x
    axes, keep = _axes(attributes.get("axes")), bool(attributes.get("keepdims", True))
    return np.asarray(function(wide, axis=axes, keepdims=keep, **options)).astype(x.dtype)


def _reshape(x: Array, shape: Iterable[int]) -> Array:
    wanted = [x.shape[i] if side == 0 and i < x.ndim else int(side) for i, side in enumerate(shape)]
    return x.reshape(wanted)


def _divide(x: Array, y: Array, rounding: str | None) -> Array:
    integers = x.dtype.kind in "iub" and y.dtype.kind in "iub"
    if integers and not y.all() and rounding != "true":
        raise _NotComputed("an integer is divided by zero")
    if rounding == "true" or (rounding is None and not integers):
        return np.asarray(np.true_divide(x, y))
    if rounding == "floor":
        return np.asarray(np.floor_divide(x, y))
    if not integers:
        return np.asarray(np.trunc(np.true_divide(x, y)))
    quotient = np.floor_divide(x, y)
    below = (np.remainder(x, y) != 0) & ((x < 0) != (y < 0))
    return np.asarray(quotient + below.astype(quotient.dtype))


def _remainder(x: Array, y: Array) -> Array:
    if x.dtype.kind in "iu" and not y.all():
        raise _NotComputed("an integer is divided by zero")
    return np.asarray(np.remainder(x, y))


def _compare(x: list[Array], attributes: dict[str, Any]) -> Array:
    if "computing" in attributes:
        x = [_cast(value, attributes["computing"]) for value in x]
    return np.asarray(_RELATIONS[attributes["relation"]](x[0], x[1]))


def _flatten(x: Array, attributes: dict[str, Any]) -> Array:
    start, end = attributes["start"], attributes.get("end", -1) % max(1, x.ndim)
    return x.reshape(*x.shape[:start], -1, *x.shape[end + 1 :])


_RELATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "ge": np.greater_equal,
    "gt": np.greater,
    "le": np.less_equal,
    "lt": np.less,
    "eq": np.equal,
    "ne": np.not_equal,
}

_EVALUATORS: dict[str, Callable[[list[Array], dict[str, Any]], Array]] = {
    "add": lambda x, a: x[0] + x[1],
    "sub": lambda x, a: x[0] - x[1],
    "mul": lambda x, a: x[0] * x[1],
    "div": lambda x, a: _divide(x[0], x[1], a.get("rounding")),
    "remainder": lambda x, a: _remainder(x[0], x[1]),
    "neg": lambda x, a: -x[0],
    "abs": lambda x, a: np.abs(x[0]),
    "sign": lambda x, a: np.sign(x[0]),
    "sqrt": lambda x, a: np.sqrt(x[0]),
    "exp": lambda x, a: np.exp(x[0]),
    "exp2": lambda x, a: np.exp2(x[0]),
    "log": lambda x, a: np.log(x[0]),
    "log2": lambda x, a: np.log2(x[0]),
    "floor": lambda x, a: np.floor(x[0]),
    "ceil": lambda x, a: np.ceil(x[0]),
    "trunc": lambda x, a: np.trunc(x[0]),
    "round": lambda x, a: np.rint(x[0]),
    "pow": lambda x, a: np.power(x[0], x[1]).astype(x[0].dtype),
    "tanh": lambda x, a: np.tanh(x[0]),
    "maximum": lambda x, a: np.maximum(x[0], x[1]),
    "minimum": lambda x, a: np.minimum(x[0], x[1]),
    "clip": lambda x, a: _clip(x, a),
    "leaky_relu": lambda x, a: np.where(x[0] > 0, x[0], x[0] * x[0].dtype.type(a["slope"])),
    "bipolar": lambda x, a: np.where(x[0] >= 0, x[1], -x[1]),
    "compare": _compare,
    "where": lambda x, a: np.where(x[0], x[1], x[2]),
    "cast": lambda x, a: _cast(x[0], a["dtype"]),
    "mean": lambda x, a: _reduce(np.mean, x[0], a),
    "sum": lambda x, a: _reduce(np.sum, x[0], a),
    "variance": lambda x, a: _reduce(np.var, x[0], a, ddof=a["correction"]),
    "reshape": lambda x, a: _reshape(x[0], x[1].reshape(-1).tolist()),
    "flatten": lambda x, a: _flatten(x[0], a),
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
        stated = self.program.types.get(operation.output)
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
                if stated is not None and operation.kind in _PROMOTING:
                    known = [_cast(x, computing_type(stated.dtype).name) for x in known]
                elif stated is not None and operation.kind == "where":
                    known[1:] = [_cast(x, computing_type(stated.dtype).name) for x in known[1:]]
                value = np.asarray(_EVALUATORS[operation.kind](known, operation.attributes))
                if stated is None:
                    return value
                if operation.kind in _PROMOTING or operation.kind == "where":
                    value = _cast(value, stated.dtype)
        except _NotComputed as error:
            raise ConversionError(
                "unsupported-layer", f"layer {operation.layer!r}: its constant is not computed: {error}"
            ) from error
        except (ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
            raise ConversionError(
                "damaged-file", f"its constants do not fit together ({error})", layer=operation.layer
            ) from error
        if value.dtype.name != ("float32" if stated.dtype == "bfloat16" else stated.dtype):
            raise ConversionError(
                "bad-graph",
                f"its constant is {value.dtype}, and the program states {stated.dtype}",
                layer=operation.layer,
            )
        if not stated.fits(value.shape):
            raise ConversionError(
                "bad-graph",
                f"its constant has shape {list(value.shape)}, and the program states {list(stated.shape)}",
                layer=operation.layer,
            )
        return value
