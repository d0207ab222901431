"""Consensus TIES: merge task vectors as TIES does, then drop what only one task, or none, needs of the result.

Source: Wang et al. 2024, arXiv:2405.07813, section 5; Yadav et al. 2023, arXiv:2306.01708, Algorithm 1.
Departs from source: mask thresholds are given, for all tasks or for each, where the authors choose them on validation
    data; trim and balanced votes are those of `ties`.
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from app.domain.parameters import (
    Density,
    MaskThreshold,
    MinTasks,
    Parameters,
    Reduce,
    ScalingCoefficient,
    TrimScope,
    Vote,
    ZeroVote,
)
from workers.contract import MergeContext, StatisticRequest, merge_method
from workers.fusion import FusedMerge
from workers.numerics import consensus, signs, sparsify, task_vectors
from workers.statistics import trims


class ConsensusTiesParameters(Parameters):
    """Parameters of `consensus_ties`."""

    mask_threshold: MaskThreshold = 0.4
    min_tasks: MinTasks = 2
    scaling_coefficient: ScalingCoefficient = 1.0
    density: Density = 0.2
    trim_scope: TrimScope = "global"
    reduce: Reduce = "sum"
    vote: Vote = "unweighted"
    zero_vote: ZeroVote = "majority"


def collect(parameters: ConsensusTiesParameters) -> Sequence[StatisticRequest]:
    """Ask for what TIES asks for."""
    return (trims.request_trim(parameters, parameters.density),)


def fuse(parameters: ConsensusTiesParameters, context: MergeContext) -> FusedMerge | None:
    """Return what `merge` computes, fused; None where thresholds differ."""
    needed = consensus.need(parameters, len(context.weights), parameters.min_tasks)
    return None if needed is None else replace(trims.fuse_ties(parameters, context), needed=needed)


@merge_method(
    name="consensus_ties",
    title="Consensus TIES",
    summary="Merges task vectors as TIES does and keeps the entries that enough tasks need.",
    source="Wang et al. 2024, arXiv:2405.07813",
    aliases=("consensus_ties_merging",),
    parameters=ConsensusTiesParameters,
    base_model="required",
    models=(1, None),
    granularity="element",
    statistic_passes=2,
    spared_passes=({"zero_vote": "positive"},),
    local_where=({"zero_vote": "positive", "trim_scope": "tensor"},),
    neutral_parameters={"density": 1.0, "mask_threshold": 0.0, "min_tasks": 1, "scaling_coefficient": 1.0},
    per_model=("mask_threshold",),
    collect=collect,
    fused=fuse,
)
def merge(base: Tensor, finetuned: Tensor, parameters: ConsensusTiesParameters, context: MergeContext) -> Tensor:
    """Return θ₀ + α c ⊙ (disjoint merge of the trimmed task vectors). base: [m]; finetuned: [n, m]; result: [m]."""
    trim, balanced_sign = trims.read_trim(context.statistics[trims.TRIM])
    kept = [boundaries[0] for boundaries in trim.of(context.tensor)]
    start = context.position if parameters.trim_scope == "global" else context.offset
    deltas = task_vectors.subtract(finetuned, base)  # [n, m]
    merged = signs.merge_disjointly(
        sparsify.trim(signs.orient(deltas, context.weights), kept, start=start),
        context.weights,
        vote=parameters.vote,
        reduction=parameters.reduce,
        balanced_sign=balanced_sign,
    )
    needed = consensus.keep_needed(
        merged,
        deltas,
        context.weights,
        thresholds=consensus.thresholds_of(parameters, len(deltas)),
        min_tasks=parameters.min_tasks,
    )
    return task_vectors.add(base, needed, scaling_coefficient=parameters.scaling_coefficient)
