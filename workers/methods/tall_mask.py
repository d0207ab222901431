"""TALL masks: the sum of all task vectors, and for each task a mask of what it needs of it.

Source: Wang et al. 2024, arXiv:2405.07813, section 4.1 and Figure 2 (compression).
Departs from source: one threshold for all tasks, where the authors pick one per task on validation data
    (docs/methods/tall_mask.md).
"""

from collections.abc import Sequence

from torch import Tensor

from app.domain.parameters import MaskThreshold, Parameters
from workers.contract import MergeContext, merge_method
from workers.fusion import FusedMasks
from workers.numerics import task_vectors, unification
from workers.patches import Masked, Patch


class TallMaskParameters(Parameters):
    """Parameters of `tall_mask`."""

    mask_threshold: MaskThreshold = 0.4


def fuse(parameters: TallMaskParameters, _context: MergeContext) -> FusedMasks:
    """Return what `merge` and `patch` compute, fused."""
    return FusedMasks(parameters.mask_threshold)


def patch(
    base: Tensor, finetuned: Tensor, _shared: Tensor, parameters: TallMaskParameters, _context: MergeContext
) -> Sequence[Patch]:
    """Return, per model, the mask |τ| > λ |Σ − τ|. finetuned: [n, m]."""
    deltas = unification.subtract(finetuned, base)
    summed = unification.total(deltas)
    return [Masked(unification.outweighs(delta, summed, parameters.mask_threshold), 1.0) for delta in deltas]


@merge_method(
    name="tall_mask",
    title="TALL masks",
    summary="Adds up all task vectors; each task keeps, through a mask, what is its own of the sum.",
    source="Wang et al. 2024, arXiv:2405.07813",
    aliases=("tall_masks", "tallmask"),
    parameters=TallMaskParameters,
    base_model="required",
    models=(1, None),
    weights="unused",
    granularity="element",
    neutral_parameters={},
    fused=fuse,
    patch=patch,
    patch_codec="mask",
)
def merge(base: Tensor, finetuned: Tensor, _parameters: TallMaskParameters, _context: MergeContext) -> Tensor:
    """Return θ₀ + Σ τ. base: [m]; finetuned: [n, m]; result: [m]."""
    return task_vectors.add(base, unification.total(unification.subtract(finetuned, base)), scaling_coefficient=1.0)
