r"""A converted model beside its source, layer by layer: what differs, where, and whether that was announced.

Three comparisons, since a bit that differs changes what follows it:

- *bits*: the model's bits against the source's own, run by its framework where that is installed (`engine`),
  else by the built-in evaluator (`cbin_nn.converters.evaluate`).
- *own*: each layer against the source's layer on the very bits that the model gave it. This is what
  conversion promises: 0 outside of near-ties and of layers that the report calls approximated.
- *fused*: the model against the same network converted without fused pools, byte for byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from .errors import ConversionError, InvalidArgument

if TYPE_CHECKING:
    from .model import Model

__all__ = ["LayerAgreement", "VerifyReport", "verify"]

#: Images at a time: bounds the memory of the evaluator's windows.
_BATCH = 16

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class LayerAgreement:
    """One sign of the source beside the operator that makes its bits."""

    #: Source layer of the sign, and the model's operator.
    layer: str
    operator: str
    #: Bits compared.
    bits: int
    #: Bits that differ from the source's own run, and those of them that are no near-tie.
    differing: int
    unexplained: int
    #: The same for the layer on the bits that the model gave it.
    own_differing: int
    own_unexplained: int
    #: (image, row, column, channel) of the first bit that differs, or None.
    first: tuple[int, ...] | None
    approximated: bool


@dataclass(frozen=True)
class VerifyReport:
    """The result of `verify`; `str` for people, `to_dict` for programs."""

    #: What ran the source: "tensorflow", "torch", "onnx.reference" or "built-in".
    engine: str
    images: int
    layers: list[LayerAgreement]
    #: Images with the same predicted class.
    top1_agree: int
    #: Largest difference between the model's logits and the source's; None where the source ends in softmax.
    logit_error: float | None
    #: Whether the model gives the same bytes as its unfused form.
    fused_equals_unfused: bool
    notes: list[str] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """No layer that is not called approximated differs on its own input, near-ties aside."""
        return self.fused_equals_unfused and all(
            layer.approximated or not layer.own_unexplained for layer in self.layers
        )

    @property
    def first_differing(self) -> LayerAgreement | None:
        """The first layer with a bit that differs from the source's own run."""
        return next((layer for layer in self.layers if layer.differing), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, strings and numbers, ready for JSON."""
        first = self.first_differing
        return {
            "engine": self.engine,
            "images": self.images,
            "exact": self.exact,
            "top1_agree": self.top1_agree,
            "top1_agreement": self.top1_agree / self.images if self.images else 1.0,
            "logit_error": self.logit_error,
            "fused_equals_unfused": self.fused_equals_unfused,
            "first_differing": None
            if first is None or first.first is None
            else {"layer": first.layer, "at": list(first.first)},
            "layers": [
                {
                    "layer": layer.layer,
                    "operator": layer.operator,
                    "bits": layer.bits,
                    "differing": layer.differing,
                    "unexplained": layer.unexplained,
                    "own_differing": layer.own_differing,
                    "own_unexplained": layer.own_unexplained,
                    "approximated": layer.approximated,
                }
                for layer in self.layers
            ],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        from .report import text_table

        rows = [
            [
                layer.operator + (" (approximated)" if layer.approximated else ""),
                layer.layer,
                f"{layer.bits:,}",
                f"{layer.differing:,}",
                f"{layer.unexplained:,}",
                f"{layer.own_differing:,}",
                f"{layer.own_unexplained:,}",
            ]
            for layer in self.layers
        ]
        columns = ["Operator", "Sign in", "Bits", "Differ", "no near-tie", "On own input", "no near-tie "]
        lines = [
            f"Source run by: {self.engine}, {self.images} images",
            *(f"note: {note}" for note in self.notes),
            text_table(columns, rows),
            f"Same class: {self.top1_agree} of {self.images}",
        ]
        if self.logit_error is not None:
            lines.append(f"Logits: off by at most {self.logit_error:.3g}")
        first = self.first_differing
        if first is not None:
            lines.append(
                f"First difference: layer {first.layer!r} at (image, row, column, channel) = {first.first}"
            )
        fused = "the same bytes" if self.fused_equals_unfused else "OTHER BYTES"
        lines.append(f"Converted without fused pools: {fused}")
        lines.append("Exact: " + ("yes" if self.exact else "NO"))
        return "\n".join(lines)


def verify(
    model: Model,
    source: Any,
    images: npt.ArrayLike,
    *,
    engine: Literal["auto", "framework", "built-in"] = "auto",
    input_scale: float | Sequence[float] | None = None,
    input_offset: float | Sequence[float] | None = None,
    input_shape: Sequence[int] | None = None,
) -> VerifyReport:
    """Run the source and the converted model side by side.

    Args:
        model: the converted model.
        source: what it was converted from, as `cbin_nn.convert` takes it.
        images: uint8 `[N, H, W, C]`.
        engine: "auto" runs the source's framework where it is installed, "built-in" the evaluator of this
            package, "framework" demands the framework.
        input_scale: as given to `convert`; where neither is given, that of `model.conversion`.
        input_offset: as given to `convert`.
        input_shape: as given to `convert`.

    Raises:
        InvalidArgument: wrong images or engine, or the source is not what the model was converted from.
        ConversionError: the source does not convert.
    """
    from .converters import lower, read_source
    from .model import assemble, check_images

    batch = check_images(images, model.input_shape)
    batch = batch[None] if batch.ndim == 3 else batch
    if not len(batch):
        raise InvalidArgument("bad-shape", "`images` is empty")
    if engine not in ("auto", "framework", "built-in"):
        raise InvalidArgument("bad-argument", f"engine: {engine!r}; expected auto, framework or built-in")
    if input_scale is None and input_offset is None and model.conversion is not None:
        input_scale, input_offset = model.conversion.input_scale, model.conversion.input_offset
    graph = read_source(source, input_shape=input_shape)
    output: Any = model.output_dtype
    forms = []
    for fuse in (True, False):
        lowered, report = lower(
            graph, output=output, input_scale=input_scale, input_offset=input_offset, fuse=fuse
        )
        forms.append((assemble(lowered, report), report))
    (fused, report), (unfused, plain_report) = forms
    if [layer.name for layer in model.layers] not in ([x.name for x in m.layers] for m, _ in forms):
        raise InvalidArgument(
            "other-source",
            f"the model has the layers {[layer.name for layer in model.layers][:6]} and its source gives "
            f"{[layer.name for layer in fused.layers][:6]}: it was converted from something else",
        )
    notes = []
    if model.sha256 not in (fused.sha256, unfused.sha256):
        notes.append(
            "the model's bytes are not those that its source converts to now: pass the input_scale and "
            "input_offset of its conversion; differences below may come from that"
        )
    if report.graph is None:
        raise ConversionError("internal-error", "the conversion kept no graph")
    used = (
        report if [layer.name for layer in model.layers] == [x.name for x in fused.layers] else plain_report
    )
    signs = {operator.sign: operator for operator in used.operators if operator.sign}
    run = (
        None
        if engine == "built-in"
        else _framework(source, report.graph, _pixels(batch, input_scale, input_offset), input_shape, notes)
    )
    if engine == "framework" and run is None:
        failures = [note for note in notes if note.startswith("the framework")]
        reason = failures[0] if failures else "the framework of this source is not installed"
        raise InvalidArgument("no-framework", f"engine: {reason}")
    scaled = _scaled(report.graph, input_scale, input_offset)
    totals = _Totals(signs)
    outputs, same = [], True
    logits = []
    for begin in range(0, len(batch), _BATCH):
        part = batch[begin : begin + _BATCH]
        results, taps = model.run(part, taps=True)
        outputs.append(results)
        same &= bool(np.array_equal(results, (unfused if used is report else fused).run(part)))
        logits.append(totals.add(scaled, part, begin, taps, run))
    mine = np.concatenate(outputs)
    mine = mine if mine.dtype.kind == "f" else model.dequantize(mine)
    theirs = np.concatenate(logits) if run is None else run.outputs.reshape(len(run.outputs), -1)
    count = min(len(mine), len(theirs))
    softmax = run is not None and _ends_in_softmax(report.graph)
    return VerifyReport(
        "built-in" if run is None else run.framework,
        count,
        totals.layers(),
        int((mine[:count].argmax(axis=1) == theirs[:count].argmax(axis=1)).sum()),
        None if softmax else float(np.abs(mine[:count] - theirs[:count]).max()),
        same,
        notes,
    )


def _ends_in_softmax(graph: Any) -> bool:
    from .converters import graph as g

    return any(isinstance(node, g.Softmax) for node in graph.nodes)


def _framework(source: Any, graph: Any, batch: Any, input_shape: Any, notes: list[str]) -> Any:
    from .converters.frameworks import run_framework

    try:
        return run_framework(source, graph, batch, input_shape)
    except Exception as error:  # whatever a framework throws, the built-in evaluator goes on
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        notes.append(f"the framework can't run the source ({reason}); the built-in evaluator did")
        return None


def _pixels(batch: Any, input_scale: Any, input_offset: Any) -> Any:
    """What the network is fed: `input_scale * q + input_offset`, float32."""
    scale = np.float32(1) if input_scale is None else np.asarray(input_scale, np.float32)
    offset = np.float32(0) if input_offset is None else np.asarray(input_offset, np.float32)
    return batch.astype(np.float32) * scale + offset


def _scaled(graph: Any, input_scale: Any, input_offset: Any) -> Any:
    """The graph with the input's scale and offset in front."""
    from fractions import Fraction

    from .converters import graph as g

    if input_scale is None and input_offset is None:
        return graph
    first, *rest = graph.nodes

    def values(value: Any, default: float) -> Any:
        array = np.asarray(default if value is None else value, np.float32).reshape(-1)
        return Fraction(float(array[0])) if array.size == 1 else array

    meaning = g.Linear(
        f"{first.name}/meaning", first.layer, (first.name,), values(input_scale, 1), values(input_offset, 0)
    )
    from dataclasses import replace

    moved = [
        replace(node, inputs=tuple(meaning.name if name == first.name else name for name in node.inputs))
        for node in rest
    ]
    return g.Graph(graph.name, [first, meaning, *moved], graph.output)


class _Totals:
    """Counts of differing bits, sign by sign."""

    def __init__(self, signs: dict[str, Any]) -> None:
        self.signs = signs
        self.counts = {name: [0, 0, 0, 0, 0] for name in signs}
        self.first: dict[str, tuple[int, ...]] = {}
        self.layer: dict[str, str] = {}

    def add(self, graph: Any, part: Any, begin: int, taps: dict[str, Any], run: Any) -> Any:
        """Compares one batch; returns the built-in evaluator's logits."""
        from .converters import graph as g
        from .converters.evaluate import evaluate

        mine = {name: taps[operator.name] > 0 for name, operator in self.signs.items()}
        truth = evaluate(graph, part)
        own = evaluate(graph, part, mine)
        self.layer = {node.name: node.layer for node in graph.nodes if isinstance(node, g.Sign)}
        for name, bits in mine.items():
            near = truth.near_ties[name].reshape(bits.shape)
            source = truth.bits[name].reshape(bits.shape)
            if run is not None and name in run.bits:
                found = run.bits[name][begin : begin + len(part)]
                if len(found) == len(part):
                    source = found.reshape(bits.shape)
            wrong = source != bits
            own_wrong = own.bits[name].reshape(bits.shape) != bits
            own_near = own.near_ties[name].reshape(bits.shape)
            counts = self.counts[name]
            counts[0] += bits.size
            counts[1] += int(wrong.sum())
            counts[2] += int((wrong & ~near).sum())
            counts[3] += int(own_wrong.sum())
            counts[4] += int((own_wrong & ~own_near).sum())
            if wrong.any() and name not in self.first:
                image, *rest = np.argwhere(wrong)[0].tolist()
                self.first[name] = (image + begin, *rest)
        return truth.logits

    def layers(self) -> list[LayerAgreement]:
        """One row a sign, in order."""
        rows = []
        for name, operator in self.signs.items():
            bits, differing, unexplained, own_differing, own_unexplained = self.counts[name]
            rows.append(
                LayerAgreement(
                    layer=self.layer.get(name, name),
                    operator=operator.name,
                    bits=bits,
                    differing=differing,
                    unexplained=unexplained,
                    own_differing=own_differing,
                    own_unexplained=own_unexplained,
                    first=self.first.get(name),
                    approximated=bool(operator.approximations),
                )
            )
        return rows
