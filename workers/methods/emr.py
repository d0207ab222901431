"""EMR-merging: elect one unified task vector, mask it per task, rescale it per task.

Source: Huang et al. 2024, arXiv:2405.17461, section 3.2.
Departs from source: an entry whose votes balance exactly is dropped, where the authors' code lets it count as −; the
    scale is the ratio of sums over the whole model, as in the paper (docs/methods/emr.md).
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from app.domain.parameters import Parameters
from workers.contract import MergeContext, merge_method
from workers.fusion import FusedMasks
from workers.numerics import task_vectors, unification
from workers.patches import Masked, Measured, Patch


class EmrParameters(Parameters):
    """Parameters of `emr`."""

    rescale: Annotated[
        Literal["global", "tensor_mean", "none"],
        Field(
            description="Each task's scale: sums over the whole model, sums of the tensors' means (as in the authors' "
            "code for 8 tasks and in FusionBench), or 1."
        ),
    ] = "global"


def fuse(parameters: EmrParameters, _context: MergeContext) -> FusedMasks:
    """Return what `merge` and `patch` compute, fused."""
    return FusedMasks(is_measured=parameters.rescale != "none")


def patch(
    base: Tensor, finetuned: Tensor, shared: Tensor, parameters: EmrParameters, _context: MergeContext
) -> Sequence[Patch]:
    """Return, per model, where it agrees with the unified vector. finetuned: [n, m]; shared: [m]."""
    unified = task_vectors.subtract(shared, base)  # its sign is exact: each entry of `shared` is some model's own
    return [_mask(delta, unified, parameters) for delta in task_vectors.subtract(finetuned, base)]


def rescale(parameters: EmrParameters, tensors: Sequence[Measured]) -> Sequence[float]:
    """Return each task's scale: what its masks lose of its length."""
    return unification.restoring_scales(tensors, by_tensor=parameters.rescale == "tensor_mean")


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
    neutral_parameters={},
    fused=fuse,
    patch=patch,
    scales=rescale,
    patch_codec="mask",
)
def merge(base: Tensor, finetuned: Tensor, _parameters: EmrParameters, _context: MergeContext) -> Tensor:
    """Return θ₀ + γ ⊙ max |τ| over the models whose sign is γ = sign Σ τ. base: [m]; finetuned: [n, m]; result: [m]."""
    return unification.elect(base, finetuned)


def _mask(delta: Tensor, unified: Tensor, parameters: EmrParameters) -> Patch:
    is_kept = unification.agrees(delta, unified)
    if parameters.rescale == "none":
        return Masked(is_kept, 1.0)
    return Masked(is_kept, None, unification.measure(delta, unified, is_kept))
