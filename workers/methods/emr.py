"""EMR-merging: elect one unified task vector, mask it per task, rescale it per task.

Source: Huang et al. 2024, arXiv:2405.17461, section 3.2.
Departs from source: an entry whose votes balance exactly is dropped, where the authors' code lets it count as −; the
    scale is the ratio of sums over the whole model, as in the paper (docs/methods/emr.md).
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from app.domain.parameters import Parameters
from workers.contract import MergeContext, StatisticRequest, merge_method
from workers.numerics import task_vectors, unification
from workers.patches import Masked, Patch
from workers.statistics.agreement import RestoringFactors

SCALES = "scales"


class EmrParameters(Parameters):
    """Parameters of `emr`."""

    rescale: Annotated[
        Literal["global", "tensor_mean", "none"],
        Field(
            description="Each task's scale: sums over the whole model, sums of the tensors' means (as in the authors' "
            "code for 8 tasks and in FusionBench), or 1."
        ),
    ] = "global"


def collect(parameters: EmrParameters) -> Sequence[StatisticRequest]:
    """Ask for the scales."""
    return () if parameters.rescale == "none" else (RestoringFactors(SCALES, parameters.rescale),)


def patch(
    base: Tensor, finetuned: Tensor, shared: Tensor, parameters: EmrParameters, context: MergeContext
) -> Sequence[Patch]:
    """Return, per model, where it agrees with the unified vector, and its scale. finetuned: [n, m]; shared: [m]."""
    unified = task_vectors.subtract(shared, base)  # its sign is exact: each entry of `shared` is some model's own
    scales = [1.0] * len(finetuned) if parameters.rescale == "none" else context.statistics[SCALES]
    deltas = task_vectors.subtract(finetuned, base)
    return [Masked(unification.agrees(delta, unified), scale) for delta, scale in zip(deltas, scales, strict=True)]


@merge_method(
    name="emr",
    title="EMR-merging",
    summary="Elects one unified task vector; each task sees it through a mask and a scale of its own.",
    source="Huang et al. 2024, arXiv:2405.17461",
    aliases=("emr_merging", "elect_mask_rescale"),
    parameters=EmrParameters,
    base_model="required",
    models=(1, None),
    weights="unused",
    granularity="element",
    statistic_passes=1,
    neutral_parameters={},
    collect=collect,
    patch=patch,
    patch_codec="mask",
)
def merge(base: Tensor, finetuned: Tensor, _parameters: EmrParameters, _context: MergeContext) -> Tensor:
    """Return θ₀ + γ ⊙ max |τ| over the models whose sign is γ = sign Σ τ. base: [m]; finetuned: [n, m]; result: [m]."""
    deltas = task_vectors.subtract(finetuned.to(torch.float64), base.to(torch.float64))
    return task_vectors.add(base, unification.elect(deltas), scaling_coefficient=1.0)
