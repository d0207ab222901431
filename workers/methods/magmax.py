"""MagMax: of all task vectors, keep for each entry the one that moved it farthest.

Source: Marczak et al. 2024, arXiv:2407.06322, section 4; the later of equal magnitudes wins, as in the authors' code.
"""

import torch
from torch import Tensor

from app.domain.parameters import Parameters, ScalingCoefficient
from workers.contract import MergeContext, merge_method
from workers.fusion import FusedMerge
from workers.numerics import task_vectors


class MagmaxParameters(Parameters):
    """Parameters of `magmax`."""

    scaling_coefficient: ScalingCoefficient = 0.5


def fuse(parameters: MagmaxParameters, context: MergeContext) -> FusedMerge:
    """Return what `merge` computes, fused."""
    once = (1.0,) * len(context.weights)
    return FusedMerge(
        once, of_deltas=True, reduction="furthest", scaling=parameters.scaling_coefficient, base_share=1.0
    )


@merge_method(
    name="magmax",
    title="MagMax",
    summary="Adds to the base model, entry by entry, the task vector of the largest magnitude.",
    source="Marczak et al. 2024, arXiv:2407.06322",
    aliases=("max_magnitude",),
    parameters=MagmaxParameters,
    base_model="required",
    models=(1, None),
    weights="unused",
    granularity="element",
    order_matters=True,
    neutral_parameters={"scaling_coefficient": 1.0},
    fused=fuse,
)
def merge(base: Tensor, finetuned: Tensor, parameters: MagmaxParameters, context: MergeContext) -> Tensor:
    """Return θ₀ + λ · τ_k, with k the model of the largest |τ| at each entry, the last one of equals.

    base: [m]; finetuned: [n, m]; result: [m].
    """
    deltas = task_vectors.subtract(finetuned, base)
    largest = deltas[0]
    for delta in deltas[1:]:
        largest = torch.where(delta.abs() >= largest.abs(), delta, largest)
    return task_vectors.add(base, largest, scaling_coefficient=parameters.scaling_coefficient)
