r"""Faults put into what was read of a network (`readings`) and into what it was converted to (`conversions`),
one at a time, and `hunt_readings` and `hunt_conversions`, which have each of them judged by `cbin-nn verify`.

A reading's fault is in the graph, and the model is converted from that graph: only the framework can tell.
A conversion's fault is in the lowered operators, and `verify` lowers the same faulty ones: only exact
arithmetic can tell. Those that change no output on the images are counted and left out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import cbin_nn
import numpy as np
import pytest
from cbin_nn import converters
from cbin_nn.cli import main
from cbin_nn.converters import graph as g
from cbin_nn.converters import lower, read_source
from cbin_nn.errors import CbinError
from cbin_nn.model import assemble
from cbin_nn.operators import LoweredModel, Pool, Rules, Window
from click.testing import CliRunner


@dataclass(frozen=True)
class Fault:
    """One fault: of what kind, and the layers (a reading) or the operator (a conversion) where it is."""

    kind: str
    places: tuple[str, ...]
    changed: Any


# ------------------------------------------------------------------------------------------------
# readings


def _some(array: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Every second channel changed."""
    found = array.copy()
    found[..., ::2] = change(found[..., ::2])
    return found


def _padded(window: Window) -> Iterator[tuple[str, Window]]:
    """Windows over other pixels, whose outputs have the same shape."""
    top, left, bottom, right = window.padding
    if top + bottom:
        yield "padding: all above", replace(window, padding=(top + bottom, left, 0, right))
    if left + right:
        yield "padding: all to the right", replace(window, padding=(top, 0, bottom, left + right))
    if window.dilation == (1, 1) and window.kernel == (3, 3) and window.strides == (1, 1):
        yield (
            "dilation",
            replace(window, dilation=(2, 2), padding=(top + 1, left + 1, bottom + 1, right + 1)),
        )


def _changed(node: g.Node, shape: tuple[int, ...]) -> Iterator[tuple[str, g.Node]]:
    """The node with one attribute changed."""
    if isinstance(node, (g.Conv2D, g.Dense)):
        yield "weights: one filter's sign", replace(node, kernel=_first(node.kernel, lambda w: -w))
        yield "weights: filters reversed", replace(node, kernel=np.ascontiguousarray(node.kernel[..., ::-1]))
        if isinstance(node, g.Dense):
            yield "order of features", replace(node, kernel=np.ascontiguousarray(node.kernel[::-1]))
        else:
            yield (
                "weights: kernel turned",
                replace(node, kernel=np.ascontiguousarray(node.kernel[::-1, ::-1])),
            )
            for kind, window in _padded(node.window):
                yield kind, replace(node, window=window)
            if any(node.window.padding):
                yield "pad_value", replace(node, pad_value=0.0 if node.pad_value else 1.0)
        if node.scale is not None:
            yield "scale dropped", replace(node, scale=None)
            yield "scale", replace(node, scale=_some(node.scale, lambda s: s * np.float32(1.5)))
    elif isinstance(node, g.BatchNorm):
        yield "gamma", replace(node, gamma=_some(node.gamma, lambda v: -v))
        yield "beta", replace(node, beta=_some(node.beta, lambda v: v + np.float32(0.7)))
        yield "mean", replace(node, mean=_some(node.mean, lambda v: v + 3))
        yield "variance", replace(node, variance=_some(node.variance, lambda v: v * 4))
        yield "epsilon", replace(node, epsilon=node.epsilon + float(node.variance.mean()))
        yield "gamma and beta swapped", replace(node, gamma=node.beta, beta=node.gamma)
    elif isinstance(node, g.Bias):
        yield "bias", replace(node, values=-node.values)
    elif isinstance(node, g.PReLU):
        yield "slope", replace(node, alpha=node.alpha + np.float32(0.5))
        yield "slope's sign", replace(node, alpha=-node.alpha)
    elif isinstance(node, g.Linear):
        yield "factor", replace(node, factor=_times(node.factor, 1.5))
        yield "offset", replace(node, offset=_plus(node.offset, 0.5))
        yield "divisor", replace(node, divisor=_times(node.divisor, 2))
    elif isinstance(node, g.Rescaling):
        yield "factor", replace(node, scale=node.scale * 2)
        yield "offset", replace(node, offset=node.offset + 0.25)
    elif isinstance(node, g.Clip):
        yield "limits", replace(node, low=-0.25 if node.low is None else node.low + 0.5, high=node.high)
    elif isinstance(node, g.MaxPool2D):
        for kind, window in _padded(node.window):
            yield f"pool's {kind}", replace(node, window=window)
        if node.window.kernel == node.window.strides and shape[0] % node.window.kernel[0] == 0:
            yield "pool's size", replace(node, window=replace(node.window, kernel=(1, 1)))


def _times(value: Any, factor: float) -> Any:
    return value * (Fraction(factor) if isinstance(value, Fraction) else np.float32(factor))


def _plus(value: Any, offset: float) -> Any:
    return value + (Fraction(offset) if isinstance(value, Fraction) else np.float32(offset))


def _first(array: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The first channel changed."""
    found = array.copy()
    found[..., :1] = change(found[..., :1])
    return found


_SAME_SHAPE = (g.BatchNorm, g.Bias, g.PReLU, g.Linear, g.Rescaling, g.Clip, g.MaxPool2D)


def readings(graph: g.Graph) -> Iterator[Fault]:
    """Graphs with one fault each, of the same shapes."""
    nodes = graph.nodes

    def faulty(kind: str, at: int, count: int, changed: list[g.Node], output: str = "") -> Fault:
        # Where a tensor is gone, the next one shows the fault.
        around = nodes[at : at + count + 1]
        return Fault(kind, tuple(n.layer for n in around), graph.rebuilt(changed, output or graph.output))

    for i, node in enumerate(nodes):
        name = type(node).__name__
        for kind, changed in _changed(node, graph.shapes[node.inputs[0]] if node.inputs else ()):
            fault = faulty(f"{name}: {kind}", i, 1, [*nodes[:i], changed, *nodes[i + 1 :]])
            yield replace(fault, places=(node.layer,))
        if isinstance(node, (g.BatchNorm, g.PReLU, g.Bias, g.Linear, g.Clip)) and node.name != graph.output:
            rest = [_reading(n, node.name, node.inputs[0]) for n in nodes[i + 1 :]]
            yield faulty(f"{name} dropped", i, 1, [*nodes[:i], *rest])
        after = nodes[i + 1] if i + 1 < len(nodes) else None
        if isinstance(node, _SAME_SHAPE) and isinstance(after, _SAME_SHAPE) and type(after) is not type(node):
            first = replace(after, name=f"{after.name}/moved", inputs=node.inputs)
            second = replace(node, name=after.name, inputs=(first.name,))
            if not any(isinstance(n, g.PReLU) and n.alpha.ndim == 3 for n in (node, after)):
                kinds = " and ".join(sorted([name, type(after).__name__]))
                yield faulty(f"order of {kinds}", i, 2, [*nodes[:i], first, second, *nodes[i + 2 :]])
        if isinstance(node, g.Sign):
            before = g.PReLU(
                f"{node.name}/extra", node.layer, node.inputs,
                np.full(graph.shapes[node.name][-1:], -0.5, np.float32),
            )  # fmt: skip
            turned = g.Linear(f"{node.name}/extra", node.layer, node.inputs, Fraction(-1))
            for kind, extra in (("PReLU too many", before), ("factor too many", turned)):
                changed = replace(node, inputs=(extra.name,))
                yield faulty(kind, i, 1, [*nodes[:i], extra, changed, *nodes[i + 1 :]])
    last = nodes[-1]
    if not isinstance(last, g.Softmax):
        extra = g.Linear(f"{last.name}/extra", last.layer, (last.name,), Fraction(2), Fraction(1))
        yield Fault("Linear after the output", (last.layer,), graph.rebuilt([*nodes, extra], extra.name))


def _reading(node: g.Node, name: str, other: str) -> g.Node:
    return replace(node, inputs=tuple(other if read == name else read for read in node.inputs))


# ------------------------------------------------------------------------------------------------
# conversions


def _rules(rules: Rules) -> Iterator[tuple[str, Rules]]:
    lo, hi = rules.lo.copy(), rules.hi.copy()
    lo[..., 0] = np.where(lo[..., 0] > -(2**30), lo[..., 0] + 6, lo[..., 0])
    hi[..., 0] = np.where(hi[..., 0] < 2**30, hi[..., 0] + 6, hi[..., 0])
    flip = rules.flip.copy()
    flip[..., 0] ^= True
    yield "lo", replace(rules, lo=lo)
    yield "hi", replace(rules, hi=hi)
    yield "flip", replace(rules, flip=flip)
    moved = (_turned(array, -1) for array in (rules.lo, rules.hi, rules.flip))
    yield "order of channels", Rules(*moved, rules.grid)


def _turned(array: np.ndarray, axis: int) -> np.ndarray:
    """Every channel in the place of its neighbour."""
    return np.ascontiguousarray(np.roll(array, 1, axis=axis))


def _operator(operator: Any) -> Iterator[tuple[str, Any]]:
    """The operator with one constant changed."""
    weights = getattr(operator, "weights", None)
    if weights is not None:
        axis = -1 if operator.kind == "bbdepthwiseconv2d" else 0
        turned = np.moveaxis(weights.copy(), axis, 0)
        turned[:1] *= -1
        yield (
            "weights: one filter",
            replace(operator, weights=np.ascontiguousarray(np.moveaxis(turned, 0, axis))),
        )
        one = weights.copy()
        one.reshape(len(one), -1)[:, 0] *= -1
        yield "weights: one tap", replace(operator, weights=one)
        yield "order of filters", replace(operator, weights=_turned(weights, axis))
    rules = getattr(operator, "rules", None)
    if rules is not None:
        for kind, changed in _rules(rules):
            yield kind, replace(operator, rules=changed)
    window = getattr(operator, "window", None)
    if window is not None and operator.kind != "bbpointwiseconv2d":
        for kind, moved in _padded(window):
            yield kind, replace(operator, window=moved)
    if getattr(operator, "one_padding", None) is not None and any(operator.window.padding):
        yield "one_padding", replace(operator, one_padding=not operator.one_padding)
    pool = getattr(operator, "pool", None)
    if pool is not None:
        channels = (
            len(operator.weights) if operator.kind != "bbdepthwiseconv2d" else operator.weights.shape[-1]
        )
        none = np.zeros(channels, np.bool_)
        invert = (none if pool.invert is None else pool.invert).copy()
        invert[0] ^= True
        yield "invert", replace(operator, pool=Pool(pool.window, pool.veto, invert))
        if pool.veto is not None:
            yield "veto dropped", replace(operator, pool=Pool(pool.window, None, pool.invert))
    if hasattr(operator, "input_mul"):
        if operator.channel_adds is None:
            yield "input_add", replace(operator, input_add=operator.input_add + 9)
        else:
            yield (
                "input_add",
                replace(operator, channel_adds=operator.channel_adds + np.int32(operator.input_mul * 9)),
            )
    requantization = getattr(operator, "requantization", None)
    if requantization is not None:
        r = requantization
        more = 1 << (r.shift + {"i8": 3, "i16": 11, "i32": 27}[r.dtype])  # a sixteenth of the range
        steep = [mul + np.maximum(abs(mul) // 8, 1) for mul in (r.mul_above, r.mul_below)]
        parts = ("mul_above", "add_above", "mul_below", "add_below", "knee")
        for kind, other in (
            ("mul", replace(r, mul_above=steep[0], mul_below=steep[1])),
            ("add", replace(r, add_above=r.add_above + more, add_below=r.add_below + more)),
            ("scale", replace(r, scale=float(np.float32(r.scale * 1.25)))),
            ("shift", replace(r, shift=r.shift + 1)),
            ("order of units", replace(r, **{part: _turned(getattr(r, part), 0) for part in parts})),
        ):
            yield f"requantization: {kind}", replace(operator, requantization=other)


def conversions(lowered: LoweredModel, shapes: dict[str, tuple[int, ...]]) -> Iterator[Fault]:
    """Lowered models with one fault each. `shapes`: of each operator's output."""
    for i, operator in enumerate(lowered.operators):
        if operator.kind == "bmaxpool2d":
            found: Iterator[tuple[str, Any]] = _pool_faults(operator, shapes[operator.name][-1])
        else:
            found = _operator(operator)
        for kind, changed in found:
            operators = [*lowered.operators[:i], changed, *lowered.operators[i + 1 :]]
            yield Fault(f"{operator.kind}: {kind}", (operator.name,), replace(lowered, operators=operators))


def _pool_faults(operator: Any, channels: int) -> Iterator[tuple[str, Any]]:
    other = np.ones(channels, np.bool_) if operator.use_and is None else ~operator.use_and
    yield "OR and AND", replace(operator, use_and=other)
    for kind, window in _padded(operator.window):
        yield kind, replace(operator, window=window)


# ------------------------------------------------------------------------------------------------
# hunting


@dataclass
class Hunt:
    """What became of the faults."""

    found: int = 0
    placed: int = 0
    silent: int = 0
    refused: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    missed: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)

    def judge(
        self, fault: Fault, exit_code: int, report: dict[str, Any], comparison: str, where: str
    ) -> None:
        """Count one fault that changed an output; `where` is the field of a region that names its place."""
        first = report["first_fault"]
        if exit_code != 1 or report["exact"] or first is None or first["comparison"] != comparison:
            self.missed.append(f"{where} {fault.places}: {fault.kind}: exit status {exit_code}, {first}")
            return
        self.found += 1
        self.kinds[fault.kind] += 1
        if set(first[where].split(" + ")) & set(fault.places):
            self.placed += 1
        else:
            self.elsewhere.append(f"{fault.kind} at {fault.places}: {first[where]}")

    def table(self, what: str) -> str:
        """For the run's output."""
        lines = [
            f"{what}: {self.found} that change an output found, {self.placed} with the right layer; "
            f"{len(self.missed)} missed; {self.silent} change no output, {self.refused} can't be built"
        ]
        lines += [f"  {count:4}  {kind}" for kind, count in sorted(self.kinds.items())]
        return "\n".join([*lines, *(f"  elsewhere: {line}" for line in self.elsewhere)])


def _verified(path: Path, source: Path, images: Path, *options: str) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(
        main, ["verify", str(path), str(source), "--images", str(images), "--json", *options]
    )
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.stdout.startswith("{"), done.output
    return done.exit_code, json.loads(done.stdout)


def _result(model: cbin_nn.Model, images: np.ndarray) -> np.ndarray:
    return np.asarray(model.run(images, dequantize=True))


def hunt_readings(
    source: Path,
    images: np.ndarray,
    folder: Path,
    patch: pytest.MonkeyPatch,
    engine: str,
    hunt: Hunt,
    every: int = 1,
) -> None:
    """Have faulty readings of `source` judged by its framework, every `every`th of them."""
    graph = read_source(source)
    clean = _result(cbin_nn.convert(source), images)
    np.save(folder / "images.npy", images)
    for number, fault in enumerate(readings(graph)):
        if number % every:
            continue
        try:
            model = assemble(*lower(fault.changed))
        except CbinError:
            hunt.refused += 1
            continue
        if np.array_equal(_result(model, images), clean):
            hunt.silent += 1
            continue
        path = model.save(folder / "faulty.cbn", overwrite=True)
        with patch.context() as patched:
            patched.setattr(converters, "read_source", lambda *a, f=fault, **k: f.changed)
            code, report = _verified(path, source, folder / "images.npy")
        assert report["reader_judged_by"] == engine, report["reader_not_judged_since"]
        assert all(not region["unexplained"] for region in report["conversion"]), fault
        hunt.judge(fault, code, report, "reader", "layer")


def hunt_conversions(
    source: Path,
    images: np.ndarray,
    folder: Path,
    patch: pytest.MonkeyPatch,
    hunt: Hunt,
    every: int = 1,
    **options: Any,
) -> None:
    """Have faulty conversions of `source` judged by exact arithmetic."""
    lowered, report = lower(read_source(source), **options)
    clean = _result(assemble(lowered, report), images)
    np.save(folder / "images.npy", images)
    shapes = {operator.name: operator.shape for operator in report.operators}
    for number, fault in enumerate(conversions(lowered, shapes)):
        if number % every:
            continue
        try:
            model = assemble(fault.changed, report)
        except (CbinError, ValueError, OverflowError):
            hunt.refused += 1
            continue
        if np.array_equal(_result(model, images), clean):
            hunt.silent += 1
            continue
        path = model.save(folder / "faulty.cbn", overwrite=True)
        with patch.context() as patched:
            patched.setattr(converters, "lower", lambda *a, f=fault, **k: (f.changed, report))
            code, found = _verified(path, source, folder / "images.npy", "--engine", "built-in")
        hunt.judge(fault, code, found, "conversion", "tensor")
