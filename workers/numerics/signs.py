"""Signs: which way the models agree, entry by entry.

Source: Yadav et al. 2023, arXiv:2306.01708, Algorithm 1, steps 2 and 3.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from workers.numerics import precision

Reduction = Literal["mean", "sum", "max"]


def orient(deltas: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the task vectors as they vote: negated where the weight is negative, zero where it is zero.

    deltas: [n, *shape]; result: [n, *shape]; the argument itself where no weight turns anything.
    """
    if all(weight > 0 for weight in weights):
        return deltas
    turns = torch.tensor([(weight > 0) - (weight < 0) for weight in weights], dtype=deltas.dtype, device=deltas.device)
    return deltas * turns.view(-1, *([1] * (deltas.dim() - 1)))


def votes(weights: Sequence[float], *, is_weighted: bool) -> list[float]:
    """Return how much each oriented task vector counts in the election: its weight's magnitude, or 1."""
    return [abs(weight) if is_weighted else 1.0 for weight in weights]


def elect(deltas: Tensor, votes: Sequence[float]) -> Tensor:
    """Return the sign of the sum of votes[i] · deltas[i]: -1, 0 (no votes, or exactly balanced) or 1.

    deltas: [n, *shape]; result: [*shape] int8. Summed in float64, so that balanced votes are seen as such.
    """
    return precision.weighted_sum(deltas, votes).sign_().to(torch.int8)


def agree(deltas: Tensor, elected: Tensor) -> Tensor:
    """Return the mask of the entries that have the elected sign; zeros have none.

    deltas: [n, *shape]; elected: [*shape] int8, -1 or 1; result: [n, *shape] bool.
    """
    return torch.where(elected > 0, deltas > 0, deltas < 0)


def reduce_agreeing(deltas: Tensor, elected: Tensor, weights: Sequence[float], *, reduction: Reduction) -> Tensor:
    """Return the disjoint merge: the weighted mean, sum or largest of the entries that agree, 0 where none does.

    deltas: [n, *shape]; elected: [*shape] int8, -1 or 1; weights: all >= 0; result: [*shape] float64.
    """
    agreeing = agree(deltas, elected)
    voting = deltas * agreeing
    if reduction == "max":
        return _largest(voting, weights)
    total = precision.weighted_sum(voting, weights)
    if reduction == "sum":
        return total
    share = precision.weighted_sum(agreeing, weights)
    return total.div_(share.masked_fill_(share == 0, 1.0))


def _largest(voting: Tensor, weights: Sequence[float]) -> Tensor:
    largest = voting[0].double() * weights[0]
    for entry, weight in zip(voting[1:], weights[1:], strict=True):
        weighted = entry.double() * weight
        largest = torch.where(weighted.abs() > largest.abs(), weighted, largest)
    return largest
