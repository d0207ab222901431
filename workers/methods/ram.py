"""RAM, Reinforced Agent Merging: what one model changes is added whole, what several change is averaged over these.

Source: arXiv:2601.13572; RAM+ as mergekit's ramplus_tl, with its overlap ratio taken per tensor.
"""

from collections.abc import Sequence
from math import inf
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from app.domain.parameters import Parameters
from workers.contract import MergeContext, StatisticRequest, merge_method
from workers.fusion import Band, FusedMerge
from workers.numerics import task_vectors
from workers.statistics.overlaps import Overlap, Overlaps

OVERLAPS = "overlaps"


class RamParameters(Parameters):
    """Parameters of `ram`."""

    change_threshold: Annotated[
        float, Field(ge=0.0, description="An entry counts as changed by a model where |τ| is larger than this.")
    ] = 1e-5
    unique_boost: Annotated[
        float,
        Field(ge=0.0, description="RAM+: what a model changes alone grows by this times its overlap ratio; 0: RAM."),
    ] = 0.0
    max_overlap_ratio: Annotated[
        float, Field(ge=0.0, description="RAM+: the overlap ratio (entries shared / changed alone) counts to here.")
    ] = 0.2


def collect(parameters: RamParameters) -> Sequence[StatisticRequest]:
    """Ask how much each model shares with others, if that boosts the rest."""
    return (Overlaps(OVERLAPS, parameters.change_threshold),) if parameters.unique_boost > 0 else ()


def fuse(parameters: RamParameters, context: MergeContext) -> FusedMerge:
    """Return what `merge` computes, fused."""
    n = len(context.weights)
    changed = Band((parameters.change_threshold, 0), (inf, 0), 0)
    return FusedMerge(
        (1.0,) * n,
        of_deltas=True,
        masks=(changed,) * n,
        reduction="mean_of_changed",
        boosts=tuple(_boosts(parameters, context)) if parameters.unique_boost > 0 else (),
        base_share=1.0,
    )


@merge_method(
    name="ram",
    title="RAM",
    summary="Adds what one model changed alone, averages what several did over those that did.",
    source="Reinforced Agent Merging 2026, arXiv:2601.13572",
    aliases=("reinforced_agent_merging",),
    parameters=RamParameters,
    base_model="required",
    models=(1, None),
    weights="unused",
    granularity="element",
    statistic_passes=1,
    spared_passes=({"unique_boost": 0.0},),
    local_where=({},),
    neutral_parameters={"change_threshold": 0.0},
    is_scale_equivariant=False,
    collect=collect,
    fused=fuse,
)
def merge(base: Tensor, finetuned: Tensor, parameters: RamParameters, context: MergeContext) -> Tensor:
    """Return θ₀ + Σ τᵢ over those that changed an entry, divided by how many they are; boosted where it is one.

    base: [m]; finetuned: [n, m]; result: [m].
    """
    deltas = task_vectors.subtract(finetuned, base)  # [n, m]
    is_changed = deltas.abs() > parameters.change_threshold
    n_changing = is_changed.sum(0)  # integers: exact in any order
    total = torch.zeros_like(base, dtype=torch.float64)
    for delta, changed, boost in zip(deltas, is_changed, _boosts(parameters, context), strict=True):
        total += torch.where(changed, delta.double(), 0.0) * torch.where(n_changing == 1, boost, 1.0)
    return task_vectors.add(base, total.div_(n_changing.clamp_min(1)), scaling_coefficient=1.0)


def boost(overlap: Overlap, parameters: RamParameters) -> float:
    """Return the factor on what a model changes alone, a float32 number."""
    ratio = overlap.n_shared / max(1, overlap.n_unique)
    return float(np.float32(1.0 + parameters.unique_boost * min(ratio, parameters.max_overlap_ratio)))


def _boosts(parameters: RamParameters, context: MergeContext) -> list[float]:
    if parameters.unique_boost == 0:
        return [1.0] * len(context.weights)
    return [boost(overlap, parameters) for overlap in context.statistics[OVERLAPS][context.tensor]]
