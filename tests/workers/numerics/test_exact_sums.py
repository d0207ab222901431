from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.numerics import exact_sums, fused


@pytest.fixture(scope="module", autouse=True)
def _kernels() -> None:
    assert fused.load()


numbers = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=50)


@given(numbers)
def test_a_sum_is_exact(values: list[float]) -> None:
    found = exact_sums.to_fraction(exact_sums.sum_magnitudes(torch.tensor(values)))
    assert found == sum((Fraction(abs(value)) for value in values), Fraction(0))


@given(numbers, st.integers(0, 50))
def test_sums_of_parts_add_up(values: list[float], cut: int) -> None:
    whole = exact_sums.sum_magnitudes(torch.tensor(values))
    parts = [exact_sums.sum_magnitudes(torch.tensor(part)) for part in (values[:cut], values[cut:])]
    assert exact_sums.to_fraction(parts[0] + parts[1]) == exact_sums.to_fraction(whole)


@given(
    seed=st.integers(0, 1 << 20),
    n=st.sampled_from([1, 7, 2047, 2048, 2049, 5000]),
    spread=st.sampled_from([0.0, 1.0, 8.0, 40.0]),
    center=st.sampled_from([-44.0, -30.0, 0.0, 30.0]),
)
@settings(max_examples=60, deadline=None)
def test_long_sums_are_exact_whatever_their_numbers_span(seed: int, n: int, spread: float, center: float) -> None:
    # in units of the largest number's last bits as far as all are whole multiples, else exponent by exponent
    random = np.random.default_rng(seed)
    exponents = np.clip(random.normal(center, spread, n), -45, 37.5)
    values = (random.uniform(-10.0, 10.0, n) * 10.0**exponents).astype(np.float32)
    found = exact_sums.to_fraction(exact_sums.sum_magnitudes(torch.from_numpy(values)))
    assert found == sum((Fraction(abs(float(value))) for value in values), Fraction(0))


def test_no_numbers_sum_to_zero() -> None:
    assert exact_sums.to_fraction(exact_sums.sum_magnitudes(torch.empty(0, 3))) == 0


def test_the_smallest_number_and_the_largest_meet_without_loss() -> None:
    smallest, largest = 2.0**-149, float(torch.finfo(torch.float32).max)
    found = exact_sums.to_fraction(exact_sums.sum_magnitudes(torch.tensor([smallest, -largest])))
    assert found == Fraction(smallest) + Fraction(largest)
