"""DELLA: drop small entries of each row more often than large ones, scale up what is left, elect signs and merge.

Source: Deep et al. 2024, arXiv:2406.11617, section 3 (MagPrune, elect, fuse).
Departs from source: probabilities are clamped to [1e-6, 1], rows of one entry are kept with the density
    (docs/methods/della.md).
"""

from collections.abc import Sequence

from torch import Tensor

from app.domain.parameters import (
    DensitySpread,
    KeepProbability,
    Parameters,
    RankedDropRescale,
    Reduce,
    ScalingCoefficient,
    Vote,
)
from workers.contract import MergeContext, StatisticRequest, merge_method
from workers.fusion import Election, FusedMerge
from workers.numerics import random_masks, signs, task_vectors
from workers.statistics import drawn


class DellaParameters(Parameters):
    """Parameters of `della`."""

    density: KeepProbability = 0.7
    density_spread: DensitySpread = 0.07
    rescale: RankedDropRescale = "inverse_probability"
    scaling_coefficient: ScalingCoefficient = 1.0
    reduce: Reduce = "mean"
    vote: Vote = "unweighted"


def collect(parameters: DellaParameters) -> Sequence[StatisticRequest]:
    """Ask for the sums of magnitudes, if they are to be restored."""
    return drawn.request_norms(_mask(parameters))


def fuse(parameters: DellaParameters, context: MergeContext) -> FusedMerge:
    """Return what `merge` computes, fused."""
    votes = signs.weigh_votes(context.weights, is_weighted=parameters.vote == "weighted")
    return FusedMerge(
        context.weights,
        of_deltas=True,
        draws=random_masks.fuse_draws(_mask(parameters), context, drawn.factors_of(context)),
        election=Election(tuple(votes), 1, parameters.reduce),
        scaling=parameters.scaling_coefficient,
        base_share=1.0,
    )


@merge_method(
    name="della",
    title="DELLA",
    summary="Drops small entries more often than large ones, rescales the rest, elects signs and merges what agrees.",
    source="Deep et al. 2024, arXiv:2406.11617",
    aliases=("della_merging", "magprune_ties"),
    parameters=DellaParameters,
    base_model="required",
    models=(1, None),
    granularity="row",
    is_random=True,
    statistic_passes=1,
    spared_passes=({"rescale": "inverse_probability"}, {"rescale": "none"}),
    local_where=({},),
    neutral_parameters={"density": 1.0, "density_spread": 0.0, "scaling_coefficient": 1.0},
    per_model=("density", "density_spread"),
    collect=collect,
    fused=fuse,
)
def merge(base: Tensor, finetuned: Tensor, parameters: DellaParameters, context: MergeContext) -> Tensor:
    """Return θ₀ + λ · (disjoint merge of what the draws left of the task vectors).

    base: [rows, width]; finetuned: [n, rows, width]; result: [rows, width]. A negative weight negates its task
    vector, also in the vote; balanced votes count as +.
    """
    deltas = task_vectors.subtract(finetuned, base)  # [n, rows, width]
    left = random_masks.draw_all(_mask(parameters), deltas, context, drawn.factors_of(context))
    return signs.merge_onto(
        base,
        left,
        context.weights,
        vote=parameters.vote,
        reduction=parameters.reduce,
        balanced_sign=1,
        scaling_coefficient=parameters.scaling_coefficient,
    )


def _mask(parameters: DellaParameters) -> random_masks.RankedMask:
    own = tuple(random_masks.RankedMask(one.density, one.density_spread, one.rescale) for one in parameters.of_models)
    return random_masks.RankedMask(parameters.density, parameters.density_spread, parameters.rescale, own)
