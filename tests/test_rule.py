"""`cbin_nn.rule`: rules as objects, against their definition evaluated on every accumulator."""

from __future__ import annotations

import copy
import doctest
import pickle
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from cbin_nn import Rule
from cbin_nn import rule as module
from cbin_nn.errors import InvalidArgument
from cbin_nn.rule import BatchNorm, Bias, MaxPool, PReLU, Scale
from hypothesis import given, settings
from hypothesis import strategies as st

LOW, HIGH = -(2**31), 2**31 - 1
int32 = st.integers(LOW, HIGH) | st.integers(-3, 3) | st.sampled_from([LOW, LOW + 1, HIGH - 1, HIGH])


def test_the_examples_of_the_docstrings() -> None:
    outcome = doctest.testmod(module)
    assert outcome.attempted >= 6
    assert outcome.failed == 0


@given(int32, int32, st.booleans(), st.lists(int32, min_size=1))
def test_a_rule_is_its_definition_whatever_its_stored_form(
    lo: int, hi: int, flip: bool, accs: list[int]
) -> None:
    rule = Rule([lo], [hi], [flip])
    accs = [*accs, lo, hi, max(LOW, lo - 1), min(HIGH, hi + 1), LOW, HIGH]
    bits = rule.apply(np.array(accs)[:, None])[:, 0]
    assert bits.tolist() == [(lo <= acc <= hi) != flip for acc in accs]
    stored = rule.to_rules()
    assert stored.grid == "channel"
    assert (stored.lo.dtype, stored.hi.dtype, stored.flip.dtype) == (np.int32, np.int32, np.bool_)
    again = Rule(stored.lo, stored.hi, stored.flip)
    assert again == rule
    assert hash(again) == hash(rule)


@given(int32, int32, int32, int32, st.booleans(), st.booleans())
def test_equality_is_of_sets(a: int, b: int, c: int, d: int, f: bool, g: bool) -> None:
    one, two = Rule([a], [b], [f]), Rule([c], [d], [g])
    ends = {e + i for e in (a, b, c, d) for i in (-1, 0, 1)} | {LOW, HIGH}
    accs = np.array(sorted(e for e in ends if LOW <= e <= HIGH))[:, None]
    assert (one == two) == bool(np.array_equal(one.apply(accs), two.apply(accs)))


def test_kinds_and_conditions() -> None:
    lo, hi = [3, LOW, -8, 2, 5, 1, LOW, 1, 7], [HIGH, 4, 4, 6, 5, 0, HIGH, 0, 7]
    flip = [False, False, False, True, False, False, False, True, True]
    rule = Rule(lo, hi, flip)
    assert str(rule).splitlines() == [
        "channel  kind      condition",
        "0        rising    acc >= 3",
        "1        falling   acc <= 4",
        "2        inside    -8 <= acc <= 4",
        "3        outside   acc < 2 or acc > 6",
        "4        inside    acc == 5",
        "5        constant  always -1",
        "6        constant  always +1",
        "7        constant  always +1",
        "8        outside   acc != 7",
    ]
    kinds = "rising falling inside outside inside constant constant constant outside"
    assert rule.kind.tolist() == kinds.split()
    assert repr(rule) == "<Rule of 9 channels: 3 constant, 1 falling, 2 inside, 2 outside, 1 rising>"
    assert len(rule) == 9
    assert Rule([3], [HIGH], [True]) == Rule.from_thresholds(hi=[2])  # a complement on one side has no flip
    assert len(str(Rule.from_thresholds(np.arange(100))).splitlines()) == 1 + 64 + 1


def test_per_element_rules() -> None:
    rule = Rule.from_thresholds(np.arange(12).reshape(2, 3, 2))
    assert rule.shape == (2, 3, 2)
    assert len(rule) == 12
    assert rule.to_rules().grid == "conv"
    assert str(rule).splitlines()[:2] == ["element  kind    condition", "0, 0, 0  rising  acc >= 0"]
    acc = np.full((5, 2, 3, 2), 6)
    assert rule.apply(acc).sum() == 5 * 7
    slopes = np.where(np.arange(12).reshape(2, 3, 2) % 2, -1.0, 1.0)
    bent = Rule.from_chain([PReLU(slopes), Bias([-2, -3])])
    assert bent.shape == (2, 3, 2)
    assert set(bent.kind[..., 0].ravel()) == {"rising"}
    assert set(bent.kind[..., 1].ravel()) == {"outside"}


def test_a_rule_can_not_be_changed() -> None:
    rule = Rule.from_thresholds([1, 2])
    with pytest.raises(AttributeError, match="immutable"):
        rule.lo = np.zeros(2, np.int32)
    with pytest.raises(AttributeError, match="immutable"):
        del rule.flip
    with pytest.raises(ValueError, match="read-only"):
        rule.lo[0] = 7
    given_ends = np.array([1, 2])
    made = Rule.from_thresholds(given_ends)
    given_ends[0] = 9
    assert made == rule
    assert made.__eq__(3) is NotImplemented
    assert rule != Rule.from_thresholds([1, 3])
    assert rule != Rule.from_thresholds([1])
    assert copy.deepcopy(rule) == rule
    assert pickle.loads(pickle.dumps(rule)) == rule
    slopes = PReLU([1.0, 2.0])
    with pytest.raises(ValueError, match="read-only"):
        slopes.slopes[0] = 3


@pytest.mark.parametrize("gamma, kind", [(2, "rising"), (-2, "falling"), (0, "constant"), (1e-30, "rising")])
def test_gamma_decides_the_side(gamma: float, kind: str) -> None:
    rule = Rule.from_batchnorm([gamma], [0], [3], [4])
    assert rule.kind.tolist() == [kind]
    assert rule.apply([[3]]).item()  # a tie gives +1
    assert rule.apply([[2]]).item() == (kind in ("falling", "constant"))
    assert rule.apply([[4]]).item() == (kind in ("rising", "constant"))


dyadic = st.integers(-40, 40).map(lambda n: n / 8)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("prelu"), dyadic),
            st.tuples(st.just("bias"), dyadic),
            st.tuples(st.just("scale"), dyadic),
            st.tuples(st.just("bn"), dyadic, dyadic, dyadic, st.sampled_from([0.25, 1, 4])),
        ),
        max_size=4,
    )
)
def test_a_chain_is_its_steps_one_after_the_other(plan: list[tuple]) -> None:
    made = {
        "prelu": lambda a: PReLU([a]),
        "bias": Bias,
        "scale": lambda a: Scale([a]),
        "bn": lambda g, b, m, v: BatchNorm([g], b, [m], v, 0),
    }

    def value(acc: int) -> Fraction:
        y = Fraction(acc)
        for kind, *p in plan:
            a = [Fraction(x) for x in p]
            if kind == "prelu":
                y = y if y >= 0 else a[0] * y
            elif kind == "bias":
                y += a[0]
            elif kind == "scale":
                y *= a[0]
            else:
                y = a[0] * (y - a[2]) / Fraction(np.sqrt(p[3])) + a[1]
        return y

    accs = range(-50, 51)
    expected = [value(acc) >= 0 for acc in accs]
    changes = sum(a != b for a, b in pairwise(expected))
    steps = [made[kind](*p) for kind, *p in plan]
    if changes > 2:
        with pytest.raises(InvalidArgument, match="`steps` changes sign more than twice in channels 0"):
            Rule.from_chain(steps, accumulators=(-50, 50))
        return
    rule = Rule.from_chain(steps, accumulators=(-50, 50))
    assert rule.apply(np.array(accs)[:, None])[:, 0].tolist() == expected
    assert rule.kind.item() == "constant" if not changes else rule.kind.item() != "constant"


def test_shapes_and_channels_of_a_chain() -> None:
    assert Rule.from_chain([]).kind.tolist() == ["rising"]
    assert len(Rule.from_chain([Bias(1)], channels=5)) == 5
    assert len(Rule.from_chain(Bias(np.ones((1, 1, 5))))) == 5  # Keras' shared_axes
    narrow = Rule.from_chain([Bias([-3, -3])], accumulators=([-2, -2], [2, 8]))
    assert narrow.kind.tolist() == ["constant", "rising"]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Rule([1.5], [2]), r"`lo` is float64 \[1\], expected integers"),
        (lambda: Rule([1], [2**31]), "`hi` is 2147483648, expected integers within int32"),
        (lambda: Rule([1], [2], [1]), r"`flip` is int64 \[1\], expected bool"),
        (lambda: Rule([1, 2], [1, 2, 3]), r"have shapes \[\[2\], \[3\], \[\]\], expected one shape"),
        (lambda: Rule([[1]], [[2]]), r"`lo` has shape \[1, 1\], expected \[C\] or \[H, W, C\]"),
        (lambda: Rule(np.zeros(0, int), 1), r"`lo` has shape \[0\], expected"),
        (lambda: Rule.from_thresholds(), "`lo` and `hi` are None, expected"),
        (lambda: Rule.from_thresholds([1]).apply([1.0]), r"`acc` is float64 \[1\], expected integers"),
        (lambda: Rule.from_thresholds([1]).apply([1, 2]), r"`acc` has shape \[2\], expected \[\.\.\., 1\]"),
        (lambda: Rule.from_batchnorm([1], [1], [1], [-1]), r"`variance` \+ `epsilon` is -0.999, expected"),
        (lambda: Rule.from_batchnorm([float("nan")], [1], [1], [1]), "`gamma` is nan at element 0"),
        (lambda: Rule.from_batchnorm([1], [1], [1], [1], [1, 2]), r"`epsilon` has shape \[2\], expected one"),
        (
            lambda: Rule.from_batchnorm([1, 2], [1, 2, 3], [1], [1]),
            r"`beta` of BatchNorm has shape \[3\], expected",
        ),
        (lambda: Rule.from_chain([MaxPool(2)]), "`steps` holds a MaxPool, expected"),
        (lambda: Rule.from_chain([7]), "`steps` holds 7, expected BatchNorm"),
        (lambda: Rule.from_chain([Bias([1, 2])], channels=3), "`channels` is 3, expected 2"),
        (lambda: Rule.from_chain([], channels=0), "`channels` is 0, expected an integer from 1"),
        (lambda: Rule.from_chain([], accumulators=5), r"`accumulators` is 5, expected \(lowest, highest\)"),
        (lambda: Rule.from_chain([], accumulators=(5, 4)), r"`accumulators` is \(5, 4\), expected lowest <="),
        (lambda: Rule.from_chain([], accumulators=(LOW, 4)), "`accumulators` is .*expected"),
        (lambda: Rule.from_chain([Bias([1, 2])], accumulators=([1, 2, 3], 4)), r"have shape \[3\], expected"),
        (lambda: MaxPool(0), "`size` is 0, expected"),
        (lambda: MaxPool((2, 2), strides=(1, 0)), r"`strides` is \(1, 0\), expected"),
        (lambda: PReLU([]), r"`slopes` has shape \[0\], expected"),
        (lambda: Bias([[1], [2, 3]]), r"`values` is .*expected real numbers"),
    ],
)
def test_bad_arguments_are_named(make: object, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        make()  # type: ignore[operator]
