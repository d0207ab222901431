"""Consensus task arithmetic: add task vectors up, then drop what only one task, or none, needs of the sum.

Source: Wang et al. 2024, arXiv:2405.07813, section 5.
Departs from source: mask thresholds are given, for all tasks or for each, where the authors choose them on validation
    data.
"""

from torch import Tensor

from app.domain.parameters import MaskThreshold, MinTasks, Parameters, ScalingCoefficient
from workers.contract import MergeContext, merge_method
from workers.fusion import FusedMerge
from workers.numerics import consensus, precision, task_vectors


class ConsensusTaParameters(Parameters):
    """Parameters of `consensus_ta`."""

    mask_threshold: MaskThreshold = 0.4
    min_tasks: MinTasks = 2
    scaling_coefficient: ScalingCoefficient = 1.0


def fuse(parameters: ConsensusTaParameters, context: MergeContext) -> FusedMerge | None:
    """Return what `merge` computes, fused; None where thresholds differ."""
    needed = consensus.need(parameters, len(context.weights), parameters.min_tasks)
    if needed is None:
        return None
    return FusedMerge(
        context.weights,
        of_deltas=True,
        needed=needed,
        scaling=parameters.scaling_coefficient,
        base_share=1.0,
    )


@merge_method(
    name="consensus_ta",
    title="Consensus task arithmetic",
    summary="Adds task vectors up and keeps the entries that enough tasks need.",
    source="Wang et al. 2024, arXiv:2405.07813",
    aliases=("consensus", "consensus_task_arithmetic"),
    parameters=ConsensusTaParameters,
    base_model="required",
    models=(1, None),
    granularity="element",
    neutral_parameters={"mask_threshold": 0.0, "min_tasks": 1, "scaling_coefficient": 1.0},
    per_model=("mask_threshold",),
    fused=fuse,
)
def merge(base: Tensor, finetuned: Tensor, parameters: ConsensusTaParameters, context: MergeContext) -> Tensor:
    """Return θ₀ + α c ⊙ Σ wᵢ τᵢ. base: [m]; finetuned: [n, m]; result: [m]."""
    deltas = task_vectors.subtract(finetuned, base)  # [n, m]
    merged = consensus.keep_needed(
        precision.weighted_sum(deltas, context.weights),
        deltas,
        context.weights,
        thresholds=consensus.thresholds_of(parameters, len(deltas)),
        min_tasks=parameters.min_tasks,
    )
    return task_vectors.add(base, merged, scaling_coefficient=parameters.scaling_coefficient)
