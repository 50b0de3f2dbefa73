"""Small ONNX networks in which one argument of one operator has a value of its own: what
`test_onnx_arguments.py` converts.

A network is `image -> convolution -> BatchNorm -> sign -> flatten -> dense -> logits`. The operator on trial
stands at one of its *places*:

| place | what goes in |
|---|---|
| image | the image `[1, 3, 6, 6]`, before the first convolution |
| conv | the first convolution itself |
| sums | real numbers `[1, 4, 5, 5]`, before the sign |
| bits | -1 and +1 `[1, 4, 5, 5]`, behind the sign |
| head | the last layer, on bits `[1, F]` |
| logits | its results `[1, 5]` |
| weights | the first convolution's parameters `[4, 3, 2, 2]`: constants alone |

`TRIALS` has, for every operator, the places where it is tried and the values of its attributes and inputs,
beside the plain operator that they change. `cases` builds them for the sets that changed the operator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from cbin_nn.converters.onnx import OLDEST_OPSET, OPERATORS
from cbin_nn.converters.onnx_run import run_onnx
from onnx import TensorProto, helper, numpy_helper

QONNX = "qonnx.custom_op.general"
SIDE, CHANNELS, FILTERS, CLASSES = 6, 3, 4, 5

#: An input or attribute that is left out.
ABSENT = object()

F = np.float32


@dataclass(frozen=True)
class Case:
    """One network."""

    operator: str
    #: The attribute or input that has a value of its own; "" for the operator as it is.
    argument: str
    value: str
    opset: int
    place: str
    #: Which of the operator's trials this is, and which of its values.
    number: tuple[int, int]
    model: Any

    @property
    def key(self) -> str:
        """By which the recorded answers know it."""
        trial, value = self.number
        return f"{self.operator}-{self.opset} {trial}.{value}"

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.key} {self.place} {self.argument or 'plain'} {self.value}"


def images(count: int = 6) -> np.ndarray:
    """u8 `[N, H, W, C]`."""
    rng = np.random.default_rng(5)
    return rng.integers(0, 256, (count, SIDE, SIDE, CHANNELS), dtype=np.uint8)


class Builder:
    """Nodes and initializers of one graph."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[Any] = []
        self.initializers: dict[str, np.ndarray] = {}
        self.count = 0

    def constant(self, value: Any, dtype: Any = None) -> str:
        name = f"c{len(self.initializers)}"
        self.initializers[name] = np.asarray(value, dtype)
        return name

    def add(self, operator: str, inputs: Sequence[str], outputs: int = 1, domain: str = "", **a: Any) -> str:
        self.count += 1
        name = f"t{self.count}"
        names = [name, *(f"{name}_{i}" for i in range(1, outputs))]
        a = {k: v.tolist() if isinstance(v, (np.ndarray, np.generic)) else v for k, v in a.items()}
        empty = [k for k, v in a.items() if v == []]
        made = helper.make_node(
            operator, inputs, names, domain=domain, **{k: v for k, v in a.items() if k not in empty}
        )
        for k in empty:  # which make_node has no type for
            made.attribute.add(name=k, type=onnx.AttributeProto.INTS)
        self.nodes.append(made)
        return name

    def bipolar(self, x: str, scale: Any = 1.0) -> str:
        return self.add("BipolarQuant", [x, self.constant(F(scale))], domain=QONNX)

    def model(self, output: str, shape: Sequence[Any], dtype: int = TensorProto.FLOAT) -> Any:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", dtype, shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            [numpy_helper.from_array(value, name) for name, value in self.initializers.items()],
        )
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid(QONNX, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8 if self.opset < 20 else 10)


#: Adds the operator under test: (builder, input, attributes and inputs by name) -> its result.
Make = Callable[[Builder, str, dict[str, Any]], str]


def network(opset: int, place: str, make: Make, given: dict[str, Any]) -> Any:
    """The model with `make` at `place`."""
    rng = np.random.default_rng(11)
    b = Builder(opset)
    shape: list[Any] = [1, CHANNELS, SIDE, SIDE]
    dtype = TensorProto.FLOAT
    if given.get("nhwc"):
        shape = [1, SIDE, SIDE, CHANNELS]
    if given.get("uint8"):
        dtype = TensorProto.UINT8
    x = "x"
    if place == "image":
        x = make(b, x, given)
    kernel = (rng.normal(size=(FILTERS, CHANNELS, 2, 2)) * 3).astype(F)
    if place == "weights":
        weights = make(b, b.constant(kernel), {**given, "array": kernel})
        weights = b.add("Reshape", [weights, b.constant([FILTERS, CHANNELS, 2, 2], np.int64)])
        weights = b.bipolar(weights)
    else:
        weights = b.constant(np.where(kernel >= 0, F(1), F(-1)))
    x = make(b, x, {**given, "array": kernel}) if place == "conv" else b.add("Conv", [x, weights])
    norm = [
        np.array([1.25, -0.75, 0.5, 2.0], F),
        np.array([0.3, -0.2, 0.1, 0.4], F),
        np.array([20.0, -30.0, 10.0, 60.0], F),
        np.array([9000.0, 20000.0, 14000.0, 11000.0], F),
    ]
    filters = given.get("filters", FILTERS)
    x = b.add("BatchNormalization", [x, *(b.constant(np.resize(v, filters)) for v in norm)])
    if place == "sums":
        x = make(b, x, given)
    if not given.get("signed"):
        x = b.bipolar(x)
    if place == "bits":
        x = make(b, x, given)
    if not given.get("flat"):
        x = b.add("Flatten", [x])
    features = given.get("features") or _features(b, x, shape, dtype)
    head = rng.choice(np.array([-1, 1], F), (features, CLASSES))
    given = {**given, "array": head}
    x = make(b, x, given) if place == "head" else b.add("MatMul", [x, b.constant(head)])
    if place == "logits":
        x = make(b, x, given)
    return b.model(x, shape, dtype)


def _features(b: Builder, x: str, shape: Sequence[int], dtype: int) -> int:
    try:
        values, _ = run_onnx(b.model(x, shape, dtype), np.zeros(tuple(shape), F), [])
    except Exception:
        return 100  # no network: what follows does not matter
    return int(values.shape[-1])


# ------------------------------------------------------------------------------------------------
# the operators


@dataclass(frozen=True)
class Trial:
    """How an operator stands in a network, and the values to try."""

    place: str
    make: Make
    #: Attributes and inputs as they are where nothing is tried.
    base: dict[str, Any] = field(default_factory=dict)
    #: Argument -> values. An argument that a form does not have is not tried there.
    values: dict[str, list[Any]] = field(default_factory=dict)
    #: Whether the plain operator converts here; else it must be refused (or right).
    converts: bool = True
    oldest: int = OLDEST_OPSET


def _arguments(operator: str, b: Builder, given: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """(inputs behind the first, attributes) of the form of this operator set."""
    schema = onnx.defs.get_schema(operator, b.opset, "")
    attributes = {k: v for k, v in given.items() if k in schema.attributes and v is not ABSENT}
    names = [i.name for i in schema.inputs]
    inputs = []
    for name in names[1:]:
        value = given.get(name, ABSENT)
        inputs.append("" if value is ABSENT else value if isinstance(value, str) else b.constant(value))
    while inputs and not inputs[-1]:
        inputs.pop()
    return inputs, attributes


def node(operator: str, *, float_after: bool = False, first: str = "") -> Make:
    """The operator on its input, its other inputs and attributes as given; `first` names an input that stands
    before the data."""

    def make(b: Builder, x: str, given: dict[str, Any]) -> str:
        inputs, attributes = _arguments(operator, b, given)
        names = [x, *inputs]
        swapped = given.get(first, ABSENT) if first else ABSENT
        if swapped is not ABSENT:
            names = [b.constant(swapped), x]
        outputs = int(given.get("outputs", 1))
        y = b.add(operator, names, outputs, **attributes)
        if given.get("second"):
            y = b.add("Cast", [f"{y}_1"], to=TensorProto.FLOAT)
        return b.add("Cast", [y], to=TensorProto.FLOAT) if float_after else y

    return make


def of_integers(operator: str) -> Make:
    """Weights from integers."""

    def make(b: Builder, x: str, given: dict[str, Any]) -> str:
        whole = np.trunc(given["array"] * 2).astype(given.get("kind", np.int32))
        operands = [b.constant(whole)]
        if operator not in ("Abs", "Neg", "Sign", "Identity"):
            operands.append(b.constant(np.asarray(given.get("B", 2), whole.dtype)))
        y = b.add(operator, operands)
        return b.add("Cast", [y], to=TensorProto.FLOAT)

    return make


def of_positive(operator: str) -> Make:
    """Weights through an operator of numbers above 0, made to have both signs behind it."""

    def make(b: Builder, x: str, given: dict[str, Any]) -> str:
        inputs, attributes = _arguments(operator, b, given)
        y = b.add(operator, [b.constant(np.abs(given["array"])), *inputs], **attributes)
        return b.add("Sub", [y, b.constant(F(1.2))])

    return make


def reduced(operator: str) -> Make:
    """Weights less a mean of theirs."""

    def make(b: Builder, x: str, given: dict[str, Any]) -> str:
        y = node(operator)(b, x, given)
        return b.add("Sub", [x, y])

    return make


def compared(operator: str) -> Make:
    """A comparison, and numbers by it."""

    def make(b: Builder, x: str, given: dict[str, Any]) -> str:
        y = node(operator, first="A")(b, x, given)
        if b.opset >= 9:
            return b.add("Where", [y, b.constant(F(1)), b.constant(F(-1))])
        y = b.add("Cast", [y], to=TensorProto.FLOAT)
        return b.add("Sub", [y, b.constant(F(0.5))])

    return make


def chosen(b: Builder, x: str, given: dict[str, Any]) -> str:
    y = b.add("Greater", [x, b.constant(F(0.25))])
    return b.add("Where", [y, b.constant(given["X"]), b.constant(given["Y"])])


def variadic(operator: str) -> Make:
    def make(b: Builder, x: str, given: dict[str, Any]) -> str:
        return b.add(operator, [x, *(b.constant(v) for v in given["data_0"])])

    return make


def joined(b: Builder, x: str, given: dict[str, Any]) -> str:
    parts = np.split(given["array"], 2, axis=0)
    return b.add("Concat", [b.constant(part) for part in parts], axis=given["axis"])


def joined_bits(b: Builder, x: str, given: dict[str, Any]) -> str:
    y = b.add("MaxPool", [x], kernel_shape=[1, 1])
    return b.add("Concat", [x, y], axis=given["axis"])


def constant_node(b: Builder, x: str, given: dict[str, Any]) -> str:
    schema = onnx.defs.get_schema("Constant", b.opset, "")
    attributes = {k: v for k, v in given.items() if k in schema.attributes and v is not ABSENT}
    if len(attributes) > 1:
        attributes.pop("value")
    y = b.add("Constant", [], **attributes)
    if {"value_int", "value_ints"} & set(attributes):
        y = b.add("Cast", [y], to=TensorProto.FLOAT)
    return b.add("Add", [x, y])


def filled(b: Builder, x: str, given: dict[str, Any]) -> str:
    attributes = {} if given["value"] is ABSENT else {"value": given["value"]}
    y = b.add("ConstantOfShape", [b.constant(given["input"])], **attributes)
    y = b.add("Cast", [y], to=TensorProto.FLOAT)
    return b.add("Add", [x, y])


def by_shape(b: Builder, x: str, given: dict[str, Any]) -> str:
    """A reshape to the first side of the data's shape, and the rest."""
    attributes = {
        k: given[k] for k in ("start", "end") if b.opset >= 15 and given.get(k, ABSENT) is not ABSENT
    }
    y = b.add("Shape", [x], **attributes)
    if "end" not in attributes:
        y = b.add("Gather", [y, b.constant([0], np.int64)])
    y = b.add("Concat", [y, b.constant([-1], np.int64)], axis=0)
    return b.add("Reshape", [x, y])


def convolution(b: Builder, x: str, given: dict[str, Any]) -> str:
    kernel = given["array"]
    if given.get("group", 1) == CHANNELS:
        kernel = kernel[:CHANNELS, :1]
    inputs = [x, b.constant(np.where(kernel >= 0, F(1), F(-1)))]
    if given.get("B", ABSENT) is not ABSENT:
        inputs.append(b.constant(given["B"]))
    schema = onnx.defs.get_schema("Conv", b.opset, "")
    attributes = {k: v for k, v in given.items() if k in schema.attributes and v is not ABSENT}
    return b.add("Conv", inputs, **attributes)


def normalized(b: Builder, x: str, given: dict[str, Any]) -> str:
    schema = onnx.defs.get_schema("BatchNormalization", b.opset, "")
    attributes = {k: v for k, v in given.items() if k in schema.attributes and v is not ABSENT}
    side = (FILTERS, 5, 5) if given.get("spatial", 1) == 0 and b.opset < 9 else (FILTERS,)
    base = [[0.5, -0.7, 1.5, 1.0], [0.3, 0.2, -0.4, 0.1], [0.2, 0.1, -0.3, 0.2], [0.4, 0.6, 0.5, 0.9]]
    fields = [np.broadcast_to(np.array(v, F).reshape(-1, *(1,) * (len(side) - 1)), side) for v in base]
    outputs = given.get("outputs", 1)
    if given.get("training_mode", 0) and b.opset >= 14:
        outputs = 3
    return b.add("BatchNormalization", [x, *map(b.constant, fields)], outputs, **attributes)


def product(b: Builder, x: str, given: dict[str, Any]) -> str:
    weights = given["array"]
    if given.get("transB", 0):
        weights = np.ascontiguousarray(weights.T)
    bias = given.get("C", ABSENT)
    inputs = [x, b.constant(weights), *([] if bias is ABSENT else [b.constant(bias)])]
    attributes = {k: given[k] for k in ("alpha", "beta", "transA", "transB") if k in given}
    return b.add("Gemm", inputs, **attributes)


def matrix(b: Builder, x: str, given: dict[str, Any]) -> str:
    names = [x, b.constant(given["array"])]
    return b.add("MatMul", names[::-1] if given.get("first") else names)


def moved_axes(b: Builder, x: str, given: dict[str, Any]) -> str:
    return b.add("Transpose", [x], **({} if given["perm"] is ABSENT else {"perm": given["perm"]}))


def resized(operator: str, shape: Sequence[int] | None = None) -> Make:
    def make(b: Builder, x: str, given: dict[str, Any]) -> str:
        if shape is not None:
            x = b.add("Reshape", [x, b.constant(shape, np.int64)])
        axes = given["axes"]
        if axes is ABSENT:
            return b.add(operator, [x])
        if b.opset < 13:
            return b.add(operator, [x], axes=axes)
        return b.add(operator, [x, b.constant(axes, np.int64)])

    return make


def sliced(b: Builder, x: str, given: dict[str, Any]) -> str:
    twice = np.concatenate([given["array"], -given["array"]])
    names = ("starts", "ends", "axes", "steps")
    if b.opset < 10:
        attributes = {k: given[k] for k in names[:3] if given.get(k, ABSENT) is not ABSENT}
        return b.add("Slice", [b.constant(twice)], **attributes)
    parts = [given.get(k, ABSENT) for k in names]
    inputs = ["" if v is ABSENT else b.constant(v, given.get("kind", np.int64)) for v in parts]
    while not inputs[-1]:
        inputs.pop()
    return b.add("Slice", [b.constant(twice), *inputs])


def dropped(b: Builder, x: str, given: dict[str, Any]) -> str:
    outputs = 2 if given.get("second") else 1
    if b.opset < 12:
        y = b.add("Dropout", [x], outputs, **{k: given[k] for k in ("ratio",) if k in given})
    else:
        inputs = [x]
        ratio, training = given.get("ratio", ABSENT), given.get("training_mode", ABSENT)
        inputs.append("" if ratio is ABSENT else b.constant(F(ratio)))
        inputs.append("" if training is ABSENT else b.constant(training))
        while not inputs[-1]:
            inputs.pop()
        y = b.add("Dropout", inputs, outputs, **({"seed": given["seed"]} if "seed" in given else {}))
    if given.get("second"):
        y = b.add("Cast", [f"{y}_1"], to=TensorProto.FLOAT)
    return y


def repeated(b: Builder, x: str, given: dict[str, Any]) -> str:
    return b.add("Expand", [b.constant(given["array"][:, :, :1, :1]), b.constant(given["shape"])])


def quantized(b: Builder, x: str, given: dict[str, Any]) -> str:
    return b.add("BipolarQuant", [x, b.constant(given["scale"])], domain=QONNX)


def like(b: Builder, x: str, given: dict[str, Any]) -> str:
    attributes = {k: given[k] for k in ("saturate", "round_mode") if k in given}
    y = b.add("CastLike", [x, b.constant(given["target_type"])], **attributes)
    return b.add("Cast", [y], to=TensorProto.FLOAT)


_DIV = {"B": [F(2), F(-0.5), np.array([[[2]], [[-1]], [[4]], [[0.5]]], F), np.array([1, -2, 4, 8, -0.5], F)]}
_SHAPES = [
    F(0.4),
    np.array([0.7], F),
    np.array([0.2, -0.4, 0.6, -0.8], F).reshape(4, 1, 1),
    np.array([0.2, -0.4, 0.6, -0.8], F).reshape(1, 4, 1, 1),
    np.array([0.1, -0.2, 0.3, -0.4, 0.5], F),  # by column, of which there are as many as rows
    np.linspace(-1, 1, 100, dtype=F).reshape(4, 5, 5),
]
_TYPES = [TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT32, TensorProto.BOOL, TensorProto.UINT8]
_WINDOWS: dict[str, list[Any]] = {
    "auto_pad": ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"],
    "pads": [[1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 0, 0], [0, 0, 1, 1]],
    "strides": [[1, 2], [2, 1], [2, 2]],
    "dilations": [[1, 2], [2, 1]],
}


def _binary(operator: str, kinds: Sequence[Any] = (np.int32, np.int64)) -> list[Trial]:
    values = _DIV["B"] + _SHAPES if operator in ("Div", "Mul") else _SHAPES
    on_sums = {"B": values, "A": _SHAPES[:3]}
    return [
        Trial("sums", node(operator, first="A"), {"B": F(0.3)}, on_sums),
        Trial("weights", node(operator, first="A"), {"B": F(0.3)}, {"B": [F(-2)], "A": [F(1.5)]}),
        Trial("weights", of_integers(operator), {"kind": np.int32}, {"kind": list(kinds), "B": [3, -2, -3]}),
    ]


def _float_weights(operator: str) -> list[Trial]:
    return [
        Trial("weights", node(operator)),
        Trial("sums", node(operator), converts=False),
    ]


TRIALS: dict[str, list[Trial]] = {
    "Abs": [*_float_weights("Abs"), Trial("weights", of_integers("Abs"))],
    "Add": _binary("Add"),
    "BatchNormalization": [
        Trial(
            "sums",
            normalized,
            {},
            {
                "epsilon": [1e-3, 5.0],
                "momentum": [0.1, 0.0, 1.0],
                "spatial": [0, 1],
                "training_mode": [1],
                "outputs": [2, 3, 5],
            },
        ),
    ],
    "Cast": [
        Trial("image", node("Cast"), {"to": TensorProto.FLOAT, "uint8": True}),
        Trial(
            "image",
            node("Cast", float_after=True),
            {"to": TensorProto.FLOAT},
            {"to": [*_TYPES, TensorProto.BFLOAT16], "saturate": [0], "round_mode": ["down"]},
        ),
        Trial(
            "weights",
            node("Cast", float_after=True),
            {"to": TensorProto.FLOAT},
            {"to": [*_TYPES[:4], TensorProto.INT64], "saturate": [0], "round_mode": ["nearest"]},
        ),
        Trial("sums", node("Cast", float_after=True), {"to": TensorProto.FLOAT}, {"to": _TYPES}),
    ],
    "CastLike": [
        Trial(
            place,
            like,
            {"target_type": F(0)},
            {
                "target_type": [np.float64(0), np.float16(0), np.int32(0), np.int64(0), np.bool_(False)],
                "saturate": [0],
                "round_mode": ["down"],
            },
        )
        for place in ("image", "weights")
    ],
    "Clip": [
        Trial(
            place,
            node("Clip"),
            {"min": F(-1), "max": F(1)},
            {"min": [F(-0.25), F(0.25), F(0), F(2), ABSENT], "max": [F(0.5), F(-0.5), F(-2), ABSENT]},
        )
        for place in ("sums", "weights")
    ],
    "Concat": [
        Trial("weights", joined, {"axis": 0}, {"axis": [-4, 1, 3, -1]}),
        Trial("bits", joined_bits, {"axis": 1}, {"axis": [-3, 0, 2, 3, -1]}, converts=False),
    ],
    "Constant": [
        Trial(
            "weights",
            constant_node,
            {"value": numpy_helper.from_array(F(0.5))},
            {
                "value": [numpy_helper.from_array(np.array([1, -2], F))],
                "value_float": [0.75],
                "value_floats": [[0.5, -0.75]],
                "value_int": [1, -2],
                "value_ints": [[1, -3]],
                "value_string": ["1"],
                "value_strings": [["1", "2"]],
                "sparse_value": [
                    helper.make_sparse_tensor(
                        helper.make_tensor("v", TensorProto.FLOAT, [1], [3.0]),
                        helper.make_tensor("i", TensorProto.INT64, [1], [1]),
                        [2],
                    )
                ],
            },
        )
    ],
    "ConstantOfShape": [
        Trial(
            "weights",
            filled,
            {"value": numpy_helper.from_array(np.array([0.5], F)), "input": np.array([2], np.int64)},
            {
                "value": [
                    ABSENT,
                    numpy_helper.from_array(np.array([-2], F)),
                    numpy_helper.from_array(np.array([-1], np.int64)),
                    numpy_helper.from_array(np.array([True])),
                ],
                "input": [np.array([], np.int64), np.array([3, 2, 2], np.int64)],
            },
        )
    ],
    "Conv": [
        Trial("conv", convolution, dict(base), {**_WINDOWS, **extra})
        for base, extra in (
            (
                {},
                {
                    "kernel_shape": [[2, 2], [3, 3]],
                    "group": [3, 1],
                    "B": [np.array([3, -2, 1, 40], F), np.array([5], F)],
                },
            ),
            ({"strides": [2, 2]}, {}),
            ({"dilations": [2, 2]}, {}),
            ({"strides": [2, 1], "dilations": [2, 3]}, {}),
            ({"auto_pad": "SAME_UPPER"}, {"pads": [[1, 1, 1, 1]]}),
        )
    ],
    "Div": _binary("Div"),
    "Dropout": [
        Trial(
            place,
            dropped,
            {},
            {
                "ratio": [0.25, 0.0, 0.9],
                "seed": [1, 7],
                "training_mode": [np.bool_(True), np.bool_(False)],
                "second": [True],
            },
        )
        for place in ("image", "sums", "bits", "logits")
    ],
    "Expand": [
        Trial(
            "weights",
            repeated,
            {"shape": np.array([FILTERS, CHANNELS, 2, 2], np.int64)},
            {
                "shape": [
                    np.array([1, 1, 2, 2], np.int64),
                    np.array([2, 2], np.int64),
                    np.array([3], np.int64),
                ]
            },
        )
    ],
    "Flatten": [
        Trial("bits", node("Flatten"), {"axis": 1, "flat": True}, {"axis": [0, 2, 3, 4, -1, -3, -4]}),
        Trial("weights", node("Flatten"), {"axis": 1}, {"axis": [0, 2, 3, 4, -1, -3]}),
    ],
    "Gather": [
        Trial(
            "weights",
            node("Gather"),
            {"axis": 0, "indices": np.array([2, 0, 1, 3], np.int64)},
            {
                "axis": [1, -4, 2, ABSENT],
                "indices": [np.array([-1, -2, -3, -4], np.int64), np.array([[3, 2], [1, 0]], np.int32)],
            },
        ),
    ],
    "Gemm": [
        Trial(
            "head",
            product,
            {"C": np.array([1, -2, 3, 0.5, 10], F)},
            {
                "alpha": [0.5, -2.0, 0.0],
                "beta": [0.5, -3.0, 0.0],
                "transA": [1],
                "transB": [1],
                "C": [ABSENT, F(2), np.array([2], F), np.array([[1, 2, 3, 4, 5]], F), np.array([[3]], F)],
            },
        ),
        Trial(
            "head",
            product,
            {"C": np.array([1, 2, 3, 4, 5], F), "alpha": 0.5},
            {"beta": [0.25], "transB": [1]},
        ),
    ],
    "Identity": [Trial(place, node("Identity")) for place in ("image", "sums", "bits", "logits", "weights")],
    "LeakyRelu": [
        Trial(place, node("LeakyRelu"), {"alpha": 0.25}, {"alpha": [ABSENT, 0.0, -0.5, 2.0]})
        for place in ("sums", "weights", "logits")
    ],
    "LogSoftmax": [Trial("logits", node("LogSoftmax"), {"axis": 1}, {"axis": [ABSENT, -1, 0]})],
    "MatMul": [Trial("head", matrix, {}, {"first": [True]})],
    "MaxPool": [
        Trial(
            place,
            node("MaxPool"),
            {"kernel_shape": [2, 2], **base},
            {
                **_WINDOWS,
                "kernel_shape": [[3, 2], [1, 3]],
                "ceil_mode": [1],
                "storage_order": [1],
                **({"outputs": [2]} if not base else {}),
            },
        )
        for place in ("sums", "bits")
        for base in (
            {},
            {"strides": [2, 2]},
            {"strides": [3, 2], "ceil_mode": 1},
            {"dilations": [2, 2], "ceil_mode": 1},
            {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
            {"strides": [2, 2], "auto_pad": "SAME_LOWER", "ceil_mode": 1},
            {"strides": [2, 2], "auto_pad": "VALID", "ceil_mode": 1},
        )
    ],
    "Mul": _binary("Mul"),
    "Neg": [
        Trial("weights", node("Neg")),
        Trial("weights", of_integers("Neg")),
        Trial("sums", node("Neg")),
        Trial("logits", node("Neg")),
    ],
    "PRelu": [
        Trial("sums", node("PRelu"), {"slope": np.full((4, 1, 1), 0.25, F)}, {"slope": [*_SHAPES, F(-1)]}),
        Trial("logits", node("PRelu"), {"slope": F(0.25)}, {"slope": [np.array([1, 2, -3, 0.5, 0], F)]}),
        Trial("weights", node("PRelu"), {"slope": F(0.25)}, {"slope": [F(-2)]}, converts=False),
    ],
    "Pow": [
        Trial("weights", of_positive("Pow"), {"Y": F(2)}, {"Y": [F(0.5), F(-1), F(3)]}),
        Trial("weights", of_positive("Pow"), {"Y": np.int64(2)}, {"Y": [np.int32(3)]}, oldest=12),
        Trial("sums", node("Pow"), {"Y": F(2)}, converts=False),
    ],
    "ReduceMean": [],
    "ReduceSum": [],
    "Relu": [Trial(place, node("Relu")) for place in ("sums", "logits")],
    "Reshape": [
        Trial(
            "bits",
            node("Reshape"),
            {"shape": np.array([0, -1], np.int64), "flat": True, "features": 100},
            {
                "shape": [
                    np.array(v, np.int64)
                    for v in ([1, -1], [-1, 100], [1, 100], [1, 4, 25], [4, 25], [0, 0, -1])
                ],
                "allowzero": [1],
            },
        ),
        Trial(
            "bits",
            node("Reshape"),
            {"shape": np.array([1, -1], np.int64), "flat": True},
            {"allowzero": [1, 0]},
        ),
        Trial(
            "weights",
            node("Reshape"),
            {"shape": np.array([4, -1], np.int64)},
            {"shape": [np.array([2, 0, 4, -1], np.int64)], "allowzero": [1]},
        ),
    ],
    "Shape": [
        Trial(
            "bits",
            by_shape,
            {"start": 0, "end": 1, "flat": True},
            {"start": [-4, -9, 1], "end": [-3, ABSENT, 2, -1]},
        )
    ],
    "Sign": [
        Trial("weights", node("Sign")),
        Trial("weights", of_integers("Sign")),
        Trial("sums", node("Sign"), {"signed": True}),
        Trial("sums", node("Sign")),
    ],
    "Slice": [
        Trial(
            "weights",
            sliced,
            {"starts": [0], "ends": [4], "axes": [0]},
            {
                "starts": [[2], [-4], [-100]],
                "ends": [[5], [-4], [100]],
                "axes": [[-4], ABSENT, [1]],
                "steps": [[1], [2]],
                "kind": [np.int32],
            },
        ),
        Trial(
            "weights",
            sliced,
            {"starts": [7], "ends": [3], "axes": [0], "steps": [-1]},
            {"starts": [[100]], "ends": [[-5]], "axes": [[-4], ABSENT], "steps": [[-2]]},
            oldest=10,
        ),
    ],
    "Softmax": [
        Trial("logits", node("Softmax"), {"axis": 1}, {"axis": [ABSENT, -1, 0]}),
        Trial("sums", node("Softmax"), {"axis": 1}, {"axis": [ABSENT, 3]}, converts=False),
    ],
    "Sqrt": [Trial("weights", of_positive("Sqrt")), Trial("sums", node("Sqrt"), converts=False)],
    "Squeeze": [
        Trial(
            "weights",
            resized("Squeeze", [1, 4, 1, 12]),
            {"axes": [0]},
            {"axes": [[2], [0, 2], [-2], ABSENT, [1]]},
        ),
        Trial(
            "bits", resized("Squeeze", [1, -1, 1, 1]), {"axes": [2, 3]}, {"axes": [[2], ABSENT, [0]]}, False
        ),
        Trial("logits", resized("Squeeze"), {"axes": ABSENT}, {"axes": [[0]]}, converts=False),
    ],
    "Sub": _binary("Sub"),
    "Tanh": _float_weights("Tanh"),
    "Transpose": [
        Trial("image", moved_axes, {"perm": [0, 3, 1, 2], "nhwc": True}, {"perm": [[0, 3, 2, 1], ABSENT]}),
        Trial("weights", moved_axes, {"perm": [0, 1, 3, 2]}, {"perm": [[1, 0, 2, 3], [3, 2, 1, 0], ABSENT]}),
        Trial(
            "bits", moved_axes, {"perm": [0, 2, 3, 1]}, {"perm": [[0, 1, 3, 2], [0, 3, 2, 1], [1, 0, 2, 3]]}
        ),
    ],
    "Unsqueeze": [
        Trial("weights", resized("Unsqueeze"), {"axes": [0]}, {"axes": [[1, 3], [-1], [2], [5]]}),
        Trial("logits", resized("Unsqueeze"), {"axes": [0]}, {"axes": [[1], [-1]]}, converts=False),
    ],
    "Where": [
        Trial(
            "sums",
            chosen,
            {"X": F(1), "Y": F(-1), "signed": True},
            {
                "X": [
                    F(-2),
                    np.ones((1, 4, 5, 5), F),
                    np.array([1, 1, 1, 2, 1], F),
                    np.ones((2, 1, 1, 1, 1), F),
                ],
                "Y": [F(0), F(3), np.full((4, 1, 1), -1, F)],
            },
        ),
        Trial("weights", chosen, {"X": F(1), "Y": F(-1)}, {"X": [F(-1), np.array([1, -1], F)], "Y": [F(2)]}),
    ],
    "BipolarQuant": [
        Trial(
            "sums", quantized, {"scale": F(1), "signed": True}, {"scale": [F(0.5), np.array([2], F), F(-1)]}
        ),
        Trial("weights", quantized, {"scale": F(1)}, {"scale": [F(0.25), F(-2), np.array([1, -1], F)]}),
    ],
}
for _name in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual"):
    TRIALS[_name] = [
        Trial(
            "sums",
            compared(_name),
            {"B": F(0.2), "signed": True},
            {"B": _SHAPES, "A": _SHAPES[:3]},
            oldest=9,
        ),
        Trial("weights", compared(_name), {"B": F(0.2)}, {"B": [F(-3)], "A": [F(1)]}),
    ]
for _name in ("Max", "Min"):
    TRIALS[_name] = [
        Trial(
            place,
            variadic(_name),
            {"data_0": [F(0.25)]},
            {"data_0": [[], [F(-0.5)], [F(-1), F(0.5)], [F(-0.5), F(-1), F(0.1)]]},
            oldest=8,
        )
        for place in ("sums", "weights")
    ]
    TRIALS[_name].append(
        Trial("weights", of_integers(_name), {"kind": np.int32, "B": -1}, {"kind": [np.int64]}, oldest=12)
    )
for _name in ("ReduceMean", "ReduceSum"):
    TRIALS[_name] = [
        Trial(
            "weights",
            reduced(_name),
            {"axes": np.array([0], np.int64), "keepdims": 1},
            {
                "axes": [
                    ABSENT,
                    np.array([1, 2], np.int64),
                    np.array([-1], np.int64),
                    np.array([], np.int64),
                ],
                "keepdims": [0],
                "noop_with_empty_axes": [1],
            },
        ),
        Trial(
            "weights",
            reduced(_name),
            {"axes": ABSENT, "keepdims": 1},
            {"noop_with_empty_axes": [1], "keepdims": [0]},
        ),
        Trial(
            "weights",
            reduced(_name),
            {"axes": np.array([], np.int64)},
            {"noop_with_empty_axes": [1]},
        ),
        Trial(
            "sums",
            node(_name),
            {"axes": np.array([2, 3], np.int64), "keepdims": 1},
            {"axes": [np.array([0], np.int64)]},
            converts=False,
        ),
    ]


def versions(operator: str) -> list[tuple[int, bool]]:
    """The operator sets to try, as far as the installed package knows them: 7, or the first that has the
    operator, and each that changed it; and whether it has another form there, and not only more types."""
    if operator == "BipolarQuant":
        return [(7, True), (13, False), (20, False)]
    newest = onnx.defs.onnx_opset_version()
    result: dict[int, bool] = {}
    for form in OPERATORS[operator]:
        for i, since in enumerate(form.since):
            if since <= newest:
                at = max(since, OLDEST_OPSET)
                result[at] = result.get(at, False) or i == 0
    return sorted(result.items())


def _label(value: Any) -> str:
    if value is ABSENT:
        return "absent"
    if isinstance(value, np.ndarray) and value.size > 8:
        return f"{value.dtype}{list(value.shape)}"
    return " ".join(str(value).split())[:40]


def arguments(operator: str, opset: int) -> set[str]:
    """Attributes and inputs of an operator by the standard's own schema; the data is no argument."""
    if operator == "BipolarQuant":
        return {"scale"}
    schema = onnx.defs.get_schema(operator, opset, "")
    return set(schema.attributes) | {i.name for i in schema.inputs}


def cases(full: bool = False) -> Iterator[tuple[Case, Trial]]:
    """Every case, the plain one of each trial first.

    Args:
        full: try all values at each operator set that changed an operator, not only where its form changed.
    """
    for operator, trials in TRIALS.items():
        for opset, form in versions(operator):
            known = arguments(operator, opset) | {"first", "second", "outputs", "kind"}
            for place, trial in enumerate(trials):
                if opset < trial.oldest:
                    continue
                tried = trial.values.items() if form or full else ()
                pairs = [(name, value) for name, values in tried if name in known for value in values]
                for i, (argument, value) in enumerate([("", None), *pairs]):
                    given = dict(trial.base) if not argument else {**trial.base, argument: value}
                    model = network(opset, trial.place, trial.make, given)
                    label = _label(value) if argument else ""
                    yield Case(operator, argument, label, opset, trial.place, (place, i), model), trial
