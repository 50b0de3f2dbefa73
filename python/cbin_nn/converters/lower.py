r"""Lowering: a source graph becomes the integer operators of `cbin_nn.operators`, exactly.

The chain is cut at its signs. What stands between a binary convolution or dense layer and the next sign
(bias, BatchNorm, PReLU, scale, at most one max-pool inside) folds into that operator's rules
(`cbin_nn.folding`); pools of bits become operators of their own. The last dense layer keeps its chain as
fixed-point requantization (`cbin_nn.requantize`).

**First layer.** A u8 input becomes integers as `cbin_nn.folding` says; what is left of its scale joins
the chain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
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
    integer_input,
    simplest_fraction,
)
from ..operators import (
    BBFC,
    BBQFC,
    BBConv2D,
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

__all__ = ["ConversionReport", "OperatorReport", "lower", "simplest_fraction"]

OUTPUTS = ("i8", "i16", "i32", "f32")

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


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did, for people (`str`) and programs (`to_dict`)."""

    operators: list[OperatorReport]
    #: One fact a line, the same as the model's.
    notes: list[str] = field(default_factory=list)

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
                " + ".join(o.layers),
            ]
            for o in self.operators
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


# ------------------------------------------------------------------------------------------------
# input scale


@dataclass(frozen=True)
class _Meaning:
    """`real = scale*q + offset` of the u8 input, exact rationals, and the layers that made it."""

    scale: Fraction = Fraction(1)
    offset: Fraction = Fraction(0)
    layers: tuple[str, ...] = ()

    def integer_form(self, layer: str, notes: list[str]) -> tuple[int, int, Fraction]:
        """(mul, add, factor) with `real = factor * (mul*q + add)`, noted where the offset was snapped."""
        try:
            mul, add, factor = integer_input(self.scale, self.offset)
        except FoldError as error:
            raise ConversionError(error.slug, f"layer {layer!r}: {error.message}") from error
        ratio = self.offset / self.scale
        if Fraction(add, mul) != ratio:
            notes.append(
                f"input: offset/scale = {float(ratio)!r} read as {Fraction(add, mul)} (within float32 "
                f"rounding), so the first layer runs on {mul}*q{add:+d}"
            )
        return mul, add, factor


def _scalar(argument: str, value: Any, default: float) -> Fraction:
    """A scalar convert() argument as the rational value of its float32."""
    if value is None:
        return Fraction(default)
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidArgument("bad-argument", f"{argument}: expected a number, got {value!r}") from error
    if array.size != 1 and not (array.size and np.all(array == array.flat[0])):
        raise ConversionError(
            "unsupported-scale",
            f"{argument}: one value a channel is not supported yet; pass one value for all channels",
        )
    with np.errstate(over="ignore"):
        number = float(np.float32(array.flat[0]))
    if not math.isfinite(number):
        raise InvalidArgument("bad-argument", f"{argument}: expected a finite number, got {value!r}")
    return Fraction(number)


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
    meaning: tuple[int, int, Fraction] | None
    layers: list[str]
    #: (weights (out, kh, kw, in)), also for dense on real input, or (units, features).
    weights: npt.NDArray[np.int8]
    window: Window | None
    one_padding: bool
    #: The plane of accumulators, (height, width, channels) or (units,).
    plane: tuple[int, ...]
    #: Chains between pools: before the first, after it, ...
    chains: list[list[g.Node]] = field(default_factory=lambda: [[]])
    pools: list[g.MaxPool2D] = field(default_factory=list)
    #: The current plane: after the pools.
    shape: tuple[int, ...] = ()


class _Lowering:
    def __init__(self, source: g.Graph, output: str, meaning: _Meaning, fuse: bool) -> None:
        self.graph, self.output, self.fuse = source, output, fuse
        self.notes: list[str] = list(source.notes)
        self.operators: list[Operator] = []
        self.reports: list[OperatorReport] = []
        self.state: _Meaning | _Bits | _Open = meaning
        self.input = ""
        self.input_shape: tuple[int, ...] = ()
        #: Layers without an operator of their own (flatten, dropout), reported with the next operator.
        self.pending: list[str] = []
        self.softmax: str | None = None
        self.names: set[str] = set()

    # -- helpers

    def _refuse(self, node: g.Node, slug: str, message: str) -> ConversionError:
        return ConversionError(slug, f"layer {node.layer!r}: {message}")

    def _unique(self, name: str) -> str:
        unique, count = name, 1
        while unique in self.names:
            count += 1
            unique = f"{name}_{count}"
        self.names.add(unique)
        return unique

    # -- nodes

    def run(self) -> tuple[LoweredModel, ConversionReport]:
        previous = ""
        for node in self.graph.nodes:
            if (not isinstance(node, g.Input) and node.inputs != (previous,)) or (
                isinstance(node, g.Input) and previous
            ):
                raise self._refuse(node, "unsupported-model", "branches and shortcuts are not supported yet")
            if self.softmax is not None and not isinstance(node, g.Identity):
                raise self._refuse(
                    node,
                    "unsupported-layer",
                    f"nothing can follow the softmax of {self.softmax!r}; remove it",
                )
            self._visit(node)
            previous = node.name
        if previous != self.graph.output:
            raise ConversionError("unsupported-model", "the model's output is not its last layer")
        self._finish()
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
        return model, ConversionReport(self.reports, list(self.notes))

    def _visit(self, node: g.Node) -> None:
        state = self.state
        if isinstance(node, g.Input):
            if len(node.shape) != 3:
                raise self._refuse(
                    node,
                    "unsupported-input",
                    f"input shape {node.shape}; images of (height, width, channels) are needed",
                )
            self.input, self.input_shape = self._unique(node.name), node.shape
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
        elif isinstance(node, g.Rescaling) and isinstance(state, _Meaning):
            scale, offset = Fraction(node.scale), Fraction(node.offset)
            self.state = _Meaning(
                state.scale * scale, state.offset * scale + offset, (*state.layers, *self.pending, node.layer)
            )
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
                "it stands on the network's input, where only Rescaling with one scale and offset converts; "
                "move it after the first layer or normalise the images with Rescaling",
            )

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
                f"its input (from {state.layers[-1]!r}) is not binary; give it input_quantizer='ste_sign'",
            )
        real = isinstance(state, _Meaning)
        if not node.binary and not (real and isinstance(node, g.Conv2D) and _is_int8(node.kernel)):
            raise self._refuse(
                node,
                "unsupported-layer",
                "its weights are real numbers, and float layers are not supported yet; "
                "train it as QuantConv2D or QuantDense with kernel_quantizer='ste_sign'",
            )
        if isinstance(state, _Meaning):
            meaning = state.integer_form(node.layer, self.notes)
            layers, source, shape = [*state.layers, *self.pending], self.input, self.input_shape
        else:
            meaning = None
            layers, source, shape = list(self.pending), state.tensor, state.shape
        self.pending = []
        window: Window | None = None
        one_padding = False
        signs = np.asarray(node.kernel).astype(np.int8)
        if isinstance(node, g.Conv2D):
            weights = np.ascontiguousarray(signs.transpose(3, 0, 1, 2))
            window = node.window
            if any(window.padding) and node.pad_value:
                if real or node.pad_value != 1:
                    raise self._refuse(
                        node,
                        "unsupported-option",
                        f"pad_values={node.pad_value:g} on {'a real' if real else 'a binary'} input; "
                        f"use {'0' if real else '0 or 1'}",
                    )
                one_padding = True
            height, width = window.output_size(*shape[:2])
            plane: tuple[int, ...] = (height, width, weights.shape[0])
        else:
            weights = np.ascontiguousarray(signs.T)
            plane = (weights.shape[0],)
            if real:  # a dense layer on pixels is a convolution whose kernel is the whole image
                weights = weights.reshape(weights.shape[0], *shape)
                window = Window((shape[0], shape[1]))
        self.state = _Open(
            node,
            source,
            shape,
            meaning,
            [*layers, node.layer],
            weights,
            window,
            one_padding,
            plane,
            shape=plane,
        )

    def _pool(self, node: g.MaxPool2D) -> None:
        state = self.state
        if isinstance(state, _Meaning):
            raise self._refuse(
                node,
                "unsupported-layer",
                "a pool on the network's input can't be converted; move it after a layer",
            )
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
            self.reports.append(OperatorReport(name, "bmaxpool2d", [*self.pending, node.layer], shape))
            self.pending = []
            self.state = _Bits(name, shape)

    def _sign(self, node: g.Sign) -> None:
        state = self.state
        if isinstance(state, _Bits):
            return  # a sign of signs
        if isinstance(state, _Meaning):
            self._sign_input(node, state)
            return
        if node.layer not in state.layers and not node.name.endswith("/input_quantizer"):
            state.layers.append(node.layer)
        self._close(state)

    def _sign_input(self, node: g.Sign, meaning: _Meaning) -> None:
        """Bits of the input itself: a 1x1 convolution with weight +1, where there is one channel."""
        if self.input_shape[2] != 1:
            raise self._refuse(
                node,
                "unsupported-layer",
                f"it binarizes the network's {self.input_shape[2]}-channel input, which is supported for "
                f"one channel only; leave out the first layer's input_quantizer",
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
        self._close(self.state)

    # -- from accumulators to bits

    def _accumulators(self, state: _Open) -> AccumulatorRange:
        """The accumulators that can occur."""
        flat = state.weights.reshape(state.weights.shape[0], -1)
        taps = flat.shape[1]
        padded = state.window is not None and any(state.window.padding)
        if state.meaning is None:
            channels = state.source_shape[-1] if state.window is not None else taps
            zeros = padded and not state.one_padding
            found = AccumulatorRange.of_bits(flat.shape[0], taps, channels, zero_padded=zeros)
        else:
            mul, add, _ = state.meaning
            found = AccumulatorRange.of_bytes(flat, mul, add, zero_padded=padded)
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
        layer = state.node.layer
        steps: list[Planned] = []
        zero = Fraction(0)
        if head and state.meaning is not None and state.meaning[2] != 1:
            steps.append(Planned(layer, "linear", (state.meaning[2], zero)))
        if head and state.node.scale is not None:
            steps.append(Planned(layer, "linear", (state.node.scale, zero)))
        for node in chain:
            steps += _plan(node, plane)
        return steps

    def _close(self, state: _Open, splits: int = 0) -> None:
        """Turns an open layer into operators that end in bits."""
        if len(state.pools) > 1:
            self._close_pools(state)
            return
        if isinstance(state.node, g.Dense) and state.window is None:
            rules, report = self._rules(state)
            name = self._unique(state.node.layer)
            assert isinstance(rules, Rules)
            self.operators.append(BBFC(name, state.source, name, state.weights, rules))
            self.reports.append(OperatorReport(name, "bbfc", state.layers, state.plane, *report))
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
            state.meaning,
            [name for name in state.layers if name != last.layer],
            state.weights,
            state.window,
            state.one_padding,
            state.plane,
            [*state.chains[:-2], [*state.chains[-2], *tail]],
            state.pools[:-1],
        )
        shape = state.plane
        for pool in inner.pools:
            shape = (*pool.window.output_size(shape[0], shape[1]), channels)
        inner.shape = shape
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
        if state.meaning is not None:
            mul, add, _ = state.meaning
            kind = QBConv2D if state.node.binary else QQConv2D
            operator = kind(name, state.source, name, state.weights, state.window, rules, pool, mul, add)
        elif state.window.kernel == (1, 1) and not any(state.window.padding):
            operator = BBPointwiseConv2D(name, state.source, name, state.weights, state.window, rules, pool)
        else:
            operator = BBConv2D(
                name, state.source, name, state.weights, state.window, rules, pool, state.one_padding
            )
        self.operators.append(operator)
        self.reports.append(OperatorReport(name, operator.kind, list(layers), shape, *report))
        self.state = _Bits(name, shape)

    def _rules(self, state: _Open) -> tuple[Rules, tuple[int, ...]]:
        """Rules of a chain without a pool."""
        planned = self._steps(state, state.chains[0], state.plane, head=True)
        try:
            return fold_sign(planned, self._accumulators(state), state.plane)
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
            return fold_pool(before, after, pool.window, accumulators, state.plane, state.shape)
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
                "the model must end in a binary dense layer on bits (QuantDense with input_quantizer), "
                "with bias, BatchNorm, PReLU or softmax after it",
            )
        planned = self._steps(state, state.chains[0], state.plane, head=True)
        found = self._accumulators(state)
        steps = [p.build(state.plane[-1:]) for p in planned]
        try:
            requantization, note = requantize(
                steps, int(found.high[0]), found.step, len(found.low), self.output
            )
        except FoldError as error:
            raise self._refuse(state.node, error.slug, error.message) from error
        self.notes.append(note)
        name = self._unique(state.node.layer)
        self.operators.append(BBQFC(name, state.source, name, state.weights, requantization))
        layers = [*state.layers, *self.pending] + ([self.softmax] if self.softmax else [])
        self.reports.append(OperatorReport(name, "bbqfc", layers, state.plane))


def _is_int8(kernel: g.Float32) -> bool:
    """Whether every weight is an 8-bit integer, as it stands."""
    return bool(np.all(kernel == np.rint(kernel)) and np.all(np.abs(kernel) <= 127))


# ------------------------------------------------------------------------------------------------
# chains


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
        f"layer {node.layer!r}: {type(node).__name__} can't stand between a layer and its sign",
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
            Rescaling layers; one number, read as its float32 value. Default 1.
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
    meaning = _Meaning(_scalar("input_scale", input_scale, 1.0), _scalar("input_offset", input_offset, 0.0))
    return _Lowering(source, output, meaning, fuse).run()
