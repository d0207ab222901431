"""What kernels are given: divisors as reciprocals that give the same quotients, to the last bit."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.fusion import FusedMerge
from workers.numerics.arrays import program_of
from workers.numerics.programs import Program

SUMS = st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: x == 0 or 2.0**-700 < abs(x) < 2.0**900)
FEW_BITS = st.builds(lambda bits, by: bits * 2.0**by, st.integers(1, 2**40), st.integers(-60, 20))


def program(divisor: float, weights: tuple[float, ...] = (1.0, 0.5)) -> Program:
    return program_of(FusedMerge(weights, divisor=divisor), has_base=False)


def divide(number: float, by: Program) -> float:
    """Do what kernels do: a product, and a product with a sum that are rounded once."""
    exact = Fraction(number) * Fraction(by.reciprocal) + Fraction(number * by.rest)
    return float(exact) if exact else number * by.reciprocal + number * by.rest


@given(SUMS, st.one_of(FEW_BITS, st.integers(1, 300).map(float)), st.sampled_from((1.0, -1.0)))
@settings(max_examples=2000)
def test_reciprocals_give_the_quotients_of_division(number: float, divisor: float, sign: float) -> None:
    found = program(sign * divisor)
    assert found.divisor == 1.0
    quotient, expected = divide(number, found), number / (sign * divisor)
    assert (quotient, np.signbit(quotient)) == (expected, np.signbit(expected))


@given(st.integers(1, 2**53 - 1), st.integers(1, 1000))
@settings(max_examples=2000)
def test_quotients_next_to_a_number_halfway_between_two_are_rounded_as_division_rounds_them(bits: int, n: int) -> None:
    for number in (float(bits * n // 2), np.nextafter(float(bits * n), 0.0)):
        assert divide(float(number), program(float(n))) == number / n


@pytest.mark.parametrize("divisor", [0.1 + 0.2, 1 / 3, 2.0**-70, 2.0**70 * 3, 1.0 + 2.0**-52])
def test_what_reciprocals_might_round_otherwise_is_divided(divisor: float) -> None:
    found = program(divisor)
    assert (found.divisor, found.reciprocal, found.rest) == (divisor, 1.0, 0.0)


def test_where_sums_may_be_tiny_it_is_divided() -> None:
    assert program(3.0, (1.0, 1e-300)).divisor == 3.0
    assert program(3.0, (1.0, 0.0)).divisor == 1.0
