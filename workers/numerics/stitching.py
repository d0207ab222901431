"""Stitching: the weighted mean of task vectors over the tasks that have an entry, kept as a sum and a count.

Numerator and denominator are kept apart, so that a task can be added without the ones before it.

Source: He et al. 2024, arXiv:2408.13656, section 3.3.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.numerics import precision


@dataclass(frozen=True)
class Stitching:
    """Tasks stitched so far."""

    numerator: Tensor  # [*shape] float64: the weighted sum of what was localized
    denominator: Tensor  # [*shape] float64: the sum of the weights of the tasks that have the entry

    def __add__(self, other: "Stitching") -> "Stitching":
        """Return the tasks of both."""
        return Stitching(self.numerator + other.numerator, self.denominator + other.denominator)

    def stitch(self) -> Tensor:
        """Return the merged task vector, [*shape] float64: 0 where no task has the entry."""
        return torch.where(self.denominator > 0, self.numerator / self.denominator, 0.0)


def add_tasks(localized: Tensor, weights: Sequence[float]) -> Stitching:
    """Return the stitching of task vectors that are zero where the task has no entry of its own.

    localized: [n, *shape]; weights: all >= 0.
    """
    is_own = (localized != 0).to(localized.dtype)
    return Stitching(precision.weighted_sum(localized, weights), precision.weighted_sum(is_own, weights))
