"""Random one-operator cases: drawn from one integer, built by the library, answered by the oracle.

`draw(seed)` is the same case everywhere, for ever: it takes raw words of PCG64, whose stream NumPy promises
to keep (a Generator's methods may change between versions), and rounds correctly (no exp, no log).

Half of drawing is aiming. Parameters drawn blindly put most thresholds out of reach and make constants.
Here the last offset of a chain is set so that the chain is zero at a value that occurs: a tie where the chain
is dyadic, and else one float32 rounding away from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, TypeVar

import numpy as np
from cbin_nn import _native
from cbin_nn import operators as ops
from cbin_nn.folding import AccumulatorRange, FoldError, Planned, fold_pool, fold_sign
from cbin_nn.operators import Window
from cbin_nn.rules import TooManyIntervals

from . import oracle
from .oracle import Array, BatchNorm, Bias, PReLU, Real, Scale, Step

T = TypeVar("T")
F32 = np.float32

#: Families, the commoner ones more often.
FAMILIES = (
    ["qbconv2d"] * 4
    + ["qqconv2d"] * 4
    + ["bbconv2d"] * 5
    + ["bbpointwiseconv2d"] * 2
    + ["bbdepthwiseconv2d"] * 3
    + ["bmaxpool2d"]
    + ["bbfc"]
    + ["bbqfc"]
    + ["bqqfc"]
)
CHANNELS = (1, 2, 3, 8, 16, 24, 31, 33, 40, 63, 65, 96)
WHOLE_WORDS = (32, 32, 64, 96)
POOLS = ("absent", "before", "between", "after")
#: Products of a case, all images: keeps a case to milliseconds.
MOST_PRODUCTS = 120_000


class Draw:
    """Random numbers from a seed."""

    def __init__(self, seed: int) -> None:
        self._stream = np.random.PCG64(seed)

    def below(self, limit: int) -> int:
        return int(self._stream.random_raw() >> 11) % limit

    def chance(self, share: float) -> bool:
        return self.below(1 << 30) < share * (1 << 30)

    def pick(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        rest, result = list(items), []
        while rest:
            result.append(rest.pop(self.below(len(rest))))
        return result

    def _words(self, shape: tuple[int, ...]) -> Array:
        return (self._stream.random_raw(int(np.prod(shape))) >> np.uint64(11)).reshape(shape)

    def integers(self, low: int, high: int, shape: tuple[int, ...]) -> Array:
        """low <= i < high."""
        return (self._words(shape) % np.uint64(high - low)).astype(np.int64) + low

    def uniform(self, low: float, high: float, shape: tuple[int, ...]) -> Array:
        return (self._words(shape).astype(np.float64) * 2.0**-53 * (high - low) + low).astype(F32)

    def among(self, values: Sequence[float], shape: tuple[int, ...]) -> Array:
        return np.array(values, F32)[self.integers(0, len(values), shape)]


@dataclass(eq=False)
class Case:
    """One operator, its chain and its images, unpacked."""

    seed: int
    family: str
    #: u8, or bits as bool, (N, H, W, C).
    images: Array
    #: +-1 or int8: (O, kh, kw, I), (kh, kw, C) or (units, features).
    weights: Array = field(default_factory=lambda: np.zeros(0, np.int8))
    window: Window = field(default_factory=lambda: Window((1, 1)))
    mul: int = 1
    add: int = 0
    #: An offset for each input channel, in place of `add`.
    channel_adds: Array | None = None
    one_padding: bool = False
    before: list[Step] = field(default_factory=list)
    after: list[Step] = field(default_factory=list)
    pool: str = "absent"
    pool_window: Window = field(default_factory=lambda: Window((1, 1)))
    #: The pool works on stored bits, as an operator of its own.
    unfused: bool = False
    use_and: Array | None = None
    requantization: ops.Requantization | None = None
    #: Powers of two and small dyadic offsets, so that ties are many and exact.
    dyadic: bool = False
    #: What `lower` made of it.
    operators: list[Any] = field(default_factory=list)

    @property
    def reads_bytes(self) -> bool:
        return self.family in ("qbconv2d", "qqconv2d")

    @property
    def channels(self) -> int:
        """Output channels."""
        return {"bmaxpool2d": self.images.shape[-1], "bbdepthwiseconv2d": self.weights.shape[-1]}.get(
            self.family, len(self.weights)
        )

    def __repr__(self) -> str:
        parts = [f"seed {self.seed}: {self.family} on {self.images.shape}, {self.window}"]
        parts.append(f"weights {self.weights.shape}, {self.channels} channels")
        parts.append(f"mul {self.mul} add {self.add}" if self.reads_bytes else f"one {self.one_padding}")
        parts.append(f"pool {self.pool} {self.pool_window if self.pool != 'absent' else ''}")
        parts += [f"unfused {self.unfused}", f"dyadic {self.dyadic}"]
        parts += [f"before {self.before}", f"after {self.after}", f"requantization {self.requantization}"]
        return "\n  ".join(parts)


# ------------------------------------------------------------------------------------------------
# the oracle's answer


def accumulators(case: Case) -> Array:
    """What the convolution or dense layer sums up, float64 that holds integers."""
    if case.reads_bytes:
        add = case.add if case.channel_adds is None else case.channel_adds.astype(np.float64)
        x, outside = case.images.astype(np.float64) * case.mul + add, 0.0
    else:
        x, outside = oracle.signs(case.images), 1.0 if case.one_padding else 0.0
    if case.family in ("bbfc", "bbqfc", "bqqfc"):
        return oracle.dense(x, case.weights)
    if case.family == "bbdepthwiseconv2d":
        return oracle.convolve_depthwise(x, case.weights, case.window, outside)
    return oracle.convolve(x, case.weights, case.window, outside)


def pooled(case: Case, y: Real) -> Real:
    return y if case.pool == "absent" else oracle.maximum(y, case.pool_window)


@dataclass(frozen=True, eq=False)
class Answer:
    """What the oracle says."""

    #: Bits (N, H, W, C) or integers (N, units).
    output: Array
    #: What float64 can't decide.
    doubtful: Array
    #: Elements that are zero exactly, or halfway between two integers.
    ties: int = 0
    saturated: int = 0


def answer(case: Case) -> Answer:
    """The oracle's answer."""
    if case.family == "bmaxpool2d":
        use_and = np.zeros(case.channels, bool) if case.use_and is None else case.use_and
        bits = oracle.pool_bits(case.images, case.window, use_and)
        return Answer(bits, np.zeros_like(bits))
    acc = accumulators(case)
    if case.requantization is not None:
        q = case.requantization
        rows = acc[:, 0, 0].astype(np.int64)
        values = np.zeros(rows.shape, np.int64)
        ties = saturated = 0
        for image, unit in np.ndindex(*rows.shape):
            value = int(rows[image, unit])
            above = value >= int(q.knee[unit])
            mul, add = (q.mul_above, q.add_above) if above else (q.mul_below, q.add_below)
            value, tie, over = oracle.requantize(value, int(mul[unit]), int(add[unit]), q.shift, q.dtype)
            values[image, unit] = value
            ties, saturated = ties + tie, saturated + over
        return Answer(values, np.zeros(values.shape, bool), ties, saturated)
    y = oracle.chain(case.before, Real.exactly(acc))
    y = oracle.chain(case.after, pooled(case, y))
    doubtful = y.doubtful()
    return Answer(y.value >= 0, doubtful, int(((y.value == 0) & ~doubtful).sum()))


# ------------------------------------------------------------------------------------------------
# the library's side


def planned(steps: list[Step]) -> list[Planned]:
    """The library's words for a chain."""
    result = []
    for step in steps:
        if isinstance(step, Scale):
            result.append(Planned("scale", "linear", (step.factor, Fraction(0))))
        elif isinstance(step, Bias):
            result.append(Planned("bias", "linear", (Fraction(1), step.offset)))
        elif isinstance(step, PReLU):
            result.append(Planned("prelu", "prelu", (step.alpha,)))
        else:
            values = (step.gamma, step.beta, step.mean, step.variance)
            result.append(Planned("norm", "batch_norm", values, float(step.epsilon)))
    return result


def reach(case: Case) -> AccumulatorRange:
    """The accumulators that can occur."""
    weights = case.weights
    if case.reads_bytes:
        flat = weights.reshape(len(weights), -1)
        add: Any = case.add
        if case.channel_adds is not None:
            add = np.tile(case.channel_adds, flat.shape[1] // len(case.channel_adds))
        return AccumulatorRange.of_bytes(flat, case.mul, add, zero_padded=any(case.window.padding))
    depthwise = case.family == "bbdepthwiseconv2d"
    products = case.window.kernel[0] * case.window.kernel[1] if depthwise else weights[0].size
    zero_padded = any(case.window.padding) and not case.one_padding
    return AccumulatorRange.of_bits(
        case.channels, products, 1 if depthwise else case.images.shape[-1], zero_padded=zero_padded
    )


def planes(case: Case) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """(H, W, C) before and after the pool."""
    if case.family in ("bbfc", "bbqfc", "bqqfc"):
        return (1, 1, case.channels), (1, 1, case.channels)
    conv = case.window.output_size(*case.images.shape[1:3])
    out = conv if case.pool == "absent" else case.pool_window.output_size(*conv)
    return (*conv, case.channels), (*out, case.channels)


def lower(case: Case) -> list[Any]:
    """The operators of a case.

    Raises:
        TooManyIntervals, FoldError: the library refuses the chain.
    """
    if case.family == "bmaxpool2d":
        return [ops.BMaxPool2D("op", "x", "y", case.window, case.use_and)]
    if case.family in ("bbqfc", "bqqfc"):
        assert case.requantization is not None
        head = ops.BBQFC if case.family == "bbqfc" else ops.BQQFC
        return [head("op", "x", "y", case.weights, case.requantization)]
    plane, out = planes(case)
    chain = planned([*case.before, *case.after])
    if case.family == "bbfc":
        rules, _ = fold_sign(chain, reach(case), plane[-1:])
        return [ops.BBFC("op", "x", "y", case.weights, rules)]
    pool, extra = None, []
    if case.pool == "absent":
        rules, _ = fold_sign(chain, reach(case), plane)
    elif case.unfused:
        rules, _ = fold_sign(chain, reach(case), plane)
        use_and = directions(case.after, case.channels) < 0
        extra = [ops.BMaxPool2D("pool", "y", "z", case.pool_window, use_and)]
    else:
        folded = fold_pool(
            planned(case.before), planned(case.after), case.pool_window, reach(case), plane, out
        )
        rules, pool = folded.rule, ops.Pool(case.pool_window, folded.veto, folded.invert)
    parts: dict[str, Any] = {"rules": rules, "pool": pool}
    if case.reads_bytes:
        parts |= {"input_mul": case.mul, "input_add": case.add, "channel_adds": case.channel_adds}
    if case.family in ("bbconv2d", "bbdepthwiseconv2d"):
        parts["one_padding"] = case.one_padding
    kinds: dict[str, Any] = {
        "qbconv2d": ops.QBConv2D,
        "qqconv2d": ops.QQConv2D,
        "bbconv2d": ops.BBConv2D,
        "bbpointwiseconv2d": ops.BBPointwiseConv2D,
        "bbdepthwiseconv2d": ops.BBDepthwiseConv2D,
    }
    return [kinds[case.family]("op", "x", "y", case.weights, case.window, **parts), *extra]


def directions(steps: list[Step], channels: int) -> Array:
    """Sign of the slope of a chain whose PReLUs do not fall, a channel."""
    sign = np.ones(channels)
    for step in steps:
        if isinstance(step, (Scale, BatchNorm)):
            sign = sign * np.sign(step.factor if isinstance(step, Scale) else step.gamma)
    return sign


def build(case: Case) -> bytes:
    """The `.cbn` file."""
    height, width, channels = (int(n) for n in case.images.shape[1:])
    dtype: Any = "u8" if case.reads_bytes else "bits"
    lowered = ops.LoweredModel(
        case.family,
        "x",
        (height, width, channels),
        case.operators,
        case.operators[-1].output,
        input_dtype=dtype,
    )
    return _native.build_model(lowered)


def stored_input(case: Case) -> Array:
    """Images as a model reads them."""
    return case.images if case.reads_bytes else oracle.pack(case.images)


def stored_output(case: Case, output: Array) -> Array:
    """Outputs as a model writes them: packed words, or integers."""
    if case.requantization is not None:
        return output.astype({"i8": "<i1", "i16": "<i2", "i32": "<i4"}[case.requantization.dtype])
    return oracle.pack(output)


def kinds(rules: ops.Rules, pool: ops.Pool | None) -> set[str]:
    """The kinds of rule that an operator has; NOT OR r is the AND of NOT r."""
    if rules.grid != "channel":
        return {"per-element"}
    low, high = np.int32(-(2**31)), np.int32(2**31 - 1)
    names = set()
    for channel in range(rules.lo.size):
        lo, hi, flip = rules.lo[channel], rules.hi[channel], bool(rules.flip[channel])
        veto = pool.veto if pool is not None else None
        invert = pool is not None and pool.invert is not None and bool(pool.invert[channel])
        if veto is not None and (veto.lo[channel] <= veto.hi[channel] or veto.flip[channel]):
            names.add("outside" if invert else "inside")
        elif lo > hi:
            names.add("constant")
        elif lo == low or hi == high:
            names.add("rising" if (hi == high) ^ flip ^ invert else "falling")
        else:
            names.add("outside" if flip ^ invert else "inside")
    return names


def steady_channels(rules: ops.Rules, pool: ops.Pool | None) -> Array:
    """Channels whose rules are all constants."""
    steady = (rules.lo > rules.hi).reshape(-1, rules.lo.shape[-1]).all(axis=0)
    if pool is not None and pool.veto is not None:
        steady &= (pool.veto.lo > pool.veto.hi).reshape(-1, rules.lo.shape[-1]).all(axis=0)
    return steady


# ------------------------------------------------------------------------------------------------
# drawing


def draw(seed: int) -> Case:
    """The case of a seed, one that the library can hold."""
    source = Draw(seed)
    while True:
        case = attempt(source, seed)
        if case is None:
            continue
        try:
            case.operators = lower(case)
        except (TooManyIntervals, FoldError):
            continue
        return case


def attempt(source: Draw, seed: int) -> Case | None:
    family = source.pick(FAMILIES)
    if family == "bmaxpool2d":
        return draw_pool(source, seed)
    if family in ("bbfc", "bbqfc", "bqqfc"):
        return draw_dense(source, seed, family)
    return draw_conv(source, seed, family)


def draw_images(source: Draw, shape: tuple[int, ...], as_bytes: bool) -> Array:
    """Uniform ones and hostile ones: extremes, one value everywhere, few changes of it."""
    if as_bytes:
        images = source.integers(0, 256, shape)
        style = source.below(5)
        if style == 0:
            images = np.where(images & 1, 255, 0)
        elif style == 1:
            images = 127 + (images & 1)
        elif style == 2:
            images[0] = source.pick([0, 255, 127, 128])
        return images.astype(np.uint8)
    level = source.pick([128, 128, 128, 40, 220])
    images = source.integers(0, 256, shape) < level
    if source.chance(0.2):
        images[0] = source.chance(0.5)
    return images


def draw_window(source: Draw, height: int, width: int, kernel: int, stride: int, pads: bool) -> Window:
    """Kernel sides up to `kernel`, with padding that makes it fit and asymmetric padding on top."""
    sides = (kernel, kernel) if source.chance(0.6) else (kernel, 1 + source.below(kernel))
    dilation = (1, 1)
    if source.chance(0.25):
        dilation = (1 + source.below(3), 1 + source.below(3))
    strides = (stride, stride) if source.chance(0.6) else (stride, 1 + source.below(stride))
    padding = [0, 0, 0, 0]
    for axis, size in enumerate((height, width)):
        span = dilation[axis] * (sides[axis] - 1) + 1
        if pads:
            style = source.below(3) if span > 1 else 1
            if style == 0:  # TensorFlow's `same`
                total = max(0, (-(-size // strides[axis]) - 1) * strides[axis] + span - size)
                padding[axis], padding[axis + 2] = total // 2, total - total // 2
            elif style == 1:
                padding[axis], padding[axis + 2] = source.below(span + 1), source.below(span + 1)
            else:
                padding[axis] = padding[axis + 2] = span // 2
        short = span - size - padding[axis] - padding[axis + 2]
        if short > 0:
            padding[axis] += short // 2
            padding[axis + 2] += short - short // 2
    return Window(sides, strides, dilation, (padding[0], padding[1], padding[2], padding[3]))


def draw_pool_window(source: Draw, height: int, width: int) -> Window | None:
    """A pool that fits and never sees padding alone."""
    kernel = min(2 + source.below(2), max(height, width))
    sides = (min(kernel, height), min(kernel, width))
    stride = source.pick([1, 2, 2, 3])
    padding = (0, 0, 0, 0)
    if source.chance(0.35):
        top, left, bottom, right = (source.below(2) for _ in range(4))
        padding = (top, left, bottom, right)
    dilation = (2, 1) if source.chance(0.08) else (1, 1)
    window = Window(sides, (stride, stride), dilation, padding)
    return window if oracle.every_window_sees_the_plane(height, width, window) else None


def draw_conv(source: Draw, seed: int, family: str) -> Case | None:
    depthwise, pointwise = family == "bbdepthwiseconv2d", family == "bbpointwiseconv2d"
    as_bytes = family in ("qbconv2d", "qqconv2d")
    stride = source.pick([1, 1, 1, 2, 2, 3])
    pool = source.pick(POOLS)
    kernel = source.pick([1, 2, 3, 3, 3, 4, 5, 5, 6, 7, 8, 9, 10, 11])
    images = 2 + source.below(3)
    while True:
        inputs = source.pick([1, 1, 3, 3, 3, 4, 8, 16, 31, 33] if as_bytes else [*CHANNELS, *WHOLE_WORDS])
        filters = source.pick(WHOLE_WORDS) if source.chance(0.4) else source.pick(CHANNELS)
        if pointwise:
            kernel = 1
        small = 3 if pool == "absent" else 4
        if stride > 1:
            small += 3
        height, width = small + source.below(5), small + source.below(5)
        if source.chance(0.03):
            height = 1
        # `same` planes are an upper bound
        pixels = -(-height // stride) * -(-width // stride) * (3 if pool != "absent" else 1)
        products = images * pixels * kernel * kernel * inputs * (1 if depthwise else filters)
        if products <= MOST_PRODUCTS:
            break
        if kernel > 3 and source.chance(0.3):
            kernel = 1 + source.below(kernel)
    window = (
        Window((1, 1), (stride, stride))
        if pointwise
        else draw_window(source, height, width, kernel, stride, source.chance(0.85))
    )
    if depthwise:
        filters = inputs
        weights = 2 * source.integers(0, 2, (*window.kernel, inputs)) - 1
    elif family == "qqconv2d":
        limit = source.pick([2, 4, 128])
        weights = source.integers(-limit, limit, (filters, *window.kernel, inputs))
    else:
        weights = 2 * source.integers(0, 2, (filters, *window.kernel, inputs)) - 1
    case = Case(
        seed,
        family,
        draw_images(source, (images, height, width, inputs), as_bytes),
        weights.astype(np.int8),
        window,
    )
    if as_bytes:
        case.mul, case.add = source.pick([(1, 0), (2, -255), (2, -255), (1, -128), (3, 7), (2, -254)])
    if family in ("bbconv2d", "bbdepthwiseconv2d"):
        case.one_padding = source.chance(0.3)
    if pool != "absent":
        found = draw_pool_window(source, *window.output_size(height, width))
        if found is None:
            return None
        case.pool, case.pool_window = pool, found
    return draw_chains(source, case)


def draw_chains(source: Draw, case: Case) -> Case:
    """Chains before and after the pool, aimed at values that occur."""
    acc = accumulators(case)
    case.dyadic = source.chance(0.15)
    plane, out = planes(case)
    y = Real.exactly(acc)
    where = {"absent": (True, False), "after": (True, False), "before": (False, True)}
    has_before, has_after = where.get(case.pool, (True, True))
    # Where a PReLU with falling slopes and an offset behind it stands: an interval, or its complement.
    bent = source.chance(0.45)
    # An element costs an exact solution where it ties: few elements keep a case at milliseconds.
    small = int(np.prod(plane)) <= (450 if case.channels % 32 else 1300)
    element = source.chance(0.35) and small and case.family not in ("bbfc", "bbqfc")
    if has_before:
        grid = plane if element and (not has_after or source.chance(0.5)) else None
        window = case.pool_window if case.pool == "after" else None
        case.before = draw_chain(source, y, case.dyadic, bent and not has_after, grid, window)
        y = oracle.chain(case.before, y)
    y = pooled(case, y)
    if has_after:
        grid = out if element and (not has_grid(case.before) or source.chance(0.3)) else None
        case.after = draw_chain(source, y, case.dyadic, bent, grid)
    falling = [bool((step.alpha < 0).any()) for step in case.after if isinstance(step, PReLU)]
    # Stored bits can be pooled where what follows the pool is monotone and the same everywhere.
    flat = directions(case.after, case.channels) != 0
    if case.pool != "absent" and not any(falling) and not has_grid(case.after) and flat.all():
        case.unfused = source.chance(0.3)
    return case


def has_grid(steps: list[Step]) -> bool:
    return any(value.ndim == 3 for step in steps for value in vars(step).values() if np.ndim(value))


def draw_chain(
    source: Draw,
    y: Real,
    dyadic: bool,
    bent: bool,
    grid: tuple[int, int, int] | None,
    pool: Window | None = None,
) -> list[Step]:
    """Some steps in some order, aimed at the values `y` (N, H, W, C) that reach them; `pool` follows."""
    shape: tuple[int, ...] = y.value.shape[-1:]
    spread = float(np.abs(y.value).mean()) + 1.0
    names = source.shuffled(["bias", "scale", "norm", "norm", "prelu"])[: 1 + source.below(4)]
    if names.count("norm") == 2 and source.chance(0.7):
        names.remove("norm")
    if bent:
        names = [name for name in names if name != "prelu"]
        cut = source.below(len(names) + 1)
        names = [*names[:cut], "prelu", *names[cut:]]
        if not {"bias", "norm"} & set(names[cut:]):
            names.append(source.pick(["bias", "norm"]))
    elif not {"bias", "norm"} & set(names) and source.chance(0.8):
        names.append(source.pick(["bias", "norm"]))
    wide = source.pick([i for i, name in enumerate(names) if name in ("bias", "prelu")] or [None])
    if grid is not None and wide is None:
        names.append("bias")
        wide = len(names) - 1
    steps: list[Step] = []
    for i, name in enumerate(names):
        size = grid if grid is not None and i == wide else shape
        if name == "bias":
            # Whole multiples of the spread would be off the dyadic grid.
            steps.append(Bias(source.among([-4, -1.5, 0, 0.5, 3], size)))
        elif name == "scale":
            factors = [-2, -1, -0.5, 0.5, 1, 2]
            drawn = source.among(factors, size)
            steps.append(Scale(drawn if dyadic else drawn * source.uniform(0.5, 1.5, size)))
        elif name == "prelu":
            slopes = [-2, -1, -0.5, -0.5, 0.5] if bent else [0, 0.25, 0.5, 0.5, 1, 2]
            alpha = source.among([*slopes, 0, 0.25] if source.chance(0.3) else slopes, size)
            steps.append(PReLU(alpha if dyadic else alpha * source.uniform(0.5, 1.5, size)))
        else:
            steps.append(draw_norm(source, size, dyadic, spread))
    aim(source, steps, y, pool)
    return steps


def draw_norm(source: Draw, size: tuple[int, ...], dyadic: bool, spread: float) -> BatchNorm:
    gamma = source.among([-2, -1, -1, -0.5, 0.5, 1, 1, 2], size)
    # gamma = 0 makes a constant of beta.
    gamma = np.where(source.integers(0, 12, size) == 0, F32(0), gamma)
    if dyadic:
        epsilon = F32(2.0**-10)
        variance = source.among([0.25, 1, 4], size) - epsilon
        mean = source.among([-3, -0.5, 0, 1, 2.5], size)
        return BatchNorm(gamma, source.among([-2, -0.5, 0, 0, 1.25], size), mean, variance, epsilon)
    variance = source.uniform(0.05, 2.0, size) * F32(spread * spread)
    mean = source.uniform(-1.0, 1.0, size) * F32(spread)
    beta = source.uniform(-1.0, 1.0, size)
    epsilon = F32(source.pick([1e-3, 1e-5, 0.1]))
    return BatchNorm(gamma * source.uniform(0.5, 1.5, size), beta, mean, variance, epsilon)


def aim(source: Draw, steps: list[Step], y: Real, pool: Window | None) -> None:
    """Set the last offset so that the chain up to it vanishes at a value that occurs, or between two."""
    last = last_offset(steps)
    if last is None:
        return
    values = oracle.chain(steps[:last], y).value
    shape = offset_shape(steps[last])
    if pool is not None and len(shape) == 1:
        # The pool's largest is the smallest here, where the rest of the chain falls.
        sign = directions(steps[last:], shape[0])
        sign = np.where(sign == 0, 1.0, sign)
        values = oracle.maximum(Real.exactly(values * sign), pool).value * sign
    ordered = np.sort(values if len(shape) == 3 else values.reshape(-1, shape[-1]), axis=0)
    # Any rank but the least, so that both sides occur wherever there are two values.
    rank = source.integers(1, max(2, len(ordered)), shape) % len(ordered)
    target = np.take_along_axis(ordered, rank[None], axis=0)[0]
    least = ordered[0]
    higher = np.where(ordered > least, ordered, np.inf).min(axis=0)
    target = np.where((target == least) & np.isfinite(higher), higher, target)
    # Ties are what exact arithmetic is for, and what makes a case slow: half of the cases go without.
    if source.chance(0.5):
        below = np.take_along_axis(ordered, np.maximum(rank - 1, 0)[None], axis=0)[0]
        target = (target + below) / 2
    elif source.chance(0.2):
        target = target + 2.0 * source.integers(-1, 2, shape)
    steps[last] = vanishing(steps[last], target, by_beta=source.chance(0.5))


def last_offset(steps: list[Step]) -> int | None:
    """The last step that adds something."""
    return max((i for i, step in enumerate(steps) if isinstance(step, (Bias, BatchNorm))), default=None)


def offset_shape(step: Step) -> tuple[int, ...]:
    assert isinstance(step, (Bias, BatchNorm))
    return (step.offset if isinstance(step, Bias) else step.mean).shape


def vanishing(step: Step, target: Array, *, by_beta: bool) -> Step:
    """The step with its offset (a BatchNorm's beta or its mean) such that it is 0 at `target`, in float32."""
    if isinstance(step, Bias):
        return Bias((-target).astype(F32))
    assert isinstance(step, BatchNorm)
    moving = step.gamma != 0
    if not by_beta:
        return replace(step, mean=target.astype(F32), beta=np.where(moving, F32(0), step.beta))
    slope = step.gamma / np.sqrt(step.variance.astype(np.float64) + float(step.epsilon))
    return replace(step, beta=np.where(moving, -slope * (target - step.mean), step.beta).astype(F32))


def draw_pool(source: Draw, seed: int) -> Case:
    channels = source.pick([*CHANNELS, *WHOLE_WORDS])
    height, width = 2 + source.below(9), 2 + source.below(9)
    images = draw_images(source, (2 + source.below(3), height, width, channels), False)
    kernel, stride = 1 + source.below(4), 1 + source.below(3)
    window = draw_window(source, height, width, kernel, stride, source.chance(0.7))
    use_and = source.integers(0, 2, (channels,)) == 1
    case = Case(seed, "bmaxpool2d", images, window=window, pool="after", pool_window=window)
    style = source.below(3)
    case.use_and = None if style == 0 else use_and if style == 1 else np.ones(channels, bool)
    return case


def draw_dense(source: Draw, seed: int, family: str) -> Case:
    channels = source.pick([*CHANNELS, *WHOLE_WORDS])
    height, width = 1 + source.below(4), 1 + source.below(4)
    units = source.pick([1, 2, 10, 31, 32, 33, 40, 64])
    features = height * width * channels
    head = family in ("bbqfc", "bqqfc")
    if head:
        units = min(units, 10)
    images = draw_images(source, (8, height, width, channels), False)
    signs = 2 * source.integers(0, 2, (units, features)) - 1
    largest = 128 if family == "bqqfc" else 1
    weights = signs if largest == 1 else source.integers(-largest, largest, (units, features))
    weights = weights.astype(np.int8)
    # An image that is a unit's weights has the largest accumulator.
    images[-1] = weights[0].reshape(height, width, channels) > 0
    case = Case(seed, family, images, weights)
    if head:
        reach = features * largest
        case.requantization = draw_requantization(source, accumulators(case)[:, 0, 0], reach)
        return case
    return draw_chains(source, case)


def draw_requantization(source: Draw, acc: Array, reach: int) -> ops.Requantization:
    """Fixed point with ties (few bits of fraction), saturation (large factors) and a knee that is reached.

    `acc` holds the accumulators, (N, units), from -`reach` to `reach`.
    """
    units = acc.shape[1]
    dtype: Any = source.pick(["i8", "i16", "i32"])
    shift = source.pick([0, 1, 2, 3, 8, 16, 31, 40])
    largest = oracle.RANGES[dtype][1]
    # Outputs reach from a small part of the range to several times of it.
    factor = max(1, (largest << shift) // (source.pick([1, 2, 8, 64]) * reach) * source.pick([1, 8]) // 2)
    factor = min(factor, (2**61) // (reach + 1))
    half = 1 << shift >> 1
    size = (2, units)
    mul = source.integers(-factor, factor + 1, size)
    add = source.integers(-factor, factor + 1, size)
    if half and source.chance(0.6):
        # Odd multiples of a half: ties wherever the factor is a multiple of a half, too.
        mul = np.maximum(1, np.abs(mul) // half) * half * np.sign(mul + (mul == 0))
        add = (2 * (add // (2 * half)) + 1) * half * source.integers(0, 2, size)
    knee = acc[source.integers(0, len(acc), (units,)), np.arange(units)]
    knee = (knee + source.among([0, 0, 0, 1, -1, 2], (units,))).astype(np.int32)
    if source.chance(0.4):
        mul[0], add[0] = mul[1], add[1]
    assert (np.abs(mul).astype(object) * reach + np.abs(add)).max() < 2**62
    return ops.Requantization(mul[1], add[1], mul[0], add[0], knee, shift, dtype, 1.0)
