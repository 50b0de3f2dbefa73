"""Golden vectors: one-operator models with inputs and outputs, for Rust, Python and the emulated board.

    python tests/golden/make_golden.py

writes, beside this file, `NAME.cbn` (the model), `NAME.in` and `NAME.out` (images and outputs, one after the
other, little-endian, as a model reads and writes them) and `index.json`. Outputs come from the oracle
(`tests/properties/oracle.py`), not from the kernels. Every chain is dyadic, so that the oracle decides all
bits, ties included. `tests/test_golden.py` makes them again and compares.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

from cbin_nn.operators import BBConv2D, QBConv2D, Requantization, Window  # noqa: E402
from properties import cases, oracle  # noqa: E402
from properties.cases import Case, Draw  # noqa: E402
from properties.oracle import Array, BatchNorm, Bias, PReLU, Real, Scale, Step  # noqa: E402

#: Vector i is drawn from SEED + i.
SEED = 20260
EPSILON = np.float32(2.0**-10)


@dataclass(frozen=True)
class Vector:
    """One model with its inputs and expected outputs."""

    name: str
    model: bytes
    inputs: bytes
    outputs: bytes
    index: dict[str, Any]


# ------------------------------------------------------------------------------------------------
# chains: functions of a source and the shape of their parameters

Chain = Callable[[Draw, tuple[int, ...]], list[Step]]


def norm(source: Draw, shape: tuple[int, ...], gammas: list[float]) -> BatchNorm:
    variance = source.among([0.25, 1, 4], shape) - EPSILON
    mean, beta = source.among([-1, 0, 0.5, 2], shape), source.among([-1, 0, 0.5], shape)
    return BatchNorm(source.among(gammas, shape), beta, mean, variance, EPSILON)


def any_sign(source: Draw, shape: tuple[int, ...]) -> list[Step]:
    """BatchNorm with gamma of either sign and, in a few channels, 0."""
    return [norm(source, shape, [-2, -1, -0.5, 0, 0.5, 1, 1, 2])]


def rising(source: Draw, shape: tuple[int, ...]) -> list[Step]:
    return [norm(source, shape, [0.5, 1, 2])]


def falling(source: Draw, shape: tuple[int, ...]) -> list[Step]:
    return [norm(source, shape, [-2, -1, -0.5])]


def mild(source: Draw, shape: tuple[int, ...]) -> list[Step]:
    """PReLU with slopes of 0 and above, then BatchNorm."""
    return [PReLU(source.among([0, 0.25, 0.5, 2], shape)), norm(source, shape, [-1, 0.5, 1])]


def two_sided(source: Draw, shape: tuple[int, ...]) -> list[Step]:
    """BatchNorm, PReLU with negative slopes, scale of either sign, bias: intervals and their complements."""
    steps = [norm(source, shape, [-1, 1, 2]), PReLU(source.among([-2, -1, -0.5], shape))]
    return [*steps, Scale(source.among([-1, -0.5, 0.5, 1], shape)), Bias(source.among([-1, 1], shape))]


def bias_first(source: Draw, shape: tuple[int, ...]) -> list[Step]:
    return [
        Bias(source.among([-1, 0, 2], shape)),
        Scale(source.among([-0.5, 2], shape)),
        *mild(source, shape),
    ]


def element_bias(source: Draw, shape: tuple[int, ...]) -> list[Step]:
    return [Bias(source.among([-2, -1, 0, 1, 2], shape))]


def element_prelu(source: Draw, shape: tuple[int, ...]) -> list[Step]:
    """A slope an element (Keras' default PReLU) and an offset behind it."""
    return [PReLU(source.among([-1, -0.5, 0, 0.5, 1], shape)), Bias(source.among([-2], shape[-1:]))]


# ------------------------------------------------------------------------------------------------
# cases


def signs(source: Draw, shape: tuple[int, ...]) -> Array:
    return (2 * source.integers(0, 2, shape) - 1).astype(np.int8)


def aim(source: Draw, steps: list[Step], y: Real, pool: Window | None = None) -> None:
    """Make the chain vanish at values that occur, up to its last offset: every vector has ties."""
    last = cases.last_offset(steps)
    assert last is not None
    values = oracle.chain(steps[:last], y)
    values = values if pool is None else oracle.maximum(values, pool)
    shape = cases.offset_shape(steps[last])
    ordered = np.sort(values.value if len(shape) == 3 else values.value.reshape(-1, shape[-1]), axis=0)
    # Neither side of the threshold is rare.
    rank = source.integers(len(ordered) // 3, len(ordered), shape)
    target = np.take_along_axis(ordered, rank[None], axis=0)[0]
    steps[last] = cases.vanishing(steps[last], target, by_beta=source.chance(0.5))


def convolution(
    source: Draw,
    family: str,
    shape: tuple[int, int, int],
    filters: int,
    window: Window,
    before: Chain | None = None,
    after: Chain | None = None,
    *,
    pool: Window | None = None,
    affine: tuple[int, int] = (1, 0),
    one_padding: bool = False,
    per_element: bool = False,
    channel_adds: list[int] | None = None,
    wide: bool = False,
) -> Case:
    as_bytes = family in ("qbconv2d", "qqconv2d")
    images = source.integers(0, 256, (4, *shape))
    # Two of four images take their extremes only: accumulators far out.
    images[2:] = np.where(images[2:] & 1, 255, 0)
    if family == "bbdepthwiseconv2d":
        weights = signs(source, (*window.kernel, shape[-1]))
    elif family == "qqconv2d":
        most, dtype = (2000, np.int16) if wide else (128, np.int8)
        weights = source.integers(-most, most, (filters, *window.kernel, shape[-1])).astype(dtype)
    else:
        weights = signs(source, (filters, *window.kernel, shape[-1]))
    images = images.astype(np.uint8) if as_bytes else images >= 128
    case = Case(-1, family, images, weights, window, *affine, one_padding=one_padding)
    if channel_adds is not None:
        case.channel_adds = np.array(channel_adds, np.int32)
    if pool is not None:
        case.pool, case.pool_window = "between", pool
    plane, out = cases.planes(case)
    y = Real.exactly(cases.accumulators(case))
    if before is not None:
        case.before = before(source, plane if per_element else plane[-1:])
        aim(source, case.before, y, pool if after is None else None)
        y = oracle.chain(case.before, y)
    if after is not None:
        case.after = after(source, out if per_element and before is None else out[-1:])
        aim(source, case.after, cases.pooled(case, y))
    return case


def max_pool(source: Draw, shape: tuple[int, int, int], window: Window, use_and: str) -> Case:
    bits = source.integers(0, 4, (4, *shape)) == 0
    case = Case(-1, "bmaxpool2d", bits, window=window)
    mixed = source.integers(0, 2, shape[-1:]) == 1
    case.use_and = {"or": None, "and": np.ones(shape[-1], bool), "mixed": mixed}[use_and]
    return case


def dense(source: Draw, shape: tuple[int, int, int], units: int, chain: Chain) -> Case:
    images = source.integers(0, 2, (8, *shape)) == 1
    case = Case(-1, "bbfc", images, signs(source, (units, int(np.prod(shape)))))
    case.before = chain(source, (units,))
    aim(source, case.before, Real.exactly(cases.accumulators(case)))
    return case


def integers(
    source: Draw, shape: tuple[int, int, int], units: int, dtype: Any, shift: int, family: str = "bbqfc"
) -> Case:
    """Units in turn: odd multiples of a half (ties), far beyond the type (saturation), a knee, anything."""
    features = int(np.prod(shape))
    images = source.integers(0, 2, (16, *shape)) == 1
    largest = oracle.RANGES[dtype][1]
    one = 1 << shift
    mul, add = np.zeros((2, units), np.int64), np.zeros((2, units), np.int64)
    for unit in range(units):
        style = unit % 4
        for row in range(2):
            if style == 0:
                mul[row, unit], add[row, unit] = one // 2 * (2 * source.below(5) - 3), one // 2
            elif style == 1:
                mul[row, unit] = (2 * row - 1) * largest * one // 8 + source.below(100)
                add[row, unit] = source.below(one)
            else:
                mul[row, unit] = largest * one // features // (2 + source.below(4))
                mul[row, unit] -= source.below(int(mul[row, unit]))
                add[row, unit] = source.below(2 * one * features) - one * features
        if style in (0, 3):
            mul[0, unit], add[0, unit] = mul[1, unit], add[1, unit]
    if family == "bqqfc":
        weights = source.integers(-128, 128, (units, features)).astype(np.int8)
        mul, add = mul // 64, add  # accumulators are wider
    else:
        weights = signs(source, (units, features))
    images[-1] = weights[1].reshape(shape) > 0
    images[-2] = weights[1].reshape(shape) < 0
    case = Case(-1, family, images, weights)
    # Knees are accumulators that occur.
    acc = cases.accumulators(case)[:, 0, 0]
    knee = acc[source.integers(0, len(acc), (units,)), np.arange(units)].astype(np.int32)
    case.requantization = Requantization(mul[1], add[1], mul[0], add[0], knee, shift, dtype, 1.0)
    return case


def same(kernel: int, stride: int = 1, dilation: int = 1) -> Window:
    pad = dilation * (kernel - 1) // 2
    return Window((kernel, kernel), (stride, stride), (dilation, dilation), (pad, pad, pad, pad))


HALVES = Window((2, 2), (2, 2))
OVERLAP = Window((3, 3), (2, 2), padding=(1, 1, 1, 1))
#: TensorFlow's `same` on an even side with stride 2: the odd pixel of padding is below and right.
SAME_STRIDE_2 = Window((3, 3), (2, 2), padding=(0, 0, 1, 1))
SIGNED = (2, -255)


def specifications() -> list[tuple[str, str, Callable[[Draw], Case]]]:
    """(name, what it shows, how to draw it)."""

    def conv(*arguments: Any, **options: Any) -> Callable[[Draw], Case]:
        return lambda source: convolution(source, *arguments, **options)

    return [
        (
            "qbconv2d_bn",
            "u8 as it is, gamma of either sign and 0",
            conv("qbconv2d", (6, 6, 3), 8, same(3), any_sign),
        ),
        (
            "qbconv2d_affine",
            "2q - 255: the border corrects for real zero",
            conv("qbconv2d", (6, 5, 3), 33, same(5), any_sign, affine=SIGNED),
        ),
        (
            "qbconv2d_prelu_veto",
            "2q - 255, pool before a negative PReLU: veto and invert",
            conv("qbconv2d", (8, 8, 3), 16, same(3), rising, two_sided, pool=HALVES, affine=SIGNED),
        ),
        (
            "qbconv2d_kernel11",
            "11 x 11 taps, wider than the plane",
            conv("qbconv2d", (7, 6, 1), 5, same(11), mild, affine=SIGNED),
        ),
        (
            "qqconv2d_bn",
            "8-bit weights from -128 to 127",
            conv("qqconv2d", (6, 6, 3), 8, same(3), any_sign),
        ),
        (
            "qqconv2d_affine_stride2",
            "2q - 255, stride 2, TensorFlow's same padding, two-sided rules",
            conv("qqconv2d", (8, 8, 3), 31, SAME_STRIDE_2, two_sided, affine=SIGNED),
        ),
        (
            "qqconv2d_pool_and",
            "pool before falling BatchNorm: AND",
            conv("qqconv2d", (6, 6, 4), 8, same(3), None, falling, pool=HALVES),
        ),
        (
            "bbconv2d_c31",
            "31 channels in and out: one unused bit",
            conv("bbconv2d", (5, 5, 31), 31, same(3), any_sign),
        ),
        (
            "bbconv2d_c33",
            "33 channels in and out: a word with one used bit",
            conv("bbconv2d", (4, 4, 33), 33, same(3), mild),
        ),
        (
            "bbconv2d_c96",
            "three whole words a pixel",
            conv("bbconv2d", (4, 4, 96), 32, same(3), any_sign),
        ),
        (
            "bbconv2d_one_padding",
            "taps outside are +1",
            conv("bbconv2d", (5, 5, 24), 16, same(3), any_sign, one_padding=True),
        ),
        (
            "bbconv2d_dilation",
            "every second pixel under the kernel",
            conv("bbconv2d", (7, 7, 16), 16, same(3, dilation=2), any_sign),
        ),
        (
            "bbconv2d_stride2",
            "stride 2, TensorFlow's same padding",
            conv("bbconv2d", (8, 8, 40), 16, SAME_STRIDE_2, bias_first),
        ),
        (
            "bbconv2d_asymmetric",
            "2 x 3 kernel, four different paddings",
            conv("bbconv2d", (5, 6, 8), 8, Window((2, 3), (1, 2), (1, 1), (1, 2, 0, 3)), any_sign),
        ),
        (
            "bbconv2d_prelu",
            "negative PReLU slopes: intervals and complements",
            conv("bbconv2d", (5, 5, 32), 32, same(3), two_sided),
        ),
        (
            "bbconv2d_pool_or",
            "pool before rising BatchNorm: OR",
            conv("bbconv2d", (6, 6, 32), 16, same(3), None, rising, pool=HALVES),
        ),
        (
            "bbconv2d_pool_and",
            "pool before falling BatchNorm: AND",
            conv("bbconv2d", (6, 6, 32), 16, same(3), None, falling, pool=HALVES),
        ),
        (
            "bbconv2d_pool_veto",
            "BatchNorm, pool, negative PReLU: veto and invert",
            conv("bbconv2d", (6, 6, 16), 40, same(3), any_sign, two_sided, pool=HALVES),
        ),
        (
            "bbconv2d_pool_after",
            "two-sided chain, then an overlapping padded pool",
            conv("bbconv2d", (6, 6, 16), 16, same(3), two_sided, pool=OVERLAP),
        ),
        (
            "bbconv2d_per_element",
            "a PReLU slope an element, no pool",
            conv("bbconv2d", (4, 5, 16), 8, same(3), element_prelu, per_element=True),
        ),
        (
            "bbconv2d_per_element_conv",
            "an offset an element before an overlapping pool",
            conv("bbconv2d", (5, 5, 16), 8, same(3), element_bias, rising, pool=OVERLAP, per_element=True),
        ),
        (
            "bbconv2d_per_element_output",
            "a PReLU slope an element after the pool",
            conv("bbconv2d", (6, 6, 16), 8, same(3), None, element_prelu, pool=HALVES, per_element=True),
        ),
        (
            "bbpointwiseconv2d_bn",
            "1 x 1 over 96 channels to 33",
            conv("bbpointwiseconv2d", (4, 4, 96), 33, Window((1, 1)), any_sign),
        ),
        (
            "bbpointwiseconv2d_stride2_prelu",
            "1 x 1 with stride 2, two-sided rules",
            conv("bbpointwiseconv2d", (6, 7, 31), 16, Window((1, 1), (2, 2)), two_sided),
        ),
        (
            "bbpointwiseconv2d_pool",
            "1 x 1 and a fused pool with veto",
            conv("bbpointwiseconv2d", (6, 6, 40), 24, Window((1, 1)), None, two_sided, pool=HALVES),
        ),
        (
            "bbdepthwiseconv2d_c33",
            "33 filters, zero padding",
            conv("bbdepthwiseconv2d", (5, 5, 33), 33, same(3), any_sign),
        ),
        (
            "bbdepthwiseconv2d_one_padding",
            "taps outside are +1, dilation 2, negative slopes",
            conv("bbdepthwiseconv2d", (6, 6, 31), 31, same(3, dilation=2), two_sided, one_padding=True),
        ),
        (
            "bbdepthwiseconv2d_pool",
            "stride 2 and a fused AND pool",
            conv("bbdepthwiseconv2d", (9, 9, 40), 40, same(5, stride=2), None, falling, pool=HALVES),
        ),
        ("bmaxpool2d_or", "OR of 2 x 2", lambda s: max_pool(s, (6, 6, 33), HALVES, "or")),
        (
            "bmaxpool2d_and",
            "AND, overlapping and padded",
            lambda s: max_pool(s, (5, 6, 31), OVERLAP, "and"),
        ),
        (
            "bmaxpool2d_mixed",
            "OR or AND for each channel",
            lambda s: max_pool(s, (6, 6, 40), OVERLAP, "mixed"),
        ),
        ("bbfc_bn", "a feature map with gaps: 31 channels", lambda s: dense(s, (3, 3, 31), 33, any_sign)),
        ("bbfc_prelu", "two-sided rules", lambda s: dense(s, (1, 1, 96), 40, two_sided)),
        ("bbqfc_i8", "ties, saturation and knees", lambda s: integers(s, (2, 2, 33), 10, "i8", 4)),
        ("bbqfc_i16", "ties, saturation and knees", lambda s: integers(s, (1, 1, 96), 10, "i16", 8)),
        ("bbqfc_i32", "ties, saturation and knees", lambda s: integers(s, (3, 3, 8), 10, "i32", 16)),
        ("bbqfc_exact", "no fraction: shift 0", lambda s: integers(s, (2, 2, 16), 8, "i32", 0)),
        (
            "qbconv2d_channel_adds",
            "an offset a channel: the border corrects for each",
            conv("qbconv2d", (6, 5, 3), 9, same(5), any_sign, affine=(2, 0), channel_adds=[-255, 7, -90]),
        ),
        (
            "qqconv2d_wide_channel_adds",
            "16-bit weights, an offset a channel, a fused pool",
            conv(
                "qqconv2d",
                (6, 6, 3),
                8,
                same(3),
                any_sign,
                falling,
                pool=HALVES,
                affine=(10, 0),
                channel_adds=[-1253, -1230, -1139],
                wide=True,
            ),
        ),
        (
            "bqqfc_i32",
            "8-bit weights on bits, with a knee",
            lambda s: integers(s, (2, 2, 33), 10, "i32", 16, family="bqqfc"),
        ),
    ]


def vectors() -> list[Vector]:
    """Every vector, made anew."""
    result = []
    for i, (name, shows, make) in enumerate(specifications()):
        seed = SEED + i
        case = make(Draw(seed))
        case.operators = cases.lower(case)
        answer = cases.answer(case)
        assert not answer.doubtful.any(), name
        pool = getattr(case.operators[0], "pool", None)
        if "veto" in shows:
            assert pool is not None and pool.veto is not None, name
        if "invert" in shows or ("AND" in shows and case.family != "bmaxpool2d"):
            assert pool is not None and pool.invert is not None, name
        if "ties" in shows:
            assert answer.ties and answer.saturated, name
        inputs = cases.stored_input(case)
        outputs = cases.stored_output(case, answer.output)
        index = {
            "name": name,
            "family": case.family,
            "seed": seed,
            "images": len(inputs),
            "ties": answer.ties,
            "saturated": answer.saturated,
            "shows": shows,
        }
        result.append(Vector(name, cases.build(case), inputs.tobytes(), outputs.tobytes(), index))
        if case.family == "bbconv2d":
            # The same with the weights by output channel, every third input channel inverted.
            case.operators = [
                replace(o, lane_mask=np.arange(o.weights.shape[3]) % 3 == 0) if isinstance(o, BBConv2D) else o
                for o in case.operators
            ]
            lanes = index | {"name": f"{name}_lanes", "shows": f"{shows}; weights by output channel"}
            result.append(
                Vector(lanes["name"], cases.build(case), inputs.tobytes(), outputs.tobytes(), lanes)
            )
        if case.family == "qbconv2d":
            # The same with the weights as sums, where they can be.
            case.operators = [
                replace(o, pixel_sums=True) if isinstance(o, QBConv2D) else o for o in case.operators
            ]
            sums = index | {"name": f"{name}_sums", "shows": f"{shows}; weights as sums of pixels"}
            model = cases.build(case)
            if model != result[-1].model:
                result.append(Vector(sums["name"], model, inputs.tobytes(), outputs.tobytes(), sums))
    return result


def files() -> dict[str, bytes]:
    """Every committed file: name -> bytes."""
    made = vectors()
    index = {"generator": "tests/golden/make_golden.py", "seed": SEED, "vectors": [v.index for v in made]}
    result = {"index.json": (json.dumps(index, indent=1) + "\n").encode()}
    for vector in made:
        result[f"{vector.name}.cbn"] = vector.model
        result[f"{vector.name}.in"] = vector.inputs
        result[f"{vector.name}.out"] = vector.outputs
    return result


if __name__ == "__main__":
    written = files()
    for old in (path for suffix in ("cbn", "in", "out") for path in FOLDER.glob(f"*.{suffix}")):
        old.unlink()
    for file, content in written.items():
        (FOLDER / file).write_bytes(content)
    print(f"{len(written)} files, {sum(map(len, written.values()))} bytes")
