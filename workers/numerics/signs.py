"""Signs: which way the models agree, entry by entry.

Source: Yadav et al. 2023, arXiv:2306.01708, Algorithm 1, steps 2 and 3.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from workers.fusion import Election, FusedMerge
from workers.numerics import fused, precision, task_vectors
from workers.numerics.programs import NUDGE

Reduction = Literal["mean", "sum", "max"]
Vote = Literal["unweighted", "weighted"]


def orient(deltas: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the task vectors as they vote: negated where the weight is negative, zero where it is zero.

    deltas: [n, *shape]; result: [n, *shape]; the argument itself where no weight turns anything.
    """
    if all(weight > 0 for weight in weights):
        return deltas
    turns = torch.tensor([(weight > 0) - (weight < 0) for weight in weights], dtype=deltas.dtype, device=deltas.device)
    return deltas * turns.view(-1, *([1] * (deltas.dim() - 1)))


def weigh_votes(weights: Sequence[float], *, is_weighted: bool) -> list[float]:
    """Return how much each oriented task vector counts in the election: its weight's magnitude, or 1."""
    return [abs(weight) if is_weighted else 1.0 for weight in weights]


def elect(deltas: Tensor, votes: Sequence[float], *, balanced_sign: int = 0) -> Tensor:
    """Return the sign of the sum of votes[i] · deltas[i]: -1, 1, or `balanced_sign` where the sum is exactly 0.

    deltas: [n, *shape]; result: [*shape] float32. Summed in float64, so that balanced votes are seen as such.
    """
    total = precision.weighted_sum(deltas, votes)
    return total.add_(balanced_sign * NUDGE).sign_().float()


def merge_disjointly(
    deltas: Tensor, weights: Sequence[float], *, vote: Vote, reduction: Reduction, balanced_sign: int
) -> Tensor:
    """Return what election and disjoint merge make of task vectors that `orient` has turned by their weights.

    deltas: [n, *shape]; result: [*shape] float64.
    """
    votes = weigh_votes(weights, is_weighted=vote == "weighted")
    elected = elect(deltas, votes, balanced_sign=balanced_sign)
    return reduce_agreeing(deltas, elected, [abs(weight) for weight in weights], reduction=reduction)


def merge_onto(  # noqa: PLR0913 task vectors, and how they are merged
    base: Tensor,
    deltas: Tensor,
    weights: Sequence[float],
    *,
    vote: Vote,
    reduction: Reduction,
    balanced_sign: int,
    scaling_coefficient: float,
) -> Tensor:
    """Return base + scaling_coefficient · the disjoint merge of task vectors, which `orient` has not seen.

    base: [*shape]; deltas: [n, *shape]; result: [*shape] float32.
    """
    if fused.takes(base):
        election = Election(tuple(weigh_votes(weights, is_weighted=vote == "weighted")), balanced_sign, reduction)
        program = FusedMerge(tuple(weights), election=election, scaling=scaling_coefficient, base_share=1.0)
        merged = fused.join(base, deltas, program)
        if merged is not None:
            return merged
    oriented = orient(deltas, weights)
    delta = merge_disjointly(oriented, weights, vote=vote, reduction=reduction, balanced_sign=balanced_sign)
    return task_vectors.add(base, delta, scaling_coefficient=scaling_coefficient)


def reduce_agreeing(deltas: Tensor, elected: Tensor, weights: Sequence[float], *, reduction: Reduction) -> Tensor:
    """Return the disjoint merge: the weighted mean, sum or largest of the entries of the elected sign, 0 without any.

    deltas: [n, *shape]; elected: [*shape], -1 or 1; weights: all >= 0; result: [*shape] float64.
    """
    agreeing = (deltas * elected).clamp_min_(0.0)  # magnitude of what agrees, 0 elsewhere
    if reduction == "max":
        return _largest(agreeing, weights).mul_(elected)
    total = precision.weighted_sum(agreeing, weights).mul_(elected)
    return total if reduction == "sum" else total.div_(_shares(agreeing.sign_(), weights))


def _largest(magnitudes: Tensor, weights: Sequence[float]) -> Tensor:
    largest = magnitudes[0].double().mul_(weights[0])
    for magnitude, weight in zip(magnitudes[1:], weights[1:], strict=True):
        torch.maximum(largest, magnitude.double().mul_(weight), out=largest)
    return largest


def _shares(is_agreeing: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the weights of those that agree, summed; where there are none, some number to divide their sum of 0 by."""
    if len(set(weights)) == 1:  # float32 counts exactly, in a third of the time
        count = is_agreeing[0].clone()
        for other in is_agreeing[1:]:
            count.add_(other)
        return count.clamp_min_(1.0).double().mul_(weights[0] or 1.0)
    smallest = min(weight for weight in weights if weight > 0)
    return precision.weighted_sum(is_agreeing, weights).clamp_min_(smallest)
