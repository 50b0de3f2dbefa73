r"""A converted model judged against its source: what differs, where, and whether that was announced.

Two comparisons decide, region by region. A region is what lies between tensors that both sides have, so a
difference is found where it begins and is not passed on:

- *reader*: what this package read from the source, fed with the framework's *own* tensors at a region's
  inputs, against the framework's tensor at its end; the last layer, its scale and a closing softmax included.
  Bits may differ in near-ties, numbers by what float32 rounds.
- *conversion*: the converted model, operator by operator, against exact arithmetic (float64) fed with the
  model's *own* tensors. Approximated layers may differ within their stated bound, outputs within half a step
  and the stated error of their fixed point. The model also gives the same bytes as its unfused form.

What differs from end to end (bits, logits, classes) stands beside them and decides nothing: a near-tie that
falls the other way changes what follows, and nobody is to blame.

The reader is judged where the source's framework is installed and runs the source. A framework that gives
other values when it is run again can't judge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from .errors import ConversionError, InvalidArgument, MissingExtra

if TYPE_CHECKING:
    from .converters import graph as g
    from .converters.evaluate import Numbers
    from .converters.frameworks import Framework, FrameworkRun
    from .converters.lower import ConversionReport, OperatorReport
    from .model import Model
    from .operators import LoweredModel

__all__ = ["LayerAgreement", "Region", "VerifyReport", "verify"]

#: Images at a time: bounds the memory of all tensors of a network.
_BATCH = 32
#: What float32 rounding explains, relative to the sum of the absolute terms.
_FLOAT32 = 1e-5
#: Signs that float64 can't decide, relative to the same.
_FLOAT64 = 1e-9
#: What float64 rounds of a logit, relative to the same.
_LOGIT = 1e-11
#: Values of a second run that differ by more than this, relative to the tensor's largest, are no rounding.
_REPEAT = 1e-4

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Region:
    """What one comparison found at one tensor."""

    #: Source layer that makes the tensor.
    layer: str
    #: The tensor's name in the source graph; in a conversion, the model's operator, or both of them
    #: ("conv + pool") where a convolution's pool was kept apart.
    tensor: str
    #: "bits" or "numbers".
    kind: str
    #: Values compared.
    values: int = 0
    #: Values that differ, and those of them that no rounding and no stated bound explains.
    differing: int = 0
    unexplained: int = 0
    #: Largest difference, as a multiple of what is allowed; 0 for bits.
    largest: float = 0.0
    #: (image, row, column, channel) of the first unexplained value, or None.
    first: tuple[int, ...] | None = None
    #: False where the framework gives other values when it is run again.
    judged: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**vars(self), "first": None if self.first is None else list(self.first)}


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
    #: The same for the layer on the bits that the model gave it; `unexplained` are beyond its stated bound.
    own_differing: int
    own_unexplained: int
    #: (image, row, column, channel) of the first bit that differs, or None.
    first: tuple[int, ...] | None
    approximated: bool


@dataclass(frozen=True)
class VerifyReport:
    """The result of `verify`; `str` for people, `to_dict` for programs."""

    #: What ran the source: "tensorflow", "torch", "onnx.reference", "keras (BACKEND)" or "built-in".
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
    #: The reading of the source against its framework, tensor by tensor; empty where no framework ran it.
    reader: list[Region] = field(default_factory=list)
    #: The model against exact arithmetic, operator by operator.
    conversion: list[Region] = field(default_factory=list)
    #: Why no framework judged the reading; empty where one did.
    unjudged: str = ""

    @property
    def exact(self) -> bool:
        """Nothing differs, in the reader (where a framework judged it) and in the conversion, that near-ties
        and stated bounds do not explain."""
        return self.verdict == "yes"

    @property
    def verdict(self) -> Literal["yes", "no", "can't be judged"]:
        """What `exact` says, told apart where the source is not deterministic."""
        if not self.fused_equals_unfused or self.first_fault is not None:
            return "no"
        return "yes" if all(region.judged for region in self.reader) else "can't be judged"

    @property
    def first_fault(self) -> tuple[Literal["reader", "conversion"], Region] | None:
        """The first region that differs without an explanation, and in which comparison; the reader's first,
        since what was read wrong is converted wrong."""
        for region in self.reader:
            if region.judged and region.unexplained:
                return "reader", region
        for region in self.conversion:
            if region.unexplained:
                return "conversion", region
        return None

    @property
    def first_differing(self) -> LayerAgreement | None:
        """The first layer with a bit that differs from the source's own run."""
        return next((layer for layer in self.layers if layer.differing), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, strings and numbers, ready for JSON."""
        first, fault = self.first_differing, self.first_fault
        return {
            "engine": self.engine,
            "images": self.images,
            "exact": self.exact,
            "verdict": self.verdict,
            "first_fault": None if fault is None else {"comparison": fault[0], **fault[1].to_dict()},
            "reader_judged_by": None if self.unjudged else self.engine,
            "reader_not_judged_since": self.unjudged or None,
            "deterministic": all(region.judged for region in self.reader),
            "reader": [region.to_dict() for region in self.reader],
            "conversion": [region.to_dict() for region in self.conversion],
            "top1_agree": self.top1_agree,
            "top1_agreement": self.top1_agree / self.images if self.images else 1.0,
            "logit_error": self.logit_error,
            "fused_equals_unfused": self.fused_equals_unfused,
            "first_differing": None
            if first is None or first.first is None
            else {"layer": first.layer, "at": list(first.first)},
            "layers": [{k: v for k, v in vars(layer).items() if k != "first"} for layer in self.layers],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        lines = [f"Source run by: {self.engine}, {self.images} images"]
        lines += [f"note: {note}" for note in self.notes]
        lines.append(
            _summary("Reader", f"what was read of the source, on the tensors of {self.engine}", self.reader)
            if not self.unjudged
            else f"Reader: compared with this package's own reading alone ({self.unjudged})"
        )
        lines.append(
            _summary("Conversion", "the model against exact arithmetic, on its own tensors", self.conversion)
        )
        fused = "the same bytes" if self.fused_equals_unfused else "OTHER BYTES"
        lines += [f"Converted without fused pools: {fused}", "", "From the images on:", self._table()]
        lines.append(f"Same class: {self.top1_agree} of {self.images}")
        if self.logit_error is not None:
            lines.append(f"Logits: off by at most {self.logit_error:.3g}")
        first = self.first_differing
        if first is not None:
            lines.append(
                f"First difference: layer {first.layer!r} at (image, row, column, channel) = {first.first}"
            )
        return "\n".join([*lines, "", f"Exact: {self._sentence()}"])

    def _table(self) -> str:
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
        columns = ["Operator", "Sign in", "Bits", "Differ", "no near-tie", "On own input", "unexplained"]
        return text_table(columns, rows)

    def _sentence(self) -> str:
        fault = self.first_fault
        if fault is not None:
            comparison, region = fault
            who = (
                "the reading of the source differs from the framework"
                if comparison == "reader"
                else "the converted model differs from exact arithmetic"
            )
            return (
                f"NO. In the {comparison}: {who} first at layer {region.layer!r} ({region.tensor}): "
                f"{region.unexplained:,} of {region.values:,} {region.kind}, the first at {region.first}"
            )
        if not self.fused_equals_unfused:
            return "NO. The model gives other bytes than its unfused form"
        shaky = [region.layer for region in self.reader if not region.judged]
        if shaky:
            return (
                f"can't be judged. The source gives other values when it is run again, first at layer "
                f"{shaky[0]!r}; make it deterministic (no dropout, noise or BatchNorm in training mode)"
            )
        return "yes" + (
            ", for the conversion; nothing judged the reading of the source" * bool(self.unjudged)
        )


def _summary(name: str, what: str, regions: Sequence[Region]) -> str:
    """One line for people."""
    wrong = sum(region.unexplained for region in regions if region.judged)
    explained = sum(region.differing - region.unexplained for region in regions if region.judged)
    text = f"{name}: {what}: {len(regions)} tensors, {sum(r.values for r in regions):,} values, "
    text += f"{wrong:,} DIFFER" if wrong else "none differs"
    if explained:
        text += f" ({explained:,} near-ties and within stated bounds)"
    return text


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
    """Judge a converted model against its source, and run both side by side.

    Args:
        model: the converted model.
        source: what it was converted from, as `cbin_nn.convert` takes it.
        images: uint8 `[N, H, W, C]`.
        engine: "auto" runs the source's framework where it is installed and can run it, "framework" demands
            that, "built-in" leaves it out: the reading of the source is then compared with nothing.
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
        forms.append(_Form(lowered, report, assemble(lowered, report)))
    names = [layer.name for layer in model.layers]
    used = next((form for form in forms if [layer.name for layer in form.model.layers] == names), None)
    if used is None:
        raise InvalidArgument(
            "other-source",
            f"the model has the layers {names[:6]} and its source gives "
            f"{[layer.name for layer in forms[0].model.layers][:6]}: it was converted from something else",
        )
    notes = []
    if model.sha256 not in [form.model.sha256 for form in forms]:
        notes.append(
            "the model's bytes are not those that its source converts to now: pass the input_scale and "
            "input_offset of its conversion; differences below may come from that"
        )
    if used.report.graph is None:
        raise ConversionError("internal-error", "the conversion kept no graph")
    meaning = _Meaning(used.report.graph, input_scale, input_offset)
    framework, unjudged = None, "engine='built-in'"
    if engine != "built-in":
        framework, unjudged = _framework(source, used.report.graph, meaning.pixels(batch[:1]), input_shape)
    if engine == "framework" and framework is None:
        raise InvalidArgument("no-framework", f"engine: the framework can't run the source: {unjudged}")
    other = forms[1] if used is forms[0] else forms[0]
    judge = _Judge(model, used, other.model, meaning, framework)
    for begin in range(0, len(batch), _BATCH):
        judge.add(batch[begin : begin + _BATCH], begin)
    return judge.report(notes, unjudged)


@dataclass(frozen=True)
class _Form:
    """The source converted now, fused or not."""

    lowered: LoweredModel
    report: ConversionReport
    model: Model


def _framework(source: Any, graph: g.Graph, pixels: Any, input_shape: Any) -> tuple[Framework | None, str]:
    """The source's framework, tried on one image, or None and the reason."""
    from .converters.frameworks import open_framework

    try:
        framework = open_framework(source, graph, input_shape)
        framework.run(pixels)
    except MissingExtra as error:
        return None, error.message
    except Exception as error:  # whatever a framework throws: the conversion can be judged without it
        return None, "it fails: " + " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return framework, ""


class _Meaning:
    """The graph with the input's scale and offset in front, and what a framework is fed."""

    def __init__(self, graph: g.Graph, input_scale: Any, input_offset: Any) -> None:
        self.scale, self.offset = input_scale, input_offset
        self.source = graph
        self.graph, self.image = _scaled(graph, input_scale, input_offset)

    def pixels(self, batch: Array) -> Any:
        """`input_scale * q + input_offset`, float32."""
        scale = np.float32(1) if self.scale is None else np.asarray(self.scale, np.float32)
        offset = np.float32(0) if self.offset is None else np.asarray(self.offset, np.float32)
        return batch.astype(np.float32) * scale + offset

    def tensors(self, run: FrameworkRun, pixels: Array) -> dict[str, Floats]:
        """A framework's tensors under the names of `graph`."""
        first = self.source.nodes[0].name
        values = {name: value for name, value in run.values.items() if name != first}
        return {**values, self.image: pixels.astype(np.float64)}


def _scaled(graph: g.Graph, input_scale: Any, input_offset: Any) -> tuple[g.Graph, str]:
    """(the graph with the input's scale and offset in front, the tensor that a framework is fed)."""
    from dataclasses import replace
    from fractions import Fraction

    from .converters import graph as g

    first, *rest = graph.nodes
    if input_scale is None and input_offset is None:
        return graph, first.name

    def values(value: Any, default: float) -> Any:
        array = np.asarray(default if value is None else value, np.float32).reshape(-1)
        return Fraction(float(array[0])) if array.size == 1 else array

    name = f"{first.name}/meaning"
    meaning = g.Linear(name, first.layer, (first.name,), values(input_scale, 1), values(input_offset, 0))
    moved = [
        replace(node, inputs=tuple(name if read == first.name else read for read in node.inputs))
        for node in rest
    ]
    origins = dict(graph.origins)
    if first.name in origins:
        origins[name] = origins.pop(first.name)
    return graph.rebuilt([first, meaning, *moved], graph.output, origins=origins), name


# ------------------------------------------------------------------------------------------------
# judging


class _Count:
    """What one comparison has found at one tensor so far."""

    def __init__(self) -> None:
        self.values = self.differing = self.unexplained = 0
        self.largest = 0.0
        #: Of the first unexplained value, and of the first that differs.
        self.first: tuple[int, ...] | None = None
        self.where: tuple[int, ...] | None = None

    def add(self, wrong: Bools, explained: Bools, begin: int, largest: float = 0.0) -> None:
        """Values that differ, and where that is explained; `begin` is the batch's first image."""
        left = wrong & ~explained
        self.values += wrong.size
        self.differing += int(wrong.sum())
        self.unexplained += int(left.sum())
        self.largest = max(self.largest, largest)
        if self.first is None and left.any():
            self.first = _place(left, begin)
        if self.where is None and wrong.any():
            self.where = _place(wrong, begin)

    def region(self, layer: str, tensor: str, kind: str, judged: bool = True) -> Region:
        """The count as a region."""
        return Region(
            layer,
            tensor,
            kind,
            self.values,
            self.differing,
            self.unexplained,
            self.largest,
            self.first,
            judged,
        )


def _place(where: Bools, begin: int) -> tuple[int, ...]:
    """(image, row, column, channel) of the first True."""
    image, *rest = np.argwhere(where)[0].tolist()
    return (image + begin, *rest)


class _Judge:
    """Both comparisons, batch by batch."""

    def __init__(
        self, model: Model, form: _Form, other: Model, meaning: _Meaning, framework: Framework | None
    ) -> None:
        self.model, self.other, self.meaning, self.framework = model, other, meaning, framework
        self.graph = meaning.graph
        self.head = form.report.operators[-1]
        self.requantization: Any = form.lowered.operators[-1]
        self.operators = {o.tensor: o for o in form.report.operators if o.tensor}
        #: Names of the operators that lead to a tensor.
        self.names: dict[str, str] = {}
        names: list[str] = []
        for operator in form.report.operators:
            names.append(operator.name)
            if operator.tensor:
                self.names[operator.tensor] = " + ".join(names)
                names = []
        self.signs = {o.sign: o for o in form.report.operators if o.sign}
        self.errors = _anchored(self.graph, form.report.operators)
        self.reader: dict[str, _Count] = {}
        self.conversion = {name: _Count() for name in self.operators}
        self.ends = {name: _Count() for name in self.signs}
        #: Tensors that a second run changes, though it does not change what they are made of.
        self.unstable: set[str] = set()
        self.same = True
        self.images = self.agree = 0
        self.logit_error: float | None = None

    def add(self, part: Array, begin: int) -> None:
        """Judge one batch, whose first image is number `begin`."""
        results, taps = self.model.run(part, taps=True)
        self.same &= bool(np.array_equal(results, self.other.run(part)))
        integers = self.model.run_integers(part)
        if results.dtype.kind == "f":  # the host's scaling of what a board sends
            self.same &= bool(np.array_equal(results, self.model.dequantize(integers)))
        bits = {name: taps[o.name] > 0 for name, o in self.operators.items() if o is not self.head}
        near = self._convert(part, begin, bits, integers)
        theirs = self._read(part, begin, bits, near)
        mine = integers * self.model.output_scale
        self.images += len(part)
        self.agree += int((mine.argmax(axis=1) == theirs.argmax(axis=1)).sum())
        if mine.shape == theirs.shape and (self.framework is None or not self._ends_in_softmax()):
            error = float(np.abs(mine - theirs).max())
            self.logit_error = error if self.logit_error is None else max(error, self.logit_error)

    def _ends_in_softmax(self) -> bool:
        from .converters import graph as g

        return any(isinstance(node, g.Softmax) for node in self.graph.nodes)

    # -- the reader, and what differs from end to end

    def _read(self, part: Array, begin: int, bits: Mapping[str, Bools], near: Mapping[str, Bools]) -> Floats:
        """Judges the reading of the source; returns the source's outputs. `near`: near-ties of its signs."""
        from .converters import graph as g
        from .converters.evaluate import logits_of, near_tie, walk

        given: dict[str, Floats] = {}
        rounding: Mapping[str, float] = {}
        outputs: Floats | None = None
        if self.framework is not None:
            pixels = self.meaning.pixels(part)
            run = self.framework.run(pixels)
            given, rounding = self.meaning.tensors(run, pixels), run.rounding
            outputs = np.asarray(run.outputs, np.float64).reshape(len(run.outputs), -1)
            if begin == 0:
                again = self.meaning.tensors(self.framework.run(pixels), pixels)
                self.unstable = _unstable(self.graph, given, again)
            if self.graph.output not in given:  # of another size than was read
                missing = np.ones(outputs.shape, np.bool_)
                self._count(self.graph.output).add(missing, ~missing, begin)
        head = logits_of(self.graph)
        for node, inputs, found in walk(self.graph, part, given):
            value = given.get(node.name)
            if value is not None and node.name != self.meaning.image:
                if isinstance(node, g.Sign):
                    wrong = ~(np.abs(value - found.value) <= _FLOAT32)
                    self._count(node.name).add(wrong, near_tie(inputs[0]), begin)
                else:
                    wrong, largest = _numbers_differ(value, found, rounding.get(node.name, _FLOAT32))
                    self._count(node.name).add(wrong, np.zeros_like(wrong), begin, largest)
            if node.name in self.signs:
                theirs = (found.value if value is None else value) >= 0
                mine = bits[node.name].reshape(theirs.shape)
                self.ends[node.name].add(theirs != mine, near[node.name], begin)
            if outputs is None and node.name == head:
                result = found.value.reshape(len(part), -1)
        return result if outputs is None else outputs

    def _count(self, name: str) -> _Count:
        return self.reader.setdefault(name, _Count())

    # -- the conversion

    def _convert(
        self, part: Array, begin: int, bits: Mapping[str, Bools], integers: Array
    ) -> dict[str, Bools]:
        """Judges the model on its own tensors; returns the near-ties of its signs."""
        from .converters.evaluate import near_tie, walk

        near: dict[str, Bools] = {}
        given = {name: np.where(found, 1.0, -1.0) for name, found in bits.items()}
        for node, inputs, found in walk(self.graph, part, given, self.errors):
            operator = self.operators.get(node.name)
            if operator is None:
                continue
            count = self.conversion[node.name]
            if operator is self.head:
                count.add(*self._outputs(found, integers), begin)
                break
            wrong = (found.value >= 0) != bits[node.name].reshape(found.value.shape)
            argument = inputs[0] if node.name in self.signs else found
            size = np.abs(argument.value)
            # An exact 0 is decided: a tie. What is close to it is not, by float64.
            slack = argument.error + _FLOAT64 * argument.size * (size > 0)
            count.add(wrong, (size <= slack) & (slack > 0), begin)
            near[node.name] = near_tie(argument)
        return near

    def _outputs(self, found: Numbers, integers: Array) -> tuple[Bools, Bools]:
        """(outputs that are not the rounded logits, where the stated bounds explain that)."""
        scale = self.model.output_scale
        exact = found.value.reshape(integers.shape) / scale
        q = integers.astype(np.float64)
        error = np.broadcast_to(found.error, found.value.shape).reshape(integers.shape)
        size = np.broadcast_to(found.size, found.value.shape).reshape(integers.shape)
        rounding = self.requantization.requantization.bound + _LOGIT * size / scale
        limits = np.iinfo(integers.dtype)
        saturated = ((q == limits.max) & (exact > q)) | ((q == limits.min) & (exact < q))
        off = np.abs(q - exact)
        wrong = ~(off <= rounding) & ~saturated
        return wrong, off <= rounding + error * (1 + _FLOAT64) / scale

    # -- the result

    def report(self, notes: list[str], unjudged: str) -> VerifyReport:
        """What was found."""
        from .converters import graph as g

        nodes = {node.name: node for node in self.graph.nodes}
        reader = [
            self.reader[name].region(
                node.layer, name, "bits" if isinstance(node, g.Sign) else "numbers", name not in self.unstable
            )
            for name, node in nodes.items()
            if name in self.reader
        ]
        conversion = [
            self.conversion[name].region(
                nodes[name].layer, self.names[name], "numbers" if operator is self.head else "bits"
            )
            for name, operator in self.operators.items()
        ]
        layers = []
        for name, operator in self.signs.items():
            ends, own = self.ends[name], self.conversion[name]
            layers.append(
                LayerAgreement(
                    layer=nodes[name].layer,
                    operator=operator.name,
                    bits=ends.values,
                    differing=ends.differing,
                    unexplained=ends.unexplained,
                    own_differing=own.differing,
                    own_unexplained=own.unexplained,
                    first=ends.where,
                    approximated=bool(operator.approximations),
                )
            )
        return VerifyReport(
            "built-in" if self.framework is None else self.framework.name,
            self.images,
            layers,
            self.agree,
            self.logit_error,
            self.same,
            notes,
            reader,
            conversion,
            unjudged,
        )


def _numbers_differ(theirs: Floats, ours: Numbers, rounding: float) -> tuple[Bools, float]:
    """(where they differ by more than `rounding` explains, the largest difference by what is allowed)."""
    with np.errstate(invalid="ignore", over="ignore"):
        allowed = rounding * np.maximum(ours.size, np.abs(ours.value))
        allowed = np.maximum(allowed, np.finfo(np.float32).tiny)
        off = np.abs(theirs - ours.value)
        wrong = np.asarray(~(off <= allowed))
        ratio = float(np.nan_to_num(off / allowed, nan=np.inf).max(initial=0.0))
    return wrong, ratio


def _anchored(graph: g.Graph, operators: Sequence[OperatorReport]) -> dict[str, Floats]:
    """The bounds of approximated operators, by the tensor of the graph that they hold for: a layer's sums."""
    from .converters import graph as g

    nodes = {node.name: node for node in graph.nodes}
    found = {}
    bound = None
    for operator in operators:
        bound = operator.bound if operator.bound is not None else bound
        if bound is None or not operator.tensor:  # a convolution whose pool is the next operator
            continue
        name = operator.tensor
        while not isinstance(nodes[name], (g.Conv2D, g.Dense)) and nodes[name].inputs:
            before = nodes[name].inputs[0]
            if isinstance(nodes[before], (g.Sign, g.Input)):  # bits of the image itself
                break
            name = before
        found[name] = bound
        bound = None
    return found


def _unstable(graph: g.Graph, first: Mapping[str, Floats], second: Mapping[str, Floats]) -> set[str]:
    """Tensors that differ between two runs, though the tensors that they are made of do not."""
    changed = set()
    for name, value in first.items():
        other = second.get(name)
        largest = float(np.abs(np.nan_to_num(value)).max(initial=0.0))
        if other is None or not np.allclose(value, other, rtol=0, atol=_REPEAT * largest, equal_nan=True):
            changed.add(name)
    roots = set()
    #: Whether anything that both runs have, at or right before a tensor, has changed.
    spread: dict[str, bool] = {}
    for node in graph.nodes:
        before = any(spread[name] for name in node.inputs)
        if node.name in changed and not before:
            roots.add(node.name)
        spread[node.name] = node.name in changed if node.name in first else before
    return roots
