"""TIES as a transform: of each task vector only what a trim leaves and what agrees with the elected sign stays.

What any method then sees are the task vectors before TIES would average them: AdaMerging++ is AdaMerging on these.

Source: Yadav et al. 2023, arXiv:2306.01708, Algorithm 1, steps 1 and 2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from app.domain.parameters import Density, Parameters, TrimScope, Vote, ZeroVote
from workers.contract import MergeContext, StatisticRequest, transform
from workers.numerics import signs, sparsify, task_vectors
from workers.statistics import trims


class TiesStepParameters(Parameters):
    """Parameters of the transform `ties`."""

    density: Density = 0.2
    trim_scope: TrimScope = "global"
    vote: Vote = "unweighted"
    zero_vote: ZeroVote = "majority"


def collect(parameters: TiesStepParameters) -> Sequence[StatisticRequest]:
    """Ask where the trim cuts and, where balanced votes follow the majority, which sign that is."""
    return (trims.request_trim(parameters, parameters.density),)


@transform(
    name="ties",
    title="Trim and election of TIES",
    summary="Keeps of each task vector its largest entries that agree with the sign elected over all models.",
    source="Yadav et al. 2023, arXiv:2306.01708",
    parameters=TiesStepParameters,
    granularity="element",
    statistic_passes=2,
    spared_passes=({"zero_vote": "positive"},),
    collect=collect,
)
def apply(base: Tensor, finetuned: Tensor, parameters: TiesStepParameters, context: MergeContext) -> Tensor:
    """Return each model where its entry is kept and agrees, and the base elsewhere, to the bit.

    base: [m]; finetuned: [n, m]; result: [n, m]. A negative weight turns a task vector in the vote, not in the result.
    """
    trim, balanced_sign = trims.read_trim(context.statistics[trims.TRIM])
    kept = [boundaries[0] for boundaries in trim.of(context.tensor)]
    start = context.position if parameters.trim_scope == "global" else context.offset
    deltas = signs.orient(task_vectors.subtract(finetuned, base), context.weights)  # [n, m]
    trimmed = sparsify.trim(deltas, kept, start=start)  # [n, m]
    votes = signs.weigh_votes(context.weights, is_weighted=parameters.vote == "weighted")
    elected = signs.elect(trimmed, votes, balanced_sign=balanced_sign)
    return torch.where(trimmed * elected > 0, finetuned, base)
