"""Weights as fractions of their sum."""

from collections.abc import Sequence
from math import fsum

from app.domain.errors import Invalid


def of_sum(weights: Sequence[float], *, method: str, tensor: str) -> list[float]:
    """Return the weights divided by their sum.

    Raises: Invalid naming method and tensor if that is 0.
    """
    total = fsum(weights)
    if total == 0:
        raise Invalid(
            f"{method} divides by the sum of the weights, which is 0 for tensor {tensor!r} (found {list(weights)}), "
            "expected another number; change the weights."
        )
    return [weight / total for weight in weights]
