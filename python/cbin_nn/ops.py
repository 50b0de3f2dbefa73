r"""The operators, one function a family: NumPy in, NumPy out, on the kernels that a board runs.

Packed tensors are uint32 `[N, H, W, words]`, 32 channels a word, least significant bit first; a bit of 1
is +1, of 0 is -1, and unused high bits are 0. `pack` and `unpack` convert:

>>> import numpy as np
>>> words = pack([[0.5, -2.0, 0.0]])
>>> words.tolist(), unpack(words, 3).tolist()
([[5]], [[1, -1, 1]])

A convolution's accumulators become bits by what stands before the next sign: `prelu=` right after the
(scaled) accumulator, then the steps of `chain` (`cbin_nn.rule`), a MaxPool among them; or `rule=`, a `Rule`
on the integer accumulator. With none of them the bit is `acc >= 0`.

>>> x = pack(np.where(np.arange(32).reshape(1, 4, 4, 2) % 3, 1, -1))
>>> weights = np.ones((1, 3, 3, 2), np.int8)                      # (output channels, height, width, channels)
>>> unpack(bbconv2d(x, weights, padding="same", rule=Rule.from_thresholds([5])), 1)[0, :, :, 0].tolist()
[[-1, -1, -1, -1], [-1, 1, 1, -1], [-1, 1, 1, -1], [-1, -1, -1, -1]]

`kernel="reference"` runs the definition, one product at a time, `kernel="optimized"` what a board runs; both
give the same bits on every input. Each family has a second way in, of the same arguments:
`bbconv2d.model(x, weights)` returns the one-operator `Model` and the batch as that model takes it, to save,
to describe or to run on a board:

>>> model, batch = bbconv2d.model(x, weights, padding=1)
>>> model.layers[0].operator, batch.shape
('bbconv2d', (1, 4, 4, 1))

Every wrong argument is an `InvalidArgument` (a `ValueError`) that names it, what it got and what was
expected.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal, ParamSpec, Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt

from . import _native, geometry
from . import rules as r
from .errors import ConversionError, InvalidArgument
from .folding import AccumulatorRange, FoldError, Planned, fold_pool, fold_sign, integer_input
from .geometry import Padding
from .model import Model, check_words
from .operators import (
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
from .requantize import requantize
from .rule import MaxPool, PReLU, Rule, Step, check_shapes, check_steps, parameter, too_many

__all__ = [
    "bbconv2d",
    "bbdepthwiseconv2d",
    "bbfc",
    "bbpointwiseconv2d",
    "bbqfc",
    "bmaxpool2d",
    "bqqfc",
    "pack",
    "qbconv2d",
    "qqconv2d",
    "unpack",
]

Array = npt.NDArray[Any]
Words = npt.NDArray[np.uint32]
Signs = npt.NDArray[np.int8]
Kernel = Literal["optimized", "reference"]
Chain = Sequence[Step] | Step

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")


class Family(Protocol[P, R_co]):
    """An operator family: call it, or ask for the model that the call would run."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Run the operator."""

    def model(self, *args: P.args, **kwargs: P.kwargs) -> tuple[Model, Array]:
        """(the one-operator model, the batch as `Model.run` and `Model.bench` take it)."""


@dataclass(frozen=True)
class _Call:
    """A checked call: operators with their input (one, or one a group) and how to run them."""

    operators: list[Operator]
    batches: list[Array]
    #: (height, width, channels) of one batch.
    shape: tuple[int, int, int]
    bits: bool
    kernel: str
    threads: int | None

    def models(self) -> list[Model]:
        return [self._model(operator) for operator in self.operators]

    def _model(self, operator: Operator) -> Model:
        lowered = LoweredModel(
            operator.kind,
            operator.input,
            self.shape,
            [operator],
            operator.output,
            input_dtype="bits" if self.bits else "u8",
        )
        try:
            return Model(_native.Model.from_bytes(_native.build_model(lowered)))
        except ConversionError as error:
            raise InvalidArgument(error.slug, error.message) from error

    def run(self) -> list[Array]:
        threads = 0 if self.threads is None else self.threads
        reference = self.kernel == "reference"
        return [
            model._native.run(batch, threads, reference)
            for model, batch in zip(self.models(), self.batches, strict=True)
        ]


def _family(finish: Callable[[_Call, list[Array]], R]) -> Callable[[Callable[P, _Call]], Family[P, R]]:
    """Make a family of a function that checks its arguments; `finish` turns raw outputs into the result."""

    def decorate(check: Callable[P, _Call]) -> Family[P, R]:
        @functools.wraps(check)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            checked = check(*args, **kwargs)
            return finish(checked, checked.run())

        @functools.wraps(check)
        def model(*args: P.args, **kwargs: P.kwargs) -> tuple[Model, Array]:
            checked = check(*args, **kwargs)
            if len(checked.operators) != 1:
                raise InvalidArgument(
                    "bad-groups",
                    f"`groups` is {len(checked.operators)}: the call runs one operator a group, expected "
                    "groups=1 or groups=channels for a single model",
                )
            return checked.models()[0], checked.batches[0]

        model.__doc__ = f"(the one-operator model, its batch) of `{check.__name__}` with the same arguments."
        result = inspect.signature(finish).return_annotation
        call.__signature__ = inspect.signature(check).replace(  # type: ignore[attr-defined]
            return_annotation=result
        )
        call.model = model  # type: ignore[attr-defined]
        return cast("Family[P, R]", call)

    return decorate


# ------------------------------------------------------------------------------------------------
# packing


def pack(x: npt.ArrayLike) -> Words:
    """Signs of real numbers as packed words; `x >= 0` is 1, so 0 and -0 are 1.

    Args:
        x: real numbers `[..., C]`, C >= 1.

    Returns:
        uint32 `[..., ceil(C / 32)]`; unused high bits are 0.

    Raises:
        InvalidArgument: no real numbers (bool is refused: whether False means -1 is not clear), no channel,
            or NaN.
    """
    array = geometry.array("x", x)
    if array.dtype.kind not in "iuf":
        hint = ": for bits use np.where(x, 1, -1)" if array.dtype == np.bool_ else ""
        raise InvalidArgument("bad-dtype", f"`x` is {array.dtype}, expected real numbers [..., C]{hint}")
    if array.ndim < 1 or not array.shape[-1]:
        raise InvalidArgument(
            "bad-shape", f"`x` has shape {list(array.shape)}, expected [..., C] with C >= 1"
        )
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise InvalidArgument(
            "not-a-number", f"`x` is NaN {int(np.isnan(array).sum())} times, expected numbers"
        )
    bits = np.packbits(array >= 0, axis=-1, bitorder="little")
    count = geometry.words(array.shape[-1])
    whole = np.zeros((*array.shape[:-1], 4 * count), np.uint8)
    whole[..., : bits.shape[-1]] = bits
    return whole.view("<u4").astype(np.uint32)


def unpack(words: npt.ArrayLike, channels: int) -> Signs:
    """Packed words as signs.

    Args:
        words: uint32 `[..., ceil(channels / 32)]`, unused high bits 0.
        channels: number of true channels.

    Returns:
        int8 `[..., channels]` of -1 and +1.

    Raises:
        InvalidArgument: wrong dtype or number of words, or an unused bit is set.
    """
    count = geometry.integer("channels", channels, 1, geometry.MAX_ELEMENTS)
    array = check_words("words", words, None, count)
    raw = np.ascontiguousarray(array).astype("<u4").view(np.uint8)
    return np.unpackbits(raw, axis=-1, count=count, bitorder="little").astype(np.int8) * 2 - 1


# ------------------------------------------------------------------------------------------------
# checks that the families share


def _kernel(kernel: str, threads: int | None) -> None:
    if not isinstance(kernel, str) or kernel not in ("optimized", "reference"):
        raise InvalidArgument("bad-kernel", f'`kernel` is {kernel!r}, expected "optimized" or "reference"')
    geometry.thread_count(threads)


def _weights(value: Any, layout: str, ranks: tuple[int, ...], *, signs: bool) -> Signs:
    """int8 weights of one of `ranks`; `layout` is what messages call the shape."""
    weights = geometry.array("weights", value)
    kind = "of -1 and +1" if signs else "numbers"
    if weights.dtype != np.int8:
        hint = ": use np.where(weights >= 0, 1, -1).astype(np.int8)" if signs else ""
        raise InvalidArgument(
            "bad-dtype", f"`weights` is {weights.dtype}, expected int8 {kind} {layout}{hint}"
        )
    if weights.ndim not in ranks or not weights.size:
        raise InvalidArgument(
            "bad-shape", f"`weights` has shape {list(weights.shape)}, expected {layout}, not empty"
        )
    wrong = weights[np.abs(weights) != 1] if signs else weights[:0]
    if wrong.size:
        raise InvalidArgument(
            "bad-weights", f"`weights` holds {int(wrong.flat[0])}, expected -1 and +1 alone"
        )
    return cast("Signs", np.ascontiguousarray(weights))


def _packed(x: Any, channels: int) -> Words:
    words = check_words("x", x, 4, channels)
    geometry.check_plane("x", words.shape[1], words.shape[2], channels)
    return words


def _taps(weights: Signs, kernel: tuple[int, int], channels: int) -> tuple[int, int]:
    """Check the size of one layer's weights; returns the kernel."""
    if max(kernel) > geometry.MAX_WINDOW:
        raise InvalidArgument(
            "out-of-range",
            f"`weights` has shape {list(weights.shape)}: a kernel side above {geometry.MAX_WINDOW}, "
            "expected less",
        )
    size = kernel[0] * kernel[1] * geometry.words(channels) * 32 * weights.shape[0]
    if size > geometry.MAX_ELEMENTS:
        raise InvalidArgument(
            "too-large",
            f"`weights` has shape {list(weights.shape)}, {size} elements in whole words, expected at most "
            f"{geometry.MAX_ELEMENTS}",
        )
    return kernel


def _sliding(
    x: Array, kernel: tuple[int, int], strides: Any, padding: Any, dilation: Any, channels: int
) -> tuple[Window, tuple[int, int, int]]:
    """The window of a convolution and its plane of accumulators."""
    steps = geometry.pair("strides", strides, 1, geometry.MAX_WINDOW)
    apart = geometry.pair("dilation", dilation, 1, geometry.MAX_WINDOW)
    window = geometry.window((x.shape[1], x.shape[2]), kernel, steps, padding, apart)
    height, width = window.output_size(x.shape[1], x.shape[2])
    return window, geometry.check_plane("padding", height, width, channels)


def _fold(
    head: list[Planned],
    prelu: Any,
    chain: Any,
    rule: Rule | None,
    accumulators: AccumulatorRange,
    plane: tuple[int, ...],
) -> tuple[Rules, Pool | None]:
    """Rules, and the fused pool, of what stands between accumulator and bit."""
    steps = _steps(prelu, chain)
    if rule is not None:
        if not isinstance(rule, Rule):
            raise InvalidArgument("bad-argument", f"`rule` is {rule!r}, expected a cbin_nn.rule.Rule")
        if steps:
            raise InvalidArgument(
                "bad-argument",
                "`rule` is given together with `prelu` or `chain`, expected one or the other",
            )
        if rule.shape not in (plane[-1:], plane):
            shapes = " or ".join(str(list(shape)) for shape in dict.fromkeys((plane[-1:], plane)))
            raise InvalidArgument(
                "bad-shape",
                f"`rule` has shape {list(rule.shape)}, expected {shapes}, one a channel or an element",
            )
        return rule.to_rules(), None
    if not accumulators.fits:
        raise InvalidArgument("overflow", "`weights` make accumulators beyond 32 bits, expected fewer taps")
    pools = [i for i, step in enumerate(steps) if isinstance(step, MaxPool)]
    if len(pools) > 1 or (pools and len(plane) != 3):
        limit = "at most one" if len(plane) == 3 else "none after a dense layer"
        raise InvalidArgument("too-many-pools", f"`chain` holds {len(pools)} MaxPools, expected {limit}")
    before = steps[: pools[0]] if pools else steps
    first = [*head, *_planned(before, plane)]
    try:
        if not pools:
            return fold_sign(first, accumulators, plane)[0], None
        pool = steps[pools[0]]
        assert isinstance(pool, MaxPool)
        window = pool.window(plane[0], plane[1])
        pooled = (*window.output_size(plane[0], plane[1]), plane[2])
        second = _planned(steps[pools[0] + 1 :], pooled)
        found = fold_pool(first, second, window, accumulators, plane, pooled)
    except r.TooManyIntervals as error:
        raise too_many("chain", error, plane[-1]) from error
    except FoldError as error:
        raise InvalidArgument(error.slug, f"`chain`: {error.message}") from error
    return found.rule, Pool(window, found.veto, found.invert)


def _steps(prelu: Any, chain: Any) -> tuple[Step, ...]:
    steps = check_steps("chain", chain)
    if prelu is None:
        return steps
    if isinstance(prelu, PReLU):
        return (prelu, *steps)
    return (PReLU(parameter("prelu", prelu)), *steps)


def _planned(steps: Sequence[Step], plane: tuple[int, ...]) -> list[Planned]:
    for step in steps:
        check_shapes(step, plane)
    return [step.plan() for step in steps if not isinstance(step, MaxPool)]


def _first(_: _Call, outputs: list[Array]) -> Words:
    return cast("Words", outputs[0])


def _flat(_: _Call, outputs: list[Array]) -> Words:
    """Packed outputs `[N, words]` of a dense layer."""
    count, _, _, words = outputs[0].shape
    return cast("Words", outputs[0].reshape(count, words))


def _joined(call: _Call, outputs: list[Array]) -> Words:
    """The groups of a convolution side by side."""
    if len(outputs) == 1:
        return cast("Words", outputs[0])
    filters = [op.weights.shape[0] for op in call.operators if isinstance(op, BBConv2D)]
    if filters[0] % 32 == 0:
        return cast("Words", np.concatenate(outputs, axis=-1))
    signs = [unpack(output, count) for output, count in zip(outputs, filters, strict=True)]
    return pack(np.concatenate(signs, axis=-1))


# ------------------------------------------------------------------------------------------------
# 8-bit inputs


def _scalar(argument: str, value: Any) -> Fraction:
    """One number, or equal numbers, as the rational value of its float32."""
    array = parameter(argument, value)
    if np.any(array != array.flat[0]):
        raise InvalidArgument(
            "bad-argument",
            f"`{argument}` has different values, expected one for all channels",
        )
    return Fraction(float(array.flat[0]))


def _bytes_conv(
    kind: Literal["qbconv2d", "qqconv2d"],
    x: Any,
    weights: Any,
    strides: Any,
    padding: Any,
    dilation: Any,
    scales: tuple[Any, Any, Any],
    fold: tuple[Any, Any, Rule | None],
    kernel: str,
    threads: int | None,
) -> _Call:
    """What qbconv2d and qqconv2d share; `scales` are the input's scale and offset, and the weights' scale."""
    _kernel(kernel, threads)
    layout = "[output channels, height, width, input channels]"
    signs = kind == "qbconv2d"
    weights = _weights(weights, layout, (4,), signs=signs)
    filters, rows, columns, channels = weights.shape
    array = geometry.array("x", x)
    if array.dtype not in (np.uint8, np.int8):
        raise InvalidArgument(
            "bad-dtype", f"`x` is {array.dtype}, expected uint8 or int8 [N, H, W, {channels}]"
        )
    if array.ndim != 4 or array.shape[3] != channels:
        raise InvalidArgument(
            "bad-shape",
            f"`x` has shape {list(array.shape)}, expected [N, H, W, {channels}]: the input channels of "
            f"`weights` {list(weights.shape)}",
        )
    shape = geometry.check_plane("x", *array.shape[1:])
    taps = _taps(weights, (rows, columns), channels)
    window, plane = _sliding(array, taps, strides, padding, dilation, filters)
    scale, offset = _scalar("input_scale", scales[0]), _scalar("input_offset", scales[1])
    signed = array.dtype == np.int8
    try:
        mul, add, factor = integer_input(scale, offset, *((-128, 127) if signed else (0, 255)))
    except FoldError as error:
        raise InvalidArgument(error.slug, f"`input_scale` and `input_offset`: {error.message}") from error
    if signed:  # q = u - 128 with u the byte that the kernel sees
        array, add = array.view(np.uint8) ^ 0x80, add - 128 * mul
    flat = weights.reshape(filters, -1)
    # The kernels' own bound, which holds for partial sums as well.
    if (255 * mul + abs(add)) * (1 if signs else 128) * flat.shape[1] > r.INT32_MAX:
        raise InvalidArgument(
            "overflow",
            f"`weights` has shape {list(weights.shape)}: its {flat.shape[1]} products of {mul}*q{add:+d} "
            "a result do not fit a 32-bit accumulator, expected fewer taps or a simpler `input_offset`",
        )
    head = []
    if factor != 1:
        head.append(Planned(kind, "linear", (factor, Fraction(0))))
    if scales[2] is not None:
        weight_scale = parameter("weight_scale", scales[2])
        if weight_scale.shape not in ((), (filters,)):
            raise InvalidArgument(
                "bad-shape",
                f"`weight_scale` has shape {list(weight_scale.shape)}, expected one number or [{filters}]",
            )
        head.append(Planned(kind, "linear", (weight_scale, Fraction(0))))
    accumulators = AccumulatorRange.of_bytes(flat, mul, add, zero_padded=any(window.padding))
    rules, pool = _fold(head, *fold, accumulators, plane)
    operator = (QBConv2D if signs else QQConv2D)(kind, "x", "y", weights, window, rules, pool, mul, add)
    return _Call([operator], [np.ascontiguousarray(array)], shape, False, kernel, threads)


@_family(_first)
def qbconv2d(
    x: npt.ArrayLike,
    weights: npt.ArrayLike,
    *,
    strides: int | tuple[int, int] = (1, 1),
    padding: Padding = "valid",
    dilation: int | tuple[int, int] = (1, 1),
    input_scale: float = 1.0,
    input_offset: float = 0.0,
    prelu: Any = None,
    chain: Chain = (),
    rule: Rule | None = None,
    kernel: Kernel = "optimized",
    threads: int | None = None,
) -> _Call:
    """Convolution of 8-bit inputs with weights of +-1, to bits: the first layer of a network.

    `acc = sum over taps inside of w * (mul*q + add)`, where `mul*q + add` are the integers proportional to
    `input_scale*q + input_offset` (`2 q - 255` for 1/127.5 and -1). Padding is the zero of the *meaning*.

    Args:
        x: uint8 or int8 `[N, H, W, C]`.
        weights: int8 -1 and +1, `[O, kh, kw, C]`.
        strides: steps, one number or (vertical, horizontal).
        padding: "valid", "same" (TensorFlow's rule), pixels on all sides, or ((top, bottom), (left, right)).
        dilation: distance between taps, one number or (vertical, horizontal).
        input_scale: real = input_scale * q + input_offset, read as float32.
        input_offset: see `input_scale`; `input_offset / input_scale` is snapped to a simple fraction.
        prelu: slopes of a PReLU on the scaled accumulator: one number, `(O,)`, or `(H', W', O)`.
        chain: steps of `cbin_nn.rule` after it, at most one MaxPool among them.
        rule: instead of prelu and chain, a `Rule` on the integer `acc`.
        kernel: "optimized" or "reference"; the same bits.
        threads: threads to use; None is one a core.

    Returns:
        packed uint32 `[N, H', W', ceil(O / 32)]`.

    Raises:
        InvalidArgument: naming the argument, what it got and what was expected.

    >>> x = np.array([[[[0, 255]]], [[[127, 128]]]], np.uint8)          # two images of one pixel
    >>> w = np.array([[[[1, 1]]], [[[1, -1]]]], np.int8)
    >>> unpack(qbconv2d(x, w, input_scale=1 / 127.5, input_offset=-1), 2).reshape(2, 2).tolist()
    [[1, -1], [1, -1]]
    """
    scales = (input_scale, input_offset, None)
    fold = (prelu, chain, rule)
    return _bytes_conv("qbconv2d", x, weights, strides, padding, dilation, scales, fold, kernel, threads)


@_family(_first)
def qqconv2d(
    x: npt.ArrayLike,
    weights: npt.ArrayLike,
    *,
    weight_scale: npt.ArrayLike = 1.0,
    strides: int | tuple[int, int] = (1, 1),
    padding: Padding = "valid",
    dilation: int | tuple[int, int] = (1, 1),
    input_scale: float = 1.0,
    input_offset: float = 0.0,
    prelu: Any = None,
    chain: Chain = (),
    rule: Rule | None = None,
    kernel: Kernel = "optimized",
    threads: int | None = None,
) -> _Call:
    """Convolution of 8-bit inputs with 8-bit weights, to bits.

    As `qbconv2d` with `w` any int8; a real weight is `weight_scale * w`.

    Args:
        x: uint8 or int8 `[N, H, W, C]`.
        weights: int8 `[O, kh, kw, C]`.
        weight_scale: worth of one step of a weight, one number or `(O,)`, read as float32.
        strides: see `qbconv2d`, as all that follow.
        padding: see `qbconv2d`.
        dilation: see `qbconv2d`.
        input_scale: see `qbconv2d`.
        input_offset: see `qbconv2d`.
        prelu: see `qbconv2d`.
        chain: see `qbconv2d`.
        rule: see `qbconv2d`.
        kernel: see `qbconv2d`.
        threads: see `qbconv2d`.

    Returns:
        packed uint32 `[N, H', W', ceil(O / 32)]`.

    Raises:
        InvalidArgument: naming the argument, what it got and what was expected.

    >>> x, w = np.full((1, 1, 1, 2), -3, np.int8), np.array([[[[5, -7]]]], np.int8)
    >>> from cbin_nn.rule import Bias
    >>> unpack(qqconv2d(x, w, weight_scale=0.5, chain=Bias(-3.25)), 1).item()    # 0.5 * 6 - 3.25
    -1
    """
    scales = (input_scale, input_offset, weight_scale)
    fold = (prelu, chain, rule)
    return _bytes_conv("qqconv2d", x, weights, strides, padding, dilation, scales, fold, kernel, threads)


# ------------------------------------------------------------------------------------------------
# packed inputs


def _one_padding(pad_values: Any) -> bool:
    return geometry.integer("pad_values", pad_values, 0, 1, "0 (taps outside count nothing) or 1 (+1)") == 1


@_family(_joined)
def bbconv2d(
    x: npt.ArrayLike,
    weights: npt.ArrayLike,
    *,
    strides: int | tuple[int, int] = (1, 1),
    padding: Padding = "valid",
    dilation: int | tuple[int, int] = (1, 1),
    groups: int = 1,
    pad_values: Literal[0, 1] = 0,
    prelu: Any = None,
    chain: Chain = (),
    rule: Rule | None = None,
    kernel: Kernel = "optimized",
    threads: int | None = None,
) -> _Call:
    """Convolution of bits with weights of +-1, to bits: `acc = sum over taps of w * x`.

    Args:
        x: packed uint32 `[N, H, W, ceil(C / 32)]`.
        weights: int8 -1 and +1, `[O, kh, kw, C / groups]`.
        strides: see `qbconv2d`.
        padding: see `qbconv2d`.
        dilation: see `qbconv2d`.
        groups: parts of the channels that are convolved apart: 1, or a divisor of O for which C / groups is a
            multiple of 32, or groups = C = O, which is `bbdepthwiseconv2d`.
        pad_values: 0, taps outside count nothing (Keras, PyTorch); 1, they are +1 (Larq's `pad_values=1`).
        prelu: see `qbconv2d`.
        chain: see `qbconv2d`.
        rule: see `qbconv2d`.
        kernel: see `qbconv2d`.
        threads: see `qbconv2d`.

    Returns:
        packed uint32 `[N, H', W', ceil(O / 32)]`.

    Raises:
        InvalidArgument: naming the argument, what it got and what was expected.

    >>> x = pack(np.full((1, 5, 5, 40), -1))
    >>> weights = np.ones((2, 3, 3, 40), np.int8)
    >>> turned = Rule.from_batchnorm(gamma=[1, -1], beta=[0, 0], mean=[-300, -300], variance=[1, 1])
    >>> unpack(bbconv2d(x, weights, rule=turned), 2)[0, 0, 0].tolist()          # acc = -360
    [-1, 1]
    """
    _kernel(kernel, threads)
    weights = _weights(weights, "[output channels, height, width, input channels]", (4,), signs=True)
    filters, rows, columns, depth = weights.shape
    parts = geometry.integer("groups", groups, 1, geometry.MAX_DIMENSION)
    one = _one_padding(pad_values)
    if parts > 1 and depth == 1:
        if filters != parts:
            raise InvalidArgument(
                "bad-groups",
                f"`groups` is {parts} with {filters} filters of one channel, expected as many filters as "
                "channels: a channel multiplier is not supported",
            )
        filter_of = np.ascontiguousarray(weights[:, :, :, 0].transpose(1, 2, 0))
        fold = (prelu, chain, rule)
        return _depthwise(x, filter_of, strides, padding, dilation, one, fold, kernel, threads)
    if parts > 1 and (depth % 32 or filters % parts):
        raise InvalidArgument(
            "bad-groups",
            f"`groups` is {parts} with `weights` {list(weights.shape)}, expected a divisor of the "
            f"{filters} output "
            "channels and a multiple of 32 input channels a group (whole words), or one channel a group "
            "(bbdepthwiseconv2d)",
        )
    words = _packed(x, depth * parts)
    taps = _taps(weights, (rows, columns), depth)
    window, plane = _sliding(words, taps, strides, padding, dilation, filters)
    zeros = any(window.padding) and not one
    found = AccumulatorRange.of_bits(filters, rows * columns * depth, depth, zero_padded=zeros)
    rules, pool = _fold([], prelu, chain, rule, found, plane)
    operators: list[Operator] = []
    batches = []
    for part in range(parts):
        own = slice(part * filters // parts, (part + 1) * filters // parts)
        operators.append(
            BBConv2D(
                "bbconv2d",
                "x",
                "y",
                np.ascontiguousarray(weights[own]),
                window,
                _part(rules, own),
                _pool_part(pool, own),
                one,
            )
        )
        width = words.shape[3] // parts
        batches.append(np.ascontiguousarray(words[..., part * width : (part + 1) * width]))
    shape = (words.shape[1], words.shape[2], depth)
    return _Call(operators, batches, shape, True, kernel, threads)


def _part(rules: Rules, own: slice) -> Rules:
    """The rules of some channels."""
    return Rules(
        np.ascontiguousarray(rules.lo[..., own]),
        np.ascontiguousarray(rules.hi[..., own]),
        np.ascontiguousarray(rules.flip[..., own]),
        rules.grid,
    )


def _pool_part(pool: Pool | None, own: slice) -> Pool | None:
    if pool is None:
        return None
    return replace(
        pool,
        veto=None if pool.veto is None else _part(pool.veto, own),
        invert=None if pool.invert is None else np.ascontiguousarray(pool.invert[own]),
    )


@_family(_first)
def bbpointwiseconv2d(
    x: npt.ArrayLike,
    weights: npt.ArrayLike,
    *,
    strides: int | tuple[int, int] = (1, 1),
    prelu: Any = None,
    chain: Chain = (),
    rule: Rule | None = None,
    kernel: Kernel = "optimized",
    threads: int | None = None,
) -> _Call:
    """1 x 1 convolution of bits with weights of +-1, to bits.

    Args:
        x: packed uint32 `[N, H, W, ceil(C / 32)]`.
        weights: int8 -1 and +1, `[O, C]` or `[O, 1, 1, C]`.
        strides: see `qbconv2d`.
        prelu: see `qbconv2d`.
        chain: see `qbconv2d`.
        rule: see `qbconv2d`.
        kernel: see `qbconv2d`.
        threads: see `qbconv2d`.

    Returns:
        packed uint32 `[N, H', W', ceil(O / 32)]`.

    Raises:
        InvalidArgument: naming the argument, what it got and what was expected.

    >>> x = pack([[[[1, -1, 1]]]])
    >>> unpack(bbpointwiseconv2d(x, np.array([[1, -1, 1], [-1, 1, 1]], np.int8)), 2).tolist()
    [[[[1, -1]]]]
    """
    _kernel(kernel, threads)
    layout = "[output channels, input channels] or [output channels, 1, 1, input channels]"
    weights = _weights(weights, layout, (2, 4), signs=True)
    if weights.ndim == 4 and weights.shape[1:3] != (1, 1):
        raise InvalidArgument("bad-shape", f"`weights` has shape {list(weights.shape)}, expected {layout}")
    filters, channels = weights.shape[0], weights.shape[-1]
    weights = weights.reshape(filters, 1, 1, channels)
    words = _packed(x, channels)
    window, plane = _sliding(words, _taps(weights, (1, 1), channels), strides, "valid", 1, filters)
    found = AccumulatorRange.of_bits(filters, channels, channels, zero_padded=False)
    rules, pool = _fold([], prelu, chain, rule, found, plane)
    operator = BBPointwiseConv2D("bbpointwiseconv2d", "x", "y", weights, window, rules, pool)
    return _Call([operator], [words], (*words.shape[1:3], channels), True, kernel, threads)


def _depthwise(
    x: Any,
    weights: Signs,
    strides: Any,
    padding: Any,
    dilation: Any,
    one: bool,
    fold: tuple[Any, Any, Rule | None],
    kernel: str,
    threads: int | None,
) -> _Call:
    rows, columns, channels = weights.shape
    words = _packed(x, channels)
    taps = _taps(weights, (rows, columns), channels)
    window, plane = _sliding(words, taps, strides, padding, dilation, channels)
    zeros = any(window.padding) and not one
    found = AccumulatorRange.of_bits(channels, rows * columns, 1, zero_padded=zeros)
    rules, pool = _fold([], *fold, found, plane)
    operator = BBDepthwiseConv2D("bbdepthwiseconv2d", "x", "y", weights, window, rules, pool, one)
    return _Call([operator], [words], (*words.shape[1:3], channels), True, kernel, threads)


@_family(_first)
def bbdepthwiseconv2d(
    x: npt.ArrayLike,
    weights: npt.ArrayLike,
    *,
    strides: int | tuple[int, int] = (1, 1),
    padding: Padding = "valid",
    dilation: int | tuple[int, int] = (1, 1),
    pad_values: Literal[0, 1] = 0,
    prelu: Any = None,
    chain: Chain = (),
    rule: Rule | None = None,
    kernel: Kernel = "optimized",
    threads: int | None = None,
) -> _Call:
    """Depthwise convolution of bits, one filter of +-1 a channel, to bits.

    Args:
        x: packed uint32 `[N, H, W, ceil(C / 32)]`.
        weights: int8 -1 and +1, `[kh, kw, C]`.
        strides: see `qbconv2d`.
        padding: see `qbconv2d`.
        dilation: see `qbconv2d`.
        pad_values: see `bbconv2d`.
        prelu: see `qbconv2d`.
        chain: see `qbconv2d`.
        rule: see `qbconv2d`.
        kernel: see `qbconv2d`.
        threads: see `qbconv2d`.

    Returns:
        packed uint32 `[N, H', W', ceil(C / 32)]`.

    Raises:
        InvalidArgument: naming the argument, what it got and what was expected.

    >>> x = pack(np.ones((1, 3, 3, 2)))
    >>> weights = np.stack([np.ones((3, 3)), -np.ones((3, 3))], axis=-1).astype(np.int8)
    >>> unpack(bbdepthwiseconv2d(x, weights), 2).tolist()
    [[[[1, -1]]]]
    """
    _kernel(kernel, threads)
    weights = _weights(weights, "[height, width, channels]", (3,), signs=True)
    fold = (prelu, chain, rule)
    one = _one_padding(pad_values)
    return _depthwise(x, weights, strides, padding, dilation, one, fold, kernel, threads)


@_family(_first)
def bmaxpool2d(
    x: npt.ArrayLike,
    channels: int,
    size: int | tuple[int, int],
    strides: int | tuple[int, int] | None = None,
    padding: Padding = "valid",
    use_and: npt.ArrayLike | None = None,
    *,
    kernel: Kernel = "optimized",
    threads: int | None = None,
) -> _Call:
    """Max-pool of bits: the OR of a window, or its AND where what follows the pool is falling (gamma < 0).

    Args:
        x: packed uint32 `[N, H, W, ceil(channels / 32)]`.
        channels: number of true channels.
        size: rows and columns of the window, one number for both.
        strides: steps; None is `size`.
        padding: see `qbconv2d`; padding is skipped, and no window may lie wholly in it.
        use_and: bool, one for all channels or `(channels,)`; None is OR everywhere.
        kernel: see `qbconv2d`.
        threads: see `qbconv2d`.

    Returns:
        packed uint32 `[N, H', W', ceil(channels / 32)]`.

    Raises:
        InvalidArgument: naming the argument, what it got and what was expected.

    >>> x = pack([[[[1, 1], [-1, 1]], [[-1, 1], [-1, -1]]]])
    >>> unpack(bmaxpool2d(x, 2, 2), 2).tolist(), unpack(bmaxpool2d(x, 2, 2, use_and=True), 2).tolist()
    ([[[[1, 1]]]], [[[[-1, -1]]]])
    """
    _kernel(kernel, threads)
    count = geometry.integer("channels", channels, 1, geometry.MAX_DIMENSION)
    words = _packed(x, count)
    window = MaxPool(size, strides, padding).window(words.shape[1], words.shape[2])
    flags: npt.NDArray[np.bool_] | None = None
    if use_and is not None:
        flags = geometry.array("use_and", use_and)
        if flags.dtype != np.bool_ or flags.shape not in ((), (count,)):
            raise InvalidArgument(
                "bad-shape" if flags.dtype == np.bool_ else "bad-dtype",
                f"`use_and` is {flags.dtype} {list(flags.shape)}, expected one bool or bool [{count}]",
            )
        flags = np.ascontiguousarray(np.broadcast_to(flags, (count,)))
    operator = BMaxPool2D("bmaxpool2d", "x", "y", window, flags)
    return _Call([operator], [words], (*words.shape[1:3], count), True, kernel, threads)


# ------------------------------------------------------------------------------------------------
# fully connected


def _dense(x: Any, weights: Any, *, signs: bool = True) -> tuple[Words, Signs, tuple[int, int, int]]:
    """Packed input [N, H, W, words], weights [units, features] and the input's shape."""
    numbers = _weights(weights, "[units, features]", (2,), signs=signs)
    units, features = numbers.shape
    array = geometry.array("x", x)
    if array.dtype != np.uint32:
        check_words("x", array, None, features)  # raises, with the hint to pack
    if array.ndim == 2:
        array = array[:, None, None, :]
        height = width = 1
    elif array.ndim == 4 and array.shape[1] and array.shape[2]:
        height, width = array.shape[1:3]
    else:
        raise InvalidArgument(
            "bad-shape",
            f"`x` has shape {list(array.shape)}, expected [N, {geometry.words(features)}] or [N, H, W, "
            "words]",
        )
    if features % (height * width):
        raise InvalidArgument(
            "bad-shape",
            f"`x` has shape {list(array.shape)}: {height} x {width} pixels do not divide the {features} "
            "features "
            f"of `weights` {list(numbers.shape)}, expected [N, H, W, words] with H * W * channels = "
            f"{features}",
        )
    channels = features // (height * width)
    words = _packed(array, channels)
    geometry.check_plane("weights", 1, 1, units)
    size = units * height * width * geometry.words(channels) * 32
    if size > geometry.MAX_ELEMENTS:
        raise InvalidArgument(
            "too-large",
            f"`weights` has shape {list(numbers.shape)}, {size} elements in whole words, expected at most "
            f"{geometry.MAX_ELEMENTS}",
        )
    return words, numbers, (height, width, channels)


@_family(_flat)
def bbfc(
    x: npt.ArrayLike,
    weights: npt.ArrayLike,
    *,
    prelu: Any = None,
    chain: Chain = (),
    rule: Rule | None = None,
    kernel: Kernel = "optimized",
    threads: int | None = None,
) -> _Call:
    """Fully connected layer of bits with weights of +-1, to bits.

    Args:
        x: packed uint32 `[N, words]`, or a plane `[N, H, W, words]`, flattened in HWC order.
        weights: int8 -1 and +1, `[units, features]`; features are true ones, H * W * C of a plane.
        prelu: see `qbconv2d`.
        chain: steps of `cbin_nn.rule`, without a MaxPool.
        rule: see `qbconv2d`.
        kernel: see `qbconv2d`.
        threads: see `qbconv2d`.

    Returns:
        packed uint32 `[N, ceil(units / 32)]`.

    Raises:
        InvalidArgument: naming the argument, what it got and what was expected.

    >>> weights = np.array([[1, 1, 1], [-1, -1, -1]], np.int8)
    >>> unpack(bbfc(pack([[1, -1, 1]]), weights), 2).tolist()
    [[1, -1]]
    """
    _kernel(kernel, threads)
    words, signs, shape = _dense(x, weights)
    units, features = signs.shape
    found = AccumulatorRange.of_bits(units, features, features, zero_padded=False)
    rules, _ = _fold([], prelu, chain, rule, found, (units,))
    return _Call([BBFC("bbfc", "x", "y", signs, rules)], [words], shape, True, kernel, threads)


def _integers(call: _Call, outputs: list[Array]) -> Any:
    """Integers, with their scale where it was asked for."""
    operator = call.operators[0]
    assert isinstance(operator, (BBQFC, BQQFC))
    if isinstance(call, _ScaledCall):
        return outputs[0], operator.requantization.scale
    return outputs[0]


@dataclass(frozen=True)
class _ScaledCall(_Call):
    """A call of bbqfc or bqqfc that returns the scale too."""


@_family(_integers)
def bbqfc(
    x: npt.ArrayLike,
    weights: npt.ArrayLike,
    *,
    prelu: Any = None,
    chain: Chain = (),
    output: Literal["i8", "i16", "i32"] = "i32",
    scale: float | None = None,
    return_scale: bool = False,
    kernel: Kernel = "optimized",
    threads: int | None = None,
) -> _Call:
    """Fully connected layer of bits with weights of +-1, to integers: the last layer of a network.

    `q = saturate(round_half_even(logit / scale))`, where logit is the chain's value at `acc`; see
    `cbin_nn.requantize` for the fixed point, and where it is exact.

    Args:
        x: packed uint32 `[N, words]`, or a plane `[N, H, W, words]`, flattened in HWC order.
        weights: int8 -1 and +1, `[units, features]`; features are true ones, H * W * C of a plane.
        prelu: slopes of a PReLU on the accumulator, one number or `(units,)`.
        chain: steps of `cbin_nn.rule`, without a MaxPool and with one bend at most.
        output: type of the result.
        scale: worth of one output step, above 0, read as float32; what does not fit saturates. None takes the
            scale at which logits are whole numbers where there is one, else the smallest at which none
            saturates.
        return_scale: return (integers, scale).
        kernel: see `qbconv2d`.
        threads: see `qbconv2d`.

    Returns:
        int8, int16 or int32 `[N, units]`; with `return_scale` a tuple of it and the scale, a float.

    Raises:
        InvalidArgument: naming the argument, what it got and what was expected.

    >>> x, weights = pack([[1, 1, 1], [1, 1, -1]]), np.array([[1, 1, 1]], np.int8)      # acc = 3, 1
    >>> bbqfc(x, weights, scale=2).tolist()                                     # 1.5 and 0.5: ties to even
    [[2], [0]]
    >>> from cbin_nn.rule import Scale
    >>> bbqfc(x, weights, chain=Scale(0.25), output="i8", return_scale=True)
    (array([[3],
           [1]], dtype=int8), 0.25)
    """
    words, signs, shape = _dense(x, weights)
    units, features = signs.shape
    stated = _head(kernel, threads, output, scale, return_scale)
    steps = _head_steps(prelu, chain)
    built = [planned.build((units,)) for planned in _planned(steps, (units,))]
    try:
        found, _ = requantize(built, features, 2, units, output, stated)
    except FoldError as error:
        raise InvalidArgument(error.slug, f"`chain`: {error.message}") from error
    operators: list[Operator] = [BBQFC("bbqfc", "x", "y", signs, found)]
    made = _ScaledCall if return_scale else _Call
    return made(operators, [words], shape, True, kernel, threads)


@_family(_integers)
def bqqfc(
    x: npt.ArrayLike,
    weights: npt.ArrayLike,
    *,
    weight_scale: Any = 1.0,
    prelu: Any = None,
    chain: Chain = (),
    output: Literal["i8", "i16", "i32"] = "i32",
    scale: float | None = None,
    return_scale: bool = False,
    kernel: Kernel = "optimized",
    threads: int | None = None,
) -> _Call:
    """Fully connected layer of bits with 8-bit weights, to integers: a last layer with real weights.

    As `bbqfc`, with `acc = sum of w * x` over int8 weights and x = -1 or +1.

    Args:
        x: packed uint32 `[N, words]`, or a plane `[N, H, W, words]`, flattened in HWC order.
        weights: int8 numbers `[units, features]`; features are true ones, H * W * C of a plane.
        weight_scale: the real weight is `weight_scale * w`; one number or `(units,)`, read as float32.
        prelu: see `bbqfc`.
        chain: see `bbqfc`.
        output: see `bbqfc`.
        scale: see `bbqfc`.
        return_scale: see `bbqfc`.
        kernel: see `qbconv2d`.
        threads: see `qbconv2d`.

    Returns:
        int8, int16 or int32 `[N, units]`; with `return_scale` a tuple of it and the scale, a float.

    Raises:
        InvalidArgument: naming the argument, what it got and what was expected.

    >>> x, weights = pack([[1, 1, 1], [1, 1, -1]]), np.array([[10, -3, 5]], np.int8)     # acc = 12, 2
    >>> bqqfc(x, weights).tolist()
    [[12], [2]]
    >>> bqqfc(x, weights, weight_scale=0.25, return_scale=True)
    (array([[12],
           [ 2]], dtype=int32), 0.25)
    """
    words, numbers, shape = _dense(x, weights, signs=False)
    units, _ = numbers.shape
    stated = _head(kernel, threads, output, scale, return_scale)
    steps = _head_steps(prelu, chain)
    factor = parameter("weight_scale", weight_scale)
    if factor.shape not in ((), (units,)):
        raise InvalidArgument(
            "bad-shape",
            f"`weight_scale` has shape {list(factor.shape)}, expected one number or [{units}]",
        )
    largest = int(np.abs(numbers.astype(np.int64)).sum(axis=1).max())
    built: list[r.Step] = [r.Linear("weight_scale", np.broadcast_to(factor, (units,)).copy(), Fraction(0))]
    built += [planned.build((units,)) for planned in _planned(steps, (units,))]
    try:
        found, _ = requantize(built, max(largest, 1), 1, units, output, stated)
    except FoldError as error:
        raise InvalidArgument(error.slug, f"`chain`: {error.message}") from error
    operators: list[Operator] = [BQQFC("bqqfc", "x", "y", numbers, found)]
    made = _ScaledCall if return_scale else _Call
    return made(operators, [words], shape, True, kernel, threads)


def _head(kernel: str, threads: int | None, output: str, scale: Any, return_scale: Any) -> Fraction | None:
    """Checks what both heads take; the stated scale, or None."""
    _kernel(kernel, threads)
    if output not in ("i8", "i16", "i32"):
        raise InvalidArgument("bad-output", f'`output` is {output!r}, expected "i8", "i16" or "i32"')
    if not isinstance(return_scale, (bool, np.bool_)):
        raise InvalidArgument("bad-argument", f"`return_scale` is {return_scale!r}, expected True or False")
    if scale is None:
        return None
    stated = _scalar("scale", scale)
    if stated < Fraction(2) ** -126:
        raise InvalidArgument("out-of-range", f"`scale` is {scale!r}, expected a normal float32 above 0")
    return stated


def _head_steps(prelu: Any, chain: Any) -> tuple[Step, ...]:
    """The chain after a last layer: no pool."""
    steps = _steps(prelu, chain)
    if any(isinstance(step, MaxPool) for step in steps):
        raise InvalidArgument("too-many-pools", "`chain` holds a MaxPool, expected none after a dense layer")
    return steps
