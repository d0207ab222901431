"""Weights as fractions of their sum."""

import pytest

from app.domain.errors import Invalid
from workers.numerics import fractions


def test_weights_are_divided_by_their_sum() -> None:
    assert fractions.of_sum([1.0, 3.0], method="expo", tensor="w") == [0.25, 0.75]
    assert fractions.of_sum([3.0, -1.0], method="expo", tensor="w") == [1.5, -0.5]


def test_a_sum_of_zero_is_refused_with_method_and_tensor() -> None:
    message = r"expo divides by the sum of the weights, which is 0 for tensor 'w' \(found \[1.0, -1.0\]\), expected an"
    with pytest.raises(Invalid, match=message):
        fractions.of_sum([1.0, -1.0], method="expo", tensor="w")
