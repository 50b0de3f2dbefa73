"""Small networks around one aten operator, with one argument of its schema set to values of its own.

The operators are those of the reader's table, and the arguments those of torch's own schemas. Each network
has the operator in one place:

- `plane`: on real numbers before a sign; `added`: its result is added to them; `sign`: it makes the bits;
- `comparison`: its result is the condition of the sign; `condition`: it takes the comparison;
- `bits`: on a plane of bits; `layer`: the same, with a sign behind it; `flat`: it is the head;
- `logits`: behind the head;
- `weights`: on parameters alone, so that the reader evaluates it.

`python tests/frameworks/torch_arguments.py` (in `.venv-torch`) writes the fixture of
`tests/test_torch_arguments.py`.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import tarfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cbin_nn
import numpy as np
import torch
from cbin_nn.converters.aten import OPERATORS
from cbin_nn.converters.evaluate import evaluate
from cbin_nn.errors import ConversionError
from cbin_nn.images import draw_images

INPUT = (2, 5, 6)
CHANNELS, CLASSES = 4, 5
FEATURES = CHANNELS * INPUT[1] * INPUT[2]
IMAGES = draw_images(12, INPUT[1], INPUT[2], 1, channels=INPUT[0])
FIXTURE = Path(__file__).resolve().parent.parent / "fixtures" / "arguments"

#: The argument in whose place the network's own tensor stands.
SUBJECTS = ("self", "input", "condition", "mat1", "tensors")


@dataclass(frozen=True)
class Case:
    """One network: an operator in a place, and its arguments, of which `argument` is set to `value`."""

    key: str
    place: str
    argument: str
    value: str
    arguments: dict[str, Any] = field(hash=False, compare=False)
    subject: Any = field(default=None, hash=False, compare=False)

    @property
    def name(self) -> str:
        """A name for messages and files."""
        return f"{self.key}/{self.place}/{self.argument or 'base'}={self.value}"


def overload(key: str) -> Any:
    """torch's operator of a key of the table."""
    name, which = key.split(".", 1)
    return getattr(getattr(torch.ops.aten, name), which)


class Network(torch.nn.Module):
    """A binary convolution, BatchNorm, sign, a binary head, and the operator of a case in its place."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)

        def draw(*shape: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.randn(*shape, generator=generator))

        self.kernel, self.head = draw(CHANNELS, INPUT[0], 3, 3), draw(CLASSES, FEATURES)
        self.norm = torch.nn.BatchNorm2d(CHANNELS)
        with torch.no_grad():
            self.norm.weight.copy_(torch.tensor([1.3, -0.8, 0.6, 2.1]))
            self.norm.bias.copy_(torch.tensor([0.11, -0.32, 0.23, 0.07]))
            self.norm.running_mean.copy_(torch.tensor([31.0, -12.0, 5.0, -40.0]))
            self.norm.running_var.fill_(9e4)
        self.case, self.operator = case, overload(case.key)
        self.schema = self.operator._schema.arguments
        for name, value in case.arguments.items():
            for i, tensor in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(tensor, torch.Tensor):
                    self.register_buffer(f"argument_{name}_{i}", tensor.clone())
        if case.subject is not None:
            self.register_buffer("subject", case.subject.clone())
        self.subject_name = self._subject_name()

    def prepare(self) -> Network:
        """Makes the parameters whose shape follows from the operator's result."""
        with torch.no_grad():
            self(torch.zeros(1, *INPUT))
        return self.eval()

    def matrix(self, rows: int) -> torch.Tensor:
        """A parameter of shape (rows, classes), made when it is first asked for."""
        name = f"matrix_{rows}"
        if not hasattr(self, name):
            generator = torch.Generator().manual_seed(9)
            self.register_buffer(name, torch.randn(rows, CLASSES, generator=generator))
        return getattr(self, name)

    def apply_operator(self, subject: Any) -> Any:
        """The operator, its arguments in the schema's order."""
        positional, named = [], {}
        for argument in self.schema:
            if argument.name == self.subject_name:
                value = subject
            elif argument.name in self.case.arguments:
                value = self.case.arguments[argument.name]
                if isinstance(value, torch.Tensor):
                    value = getattr(self, f"argument_{argument.name}_0")
                elif isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
                    value = [getattr(self, f"argument_{argument.name}_{i}") for i in range(len(value))]
            else:
                continue
            if argument.kwarg_only or named or len(positional) != self.schema.index(argument):
                named[argument.name] = value
            else:
                positional.append(value)
        result = self.operator(*positional, **named)
        return result[0] if isinstance(result, (tuple, list)) else result

    def _subject_name(self) -> str:
        """The argument that the network fills in; none where the case gives them all."""
        names = [argument.name for argument in self.schema if argument.name not in self.case.arguments]
        return next((name for name in SUBJECTS if name in names), "")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        place = self.case.place
        weight = torch.where(self.kernel >= 0, 1.0, -1.0)
        y = self.norm(torch.nn.functional.conv2d(x, weight, padding=1))
        if place == "plane":
            y = self.apply_operator(y)
        if place == "added":
            y = y + self.apply_operator(y)
        if place == "condition":
            bits = self.apply_operator(y >= 0)
        elif place == "comparison":
            bits = torch.where(self.apply_operator(y), 1.0, -1.0)
        else:
            bits = self.apply_operator(y) if place == "sign" else torch.where(y >= 0, 1.0, -1.0)
        if place == "bits":
            bits = self.apply_operator(bits)
        elif place == "layer":
            bits = torch.where(self.apply_operator(bits) >= 0.5, 1.0, -1.0)
        flat = bits.flatten(1).to(torch.float32) if place == "condition" else bits.flatten(1)
        if place == "flat":
            return self.apply_operator(flat)
        if flat.shape[1] == FEATURES:
            head = torch.where(self.head >= 0, 1.0, -1.0).t()
        else:
            head = torch.where(self.matrix(flat.shape[1]) >= 0, 1.0, -1.0)
        out = torch.matmul(flat, head)
        if place == "logits":
            return self.apply_operator(out)
        if place == "weights":
            found = self.apply_operator(getattr(self, "subject", None))
            count = found.numel()
            found = found.to(torch.float32).reshape(count, 1)
            return out + (found * self.matrix(count)).sum(dim=0)
        return out


# ------------------------------------------------------------------------------------------------
# values


def tensor(kind: str, place: str) -> torch.Tensor:
    """A tensor operand that fits the place."""
    generator = torch.Generator().manual_seed(int(hashlib.sha256(kind.encode()).hexdigest()[:8], 16))
    channels = {"weights": (CLASSES,), "logits": (CLASSES,), "flat": (CLASSES,)}.get(
        place, (1, CHANNELS, 1, 1)
    )
    full = {"weights": (3, CLASSES), "logits": (CLASSES,), "flat": (CLASSES,)}.get(
        place, (CHANNELS, *INPUT[1:])
    )
    draws = {
        "channel": lambda: torch.randn(channels, generator=generator),
        "full": lambda: torch.randn(full, generator=generator),
        "one": lambda: torch.tensor(0.3),
        "double": lambda: torch.tensor(0.3, dtype=torch.float64),
        "double channel": lambda: torch.randn(channels, generator=generator, dtype=torch.float64),
        "integer": lambda: torch.tensor(2),
        "integers": lambda: (
            torch.randint(1, 9, full, generator=generator)
            * torch.tensor([-1, 1])[torch.randint(0, 2, full, generator=generator)]
        ),
        "bytes": lambda: torch.randint(0, 256, full, generator=generator, dtype=torch.uint8),
        "short bytes": lambda: torch.randint(-128, 128, full, generator=generator, dtype=torch.int8),
        "booleans": lambda: torch.rand(full, generator=generator) > 0.5,
        "half": lambda: torch.randn(full, generator=generator).half(),
        "brain": lambda: torch.randn(full, generator=generator).bfloat16(),
        "doubles": lambda: torch.randn(full, generator=generator, dtype=torch.float64),
        "positive": lambda: torch.rand(full, generator=generator) * 7 + 0.2,
        "ties": lambda: torch.arange(15).reshape(3, 5) / 2.0 - 3.25 + 0.25,
        "zeros": lambda: (
            torch.randn(full, generator=generator) * (torch.rand(full, generator=generator) > 0.4)
        ),
        "pixel": lambda: torch.randn((1, 1, *INPUT[1:]), generator=generator),
    }
    return draws[kind]()


T = tensor
KINDS = ("integers", "bytes", "short bytes", "booleans", "half", "brain", "doubles", "zeros", "ties")
OPERANDS = ("channel", "one", "double", "double channel", "integer", "full")
MADE = ("integers", "bytes", "booleans", "half", "brain", "doubles")
DTYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.uint8, torch.bool)
NUMBERS = (3, -2, 0.3, 0, True)


@dataclass
class Spec:
    """What to try of an operator: its places, the arguments that it needs, and values of each argument."""

    places: tuple[str, ...]
    base: dict[str, Any] = field(default_factory=dict)
    values: dict[str, list[Any]] = field(default_factory=dict)
    #: The tensor in the place `weights`, and others to set it to.
    subject: str = "full"
    subjects: tuple[str, ...] = KINDS


#: Values of an argument by its name; what is a word for `tensor` there is drawn for the place.
BY_NAME: dict[str, list[Any]] = {
    "alpha": [2, -0.5, 0],
    "beta": [20, 0, -1.5],
    "dtype": list(DTYPES),
    "layout": [torch.strided],
    "device": [torch.device("cpu")],
    "pin_memory": [False],
    "memory_format": [torch.contiguous_format, torch.preserve_format, torch.channels_last],
    "non_blocking": [True],
    "copy": [True],
    "implicit": [True],
    "keepdim": [True],
    "unbiased": [False],
    "rounding_mode": ["floor", "trunc", None],
    "train": [True, False],
    "training": [True, False],
    "momentum": [0.5],
    "cudnn_enabled": [True],
    "eps": [0.1, 1e-3, 3000.0],
    "ceil_mode": [True],
    "half_to_float": [True],
    "generator": [None],
    "groups": [4, 2],
    "transposed": [True],
    "output_padding": [[1, 1]],
    "correction": [0, 2, 1.5, None],
    "fill_value": [3, -0.7, True],
    "s": [3, -0.7, True],
    "exponent": [2, 3, 0.5, -1, 0, "full", "integer", "integers"],
}


#: (operator, argument, value) -> what else must change for torch to take the value.
together: dict[tuple[str, str, str], dict[str, Any]] = {}


def specs() -> dict[str, Spec]:
    """For every key of the reader's table."""
    unary, real = ("weights", "plane", "bits", "logits"), ("weights", "plane", "logits")
    found: dict[str, Spec] = {}

    def add(
        keys: str, *places: str, base: Any = None, subject: str = "full", subjects: Any = KINDS, **values: Any
    ) -> None:
        for key in keys.split():
            assert key not in found, key
            found[key] = Spec(places, dict(base or {}), values, subject, tuple(subjects))

    add(
        "alias.default detach.default detach_.default lift_fresh_copy.default clone.default "
        "contiguous.default",
        *unary,
    )
    add(
        "abs.default neg.default sign.default sgn.default floor.default ceil.default trunc.default",
        *unary,
        "sign",
    )
    add("round.default", *unary, subject="ties")
    add("exp.default exp2.default tanh.default square.default", *real)
    add("sqrt.default log.default log2.default reciprocal.default rsqrt.default", *real, subject="positive")
    numbers = list(NUMBERS)
    for name in ("add", "sub", "rsub", "mul", "div"):
        add(f"{name}.Scalar", *unary, base={"other": 2.5}, other=numbers)
        add(f"{name}.Tensor", *unary, base={"other": "channel"}, other=[*OPERANDS, *KINDS])
    add(
        "div.Tensor_mode", *unary, base={"other": "channel", "rounding_mode": None}, other=[*OPERANDS, *KINDS]
    )
    add("div.Scalar_mode", *unary, base={"other": 2.5, "rounding_mode": "floor"}, other=numbers)
    add("floor_divide.default remainder.Tensor", *unary, base={"other": "channel"}, other=[*OPERANDS, *KINDS])
    add("floor_divide.Scalar remainder.Scalar", *unary, base={"other": 2.5}, other=numbers)
    add("maximum.default minimum.default", *unary, base={"other": "one"}, other=[*OPERANDS, *KINDS])
    add("pow.Tensor_Scalar", *real, base={"exponent": 2}, subject="positive", exponent=[3, 0.5, -1, 0])
    powers = ["full", "integers", "one"]
    add("pow.Tensor_Tensor", *real, base={"exponent": "integer"}, subject="positive", exponent=powers)
    scalar_first = {"self": 2, "exponent": "full"}
    add(
        "pow.Scalar",
        "weights",
        base=scalar_first,
        self=[3, 0.5, 2.5],
        exponent=["integer", "positive", "half"],
    )
    for name in ("ge", "gt", "le", "lt", "eq", "ne"):
        add(f"{name}.Scalar", "weights", "comparison", base={"other": 0.25}, other=[*numbers, -0.25, 300])
        add(f"{name}.Tensor", "weights", "comparison", base={"other": "one"}, other=[*OPERANDS, *KINDS])
    both = {"self": 1.0, "other": -1.0}
    add(
        "where.Scalar",
        "weights",
        "condition",
        base=both,
        subject="booleans",
        subjects=(),
        self=[2, -3.0, True],
        other=[2, 0.5],
    )
    ends = {"self": "one", "other": "double"}
    words = ["channel", "integer", "integers", "half", "doubles", "booleans"]
    add(
        "where.self",
        "weights",
        "condition",
        base=ends,
        subject="booleans",
        subjects=(),
        self=words,
        other=words,
    )
    mixed = {"self": 1.0, "other": "double"}
    add(
        "where.ScalarSelf",
        "weights",
        "condition",
        base=mixed,
        subject="booleans",
        subjects=(),
        self=[2, 0.25],
        other=words,
    )
    mixed = {"self": "double", "other": 1.0}
    add(
        "where.ScalarOther",
        "weights",
        "condition",
        base=mixed,
        subject="booleans",
        subjects=(),
        self=words,
        other=[2, 0.25],
    )

    add("to.dtype", *unary, "condition", base={"dtype": torch.float32})
    place = {"device": torch.device("cpu"), "dtype": torch.float32}
    add("to.device", *unary, base=place)
    add("to.dtype_layout _to_copy.default", *unary, "condition", base={"dtype": torch.float32})
    add("to.other type_as.default", *unary, base={"other": "one"}, other=list(KINDS))
    for name in ("full", "ones", "zeros"):
        extra = {"fill_value": 2.5} if name == "full" else {}
        add(f"{name}.default", "weights", base={"size": [3, 5], **extra}, size=[[5], [], [1, 5, 1]])
        add(f"{name}_like.default", "weights", "added", base=extra)
    add("scalar_tensor.default", "weights", base={"s": 2.5})

    window = {"weight": "kernel"}
    paddings = {
        "padding": [[1, 0], [1, 1], [0, 2]],
        "stride": [[1, 2], [2, 2]],
        "dilation": [[1, 2], [2, 2]],
        "bias": ["bias"],
    }
    add("conv2d.default", "layer", base=window, **paddings, weight=["kernel 1x2", "real kernel"])
    words = {**paddings, "padding": ["same", "valid"], "weight": ["kernel 1x2", "kernel 2x2", "real kernel"]}
    words["stride"] = [[1, 2], [2, 2]]
    for key in ("conv2d.default", "conv2d.padding", "convolution.default"):
        together[key, "groups", "4"] = {"weight": "kernel of 4"}
        together[key, "groups", "2"] = {"weight": "kernel of 2"}
    together["convolution.default", "transposed", "True"] = {"weight": "kernel across"}
    for stride in words["stride"]:
        together["conv2d.padding", "stride", shown(stride)] = {"padding": "valid"}
    add("conv2d.padding", "layer", base={**window, "padding": "same"}, **words)
    whole = {"bias": None, "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "transposed": False}
    lists = {
        "padding": [[1, 1], [1, 0]],
        "stride": [[2, 2], [1, 2]],
        "dilation": [[2, 2], [1, 2]],
        "bias": ["bias"],
    }
    add(
        "convolution.default",
        "layer",
        base={**window, **whole, "output_padding": [0, 0], "groups": 1},
        **lists,
        weight=["real kernel"],
    )
    add("linear.default", "flat", "bits", base={"weight": "units"}, weight=["real units"], bias=["classes"])
    add("matmul.default", "flat", "plane", base={"other": "matrix"}, other=["real matrix", "vector"])
    add("mm.default", "flat", base={"mat2": "matrix"}, mat2=["real matrix"])
    added = {"self": "classes", "mat2": "matrix"}
    add("addmm.default", "flat", base=added, self=["row", "one"], mat2=["real matrix"])
    pool = {"kernel_size": [2, 2]}
    values = {
        "kernel_size": [2, [2, 1], [3, 2], [3]],
        "stride": [1, [1, 2], 3],
        "padding": [1, [1, 0]],
        "dilation": [2, [1, 2]],
    }
    add("max_pool2d.default max_pool2d_with_indices.default", "bits", "plane", base=pool, **values)
    norm = {"weight": "channels", "bias": "channels", "running_mean": "channels", "running_var": "variances"}
    stored = {**norm, "momentum": 0.1, "eps": 1e-5}
    values = {
        "weight": [None, "more channels"],
        "bias": [None, "more channels"],
        "running_mean": ["more channels"],
        "running_var": ["more channels squared"],
    }
    add(
        "batch_norm.default",
        "plane",
        base={**stored, "training": False, "cudnn_enabled": True},
        **values,
        cudnn_enabled=[False],
    )
    add("_native_batch_norm_legit_no_training.default", "plane", base=stored, **values)
    for name in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout"):
        add(
            f"{name}.default",
            "bits",
            "plane",
            "weights",
            base={"p": 0.5, "train": False},
            p=[0.0, 0.9],
            train=[True],
        )
    add(
        "rrelu.default",
        "plane",
        "weights",
        lower=[-0.5, 0.3],
        upper=[-0.2, 0.9],
        base={"lower": -0.3, "upper": -0.1},
    )
    add("prelu.default", "plane", "logits", base={"weight": "slopes"}, weight=["slope"])
    add("_prelu_kernel.default", "plane", "logits", base={"weight": "channel"}, weight=["one", "full"])
    add("relu.default relu6.default", "plane", "weights", "logits")
    add("leaky_relu.default", "plane", "weights", negative_slope=[-0.5, 0.3, 2, 0])
    add("hardtanh.default", "plane", "weights", "logits", min_val=[-0.3, -2, 0], max_val=[0.4, 2])
    for name in ("clamp", "clip"):
        add(
            f"{name}.default",
            "plane",
            "weights",
            "logits",
            base={"min": -0.5},
            min=[-2, 0.3, None],
            max=[0.4, 2, None],
        )
        add(
            f"{name}.Tensor",
            "plane",
            "weights",
            "logits",
            base={"min": "one"},
            min=["channel", "double", "integer"],
            max=["channel", "double"],
        )
    add("clamp_min.default", "plane", "weights", "logits", base={"min": -0.5}, min=[0.3, -2])
    add("clamp_max.default", "plane", "weights", "logits", base={"max": 0.5}, max=[-0.3, 2])
    add("clamp_min.Tensor", "plane", "weights", base={"min": "one"}, min=["channel", "double", "integer"])
    add("clamp_max.Tensor", "plane", "weights", base={"max": "one"}, max=["channel", "double", "integer"])

    dims = {"start_dim": [0, 1, 2, -3], "end_dim": [1, 2, -2, 0]}
    add("flatten.using_ints", "bits", "weights", subject="cube", base={"start_dim": 1}, **dims)
    sizes = [[-1, FEATURES], [1, -1], [1, CHANNELS, -1], [5, 3], [-1, 5, 3], [15]]
    add("view.default _unsafe_view.default", "bits", "weights", base={"size": [1, -1]}, size=sizes)
    add("reshape.default", "bits", "weights", base={"shape": [1, -1]}, shape=sizes)
    orders = [[0, 2, 3, 1], [0, 3, 1, 2], [0, -1, 2, 1], [1, 0, 2, 3]]
    add(
        "permute.default",
        "bits",
        "plane",
        "weights",
        subject="block",
        base={"dims": [0, 1, 3, 2]},
        dims=orders,
    )
    add(
        "transpose.int",
        "bits",
        "plane",
        "weights",
        subject="cube",
        base={"dim0": 1, "dim1": 2},
        dim0=[0, -1, 3],
        dim1=[0, -1, 3],
    )
    add("t.default numpy_T.default", "weights", "flat")
    add("unsqueeze.default", "bits", "weights", "logits", base={"dim": 0}, dim=[1, -1, 2])
    add("squeeze.default", "weights", "bits", subject="ones")
    add("squeeze.dim", "weights", "bits", subject="ones", base={"dim": 1}, dim=[0, -1, 2])
    add("squeeze.dims", "weights", "bits", subject="ones", base={"dim": [1]}, dim=[[0, 1], [0], [-1, 1]])
    add(
        "expand.default",
        "weights",
        "bits",
        "plane",
        base={"size": [3, 5]},
        size=[[-1, 5], [2, 3, 5], [-1, -1, -1, -1], [1, 4, 5, 6]],
    )
    add("expand_as.default", "weights", base={"other": "full"}, other=["sheets", "booleans"])
    add("mean.default sum.default", "weights", "plane")
    reduced = [[0], [1], [0, 1], [-1], [], None]
    add("mean.dim sum.dim_IntList", "weights", "plane", base={"dim": [1]}, dim=reduced)
    for name in ("var", "std"):
        add(f"{name}.default", "weights", "plane")
        add(f"{name}.dim", "weights", "plane", base={"dim": [1]}, dim=reduced)
        add(f"{name}.correction", "weights", "plane", dim=reduced, base={"dim": [1]})
    add("softmax.int log_softmax.int", "logits", "plane", base={"dim": 1}, dim=[-1, 0, 2])
    add(
        "_softmax.default _log_softmax.default",
        "logits",
        "plane",
        base={"dim": 1, "half_to_float": False},
        dim=[-1, 0, 2],
    )
    add(
        "cat.default",
        "weights",
        "bits",
        base={"tensors": ["full", "full"]},
        tensors=[["full", "integers"], ["half", "doubles"]],
        dim=[1, -1],
    )
    return found


MORE: dict[str, Any] = {
    "cube": lambda: T("integers", "plane").float().reshape(4, 5, 6)[:2, :3] + T("full", "plane")[:2, :3],
    "block": lambda: T("full", "plane").reshape(2, 2, 5, 6)[:, :, :2, :3],
    "sheets": lambda: torch.zeros(2, 3, 5),
    "ones": lambda: T("channel", "plane").reshape(1, 4, 1),
    "kernel": lambda: torch.sign(torch.randn(3, CHANNELS, 2, 3, generator=torch.Generator().manual_seed(3))),
    "kernel 1x2": lambda: torch.sign(
        torch.randn(3, CHANNELS, 1, 2, generator=torch.Generator().manual_seed(3))
    ),
    "kernel 2x2": lambda: torch.sign(
        torch.randn(3, CHANNELS, 2, 2, generator=torch.Generator().manual_seed(3))
    ),
    "real kernel": lambda: torch.randn(3, CHANNELS, 2, 2, generator=torch.Generator().manual_seed(4)),
    "kernel of 4": lambda: MORE["kernel across"]()[:, :1],
    "kernel of 2": lambda: MORE["kernel across"]()[:, :2],
    "kernel across": lambda: torch.sign(
        torch.randn(CHANNELS, 3, 2, 3, generator=torch.Generator().manual_seed(3))
    ),
    "bias": lambda: torch.tensor([7.0, -11.0, 3.0]),
    "units": lambda: torch.sign(torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(5))),
    "real units": lambda: torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(6)),
    "matrix": lambda: MORE["units"]().t().contiguous(),
    "real matrix": lambda: MORE["real units"]().t().contiguous(),
    "vector": lambda: MORE["units"]()[0].clone(),
    "classes": lambda: torch.tensor([3.0, -7.0, 1.5, 0.25, 9.0]),
    "row": lambda: MORE["classes"]().reshape(1, -1),
    "channels": lambda: torch.tensor([0.7, -0.4, 0.2, 1.1]),
    "more channels": lambda: torch.tensor([-0.3, 0.6, 0.9, 2.0]),
    "variances": lambda: torch.tensor([0.7, 0.4, 0.2, 1.1]),
    "more channels squared": lambda: torch.tensor([7.0, 0.04, 2.0, 0.3]),
    "slopes": lambda: torch.tensor([0.25, -0.5, 0.0, 1.5]),
    "slope": lambda: torch.tensor([-0.25]),
}


def drawn(value: Any, place: str, argument: str) -> Any:
    """A value, with words for tensors replaced; slopes are as many as there are channels."""
    if isinstance(value, str) and argument not in ("rounding_mode", "padding"):
        if value == "slopes" and place == "logits":
            return MORE["classes"]() / 10
        return MORE[value]() if value in MORE else tensor(value, place)
    if isinstance(value, list) and any(isinstance(v, str) for v in value):
        return [drawn(v, place, argument) for v in value]
    return value


def shown(value: Any) -> str:
    """A value, for a case's name."""
    return str(value).replace("torch.", "").replace(" ", "_")


def cases(thin: bool = False) -> Iterator[Case]:
    """Every operator of the table, with what it needs alone, then with each argument set to each value.

    `thin` keeps one value of an argument among parameters and one in the first other place, and of an
    argument that the reader takes to be inert one in all.
    """
    table = specs()
    assert set(table) == set(OPERATORS), set(table) ^ set(OPERATORS)
    for key, spec in table.items():
        others = [place for place in spec.places if place != "weights"]
        for place in spec.places:
            if thin and place in others[1:]:
                continue
            counts: Counter[str] = Counter()
            for case in _of_place(key, spec, place):
                counts[case.argument] += 1
                inert = case.argument in OPERATORS[key].signature.inert
                if not thin or (counts[case.argument] == 1 and not (inert and place != spec.places[0])):
                    yield case


def _of_place(key: str, spec: Spec, place: str) -> Iterator[Case]:
    schema = overload(key)._schema.arguments

    def case(argument: str, value: str, given: dict[str, Any], subject: str) -> Case:
        arguments = {name: drawn(v, place, name) for name, v in given.items()}
        own = drawn(subject, "weights", "subject") if place == "weights" else None
        return Case(key, place, argument, value, arguments, own)

    names = [argument.name for argument in schema if argument.name not in spec.base]
    filled = next((name for name in SUBJECTS if name in names), "")
    yield case(filled, spec.subject if place == "weights" else "the network's own", spec.base, spec.subject)
    if place == "weights" and filled:
        for kind in spec.subjects:
            yield case(filled, kind, spec.base, kind)
    for argument in schema:
        for value in spec.values.get(argument.name, BY_NAME.get(argument.name, [])):
            given = {**spec.base, argument.name: value}
            given |= together.get((key, argument.name, shown(value)), {})
            yield case(argument.name, shown(value), given, spec.subject)


def schema_arguments() -> set[tuple[str, str]]:
    """Every (operator, argument) pair of the table, by torch's schemas."""
    return {(key, argument.name) for key in OPERATORS for argument in overload(key)._schema.arguments}


# ------------------------------------------------------------------------------------------------
# one case


@dataclass
class Outcome:
    """What became of a case: "right", "refused" or "not torch's" (torch itself does not take the value)."""

    kind: str
    detail: str = ""
    #: torch's own answers, [N, classes].
    answers: Any = None


def images() -> torch.Tensor:
    """The images as torch takes them."""
    return torch.from_numpy(np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2))).float()


def torch_answers(case: Case) -> tuple[Any, Any] | str:
    """(the network, its answers), or why torch does not take the case."""
    torch.set_num_threads(1)
    try:
        network = Network(case).prepare()
        with torch.no_grad():
            return network, network(images()).reshape(len(IMAGES), -1).float().numpy()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def judge(source: Any, answers: np.ndarray, key: str = "") -> Outcome:
    """Converts a source and compares the converted network's answers with torch's.

    An image in which a sign lies within rounding of its threshold may differ. A closing softmax is dropped,
    which the report says, and is taken here.
    """
    try:
        model = (
            cbin_nn.convert(source, input_shape=INPUT)
            if isinstance(source, torch.nn.Module)
            else cbin_nn.convert(source)
        )
    except ConversionError as error:
        return Outcome("refused", f"{error.slug}: {error}", answers)
    got = model.dequantize(model.run(IMAGES)).reshape(len(IMAGES), -1)
    if "softmax" in key:
        got = got - got.max(axis=1, keepdims=True)
        got = got - np.log(np.exp(got).sum(axis=1, keepdims=True))
        got = got if "log" in key else np.exp(got)
    if got.shape != answers.shape:
        return Outcome("wrong", f"shape {got.shape} for {answers.shape}", answers)
    report = model.conversion
    assert report is not None and report.graph is not None
    scale = max(1.0, float(np.abs(answers).max()))
    slack = 0.02 if report.operators[-1].approximations else 1e-4
    apart = ~(np.abs(got - answers) <= slack * scale).all(axis=1)
    if apart.any():
        near = evaluate(report.graph, IMAGES).near_ties
        excused = np.zeros(len(IMAGES), bool)
        for ties in near.values():
            excused |= ties.reshape(len(IMAGES), -1).any(axis=1)
        if (apart & ~excused).any():
            return Outcome("wrong", f"off by {np.abs(got - answers).max()} of {scale}", answers)
    return Outcome("right", "", answers)


def exported(network: Any) -> Any:
    """The network's exported program, for one image."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return torch.export.export(network, (torch.zeros(1, *INPUT),))


def sources(case: Case, network: Any) -> Iterator[tuple[str, Any]]:
    """(route, exported program): as exported, and for a share of the cases also behind `run_decompositions`.

    Nothing where torch can't export the network, as with a shape that depends on values.
    """
    try:
        program = exported(network)
    except Exception:
        return
    yield "export", program
    if case.value == "the network's own" or _number(case) % 4 == 0:
        yield "decomposed", program.run_decompositions()


def _number(case: Case) -> int:
    return int(hashlib.sha256(case.name.encode()).hexdigest()[:8], 16)


# ------------------------------------------------------------------------------------------------
# the fixture


def write_fixture(processes: int = 4) -> None:
    """One solid archive of `.pt2` files (in which equal weights are stored once), and torch's answers.

    About half of the thin cases, of every operator at least one. What is refused has no answers.
    """
    chosen = [case for case in cases(thin=True) if _first(case) or _number(case) % 2 == 0]
    content = io.BytesIO()
    names, kinds, values = [], [], []
    with (
        tarfile.open(fileobj=content, mode="w") as archive,
        ProcessPoolExecutor(processes, get_context("spawn")) as pool,
    ):
        for recorded in pool.map(record, chosen, chunksize=8):
            for name, kind, answers, files in recorded:
                names.append(name)
                kinds.append(kind)
                values.append(answers if kind == "right" else np.zeros((len(IMAGES), 0), np.float32))
                for member, data in files:
                    entry = tarfile.TarInfo(f"{name}|{member}")
                    entry.size = len(data)
                    archive.addfile(entry, io.BytesIO(data))
    FIXTURE.mkdir(exist_ok=True)
    (FIXTURE / "torch.tar.xz").write_bytes(lzma.compress(content.getvalue(), preset=9 | lzma.PRESET_EXTREME))
    np.savez_compressed(
        FIXTURE / "torch.npz",
        images=IMAGES,
        names=np.array(names),
        kinds=np.array(kinds),
        widths=np.array([answers.shape[1] for answers in values]),
        answers=np.concatenate(values, axis=1),
    )


def record(case: Case) -> list[tuple[str, str, np.ndarray, list[tuple[str, bytes]]]]:
    """(name, outcome, torch's answers, files) of each route of a case."""
    found = torch_answers(case)
    if isinstance(found, str):
        return []
    network, answers = found
    made = []
    for route, program in sources(case, network):
        outcome = judge(program, answers, case.key)
        assert outcome.kind != "wrong", (case.name, outcome.detail)
        made.append((f"{case.name} ({route})", outcome.kind, answers, list(members(program))))
    return made


def _first(case: Case) -> bool:
    """Whether nothing is set to a value of its own."""
    return case.value in ("the network's own", specs()[case.key].subject, "")


def members(program: Any) -> Iterator[tuple[str, bytes]]:
    """What a `.pt2` file of a program holds, without what no reader needs: samples, stack traces, padding."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    with zipfile.ZipFile(buffer) as archive:
        for name in archive.namelist():
            if "/models/" in name and name.endswith(".json"):
                record = json.loads(archive.read(name))
                for node in record["graph_module"]["graph"]["nodes"]:
                    node["metadata"] = {}
                yield name, json.dumps(record, separators=(",", ":")).encode()
            elif ("/data/" in name and "sample_inputs" not in name) or name.endswith("byteorder"):
                yield name, archive.read(name)


if __name__ == "__main__":
    write_fixture()
