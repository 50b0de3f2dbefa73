"""Exact numbers against decimal arithmetic of 120 digits and against algebraic identities."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
from cbin_nn.exact import Exact, first_nonnegative
from hypothesis import given
from hypothesis import strategies as st

RADICANDS = [1, 2, 3, 5, 6, 8, 10, 12, 15, 30, 49, 2**61 - 1, 4 * (2**61 - 1)]
fractions = st.fractions(min_value=-50, max_value=50, max_denominator=1000)
terms = st.lists(st.tuples(fractions, st.sampled_from(RADICANDS)), max_size=5)


def build(parts: list[tuple[Fraction, int]]) -> Exact:
    total = Exact(0)
    for coefficient, radicand in parts:
        total = total + Exact.sqrt(radicand) * coefficient
    return total


def decimal(parts: list[tuple[Fraction, int]]) -> Decimal:
    with localcontext() as context:
        context.prec = 120
        return sum(
            (Decimal(c.numerator) / Decimal(c.denominator) * Decimal(r).sqrt() for c, r in parts), Decimal(0)
        )


@given(terms)
def test_sign_floor_ceil_and_float(parts: list[tuple[Fraction, int]]) -> None:
    number, value = build(parts), decimal(parts)
    # Coefficients this small can't make a non-zero sum below 1e-90 (norm argument), so this decides zero.
    if abs(value) < Decimal(10) ** -90:
        assert number.sign() == 0 and not number and number == 0
        assert number.floor() == number.ceil() == 0
        return
    assert number.sign() == (1 if value > 0 else -1)
    assert math.isclose(float(number), float(value), rel_tol=1e-14)
    nearest = value.to_integral_value()
    if abs(value - nearest) > Decimal(10) ** -90:
        assert number.floor() == math.floor(value)
        assert number.ceil() == math.floor(value) + 1
    else:
        assert number.floor() == number.ceil() == int(nearest)


@given(terms, terms, terms)
def test_ring_identities(x: list, y: list, z: list) -> None:
    a, b, c = build(x), build(y), build(z)
    assert (a + b) * c == a * c + b * c
    assert a * b == b * a
    assert (a - a).terms == {}
    assert (a + b) * (a - b) == a * a - b * b
    assert (a < b) == (decimal(x) - decimal(y) < -(Decimal(10) ** -90))


@given(st.fractions(min_value=0, max_value=10**6))
def test_square_root_squares_back(value: Fraction) -> None:
    root = Exact.sqrt(value)
    assert root * root == value
    assert root.sign() == (1 if value else 0)


def test_classes_are_recognised_across_representatives() -> None:
    assert (Exact.sqrt(2) * Exact.sqrt(3) - Exact.sqrt(6)).sign() == 0
    assert (Exact.sqrt(18) - 3 * Exact.sqrt(2)).sign() == 0
    p = 2**61 - 1
    assert (Exact.sqrt(9 * p) - 3 * Exact.sqrt(p)).sign() == 0
    assert (Exact.sqrt(6) * Exact.sqrt(10) - 2 * Exact.sqrt(15)).sign() == 0
    assert Exact.sqrt(Fraction(9, 4)).rational() == Fraction(3, 2)
    assert Exact.sqrt(2).rational() is None
    # (sqrt2 + sqrt3)^2 = 5 + 2 sqrt6
    s = Exact.sqrt(2) + Exact.sqrt(3)
    assert s * s == Exact(5) + 2 * Exact.sqrt(6)


def test_sign_beyond_float64() -> None:
    # 665857/470832 is a convergent of sqrt(2); squaring it twice more gives an error near 1e-48.
    p, q = 665857, 470832
    for _ in range(2):
        p, q = p * p + 2 * q * q, 2 * p * q
    difference = Exact(Fraction(p, q)) - Exact.sqrt(2)
    assert float(Fraction(p, q)) == math.sqrt(2)
    assert difference.sign() == 1
    assert (difference + Exact.sqrt(3) - Exact.sqrt(3)).sign() == 1
    # three classes: intervals have to refine
    assert (difference * Exact.sqrt(3) + Exact.sqrt(5) - Exact.sqrt(5) + difference).sign() == 1


def test_three_terms_that_nearly_cancel() -> None:
    # sqrt(n) + sqrt(n + 2) - 2 sqrt(n + 1) ~ -1/(4 n^1.5)
    n = 10**40 + 1
    assert (Exact.sqrt(n) + Exact.sqrt(n + 2) - 2 * Exact.sqrt(n + 1)).sign() == -1


def test_rounding() -> None:
    assert [Exact(Fraction(n, 2)).round_half_even() for n in (-3, -1, 1, 3, 5)] == [-2, 0, 0, 2, 2]
    assert Exact.sqrt(2).round_half_even() == 1
    assert (Exact.sqrt(3) * 10).round_half_even() == 17
    assert (Exact.sqrt(3) * -10).round_half_even() == -17


def test_negative_square_root_is_an_error() -> None:
    with pytest.raises(ValueError, match="negative"):
        Exact.sqrt(-1)


@given(
    st.sampled_from(RADICANDS),
    st.fractions(min_value=Fraction(1, 10**6), max_value=1000, max_denominator=10**6),
    fractions,
    st.booleans(),
)
def test_first_nonnegative(radicand: int, a: Fraction, b: Fraction, strict: bool) -> None:
    slope, intercept = Exact.sqrt(radicand) * a, Exact.sqrt(2) * b
    found = first_nonnegative(slope, intercept, -100, 100, strict=strict)

    def holds(n: int) -> bool:
        sign = (slope * n + intercept).sign()
        return sign > 0 or (sign == 0 and not strict)

    assert found == next((n for n in range(-100, 101) if holds(n)), 101)
    far = first_nonnegative(slope, intercept, -(10**12), 10**12, strict=strict)
    if -(10**12) < far <= 10**12:
        assert holds(far) and not holds(far - 1)
