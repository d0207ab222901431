"""Arcee Fusion: take from a fine-tuned model only the changes whose importance stands out within their tensor.

Source: Arcee AI 2025, mergekit's method of that name.
Departs from source: quartiles are those of all entries, not of a random sample of large tensors; nothing is added to
    probabilities (docs/methods/arcee_fusion.md).
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from app.domain.parameters import Parameters
from workers.contract import MergeContext, StatisticRequest, merge_method
from workers.fusion import FusedMerge
from workers.numerics.importance import weigh_changes
from workers.statistics.importance import OutlyingImportance

IMPORTANCE = "importance"


class ArceeFusionParameters(Parameters):
    """Parameters of `arcee_fusion`."""

    interquartile_ranges: Annotated[
        float,
        Field(ge=0.0, description="How many interquartile ranges above the median importance a change is taken."),
    ] = 1.5


def collect(parameters: ArceeFusionParameters) -> Sequence[StatisticRequest]:
    """Ask for each tensor's threshold."""
    return (OutlyingImportance(IMPORTANCE, parameters.interquartile_ranges),)


def fuse(_parameters: ArceeFusionParameters, context: MergeContext) -> FusedMerge:
    """Return what `merge` computes, fused."""
    return FusedMerge((1.0,), reduction="important", importance=context.statistics[IMPORTANCE][context.tensor])


@merge_method(
    name="arcee_fusion",
    title="Arcee Fusion",
    summary="Takes from a fine-tuned model the changes whose importance stands out, the rest from the base model.",
    source="Arcee AI 2025, arcee_fusion, mergekit",
    parameters=ArceeFusionParameters,
    base_model="required",
    models=(1, 1),
    weights="unused",
    granularity="row",
    is_scale_equivariant=False,
    statistic_passes=2,
    local_where=({},),
    collect=collect,
    fused=fuse,
)
def merge(base: Tensor, finetuned: Tensor, parameters: ArceeFusionParameters, context: MergeContext) -> Tensor:
    """Return θ where its importance is at least the tensor's threshold, θ₀ elsewhere.

    base: [rows, width]; finetuned: [1, rows, width]; result: [rows, width].
    """
    importance = weigh_changes(finetuned[0], base)
    return torch.where(
        importance.double() >= context.statistics[IMPORTANCE][context.tensor].threshold, finetuned[0], base
    )
