r"""Lowering: a source graph becomes the integer operators of `cbin_nn.operators`, exactly.

The chain is cut at its signs. What stands between a binary convolution or dense layer and the next sign
(bias, BatchNorm, PReLU, scale, at most one max-pool inside) folds into that operator's rules
(`cbin_nn.rules`); pools of bits become operators of their own. The last dense layer keeps its chain as
fixed-point requantization.

**First layer.** A u8 input q means `real = scale*q + offset`. With `offset/scale = p/m` in lowest terms the
convolution runs on the integer `m*q + p`, and `scale/m` joins the chain. `p/m` is the simplest fraction
within float32 rounding of `offset/scale`: 1/127.5 and -1 give m = 2, p = -255.

**Requantization.** `q = round_half_even((acc*mul + add) / 2**shift)` with `mul` and `add` the exact slope and
intercept of `logit/scale`, times `2**shift`, rounded half to even. With |acc| <= K the
rounding of `mul` and `add`
costs at most `(K + 1) / 2` units of `2**-shift`, so

    |q - logit/scale| <= 1/2 + (K + 1) * 2**-(shift + 1)

Where all logits are multiples of one rational scale and fit, `shift` is 0 and q is exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .. import rules as r
from ..errors import ConversionError, InvalidArgument
from ..exact import Exact
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
    Requantization,
    Rules,
    Window,
)
from . import graph as g

__all__ = ["ConversionReport", "OperatorReport", "lower", "simplest_fraction"]

OUTPUTS = ("i8", "i16", "i32", "f32")
_LARGEST = {"i8": 2**7 - 1, "i16": 2**15 - 1, "i32": 2**31 - 1}
#: The first layer's multiplicands `m*q + p` are 16-bit.
_MAX_INPUT = 2**15 - 1
_MAX_SHIFT = 30
_MAX_PRODUCT = 2**62

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


def simplest_fraction(low: Fraction, high: Fraction) -> Fraction:
    """The fraction with the smallest denominator in [low, high] (walk of the Stern-Brocot tree)."""
    if low > high:
        raise ValueError("an empty interval has no fraction")
    if low <= 0 <= high:
        return Fraction(0)
    if high < 0:
        return -simplest_fraction(-high, -low)
    whole = math.ceil(low)
    if whole <= high:
        return Fraction(whole)
    floor = whole - 1
    return floor + 1 / simplest_fraction(1 / (high - floor), 1 / (low - floor))


@dataclass(frozen=True)
class _Meaning:
    """`real = scale*q + offset` of the u8 input, exact rationals, and the layers that made it."""

    scale: Fraction = Fraction(1)
    offset: Fraction = Fraction(0)
    layers: tuple[str, ...] = ()

    def integer_form(self, layer: str, notes: list[str]) -> tuple[int, int, Fraction]:
        """(mul, add, factor) with `real = factor * (mul*q + add)`, the offset snapped within float32
        rounding."""
        if not self.scale:
            raise ConversionError(
                "unsupported-scale", f"layer {layer!r}: the input scale is 0, so the input is lost"
            )
        ratio = self.offset / self.scale
        # Half a float32 ulp on each of scale and offset: 2 * 2**-24 relative.
        slack = abs(ratio) / 2**23
        snapped = simplest_fraction(ratio - slack, ratio + slack)
        mul, add = snapped.denominator, snapped.numerator
        if max(abs(add), abs(255 * mul + add)) > _MAX_INPUT:
            raise ConversionError(
                "unsupported-scale",
                f"layer {layer!r}: input offset/scale = {float(ratio):.9g} is no fraction p/m with |m*q + "
                f"p| < 2**15 "
                f"(the simplest is {snapped}); choose an offset that is a simple multiple of the scale, "
                "such as x/127.5 - 1 or x/255",
            )
        if snapped != ratio:
            notes.append(
                f"input: offset/scale = {float(ratio)!r} read as {snapped} (within float32 rounding), "
                f"so the first layer runs on {mul}*q{add:+d}"
            )
        return mul, add, self.scale / mul


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
        if not node.binary:
            raise self._refuse(
                node,
                "unsupported-layer",
                "its weights are real numbers, and float layers are not supported yet; "
                "train it as QuantConv2D or QuantDense with kernel_quantizer='ste_sign'",
            )
        real = isinstance(state, _Meaning)
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
                f"one channel only; "
                "leave out the first layer's input_quantizer",
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

    def _reach(self, state: _Open) -> tuple[Ints, Ints, int]:
        """(lowest, highest) accumulator a channel and the step between those that occur."""
        flat = state.weights.reshape(state.weights.shape[0], -1)
        taps = flat.shape[1]
        padded = state.window is not None and any(state.window.padding)
        if state.meaning is None:
            low = np.full(flat.shape[0], -taps, np.int64)
            # Every tap inside adds +-1, so the parity of acc is that of the number of taps inside.
            channels = state.source_shape[-1] if state.window is not None else taps
            varying = padded and not state.one_padding and channels % 2 == 1
            step = 1 if varying else 2
            high = -low
        else:
            mul, add, _ = state.meaning
            least, most = add, 255 * mul + add
            if padded:
                least, most = min(least, 0), max(most, 0)
            positive = (flat > 0).sum(axis=1).astype(np.int64)
            negative = taps - positive
            low, high, step = positive * least - negative * most, positive * most - negative * least, 1
        if np.any(low <= r.INT32_MIN) or np.any(high >= r.INT32_MAX):
            raise self._refuse(
                state.node,
                "accumulator-overflow",
                f"its {taps} products a result do not fit a 32-bit accumulator",
            )
        return low, high, step

    def _steps(
        self, state: _Open, chain: Sequence[g.Node], plane: tuple[int, ...], head: bool
    ) -> list[_Planned]:
        """A chain as planned steps; `head` adds the scales that belong to the accumulator itself."""
        layer = state.node.layer
        steps: list[_Planned] = []
        zero = Fraction(0)
        if head and state.meaning is not None and state.meaning[2] != 1:
            steps.append(_Planned(layer, "linear", (state.meaning[2], zero)))
        if head and state.node.scale is not None:
            steps.append(_Planned(layer, "linear", (state.node.scale, zero)))
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
        pooled, report = self._pooled(state)
        window = state.pools[0].window
        if not self.fuse and self._unfuse(state, pooled, plane, report):
            return
        rule, veto, invert = pooled
        self._emit_conv(state, rule, Pool(window, veto, invert), state.shape, report, state.layers)

    def _unfuse(
        self,
        state: _Open,
        pooled: tuple[Rules, Rules | None, Bools | None],
        plane: tuple[int, ...],
        report: tuple[int, ...],
    ) -> bool:
        """Conv and BMaxPool2D apart, where stored bits can be pooled: NOT OR(x) = AND(NOT x)."""
        rule, veto, invert = pooled
        if veto is not None or rule.grid == "output":
            return False
        layers = state.layers
        at = layers.index(state.pools[0].layer)
        flip = rule.flip if invert is None else rule.flip ^ invert
        stored = _canonical_rules(rule.lo.astype(np.int64), rule.hi.astype(np.int64), flip, rule.grid)
        self._emit_conv(state, stored, None, plane, report, layers[:at] + layers[at + 1 :])
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
                        f"a PReLU with negative slopes (channels {_few(bent.tolist())}) after several "
                        f"pools can't be "
                        "converted; use one pool",
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
            operator = QBConv2D(name, state.source, name, state.weights, state.window, rules, pool, mul, add)
        elif state.window.kernel == (1, 1) and not any(state.window.padding):
            operator = BBPointwiseConv2D(name, state.source, name, state.weights, state.window, rules, pool)
        else:
            operator = BBConv2D(
                name, state.source, name, state.weights, state.window, rules, pool, state.one_padding
            )
        self.operators.append(operator)
        self.reports.append(OperatorReport(name, operator.kind, list(layers), shape, *report))
        self.state = _Bits(name, shape)

    def _grid(self, state: _Open, planned: Sequence[_Planned], plane: tuple[int, ...]) -> bool:
        """Do the steps hold per-element parameters?"""
        return any(array.shape == plane and len(plane) == 3 for step in planned for array in step.arrays())

    def _rules(self, state: _Open) -> tuple[Rules, tuple[int, ...]]:
        """Rules of a chain without a pool."""
        planned = self._steps(state, state.chains[0], state.plane, head=True)
        grid: Literal["channel", "conv"] = "conv" if self._grid(state, planned, state.plane) else "channel"
        shape = state.plane if grid == "conv" else state.plane[-1:]
        low, high, step = self._reach(state)
        reach = r.Reach(_spread(low, shape), _spread(high, shape), step)
        try:
            sets, near = r.sign_rules([p.build(shape) for p in planned], reach)
        except r.TooManyIntervals as error:
            raise self._too_many(state, error, shape) from error
        rules = _canonical_rules(
            sets.lo.reshape(shape), sets.hi.reshape(shape), sets.flip.reshape(shape), grid
        )
        return rules, (sets.lo.size, int(sets.two_sided.sum()), int(sets.constant.sum()), int(near.sum()))

    def _too_many(self, state: _Open, error: r.TooManyIntervals, shape: tuple[int, ...]) -> ConversionError:
        channels = sorted({element % shape[-1] for element in error.elements})
        chain = [name for name in state.layers if name != state.node.layer]
        return self._refuse(
            state.node,
            "too-many-intervals",
            f"the chain after it ({' + '.join(chain)}) changes sign more than twice in channels "
            f"{_few(channels)}; "
            "one interval of accumulators a channel is supported. Keep one PReLU before each sign, "
            "or constrain its slopes to be positive",
        )

    def _pooled(self, state: _Open) -> tuple[tuple[Rules, Rules | None, Bools | None], tuple[int, ...]]:
        """Rule, veto and invert of a chain with one pool."""
        pool = state.pools[0]
        before = self._steps(state, state.chains[0], state.plane, head=True)
        after = self._steps(state, state.chains[1], state.shape, head=False)
        channels = state.plane[-1]
        on_conv, on_pooled = self._grid(state, before, state.plane), self._grid(state, after, state.shape)
        grid: Literal["channel", "conv", "output"] = "channel"
        shape: tuple[int, ...] = (channels,)
        owner: tuple[Ints, Ints] | None = None
        if on_conv:
            grid, shape = "conv", state.plane
            if on_pooled:
                owner = self._owners(state, pool)
        elif on_pooled:
            grid, shape = "output", state.shape
        first = [p.build(shape) for p in before]
        second = [(p.gather(owner) if owner is not None else p).build(shape) for p in after]
        low, high, step = self._reach(state)
        reach = r.Reach(_spread(low, shape), _spread(high, shape), step)
        try:
            found, near = r.pooled_rules(first, second, reach, mixed=grid == "conv")
        except r.TooManyIntervals as error:
            raise self._too_many(state, error, shape) from error
        rule, veto, invert, clash = _one_invert_a_channel(found, channels, mixed=grid == "conv")
        if clash:
            raise self._refuse(
                pool,
                "too-many-intervals",
                "per-element parameters after it make both intervals and complements of intervals in "
                "channels "
                f"{_few(clash)}, which one operator can't hold; share the PReLU over axes [1, 2]",
            )
        vetoed = ~(veto.constant & ~veto.flip)
        counts = (
            rule.lo.size,
            int((found.rule.two_sided | ~(found.veto.constant & ~found.veto.flip)).sum()),
            int((found.rule.constant & found.veto.constant).sum()),
            int(near.sum()),
        )
        return (
            _canonical_rules(rule.lo.reshape(shape), rule.hi.reshape(shape), rule.flip.reshape(shape), grid),
            _canonical_rules(veto.lo.reshape(shape), veto.hi.reshape(shape), veto.flip.reshape(shape), grid)
            if vetoed.any()
            else None,
            invert if invert.any() else None,
        ), counts

    def _owners(self, state: _Open, pool: g.MaxPool2D) -> tuple[Ints, Ints]:
        """The pooled row of each convolution row, and the same for columns (a row outside every window:
        0)."""
        owners = []
        for axis in (0, 1):
            kernel, stride, start = (
                pool.window.kernel[axis],
                pool.window.strides[axis],
                pool.window.padding[axis],
            )
            if stride < kernel or pool.window.dilation != (1, 1):
                raise self._refuse(
                    pool,
                    "unsupported-layer",
                    "per-element parameters on both sides of an overlapping pool can't be folded; "
                    "share the PReLU over axes [1, 2] or use strides equal to pool_size",
                )
            index = (np.arange(state.plane[axis]) + start) // stride
            owners.append(np.minimum(index, state.shape[axis] - 1))
        return owners[0], owners[1]

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
        low, high, step = self._reach(state)
        steps = [p.build(state.plane[-1:]) for p in planned]
        requantization = _requantize(
            state.node.layer, steps, int(high[0]), step, len(low), self.output, self.notes
        )
        name = self._unique(state.node.layer)
        self.operators.append(BBQFC(name, state.source, name, state.weights, requantization))
        layers = [*state.layers, *self.pending] + ([self.softmax] if self.softmax else [])
        self.reports.append(OperatorReport(name, "bbqfc", layers, state.plane))


# ------------------------------------------------------------------------------------------------
# chains


@dataclass(frozen=True)
class _Planned:
    """A step before it is spread over elements: arrays of shape (channels,) or of the whole plane."""

    layer: str
    kind: Literal["linear", "batch_norm", "prelu"]
    values: tuple[Any, ...]
    epsilon: float = 0.0

    def arrays(self) -> list[g.Float32]:
        return [value for value in self.values if not isinstance(value, Fraction)]

    def gather(self, owner: tuple[Ints, Ints]) -> _Planned:
        """Parameters of a pooled plane, looked up for each pixel before the pool."""
        rows, columns = owner
        values = tuple(
            value[rows][:, columns] if isinstance(value, np.ndarray) and value.ndim == 3 else value
            for value in self.values
        )
        return _Planned(self.layer, self.kind, values, self.epsilon)

    def build(self, shape: tuple[int, ...] | None) -> r.Step:
        """The step over the elements of `shape`, channels innermost; None keeps the arrays' own."""
        values: list[Any] = [
            value
            if isinstance(value, Fraction)
            else np.ascontiguousarray(
                np.broadcast_to(value, shape if shape is not None else value.shape)
            ).reshape(-1)
            for value in self.values
        ]
        if self.kind == "linear":
            return r.Linear(self.layer, *values)
        if self.kind == "prelu":
            return r.PReLU(self.layer, *values)
        gamma, beta, mean, variance = values
        return r.BatchNorm(self.layer, gamma, beta, mean, variance, self.epsilon)


def _plan(node: g.Node, plane: tuple[int, ...]) -> list[_Planned]:
    """One source node as steps over `plane`. Parameters of a flattened plane get the plane's shape."""

    def shaped(array: g.Float32) -> g.Float32:
        if len(plane) == 3 and array.ndim == 1 and array.shape != plane[-1:]:
            return array.reshape(plane)
        return array

    one = Fraction(1)
    if isinstance(node, g.BatchNorm):
        values = tuple(shaped(a) for a in (node.gamma, node.beta, node.mean, node.variance))
        return [_Planned(node.layer, "batch_norm", values, node.epsilon)]
    if isinstance(node, g.Bias):
        return [_Planned(node.layer, "linear", (one, shaped(node.values)))]
    if isinstance(node, g.PReLU):
        return [_Planned(node.layer, "prelu", (shaped(node.alpha),))]
    if isinstance(node, g.Rescaling):
        return [_Planned(node.layer, "linear", (Fraction(node.scale), Fraction(node.offset)))]
    if isinstance(node, g.Clip):
        ends = [None if end is None else Fraction(float(np.float32(end))) for end in (node.low, node.high)]
        return [
            _Planned(s.layer, "prelu", (s.alpha,))
            if isinstance(s, r.PReLU)
            else _Planned(s.layer, "linear", (s.factor, s.offset))
            for s in r.clip_steps(node.layer, ends[0], ends[1])
            if not isinstance(s, r.BatchNorm)
        ]
    raise ConversionError(
        "unsupported-layer",
        f"layer {node.layer!r}: {type(node).__name__} can't stand between a layer and its sign",
    )


def _spread(values: Ints, shape: tuple[int, ...]) -> Ints:
    return np.ascontiguousarray(np.broadcast_to(values, shape)).reshape(-1)


def _few(channels: Sequence[int]) -> str:
    text = ", ".join(str(c) for c in channels[:8])
    return text + (f" ... ({len(channels)} in all)" if len(channels) > 8 else "")


def _canonical_rules(lo: Ints, hi: Ints, flip: Bools, grid: Literal["channel", "conv", "output"]) -> Rules:
    """Canonical also after a flip: one-sided sets carry no flip, as long as their ends are in reach of
    int32."""
    lo, hi, flip = lo.copy(), hi.copy(), flip.copy()
    below = flip & (lo == r.INT32_MIN) & (hi < r.INT32_MAX)  # NOT (acc <= h) is acc >= h + 1
    above = flip & (lo > r.INT32_MIN) & (hi == r.INT32_MAX)
    lo, hi = (
        np.where(below, hi + 1, np.where(above, r.INT32_MIN, lo)),
        np.where(below, r.INT32_MAX, np.where(above, lo - 1, hi)),
    )
    return Rules(lo.astype(np.int32), hi.astype(np.int32), flip & ~below & ~above, grid)


def _one_invert_a_channel(
    found: r.PooledIntervals, channels: int, *, mixed: bool
) -> tuple[r.Intervals, r.Intervals, Bools, list[int]]:
    """Rules whose elements share `invert` within a channel, and the channels where that is impossible.

    Only a veto fixes `invert`: an interval of y needs False, a complement True. A one-sided element fits
    both:

        OR s          (invert False)  =  NOT (1 AND NOT OR s)   (invert True, veto s)
        NOT OR s      (invert True)   =  1 AND NOT OR s         (invert False, veto s)

    A constant turns by its own flip, unless its window mixes it with other elements (`mixed`).
    """
    rule, veto, invert = found.rule, found.veto, found.invert.reshape(-1, channels)
    vetoed = ~(veto.constant & ~veto.flip).reshape(-1, channels)
    wants_true, wants_false = (vetoed & invert).any(axis=0), (vetoed & ~invert).any(axis=0)
    clash = np.flatnonzero(wants_true & wants_false)
    # Without a veto in the channel, keep what most elements have, so that most need no veto.
    majority = invert.mean(axis=0) > 0.5
    chosen = np.where(wants_true, True, np.where(wants_false, False, majority))
    turn = (invert != chosen).reshape(-1)
    one = (1, 0, True)
    constant = rule.constant & veto.constant & (not mixed)
    move = turn & ~constant
    new_rule = r.Intervals(
        np.where(move, one[0], rule.lo),
        np.where(move, one[1], rule.hi),
        np.where(move, one[2], rule.flip ^ (turn & constant)),
    )
    new_veto = r.Intervals(
        np.where(move, rule.lo, veto.lo),
        np.where(move, rule.hi, veto.hi),
        np.where(move, rule.flip, veto.flip),
    )
    return new_rule, new_veto, chosen, [int(c) for c in clash]


# ------------------------------------------------------------------------------------------------
# requantization


def _requantize(
    layer: str, steps: Sequence[r.Step], features: int, step: int, units: int, output: str, notes: list[str]
) -> Requantization:
    """Fixed point of the chain after the last layer, |acc| <= features; see the module's text."""
    dtype: Literal["i8", "i16", "i32"] = (
        "i32" if output in ("i32", "f32") else "i8" if output == "i8" else "i16"
    )
    largest = _LARGEST[dtype]
    lines: list[tuple[int, tuple[Exact, Exact], tuple[Exact, Exact]]] = []
    extremes: list[Exact] = []
    parts: list[Fraction] | None = []
    bent = []
    for unit in range(units):
        pieces = r.linear_pieces(steps, -features, features, step, unit)
        if len(pieces) > 2:
            bent.append(unit)
            continue
        for first, last, slope, intercept in pieces:
            extremes += [abs(slope * first + intercept), abs(slope * last + intercept)]
            a, b = slope.rational(), intercept.rational()
            if a is None or b is None or parts is None:
                parts = None
            else:
                parts += [a, b]
        below, above = pieces[0], pieces[-1]
        knee = above[0] if len(pieces) == 2 else 0
        lines.append((knee, (above[2], above[3]), (below[2], below[3])))
    if bent:
        raise ConversionError(
            "too-many-pieces",
            f"layer {layer!r}: the output chain of units {_few(bent)} has more than two linear pieces; "
            "at most one PReLU (or ReLU) after the last dense layer converts",
        )
    peak = Exact(0)
    for value in extremes:
        if float(value) > float(peak) * (1 - 1e-12) and value > peak:
            peak = value

    scale: Fraction | None = None
    shift = 0
    # Exact where all slopes and intercepts are multiples of one rational step and the logits fit.
    common = _common_step(parts) if parts is not None else None
    if common is not None and peak <= common * largest and _is_float32(common):
        scale = common
    exact = scale is not None
    if scale is None:
        scale = _scale_above(peak, largest)
        shift = _MAX_SHIFT
    while True:
        factor = Fraction(2**shift) / scale
        table = [
            (
                knee,
                *(
                    (line[0] * factor).round_half_even(),
                    (line[1] * factor).round_half_even(),
                    *((low[0] * factor).round_half_even(), (low[1] * factor).round_half_even()),
                ),
            )
            for knee, line, low in lines
        ]
        worst = max(
            max(abs(ma) * features + abs(aa), abs(mb) * features + abs(ab)) for _, ma, aa, mb, ab in table
        )
        if worst < _MAX_PRODUCT:
            break
        if shift == 0:
            raise ConversionError(
                "output-overflow", f"layer {layer!r}: its logits do not fit 62-bit fixed point"
            )
        shift -= 1
    unit_step = float(scale)
    if exact:
        notes.append(f"output: exact, logit = {unit_step:g} * q")
    else:
        bound = 0.5 + (features + 1) * 2.0 ** -(shift + 1)
        notes.append(
            f"output: logit = {unit_step:.9g} * q, |q - logit/scale| <= {bound:.9g} ({dtype}, shift {shift})"
        )

    def column(i: int) -> Ints:
        return np.array([row[i] for row in table], dtype=np.int64)

    return Requantization(
        column(1), column(2), column(3), column(4), column(0).astype(np.int32), shift, dtype, unit_step
    )


def _common_step(parts: Sequence[Fraction]) -> Fraction | None:
    """The greatest rational of which all `parts` are integer multiples; None where all are zero."""
    denominator = math.lcm(*(part.denominator for part in parts))
    step = Fraction(math.gcd(*(int(part * denominator) for part in parts)), denominator)
    return step or None


def _is_float32(value: Fraction) -> bool:
    return 2.0**-126 <= value < 2.0**127 and Fraction(float(np.float32(float(value)))) == value


def _scale_above(peak: Exact, largest: int) -> Fraction:
    """A float32 that is not below peak / largest, so that nothing saturates; 1 where all logits are zero."""
    if not peak:
        return Fraction(1)
    estimate = np.float32(float(peak * Fraction(1, largest)))
    estimate = max(estimate, np.float32(2.0**-126))
    while peak > Fraction(float(estimate)) * largest:
        estimate = np.nextafter(estimate, np.float32(np.inf))
        if not np.isfinite(estimate):
            raise ConversionError("output-overflow", "the logits do not fit float32")
    return Fraction(float(estimate))


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
