"""TALL masks: a merge of all task vectors, their sum unless another is named, and for each task what it needs of it.

Source: Wang et al. 2024, arXiv:2405.07813, section 4.1 and Figure 2 (compression).
Departs from source: a threshold is given, for all tasks or for each, where the authors pick it on validation data
    (docs/methods/tall_mask.md).
"""

from collections.abc import Mapping, Sequence

from pydantic import Field
from torch import Tensor

from app.domain.parameters import MaskThreshold, NestedMethod, Parameters
from workers.contract import MergeContext, NestedMerge, StatisticRequest, merge_method
from workers.fusion import FusedMasks
from workers.numerics import consensus, task_vectors, unification
from workers.patches import Masked, Patch

SHARED = "shared"
SUM = NestedMethod(method="task_arithmetic", parameters={"scaling_coefficient": 1.0})


class TallMaskParameters(Parameters):
    """Parameters of `tall_mask`."""

    mask_threshold: MaskThreshold = 0.4
    shared: NestedMethod = Field(
        default=SUM,
        description="The method that merges the models into what the masks choose from; the default adds up all task "
        "vectors.",
    )


def collect(_parameters: TallMaskParameters, _nested: Mapping[str, NestedMerge]) -> Sequence[StatisticRequest]:
    """Ask for nothing beside what the method inside asks for."""
    return ()


def fuse(parameters: TallMaskParameters, context: MergeContext) -> FusedMasks | None:
    """Return what `merge` and `patch` compute, fused: for a sum, and one threshold."""
    thresholds = consensus.thresholds_of(parameters, len(context.weights))
    return FusedMasks(thresholds[0]) if _is_sum(parameters) and len(set(thresholds)) == 1 else None


def patch(
    base: Tensor, finetuned: Tensor, shared: Tensor, parameters: TallMaskParameters, _context: MergeContext
) -> Sequence[Patch]:
    """Return, per model, the mask |τ| > λ |τ* − τ|, where τ* is what was merged. finetuned: [n, m]; shared: [m]."""
    deltas = unification.subtract(finetuned, base)
    merged = unification.total(deltas) if _is_sum(parameters) else unification.subtract(shared, base)
    thresholds = consensus.thresholds_of(parameters, len(deltas))
    return [
        Masked(unification.outweighs(delta, merged, threshold), 1.0)
        for delta, threshold in zip(deltas, thresholds, strict=True)
    ]


@merge_method(
    name="tall_mask",
    title="TALL masks",
    summary="Merges all task vectors, by their sum or any method; each task keeps, through a mask, what is its own.",
    source="Wang et al. 2024, arXiv:2405.07813",
    aliases=("tall_masks", "tallmask"),
    parameters=TallMaskParameters,
    base_model="required",
    models=(1, None),
    weights="unused",
    granularity="element",
    neutral_parameters={},
    per_model=("mask_threshold",),
    nested={SHARED: "merge_set"},
    collect=collect,
    fused=fuse,
    patch=patch,
    patch_codec="mask",
)
def merge(base: Tensor, finetuned: Tensor, parameters: TallMaskParameters, context: MergeContext) -> Tensor:
    """Return θ₀ + τ*, the merge that all tasks share. base: [m]; finetuned: [n, m]; result: [m]."""
    if not _is_sum(parameters):
        return context.nested[SHARED](base, finetuned, context)
    return task_vectors.add(base, unification.total(unification.subtract(finetuned, base)), scaling_coefficient=1.0)


def _is_sum(parameters: TallMaskParameters) -> bool:
    """Tell whether the merge is the sum, which is compared with unrounded and computed in one pass with the masks."""
    return (parameters.shared.method, parameters.shared.parameters) == (SUM.method, SUM.parameters)
