"""TIES-merging: trim each task vector, elect one sign per entry, average what agrees.

Source: Yadav et al. 2023, arXiv:2306.01708, Algorithm 1.
Departs from source: exactly floor(density · n) entries are kept, ties by position, where the authors' code keeps all
    entries at a threshold; per-tensor trim, weighted votes, sum and max are offered beside (docs/methods/ties.md).
"""

from collections.abc import Sequence

from torch import Tensor

from app.domain.parameters import Density, Parameters, Reduce, ScalingCoefficient, TrimScope, Vote, ZeroVote
from workers.contract import MergeContext, StatisticRequest, merge_method
from workers.fusion import FusedMerge
from workers.numerics import signs, sparsify, task_vectors
from workers.statistics import trims


class TiesParameters(Parameters):
    """Parameters of `ties`."""

    density: Density = 0.2
    scaling_coefficient: ScalingCoefficient = 1.0
    trim_scope: TrimScope = "global"
    reduce: Reduce = "mean"
    vote: Vote = "unweighted"
    zero_vote: ZeroVote = "majority"


def collect(parameters: TiesParameters) -> Sequence[StatisticRequest]:
    """Ask where the trim cuts and, where balanced votes follow the majority, which sign that is."""
    return (trims.request_trim(parameters, parameters.density, [one.density for one in parameters.of_models]),)


def fuse(parameters: TiesParameters, context: MergeContext) -> FusedMerge:
    """Return what `merge` computes, fused."""
    return trims.fuse_ties(parameters, context)


@merge_method(
    name="ties",
    title="TIES-merging",
    summary="Trims each task vector to its largest entries, elects a sign per entry, merges what agrees.",
    source="Yadav et al. 2023, arXiv:2306.01708",
    aliases=("ties_merging",),
    parameters=TiesParameters,
    base_model="required",
    models=(1, None),
    granularity="element",
    statistic_passes=2,
    spared_passes=({"zero_vote": "positive"},),
    local_where=({"zero_vote": "positive", "trim_scope": "tensor"},),
    neutral_parameters={"density": 1.0, "scaling_coefficient": 1.0},
    per_model=("density",),
    collect=collect,
    fused=fuse,
)
def merge(base: Tensor, finetuned: Tensor, parameters: TiesParameters, context: MergeContext) -> Tensor:
    """Return θ₀ + λ · (disjoint merge of the trimmed task vectors).

    base: [m]; finetuned: [n, m]; result: [m]. A negative weight negates its task vector, also in the vote.
    """
    trim, balanced_sign = trims.read_trim(context.statistics[trims.TRIM])
    kept = [boundaries[0] for boundaries in trim.of(context.tensor)]
    start = context.position if parameters.trim_scope == "global" else context.offset
    deltas = signs.orient(task_vectors.subtract(finetuned, base), context.weights)  # [n, m]
    trimmed = sparsify.trim(deltas, kept, start=start)  # [n, m]
    merged = signs.merge_disjointly(
        trimmed, context.weights, vote=parameters.vote, reduction=parameters.reduce, balanced_sign=balanced_sign
    )
    return task_vectors.add(base, merged, scaling_coefficient=parameters.scaling_coefficient)
