"""PyTorch and ONNX files without their frameworks: samples, fixtures with torch's own bits, patterns,
hostile files."""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import cbin_nn
import numpy as np
import pytest
from cbin_nn.converters import graph as g
from cbin_nn.converters import lower, lower_file, read_source
from cbin_nn.converters.evaluate import evaluate
from cbin_nn.converters.onnx import read_onnx_program
from cbin_nn.converters.passes import canonicalize, split_ternary
from cbin_nn.converters.program import ConstantFolder, Operation, Program, TensorType, simplify
from cbin_nn.converters.torch_export import read_torch_export_program
from cbin_nn.converters.translate import translate
from cbin_nn.errors import ConversionError, InvalidArgument, MissingExtra
from cbin_nn.images import draw_images
from cbin_nn.operators import BBQFC, BQQFC, QBConv2D, QQConv2D, Window

onnx = pytest.importorskip("onnx", reason="pip install 'cbin-nn[onnx]'")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

ANSWERS = Path(__file__).parent / "fixtures" / "frameworks"
NAMES = sorted(path.stem for path in ANSWERS.glob("*.npz"))


def run(source: Any, images: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray], Any]:
    model = cbin_nn.convert(source)
    outputs, taps = model.run(images, taps=True)
    assert model.conversion is not None
    return model.dequantize(outputs), taps, model.conversion


# -- samples


def torch_sample(samples: Path, name: str) -> Path:
    return samples.parent / "torch" / name


@pytest.mark.parametrize("suffix", [".pt2", ".onnx", "_noopt.onnx"])
@pytest.mark.parametrize(
    ("name", "least"),
    [("where_pool_prelu_bn", 256), ("sign_prelu_bn_pool_norm", 256), ("detach_rsign_scaled", 251)],
)
def test_samples_agree_with_torch(samples: Path, name: str, least: int, suffix: str) -> None:
    with np.load(torch_sample(samples, f"{name}_ref.npz")) as data:
        images, expected = data["X"], data["Y"]
    logits, _, report = run(torch_sample(samples, name + suffix), images)
    assert (logits.argmax(axis=1) == expected.argmax(axis=1)).sum() >= least
    approximated = {o.kind for o in report.operators if o.approximations}
    if name == "where_pool_prelu_bn":
        assert not approximated and np.abs(logits - expected).max() < 1e-5
    elif name == "sign_prelu_bn_pool_norm":
        assert approximated == {"qqconv2d"} and np.abs(logits - expected).max() < 1e-5
    else:
        assert approximated == {"qqconv2d", "bqqfc"}
    check = cbin_nn.verify(
        cbin_nn.convert(torch_sample(samples, name + suffix)),
        torch_sample(samples, name + suffix),
        images[:32],
        engine="built-in",
    )
    assert check.exact and all(not layer.own_unexplained for layer in check.layers[1:])


def test_an_untrained_sample_with_a_sign_of_zero_before_its_last_layer_converts(samples: Path) -> None:
    path = torch_sample(samples, "torch_STE_where_dynamo.onnx")
    images = draw_images(8, 32, 32, 1)
    logits, taps, report = run(path, images)
    assert any("split into two bits" in note for note in report.notes)
    graph = read_source(path)
    expected = ternary_logits(graph, images)
    assert np.abs(logits - expected).max() < 1e-4
    assert taps["f.6"].shape[-1] == 128


@pytest.mark.parametrize("name", ["torch_STE_sign_dynamo.onnx", "torch_react_dynamo.onnx"])
def test_samples_whose_sign_sees_zero_are_refused(samples: Path, name: str) -> None:
    with pytest.raises(ConversionError) as caught:
        cbin_nn.convert(torch_sample(samples, name))
    message = str(caught.value)
    assert caught.value.slug == "sign-of-zero" and name in message and message.count("\n") <= 4
    for word in (
        "sign_1",
        "sign_3",
        "sign_5",
        "channels 0, 1, 2",
        "32 in all",
        "64 in all",
        "where(x >= 0, 1, -1)",
    ):
        assert word in message


def ternary_logits(graph: g.Graph, images: np.ndarray) -> np.ndarray:
    """The network in float64 with sign(0) = 0 where the graph says so."""
    x: np.ndarray = images.astype(np.float64)
    for node in graph.nodes[1:]:
        single = g.Graph(
            "one", [g.Input("x", "x", (), graph.shapes[node.inputs[0]]), rewired(node)], node.name
        )
        x = np.sign(x) if isinstance(node, g.Sign) and node.zero == 0 else step(single, node, x)
    return x


def rewired(node: g.Node) -> g.Node:
    return type(node)(**{**vars(node), "inputs": ("x",)})


def step(single: g.Graph, node: g.Node, x: np.ndarray) -> np.ndarray:
    import oracle

    if isinstance(node, g.Sign):
        return np.where(x >= 0, 1.0, -1.0)
    return oracle.step(node, x)


# -- fixtures with the frameworks' own bits


@pytest.mark.parametrize("name", NAMES)
def test_fixtures_agree_with_their_framework_bit_for_bit(name: str) -> None:
    with np.load(ANSWERS / f"{name}.npz") as data:
        answers = dict(data)
    images = answers["images"]
    files = [path for path in sorted(ANSWERS.glob(f"{name}[._]*")) if path.suffix != ".npz"]
    assert len(files) == (4 if name.startswith("torch") else 1 if name == "brevitas" else 2)
    for path in files:
        logits, taps, report = run(path, images)
        truth = evaluate(report.graph, images)
        clean = np.ones(len(images), bool)
        compared = 0
        for i, operator in enumerate(o for o in report.operators if o.sign):
            if f"bits_{i}" not in answers:
                continue
            shape = tuple(answers[f"shape_{i}"])
            bits = np.unpackbits(answers[f"bits_{i}"], count=int(np.prod(shape))).astype(bool)
            mine = (taps[operator.name] > 0).reshape(len(images), -1)
            wrong = (bits.reshape(len(images), -1) != mine) & clean[:, None]
            near = truth.near_ties[operator.sign].reshape(len(images), -1)
            if not operator.approximations:
                assert not (wrong & ~near).any(), (path.name, operator.name)
                compared += int(clean.sum())
            clean &= ~wrong.any(axis=1)
        assert compared > 0 or all(o.approximations for o in report.operators if o.sign)
        outputs = answers["outputs"].reshape(len(images), -1)
        if np.allclose(outputs.sum(axis=1), 1, atol=1e-4) and outputs.min() >= 0:
            logits = np.exp(logits - logits.max(axis=1, keepdims=True))
            logits /= logits.sum(axis=1, keepdims=True)
        head = 0.05 if report.operators[-1].approximations else 2e-4
        assert np.abs(logits - outputs)[clean].max(initial=0) < head * max(1, np.abs(outputs).max())


def test_fixtures_cover_what_people_write() -> None:
    assert len([name for name in NAMES if name.startswith("torch")]) >= 4
    assert len([name for name in NAMES if name.startswith("larq")]) >= 4
    assert {"larq_tf2.12", "larq_tf2.16", "larq_tf2.21", "larq_depthwise", "keras3", "brevitas"} <= set(NAMES)
    kinds = set()
    for name in NAMES:
        suffix = ".pt2" if name.startswith("torch") else ".onnx" if name == "brevitas" else ".h5"
        lowered, _ = lower_file(ANSWERS / f"{name}{suffix}")
        kinds |= {operator.kind for operator in lowered.operators}
    assert {"qbconv2d", "qqconv2d", "bbconv2d", "bbdepthwiseconv2d", "bbqfc", "bqqfc"} <= kinds


def test_an_onnx_that_does_not_import_is_told_apart_from_one_that_is_absent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cbin_nn.converters import onnx as reader

    def broken(name: str) -> Any:
        raise AttributeError("module 'ml_dtypes' has no attribute 'float4_e2m1fn'")

    monkeypatch.setattr(reader.importlib, "import_module", broken)
    with pytest.raises(MissingExtra, match=r"does not import .*float4_e2m1fn.*pip install --upgrade onnx"):
        reader.read_onnx(ANSWERS / "torch_2_dynamo.onnx")


# -- programs


class Author:
    """Writes a program line by line: `x = author("sign", "x")`."""

    def __init__(self, shape: tuple[int, ...] = (1, 2, 4, 4), seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.shape, self.constants, self.operations = shape, dict[str, np.ndarray](), list[Operation]()

    def constant(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value, np.float32)
        return name

    def weights(self, *shape: int) -> str:
        return self.constant(self.rng.choice([-1.0, 1.0], shape))

    def __call__(self, kind: str, *inputs: str, **attributes: Any) -> str:
        output = f"t{len(self.operations)}"
        self.operations.append(Operation(kind, f"layer_{output}", inputs, output, attributes))
        return output

    def conv(self, x: str, weight: str, **options: Any) -> str:
        defaults = {"strides": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1), "groups": 1}
        return self("conv2d", x, weight, **{**defaults, **options})

    def norm(self, x: str, channels: int, spread: float = 1.0) -> str:
        draw = self.rng.normal
        parts = [draw(size=channels), draw(size=channels), spread * draw(size=channels)]
        variance = spread**2 * self.rng.uniform(0.5, 2, channels)
        return self("batch_norm", x, *(self.constant(p) for p in (*parts, variance)), epsilon=1e-5)

    def program(self, output: str) -> Program:
        return Program("program", "x", self.shape, self.constants, self.operations, output)

    def graph(self, output: str) -> g.Graph:
        return translate(self.program(output))


def sign_tail(author: Author, x: str, sign: Any) -> g.Graph:
    """conv, BatchNorm, the sign under test, flatten and a dense layer."""
    y = author.norm(author.conv(x, author.weights(5, 2, 3, 3)), 5, 400.0)
    y = sign(y)
    y = author("flatten", y, start=1)
    return author.graph(author("linear", y, author.weights(3, 80)))


def scalar_where(author: Author, y: str, relation: str, yes: float, no: float) -> str:
    condition = author("compare", y, author.constant(0.0), relation=relation)
    return author("where", condition, author.constant(yes), author.constant(no))


@pytest.mark.parametrize(
    ("relation", "yes", "no", "zero", "negated"),
    [
        ("ge", 1, -1, 1, False),
        ("gt", 1, -1, -1, False),
        ("lt", -1, 1, 1, False),
        ("le", -1, 1, -1, False),
        ("ge", -1, 1, -1, True),
        ("gt", -1, 1, 1, True),
        ("lt", 1, -1, -1, True),
        ("le", 1, -1, 1, True),
    ],
)
def test_every_way_to_compare_is_a_sign(
    relation: str, yes: float, no: float, zero: int, negated: bool
) -> None:
    author = Author()
    graph = sign_tail(author, "x", lambda y: scalar_where(author, y, relation, yes, no))
    (sign,) = (node for node in graph.nodes if isinstance(node, g.Sign))
    before = next(node for node in graph.nodes if node.name == sign.inputs[0])
    assert sign.zero == zero and isinstance(before, g.Linear) == negated
    compare_with_program(author, graph)


def compare_with_program(author: Author, graph: g.Graph) -> None:
    """The graph, evaluated, is the program, evaluated operation by operation in NumPy."""
    images = draw_images(3, author.shape[2], author.shape[3], 3, channels=author.shape[1])
    expected = numpy_program(author, images.astype(np.float64).transpose(0, 3, 1, 2))
    assert np.allclose(evaluate(graph, images).logits, expected, atol=1e-6)
    lowered, _ = lower(graph)
    model = cbin_nn.Model.from_bytes(cbin_nn.model._native.build_model(lowered))
    assert np.allclose(model.dequantize(model.run(images)), expected, atol=1e-4)


def numpy_program(author: Author, x: np.ndarray) -> np.ndarray:
    """A naive NCHW interpreter of the operations that these tests write."""
    values: dict[str, np.ndarray] = {"x": x, **{k: v.astype(np.float64) for k, v in author.constants.items()}}
    for o in author.operations:
        i = [values[name] for name in o.inputs]
        a = o.attributes
        if o.kind == "conv2d":
            top, left, bottom, right = a["padding"]
            p = np.pad(i[0], ((0, 0), (0, 0), (top, bottom), (left, right)))
            kh, kw = i[1].shape[2:]
            h, w = p.shape[2] - kh + 1, p.shape[3] - kw + 1
            y = sum(
                np.einsum("nchw,oc->nohw", p[:, :, r : r + h, c : c + w], i[1][:, :, r, c])
                for r in range(kh)
                for c in range(kw)
            )
            assert a["strides"] == (1, 1)
        elif o.kind == "batch_norm":
            gamma, beta, mean, variance = (v.reshape(1, -1, *(1,) * (i[0].ndim - 2)) for v in i[1:])
            y = (i[0] - mean) / np.sqrt(variance + np.float64(np.float32(a["epsilon"]))) * gamma + beta
        elif o.kind == "prelu":
            y = np.where(i[0] >= 0, i[0], i[0] * i[1].reshape(1, -1, 1, 1))
        elif o.kind == "flatten":
            y = i[0].reshape(len(i[0]), -1)
        elif o.kind == "linear":
            y = i[0] @ i[1].T + (i[2] if len(i) > 2 else 0)
        elif o.kind == "compare":
            y = {"ge": np.greater_equal, "gt": np.greater, "le": np.less_equal, "lt": np.less}[a["relation"]](
                i[0], i[1]
            )
        elif o.kind == "bipolar":
            y = np.where(i[0] >= 0, i[1], -i[1])
        elif o.kind == "permute":
            y = i[0].transpose(a["axes"])
        elif o.kind == "clip":
            y = np.clip(i[0], a["low"], a["high"])
        else:
            functions: dict[str, Any] = {
                "add": np.add,
                "sub": np.subtract,
                "mul": np.multiply,
                "div": np.divide,
                "neg": np.negative,
                "sign": np.sign,
                "where": np.where,
                "cast": lambda v: v.astype(np.float64),
                "identity": lambda v: v,
            }
            y = functions[o.kind](*i)
        values[o.output] = y
    return values[author.operations[-1].output]


SIGNS: dict[str, Any] = {
    "sign": lambda a, y: a("sign", y),
    "sign(sign(x) + 0.5)": lambda a, y: a("sign", a("add", a("sign", y), a.constant(0.5))),
    "hardtanh first": lambda a, y: a("sign", a("clip", y, low=-1.0, high=1.0)),
    "(A - B) + B": lambda a, y: detach(a, y, False),
    "B + (A - B)": lambda a, y: detach(a, y, True),
    "2 * (x >= 0) - 1": lambda a, y: a(
        "sub",
        a(
            "mul",
            a("cast", a("compare", y, a.constant(0.0), relation="ge"), dtype="float32"),
            a.constant(2.0),
        ),
        a.constant(1.0),
    ),
    "threshold of its own": lambda a, y: a(
        "where", a("compare", y, a.constant(0.25), relation="ge"), a.constant(1.0), a.constant(-1.0)
    ),
    "a bias a channel": lambda a, y: a("sign", a("add", y, a.constant(a.rng.normal(size=(1, 5, 1, 1))))),
    "levels 0.5 and -0.5": lambda a, y: a(
        "where", a("compare", y, a.constant(0.0), relation="ge"), a.constant(0.5), a.constant(-0.5)
    ),
    "BipolarQuant": lambda a, y: a("bipolar", y, a.constant(0.125)),
}


def detach(author: Author, y: str, turned: bool) -> str:
    hard = scalar_where(author, y, "ge", 1, -1)
    soft = author("clip", author("identity", y), low=-1.0, high=1.0)
    difference = author("sub", author("identity", hard), soft)
    return author("add", soft, difference) if turned else author("add", difference, soft)


@pytest.mark.parametrize("name", sorted(SIGNS))
def test_ways_to_write_a_sign(name: str) -> None:
    author = Author(seed=3)
    graph = sign_tail(author, "x", lambda y: SIGNS[name](author, y))
    assert not graph.problems
    assert sum(isinstance(node, g.Sign) for node in graph.nodes) == 1
    assert not any(isinstance(node, (g.Add, g.Clip)) for node in graph.nodes)
    compare_with_program(author, graph)


def test_weights_of_one_absolute_value_are_binary_and_others_are_not() -> None:
    author = Author(seed=4)
    w = author.constant(author.rng.normal(size=(5, 2, 3, 3)))
    scaled = author("mul", author("mean", author("abs", w), axes=[1, 2, 3], keepdims=True), author("sign", w))
    folded = author("mul", scaled, author.constant(author.rng.normal(size=(5, 1, 1, 1))))
    y = author("sign", author.norm(author.conv("x", folded), 5, 40.0))
    graph = author.graph(author("linear", author("flatten", y, start=1), author.weights(3, 80)))
    conv = next(node for node in graph.nodes if isinstance(node, g.Conv2D))
    assert conv.binary and conv.scale is not None and conv.scale.shape == (5,)
    assert set(np.unique(conv.kernel)) == {-1.0, 1.0}
    folder = ConstantFolder(simplify(author.program(author.operations[-1].output)))
    value = folder.value(folded)
    assert value is not None
    assert np.array_equal(conv.kernel * conv.scale, value.transpose(2, 3, 1, 0))


def test_flatten_order_and_channels_last_inputs() -> None:
    """A dense layer's weights and per-feature parameters follow the graph's HWC order."""
    author = Author((1, 2, 3, 4), seed=5)
    y = author.norm(author.conv("x", author.weights(5, 2, 3, 3)), 5, 400.0)
    y = author("flatten", scalar_where(author, y, "ge", 1, -1), start=1)
    hidden = author("linear", y, author.weights(9, 60))
    hidden = scalar_where(author, author.norm(hidden, 9, 5.0), "ge", 1, -1)
    graph = author.graph(author("linear", hidden, author.weights(3, 9)))
    compare_with_program(author, graph)
    late = Author((1, 2, 3, 4), seed=6)
    y = late("flatten", late.conv("x", late.weights(5, 2, 3, 3)), start=1)
    y = scalar_where(late, late.norm(y, 60, 400.0), "ge", 1, -1)
    compare_with_program(late, late.graph(late("linear", y, late.weights(3, 60))))
    last = Author((1, 4, 4, 2))
    moved = last("permute", "x", axes=(0, 3, 1, 2))
    graph = sign_tail(last, moved, lambda y: scalar_where(last, y, "ge", 1, -1))
    assert graph.shapes["x"] == (4, 4, 2)


def test_everything_that_cannot_be_translated_is_listed() -> None:
    author = Author()
    y = author("unsupported", "x", name="AveragePool", reason="no operator of this kind converts")
    y = author("linear", author("flatten", y, start=1), author.weights(3, 32))
    y = author("unsupported", y, name="LSTM", reason="no operator of this kind converts")
    with pytest.raises(ConversionError) as caught:
        lower(author.graph(y))
    message = str(caught.value)
    assert "2 things" in message and "AveragePool" in message and "LSTM" in message


def test_branches_keep_their_edges() -> None:
    author = Author()
    first = scalar_where(
        author, author.norm(author.conv("x", author.weights(4, 2, 3, 3)), 4, 9.0), "ge", 1, -1
    )
    second = author.norm(author.conv(first, author.weights(4, 4, 3, 3)), 4)
    total = scalar_where(author, author("add", second, first), "ge", 1, -1)
    graph = author.graph(author("linear", author("flatten", total, start=1), author.weights(3, 64)))
    (add,) = (node for node in graph.nodes if isinstance(node, g.Add))
    assert len(add.inputs) == 2 and set(add.inputs) <= {node.name for node in graph.nodes}
    with pytest.raises(ConversionError, match="shortcut"):
        lower(graph)


# -- types


def evaluated(
    kind: str, inputs: list[np.ndarray], stated: TensorType | None = None, **attributes: Any
) -> np.ndarray:
    """The value of one operation on constants, as the reader of a program has it."""
    names = tuple(f"c{i}" for i in range(len(inputs)))
    operation = Operation(kind, "layer", names, "y", attributes)
    types = {"y": stated} if stated else {}
    program = Program("p", "x", (1, 1), dict(zip(names, inputs, strict=True)), [operation], "y", types=types)
    value = ConstantFolder(program).value("y")
    assert value is not None
    return value


def typed(dtype: str, *shape: int) -> TensorType:
    return TensorType(dtype, shape)


SEVEN = np.array([7, -7, 7, -7])
TWO = np.array([2, 2, -2, -2])


def test_division_has_the_meaning_that_the_importer_states() -> None:
    """Values by torch: `torch.div(a, b, rounding_mode=...)` of integers."""
    assert evaluated("div", [SEVEN, TWO], typed("float32", 4), rounding="true").tolist() == [
        3.5,
        -3.5,
        -3.5,
        3.5,
    ]
    assert evaluated("div", [SEVEN, TWO], typed("int64", 4), rounding="floor").tolist() == [3, -4, -4, 3]
    assert evaluated("div", [SEVEN, TWO], typed("int64", 4), rounding="trunc").tolist() == [3, -3, -3, 3]
    halves = np.float32(SEVEN), np.float32(TWO)
    assert evaluated("div", list(halves), typed("float32", 4), rounding="trunc").tolist() == [3, -3, -3, 3]
    # ONNX states nothing: integers are cut off, numbers are divided.
    assert evaluated("div", [SEVEN, TWO]).tolist() == [3, -3, -3, 3]
    assert evaluated("div", list(halves)).tolist() == [3.5, -3.5, -3.5, 3.5]
    with pytest.raises(ConversionError, match="divided by zero"):
        evaluated("div", [SEVEN, 0 * TWO], typed("int64", 4), rounding="floor")
    assert evaluated("remainder", [SEVEN, TWO], typed("int64", 4)).tolist() == [1, 1, -1, -1]


@pytest.mark.parametrize(
    ("kind", "inputs", "dtype", "expected"),
    [
        ("add", [np.uint8([250, 3]), np.uint8([10, 4])], "uint8", [4, 7]),
        ("mul", [np.int8([100, -3]), np.int8([2, 2])], "int8", [-56, -6]),
        ("add", [np.array([True, True]), np.array([True, False])], "bool", [True, True]),
        ("mul", [np.array([True, True]), np.array([True, False])], "bool", [True, False]),
        ("add", [np.int64([2**24 + 1, 0]), np.float32([0, 0.5])], "float32", [2.0**24, 0.5]),
        ("mul", [np.float64([0.1, 0.2]), np.float32([3, 3])], "float64", [0.1 * 3, 0.2 * 3]),
        ("mul", [np.float16([0.1, 60000]), np.float16([3, 2])], "float16", [0.2998046875, float("inf")]),
        ("add", [np.float32([1, 256]), np.float32([2**-8, 1])], "bfloat16", [1.0, 256.0]),
        ("add", [np.float32([1, 258]), np.float32([3 * 2**-8, 1])], "bfloat16", [1 + 2**-6, 260.0]),
        ("sqrt", [np.int64([2, 9])], "float32", [float(np.sqrt(np.float32(2))), 3.0]),
        ("round", [np.float32([0.5, 2.5])], "float32", [0.0, 2.0]),
        ("pow", [np.int64([2, -3]), np.int64([3, 3])], "int64", [8, -27]),
        ("neg", [np.uint8([1, 0])], "uint8", [255, 0]),
    ],
)
def test_constants_are_computed_in_the_stated_type(
    kind: str, inputs: list[np.ndarray], dtype: str, expected: list[Any]
) -> None:
    assert evaluated(kind, inputs, typed(dtype, 2)).tolist() == expected


def test_a_constant_that_is_not_what_the_program_states_is_an_error() -> None:
    one = np.float32([[1, 2]])
    with pytest.raises(ConversionError, match=r"shape \[2\].*states \[1, 1\]") as caught:
        evaluated("reshape", [one, np.array([2])], typed("float32", 1, 1))
    assert caught.value.slug == "bad-graph"
    with pytest.raises(ConversionError, match=r"float32, and the program states int64"):
        evaluated("reshape", [one, np.array([2])], typed("int64", 2))
    with pytest.raises(ConversionError, match="no place in uint8"):
        evaluated("cast", [one * 300], typed("uint8", 1, 2), dtype="uint8")
    for bad in (np.nan, np.inf):
        with pytest.raises(ConversionError, match="no place in int32"):
            evaluated("cast", [one * np.float32(bad)], typed("int32", 1, 2), dtype="int32")


def test_the_straight_through_trick_stays_where_it_changes_the_shape() -> None:
    """(A - B) + B of another shape than A is no A."""
    author = Author()
    a, b = author.constant(2.0), author.constant([[1.0, 5.0]])
    y = author("add", author("sub", a, b), b)
    program = author.program(y)
    program.types = {a: typed("float32"), author.operations[0].output: typed("float32", 1, 2)}
    program.types[y] = typed("float32", 1, 2)
    value = ConstantFolder(simplify(program)).value(y)
    assert value is not None and value.tolist() == [[2.0, 2.0]]


# -- passes


def test_a_ternary_sign_is_split_exactly() -> None:
    rng = np.random.default_rng(7)
    for hidden in (False, True):
        nodes: list[g.Node] = [g.Input("x", "x", (), (4, 4, 1))]
        if hidden:
            nodes += [g.Flatten("f", "f", ("x",))]
            kernel = rng.choice([-1.0, 1.0], (16, 6)).astype(np.float32)
            nodes += [g.Dense("d", "d", ("f",), kernel)]
            shape: tuple[int, ...] = (6,)
        else:
            kernel = rng.choice([-1.0, 1.0], (2, 2, 1, 6)).astype(np.float32)
            nodes += [g.Conv2D("d", "d", ("x",), kernel, Window((2, 2)))]
            shape = (3, 3, 6)
        nodes += [g.Bias("b", "b", ("d",), -np.float32([0, 3, 0, 1, 5, 0]))]
        nodes += [g.PReLU("p", "p", ("b",), rng.normal(size=shape).astype(np.float32))]
        nodes += [g.Sign("s", "s", ("p",), 0)]
        if not hidden:
            nodes += [g.Flatten("f", "f", ("s",))]
        features = int(np.prod(shape))
        head = rng.choice([-1.0, 1.0], (features, 3)).astype(np.float32)
        nodes += [g.Dense("h", "h", (nodes[-1].name,), head)]
        graph = g.Graph("ternary", nodes, "h")
        images = rng.integers(0, 6, (20, 4, 4, 1)).astype(np.uint8)
        expected = ternary_logits(graph, images)
        split = split_ternary(graph, "s")
        assert split is not None
        lowered, report = lower(graph)
        model = cbin_nn.Model.from_bytes(cbin_nn.model._native.build_model(lowered))
        assert any("split" in note for note in report.notes)
        assert np.abs(model.dequantize(model.run(images)) - expected).max() < 1e-6
        assert np.abs(evaluate(split, images).logits - expected).max() < 1e-9


def test_scales_on_bits_move_past_pools_and_layers() -> None:
    rng = np.random.default_rng(8)
    kernel = rng.choice([-1.0, 1.0], (1, 1, 1, 4)).astype(np.float32)
    nodes: list[g.Node] = [
        g.Input("x", "x", (), (4, 4, 1)),
        g.Conv2D("c", "c", ("x",), kernel, Window((1, 1))),
        g.Bias("b", "b", ("c",), np.full(4, -100, np.float32)),
        g.Sign("s", "s", ("b",)),
        g.Linear("half", "half", ("s",), Fraction(1, 2)),
        g.Linear("third", "third", ("half",), Fraction(1, 3)),
        g.MaxPool2D("p", "p", ("third",), Window((2, 2), (2, 2))),
        g.Flatten("f", "f", ("p",)),
        g.Dense("h", "h", ("f",), rng.choice([-1.0, 1.0], (16, 3)).astype(np.float32)),
    ]
    graph = g.Graph("scaled", nodes, "h")
    moved = canonicalize(graph)
    kinds = [type(node).__name__ for node in moved.nodes]
    assert kinds == ["Input", "Conv2D", "Bias", "Sign", "MaxPool2D", "Flatten", "Dense", "Linear"]
    images = draw_images(5, 4, 4, 1, channels=1)
    assert np.allclose(evaluate(moved, images).logits, evaluate(graph, images).logits)
    lower(moved)


# -- first and last layers


def real_network(rng: np.random.Generator, channels: int = 3) -> dict[str, Any]:
    return {
        "input": (8, 8, channels),
        "layers": [
            {
                "type": "rescaling",
                "scale": 1 / (255 * np.array([0.247, 0.2435, 0.2616])[:channels]),
                "offset": -np.array([0.4914, 0.4822, 0.4465])[:channels] / [0.247, 0.2435, 0.2616][:channels],
            },
            {"type": "conv2d", "weights": rng.normal(size=(8, 3, 3, channels)), "padding": 1},
            {"type": "sign"},
            {"type": "flatten"},
            {"type": "dense", "weights": rng.normal(size=(5, 512)), "bias": rng.normal(size=5)},
        ],
    }


def test_real_first_and_last_layers_stay_within_their_bounds() -> None:
    rng = np.random.default_rng(9)
    description = real_network(rng)
    lowered, report = lower_file(description)
    first, head = lowered.operators[0], lowered.operators[-1]
    assert isinstance(first, QQConv2D) and first.weights.dtype == np.int16 and first.channel_adds is not None
    assert isinstance(head, BQQFC) and head.weights.dtype == np.int8
    assert all(o.approximations for o in report.operators)
    graph = read_source(description)
    images = draw_images(20, 8, 8, 2)
    model = cbin_nn.convert(description)
    outputs, taps = model.run(images, taps=True)
    truth = evaluate(graph, images)
    (name,) = truth.bits
    wrong = (taps["conv2d_1"] > 0) != truth.bits[name]
    assert wrong.mean() < 1e-3
    error = np.abs(model.dequantize(outputs) - evaluate(graph, images, {name: taps["conv2d_1"] > 0}).logits)
    stated = float(report.operators[-1].approximations[0].split("at most ")[1].split(" ")[0])
    assert error.max() <= stated * 1.001


def test_a_first_layer_that_8_bits_hold_exactly_is_exact() -> None:
    rng = np.random.default_rng(10)
    description = real_network(rng)
    description["layers"][0] = {"type": "rescaling", "scale": 1 / 127.5, "offset": -1}
    description["layers"][1]["weights"] = rng.integers(-9, 10, (8, 3, 3, 3)) * 0.25
    lowered, report = lower_file(description)
    assert isinstance(lowered.operators[0], QQConv2D) and lowered.operators[0].weights.dtype == np.int8
    assert not report.operators[0].approximations


def test_one_scale_and_an_offset_a_channel_is_exact_with_binary_weights() -> None:
    rng = np.random.default_rng(11)
    description = real_network(rng)
    description["layers"][0] = {"type": "rescaling", "scale": 2.0, "offset": [-250.5, -240.25, 3.0]}
    description["layers"][1]["weights"] = rng.choice([-1, 1], (8, 3, 3, 3))
    description["layers"][4]["weights"] = rng.choice([-1, 1], (5, 512))
    lowered, report = lower_file(description)
    first = lowered.operators[0]
    assert (
        isinstance(first, QBConv2D)
        and first.channel_adds is not None
        and isinstance(lowered.operators[-1], BBQFC)
    )
    assert not any(o.approximations for o in report.operators)
    images = draw_images(20, 8, 8, 2)
    model = cbin_nn.convert(description)
    outputs, taps = model.run(images, taps=True)
    truth = evaluate(read_source(description), images)
    assert np.array_equal(taps["conv2d_1"] > 0, next(iter(truth.bits.values())))
    assert np.allclose(model.dequantize(outputs), truth.logits, atol=1e-4)


def test_input_scale_arguments_a_channel_are_the_layer_in_front() -> None:
    rng = np.random.default_rng(12)
    description = real_network(rng)
    meaning = description["layers"].pop(0)
    images = draw_images(10, 8, 8, 3)
    given = cbin_nn.convert(description, input_scale=meaning["scale"], input_offset=meaning["offset"])
    description["layers"].insert(0, meaning)
    inside = cbin_nn.convert(description)
    assert np.array_equal(given.run(images), inside.run(images))
    check = cbin_nn.verify(
        given,
        {**description, "layers": description["layers"][1:]},
        images,
        input_scale=meaning["scale"],
        input_offset=meaning["offset"],
    )
    assert check.exact and not check.notes


# -- ONNX files


def onnx_model(nodes: list[Any], initializers: dict[str, np.ndarray], shape: list[Any]) -> bytes:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in initializers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()


def qonnx(tmp_path: Path) -> Path:
    """What Brevitas writes: BipolarQuant on weights and activations, each with a scale."""
    rng = np.random.default_rng(13)
    weights = {
        "w1": rng.normal(size=(6, 1, 3, 3)).astype(np.float32),
        "w2": rng.normal(size=(3, 216)).astype(np.float32),
        "s1": np.float32(0.125).reshape(()),
        "s2": np.float32(0.5).reshape(()),
        "m": np.float32(rng.normal(size=(6, 1, 1)) * 50),
        "shape": np.array([0, -1], np.int64),
    }
    quant = "qonnx.custom_op.general"
    nodes = [
        helper.make_node("BipolarQuant", ["w1", "s1"], ["q1"], domain=quant),
        helper.make_node("Conv", ["x", "q1"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c", "m"], ["a"]),
        helper.make_node("BipolarQuant", ["a", "s2"], ["b"], domain=quant),
        helper.make_node("Reshape", ["b", "shape"], ["f"]),
        helper.make_node("BipolarQuant", ["w2", "s1"], ["q2"], domain=quant),
        helper.make_node("Transpose", ["q2"], ["q2t"], perm=[1, 0]),
        helper.make_node("MatMul", ["f", "q2t"], ["y"]),
    ]
    path = tmp_path / "brevitas.onnx"
    path.write_bytes(onnx_model(nodes, weights, ["N", 1, 6, 6]))
    return path


def test_qonnx_bipolar_quant(tmp_path: Path) -> None:
    path = qonnx(tmp_path)
    images = draw_images(10, 6, 6, 4, channels=1)
    lowered, report = lower_file(path)
    assert [o.kind for o in lowered.operators] == ["qbconv2d", "bbqfc"]
    assert not any(o.approximations for o in report.operators)
    model = cbin_nn.convert(path)
    truth = evaluate(read_source(path), images)
    assert np.allclose(model.dequantize(model.run(images)), truth.logits, atol=1e-6)
    check = cbin_nn.verify(model, path, images)
    assert check.engine == "onnx.reference" and check.exact


def test_damaged_and_hostile_onnx_files(tmp_path: Path) -> None:
    good = qonnx(tmp_path).read_bytes()

    def refused(content: bytes, slug: str | None = None) -> str:
        path = tmp_path / "bad.onnx"
        path.write_bytes(content)
        with pytest.raises(ConversionError) as caught:
            lower_file(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
        assert slug is None or caught.value.slug == slug, str(caught.value)
        return str(caught.value)

    refused(good[:100])
    rng = np.random.default_rng(14)
    survived = 0
    for _ in range(150):
        broken = bytearray(good)
        for at in rng.integers(0, len(good), 4):
            broken[at] = rng.integers(0, 256)
        (tmp_path / "bad.onnx").write_bytes(bytes(broken))
        try:
            lower_file(tmp_path / "bad.onnx")
            survived += 1
        except ConversionError as error:
            assert "bad.onnx" in str(error)
    assert survived < 150
    model = onnx.load_model_from_string(good)
    model.graph.initializer[0].dims[0] = 2**40
    refused(model.SerializeToString(), "damaged-file")
    model = onnx.load_model_from_string(good)
    model.graph.initializer[0].dims[0] = 60
    assert "holds fewer" in refused(model.SerializeToString(), "damaged-file")
    model = onnx.load_model_from_string(good)
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    assert "no file beside" in refused(model.SerializeToString(), "unsupported-file")
    model.graph.initializer[0].external_data[0].value = "weights.bin"
    (tmp_path / "weights.bin").write_bytes(bytes(10))
    assert "beyond" in refused(model.SerializeToString(), "damaged-file")
    (tmp_path / "weights.bin").unlink()
    (tmp_path / "weights.bin").symlink_to("/etc/passwd")
    assert "no file beside" in refused(model.SerializeToString(), "unsupported-file")
    huge = np.array([2**20, 2**20], np.int64)
    nodes = [
        helper.make_node("Expand", ["w", "huge"], ["e"]),
        helper.make_node("MatMul", ["x", "e"], ["y"]),
    ]
    refused(onnx_model(nodes, {"w": np.ones((1, 1), np.float32), "huge": huge}, [1, 4]), "damaged-file")
    nodes = [helper.make_node("Evil", ["x"], ["y"], domain="com.evil")]
    assert "com.evil" in refused(onnx_model(nodes, {}, [1, 1, 4, 4]), "unsupported-layer")


# -- .pt2 files


def rewritten(name: str, change: Any, path: Path) -> Path:
    """A fixture with some members changed: `change(member, content)` gives the new content, or None to drop
    it."""
    with zipfile.ZipFile(ANSWERS / f"{name}.pt2") as source, zipfile.ZipFile(path, "w") as target:
        for member in source.namelist():
            content = change(member, source.read(member))
            if content is not None:
                target.writestr(member, content)
    return path


def first_pt2() -> str:
    return next(name for name in NAMES if name.startswith("torch"))


def test_pt2_is_read_without_torch_and_without_its_pickle(tmp_path: Path) -> None:
    """The sample inputs are a pickle; with one that runs code the file converts all the same, and nothing
    runs."""
    name, flag = first_pt2(), tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (flag,))

    evil = pickle.dumps(Evil())
    path = rewritten(name, lambda m, c: evil if m.endswith("model.pt") else c, tmp_path / "evil.pt2")
    with np.load(ANSWERS / f"{name}.npz") as data:
        images = data["images"]
    expected = cbin_nn.convert(ANSWERS / f"{name}.pt2").run(images)
    assert np.array_equal(cbin_nn.convert(path).run(images), expected)
    assert not flag.exists()


def test_pickles_are_refused(tmp_path: Path) -> None:
    for name, content in (("plain.pt", pickle.dumps({"w": 1})), ("zip.pt", None)):
        path = tmp_path / name
        if content is None:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("zip/data.pkl", pickle.dumps({"w": 1}))
        else:
            path.write_bytes(content)
        with pytest.raises(ConversionError, match=r"torch.export.save") as caught:
            lower_file(path)
        assert caught.value.slug == "unsupported-file"


def test_damaged_pt2_files(tmp_path: Path) -> None:
    name = first_pt2()

    def refused(change: Any, words: str) -> None:
        path = rewritten(name, change, tmp_path / "bad.pt2")
        with pytest.raises(ConversionError, match=words) as caught:
            lower_file(path)
        lines = str(caught.value).splitlines()
        assert "bad.pt2" in lines[0] and all(line.startswith("- ") for line in lines[1:])

    def edited(member: str, edit: Any) -> Any:
        def change(m: str, content: bytes) -> bytes:
            if not m.endswith(member):
                return content
            record = json.loads(content)
            edit(record)
            return json.dumps(record).encode()

        return change

    def first(record: dict[str, Any]) -> Any:
        return next(v for v in record["config"].values() if v["tensor_meta"]["sizes"])

    config = "model_weights_config.json"
    refused(lambda m, c: None if m.endswith("weight_0") else c, "the file has no")
    refused(lambda m, c: c[:8] if m.endswith("weight_0") else c, "beyond its data")
    refused(edited(config, lambda r: first(r).update(use_pickle=True)), "pickle")
    refused(edited(config, lambda r: first(r).update(path_name="../../etc/passwd")), "the file has no")
    refused(
        edited(config, lambda r: first(r)["tensor_meta"]["sizes"][0].update(as_int=2**40)),
        "impossible|beyond",
    )
    refused(edited(config, lambda r: first(r)["tensor_meta"]["strides"][0].update(as_int=-4)), "beyond")
    refused(edited(config, lambda r: first(r)["tensor_meta"].update(dtype=99)), "type")
    refused(edited(config, lambda r: r["config"].clear()), "no tensor")
    refused(edited("models/model.json", lambda r: r.update(graph_module=7)), "not a record")
    refused(lambda m, c: b"big" if m.endswith("byteorder") else c, "byte order")
    refused(lambda m, c: b"[" * 100_000 if m.endswith("models/model.json") else c, "not a readable")

    def evil(record: dict[str, Any]) -> None:
        for node in record["graph_module"]["graph"]["nodes"]:
            if "conv2d" in node["target"]:
                node["target"] = "os.system"

    refused(edited("models/model.json", evil), "os.system")


def test_zip_bombs_are_not_unpacked(tmp_path: Path) -> None:
    name = first_pt2()
    path = rewritten(name, lambda m, c: bytes(len(c)) if m.endswith("weight_0") else c, tmp_path / "bomb.pt2")
    bomb = tmp_path / "big.pt2"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.namelist():
            content = bytes(2**28) if member.endswith("models/model.json") else source.read(member)
            target.writestr(member, content)
    assert bomb.stat().st_size < 2**21
    with pytest.raises(ConversionError, match="too many"):
        lower_file(bomb)
    keras = tmp_path / "bomb.keras"
    with zipfile.ZipFile(keras, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("config.json", bytes(2**27))
        target.writestr("model.weights.h5", b"")
    with pytest.raises(ConversionError, match="too many"):
        lower_file(keras)


def test_both_routes_give_one_program() -> None:
    name = first_pt2()
    a = simplify(read_torch_export_program(ANSWERS / f"{name}.pt2"))
    b = simplify(read_onnx_program(ANSWERS / f"{name}_noopt.onnx"))
    kinds = [{o.kind for o in program.operations} for program in (a, b)]
    assert {"conv2d", "batch_norm"} <= kinds[0] & kinds[1]


# -- descriptions


def test_descriptions_are_checked() -> None:
    rng = np.random.default_rng(15)
    good = real_network(rng)
    assert cbin_nn.convert(good).classes == 5

    def refused(words: str, **changes: Any) -> None:
        layers = [dict(layer) for layer in good["layers"]]
        layers[1].update(changes)
        with pytest.raises(ConversionError, match=words) as caught:
            cbin_nn.convert({**good, "layers": layers})
        assert caught.value.slug == "bad-description"

    refused("unknown keys", colour="red")
    refused("known types are", type="lstm")
    refused("weights of shape", weights=np.zeros((3, 3)))
    refused("no array", weights="x")
    refused("strides", strides="x")
    layers = [{"type": "conv2d"}]
    with pytest.raises(ConversionError, match="'weights' is missing"):
        cbin_nn.convert({**good, "layers": layers})
    with pytest.raises(ConversionError, match="input"):
        cbin_nn.convert({"input": (1, 2), "layers": layers})
    with pytest.raises(InvalidArgument, match="no file"):
        cbin_nn.convert(3)


def test_weights_export_to_npz(tmp_path: Path, fixtures: Path) -> None:
    lowered, _ = lower_file(fixtures / "tiny.h5")
    model = cbin_nn.convert(fixtures / "tiny.h5")
    path = model.export_weights(tmp_path / "weights.npz")
    with np.load(path) as data:
        for operator in lowered.operators:
            weights = getattr(operator, "weights", None)
            assert weights is not None
            assert np.array_equal(data[operator.name].reshape(weights.shape), weights)
    loaded = cbin_nn.load(model.save(tmp_path / "tiny.cbn"))
    assert all(np.array_equal(a, loaded.weights()[name]) for name, a in model.weights().items())
    buffer = io.BytesIO(path.read_bytes())
    assert np.load(buffer).files == list(model.weights())


def test_no_fixture_holds_a_path_of_the_machine_that_made_it(fixtures: Path) -> None:
    holding = re.compile(rb'File \\?"/|/(?:home|root|work|Users|tmp)/[\w.-]+/')
    files = sorted(path for path in fixtures.rglob("*") if path.is_file())
    assert len(files) > 30 and any(path.suffix == ".pt2" for path in files)
    assert [path.name for path in files if holding.search(path.read_bytes())] == []
