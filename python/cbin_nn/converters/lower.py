r"""Lowering: a source graph becomes the integer operators of `cbin_nn.operators`, exactly.

The chain is cut at its signs. What stands between a binary convolution or dense layer and the next sign
(bias, BatchNorm, PReLU, scale, at most one max-pool inside) folds into that operator's rules
(`cbin_nn.folding`); pools of bits become operators of their own. The last dense layer keeps its chain as
fixed-point requantization (`cbin_nn.requantize`).

**First layer.** A u8 input becomes integers as `cbin_nn.folding` says; what is left of its scale joins
the chain. Real weights, and unequal input scales, become 8-bit weights (`quantize`), with the bound in the
report.

**Last layer.** A dense layer with real weights on bits becomes 8-bit weights in the same way.

**torch.sign.** 0 at 0 is no bit. Each such sign is proven never to see 0; where that fails, the network is
refused with the layers and channels, except before the last dense layer: there the sign is split into two
bits, `x > 0` and `x >= 0`, whose mean it is (`passes.split_ternary`), which is exact.

**Refusals.** What can't be lowered is collected on the way, so that one error lists all of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import rules as r
from ..errors import ConversionError, InvalidArgument
from ..folding import (
    AccumulatorRange,
    FoldedPool,
    FoldError,
    Planned,
    canonical_rules,
    few,
    fold_pool,
    fold_sign,
    input_by_channel,
    integer_input,
    simplest_fraction,
    zeros_under_sign,
)
from ..operators import (
    BBFC,
    BBQFC,
    BQQFC,
    BBConv2D,
    BBDepthwiseConv2D,
    BBPointwiseConv2D,
    BMaxPool2D,
    LoweredModel,
    Operator,
    Pool,
    QBConv2D,
    QQConv2D,
    Rules,
    Window,
)
from ..requantize import requantize
from . import graph as g
from .passes import split_ternary
from .problems import Problem, together
from .quantize import quantize_weights
from .words import advice

__all__ = ["ConversionReport", "OperatorReport", "lower", "simplest_fraction"]

OUTPUTS = ("i8", "i16", "i32", "f32")

# What `_check_cost` lets pass: some seconds' work, far above what a network for microcontrollers has.

#: As in `rust/model/src/format.rs`.
_MOST_OPERATORS = 1024
#: Rules of elements in a network: 4 MiB of a file.
_MOST_RULES = 2**19
#: Bends of a chain that any layer may have; each further one may double the pieces.
_FEW_BENDS = 3
_MOST_PIECES = 2**17
#: BatchNorms and steps of a chain that any layer before a sign may have. Exact arithmetic takes as long as
#: the cube of the former, since their square roots multiply, and as the square of the latter.
_FEW_NORMS, _FEW_STEPS = 3, 16
_MOST_TERMS = 2**20

#: int8, or int16 in a first layer. Only `qqconv2d` takes the latter, and nothing else is given it.
Weights = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class OperatorReport:
    """What one operator was made of. Counts are of rules: channels, or elements where a layer has those."""

    name: str
    kind: str
    #: Source layers folded in, in order.
    layers: list[str]
    #: Shape of the output, (height, width, channels) or (features,).
    shape: tuple[int, ...]
    rules: int = 0
    #: Rules with two finite ends, or with a veto.
    two_sided: int = 0
    #: Rules that do not depend on the accumulator.
    constant: int = 0
    #: Rules within 1e-5 of a threshold, where frameworks disagree with themselves (docs: Rules).
    near_tie: int = 0
    #: One approximation a line, with its bound; empty where the operator is exact.
    approximations: list[str] = field(default_factory=list)
    #: The source's sign whose bits are this operator's output; empty for a pool of bits, and for the last
    # layer.
    sign: str = ""
    #: The tensor of `ConversionReport.graph` that this operator's output stands for; empty where there is
    #: none, as for a convolution whose pool was kept apart.
    tensor: str = ""
    #: What the approximations come to: how far each filter's sum, in the source's units, can be off, shape
    #: (filters,); None is nowhere. Input offsets that are read within float32 rounding count too.
    bound: npt.NDArray[np.float64] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did, for people (`str`) and programs (`to_dict`)."""

    operators: list[OperatorReport]
    #: One fact a line, the same as the model's.
    notes: list[str] = field(default_factory=list)
    #: What was lowered: the source graph, after a split of `torch.sign` where there was one.
    graph: g.Graph | None = field(default=None, repr=False, compare=False)
    #: As `convert` was given them; None is the default.
    input_scale: Any = None
    input_offset: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the graph, which holds all weights again."""
        return {**self.__dict__, "graph": None}

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, strings and numbers, ready for JSON."""
        return {
            "operators": [
                {
                    "name": o.name,
                    "kind": o.kind,
                    "layers": list(o.layers),
                    "shape": list(o.shape),
                    "rules": o.rules,
                    "two_sided": o.two_sided,
                    "constant": o.constant,
                    "near_tie": o.near_tie,
                    "approximations": list(o.approximations),
                    "sign": o.sign,
                }
                for o in self.operators
            ],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        head = ["operator", "kind", "output", "rules", "two-sided", "constant", "near-tie", "from"]
        rows = [head] + [
            [
                o.name,
                o.kind,
                "x".join(map(str, o.shape)),
                *(str(n) if o.rules else "-" for n in (o.rules, o.two_sided, o.constant, o.near_tie)),
                " + ".join(dict.fromkeys(o.layers)),
            ]
            for o in self.operators
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        lines += [f"approximated: {o.name}: {line}" for o in self.operators for line in o.approximations]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


# ------------------------------------------------------------------------------------------------
# input scale


@dataclass(frozen=True)
class _Meaning:
    """`real = scale*q + offset` of the u8 input, exact rationals, and the layers that made it.

    One value, or one a channel.
    """

    scale: tuple[Fraction, ...] = (Fraction(1),)
    offset: tuple[Fraction, ...] = (Fraction(0),)
    layers: tuple[str, ...] = ()

    def then(self, factor: Sequence[Fraction], offset: Sequence[Fraction], layers: Sequence[str]) -> _Meaning:
        """The meaning after `factor*x + offset`."""
        count = max(len(self.scale), len(self.offset), len(factor), len(offset))

        def spread(values: Sequence[Fraction]) -> Sequence[Fraction]:
            return values if len(values) == count else tuple(values) * count

        factors = spread(factor)
        scales = [a * f for a, f in zip(spread(self.scale), factors, strict=True)]
        offsets = [b * f + o for b, f, o in zip(spread(self.offset), factors, spread(offset), strict=True)]
        return _Meaning(_one_if_equal(scales), _one_if_equal(offsets), (*self.layers, *layers))

    def channels(self, count: int) -> tuple[tuple[Fraction, ...], tuple[Fraction, ...]]:
        """Scale and offset of each of `count` channels."""
        one = [values if len(values) == count else values * count for values in (self.scale, self.offset)]
        return one[0], one[1]


def _one_if_equal(values: Sequence[Fraction]) -> tuple[Fraction, ...]:
    return (values[0],) if all(value == values[0] for value in values) else tuple(values)


def _channel_values(argument: str, value: Any, default: float) -> tuple[Fraction, ...]:
    """A convert() argument, one number or one a channel, as the rational values of its float32."""
    if value is None:
        return (Fraction(default),)
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidArgument("bad-argument", f"{argument}: expected a number, got {value!r}") from error
    if not array.size or array.ndim > 1:
        raise InvalidArgument(
            "bad-argument", f"{argument}: expected one number or one a channel, got shape {list(array.shape)}"
        )
    with np.errstate(over="ignore"):
        numbers = array.reshape(-1).astype(np.float32).astype(np.float64)
    if not np.isfinite(numbers).all():
        raise InvalidArgument("bad-argument", f"{argument}: expected finite numbers, got {value!r}")
    return _one_if_equal([Fraction(float(number)) for number in numbers])


def _fractions(value: Fraction | g.Float32, channels: int) -> tuple[Fraction, ...] | None:
    """A parameter on the network's input, one or one a channel; None where it is one an element."""
    if isinstance(value, Fraction):
        return (value,)
    if value.shape != (channels,) or not np.isfinite(value).all():
        return None
    return tuple(Fraction(float(v)) for v in value)


# ------------------------------------------------------------------------------------------------
# the walk


@dataclass
class _Bits:
    """A packed tensor that exists: its name, its plane, and whether the source has flattened it."""

    tensor: str
    shape: tuple[int, ...]


@dataclass
class _Open:
    """A convolution or dense layer whose accumulator is not yet a bit."""

    node: g.Conv2D | g.Dense
    #: Tensor that it reads, and that tensor's plane; (features,) for dense.
    source: str
    source_shape: tuple[int, ...]
    #: None where the input is bits.
    bytes: _Bytes | None
    layers: list[str]
    #: (weights (out, kh, kw, in)), also for dense on real input, or (units, features).
    weights: Weights
    window: Window | None
    one_padding: bool
    #: The plane of accumulators, (height, width, channels) or (units,).
    plane: tuple[int, ...]
    #: Chains between pools: before the first, after it, ...
    chains: list[list[g.Node]] = field(default_factory=lambda: [[]])
    pools: list[g.MaxPool2D] = field(default_factory=list)
    #: The current plane: after the pools.
    shape: tuple[int, ...] = ()
    #: Scales that belong to the accumulator itself, before every chain.
    head: list[Planned] = field(default_factory=list)
    approximations: list[str] = field(default_factory=list)
    #: As `OperatorReport.bound`.
    bound: npt.NDArray[np.float64] | None = None
    #: Channels where a tie is -1; None is nowhere.
    strict: Bools | None = None


@dataclass(frozen=True)
class _Bytes:
    """How a first layer reads the image: `mul*q + add`, or `mul*q + adds[channel]`."""

    mul: int
    add: int
    adds: Ints | None
    #: Whether its weights are -1 and +1.
    binary: bool

    @property
    def largest(self) -> int:
        """The kernels' bound of `|mul*q + add|` and its partial sums."""
        adds = [self.add] if self.adds is None else self.adds.tolist()
        return 255 * self.mul + max(abs(int(add)) for add in adds)

    def of_products(self, products: int) -> int | Ints:
        """The offset of each product of a filter, channels innermost."""
        return self.add if self.adds is None else np.tile(self.adds, products // len(self.adds))


@dataclass
class _Skipped:
    """What follows a layer that was refused, up to the next sign."""


def _real_weights(node: g.Conv2D | g.Dense, framework: str) -> tuple[str, str]:
    """(why the weights of a layer between binary ones do not convert, what to do)."""
    kernel = np.abs(node.kernel.reshape(-1, node.kernel.shape[-1]))
    zeros = int(np.count_nonzero(kernel == 0))
    largest = kernel.max(axis=0)
    if zeros and zeros < kernel.size and bool(np.all((kernel == 0) | (kernel == largest))):
        return (
            f"{zeros:,} of its {kernel.size:,} weights {'is' if zeros == 1 else 'are'} 0 and the rest are "
            "two values a filter; a bit is -1 or +1, and has no third value",
            advice("no zeros in weights", framework),
        )
    return (
        "its weights are real numbers, which convert in the first layer and in a last dense layer on bits",
        advice("binary weights", framework),
    )


class _Lowering:
    def __init__(self, source: g.Graph, output: str, meaning: _Meaning, fuse: bool) -> None:
        self.graph, self.output, self.fuse = source, output, fuse
        self.notes: list[str] = list(source.notes)
        self.operators: list[Operator] = []
        self.reports: list[OperatorReport] = []
        self.state: _Meaning | _Bits | _Open | _Skipped = meaning
        self.input = ""
        self.input_shape: tuple[int, ...] = ()
        #: Layers without an operator of their own (flatten, dropout), reported with the next operator.
        self.pending: list[str] = []
        self.softmax: str | None = None
        #: Whether the network scales its input itself.
        self.rescaled = False
        self.problems: list[Problem] = list(source.problems)
        #: Sign nodes that may see an exact 0, with the layer and its channels where.
        self.zeros: list[tuple[g.Sign, str, list[int]]] = []
        layers = [node for node in source.nodes if isinstance(node, (g.Conv2D, g.Dense, g.Sign))]
        #: The last dense layer, if no sign follows it.
        self.last = layers[-1] if layers and isinstance(layers[-1], g.Dense) else None
        self.names: set[str] = set()
        #: Rules of elements, rather than of channels, so far.
        self.rules = 0

    # -- helpers

    def _refuse(self, node: g.Node, slug: str, reason: str, what: str = "") -> ConversionError:
        """An error about a node's layer; `what` is an entry of `words`."""
        told = advice(what, self.graph.framework) if what else ""
        return ConversionError(slug, reason, layer=node.layer, advice=told)

    def _told(self, error: ConversionError | OverflowError, node: g.Node) -> ConversionError:
        """A refusal as it is, or that of exact numbers which no float64 holds."""
        if isinstance(error, ConversionError):
            return error
        return self._refuse(node, "not-finite", "the scales up to it multiply to a number beyond float64")

    def _refuse_weights(self, node: g.Conv2D | g.Dense) -> ConversionError:
        reason, told = _real_weights(node, self.graph.framework)
        return ConversionError("unsupported-layer", reason, layer=node.layer, advice=told)

    def _unique(self, name: str) -> str:
        unique, count = name, 1
        while unique in self.names:
            count += 1
            unique = f"{name}_{count}"
        self.names.add(unique)
        return unique

    # -- nodes

    def run(self) -> tuple[LoweredModel, ConversionReport]:
        count = sum(isinstance(node, (g.Conv2D, g.Dense)) for node in self.graph.nodes)
        if count > _MOST_OPERATORS:
            raise ConversionError(
                "too-many-operators",
                f"it has {count} convolutions and dense layers, and a model has at most {_MOST_OPERATORS} "
                "operators",
            )
        for node in self.graph.nodes if self._is_chain() else []:
            try:
                if self.softmax is not None and not isinstance(node, g.Identity):
                    raise self._refuse(
                        node,
                        "unsupported-layer",
                        f"nothing can follow the softmax of {self.softmax!r}; remove it",
                    )
                self._visit(node)
            except (ConversionError, OverflowError) as error:
                self.problems.append(Problem.of(self._told(error, node)))
                self._recover(node)
        if self.problems:
            raise together([*self.problems, *(self.zero_problems() if len(self.zeros) > 1 else [])])
        try:
            self._finish()
        except OverflowError as error:
            raise self._told(error, self.graph.nodes[-1]) from error
        assert len(self.input_shape) == 3
        model = LoweredModel(
            name=self.graph.name,
            input=self.input,
            input_shape=(self.input_shape[0], self.input_shape[1], self.input_shape[2]),
            operators=self.operators,
            output=self.operators[-1].output,
            float_output=self.output == "f32",
            notes=self.notes,
        )
        return model, ConversionReport(self.reports, list(self.notes), self.graph)

    def _is_chain(self) -> bool:
        """Whether the nodes form a chain, which alone can be walked; records what does not.

        Branches are kept by the readers, and no operator runs them yet. What the reader could not translate
        ends the nodes, and the walk goes as far as they do.
        """
        found = len(self.problems)
        previous = ""
        for node in self.graph.nodes:
            if isinstance(node, g.Add):
                self._record(node, "a shortcut (a sum of tensors) can't be converted yet", "Add")
            elif isinstance(node, g.Concatenate):
                self._record(node, "a concatenation can't be converted yet", "Concatenate")
            elif isinstance(node, g.Input) and previous:
                self._record(node, "a second image as input can't be converted")
            elif not isinstance(node, g.Input) and node.inputs != (previous,):
                self._record(
                    node, "it reads a tensor that another layer reads, too: branches can't be converted yet"
                )
            previous = node.name
        if not self.problems and previous != self.graph.output:
            self.problems.append(Problem("the model's output is not its last layer", "unsupported-model"))
        if len(self.problems) == found:
            return True
        layers = [node for node in self.graph.nodes if isinstance(node, (g.Conv2D, g.Dense))]
        for layer in layers[1:]:  # what can be told without the walk
            if not layer.binary and layer is not self.last:
                self.problems.append(Problem.of(self._refuse_weights(layer)))
        return False

    def _record(self, node: g.Node, reason: str, kind: str = "") -> None:
        self.problems.append(Problem(reason, layer=node.layer, kind=kind))

    def zero_problems(self) -> list[Problem]:
        """The signs that may see an exact 0, as problems."""
        framework = self.graph.framework
        return [
            Problem(
                f"{advice('sign of zero', framework)}(0) = 0 is no bit, and an exact 0 is reachable in "
                f"channels {few(channels)} of layer {layer!r}",
                "sign-of-zero",
                node.layer,
                advice=advice("no zeros", framework),
            )
            for node, layer, channels in self.zeros
        ]

    def _recover(self, node: g.Node) -> None:
        """Goes on after a refusal, as if the next sign gave bits."""
        shape = self.graph.shapes[node.name]
        self.state = _Bits(node.name, shape) if isinstance(node, g.Sign) else _Skipped()

    def _visit(self, node: g.Node) -> None:
        state = self.state
        if isinstance(state, _Skipped):
            if isinstance(node, g.Sign):
                self.state = _Bits(node.name, self.graph.shapes[node.name])
            elif isinstance(node, (g.Conv2D, g.Dense)) and not node.binary and node is not self.last:
                raise self._refuse_weights(node)
        elif isinstance(node, g.Input):
            if len(node.shape) != 3:
                raise self._refuse(
                    node,
                    "unsupported-input",
                    f"input shape {node.shape}; images of (height, width, channels) are needed",
                )
            self.input, self.input_shape = self._unique(node.name), node.shape
            assert isinstance(state, _Meaning)
            for argument, values in (("input_scale", state.scale), ("input_offset", state.offset)):
                if len(values) not in (1, node.shape[2]):
                    raise InvalidArgument(
                        "bad-argument",
                        f"{argument}: {len(values)} values for an image of {node.shape[2]} channels",
                    )
        elif isinstance(node, g.Identity):
            self.pending.append(node.layer)
        elif isinstance(node, (g.Conv2D, g.Dense)):
            self._begin(node)
        elif isinstance(node, g.Sign):
            self._sign(node)
        elif isinstance(node, g.MaxPool2D):
            self._pool(node)
        elif isinstance(node, g.Flatten):
            if isinstance(state, _Open):
                state.layers.append(node.layer)
            else:
                self.pending.append(node.layer)
        elif isinstance(node, g.Softmax):
            self._softmax(node)
        elif isinstance(node, (g.Rescaling, g.Linear, g.Bias)) and isinstance(state, _Meaning):
            self.state = self._rescaled(node, state)
            self.rescaled = True
            self.pending = []
        elif isinstance(state, _Open):
            state.chains[-1].append(node)
            if node.layer not in state.layers:
                state.layers.append(node.layer)
        elif isinstance(state, _Bits):
            raise self._refuse(
                node,
                "unsupported-layer",
                "it stands on bits (after a sign), where only pools, Flatten and binary layers convert; "
                "put it before the sign",
            )
        else:
            raise self._refuse(
                node,
                "unsupported-layer",
                "it stands on the network's input, where only a scale and an offset (one, or one a channel) "
                "convert",
                "scale of the input",
            )

    def _rescaled(self, node: g.Rescaling | g.Linear | g.Bias, state: _Meaning) -> _Meaning:
        channels = self.input_shape[2]
        one = Fraction(1)
        if isinstance(node, g.Rescaling):
            parts: list[tuple[Fraction, ...] | None] = [
                (Fraction(node.scale),),
                (Fraction(node.offset),),
                (one,),
            ]
        elif isinstance(node, g.Bias):
            parts = [(one,), _fractions(node.values, channels), (one,)]
        else:
            parts = [_fractions(value, channels) for value in (node.factor, node.offset, node.divisor)]
        factor, offset, divisor = parts
        if factor is None or offset is None or divisor is None or not all(divisor):
            raise self._refuse(
                node,
                "unsupported-layer",
                "it gives pixels of the network's input different scales or offsets, which must be finite "
                "and "
                "one a channel",
            )
        count = max(len(factor), len(divisor))
        factors = [
            f / d
            for f, d in zip(factor * (count // len(factor)), divisor * (count // len(divisor)), strict=True)
        ]
        return state.then(factors, offset, [*self.pending, node.layer])

    def _softmax(self, node: g.Softmax) -> None:
        if not isinstance(self.state, _Open) or not isinstance(self.state.node, g.Dense):
            raise self._refuse(node, "unsupported-layer", "softmax converts only after the last dense layer")
        self.softmax = node.layer
        self.notes.append(
            f"softmax of layer {node.layer!r} dropped: the output holds logits, the argmax is the same"
        )

    def _begin(self, node: g.Conv2D | g.Dense) -> None:
        state = self.state
        if isinstance(state, _Open):
            raise self._refuse(
                node,
                "unsupported-layer",
                f"its input (from {state.layers[-1]!r}) is not binary",
                "binary input",
            )
        if not node.binary and isinstance(state, _Bits) and node is not self.last:
            raise self._refuse_weights(node)
        if isinstance(node, g.Conv2D) and node.depthwise:
            if isinstance(state, _Meaning):
                raise self._refuse(
                    node,
                    "unsupported-layer",
                    "a depthwise convolution of the image does not convert; begin with another convolution",
                )
            if not node.binary:
                raise self._refuse_weights(node)
        if isinstance(state, _Meaning):
            layers, source, shape = [*state.layers, *self.pending], self.input, self.input_shape
        else:
            assert isinstance(state, _Bits)
            layers, source, shape = list(self.pending), state.tensor, state.shape
        self.pending = []
        kernel = np.asarray(node.kernel)
        if isinstance(node, g.Conv2D):
            kernel = np.ascontiguousarray(kernel.transpose(3, 0, 1, 2))
            window: Window | None = node.window
            height, width = node.window.output_size(*shape[:2])
            plane: tuple[int, ...] = (height, width, kernel.shape[0])
        else:
            kernel, window = np.ascontiguousarray(kernel.T), None
            plane = (kernel.shape[0],)
            if isinstance(
                state, _Meaning
            ):  # a dense layer on pixels is a convolution whose kernel is the image
                kernel, window = kernel.reshape(kernel.shape[0], *shape), Window((shape[0], shape[1]))
        opened = _Open(
            node,
            source,
            shape,
            None,
            [*layers, node.layer],
            kernel.astype(np.int8) if node.binary else np.zeros(kernel.shape, np.int8),
            window,
            False,
            plane,
            shape=plane,
        )
        if isinstance(node, g.Conv2D) and any(node.window.padding) and node.pad_value:
            real = isinstance(state, _Meaning)
            if real or node.pad_value != 1:
                raise self._refuse(
                    node,
                    "unsupported-option",
                    f"pad_values={node.pad_value:g} on {'a real' if real else 'a binary'} input; "
                    f"use {'0' if real else '0 or 1'}",
                )
            opened.one_padding = True
        if isinstance(state, _Meaning):
            self._open_on_bytes(opened, kernel, state)
        elif not node.binary:
            self._quantize_head(opened, kernel)
        elif node.scale is not None:
            opened.head = [Planned(node.layer, "linear", (node.scale, Fraction(0)))]
        self.state = opened

    def _open_on_bytes(self, opened: _Open, kernel: g.Float32, meaning: _Meaning) -> None:
        """Weights, integer input and head of a first layer; `kernel` is (out, kh, kw, in)."""
        node, channels = opened.node, kernel.shape[3]
        zero, one = Fraction(0), Fraction(1)
        scales, offsets = meaning.channels(channels)
        if not all(scales):
            raise self._refuse(node, "unsupported-scale", "the input scale is 0, so the input is lost")
        common = len(meaning.scale) == 1
        binary = node.binary and common
        # What stands for a weight: w, or w times the channel's scale where the scales differ.
        real = kernel.astype(np.float64)
        if not common:
            real = real * np.array([float(scale) for scale in scales])
            if node.scale is not None:
                real = real * node.scale.astype(np.float64)[:, None, None, None]
            if np.abs(real).max(initial=0) > np.finfo(np.float32).max:
                raise self._refuse(
                    node, "unsupported-scale", "its weights times the input's scales are beyond float32"
                )
        products = math.prod(kernel.shape[1:])
        ratios = [offset / scale for offset, scale in zip(offsets, scales, strict=True)]
        bytes_, ratio_error = self._integer_input(node, ratios, products, binary)
        # Largest |q + ratio| of each product: what a weight's error is multiplied by.
        reach = np.tile([max(abs(float(r)), abs(float(r) + 255)) for r in ratios], products // channels)
        if binary:
            opened.weights = kernel.astype(np.int8)
            off = np.full(len(kernel), products * ratio_error)
            rest: Fraction | g.Float32 = one
        else:
            # What the accumulator has room for, weights of one magnitude taken as the worst.
            most = (2**31 - 1) // (products * bytes_.largest)
            found = quantize_weights(real.reshape(len(real), -1), channels, most)
            opened.weights = found.weights.reshape(kernel.shape)
            magnitude = np.abs(found.weights.astype(np.float64)).sum(axis=1) * found.scale
            off = found.bound(reach) + magnitude * ratio_error
            rest = found.scale
            used = np.abs(real.reshape(len(real), -1)) @ reach
            off[off <= 1e-12 * used] = 0
            if off.any():
                worst = int((off / np.where(used > 0, used, 1)).argmax())
                what = "unequal input scales" if node.binary else "real weights"
                opened.approximations.append(
                    f"{what} as {opened.weights.dtype.itemsize * 8}-bit weights, one scale a filter: a "
                    "result is off "
                    f"by at most {off[worst] / used[worst]:.2g} of its largest value (filter {worst}), by "
                    f"{float(np.median(off / np.where(used > 0, used, 1))):.2g} in the median filter"
                )
        if ratio_error:
            opened.approximations.append(
                f"input offsets are read as multiples of 1/{bytes_.mul} of a grey level, off by at most "
                f"{ratio_error:.2g}"
            )
        # Snapping an offset within float32 rounding counts as well: sum of |w| times what the ratio moved.
        moved = max(
            abs(float(Fraction(int(add), bytes_.mul) - ratio))
            for add, ratio in zip(
                np.broadcast_to(bytes_.add if bytes_.adds is None else bytes_.adds, len(ratios)).tolist(),
                ratios,
                strict=True,
            )
        )
        off = off + np.abs(real.reshape(len(real), -1)).sum(axis=1) * max(0.0, moved - ratio_error)
        if common:
            off = off * abs(float(meaning.scale[0])) * (1.0 if node.scale is None else np.abs(node.scale))
        opened.bound = off if off.any() else None
        opened.bytes = bytes_
        factor = (meaning.scale[0] if common else one) / bytes_.mul
        scale = node.scale if common else None
        opened.head = [
            Planned(node.layer, "linear", (value, zero))
            for value in (factor, scale, rest)
            if value is not None and not (isinstance(value, Fraction) and value == 1)
        ]

    def _integer_input(
        self, node: g.Node, ratios: Sequence[Fraction], products: int, binary: bool
    ) -> tuple[_Bytes, float]:
        """The integer form of the image, and how far its offsets are off, in grey levels."""
        if len(set(ratios)) == 1:
            try:
                mul, add, _ = integer_input(Fraction(1), ratios[0])
            except FoldError:
                pass
            else:
                if Fraction(add, mul) != ratios[0]:
                    self.notes.append(
                        f"input: offset/scale = {float(ratios[0])!r} read as {Fraction(add, mul)} (within "
                        "float32 "
                        f"rounding), so the first layer runs on {mul}*q{add:+d}"
                    )
                return _Bytes(mul, add, None, binary), 0.0
        # products * weight * (255*mul + |add|) stays below 2**31; real weights keep at least 10 bits of it.
        largest = (2**31 - 1) // (products * (1 if binary else 1024))
        try:
            mul, adds, error = input_by_channel(ratios, largest)
        except FoldError as found:
            raise self._refuse(node, found.slug, found.message) from found
        if not error:
            self.notes.append(
                f"input: offsets of {', '.join(f'{float(r):.6g}' for r in ratios[:4])} grey levels read as "
                "multiples of "
                f"1/{mul} (within float32 rounding)"
            )
        if len(set(adds.tolist())) == 1:
            return _Bytes(mul, int(adds[0]), None, binary), error
        return _Bytes(mul, 0, adds, binary), error

    def _quantize_head(self, opened: _Open, kernel: g.Float32) -> None:
        """8-bit weights of a last dense layer; `kernel` is (units, features)."""
        node = opened.node
        found = quantize_weights(kernel.astype(np.float64), 0)
        opened.weights = found.weights
        opened.head = [Planned(node.layer, "linear", (found.scale, Fraction(0)))]
        off = found.bound(np.ones(kernel.shape[1]))
        opened.bound = off if off.any() else None
        if off.max() > 1e-12 * float(np.abs(kernel).sum(axis=1, dtype=np.float64).max()):
            opened.approximations.append(
                "real weights as 8-bit weights, one scale a unit: a sum is off by at most "
                f"{off.max():.3g} (unit {int(off.argmax())}), one weight by {found.errors.max():.3g}"
            )

    def _pool(self, node: g.MaxPool2D) -> None:
        state = self.state
        if isinstance(state, _Meaning):
            raise self._refuse(
                node,
                "unsupported-layer",
                "a pool on the network's input can't be converted; move it after a layer",
            )
        assert isinstance(state, (_Bits, _Open))
        height, width = node.window.output_size(*state.shape[:2])
        shape = (height, width, state.shape[2])
        if isinstance(state, _Open):
            state.pools.append(node)
            state.chains.append([])
            state.layers.append(node.layer)
            state.shape = shape
        else:
            name = self._unique(node.layer)
            self.operators.append(BMaxPool2D(name, state.tensor, name, node.window))
            layers = [*self.pending, node.layer]
            self.reports.append(OperatorReport(name, "bmaxpool2d", layers, shape, tensor=node.name))
            self.pending = []
            self.state = _Bits(name, shape)

    def _sign(self, node: g.Sign) -> None:
        state = self.state
        if isinstance(state, _Bits):
            return  # a sign of signs
        if isinstance(state, _Meaning):
            self._sign_input(node, state)
            return
        assert isinstance(state, _Open)
        if node.layer not in state.layers and not node.name.endswith("/input_quantizer"):
            state.layers.append(node.layer)
        self._close_at(state, node)

    def _close_at(self, state: _Open, node: g.Sign) -> None:
        """Closes an open layer at its sign, with what that does to an exact 0."""
        channels = state.plane[-1]
        self._check_cost(state)
        if node.zero == -1:
            state.strict = np.ones(channels, np.bool_)
        elif node.strict_channels:
            state.strict = np.isin(np.arange(channels), node.strict_channels)
        elif node.zero == 0:
            before = self._steps(state, state.chains[0], state.plane, head=True)
            after = [
                step
                for i, chain in enumerate(state.chains[1:])
                for step in self._steps(state, chain, self._plane_after(state, i + 1), head=False)
            ]
            try:
                found = zeros_under_sign(before, after, self._accumulators(state), state.plane, state.shape)
            except FoldError as error:
                raise self._refuse(node, error.slug, error.message) from error
            if found:
                self.zeros.append((node, state.node.layer, found))
        self._close(state)
        self.reports[-1] = replace(self.reports[-1], sign=node.name, tensor=node.name)

    def _check_cost(self, state: _Open, *, last: bool = False) -> None:
        """Refuses a chain that would take minutes to fold exactly, whatever layers and sizes a file states.

        Args:
            state: the layer, with its whole chain.
            last: the head, each of whose units is folded in exact arithmetic; else few channels are.
        """
        chain = [node for each in state.chains for node in each]
        sizes = [
            value.size for node in chain for value in vars(node).values() if isinstance(value, np.ndarray)
        ]
        count = state.plane[-1]
        if max(sizes, default=0) > count:
            count = math.prod(state.plane)
            self.rules += count
        if self.rules > _MOST_RULES:
            raise self._refuse(
                state.node,
                "too-many-rules",
                f"parameters by element make {self.rules} rules up to here, and {_MOST_RULES} convert",
                "by element",
            )
        bends = sum(
            (node.low is not None) + (node.high is not None) if isinstance(node, g.Clip) else 1
            for node in chain
            if isinstance(node, (g.Clip, g.PReLU))
        )
        norms = sum(isinstance(node, g.BatchNorm) for node in chain)
        steps = len(chain) + 2 * bends
        bent = bends > _FEW_BENDS and count << min(bends, 64) > _MOST_PIECES
        long = (last or norms > _FEW_NORMS or steps > _FEW_STEPS) and count * (
            norms**3 + steps**2
        ) > _MOST_TERMS
        if bent or long:
            raise self._refuse(
                state.node,
                "chain-too-long",
                f"{len(chain)} layers and operations follow it, {bends} of them bent (PReLU, ReLU, clip) and "
                f"{norms} BatchNorms, which is too much to fold exactly for {count} results",
                "long chain",
            )

    @staticmethod
    def _plane_after(state: _Open, pools: int) -> tuple[int, ...]:
        shape = state.plane
        for pool in state.pools[:pools]:
            shape = (*pool.window.output_size(shape[0], shape[1]), shape[-1])
        return shape

    def _sign_input(self, node: g.Sign, meaning: _Meaning) -> None:
        """Bits of the input itself: a 1x1 convolution with weight +1, where there is one channel."""
        if self.input_shape[2] != 1:
            raise self._refuse(
                node,
                "unsupported-layer",
                f"it binarizes the network's {self.input_shape[2]}-channel input, which is supported for "
                "one channel only",
                "real input",
            )
        first = g.Conv2D(
            f"{node.layer}/input",
            node.layer,
            (self.input,),
            np.ones((1, 1, 1, 1), np.float32),
            Window((1, 1)),
        )
        self._begin(first)
        assert isinstance(self.state, _Open)
        self._close_at(self.state, node)

    # -- from accumulators to bits

    def _accumulators(self, state: _Open) -> AccumulatorRange:
        """The accumulators that can occur."""
        flat = state.weights.reshape(state.weights.shape[0], -1)
        taps = flat.shape[1]
        padded = state.window is not None and any(state.window.padding)
        if state.bytes is not None:
            add = state.bytes.of_products(taps)
            found = AccumulatorRange.of_bytes(flat, state.bytes.mul, add, zero_padded=padded)
        elif not state.node.binary:
            found = AccumulatorRange.of_weighted_bits(flat)
        else:
            # Products of a tap, which are outside together.
            channels = taps if state.window is None else state.weights.shape[-1]
            zeros = padded and not state.one_padding
            found = AccumulatorRange.of_bits(flat.shape[0], taps, channels, zero_padded=zeros)
        if not found.fits:
            raise self._refuse(
                state.node,
                "accumulator-overflow",
                f"its {taps} products a result do not fit a 32-bit accumulator",
            )
        return found

    def _steps(
        self, state: _Open, chain: Sequence[g.Node], plane: tuple[int, ...], head: bool
    ) -> list[Planned]:
        """A chain as planned steps; `head` adds the scales that belong to the accumulator itself."""
        steps: list[Planned] = list(state.head) if head else []
        for node in chain:
            steps += _plan(node, plane)
        return steps

    def _close(self, state: _Open, splits: int = 0) -> None:
        """Turns an open layer into operators that end in bits."""
        if len(state.pools) > 1:
            self._close_pools(state)
            return
        if isinstance(state.node, g.Dense) and state.window is None:
            rules, counts = self._rules(state)
            name = self._unique(state.node.layer)
            assert isinstance(rules, Rules)
            self.operators.append(BBFC(name, state.source, name, state.weights, rules))
            self.reports.append(_counted(name, "bbfc", state.layers, state.plane, counts))
            self.state = _Bits(name, state.plane)
            return
        plane = state.plane if len(state.plane) == 3 else (1, 1, state.plane[0])
        if not state.pools:
            rules, report = self._rules(state)
            assert isinstance(rules, Rules)
            self._emit_conv(state, rules, None, plane, report, state.layers)
            return
        found = self._pooled(state)
        if not self.fuse and self._unfuse(state, found, plane):
            return
        pool = Pool(state.pools[0].window, found.veto, found.invert)
        self._emit_conv(state, found.rule, pool, state.shape, found.counts, state.layers)

    def _unfuse(self, state: _Open, found: FoldedPool, plane: tuple[int, ...]) -> bool:
        """Conv and BMaxPool2D apart, where stored bits can be pooled: NOT OR(x) = AND(NOT x)."""
        rule, invert = found.rule, found.invert
        if found.veto is not None or rule.grid == "output":
            return False
        layers = state.layers
        at = layers.index(state.pools[0].layer)
        flip = rule.flip if invert is None else rule.flip ^ invert
        stored = canonical_rules(rule.lo.astype(np.int64), rule.hi.astype(np.int64), flip, rule.grid)
        self._emit_conv(state, stored, None, plane, found.counts, layers[:at] + layers[at + 1 :])
        self._emit_pool(state.pools[0], invert, state.shape)
        return True

    def _emit_pool(self, node: g.MaxPool2D, use_and: Bools | None, shape: tuple[int, ...]) -> None:
        assert isinstance(self.state, _Bits)
        name = self._unique(node.layer)
        self.operators.append(BMaxPool2D(name, self.state.tensor, name, node.window, use_and))
        self.reports.append(OperatorReport(name, "bmaxpool2d", [node.layer], shape))
        self.state = _Bits(name, shape)

    def _close_pools(self, state: _Open) -> None:
        """More than one pool before a sign: the last ones work on stored bits.

        `B(max y) >= 0` with B monotone is the OR of `B(y) >= 0` (B rising) or the AND (falling),
        whatever made y.
        """
        channels = state.plane[-1]
        last = state.pools[-1]
        tail = state.chains[-1]
        steps = self._steps(state, tail, state.shape, head=False)
        if any(len(array.shape) > 1 for step in steps for array in step.arrays()):
            raise self._refuse(
                last,
                "unsupported-layer",
                "several pools with per-element parameters after them can't be converted",
            )
        rising = np.ones(channels, np.int64)
        for step in (planned.build(None) for planned in steps):
            if isinstance(step, r.PReLU):
                bent = np.flatnonzero(np.broadcast_to(step.column(slice(None))[:, 0] < 0, channels))
                if bent.size:
                    raise self._refuse(
                        last,
                        "unsupported-layer",
                        f"a PReLU with negative slopes (channels {few(bent.tolist())}) after several "
                        f"pools can't be converted; use one pool",
                    )
            else:
                rising = rising * step.direction(slice(None))
        inner = _Open(
            state.node,
            state.source,
            state.source_shape,
            state.bytes,
            [name for name in state.layers if name != last.layer],
            state.weights,
            state.window,
            state.one_padding,
            state.plane,
            [*state.chains[:-2], [*state.chains[-2], *tail]],
            state.pools[:-1],
            head=state.head,
            approximations=state.approximations,
            bound=state.bound,
            strict=state.strict,
        )
        inner.shape = self._plane_after(inner, len(inner.pools))
        self._close(inner)
        use_and = rising < 0
        self._emit_pool(last, use_and if use_and.any() else None, state.shape)

    def _emit_conv(
        self,
        state: _Open,
        rules: Rules,
        pool: Pool | None,
        shape: tuple[int, ...],
        report: tuple[int, ...],
        layers: list[str],
    ) -> None:
        name = self._unique(state.node.layer)
        assert state.window is not None
        operator: Operator
        if state.bytes is not None:
            kind = QBConv2D if state.bytes.binary else QQConv2D
            adds = None if state.bytes.adds is None else state.bytes.adds.astype(np.int32)
            operator = kind(
                name,
                state.source,
                name,
                state.weights,
                state.window,
                rules,
                pool,
                state.bytes.mul,
                state.bytes.add,
                adds,
            )
        elif isinstance(state.node, g.Conv2D) and state.node.depthwise:
            weights = np.ascontiguousarray(state.weights[..., 0].transpose(1, 2, 0))
            operator = BBDepthwiseConv2D(
                name, state.source, name, weights, state.window, rules, pool, state.one_padding
            )
        elif state.window.kernel == (1, 1) and not any(state.window.padding):
            operator = BBPointwiseConv2D(name, state.source, name, state.weights, state.window, rules, pool)
        else:
            operator = BBConv2D(
                name, state.source, name, state.weights, state.window, rules, pool, state.one_padding
            )
        self.operators.append(operator)
        counted = _counted(name, operator.kind, layers, shape, report, state.approximations)
        self.reports.append(replace(counted, bound=state.bound))
        self.state = _Bits(name, shape)

    def _rules(self, state: _Open) -> tuple[Rules, tuple[int, ...]]:
        """Rules of a chain without a pool."""
        planned = self._steps(state, state.chains[0], state.plane, head=True)
        try:
            return fold_sign(planned, self._accumulators(state), state.plane, state.strict)
        except r.TooManyIntervals as error:
            raise self._too_many(state, error) from error

    def _too_many(self, state: _Open, error: r.TooManyIntervals) -> ConversionError:
        channels = sorted({element % state.plane[-1] for element in error.elements})
        chain = [name for name in state.layers if name != state.node.layer]
        return self._refuse(
            state.node,
            "too-many-intervals",
            f"the chain after it ({' + '.join(chain)}) changes sign more than twice in channels "
            f"{few(channels)}; "
            "one interval of accumulators a channel is supported. Keep one PReLU before each sign, "
            "or constrain its slopes to be positive",
        )

    def _pooled(self, state: _Open) -> FoldedPool:
        """Rule, veto and invert of a chain with one pool."""
        pool = state.pools[0]
        before = self._steps(state, state.chains[0], state.plane, head=True)
        after = self._steps(state, state.chains[1], state.shape, head=False)
        accumulators = self._accumulators(state)
        try:
            return fold_pool(before, after, pool.window, accumulators, state.plane, state.shape, state.strict)
        except r.TooManyIntervals as error:
            raise self._too_many(state, error) from error
        except FoldError as error:
            raise self._refuse(pool, error.slug, error.message) from error

    # -- the head

    def _finish(self) -> None:
        state = self.state
        if not self.operators and not isinstance(state, _Open):
            raise ConversionError("unsupported-model", "the model has no binary layer")
        if not isinstance(state, _Open) or state.window is not None or not isinstance(state.node, g.Dense):
            last = self.graph.nodes[-1]
            raise self._refuse(
                last,
                "unsupported-model",
                "it ends the network, and its result is no number for each class",
                "end",
            )
        self._check_cost(state, last=True)
        planned = self._steps(state, state.chains[0], state.plane, head=True)
        found = self._accumulators(state)
        steps = [p.build(state.plane[-1:]) for p in planned]
        try:
            step = found.step if state.node.binary else 1
            requantization, note = requantize(steps, int(found.high.max()), step, len(found.low), self.output)
        except FoldError as error:
            raise self._refuse(state.node, error.slug, error.message) from error
        self.notes.append(note)
        name = self._unique(state.node.layer)
        head = (BBQFC if state.node.binary else BQQFC)(
            name, state.source, name, state.weights, requantization
        )
        self.operators.append(head)
        layers = [*state.layers, *self.pending] + ([self.softmax] if self.softmax else [])
        self.reports.append(
            OperatorReport(
                name,
                head.kind,
                layers,
                state.plane,
                approximations=state.approximations,
                tensor=self._logits(),
                bound=state.bound,
            )
        )

    def _logits(self) -> str:
        """The tensor that the network returns, or what its closing softmax reads."""
        nodes = {node.name: node for node in self.graph.nodes}
        name = self.graph.output
        while isinstance(nodes[name], (g.Softmax, g.Identity)):
            name = nodes[name].inputs[0]
        return name


# ------------------------------------------------------------------------------------------------
# chains


def _counted(
    name: str,
    kind: str,
    layers: Sequence[str],
    shape: tuple[int, ...],
    counts: tuple[int, ...],
    approximations: Sequence[str] = (),
) -> OperatorReport:
    """A report of an operator with rules; `counts` as `fold_sign` gives them."""
    rules, two_sided, constant, near_tie = counts
    return OperatorReport(
        name, kind, list(layers), shape, rules, two_sided, constant, near_tie, list(approximations)
    )


def _plan(node: g.Node, plane: tuple[int, ...]) -> list[Planned]:
    """One source node as steps over `plane`. Parameters of a flattened plane get the plane's shape."""

    def shaped(array: g.Float32) -> g.Float32:
        if len(plane) == 3 and array.ndim == 1 and array.shape != plane[-1:]:
            return array.reshape(plane)
        return array

    one = Fraction(1)
    if isinstance(node, g.BatchNorm):
        values = tuple(shaped(a) for a in (node.gamma, node.beta, node.mean, node.variance))
        return [Planned(node.layer, "batch_norm", values, node.epsilon)]
    if isinstance(node, g.Bias):
        return [Planned(node.layer, "linear", (one, shaped(node.values)))]
    if isinstance(node, g.PReLU):
        return [Planned(node.layer, "prelu", (shaped(node.alpha),))]
    if isinstance(node, g.Rescaling):
        return [Planned(node.layer, "linear", (Fraction(node.scale), Fraction(node.offset)))]
    if isinstance(node, g.Linear):
        parts = (node.factor, node.offset, node.divisor)
        return [
            Planned(node.layer, "linear", tuple(v if isinstance(v, Fraction) else shaped(v) for v in parts))
        ]
    if isinstance(node, g.Clip):
        ends = [None if end is None else Fraction(float(np.float32(end))) for end in (node.low, node.high)]
        return [
            Planned(s.layer, "prelu", (s.alpha,))
            if isinstance(s, r.PReLU)
            else Planned(s.layer, "linear", (s.factor, s.offset))
            for s in r.clip_steps(node.layer, ends[0], ends[1])
            if not isinstance(s, r.BatchNorm)
        ]
    raise ConversionError(
        "unsupported-layer",
        f"{type(node).__name__} can't stand between a layer and its sign",
        layer=node.layer,
    )


def lower(
    source: g.Graph,
    *,
    output: str = "i32",
    input_scale: Any = None,
    input_offset: Any = None,
    fuse: bool = True,
) -> tuple[LoweredModel, ConversionReport]:
    """Lower a source graph to integer operators.

    Args:
        source: the graph; for now a chain from one u8 image to a binary dense layer.
        output: "i8", "i16", "i32", or "f32" (an i32 file whose host multiplies by the scale).
        input_scale: meaning of a pixel, `input_scale * q + input_offset`, applied before the network's own
            normalisation; one number, or one a channel, read as its float32 value. Default 1.
        input_offset: see `input_scale`. Default 0.
        fuse: False emits convolutions and pools apart wherever stored bits can be pooled.

    Returns:
        (the operators, what was folded into each).

    Raises:
        InvalidArgument: an argument has a wrong value.
        ConversionError: the network can't be converted; names the layer and what to do.
    """
    if output not in OUTPUTS:
        raise InvalidArgument("bad-argument", f"output: expected one of {', '.join(OUTPUTS)}, got {output!r}")
    meaning = _Meaning(
        _channel_values("input_scale", input_scale, 1.0), _channel_values("input_offset", input_offset, 0.0)
    )
    lowering = _Lowering(source, output, meaning, fuse)
    lowered, report = lowering.run()
    if lowering.zeros:
        lowered, report = _without_zeros(
            source, lowering, lambda graph: _Lowering(graph, output, meaning, fuse).run()
        )
    if input_scale is None and input_offset is None and not lowering.rescaled:
        report.notes.append(
            "input: pixels are read as 0 to 255; a network that was trained on other numbers, as "
            "x / 127.5 - 1, needs input_scale and input_offset"
        )
    return lowered, replace(report, input_scale=input_scale, input_offset=input_offset)


def _without_zeros(
    source: g.Graph,
    lowering: _Lowering,
    again: Callable[[g.Graph], tuple[LoweredModel, ConversionReport]],
) -> tuple[LoweredModel, ConversionReport]:
    """The network with the one three-valued sign before its last layer split, or an error that lists all."""
    if len(lowering.zeros) == 1:
        node, layer, channels = lowering.zeros[0]
        split = split_ternary(source, node.name)
        if split is not None:
            split.notes.append(
                f"layer {node.layer!r}: {advice('sign of zero', source.framework)} is 0 at 0, which is "
                f"reachable in {len(channels)} channels of {layer!r}; split into two bits (x > 0 and x >= "
                f"0), whose mean it is: exact, and {layer!r} has twice its channels"
            )
            return again(split)
    raise together(lowering.zero_problems())
