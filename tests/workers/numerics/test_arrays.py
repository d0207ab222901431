"""What kernels are given: divisors as reciprocals that give the same quotients, parts of whole blocks."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from workers.fusion import LEAST_PART, FusedMerge
from workers.numerics.arrays import program_of
from workers.numerics.programs import BLOCK, PRODUCT_BLOCK, Program

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


@given(st.integers(2**38, 2**39 - 1).map(lambda half: 2 * half + 1), st.integers(0, 2**13), st.sampled_from((1, -1)))
@settings(max_examples=1000)
def test_quotients_are_rounded_right_as_near_as_they_come_to_halfway(divisor: int, by: int, side: int) -> None:
    """x · 2^41 = middle · divisor + side, where the middle lies halfway between two numbers of float64."""
    first = side * pow(2, -41, divisor) % divisor
    number = first + (2**52 // divisor + by) * divisor
    middle, rest = divmod(number * 2**41 - side, divisor)
    assume(2**52 <= number < 2**53 and middle.bit_length() == 54 and middle % 2 == 1)
    assert rest == 0
    assert divide(float(number), program(float(divisor))) == number / divisor


@pytest.mark.parametrize("divisor", [0.1 + 0.2, 1 / 3, 2.0**-70, 2.0**70 * 3, 1.0 + 2.0**-52])
def test_what_reciprocals_might_round_otherwise_is_divided(divisor: float) -> None:
    found = program(divisor)
    assert (found.divisor, found.reciprocal, found.rest) == (divisor, 1.0, 0.0)


def test_where_sums_may_be_tiny_it_is_divided() -> None:
    assert program(3.0, (1.0, 1e-300)).divisor == 3.0
    assert program(3.0, (1.0, 0.0)).divisor == 1.0


def test_parts_are_whole_blocks() -> None:
    assert LEAST_PART % PRODUCT_BLOCK == 0
    assert LEAST_PART % BLOCK == 0
