r"""The aten operators that the torch reader knows: every overload with every argument of its schema.

`OPERATORS` is a closed world. Its keys are `name.overload`, as a program's nodes have them. An overload that
is not listed is refused, and so is an argument that its `Signature` does not honour. A handler says what the
operator means in the vocabulary of `cbin_nn.converters.program`. An operator in place (`relu_`) is the one of
its name without the underscore; what changes in place is the importer's business (`torch_export`).

What depends on chance or on the batch is refused with that reason (`refusal`), however it is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ConversionError
from .program import MAX_ELEMENTS, Array, Operation, TensorType, computing_type
from .signatures import Signature

__all__ = ["OPERATORS", "Call", "Entry", "Symbol", "Tensor", "Unsupported", "Writer", "refusal"]


class Unsupported(Exception):
    """The reason why one node is not translated."""

    def __init__(self, reason: str, slug: str = "unsupported-layer") -> None:
        super().__init__(reason)
        self.slug = slug


@dataclass(frozen=True)
class Tensor:
    """A tensor as an argument: its name."""

    name: str


@dataclass(frozen=True)
class Symbol:
    """An integer that is not fixed in the program, other than the batch."""

    expression: str


class Writer:
    """What handlers write to: the operations and constants of one program."""

    def __init__(self) -> None:
        self.constants: dict[str, Array] = {}
        self.operations: list[Operation] = []
        self.types: dict[str, TensorType] = {}
        #: Tensors that depend on the input.
        self.dependent: set[str] = set()
        #: Constants of one image where the source has them for a batch: what is like the image's tensors.
        self.per_image: set[str] = set()
        self.batch: int | None = None
        self._count = 0

    def emit(self, kind: str, layer: str, output: str, inputs: Iterable[str], **attributes: Any) -> None:
        """Adds an operation."""
        names = tuple(inputs)
        self.operations.append(Operation(kind, layer, names, output, attributes))
        if self.dependent.intersection(names):
            self.dependent.add(output)
        elif self.per_image.intersection(names):
            self.know_per_image(output)

    def know_per_image(self, name: str) -> None:
        """A constant has one image's values, so that its first side is not the stated one."""
        self.per_image.add(name)
        stated = self.types[name]
        if stated.shape and stated.shape[0] == self.batch:
            self.types[name] = TensorType(stated.dtype, (None, *stated.shape[1:]))

    def constant(self, value: Array) -> str:
        """Adds a constant; returns its name."""
        self._count += 1
        name = f"constant/{self._count}"
        self.constants[name] = value
        return name


@dataclass
class Call:
    """One node of a program: an operator, and its arguments by their names in the schema."""

    writer: Writer
    layer: str
    output: str
    arguments: Mapping[str, Any]

    # -- arguments

    def get(self, name: str, default: Any = None) -> Any:
        """An argument, or the schema's default where it is not given."""
        return self.arguments.get(name, default)

    def has(self, name: str) -> bool:
        """Whether an optional argument is given."""
        return self.arguments.get(name) is not None

    def tensor(self, name: str = "self") -> str:
        """The name of a tensor argument."""
        value = self.arguments.get(name)
        if not isinstance(value, Tensor):
            raise Unsupported(f"its argument {name} is no tensor")
        return value.name

    def number(self, name: str, default: float | None = None) -> Any:
        """A number, as Python has it."""
        value = self.arguments.get(name, default)
        if not isinstance(value, (int, float)):
            raise Unsupported(f"its argument {name} is {value!r}, and a number is needed")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """A boolean."""
        value = self.arguments.get(name, default)
        if not isinstance(value, bool):
            raise Unsupported(f"its argument {name} is {value!r}, and True or False is needed")
        return value

    def integers(self, name: str, default: Iterable[int] = ()) -> list[int]:
        """A list of integers; one integer is a list of one."""
        value = self.arguments.get(name)
        if value is None:
            return list(default)
        values = [value] if isinstance(value, (int, Symbol)) else value
        if not isinstance(values, (list, tuple)) or any(isinstance(v, Symbol) for v in values):
            raise Unsupported(f"its argument {name} depends on the batch or on the image's size")
        if any(isinstance(v, bool) or not isinstance(v, int) for v in values):
            raise Unsupported(f"its argument {name} is {value!r}, and integers are needed")
        return list(values)

    def pair(self, name: str, default: tuple[int, int]) -> tuple[int, int]:
        """Two integers, of which one stands for both."""
        values = self.integers(name) or list(default)
        if len(values) == 1:
            values = values * 2
        if len(values) != 2:
            raise Unsupported("only 2-D convolutions and pools convert")
        return values[0], values[1]

    # -- types

    def type_of(self, name: str) -> TensorType:
        """What the program states of a tensor."""
        found = self.writer.types.get(name)
        if found is None:
            raise ConversionError("bad-graph", f"layer {self.layer!r}: nothing states the type of {name!r}")
        return found

    @property
    def result(self) -> TensorType:
        """What the program states of the result."""
        return self.type_of(self.output)

    def rank(self, name: str = "self") -> int:
        """Number of axes of a tensor argument."""
        return len(self.type_of(self.tensor(name)).shape)

    def axis(self, name: str, default: int = 0, rank: int | None = None) -> int:
        """One axis, counted from the first."""
        (value,) = self.integers(name, [default])
        rank = max(1, self.rank() if rank is None else rank)
        if not -rank <= value < rank:
            raise Unsupported(f"its argument {name} is {value}, and the tensor has {rank} axes")
        return value % rank

    def axes(self, name: str) -> list[int]:
        """Axes, counted from the first."""
        rank = max(1, self.rank())
        values = self.integers(name)
        if any(not -rank <= value < rank for value in values):
            raise Unsupported(f"its argument {name} is {values}, and the tensor has {rank} axes")
        return [value % rank for value in values]

    # -- results

    def emit(self, kind: str, *inputs: str, **attributes: Any) -> None:
        """The operation whose result is the node's."""
        self.writer.emit(kind, self.layer, self.output, inputs, **attributes)

    def step(self, suffix: str, kind: str, *inputs: str, like: str | None = None, **attributes: Any) -> str:
        """An operation on the way to the result, in the shape of `like`; returns its tensor's name.

        In the type that the result is computed in, so that half precision is rounded once, as torch does.
        """
        name = f"{self.output}/{suffix}"
        shape = self.result.shape if like is None else self.type_of(like).shape
        self.writer.types[name] = TensorType(computing_type(self.result.dtype).name, shape)
        self.writer.emit(kind, self.layer, name, inputs, **attributes)
        return name

    def constant(self, value: Any, dtype: str | None = None) -> str:
        """A number of the source in the type that it is computed in: the result's, unless told."""
        target = computing_type(dtype or self.result.dtype)
        try:
            array = np.asarray(value).astype(target) if target.kind == "f" else np.asarray(value, target)
        except (OverflowError, TypeError, ValueError) as error:
            raise Unsupported(f"the number {value} has no place in {target}") from error
        name = self.writer.constant(array)
        self.writer.types[name] = TensorType(target.name, array.shape)
        return name

    def operand(self, name: str, dtype: str | None = None) -> str:
        """A tensor's name; a number becomes a constant of the computing type, as torch takes it."""
        if isinstance(self.arguments.get(name), Tensor):
            return self.tensor(name)
        return self.constant(self.number(name), dtype)

    def promoted(self, *names: str) -> str:
        """torch's common type of operands: a tensor with axes, one without, a number, in this order; a later
        group counts only where its category (boolean, integer, floating) is a higher one."""
        groups: list[str | None] = [None, None, None]
        for name in names:
            value = self.arguments.get(name)
            if isinstance(value, Tensor):
                stated = self.type_of(value.name)
                place, dtype = (0 if stated.shape else 1), stated.dtype
            else:
                number = self.number(name)
                place = 2
                dtype = (
                    "bool" if isinstance(number, bool) else "int64" if isinstance(number, int) else "float32"
                )
            known = groups[place]
            groups[place] = dtype if known is None else _wider(known, dtype)
        found: str | None = None
        for group in groups:
            if group is not None and (found is None or _category(group) > _category(found)):
                found = group
        assert found is not None
        return found


def _category(dtype: str) -> int:
    return {"b": 0, "i": 1, "u": 1, "f": 2}[computing_type(dtype).kind]


def _wider(first: str, second: str) -> str:
    """torch.promote_types."""
    if first == second:
        return first
    if _category(first) != _category(second):
        return max(first, second, key=_category)
    if {first, second} == {"float16", "bfloat16"}:
        return "float32"
    if _category(first) == 2:
        order = ["float16", "bfloat16", "float32", "float64"]
        return max(first, second, key=order.index)
    return str(np.promote_types(first, second))


# ------------------------------------------------------------------------------------------------
# refusals

_CHANCE = {
    *("bernoulli", "binomial", "cauchy", "exponential", "geometric", "log_normal", "multinomial", "normal"),
    *("normal_functional", "poisson", "rand", "rand_like", "randint", "randint_like", "randn", "randn_like"),
    *("randperm", "random", "rrelu_with_noise", "rrelu_with_noise_functional", "uniform", "_fused_dropout"),
    *("gumbel_softmax", "_standard_gamma", "_sample_dirichlet"),
}
_BATCH = {
    *("_native_batch_norm_legit", "_native_batch_norm_legit_functional", "native_batch_norm"),
    *(
        "_batch_norm_with_update",
        "_batch_norm_with_update_functional",
        "cudnn_batch_norm",
        "miopen_batch_norm",
    ),
}
_BY_BATCH = (
    "it normalises by statistics of the images that it is given: its answers depend on the batch; call "
    "model.eval() before the export, and keep running statistics (track_running_stats=True)"
)
_PADDING = (
    "padding as an operation of its own does not convert; as many zeros on both sides, right before a "
    "convolution, can be its argument padding"
)
_BY_IMAGE = "it normalises by each image's own statistics, which no operator here computes; use BatchNorm"
_REASONS = {
    "instance_norm": _BY_IMAGE,
    "group_norm": _BY_IMAGE,
    "native_group_norm": _BY_IMAGE,
    "layer_norm": _BY_IMAGE,
    "native_layer_norm": _BY_IMAGE,
    "pad": _PADDING,
    "constant_pad_nd": _PADDING,
}


def refusal(name: str, overload: str) -> Unsupported:
    """Why an operator that is not in the table is refused; `name` is without an in-place underscore."""
    if name in _CHANCE:
        return Unsupported("its answers depend on chance; take it out of the evaluation (if self.training:)")
    if name in _BATCH:
        return Unsupported(_BY_BATCH)
    if name in _REASONS:
        return Unsupported(_REASONS[name])
    known = sorted(key.split(".", 1)[1] for key in OPERATORS if key.split(".", 1)[0] == name)
    if known:
        return Unsupported(f"its overload {overload} does not convert; {' and '.join(known)} do")
    if name.rsplit(".", 1)[-1] in ("wrap_with_set_grad_enabled", "wrap_with_autocast"):
        return Unsupported(
            "a block of its own kind (torch.no_grad, torch.autocast) does not convert; export the "
            "model under torch.no_grad(), without autocast"
        )
    return Unsupported("no operator of this kind converts")


# ------------------------------------------------------------------------------------------------
# handlers


@dataclass(frozen=True)
class Entry:
    """What the reader knows of one overload of an operator."""

    signature: Signature
    handle: Callable[[Call], None]
    #: The result may share its elements with this argument.
    view_of: str = ""


def _identity(call: Call) -> None:
    call.emit("identity", call.tensor())


def _elementwise(kind: str, *names: str, **attributes: Any) -> Callable[[Call], None]:
    """An operation on tensors and numbers in the type of its result."""

    def handle(call: Call) -> None:
        call.emit(kind, *(call.operand(name) for name in names), **attributes)

    return handle


def _times(call: Call, name: str, factor: Any) -> str:
    """An operand times a number of the call."""
    operand = call.operand(name)
    if factor == 1:
        return operand
    return call.step(f"{name} times {factor}", "mul", operand, call.constant(factor), like=operand)


def _sum_of(kind: str, first: str, second: str) -> Callable[[Call], None]:
    """`first + alpha * second` or `first - alpha * second`."""

    def handle(call: Call) -> None:
        call.emit(kind, call.operand(first), _times(call, second, call.number("alpha", 1)))

    return handle


def _divide(call: Call) -> None:
    mode = call.get("rounding_mode")
    if mode not in (None, "floor", "trunc"):
        raise Unsupported(f"its argument rounding_mode is {mode!r}")
    call.emit("div", call.operand("self"), call.operand("other"), rounding=mode or "true")


def _floor_divide(call: Call) -> None:
    call.emit("div", call.operand("self"), call.operand("other"), rounding="floor")


def _square(call: Call) -> None:
    call.emit("mul", call.tensor(), call.tensor())


def _reciprocal(call: Call) -> None:
    call.emit("div", call.constant(1), call.tensor(), rounding="true")


def _rsqrt(call: Call) -> None:
    root = call.step("root", "sqrt", call.tensor())
    call.emit("div", call.constant(1), root, rounding="true")


def _compare(relation: str) -> Callable[[Call], None]:
    def handle(call: Call) -> None:
        common = call.promoted("self", "other")
        call.emit(
            "compare", call.tensor(), call.operand("other", common), relation=relation, computing=common
        )

    return handle


def _where(call: Call) -> None:
    call.emit("where", call.tensor("condition"), call.operand("self"), call.operand("other"))


def _convert(call: Call) -> None:
    """Any of the conversions: the result's type is stated."""
    if call.type_of(call.tensor()).dtype == call.result.dtype:
        call.emit("identity", call.tensor())
    else:
        call.emit("cast", call.tensor(), dtype=call.result.dtype)


def _fill(value: float | None, key: str = "", like: bool = False) -> Callable[[Call], None]:
    """A constant tensor of the stated shape."""

    def handle(call: Call) -> None:
        number = call.number(key) if value is None else value
        shape = [1 if side is None else side for side in call.result.shape]
        if like and shape and {call.tensor()} & (call.writer.dependent | call.writer.per_image):
            shape[0] = 1 if shape[0] == call.writer.batch else shape[0]
            call.writer.know_per_image(call.output)
        if any(side < 0 for side in shape) or math.prod(shape) > MAX_ELEMENTS:
            raise ConversionError("damaged-file", f"a constant of shape {shape[:8]} is too large")
        target = computing_type(call.result.dtype)
        try:
            call.writer.constants[call.output] = np.full(shape, number).astype(target)
        except (OverflowError, ValueError) as error:
            raise Unsupported(f"the number {number} has no place in {target}") from error

    return handle


def _convolution(call: Call) -> None:
    if call.flag("transposed"):
        raise Unsupported("a transposed convolution does not convert (transposed=True)")
    padding: Any = call.get("padding")
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise Unsupported(f"its argument padding is {padding!r}")
        padding = "SAME_UPPER" if padding == "same" else (0, 0, 0, 0)
    else:
        vertical, horizontal = call.pair("padding", (0, 0))
        padding = (vertical, horizontal, vertical, horizontal)
    if call.rank("input") != 4:
        raise Unsupported("a convolution of a tensor that is no batch of planes [N, C, H, W]")
    call.emit(
        "conv2d",
        call.tensor("input"),
        call.tensor("weight"),
        *([call.tensor("bias")] if call.has("bias") else []),
        strides=call.pair("stride", (1, 1)),
        dilation=call.pair("dilation", (1, 1)),
        groups=call.integers("groups", [1])[0],
        padding=padding,
    )


def _linear(call: Call) -> None:
    bias = [call.tensor("bias")] if call.has("bias") else []
    call.emit("linear", call.tensor("input"), call.tensor("weight"), *bias)


def _matmul(second: str) -> Callable[[Call], None]:
    def handle(call: Call) -> None:
        call.emit("matmul", call.tensor(), call.tensor(second))

    return handle


def _addmm(call: Call) -> None:
    """`beta * self + alpha * (mat1 @ mat2)`; with beta = 0 nothing of self counts, NaN included."""
    beta, alpha = call.number("beta", 1), call.number("alpha", 1)
    factors = [call.tensor("mat1"), call.tensor("mat2")]
    if alpha == beta == 1 and call.rank() == 1:
        call.emit("matmul", *factors, call.tensor())
        return
    last = alpha == 1 and beta == 0
    if last:
        call.emit("matmul", *factors)
        return
    product = call.step("product", "matmul", *factors)
    if beta == 0:
        call.emit("mul", product, call.constant(alpha))
        return
    if alpha != 1:
        product = call.step("scaled", "mul", product, call.constant(alpha))
    call.emit("add", product, _times(call, "self", beta))


def _max_pool(call: Call) -> None:
    kernel = call.pair("kernel_size", (1, 1))
    vertical, horizontal = call.pair("padding", (0, 0))
    if call.rank() != 4:
        raise Unsupported("a pool of a tensor that is no batch of planes [N, C, H, W]")
    call.emit(
        "max_pool2d",
        call.tensor(),
        kernel=kernel,
        strides=call.pair("stride", kernel),
        padding=(vertical, horizontal, vertical, horizontal),
        dilation=call.pair("dilation", (1, 1)),
        ceil_mode=call.flag("ceil_mode"),
    )


def _batch_norm(call: Call) -> None:
    if call.flag("training") or not call.has("running_mean") or not call.has("running_var"):
        raise Unsupported(_BY_BATCH)
    statistics = [call.tensor("running_mean"), call.tensor("running_var")]
    size = call.type_of(statistics[0]).shape
    if None in size or math.prod(side or 0 for side in size) > MAX_ELEMENTS:
        raise Unsupported(f"its running statistics have shape {list(size)}")
    affine = [
        call.tensor(key) if call.has(key) else call.constant(np.full([s or 0 for s in size], value))
        for key, value in (("weight", 1.0), ("bias", 0.0))
    ]
    call.emit(
        "batch_norm", call.tensor("input"), *affine, *statistics, epsilon=float(call.number("eps", 1e-5))
    )


def _dropout(call: Call) -> None:
    if call.get("train") is not False and call.number("p") != 0:
        raise Unsupported(
            f"dropout with p={call.number('p')} is active in evaluation, too: its answers depend on chance; "
            "give F.dropout training=self.training, or use nn.Dropout and call model.eval()"
        )
    why = "in evaluation" if call.get("train") is False else "with p=0"
    call.emit("identity", call.tensor("input"), dropped=f"dropout does nothing {why}")


def _rrelu(call: Call) -> None:
    lower, upper = call.number("lower", 1 / 8), call.number("upper", 1 / 3)
    if call.flag("training") and lower != upper:
        raise Unsupported(
            "rrelu is active in evaluation, too (training=True): its answers depend on chance; give F.rrelu "
            "training=self.training, or use nn.RReLU and call model.eval()"
        )
    call.emit("leaky_relu", call.tensor(), slope=(lower + upper) / 2)


def _prelu(by_channel: bool) -> Callable[[Call], None]:
    def handle(call: Call) -> None:
        call.emit("prelu", call.tensor(), call.tensor("weight"), by_channel=by_channel)

    return handle


def _clip(
    low: str | float | None, high: str | float | None, defaults: Mapping[str, float] | None = None
) -> Any:
    """min(max(x, low), high); an end is an argument's name or a number."""

    def handle(call: Call) -> None:
        ends: dict[str, Any] = {}
        limits: list[str] = []
        names: list[str] = []
        for end, given in (("low", low), ("high", high)):
            value = given
            if isinstance(given, str):
                value = call.get(given, (defaults or {}).get(given))
            if isinstance(value, Tensor):
                limits.append(end)
                names.append(value.name)
            elif value is not None:
                open_end = -math.inf if end == "low" else math.inf
                if not isinstance(value, (int, float)) or not (math.isfinite(value) or value == open_end):
                    raise Unsupported(f"its argument {given} is {value!r}")
                ends[end] = (
                    None if value == open_end else float(computing_type(call.result.dtype).type(value))
                )
        if limits:
            ends["limits"] = tuple(limits)
        call.emit("clip", call.tensor(), *names, **ends)

    return handle


def _leaky_relu(call: Call) -> None:
    call.emit("leaky_relu", call.tensor(), slope=float(call.number("negative_slope", 0.01)))


def _flatten(call: Call) -> None:
    start, end = call.axis("start_dim", 0), call.axis("end_dim", -1)
    if not call.rank():
        call.emit("unsqueeze", call.tensor(), axes=[0])
    else:
        call.emit("flatten", call.tensor(), start=start, end=end)


def _reshape(name: str) -> Callable[[Call], None]:
    def handle(call: Call) -> None:
        call.emit("reshape", call.tensor(), call.writer.constant(np.array(call.integers(name), np.int64)))

    return handle


def _permute(call: Call) -> None:
    call.emit("permute", call.tensor(), axes=tuple(call.axes("dims")))


def _transpose(call: Call) -> None:
    axes = list(range(call.rank()))
    if axes:
        first, second = call.axis("dim0"), call.axis("dim1")
        axes[first], axes[second] = axes[second], axes[first]
    call.emit("permute", call.tensor(), axes=tuple(axes))


def _reverse(call: Call) -> None:
    """`t` (of at most two axes) and `numpy_T`."""
    call.emit("permute", call.tensor(), axes=tuple(range(call.rank()))[::-1])


def _unsqueeze(call: Call) -> None:
    call.emit("unsqueeze", call.tensor(), axes=[call.axis("dim", rank=call.rank() + 1)])


def _squeeze(call: Call) -> None:
    shape = call.type_of(call.tensor()).shape
    axes = call.axes("dim") if "dim" in call.arguments else list(range(len(shape)))
    dropped = [axis for axis in axes if axis < len(shape) and shape[axis] == 1]
    if "dim" not in call.arguments and call.tensor() in call.writer.dependent:
        dropped = [axis for axis in dropped if axis]  # the batch stays, of which this is one image
    if dropped:
        call.emit("squeeze", call.tensor(), axes=dropped)
    else:
        call.emit("identity", call.tensor())


def _expand(call: Call) -> None:
    sides = [1 if side is None else side for side in call.result.shape]
    if call.has("other") and sides and call.tensor("other") in call.writer.dependent:
        sides[0] = 1 if sides[0] == call.writer.batch else sides[0]
        call.writer.know_per_image(call.output)
    call.emit("expand", call.tensor(), call.writer.constant(np.array(sides, np.int64)))


def _reduce(kind: str) -> Callable[[Call], None]:
    def handle(call: Call) -> None:
        call.emit(kind, call.tensor(), axes=call.axes("dim") or None, keepdims=call.flag("keepdim"))

    return handle


def _variance(root: bool) -> Callable[[Call], None]:
    def handle(call: Call) -> None:
        correction: Any = (
            call.number("correction", 1) if call.has("correction") else int(call.flag("unbiased", True))
        )
        options = {
            "axes": call.axes("dim") or None,
            "keepdims": call.flag("keepdim"),
            "correction": correction,
        }
        if root:
            call.emit("sqrt", call.step("variance", "variance", call.tensor(), **options))
        else:
            call.emit("variance", call.tensor(), **options)

    return handle


def _softmax(call: Call) -> None:
    call.emit("softmax", call.tensor(), axis=call.axis("dim"))


def _log_softmax(call: Call) -> None:
    call.emit("softmax", call.tensor(), axis=call.axis("dim"), log=True)


def _concatenate(call: Call) -> None:
    tensors = call.get("tensors") or []
    if not all(isinstance(t, Tensor) for t in tensors) or not tensors:
        raise Unsupported("its tensors are not all given")
    call.emit("concat", *(t.name for t in tensors), axis=call.axis("dim", rank=len(call.result.shape)))


# ------------------------------------------------------------------------------------------------
# the table

_STRIDED = (None, "strided")
_REAL = (None, "float32", "float64")
#: Where and how a tensor lies in memory: no value changes what is computed.
_PLACE = ("device", "pin_memory", "memory_format", "non_blocking", "copy")
_of = Signature.of


def _table() -> dict[str, Entry]:
    table: dict[str, Entry] = {}

    def add(keys: str, signature: Signature, handle: Callable[[Call], None], view_of: str = "") -> None:
        for key in keys.split():
            assert key not in table, key
            table[key] = Entry(signature, handle, view_of)

    one = _of(["self"])
    add("alias.default detach.default detach_.default", one, _identity, "self")
    add("lift_fresh_copy.default", one, _identity)
    add("clone.default", _of(["self"], ["memory_format"]), _identity)
    add("contiguous.default", _of(["self"], ["memory_format"]), _identity, "self")

    for kind in (
        "abs",
        "neg",
        "sign",
        "sqrt",
        "exp",
        "exp2",
        "log",
        "log2",
        "floor",
        "ceil",
        "trunc",
        "round",
        "tanh",
    ):
        add(f"{kind}.default", one, _elementwise(kind, "self"))
    add("sgn.default", one, _elementwise("sign", "self"))
    add("square.default", one, _square)
    add("reciprocal.default", one, _reciprocal)
    add("rsqrt.default", one, _rsqrt)

    two, scaled = _of(["self", "other"]), _of(["self", "other", "alpha"])
    add("add.Tensor add.Scalar", scaled, _sum_of("add", "self", "other"))
    add("sub.Tensor sub.Scalar", scaled, _sum_of("sub", "self", "other"))
    add("rsub.Tensor rsub.Scalar", scaled, _sum_of("sub", "other", "self"))
    add("mul.Tensor mul.Scalar", two, _elementwise("mul", "self", "other"))
    add("div.Tensor div.Scalar", two, _divide)
    add("div.Tensor_mode div.Scalar_mode", _of(["self", "other", "rounding_mode"]), _divide)
    add("floor_divide.default floor_divide.Scalar", two, _floor_divide)
    add("remainder.Tensor remainder.Scalar", two, _elementwise("remainder", "self", "other"))
    add("maximum.default", two, _elementwise("maximum", "self", "other"))
    add("minimum.default", two, _elementwise("minimum", "self", "other"))
    add(
        "pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar",
        _of(["self", "exponent"]),
        _elementwise("pow", "self", "exponent"),
    )
    for relation in ("ge", "gt", "le", "lt", "eq", "ne"):
        add(f"{relation}.Tensor {relation}.Scalar", two, _compare(relation))
    add(
        "where.self where.ScalarSelf where.ScalarOther where.Scalar",
        _of(["condition", "self", "other"]),
        _where,
    )

    add("to.dtype to.device", _of(["self", "dtype"], _PLACE), _convert, "self")
    add("to.other", _of(["self", "other"], _PLACE), _convert, "self")
    add("to.dtype_layout", _of(["self", "dtype"], _PLACE, layout=_STRIDED), _convert, "self")
    add("type_as.default", _of(["self", "other"]), _convert, "self")
    add("_to_copy.default", _of(["self", "dtype"], _PLACE, layout=_STRIDED), _convert)

    made = ["dtype", "self", "size", "fill_value", "s"]

    def fill(*names: str) -> Signature:
        return _of([name for name in made if name in ("dtype", *names)], _PLACE, layout=_STRIDED)

    add("full.default", fill("size", "fill_value"), _fill(None, "fill_value"))
    add("full_like.default", fill("self", "fill_value"), _fill(None, "fill_value", like=True))
    add("scalar_tensor.default", fill("s"), _fill(None, "s"))
    add("ones.default", fill("size"), _fill(1))
    add("zeros.default", fill("size"), _fill(0))
    add("ones_like.default", fill("self"), _fill(1, like=True))
    add("zeros_like.default", fill("self"), _fill(0, like=True))

    window = ["input", "weight", "bias", "stride", "padding", "dilation", "groups"]
    add("conv2d.default conv2d.padding", _of(window), _convolution)
    # The padding of a transposed convolution's result, which is refused.
    add("convolution.default", _of([*window, "transposed"], ["output_padding"]), _convolution)
    add("linear.default", _of(["input", "weight", "bias"]), _linear)
    add("matmul.default", two, _matmul("other"))
    add("mm.default", _of(["self", "mat2"]), _matmul("mat2"))
    add("addmm.default", _of(["self", "mat1", "mat2", "beta", "alpha"]), _addmm)
    add(
        "max_pool2d.default max_pool2d_with_indices.default",
        _of(["self", "kernel_size", "stride", "padding", "dilation", "ceil_mode"]),
        _max_pool,
    )
    norm = ["input", "weight", "bias", "running_mean", "running_var", "eps"]
    add("batch_norm.default", _of([*norm, "training"], ["momentum", "cudnn_enabled"]), _batch_norm)
    add("_native_batch_norm_legit_no_training.default", _of(norm, ["momentum"]), _batch_norm)
    drop = _of(["input", "p", "train"])
    add("dropout.default feature_dropout.default alpha_dropout.default", drop, _dropout, "input")
    add("feature_alpha_dropout.default native_dropout.default", drop, _dropout, "input")
    add("rrelu.default", _of(["self", "lower", "upper", "training"], ["generator"]), _rrelu)
    add("prelu.default", _of(["self", "weight"]), _prelu(True))
    add("_prelu_kernel.default", _of(["self", "weight"]), _prelu(False))
    add("relu.default", one, _clip(0.0, None))
    add("relu6.default", one, _clip(0.0, 6.0))
    add("leaky_relu.default", _of(["self", "negative_slope"]), _leaky_relu)
    ends = {"min_val": -1.0, "max_val": 1.0}
    add("hardtanh.default", _of(["self", "min_val", "max_val"]), _clip("min_val", "max_val", ends))
    add(
        "clamp.default clamp.Tensor clip.default clip.Tensor",
        _of(["self", "min", "max"]),
        _clip("min", "max"),
    )
    add("clamp_min.default clamp_min.Tensor", _of(["self", "min"]), _clip("min", None))
    add("clamp_max.default clamp_max.Tensor", _of(["self", "max"]), _clip(None, "max"))

    add("flatten.using_ints", _of(["self", "start_dim", "end_dim"]), _flatten, "self")
    add("view.default _unsafe_view.default", _of(["self", "size"]), _reshape("size"), "self")
    add("reshape.default", _of(["self", "shape"]), _reshape("shape"), "self")
    add("permute.default", _of(["self", "dims"]), _permute, "self")
    add("transpose.int", _of(["self", "dim0", "dim1"]), _transpose, "self")
    add("t.default numpy_T.default", one, _reverse, "self")
    add("unsqueeze.default", _of(["self", "dim"]), _unsqueeze, "self")
    add("squeeze.default", one, _squeeze, "self")
    add("squeeze.dim squeeze.dims", _of(["self", "dim"]), _squeeze, "self")
    add("expand.default", _of(["self", "size"], ["implicit"]), _expand, "self")
    add("expand_as.default", two, _expand, "self")

    # The type of a sum is that of its result, which is stated.
    for kind in ("mean", "sum"):
        add(f"{kind}.default", _of(["self", "dtype"]), _reduce(kind))
    reduced = _of(["self", "dim", "keepdim", "dtype"])
    add("mean.dim", reduced, _reduce("mean"))
    add("sum.dim_IntList", reduced, _reduce("sum"))
    for name, root in (("var", False), ("std", True)):
        add(f"{name}.default", _of(["self", "unbiased"]), _variance(root))
        add(f"{name}.dim", _of(["self", "dim", "unbiased", "keepdim"]), _variance(root))
        add(f"{name}.correction", _of(["self", "dim", "correction", "keepdim"]), _variance(root))

    add("softmax.int", _of(["self", "dim"], dtype=_REAL), _softmax)
    add("log_softmax.int", _of(["self", "dim"], dtype=_REAL), _log_softmax)
    add("_softmax.default", _of(["self", "dim"], half_to_float=(False,)), _softmax)
    add("_log_softmax.default", _of(["self", "dim"], half_to_float=(False,)), _log_softmax)
    add("cat.default", _of(["tensors", "dim"]), _concatenate)
    return table


OPERATORS: Mapping[str, Entry] = _table()
