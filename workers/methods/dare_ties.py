"""DARE with TIES: drop entries of each task vector by chance, scale up what is left, then elect signs and merge.

Source: Yu et al. 2023, arXiv:2311.03099, section 3.2; Yadav et al. 2023, arXiv:2306.01708, Algorithm 1, steps 2 and 3.
Departs from source: what is left is not trimmed again unless asked for, as in mergekit and PEFT
    (docs/methods/dare_ties.md).
"""

from collections.abc import Sequence

from torch import Tensor

from app.domain.parameters import (
    DropRescale,
    KeepProbability,
    Parameters,
    Reduce,
    ScalingCoefficient,
    TrimDensity,
    TrimScope,
    Vote,
    ZeroVote,
)
from workers.contract import MergeContext, StatisticRequest, merge_method
from workers.fusion import Election, FusedMerge
from workers.numerics import random_masks, signs, task_vectors
from workers.statistics import drawn


class DareTiesParameters(Parameters):
    """Parameters of `dare_ties`."""

    density: KeepProbability = 0.5
    rescale: DropRescale = "inverse_density"
    scaling_coefficient: ScalingCoefficient = 1.0
    trim_density: TrimDensity = 1.0
    trim_scope: TrimScope = "global"
    reduce: Reduce = "mean"
    vote: Vote = "unweighted"
    zero_vote: ZeroVote = "positive"


def collect(parameters: DareTiesParameters) -> Sequence[StatisticRequest]:
    """Ask for what rescaling, trim and election must know of the whole model; by default that is nothing."""
    return drawn.request_ranks(parameters, _mask(parameters), parameters.trim_density)


def fuse(parameters: DareTiesParameters, context: MergeContext) -> FusedMerge:
    """Return what `merge` computes, fused."""
    draws = random_masks.fuse_draws(_mask(parameters), context, drawn.factors_of(context))
    masks, balanced_sign = drawn.fuse_trim(parameters, context)
    votes = signs.weigh_votes(context.weights, is_weighted=parameters.vote == "weighted")
    return FusedMerge(
        context.weights,
        of_deltas=True,
        draws=draws,
        masks=masks,
        election=Election(tuple(votes), balanced_sign, parameters.reduce),
        scaling=parameters.scaling_coefficient,
        base_share=1.0,
    )


@merge_method(
    name="dare_ties",
    title="DARE with TIES",
    summary="Drops entries of each task vector by chance, rescales the rest, elects signs and merges what agrees.",
    source="Yu et al. 2023, arXiv:2311.03099",
    aliases=("dare_ties_merging",),
    parameters=DareTiesParameters,
    base_model="required",
    models=(1, None),
    granularity="element",
    is_random=True,
    statistic_passes=3,
    spared_passes=(
        {"rescale": "inverse_density"},
        {"rescale": "none"},
        {"zero_vote": "positive"},
        {"zero_vote": "positive", "trim_density": 1.0},
    ),
    local_where=({"zero_vote": "positive", "trim_density": 1.0},),
    neutral_parameters={"density": 1.0, "scaling_coefficient": 1.0},
    per_model=("density",),
    collect=collect,
    fused=fuse,
)
def merge(base: Tensor, finetuned: Tensor, parameters: DareTiesParameters, context: MergeContext) -> Tensor:
    """Return θ₀ + λ · (disjoint merge of what the draws left of the task vectors).

    base: [m]; finetuned: [n, m]; result: [m]. A negative weight negates its task vector, also in the vote.
    """
    deltas = task_vectors.subtract(finetuned, base)  # [n, m]
    left = random_masks.draw_all(_mask(parameters), deltas, context, drawn.factors_of(context))
    trimmed, balanced_sign = drawn.trim_drawn(left, parameters, context)
    merged = signs.merge_disjointly(
        signs.orient(trimmed, context.weights),
        context.weights,
        vote=parameters.vote,
        reduction=parameters.reduce,
        balanced_sign=balanced_sign,
    )
    return task_vectors.add(base, merged, scaling_coefficient=parameters.scaling_coefficient)


def _mask(parameters: DareTiesParameters) -> random_masks.UniformMask:
    own = tuple(random_masks.UniformMask(one.density, one.rescale) for one in parameters.of_models)
    return random_masks.UniformMask(parameters.density, parameters.rescale, own)
