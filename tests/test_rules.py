"""Rules against direct evaluation on every accumulator of small ranges, with nothing of the solver's own.

The referee evaluates a chain in Fractions where no square root is involved, and in 60-digit decimals
otherwise; values within 1e-40 of zero are exact zeros there (float32 parameters can't come closer).
"""

from __future__ import annotations

import random
import time
from collections import Counter
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from cbin_nn import rules as r
from cbin_nn.errors import ConversionError
from hypothesis import given, settings
from hypothesis import strategies as st

F32 = np.float32


def step_values(step: r.Step, x: Decimal, i: int) -> Decimal:
    """One step at 60 digits (the context's), straight from its formula."""

    def number(value: object) -> Decimal:
        if isinstance(value, Fraction):
            return Decimal(value.numerator) / Decimal(value.denominator)
        return Decimal(float(value[i]))  # type: ignore[index]

    if isinstance(step, r.PReLU):
        return x if x >= 0 else number(step.alpha) * x
    if isinstance(step, r.Linear):
        return number(step.factor) * x / number(step.divisor) + number(step.offset)
    sigma = (number(step.variance) + Decimal(step.epsilon)).sqrt()
    return number(step.gamma) * (x - number(step.mean)) / sigma + number(step.beta)


def chain_value(steps: list[r.Step], x: Decimal, i: int) -> Decimal:
    for step in steps:
        x = step_values(step, x, i)
        if abs(x) < Decimal(10) ** -40:
            x = Decimal(0)
    return x


def nice(rng: random.Random, *, zero: float = 0.1) -> float:
    """A float32 that often makes exact ties: small dyadic numbers mixed with arbitrary ones."""
    if rng.random() < zero:
        return 0.0
    if rng.random() < 0.5:
        return rng.randint(-12, 12) / rng.choice([1, 2, 4])
    return float(F32(rng.uniform(-3, 3)))


def random_step(rng: random.Random, n: int) -> r.Step:
    def column(zero: float = 0.1, scale: float = 1.0) -> np.ndarray:
        return np.array([nice(rng, zero=zero) * scale for _ in range(n)], F32)

    kind = rng.random()
    if kind < 0.4:
        variance = np.array(
            [rng.choice([0.0, 0.25, 1.0, 4.0, 2.0, abs(nice(rng)) + 0.01]) for _ in range(n)], F32
        )
        epsilon = rng.choice([0.0, 0.001, 1e-5]) if (variance > 0).all() else rng.choice([0.001, 1.0])
        return r.BatchNorm("bn", column(0.05, 2.0), column(scale=0.5), column(), variance, epsilon)
    if kind < 0.8:
        alpha = np.array([rng.choice([0.0, 1.0, -1.0, 0.25, -0.5, nice(rng, zero=0)]) for _ in range(n)], F32)
        return r.PReLU("prelu", alpha)
    return r.Linear("bias", Fraction(rng.choice([1, 1, -1, 2]), rng.choice([1, 3])), column(scale=0.5))


def bent_chain(rng: random.Random, n: int) -> list[r.Step]:
    """A PReLU with a negative slope, then a BatchNorm whose threshold lies among the values: two-sided
    rules."""
    alpha = np.array([-rng.choice([0.25, 0.5, 1.0, 2.0, rng.random()]) for _ in range(n)], F32)
    mean = np.array([rng.uniform(0, 12) for _ in range(n)], F32)
    gamma = np.array([rng.choice([-1, 1]) * rng.uniform(0.5, 2) for _ in range(n)], F32)
    variance = np.array([rng.choice([1.0, 2.0, 4.0, rng.random()]) for _ in range(n)], F32)
    beta = np.array([nice(rng) / 8 for _ in range(n)], F32)
    return [r.PReLU("prelu", alpha), r.BatchNorm("bn", gamma, beta, mean, variance, 1e-3)]


def random_chain(rng: random.Random, n: int, longest: int) -> list[r.Step]:
    if rng.random() < 0.3:
        return bent_chain(rng, n)
    if rng.random() < 0.1:  # ||x| - a| - b: up to four changes of sign
        fold = r.PReLU("fold", np.full(n, -1, F32))
        a, b = Fraction(rng.randint(4, 10)), Fraction(rng.randint(1, 4))
        return [fold, r.Linear("a", Fraction(1), -a), fold, r.Linear("b", Fraction(rng.choice([1, -1])), -b)]
    return [random_step(rng, n) for _ in range(rng.randint(0, longest))]


def kind_of(lo: int, hi: int, flip: bool) -> str:
    if lo > hi:
        return "constant"
    if lo == r.INT32_MIN:
        return "falling"
    if hi == r.INT32_MAX:
        return "rising"
    return "outside" if flip else "inside"


def random_reach(rng: random.Random, n: int) -> r.Reach:
    step = rng.choice([1, 2])
    size = rng.choice([1, 8, 25, 40])
    low = np.array([rng.randint(-size, 0) for _ in range(n)], np.int64)
    return r.Reach(
        low, low + step * np.array([rng.randint(size // 2, size) for _ in range(n)], np.int64), step
    )


def intervals_needed(bits: list[bool]) -> int:
    return sum(a != b for a, b in pairwise(bits))


@pytest.mark.parametrize("seed", range(4))
def test_every_rule_on_every_accumulator(seed: int) -> None:
    rng = random.Random(seed)
    kinds: Counter[str] = Counter()
    refused = 0
    with localcontext() as context:
        context.prec = 60
        for _ in range(250):
            n = rng.choice([1, 1, 1, 4])
            steps = random_chain(rng, n, 4)
            reach = random_reach(rng, n)
            expected = []
            for i in range(n):
                accs = range(int(reach.low[i]), int(reach.high[i]) + 1, reach.step)
                expected.append([(acc, chain_value(steps, Decimal(acc), i) >= 0) for acc in accs])
            too_many = [i for i in range(n) if intervals_needed([b for _, b in expected[i]]) > 2]
            try:
                sets, _ = r.sign_rules(steps, reach)
            except r.TooManyIntervals as error:
                assert error.elements == too_many
                refused += 1
                continue
            assert not too_many
            for i in range(n):
                lo, hi, flip = int(sets.lo[i]), int(sets.hi[i]), bool(sets.flip[i])
                for acc, bit in expected[i]:
                    assert ((lo <= acc <= hi) ^ flip) == bit, (steps, i, acc)
                kind = kind_of(lo, hi, flip)
                kinds[kind] += 1
                if kind in ("rising", "falling"):
                    assert not flip
                assert intervals_needed([b for _, b in expected[i]]) == {
                    "constant": 0,
                    "rising": 1,
                    "falling": 1,
                }.get(kind, 2)
    for kind in ("constant", "rising", "falling", "inside", "outside"):
        assert kinds[kind] >= 10, kinds
    assert refused >= 2


def test_exact_and_float_paths_agree() -> None:
    """The float64 pass proves most; where it does, the exact path must say the same."""
    rng = random.Random(5)
    proven = 0
    for _ in range(150):
        n = 4
        steps = [random_step(rng, n) for _ in range(rng.randint(1, 4))]
        low = np.array([rng.randint(-400, 0) for _ in range(n)], np.int64)
        reach = r.Reach(low, low + 2 * np.array([rng.randint(0, 400) for _ in range(n)], np.int64), 2)
        found = r._float_pass(steps, reach, slice(0, n), np.zeros(n, bool))
        for i in np.flatnonzero(found.proven):
            proven += 1
            pieces = r.linear_pieces(steps, int(reach.low[i]), int(reach.high[i]), 2, int(i))
            start, changes = r._exact_set(pieces, int(reach.low[i]), 2)
            assert len(changes) == found.ends[i]
            shape = r._shape(start, changes, 2)
            if shape is not None:
                assert shape == (found.sets.lo[i], found.sets.hi[i], found.sets.flip[i])
    assert proven > 200


@pytest.mark.parametrize("seed", range(6))
def test_pool_law_against_brute_force(seed: int) -> None:
    """bit = B(max A(acc)) >= 0 over random windows, for arbitrary A and B."""
    rng = random.Random(100 + seed)
    kinds: Counter[str] = Counter()
    with localcontext() as context:
        context.prec = 60
        for _ in range(250):
            n = rng.choice([1, 1, 1, 3])
            before = [random_step(rng, n) for _ in range(rng.randint(0, 2))]
            after = random_chain(rng, n, 3)
            reach = random_reach(rng, n)
            try:
                pooled, _ = r.pooled_rules(before, after, reach)
            except r.TooManyIntervals as error:
                kinds["refused"] += 1
                # One-element windows alone already show it, or the set on y has more than two ends.
                assert error.elements
                continue
            for i in range(n):
                accs = list(range(int(reach.low[i]), int(reach.high[i]) + 1, reach.step))
                y = {acc: chain_value(before, Decimal(acc), i) for acc in accs}
                for _ in range(40):
                    window = [rng.choice(accs) for _ in range(rng.choice([1, 2, 4, 9]))]
                    bit = chain_value(after, max(y[acc] for acc in window), i) >= 0
                    hit = [
                        ((pooled.rule.lo[i] <= a <= pooled.rule.hi[i]) ^ pooled.rule.flip[i]) for a in window
                    ]
                    stop = [
                        ((pooled.veto.lo[i] <= a <= pooled.veto.hi[i]) ^ pooled.veto.flip[i]) for a in window
                    ]
                    got = (any(hit) and not any(stop)) ^ bool(pooled.invert[i])
                    assert got == bit, (before, after, i, window)
                veto = pooled.veto.lo[i] <= pooled.veto.hi[i] or pooled.veto.flip[i]
                constant = pooled.rule.lo[i] > pooled.rule.hi[i]
                kinds[
                    "constant"
                    if constant
                    else ("complement" if pooled.invert[i] else "interval")
                    if veto
                    else "and"
                    if pooled.invert[i]
                    else "or"
                ] += 1
    for kind, least in (("or", 20), ("and", 20), ("constant", 20), ("interval", 3), ("complement", 3)):
        assert kinds[kind] >= least, kinds


def test_pool_law_two_sided_by_hand() -> None:
    """PReLU with slope -1 after the pool: |y| - 3 >= 0 and 3 - |y| >= 0."""
    reach = r.Reach(np.array([-9]), np.array([9]), 1)
    v = [r.PReLU("p", np.array([-1], F32)), r.Linear("b", Fraction(1), Fraction(-3))]
    pooled, _ = r.pooled_rules([], v, reach)
    # bit = NOT (-3 < y < 3): OR[acc >= -2] AND NOT OR[acc >= 3], inverted
    assert (int(pooled.rule.lo[0]), int(pooled.rule.hi[0])) == (-2, r.INT32_MAX)
    assert (int(pooled.veto.lo[0]), int(pooled.veto.hi[0])) == (3, r.INT32_MAX)
    assert pooled.invert[0]
    pooled, _ = r.pooled_rules([], [*v, r.Linear("n", Fraction(-1), Fraction(0))], reach)
    assert (int(pooled.rule.lo[0]), int(pooled.veto.lo[0]), bool(pooled.invert[0])) == (-3, 4, False)


def test_a_tie_is_plus_one_and_irrational_thresholds_are_exact() -> None:
    reach = r.Reach(np.array([-50, -50]), np.array([50, 50]), 1)
    # (x - 7) / sqrt(4) + 0: a tie at 7. And (x - 0) / sqrt(2) - 5: root 7.07.
    bn = r.BatchNorm(
        "bn", np.array([1, 1], F32), np.array([0, -5], F32), np.array([7, 0], F32), np.array([4, 2], F32), 0.0
    )
    sets, near = r.sign_rules([bn], reach)
    assert sets.lo.tolist() == [7, 8] and (sets.hi == r.INT32_MAX).all()
    assert near.tolist() == [True, False]
    bn = r.BatchNorm(
        "bn", np.array([-1, 0], F32), np.array([0, 0], F32), np.array([7, 0], F32), np.array([4, 2], F32), 0.0
    )
    sets, near = r.sign_rules([bn], reach)
    assert (sets.lo[0], sets.hi[0], sets.flip[0]) == (r.INT32_MIN, 7, False)
    assert (sets.lo[1], sets.hi[1], sets.flip[1]) == (1, 0, True)  # gamma = 0, beta = 0: always +1
    assert near.tolist() == [True, True]


def test_near_ties_follow_the_stated_tolerance() -> None:
    """|y| < 1e-5 * max(1, |gamma x / sigma|, |gamma mu / sigma|, |beta|) on a reachable accumulator."""

    def near(mean: float, gamma: float = 1.0, step: int = 1) -> bool:
        reach = r.Reach(np.array([-100]), np.array([100]), step)
        one = np.ones(1, F32)
        bn = r.BatchNorm("bn", one * F32(gamma), one * 0, one * F32(mean), one, 0.0)
        return bool(r.sign_rules([bn], reach)[1][0])

    assert near(50.0) and near(50.0003) and not near(50.001)
    assert near(0.000009) and not near(0.00002)
    assert not near(51.0, step=2)  # 51 can't occur
    assert near(0.3, gamma=1e-6)


def test_bad_parameters_name_the_layer() -> None:
    one = np.ones(3, F32)
    bad = np.array([1, np.nan, 1], F32)
    for make in (
        lambda: r.BatchNorm("norm_7", one, one, bad, one, 1e-3),
        lambda: r.BatchNorm("norm_7", one * np.inf, one, one, one, 1e-3),
        lambda: r.BatchNorm("norm_7", one, one, one, -one, 1e-3),
        lambda: r.BatchNorm("norm_7", one, one, one, one * 0, 0.0),
        lambda: r.PReLU("norm_7", bad),
        lambda: r.Linear("norm_7", Fraction(1), bad),
    ):
        with pytest.raises(ConversionError, match="norm_7"):
            make()


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=150, deadline=None)
@given(finite, finite, finite, st.floats(min_value=0, width=32, allow_infinity=False), finite)
def test_any_float32_parameters(
    gamma: float, beta: float, mean: float, variance: float, alpha: float
) -> None:
    """Subnormal, huge and overflowing parameters give a rule that Decimal confirms."""
    if variance == 0:
        variance = 1.0
    bn = r.BatchNorm(
        "bn",
        np.array([gamma], F32),
        np.array([beta], F32),
        np.array([mean], F32),
        np.array([variance], F32),
        1e-3,
    )
    reach = r.Reach(np.array([-20]), np.array([20]), 2)
    steps: list[r.Step] = [r.PReLU("p", np.array([alpha], F32)), bn]
    sets, _ = r.sign_rules(steps, reach)
    with localcontext() as context:
        context.prec = 200
        for acc in range(-20, 21, 2):
            x = Decimal(acc) if acc >= 0 else Decimal(float(F32(alpha))) * acc
            top = Decimal(gamma) * (x - Decimal(mean))
            sigma = (Decimal(float(F32(variance))) + Decimal(float(F32(1e-3)))).sqrt()
            assert bool(sets.contains(np.array([acc]))[0]) == (top + Decimal(beta) * sigma >= 0)


def test_speed() -> None:
    """A layer takes milliseconds; a plane of 100,000 elements, ties included, seconds."""
    rng = np.random.default_rng(0)

    def chain(n: int) -> list[r.Step]:
        normal = lambda: rng.normal(size=n).astype(F32)  # noqa: E731
        return [
            r.PReLU("p", normal()),
            r.BatchNorm("b", normal(), normal(), 9 * normal(), rng.uniform(1, 99, n).astype(F32), 1e-3),
        ]

    def reach(n: int) -> r.Reach:
        return r.Reach(np.full(n, -800), np.full(n, 800), 2)

    r.sign_rules(chain(64), reach(64))
    begin = time.perf_counter()
    r.sign_rules(chain(64), reach(64))
    assert time.perf_counter() - begin < 0.25  # milliseconds; generous for a shared machine
    begin = time.perf_counter()
    r.sign_rules(chain(100_000), reach(100_000))
    assert time.perf_counter() - begin < 10


def test_fold_law_equals_the_general_law() -> None:
    """The vectorised law for one negative PReLU after the pool gives what the exact one gives, field by
    field."""
    rng = random.Random(9)
    kinds: Counter[str] = Counter()
    for _ in range(300):
        n = 3
        before = [random_step(rng, n) for _ in range(rng.randint(0, 2))]
        head = [random_step(rng, n) for _ in range(rng.randint(0, 1))]
        after = [step for step in head if not isinstance(step, r.PReLU)] + bent_chain(rng, n)
        reach = random_reach(rng, n)
        found = r._fold_law(before, after, reach, np.ones(n, bool))
        assert found is not None
        fold, solved = found
        for i in np.flatnonzero(solved):
            expected = r._pool_law(before, after, reach, int(i))
            assert expected is not None
            got = (
                fold.rule.lo[i],
                fold.rule.hi[i],
                fold.rule.flip[i],
                fold.veto.lo[i],
                fold.veto.hi[i],
                fold.veto.flip[i],
                fold.invert[i],
            )
            assert got == expected
            kinds[
                "veto" if fold.veto.lo[i] <= fold.veto.hi[i] else "constant" if got[0] > got[1] else "plain"
            ] += 1
    assert min(kinds[k] for k in ("veto", "constant", "plain")) > 20, kinds


def test_windows_that_mix_elements() -> None:
    """Per-element parameters before the pool: one window holds different chains A, one B follows."""
    rng = random.Random(31)
    kinds: Counter[str] = Counter()
    with localcontext() as context:
        context.prec = 60
        for _ in range(300):
            n = 4
            before = [random_step(rng, n) for _ in range(rng.randint(1, 2))]
            after = [repeated(step, n) for step in random_chain(rng, 1, 3)]
            reach = random_reach(rng, n)
            try:
                pooled, _ = r.pooled_rules(before, after, reach, mixed=True)
            except r.TooManyIntervals:
                kinds["refused"] += 1
                continue
            assert len(set(pooled.invert.tolist())) == 1
            for _ in range(60):
                window = [rng.randrange(n) for _ in range(rng.choice([1, 2, 4]))]
                accs = [rng.randrange(int(reach.low[i]), int(reach.high[i]) + 1, reach.step) for i in window]
                top = max(chain_value(before, Decimal(acc), i) for i, acc in zip(window, accs, strict=True))
                hit, stop = (
                    any((s.lo[i] <= acc <= s.hi[i]) ^ s.flip[i] for i, acc in zip(window, accs, strict=True))
                    for s in (pooled.rule, pooled.veto)
                )
                assert (chain_value(after, top, 0) >= 0) == ((hit and not stop) ^ pooled.invert[0])
            kinds["veto" if pooled.veto.hi[0] > 0 or pooled.veto.flip.any() else "plain"] += 1
            kinds["invert"] += bool(pooled.invert[0])
    assert min(kinds[k] for k in ("veto", "plain", "invert")) > 20 and kinds["refused"] < 150, kinds


def repeated(step: r.Step, n: int) -> r.Step:
    """A step of one element for n elements."""
    fields = {k: np.repeat(v, n) if isinstance(v, np.ndarray) else v for k, v in vars(step).items()}
    return type(step)(**fields)


def test_where_an_exact_zero_is_reachable() -> None:
    """Against every accumulator of a small range: what torch.sign would map to 0."""
    rng = random.Random(41)
    counts: Counter[bool] = Counter()
    for _ in range(120):
        n = 6
        steps = [random_step(rng, n) for _ in range(rng.randint(1, 3))]
        if rng.random() < 0.3:
            divisor = np.array([nice(rng, zero=0) or 3 for _ in range(n)], F32)
            steps.append(r.Linear("d", Fraction(1), Fraction(0), divisor))
        low = np.array([rng.randint(-20, 5) for _ in range(n)], np.int64)
        step = rng.choice([1, 2])
        high = low + step * np.array([rng.randint(0, 12) for _ in range(n)])
        found = r.zero_reachable(steps, r.Reach(low, high, step))
        with localcontext() as context:
            context.prec = 60
            for i in range(n):
                values = range(int(low[i]), int(high[i]) + 1, step)
                expected = any(chain_value(steps, Decimal(acc), i) == 0 for acc in values)
                assert found[i] == expected, (steps, i)
                counts[expected] += 1
    assert min(counts[True], counts[False]) > 80, counts
