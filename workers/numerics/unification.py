"""One vector for all tasks, and the mask through which each task sees it.

Source: Huang et al. 2024, arXiv:2405.17461, section 3.2 (elect); Wang et al. 2024, arXiv:2405.07813, section 4.1 (mask
of what a task needs of a sum).
"""

import torch
from torch import Tensor

from workers.numerics import precision, signs


def elect(deltas: Tensor) -> Tensor:
    """Return γ ⊙ max |τ| over the task vectors whose sign is γ = sign Στ; 0 where the sum is exactly 0.

    deltas: [n, *shape]; result: [*shape] float64.
    """
    once = [1.0] * len(deltas)
    elected = signs.elect(deltas, once)
    return signs.reduce_agreeing(deltas, elected, once, reduction="max")


def agrees(delta: Tensor, unified: Tensor) -> Tensor:
    """Return where a task vector points the way of the unified one, bool. Both [*shape]; zero agrees with nothing."""
    return torch.logical_and(delta > 0, unified > 0).logical_or_(torch.logical_and(delta < 0, unified < 0))


def total(deltas: Tensor) -> Tensor:
    """Return the sum of the task vectors. deltas: [n, *shape]; result: [*shape] float64."""
    return precision.weighted_sum(deltas, [1.0] * len(deltas))


def outweighs(delta: Tensor, summed: Tensor, threshold: float) -> Tensor:
    """Return where |τ| > threshold · |Σ − τ|: what the others would add is smaller, bool.

    delta, summed: [*shape] float64; an entry of zero never does.
    """
    return delta.abs() > (summed - delta).abs().mul_(threshold)
