r"""From a tensor program (`program`) to the source graph: patterns become layers, NCHW becomes NHWC.

Two things change on the way, and nothing else: the *layout* (a tensor remembers in which order its axes
stand in the source, and a flattened one which feature is which, so weights and per-feature parameters are
permuted once, here) and the *vocabulary* (`where(x >= 0, 1, -1)` is a sign, a weight of constant absolute
value per filter is binary with a scale).

**sign.** `torch.sign` and ONNX `Sign` are 0 at 0, which no bit can hold: the node says so (`Sign.zero`), and
lowering proves that 0 can't occur, or refuses. `where(x >= 0, 1, -1)` is +1 there, `where(x > 0, 1, -1)` is
-1.

What can't be translated is collected, so that one error lists all of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from ..errors import ConversionError
from ..operators import Window
from . import graph as g
from .passes import canonicalize
from .program import Array, ConstantFolder, Operation, Program, computing_type, simplify
from .weights import binarized, same_padding

__all__ = ["translate"]

_ADVICE = {
    "avg_pool2d": "use a max-pool instead",
    "GlobalAveragePool": "use Flatten and a dense layer instead",
    "AveragePool": "use a max-pool instead",
}


class _Unsupported(Exception):
    """Raised by handlers; the reason."""

    def __init__(self, reason: str, slug: str = "unsupported-layer") -> None:
        super().__init__(reason)
        self.slug = slug


@dataclass(frozen=True)
class _Tensor:
    """A graph tensor, and how it looked in the source."""

    node: str
    #: (H, W, C) or (F,).
    shape: tuple[int, ...]
    #: "NCHW", "NHWC" ... or "NF".
    axes: str
    #: For "NF": canonical position of each source feature; None where they are the same.
    order: Any = None

    @property
    def source_shape(self) -> tuple[int, ...]:
        sides = dict(zip("HWC" if len(self.shape) == 3 else "F", self.shape, strict=True))
        return tuple(1 if axis == "N" else sides[axis] for axis in self.axes)


@dataclass(frozen=True)
class _Comparison:
    """`x RELATION constant`, until a `where` or a cast makes numbers of it."""

    tensor: _Tensor
    relation: str
    constant: Array


class _Unknown:
    """What follows an operation that can't be translated."""


_Value = _Tensor | _Comparison | _Unknown


def translate(program: Program) -> g.Graph:
    """The source graph of a program, canonical.

    Raises:
        ConversionError: the program is inconsistent. Unsupported operations are listed in `Graph.problems`.
    """
    return canonicalize(_Translator(simplify(program)).run())


class _Translator:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.folder = ConstantFolder(program)
        self.values: dict[str, _Value] = {}
        self.nodes: list[g.Node] = []
        self.names: set[str] = set()
        self.notes = list(program.notes)
        self.problems: list[g.Problem] = []
        self.origins: dict[str, g.Origin] = {}
        self.producers = {operation.output: operation for operation in program.operations}
        self.handlers: dict[str, Callable[[Operation], _Value]] = {
            "add": self._add,
            "batch_norm": self._batch_norm,
            "bipolar": self._bipolar,
            "cast": self._cast,
            "clip": self._clip,
            "compare": self._compare,
            "concat": self._concat,
            "conv2d": self._conv,
            "div": self._div,
            "expand": self._expand,
            "flatten": self._flatten,
            "leaky_relu": self._leaky_relu,
            "linear": self._dense,
            "matmul": self._dense,
            "max_pool2d": self._max_pool,
            "maximum": self._limit,
            "mean": self._reduced,
            "minimum": self._limit,
            "mul": self._mul,
            "neg": self._neg,
            "permute": self._permute,
            "prelu": self._prelu,
            "reshape": self._reshape,
            "sign": self._sign,
            "softmax": self._softmax,
            "squeeze": self._reshape_like,
            "sub": self._sub,
            "sum": self._reduced,
            "unsqueeze": self._reshape_like,
            "variance": self._reduced,
            "where": self._where,
        }

    # -- running

    def run(self) -> g.Graph:
        program = self.program
        self.values[program.input] = self._input()
        for operation in program.operations:
            if operation.kind == "shape":
                self._shape(operation)
            elif self.folder.value(operation.output) is None:
                self.values[operation.output] = self._visit(operation)
        result = self.values.get(program.output)
        if isinstance(result, _Comparison) or (result is None and not self.problems):
            raise ConversionError(
                "unsupported-model", "the network's output is no number that depends on its input"
            )
        if isinstance(result, _Tensor) and result.order is not None:
            self._problem(program.operations[-1].layer, "a flattened plane can't be the output")
        output = result.node if isinstance(result, _Tensor) else self.nodes[-1].name
        return g.Graph(
            program.name,
            self.nodes,
            output,
            self.notes,
            self.problems,
            self.origins,
            framework=program.framework,
        )

    def _problem(
        self, layer: str, reason: str, slug: str = "unsupported-layer", kind: str = "", advice: str = ""
    ) -> _Unknown:
        self.problems.append(g.Problem(reason, slug, layer, kind, advice))
        return _Unknown()

    def _visit(self, operation: Operation) -> _Value:
        layer = self._layer(operation)
        if operation.kind == "unsupported" or operation.kind not in self.handlers:
            name = operation.attributes.get("name", operation.kind)
            reason = operation.attributes.get("reason", "no operator of this kind converts")
            slug = operation.attributes.get("slug", "unsupported-layer")
            return self._problem(layer, reason, slug, name, _ADVICE.get(name, ""))
        if any(isinstance(self.values.get(name), _Unknown) for name in operation.inputs):
            return _Unknown()
        try:
            if operation.inputs and all(self._constant(name) is not None for name in operation.inputs):
                raise _Unsupported(
                    f"{operation.kind} of parameters alone is not evaluated; compute it once and keep the "
                    "result as a parameter"
                )
            result = self.handlers[operation.kind](operation)
            self._check_type(operation, result)
        except _Unsupported as error:
            return self._problem(layer, str(error), error.slug)
        if isinstance(result, _Tensor):
            self._trace(operation, result)
        return result

    def _trace(self, operation: Operation, result: _Tensor) -> None:
        """Notes which tensor of the source a result is, and the bits that it is made of."""
        origin = g.Origin(operation.output, result.axes, result.order)
        if self.origins.setdefault(result.node, origin) is not origin:
            return
        made = {node.name: node for node in self.nodes[-2:]}
        last = made.get(result.node)
        if isinstance(last, g.Linear) and isinstance(made.get(last.inputs[0]), g.Sign):
            parts = (last.factor, last.divisor, last.offset)
            if last.inputs[0] not in self.origins and all(isinstance(part, Fraction) for part in parts):
                factor, divisor, offset = (float(part) for part in parts)
                self.origins[last.inputs[0]] = replace(origin, scale=factor / divisor, offset=offset)

    def _check_type(self, operation: Operation, result: _Value) -> None:
        """What was read has the shape that the source states, and the source computes in real numbers."""
        stated = self.program.types.get(operation.output)
        if stated is None or isinstance(result, _Unknown):
            return
        tensor = result.tensor if isinstance(result, _Comparison) else result
        sides = list(tensor.source_shape)
        if "N" in tensor.axes and stated.shape:
            place = tensor.axes.index("N")
            if self.program.batch == 1 and len(stated.shape) == len(sides) - 1:
                del sides[place]  # written down for one image, and squeezed
            elif place < len(stated.shape):
                sides[place] = stated.shape[place] or 1
        if not stated.fits(tuple(sides)):
            raise ConversionError(
                "bad-graph",
                f"its result is read with shape {sides}, and the program states {list(stated.shape)}",
                layer=self._layer(operation),
            )
        if "float64" in (stated.dtype, operation.attributes.get("computing")):
            known = [value for name in operation.inputs if (value := self._constant(name)) is not None]
            if any(value.dtype == np.float64 and (self._float32(value) != value).any() for value in known):
                self.notes.append(
                    f"layer {self._layer(operation)!r}: its constants are float64, and are read as float32"
                )
        if isinstance(result, _Comparison) or stated.dtype in ("float32", "float64"):
            return
        if stated.dtype in ("float16", "bfloat16"):
            raise _Unsupported(
                f"it computes in {stated.dtype}, whose rounding the converted network does not have; convert "
                "the network in float32 (model.float())"
            )
        ends = self._ends(tensor.node)
        if operation.kind not in ("permute", "reshape", "flatten", "squeeze", "unsqueeze") and (
            ends is None or not self._holds(stated.dtype, ends)
        ):
            raise _Unsupported(
                f"it computes in {stated.dtype}, where numbers may wrap around; convert to float32 first "
                "(x.float())"
            )

    @staticmethod
    def _holds(dtype: str, ends: tuple[Fraction, Fraction]) -> bool:
        """Whether an integer type holds both ends, which are whole."""
        if np.dtype(dtype).kind not in "iu":
            return False
        limits = np.iinfo(computing_type(dtype))
        return all(limits.min <= end <= limits.max and end.denominator == 1 for end in ends)

    def _ends(self, name: str) -> tuple[Fraction, Fraction] | None:
        """The two values of a tensor that is a sign times a factor plus an offset."""
        nodes = {node.name: node for node in self.nodes}
        factor, offset = Fraction(1), Fraction(0)
        while isinstance(node := nodes[name], g.Linear):
            slope, shift, divisor = node.factor, node.offset, node.divisor
            if not isinstance(slope, Fraction) or not isinstance(shift, Fraction):
                return None
            if not isinstance(divisor, Fraction):
                return None
            offset += factor * shift
            factor *= slope / divisor
            name = node.inputs[0]
        return (offset - factor, offset + factor) if isinstance(node, g.Sign) else None

    def _layer(self, operation: Operation) -> str:
        """What to call the layer of an operation."""
        if not self.program.name_by_parameters or "/" in operation.layer:
            return operation.layer
        owners = []
        if operation.kind in ("conv2d", "linear", "matmul", "batch_norm", "prelu"):
            names = list(operation.inputs[1:2])
            for _ in range(8):  # behind sign(W), mean|W| * sign(W) and the like
                owners = [n.rsplit(".", 1)[0] for n in names if n in self.program.constants and "." in n]
                if owners:
                    return owners[0]
                names = [i for n in names if n in self.producers for i in self.producers[n].inputs]
        return operation.layer

    def _input(self) -> _Tensor:
        shape, name = self.program.input_shape, self.program.input
        if len(shape) == 2:
            self._node(g.Input(name, name, (), (1, 1, shape[1])))
            self.origins[name] = g.Origin(name, "NF")
            self._node(g.Flatten(self._unique(f"{name}/flat"), name, (name,)))
            return _Tensor(self.nodes[-1].name, (shape[1],), "NF")
        if len(shape) != 4:
            raise ConversionError(
                "unsupported-input", f"the input has shape {list(shape)}; images [N, C, H, W] are needed"
            )
        first = [o for o in self.program.operations if name in o.inputs]
        last = (
            len(first) == 1 and first[0].kind == "permute" and first[0].attributes.get("axes") == (0, 3, 1, 2)
        )
        axes = "NHWC" if last else "NCHW"
        sides = dict(zip(axes, shape, strict=True))
        node = g.Input(name, name, (), (sides["H"], sides["W"], sides["C"]))
        self._node(node)
        self.origins[name] = g.Origin(name, axes)
        return _Tensor(name, node.shape, axes)

    def _unique(self, name: str) -> str:
        unique, count = name, 1
        while unique in self.names:
            count += 1
            unique = f"{name}_{count}"
        return unique

    def _node(self, node: g.Node) -> None:
        self.names.add(node.name)
        self.nodes.append(node)

    def _emit(
        self, kind: type[g.Node], operation: Operation, x: _Tensor, suffix: str = "", **fields: Any
    ) -> _Tensor:
        """Adds a node that keeps the layout of `x`; returns its tensor."""
        name = self._unique(operation.output + suffix)
        node = kind(name, self._layer(operation), (x.node,), **fields)
        shape = node.output_shape((x.shape,))
        self._node(node)
        return _Tensor(name, shape, x.axes, x.order)

    # -- operands

    def _constant(self, name: str) -> Array | None:
        return self.folder.value(name)

    def _tensor(self, operation: Operation, index: int = 0) -> _Tensor:
        value = self.values.get(operation.inputs[index]) if index < len(operation.inputs) else None
        if isinstance(value, _Comparison):
            stated = self.program.types.get(operation.output)
            if operation.kind not in ("add", "sub", "mul", "div") or stated is None or stated.dtype == "bool":
                raise _Unsupported("a comparison is used as a number; use torch.where(x >= 0, 1.0, -1.0)")
            at = replace(operation, output=operation.inputs[index])
            value = self._step(at, value, Fraction(1), Fraction(0))
        if not isinstance(value, _Tensor):
            raise _Unsupported("its input does not depend on the image")
        return value

    def _weights(self, operation: Operation, index: int, what: str) -> Array:
        value = self._constant(operation.inputs[index]) if index < len(operation.inputs) else None
        if value is None:
            raise _Unsupported(f"its {what} depends on the image")
        return self._float32(value)

    @staticmethod
    def _float32(value: Array) -> Array:
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(value, dtype=np.float32)

    def _parameter(self, x: _Tensor, value: Array) -> Fraction | Array:
        """A constant that is broadcast against `x`: a rational, or float32 in the graph's layout."""
        array = self._float32(value)
        if array.size == 1:
            number = float(array.reshape(-1)[0])
            if not math.isfinite(number):
                raise _Unsupported(f"its constant is {number}")
            return Fraction(number)
        source: tuple[int, ...] = x.source_shape
        if array.ndim > len(source):
            if any(side != 1 for side in array.shape[: array.ndim - len(source)]):
                raise _Unsupported(
                    f"a constant of shape {list(array.shape)} on a tensor of shape {list(source)}"
                )
            array = array.reshape(array.shape[array.ndim - len(source) :])
        array = array.reshape((1,) * (len(source) - array.ndim) + array.shape)
        if any(array.shape[i] not in (1, source[i]) for i in range(len(source))):
            raise _Unsupported(f"a constant of shape {list(array.shape)} on a tensor of shape {list(source)}")
        if x.axes == "NF":
            flat = array.reshape(-1)
            return self._in_order(x, flat)
        canonical = array.transpose([x.axes.index(axis) for axis in "NHWC"])[0]
        if canonical.shape[:2] == (1, 1) and canonical.shape[2] == x.shape[2]:
            return np.ascontiguousarray(canonical[0, 0])
        return np.ascontiguousarray(np.broadcast_to(canonical, x.shape))

    @staticmethod
    def _in_order(x: _Tensor, features: Array) -> Array:
        """Per-feature values, first axis, from the source's order to the graph's."""
        if x.order is None:
            return features
        moved = np.empty_like(features)
        moved[x.order] = features
        return moved

    # -- elementwise

    def _pair(self, operation: Operation) -> tuple[_Tensor, Array | None, bool]:
        """(tensor, constant or None where both depend on the image, whether the constant comes first)."""
        first, second = (self._constant(name) for name in operation.inputs[:2])
        if first is not None:
            return self._tensor(operation, 1), first, True
        return self._tensor(operation, 0), second, False

    def _linear(self, operation: Operation, x: _Tensor, suffix: str = "", **fields: Any) -> _Tensor:
        return self._emit(g.Linear, operation, x, suffix, **fields)

    def _merged(self, operation: Operation, kind: type[g.Node]) -> _Tensor:
        """A node of several tensors of one layout."""
        tensors = [self._tensor(operation, i) for i in range(len(operation.inputs))]
        if len({t.axes for t in tensors}) != 1 or any(t.order is not None for t in tensors):
            raise _Unsupported("its inputs have different layouts")
        name = self._unique(operation.output)
        node = kind(name, self._layer(operation), tuple(t.node for t in tensors))
        try:
            shape = node.output_shape(tuple(t.shape for t in tensors))
        except ConversionError as error:
            raise _Unsupported(error.message) from error
        self._node(node)
        return _Tensor(name, shape, tensors[0].axes)

    def _add(self, operation: Operation) -> _Value:
        if all(self._constant(name) is None for name in operation.inputs):
            return self._merged(operation, g.Add)
        x, constant, _ = self._pair(operation)
        assert constant is not None
        return self._linear(operation, x, offset=self._parameter(x, constant))

    def _sub(self, operation: Operation) -> _Value:
        x, constant, first = self._pair(operation)
        if constant is None:
            raise _Unsupported("the difference of two tensors that depend on the image")
        value = self._parameter(x, constant)
        if first:
            return self._linear(operation, x, factor=Fraction(-1), offset=value)
        return self._linear(operation, x, offset=-value)

    def _mul(self, operation: Operation) -> _Value:
        x, constant, _ = self._pair(operation)
        if constant is None:
            raise _Unsupported("the product of two tensors that depend on the image")
        return self._linear(operation, x, factor=self._parameter(x, constant))

    def _div(self, operation: Operation) -> _Value:
        if operation.attributes.get("rounding", "true") != "true":
            raise _Unsupported(f"a division that rounds ({operation.attributes['rounding']})")
        x, constant, first = self._pair(operation)
        if constant is None or first:
            raise _Unsupported("a division by a tensor that depends on the image")
        value = self._parameter(x, constant)
        if not value if isinstance(value, Fraction) else not value.all():
            raise _Unsupported("it divides by zero")
        return self._linear(operation, x, divisor=value)

    def _neg(self, operation: Operation) -> _Value:
        return self._linear(operation, self._tensor(operation), factor=Fraction(-1))

    def _clip(self, operation: Operation) -> _Value:
        ends = {end: operation.attributes.get(end) for end in ("low", "high")}
        for i, end in enumerate(operation.attributes.get("limits", ()), 1):
            value = self._constant(operation.inputs[i])
            if value is None or value.size != 1:
                raise _Unsupported("its limits are no constant numbers")
            ends[end] = float(self._float32(value).reshape(-1)[0])
        low, high = ends["low"], ends["high"]
        return self._between(operation, self._tensor(operation), low, high)

    def _limit(self, operation: Operation) -> _Value:
        x, constant, _ = self._pair(operation)
        if constant is None or constant.size != 1 or len(operation.inputs) != 2:
            raise _Unsupported("the maximum or minimum of anything but a tensor and one number")
        value = float(self._float32(constant).reshape(-1)[0])
        ends: dict[str, Any] = {"low": value} if operation.kind == "maximum" else {"high": value}
        return self._between(operation, x, ends.get("low"), ends.get("high"))

    def _between(self, operation: Operation, x: _Tensor, low: float | None, high: float | None) -> _Tensor:
        """A clip, whose ends may be infinite: then there is none."""
        low, high = None if low == -math.inf else low, None if high == math.inf else high
        if any(end is not None and not math.isfinite(end) for end in (low, high)):
            raise _Unsupported(f"its limits are {low} and {high}")
        return x if low is None and high is None else self._emit(g.Clip, operation, x, low=low, high=high)

    def _prelu(self, operation: Operation) -> _Value:
        x = self._tensor(operation)
        slope = self._weights(operation, 1, "slope")
        if operation.attributes.get("by_channel") and slope.ndim == 1 and slope.size > 1:
            slope = slope.reshape(1, -1, *(1,) * (len(x.axes) - 2))
        value = self._parameter(x, slope)
        if isinstance(value, Fraction):
            value = np.full(x.shape[-1:], np.float32(float(value)), np.float32)
        return self._emit(g.PReLU, operation, x, alpha=value)

    def _leaky_relu(self, operation: Operation) -> _Value:
        x = self._tensor(operation)
        slope = np.full(x.shape[-1:], operation.attributes["slope"], np.float32)
        return self._emit(g.PReLU, operation, x, alpha=slope)

    def _batch_norm(self, operation: Operation) -> _Value:
        x = self._tensor(operation)
        if x.axes[1] not in "CF":
            raise _Unsupported("its channels are not the second axis")
        channels = x.shape[-1]
        fields: dict[str, Any] = {}
        for i, what in enumerate(("gamma", "beta", "mean", "variance")):
            value = self._weights(operation, i + 1, what).reshape(-1)
            if value.shape != (channels,):
                raise ConversionError(
                    "shape-mismatch",
                    f"{what} has {value.size} values for {channels} channels",
                    layer=self._layer(operation),
                )
            fields[what] = self._in_order(x, value)
        return self._emit(g.BatchNorm, operation, x, epsilon=operation.attributes["epsilon"], **fields)

    # -- signs

    def _sign(self, operation: Operation) -> _Value:
        x = self._tensor(operation)
        # sign(sign(x) + c) with 0 < c < 1 is a known way to have sign(0) = +1.
        shifted = self.producers.get(operation.inputs[0])
        if shifted is not None and shifted.kind == "add":
            constants = [self._constant(name) for name in shifted.inputs]
            inner = [self.producers.get(name) for name in shifted.inputs]
            for constant, producer in ((constants[1], inner[0]), (constants[0], inner[1])):
                if constant is None or constant.size != 1 or producer is None or producer.kind != "sign":
                    continue
                if 0 < abs(float(constant.reshape(-1)[0])) < 1:
                    zero = 1 if float(constant.reshape(-1)[0]) > 0 else -1
                    return self._emit(g.Sign, operation, self._tensor(producer), zero=zero)
        return self._emit(g.Sign, operation, x, zero=0)

    def _bipolar(self, operation: Operation) -> _Value:
        """Brevitas: `scale * sign(x)`, with sign(0) = +1."""
        x = self._tensor(operation)
        scale = self._parameter(x, self._weights(operation, 1, "scale"))
        bits = self._emit(g.Sign, operation, x, zero=1)
        return bits if scale == 1 else self._linear(operation, bits, "/scale", factor=scale)

    def _compare(self, operation: Operation) -> _Value:
        x, constant, first = self._pair(operation)
        if constant is None:
            raise _Unsupported("the comparison of two tensors that depend on the image")
        relation = operation.attributes["relation"]
        if relation in ("eq", "ne"):
            raise _Unsupported("a comparison for equality is no sign; compare by >= or >")
        if first:
            relation = {"ge": "le", "gt": "lt", "le": "ge", "lt": "gt"}[relation]
        return _Comparison(x, relation, constant)

    @staticmethod
    def _fits(shape: tuple[int, ...], into: tuple[int, ...]) -> bool:
        """Whether an array is broadcast against a tensor, which keeps its shape."""
        return len(shape) <= len(into) and all(
            side in (1, other) for side, other in zip(reversed(shape), reversed(into), strict=False)
        )

    def _where(self, operation: Operation) -> _Value:
        condition = self.values.get(operation.inputs[0])
        if not isinstance(condition, _Comparison):
            raise _Unsupported("its condition is no comparison with a constant")
        ends = [self._constant(name) for name in operation.inputs[1:3]]
        numbers = [
            None if e is None or not e.size or (e != e.flat[0]).any() else float(np.float32(e.flat[0]))
            for e in ends
        ]
        yes, no = numbers
        for end in ends:
            if end is not None and not self._fits(end.shape, condition.tensor.source_shape):
                raise _Unsupported("the numbers that it chooses between make its result larger")
        if yes is None or no is None:
            raise _Unsupported("it chooses between anything but two numbers")
        if not math.isfinite(yes) or not math.isfinite(no):
            raise _Unsupported(f"it chooses between {yes} and {no}")
        return self._step(operation, condition, Fraction(yes), Fraction(no))

    def _cast(self, operation: Operation) -> _Value:
        value = self.values.get(operation.inputs[0])
        dtype = operation.attributes["dtype"]
        if isinstance(value, _Comparison):
            return value if dtype == "bool" else self._step(operation, value, Fraction(1), Fraction(0))
        x = self._tensor(operation)
        if np.dtype(computing_type(dtype)).kind != "f":
            ends = self._ends(x.node)
            if ends is None or not self._holds(dtype, ends):
                raise _Unsupported(f"a conversion of a tensor that depends on the image to {dtype}")
        return x

    def _reduced(self, operation: Operation) -> _Value:
        x = self._tensor(operation)
        axes = operation.attributes.get("axes")
        places = range(len(x.axes)) if axes is None else [int(a) % len(x.axes) for a in axes]
        what = {"mean": "mean", "sum": "sum", "variance": "variance"}[operation.kind]
        if any(x.axes[place] == "N" for place in places):
            raise _Unsupported(f"a {what} over the images of a batch: its answers depend on the batch")
        raise _Unsupported(
            f"{operation.kind}: a {what} over values that depend on the image does not convert"
        )

    def _step(self, operation: Operation, condition: _Comparison, yes: Fraction, no: Fraction) -> _Value:
        """`yes` where the comparison holds, else `no`: a sign, then `scale * sign + offset`."""
        relation = condition.relation
        if yes < no:
            yes, no = no, yes
            relation = {"ge": "lt", "gt": "le", "le": "gt", "lt": "ge"}[relation]
        if yes == no:
            raise _Unsupported("it chooses between equal numbers")
        x = condition.tensor
        threshold = self._parameter(x, condition.constant)
        if relation in ("le", "lt"):  # x <= c is -x + c >= 0
            x = self._linear(operation, x, "/negated", factor=Fraction(-1), offset=threshold)
        elif not isinstance(threshold, Fraction) or threshold:
            x = self._linear(operation, x, "/threshold", offset=-threshold)
        x = self._emit(g.Sign, operation, x, zero=1 if relation in ("ge", "le") else -1)
        scale, offset = (yes - no) / 2, (yes + no) / 2
        if scale != 1 or offset:
            x = self._linear(operation, x, "/levels", factor=scale, offset=offset)
        return x

    # -- layers

    def _padding(
        self, operation: Operation, x: _Tensor, kernel: tuple[int, int]
    ) -> tuple[int, int, int, int]:
        padding = operation.attributes["padding"]
        if isinstance(padding, str):
            strides, dilation = operation.attributes["strides"], operation.attributes["dilation"]
            (top, bottom), (left, right) = (
                same_padding(x.shape[i], kernel[i], strides[i], dilation[i]) for i in (0, 1)
            )
            if padding == "SAME_LOWER":
                top, bottom, left, right = bottom, top, right, left
            return top, left, bottom, right
        if len(padding) != 4 or min(padding) < 0:
            raise _Unsupported(f"padding {padding}")
        top, left, bottom, right = padding
        return top, left, bottom, right

    def _plane(self, operation: Operation) -> _Tensor:
        x = self._tensor(operation)
        if x.axes != "NCHW":
            raise _Unsupported(f"it needs a plane [N, C, H, W], and its input is {x.axes}")
        return x

    def _conv(self, operation: Operation) -> _Value:
        x = self._plane(operation)
        weight = self._weights(operation, 1, "weight")
        a, layer = operation.attributes, self._layer(operation)
        if weight.ndim != 4:
            raise _Unsupported("only 2-D convolutions convert")
        depthwise = a["groups"] != 1
        if depthwise and not weight.shape[0] == a["groups"] == x.shape[-1]:
            raise _Unsupported(
                f"a convolution with groups={a['groups']}; one group, or as many as there are channels of "
                "input and of output, convert"
            )
        kernel = np.ascontiguousarray(weight.transpose(2, 3, 1, 0))
        size = (kernel.shape[0], kernel.shape[1])
        window = Window(size, tuple(a["strides"]), tuple(a["dilation"]), self._padding(operation, x, size))
        signs, binary, scale = binarized(kernel, layer, self.notes)
        y = self._emit(
            g.Conv2D,
            operation,
            x,
            kernel=signs,
            window=window,
            binary=binary,
            scale=scale,
            depthwise=depthwise,
        )
        return self._biased(operation, _Tensor(y.node, y.shape, "NCHW"))

    def _dense(self, operation: Operation) -> _Value:
        if self._constant(operation.inputs[0]) is not None:
            raise _Unsupported(
                "a matrix product whose first factor is a constant and whose second depends on the image; "
                "write it with the image's tensor first"
            )
        x = self._tensor(operation)
        if x.axes != "NF":
            raise _Unsupported(
                "a dense layer on a plane, where it acts on the last axis alone; on a flattened plane it "
                "converts"
            )
        weight = self._weights(operation, 1, "weight")
        if weight.ndim != 2:
            raise _Unsupported(f"weights of shape {list(weight.shape)}")
        kernel = weight.T if operation.kind == "linear" else weight
        if kernel.shape[0] != x.shape[0]:
            raise ConversionError(
                "shape-mismatch",
                f"it takes {kernel.shape[0]} features, and its input has {x.shape[0]}",
                layer=self._layer(operation),
            )
        kernel = np.ascontiguousarray(self._in_order(x, kernel))
        signs, binary, scale = binarized(kernel, self._layer(operation), self.notes)
        y = self._emit(g.Dense, operation, x, kernel=signs, binary=binary, scale=scale)
        return self._biased(operation, _Tensor(y.node, y.shape, "NF"))

    def _biased(self, operation: Operation, y: _Tensor) -> _Tensor:
        if len(operation.inputs) < 3:
            return y
        bias = self._weights(operation, 2, "bias")
        if bias.size not in (1, y.shape[-1]) or any(side != 1 for side in bias.shape[:-1]):
            raise _Unsupported(f"a bias of shape {list(bias.shape)} for {y.shape[-1]} outputs")
        bias = bias.reshape(-1)
        if not bias.any():
            return y
        return self._emit(g.Bias, operation, y, "/bias", values=np.broadcast_to(bias, y.shape[-1:]).copy())

    def _max_pool(self, operation: Operation) -> _Value:
        x = self._plane(operation)
        a = operation.attributes
        kernel = tuple(a["kernel"])
        if len(kernel) != 2:
            raise _Unsupported("only 2-D pools convert")
        top, left, bottom, right = self._padding(operation, x, (kernel[0], kernel[1]))
        if a["ceil_mode"]:
            # The last window may begin inside the padded plane and reach beyond it: more padding below.
            ends = []
            for side, before, after, k, s, d in (
                (x.shape[0], top, bottom, kernel[0], a["strides"][0], a["dilation"][0]),
                (x.shape[1], left, right, kernel[1], a["strides"][1], a["dilation"][1]),
            ):
                span = d * (k - 1) + 1
                outputs = -(-(side + before + after - span) // s) + 1
                if (outputs - 1) * s >= side + before:
                    if a.get("beyond") == "refused":
                        raise _Unsupported("ceil_mode=1 with a last window that begins in the padding")
                    outputs -= 1
                ends.append(max(after, (outputs - 1) * s + span - side - before))
            bottom, right = ends
        window = Window(
            (kernel[0], kernel[1]), tuple(a["strides"]), tuple(a["dilation"]), (top, left, bottom, right)
        )
        return self._emit(g.MaxPool2D, operation, x, window=window)

    def _softmax(self, operation: Operation) -> _Value:
        x = self._tensor(operation)
        if operation.attributes.get("axis") not in (-1, 1) or x.axes != "NF":
            raise _Unsupported("softmax converts over the last axis of a flat tensor only")
        return self._emit(g.Softmax, operation, x, log=bool(operation.attributes.get("log", False)))

    # -- shapes

    def _shape(self, operation: Operation) -> None:
        value = self.values.get(operation.inputs[0])
        known = self._constant(operation.inputs[0])
        if isinstance(value, _Tensor):
            shape = value.source_shape
        elif known is not None:
            shape = known.shape
        else:
            return
        a = operation.attributes
        self.folder.know(operation.output, np.array(shape[a.get("start", 0) : a.get("end")], np.int64))

    def _flat(self, operation: Operation, x: _Tensor) -> _Tensor:
        if x.axes == "NF":
            return x
        if x.axes[0] != "N":
            raise _Unsupported("the batch is not the first axis")
        height, width, channels = x.shape
        index = np.arange(height * width * channels).reshape(x.shape)
        order = index.transpose(["HWC".index(axis) for axis in x.axes[1:]]).reshape(-1)
        y = self._emit(g.Flatten, operation, x)
        same = bool(np.array_equal(order, np.arange(order.size)))
        return _Tensor(y.node, y.shape, "NF", None if same else order)

    def _flatten(self, operation: Operation) -> _Value:
        x = self._tensor(operation)
        last = operation.attributes.get("end", -1)
        if operation.attributes["start"] != 1 or last not in (-1, len(x.axes) - 1):
            raise _Unsupported("only flatten from axis 1 to the last one converts")
        return self._flat(operation, x)

    def _reshape(self, operation: Operation) -> _Value:
        x = self._tensor(operation)
        shape = self._constant(operation.inputs[1]) if len(operation.inputs) > 1 else None
        if shape is None:
            raise _Unsupported("its shape depends on the image")
        return self._reshaped(operation, x, [int(v) for v in shape.reshape(-1)[:16]])

    def _reshaped(self, operation: Operation, x: _Tensor, wanted: list[int]) -> _Tensor:
        source = x.source_shape
        sides = [source[i] if s == 0 and i < len(source) else s for i, s in enumerate(wanted)]
        if sides and self.program.batch is not None and sides[0] == self.program.batch and x.axes[0] == "N":
            sides[0] = 1  # the source is written down for so many images, and this is one of them
        total = math.prod(source)
        if sides.count(-1) == 1:
            rest = math.prod(s for s in sides if s != -1)
            # With a batch of 1, `view(-1, F)` and `view(N, -1)` are both the flat tensor.
            sides = [total // rest if s == -1 and rest > 0 else s for s in sides]
        if math.prod(sides) != total or min(sides, default=1) < 1:
            raise _Unsupported(f"a reshape of {list(source)} to {wanted}")
        if tuple(sides) == source:
            return x
        if len(sides) == 2 and sides[0] == 1:
            return self._flat(operation, x)
        raise _Unsupported(f"a reshape of {list(source)} to {wanted}; only flattening converts")

    def _reshape_like(self, operation: Operation) -> _Value:
        x = self._tensor(operation)
        array = np.empty(x.source_shape, np.bool_)
        axes: Any = operation.attributes.get("axes")
        try:
            if operation.kind == "squeeze":
                drop = [i for i, s in enumerate(array.shape) if i and s == 1] if axes is None else axes
                shape = np.squeeze(array, tuple(a for a in drop if array.shape[a] == 1)).shape
            else:
                shape = np.expand_dims(array, tuple(axes)).shape
        except (ValueError, IndexError, TypeError) as error:
            raise _Unsupported(f"its axes do not fit ({error})") from error
        return self._reshaped(operation, x, list(shape))

    def _permute(self, operation: Operation) -> _Value:
        x = self._tensor(operation)
        axes = operation.attributes.get("axes") or tuple(range(len(x.axes)))[::-1]
        axes = tuple(axis + len(x.axes) if axis < 0 else axis for axis in axes)
        if sorted(axes) != list(range(len(x.axes))) or axes[0] != 0:
            raise _Unsupported(f"a permutation {axes} that moves the batch")
        return _Tensor(x.node, x.shape, "".join(x.axes[a] for a in axes), x.order)

    def _expand(self, operation: Operation) -> _Value:
        raise _Unsupported("a tensor that depends on the image is repeated")

    def _concat(self, operation: Operation) -> _Value:
        axis = operation.attributes.get("axis", 0)
        if any(self._constant(n) is not None for n in operation.inputs):
            raise _Unsupported("a concatenation with constants")
        tensors = [self._tensor(operation, i) for i in range(len(operation.inputs))]
        places = {t.axes[axis] if -len(t.axes) <= axis < len(t.axes) else "" for t in tensors}
        if not places <= {"C", "F"}:
            raise _Unsupported("only a concatenation of tensors along the channels is understood")
        return self._merged(operation, g.Concatenate)
