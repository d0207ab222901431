from fractions import Fraction

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.numerics import exact_sums

numbers = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=50)


@given(numbers)
def test_a_sum_is_exact(values: list[float]) -> None:
    found = exact_sums.to_fraction(exact_sums.sum_magnitudes(torch.tensor(values)))
    assert found == sum((Fraction(abs(value)) for value in values), Fraction(0))


@given(numbers, st.integers(0, 50))
def test_sums_of_parts_add_up(values: list[float], cut: int) -> None:
    whole = exact_sums.sum_magnitudes(torch.tensor(values))
    parts = [exact_sums.sum_magnitudes(torch.tensor(part)) for part in (values[:cut], values[cut:])]
    np.testing.assert_array_equal(parts[0] + parts[1], whole)


def test_no_numbers_sum_to_zero() -> None:
    assert exact_sums.to_fraction(exact_sums.sum_magnitudes(torch.empty(0, 3))) == 0


def test_the_smallest_number_and_the_largest_meet_without_loss() -> None:
    smallest, largest = 2.0**-149, float(torch.finfo(torch.float32).max)
    found = exact_sums.to_fraction(exact_sums.sum_magnitudes(torch.tensor([smallest, -largest])))
    assert found == Fraction(smallest) + Fraction(largest)
