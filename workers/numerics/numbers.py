"""Numbers as JSON has them: finite, or None where they are not defined."""

import math
from collections.abc import Sequence

from torch import Tensor


def optional(value: Tensor | float) -> float | None:
    """Return the number, or None for NaN and infinity. value: 0-d."""
    number = float(value)
    return number if math.isfinite(number) else None


def optional_rows(values: Tensor) -> list[list[float | None]]:
    """Return the rows of a matrix, [m, n], with None where a number is not defined."""
    return [[optional(value) for value in row] for row in values.tolist()]


def ratio(part: float, whole: float) -> float | None:
    """Return part / whole, or None where the whole is 0."""
    return optional(part / whole) if whole else None


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean, or None where there is no value or one is not defined."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None


def normalize(value: float | None, reference: float | None, *, higher_is_better: bool) -> float | None:
    """Return how near a value comes to the reference: 1 is equal, more is better; None where a ratio means nothing."""
    if value is None or reference is None:
        return None
    over, under = (value, reference) if higher_is_better else (reference, value)
    return over / under if under > 0 and over >= 0 else None
