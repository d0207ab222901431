"""Stitching: the weighted mean of task vectors over the tasks that have an entry, as a sum and a count.

Source: He et al. 2024, arXiv:2408.13656, section 3.3.
"""

from collections.abc import Sequence

from torch import Tensor

from workers.numerics import precision
from workers.sums import Sums


def add_tasks(localized: Tensor, weights: Sequence[float], onto: Sums | None = None) -> Sums:
    """Return the sums of task vectors that are zero where the task has no entry of its own.

    localized: [n, *shape]; weights: all >= 0; onto: of the tasks before these, [*shape]: the result is that of
    all tasks at once, to the bit.
    """
    is_own = (localized != 0).to(localized.dtype)
    if onto is None:
        return Sums(precision.weighted_sum(localized, weights), precision.weighted_sum(is_own, weights))
    return Sums(
        precision.weighted_sum((onto.numerator, *localized), (1.0, *weights)),
        precision.weighted_sum((onto.denominator, *is_own), (1.0, *weights)),
    )
