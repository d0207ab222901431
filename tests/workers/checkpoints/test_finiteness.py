"""Finite or not, from the bits: as torch.isfinite says, for every floating dtype."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.checkpoints.finiteness import has_finite_bits

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@given(values=st.lists(st.floats(width=16), max_size=20))
def test_agrees_with_torch(dtype: torch.dtype, values: list[float]) -> None:
    numbers = torch.tensor(values, dtype=dtype)
    assert has_finite_bits(numbers) == bool(torch.isfinite(numbers).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_numbers_are_finite_and_the_next_are_not(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    assert has_finite_bits(torch.tensor([largest, -largest, 0.0, -0.0], dtype=dtype))
    for value in (math.inf, -math.inf, math.nan, -math.nan):
        assert not has_finite_bits(torch.tensor([0.0, value, 1.0], dtype=dtype))


def test_nothing_is_finite() -> None:
    assert has_finite_bits(torch.empty(0))
