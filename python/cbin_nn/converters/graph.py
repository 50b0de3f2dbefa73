r"""The source network as a framework-free directed graph: what every reader produces and lowering consumes.

Nodes name the tensors that they read; a node's own name is the name of the tensor that it makes. Nodes
stand in topological order. Parameters are float32 NumPy arrays in Keras' layouts: convolution kernels
(kh, kw, in, out), dense kernels (in, out), features of a flattened plane in HWC order.

Quantizers aren't hidden in layers here: a layer with an input quantizer is a `Sign` node followed by a
`Conv2D` or `Dense` node whose kernel is already quantized.

Invariants that `Graph` checks when it is built: names are unique, inputs exist and come earlier, and
shapes fit. Shapes are without the batch axis: (height, width, channels) or (features,).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConversionError
from ..operators import Window
from .problems import Problem

__all__ = [
    "Add",
    "BatchNorm",
    "Bias",
    "Call",
    "Clip",
    "Concatenate",
    "Conv2D",
    "Dense",
    "Flatten",
    "Graph",
    "Identity",
    "Input",
    "Linear",
    "MaxPool2D",
    "Node",
    "Origin",
    "PReLU",
    "Problem",
    "Rescaling",
    "Shape",
    "Sign",
    "Softmax",
]

Float32 = npt.NDArray[np.float32]
Shape = tuple[int, ...]

#: Planes beyond this are refused: the accumulators and the arena would not fit anything this serves.
_MAX_SIDE = 65535


@dataclass(frozen=True, eq=False)
class Node:
    """One operation. `layer` is the source layer's name, for messages and reports."""

    name: str
    layer: str
    inputs: tuple[str, ...]

    def output_shape(self, shapes: tuple[Shape, ...]) -> Shape:
        """Shape of the result for inputs of these shapes.

        Raises:
            ConversionError: the shapes do not fit this operation.
        """
        return shapes[0]

    def _refuse(self, slug: str, message: str) -> ConversionError:
        return ConversionError(slug, message, layer=self.layer)


@dataclass(frozen=True, eq=False)
class Input(Node):
    """The network's input, values as the user feeds them."""

    shape: Shape = ()

    def output_shape(self, shapes: tuple[Shape, ...]) -> Shape:
        """The input's own shape."""
        return self.shape


@dataclass(frozen=True, eq=False)
class Rescaling(Node):
    """`y = scale * x + offset`, one float32 value each for the whole tensor."""

    scale: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True, eq=False)
class Conv2D(Node):
    """2-D convolution (cross-correlation), channels last.

    `kernel` holds -1 and +1 where `binary` (a first layer may also hold 8-bit integers, not `binary`); the
    result is then multiplied by `scale`, shape (out,), if there is one.
    Taps in the padding contribute `pad_value` times their weight. With `depthwise`, channel c of the result
    is that of channel c alone, and the kernel's shape is (kh, kw, 1, channels).
    """

    kernel: Float32 = field(default_factory=lambda: np.zeros((0, 0, 0, 0), np.float32))
    window: Window = field(default_factory=lambda: Window((1, 1)))
    binary: bool = True
    scale: Float32 | None = None
    pad_value: float = 0.0
    depthwise: bool = False

    def output_shape(self, shapes: tuple[Shape, ...]) -> Shape:
        """(height, width, filters)."""
        kh, kw, channels, filters = self.kernel.shape
        if self.depthwise and channels == 1:
            channels = filters
        if len(shapes[0]) != 3 or shapes[0][2] != channels:
            raise self._refuse(
                "shape-mismatch", f"kernel takes {channels} channels, its input has shape {shapes[0]}"
            )
        if (kh, kw) != self.window.kernel or not self.kernel.size:
            raise self._refuse(
                "shape-mismatch", f"kernel of shape {self.kernel.shape} does not fit {self.window}"
            )
        height, width = self.window.output_size(*shapes[0][:2])
        if height < 1 or width < 1:
            raise self._refuse("shape-mismatch", f"the {kh}x{kw} kernel does not fit the {shapes[0]} input")
        return height, width, filters


@dataclass(frozen=True, eq=False)
class Dense(Node):
    """Fully connected; `kernel` (in, units) holds -1 and +1 where `binary`, `scale` as in `Conv2D`."""

    kernel: Float32 = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    binary: bool = True
    scale: Float32 | None = None

    def output_shape(self, shapes: tuple[Shape, ...]) -> Shape:
        """(units,)."""
        if len(shapes[0]) != 1:
            raise self._refuse(
                "shape-mismatch",
                f"a dense layer on a tensor of shape {shapes[0]} needs a Flatten layer before it",
            )
        if shapes[0][0] != self.kernel.shape[0] or not self.kernel.size:
            raise self._refuse(
                "shape-mismatch",
                f"kernel takes {self.kernel.shape[0]} features, its input has {shapes[0][0]}",
            )
        return (int(self.kernel.shape[1]),)


@dataclass(frozen=True, eq=False)
class MaxPool2D(Node):
    """Max-pool; padding taps are skipped."""

    window: Window = field(default_factory=lambda: Window((1, 1)))

    def output_shape(self, shapes: tuple[Shape, ...]) -> Shape:
        """(height, width, channels) after the pool."""
        if len(shapes[0]) != 3:
            raise self._refuse(
                "shape-mismatch", f"a 2-D pool needs (height, width, channels), got {shapes[0]}"
            )
        height, width = self.window.output_size(*shapes[0][:2])
        if height < 1 or width < 1:
            raise self._refuse(
                "shape-mismatch", f"the {self.window.kernel} pool does not fit the {shapes[0]} input"
            )
        return height, width, shapes[0][2]


@dataclass(frozen=True, eq=False)
class _Parametric(Node):
    """A node with one parameter a channel, or one an element of the whole tensor."""

    def _check(self, shape: Shape, **arrays: Float32) -> Shape:
        for what, array in arrays.items():
            if array.shape not in (shape, shape[-1:]):
                raise self._refuse("shape-mismatch", f"{what} has shape {array.shape}, the tensor is {shape}")
        return shape


@dataclass(frozen=True, eq=False)
class BatchNorm(_Parametric):
    """`gamma * (x - mean) / sqrt(variance + epsilon) + beta`, each of shape (channels,)."""

    gamma: Float32 = field(default_factory=lambda: np.zeros(0, np.float32))
    beta: Float32 = field(default_factory=lambda: np.zeros(0, np.float32))
    mean: Float32 = field(default_factory=lambda: np.zeros(0, np.float32))
    variance: Float32 = field(default_factory=lambda: np.zeros(0, np.float32))
    epsilon: float = 1e-3

    def output_shape(self, shapes: tuple[Shape, ...]) -> Shape:
        """The input's shape, after a check of the parameters."""
        return self._check(
            shapes[0], gamma=self.gamma, beta=self.beta, mean=self.mean, variance=self.variance
        )


@dataclass(frozen=True, eq=False)
class Bias(_Parametric):
    """`x + values`, shape (channels,)."""

    values: Float32 = field(default_factory=lambda: np.zeros(0, np.float32))

    def output_shape(self, shapes: tuple[Shape, ...]) -> Shape:
        """The input's shape, after a check of the parameters."""
        return self._check(shapes[0], bias=self.values)


@dataclass(frozen=True, eq=False)
class Linear(_Parametric):
    """`factor * x / divisor + offset`; each is one rational, or float32 of shape (channels,) or of the
    tensor.

    A divisor is kept, since 1/127.5 and the like are no float32.
    """

    factor: Fraction | Float32 = Fraction(1)
    offset: Fraction | Float32 = Fraction(0)
    divisor: Fraction | Float32 = Fraction(1)

    def output_shape(self, shapes: tuple[Shape, ...]) -> Shape:
        """The input's shape, after a check of the parameters."""
        arrays = {"factor": self.factor, "offset": self.offset, "divisor": self.divisor}
        return self._check(shapes[0], **{k: v for k, v in arrays.items() if not isinstance(v, Fraction)})


@dataclass(frozen=True, eq=False)
class PReLU(_Parametric):
    """`x` where `x >= 0`, else `alpha * x`; alpha of shape (channels,) or of the whole tensor."""

    alpha: Float32 = field(default_factory=lambda: np.zeros(0, np.float32))

    def output_shape(self, shapes: tuple[Shape, ...]) -> Shape:
        """The input's shape, after a check of the parameters."""
        return self._check(shapes[0], alpha=self.alpha)


@dataclass(frozen=True, eq=False)
class Clip(Node):
    """`min(max(x, low), high)`, float32 ends; None is open."""

    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, eq=False)
class Sign(Node):
    """+1 where `x > 0`, -1 where `x < 0`, and `zero` where `x = 0`: +1, -1, or 0 (`torch.sign`).

    `strict_channels` names channels where `zero` is -1 although it is +1 elsewhere.
    """

    zero: int = 1
    strict_channels: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Add(Node):
    """Sum of two tensors of one shape: a shortcut. Kept as an edge; no operator runs it yet."""

    def output_shape(self, shapes: tuple[Shape, ...]) -> Shape:
        """The common shape."""
        if len(set(shapes)) != 1:
            raise self._refuse("shape-mismatch", f"a sum of tensors of shapes {list(shapes)}")
        return shapes[0]


@dataclass(frozen=True, eq=False)
class Concatenate(Node):
    """Tensors joined along the channels. Kept as an edge; no operator runs it yet."""

    def output_shape(self, shapes: tuple[Shape, ...]) -> Shape:
        """The shape with the channels added up."""
        if len({shape[:-1] for shape in shapes}) != 1:
            raise self._refuse("shape-mismatch", f"tensors of shapes {list(shapes)} can't be concatenated")
        return (*shapes[0][:-1], sum(shape[-1] for shape in shapes))


@dataclass(frozen=True, eq=False)
class Flatten(Node):
    """(height, width, channels) -> (features,), HWC order."""

    def output_shape(self, shapes: tuple[Shape, ...]) -> Shape:
        """(features,)."""
        return (int(np.prod(shapes[0], dtype=object)),)


@dataclass(frozen=True, eq=False)
class Softmax(Node):
    """Softmax over the last axis, or with `log` its logarithm: keeps the argmax."""

    log: bool = False


@dataclass(frozen=True, eq=False)
class Identity(Node):
    """Does nothing at inference (dropout, noise)."""


def _is_text(text: str) -> bool:
    """Whether UTF-8 can write it: JSON may state half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True, eq=False)
class Origin:
    """Which tensor of the source a tensor of the graph is, and how it stands there.

    With its axes in the graph's order, the source's tensor is `scale * x + offset` of the graph's `x`.
    """

    #: The source's own name: of a node of a torch program, of an ONNX tensor; of a Keras model the number of
    #: one of `Graph.calls`, for its result, or the number and `/input_quantizer`.
    key: str
    #: "NHWC", "NCHW", or "NF" for a flat tensor; "" for the graph's own order.
    axes: str = ""
    #: For "NF": the graph's position of each source feature; None where they are the same.
    order: npt.NDArray[np.int64] | None = None
    scale: float = 1.0
    offset: float = 0.0
    #: Not 0: the graph holds these channels of the source twice (`passes.split_ternary`).
    twice: int = 0
    #: With `twice`: the source's -1, 0 and 1 are two bits here, `x >= 0` and `x > 0`.
    ternary: bool = False

    def in_graph(self, value: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """The graph's tensor, (N, ...) float64, from the source's values `(N, ...)`."""
        found = np.asarray(value, np.float64)
        if self.axes == "NF" or found.ndim == 2:
            found = found.reshape(len(found), -1)
            if self.order is not None:
                moved = np.empty_like(found)
                moved[:, self.order] = found
                found = moved
        elif self.axes not in ("", "NHWC"):
            found = found.transpose([self.axes.index(axis) for axis in "NHWC"])
        if self.offset or self.scale != 1:
            found = (found - self.offset) / self.scale
        if self.twice:
            table = found.reshape(len(found), -1, self.twice)
            both = (
                [np.where(table >= 0, 1.0, -1.0), np.where(table > 0, 1.0, -1.0)]
                if self.ternary
                else [table, table]
            )
            found = np.concatenate(both, axis=2).reshape(*found.shape[:-1], -1)
        return found


@dataclass(frozen=True)
class Call:
    """A layer of the source applied to tensors, where one layer may be applied several times (Keras)."""

    layer: str
    #: Names of the models that it is called inside of, outermost first.
    inside: tuple[str, ...]
    #: Numbers of the calls whose results it takes; none where it takes the image.
    inputs: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in topological order; `output` names the tensor that the network returns.

    A reader lists what it could not translate in `problems`; the nodes then end before the first of them
    on each path, and lowering refuses the graph with all of them at once.

    Raises:
        ConversionError: a name is repeated, unknown or no valid text, or shapes do not fit.
    """

    name: str
    nodes: list[Node]
    output: str
    #: Facts for the user that arose while reading.
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    #: Where a tensor of the graph stands in the source, for those that it has too; kept by every pass.
    origins: Mapping[str, Origin] = field(default_factory=dict)
    #: The calls that the keys of `origins` number, where the source is a Keras model.
    calls: Sequence[Call] = ()
    #: Whose words messages use: "keras", "torch", "onnx", "description", or "" (`words`).
    framework: str = ""
    #: Tensor name -> shape without the batch axis; filled in here.
    shapes: dict[str, Shape] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for text in (
            self.name,
            *self.notes,
            *(text for node in self.nodes for text in (node.name, node.layer)),
        ):
            if not _is_text(text):
                raise ConversionError(
                    "bad-graph", f"the name {text[:80]!r} is no valid text (half a surrogate)"
                )
        for node in self.nodes:
            if node.name in self.shapes:
                raise node._refuse("bad-graph", f"tensor {node.name!r} is made twice")
            missing = [name for name in node.inputs if name not in self.shapes]
            if missing:
                raise node._refuse("bad-graph", f"it reads {missing[0]!r}, which no earlier layer makes")
            shape = node.output_shape(tuple(self.shapes[name] for name in node.inputs))
            if not shape or min(shape) < 1 or (len(shape) > 1 and max(shape) > _MAX_SIDE):
                raise node._refuse("shape-mismatch", f"a tensor of shape {shape} is empty or too large")
            self.shapes[node.name] = shape
        if self.output not in self.shapes:
            raise ConversionError("bad-graph", f"the output {self.output!r} is made by no layer")

    def rebuilt(
        self,
        nodes: list[Node],
        output: str,
        notes: Sequence[str] = (),
        origins: Mapping[str, Origin] | None = None,
    ) -> Graph:
        """The graph with other nodes; what is known of the source is kept.

        Args:
            nodes: the nodes, in topological order.
            output: the tensor that the network returns.
            notes: what to add to `notes`.
            origins: what takes the place of `origins`; None keeps them.
        """
        kept = self.origins if origins is None else origins
        names = {node.name for node in nodes}
        return replace(
            self,
            nodes=nodes,
            output=output,
            notes=[*self.notes, *notes],
            problems=list(self.problems),
            origins={name: origin for name, origin in kept.items() if name in names},
        )
