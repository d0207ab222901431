"""Numbers as JSON has them: finite, or None where they are not defined."""

import math

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
