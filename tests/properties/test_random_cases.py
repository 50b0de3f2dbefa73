"""Every operator on random cases: reference = optimized = oracle, bit for bit; then on the board.

A failure prints the case's seed: `cases.draw(seed)` is that case. `CBIN_NN_CASES` sets how many are run; the
minima below hold for 20,000 or more.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from cbin_nn import _native, deploy
from cbin_nn import operators as ops
from cbin_nn.errors import BoardError
from cbin_nn.operators import Window
from conftest import require
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from . import cases, oracle
from .cases import Case

CASES = int(os.environ.get("CBIN_NN_CASES", "20000"))
CHUNK = 250
BOARD = "qemu-mps2-an500"
BOARD_CASES = 600

RULES = ("rising", "falling", "inside", "outside", "constant", "per-element")
BORDERS = ("interior", "edge", "corner")
FAMILIES = tuple(dict.fromkeys(cases.FAMILIES))
PROPERTIES = (
    "in % 32",
    "out % 32",
    "stride > 1",
    "dilation > 1",
    "asymmetric",
    "kernel > 6",
    "one-padding",
    "pool overlaps",
    "pool pads",
    "unfused",
    "veto",
    "invert",
    "ties",
    "saturated",
)
#: In 20,000 cases.
LEAST_A_CELL = 20
LEAST_VARYING = 0.8
MOST_DOUBTFUL = 0.01


def mismatch(case: Case, answer: cases.Answer) -> str | None:
    """What differs between the library and the oracle, or None."""
    model = _native.Model.from_bytes(cases.build(case))
    images = cases.stored_input(case)
    optimized, reference = (model.run(images, 1, naive) for naive in (False, True))
    if optimized.dtype != reference.dtype or not np.array_equal(optimized, reference):
        return f"reference and optimized differ\n  {case!r}"
    expected = cases.stored_output(case, answer.output)
    if optimized.dtype != expected.dtype or optimized.size != expected.size:
        return f"output is {optimized.dtype} {optimized.shape}, not {expected.dtype}\n  {case!r}"
    output = optimized.reshape(expected.shape)
    if case.requantization is not None:
        wrong = output != expected
    else:
        # The oracle's padding bits are 0, and never doubtful.
        wrong = (output ^ expected) & ~oracle.pack(answer.doubtful)
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        return (
            f"the library differs from the oracle, first at {at}: {output[at]} for {expected[at]}\n  {case!r}"
        )
    return None


@dataclass
class Tally:
    """What a run saw."""

    cells: Counter = field(default_factory=Counter)
    families: Counter = field(default_factory=Counter)
    numbers: Counter = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.cells += other.cells
        self.families += other.families
        self.numbers += other.numbers
        self.failures += other.failures

    def count(self, case: Case, answer: cases.Answer) -> None:
        """Count one case under everything that it shows."""
        operator = case.operators[0]
        rules, pool = getattr(operator, "rules", None), getattr(operator, "pool", None)
        height, width, inputs = case.images.shape[1:]
        dense = case.family in ("bbfc", "bbqfc", "bqqfc")
        borders = {"interior"} if dense else oracle.border_classes(height, width, case.window)
        stride = max(case.window.strides) > 1
        if rules is not None:
            for kind in cases.kinds(rules, pool):
                for border in borders:
                    self.cells[kind, case.pool, case.channels % 32 != 0, stride, border] += 1
                self.cells[kind, case.pool] += 1
            moving = ~cases.steady_channels(rules, pool)
            bits = answer.output.reshape(-1, case.channels)
            self.numbers["moving channels"] += int(moving.sum())
            self.numbers["varying channels"] += int((moving & bits.any(axis=0) & ~bits.all(axis=0)).sum())
        self.numbers["elements"] += answer.doubtful.size
        self.numbers["doubtful"] += int(answer.doubtful.sum())
        self.numbers["ties"] += answer.ties
        top, left, bottom, right = case.window.padding
        pooling = case.pool != "absent" and case.family != "bmaxpool2d"
        shown = {
            "in % 32": inputs % 32 != 0,
            "out % 32": case.channels % 32 != 0,
            "stride > 1": stride,
            "dilation > 1": max(case.window.dilation) > 1,
            "asymmetric": (top, left) != (bottom, right),
            "kernel > 6": max(case.window.kernel) > 6,
            "one-padding": case.one_padding and any(case.window.padding),
            "pool overlaps": pooling and case.pool_window.strides[0] < max(case.pool_window.kernel),
            "pool pads": pooling and any(case.pool_window.padding),
            "unfused": case.unfused,
            "veto": pool is not None and pool.veto is not None,
            "invert": pool is not None and pool.invert is not None,
            "ties": answer.ties > 0,
            "saturated": answer.saturated > 0,
        }
        self.families[case.family] += 1
        self.families.update((case.family, name) for name, seen in shown.items() if seen)

    def tables(self) -> str:
        """Both tables, and the totals."""
        n = self.numbers
        lines = [
            f"{sum(self.families[f] for f in FAMILIES)} cases, {n['elements']} elements, {n['ties']} ties, "
            f"{n['doubtful']} undecided by float64 ({n['doubtful'] / max(1, n['elements']):.3%}); "
            f"{n['varying channels'] / max(1, n['moving channels']):.1%} of {n['moving channels']} channels "
            "whose rules are no constants vary",
            "",
            "cases with a rule of each kind, by pool, output channels, stride and class of border pixel",
        ]
        heads = [
            f"{'c%32' if odd else '32'} {'s>1' if stride else 's=1'}"
            for odd in (False, True)
            for stride in (False, True)
        ]
        lines.append(f"{'rule':12}{'pool':9}{'cases':>7} " + "".join(f"|{head:^20}" for head in heads))
        lines.append(" " * 29 + "".join("|" + "".join(f"{b[:6]:>6} " for b in BORDERS)[:20] for _ in heads))
        for kind in RULES:
            for pool in cases.POOLS:
                row = f"{kind:12}{pool:9}{self.cells[kind, pool]:7} "
                for odd in (False, True):
                    for stride in (False, True):
                        row += "|" + "".join(
                            f"{self.cells[kind, pool, odd, stride, border]:6} " for border in BORDERS
                        ).rstrip().ljust(20)
                lines.append(row)
        lines += ["", f"{'family':19}{'cases':>7}" + "".join(f"{p:>14}" for p in PROPERTIES)]
        for family in FAMILIES:
            lines.append(
                f"{family:19}{self.families[family]:7}"
                + "".join(f"{self.families[family, name]:14}" for name in PROPERTIES)
            )
        return "\n".join(lines)


def run_chunk(first: int) -> Tally:
    """The cases from `first` on."""
    tally = Tally()
    for seed in range(first, min(first + CHUNK, CASES)):
        case = cases.draw(seed)
        answer = cases.answer(case)
        tally.count(case, answer)
        failure = mismatch(case, answer)
        if failure is not None:
            tally.failures.append(failure)
    return tally


@pytest.fixture(scope="module")
def tally(pytestconfig: pytest.Config) -> Tally:
    """All cases, on all cores."""
    total = Tally()
    # Not fork: the test process may hold threads.
    with multiprocessing.get_context("spawn").Pool(len(os.sched_getaffinity(0))) as pool:
        for part in pool.imap_unordered(run_chunk, range(0, CASES, CHUNK)):
            total.add(part)
    with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{total.tables()}")
    return total


def test_reference_optimized_and_oracle_agree(tally: Tally) -> None:
    text = "\n\n".join(tally.failures[:5])
    assert not tally.failures, f"{len(tally.failures)} of {CASES} cases differ:\n{text}"


@pytest.mark.skipif(CASES < 20_000, reason="minima hold for 20,000 cases")
def test_the_cases_cover_every_kind(tally: Tally) -> None:
    cells = {
        (kind, pool, odd, stride, border): tally.cells[kind, pool, odd, stride, border]
        for kind in RULES
        for pool in cases.POOLS
        for odd in (False, True)
        for stride in (False, True)
        for border in BORDERS
    }
    few = {cell: count for cell, count in cells.items() if count < LEAST_A_CELL}
    assert not few, f"fewer than {LEAST_A_CELL} cases\n{tally.tables()}\n{few}"
    # What a family can't have (a dense layer no window, a pool no rules) is 0; the rest is not rare.
    for name in PROPERTIES:
        able = [f for f in FAMILIES if tally.families[f, name]]
        assert able and min(tally.families[f, name] for f in able) >= LEAST_A_CELL, tally.tables()
    assert all(tally.families[f] >= 500 for f in FAMILIES), tally.tables()


@pytest.mark.skipif(CASES < 20_000, reason="minima hold for 20,000 cases")
def test_outputs_vary_and_few_are_undecided(tally: Tally) -> None:
    numbers = tally.numbers
    assert numbers["varying channels"] >= LEAST_VARYING * numbers["moving channels"], tally.tables()
    assert numbers["doubtful"] < MOST_DOUBTFUL * numbers["elements"], tally.tables()


def test_the_board_gives_the_hosts_bytes() -> None:
    """One emulated board runs one case after the other."""
    require("qemu-system-arm", shutil.which("qemu-system-arm") is not None, "apt-get install qemu-system-arm")
    try:
        runner = deploy.runner_path(BOARD)
    except BoardError:
        runner = None
    require("the runner image", runner is not None, "make firmware")
    assert runner is not None
    session = _native.BoardSession(BOARD, runner)
    seen: Counter = Counter()
    # Every so many, so that the host has compared these seeds with the oracle.
    for seed in range(0, BOARD_CASES * 33, 33):
        case = cases.draw(seed)
        data = cases.build(case)
        images = np.ascontiguousarray(cases.stored_input(case))
        session.load(data)
        output = session.run(images.view(np.uint8).reshape(len(images), -1))
        assert output.outputs == _native.Model.from_bytes(data).run(images, 1, False).tobytes(), repr(case)
        seen[case.family] += 1
    print(f"\n{sum(seen.values())} cases on {BOARD}: {dict(seen)}")
    assert sum(seen.values()) >= 500 and all(seen[family] >= 10 for family in FAMILIES)


# ------------------------------------------------------------------------------------------------
# Fields drawn by Hypothesis, which shrinks them (a seed would not shrink).

halves = st.integers(-8, 8).map(lambda n: np.float32(n / 2))


@st.composite
def small_convolutions(draw: st.DrawFn) -> Case:
    """A small bbconv2d with BatchNorm, PReLU, bias and perhaps a pool, all on half-integers."""
    height, width, inputs = draw(st.integers(1, 5)), draw(st.integers(1, 5)), draw(st.integers(1, 35))
    filters = draw(st.integers(1, 3))
    kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    padding = tuple(draw(st.integers(0, 2)) for _ in range(4))
    strides = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    window = Window(kernel, strides, (draw(st.integers(1, 2)), 1), padding)  # type: ignore[arg-type]
    assume(min(window.output_size(height, width)) > 0)

    def bits(*shape: int) -> np.ndarray:
        size = int(np.prod(shape))
        return np.array([word == "1" for word in f"{draw(st.integers(0, 2**size - 1)):0{size}b}"]).reshape(
            shape
        )

    def column(values: st.SearchStrategy) -> np.ndarray:
        return np.array([draw(values) for _ in range(filters)], np.float32)

    norm = oracle.BatchNorm(
        column(halves),
        column(halves),
        column(halves),
        column(st.sampled_from([0.25, 1.0, 4.0])),
        np.float32(0),
    )
    chain: list[oracle.Step] = draw(
        st.permutations([norm, oracle.PReLU(column(halves)), oracle.Bias(column(halves))])
    )
    case = Case(
        -1,
        "bbconv2d",
        bits(1, height, width, inputs),
        (2 * bits(filters, *kernel, inputs).astype(np.int8) - 1).astype(np.int8),
        window,
        one_padding=draw(st.booleans()),
        before=chain,
    )
    plane = window.output_size(height, width)
    if draw(st.booleans()) and min(plane) > 1:
        cut = draw(st.integers(0, 3))
        case.pool, case.before, case.after = "between", chain[:cut], chain[cut:]
        case.pool_window = Window((2, 2), (draw(st.integers(1, 2)),) * 2)
    return case


@settings(max_examples=300, deadline=None)
@given(small_convolutions())
def test_small_convolutions(case: Case) -> None:
    try:
        case.operators = cases.lower(case)
    except (cases.TooManyIntervals, cases.FoldError):
        assume(False)
    answer = cases.answer(case)
    assert not answer.doubtful.any()
    assert mismatch(case, answer) is None


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_small_requantizations(data: st.DataObject) -> None:
    """Ties and saturation of every output type on a dense layer of few features."""
    features, units = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 3))
    shift = data.draw(st.integers(0, 12))
    # Multiples of a half of the last place make ties.
    factor = st.integers(-(2**20), 2**20) | st.integers(-9, 9).map(lambda n: n << shift >> 1)

    def column(values: st.SearchStrategy, dtype: type) -> np.ndarray:
        return np.array([data.draw(values) for _ in range(units)], dtype)

    mul_above, add_above, mul_below, add_below = (column(factor, np.int64) for _ in range(4))
    knee = column(st.integers(-features - 1, features + 1), np.int32)
    dtype = data.draw(st.sampled_from(["i8", "i16", "i32"]))
    rows = (mul_above, add_above, mul_below, add_below)
    case = Case(
        -1,
        "bbqfc",
        np.array([[[data.draw(st.lists(st.booleans(), min_size=features, max_size=features))]]]),
        np.where(np.arange(units * features).reshape(units, features) % 3, 1, -1).astype(np.int8),
        requantization=ops.Requantization(*rows, knee, shift, dtype, 1.0),
    )
    case.operators = cases.lower(case)
    assert mismatch(case, cases.answer(case)) is None
