"""Multi-slerp: the weighted mean direction of any number of models, at their weighted mean length.

Source: Goddard 2025, "Multi-SLERP", goddard.blog/posts/multislerp-wow-what-a-cool-idea.
Departs from source: its step along the tangent plane is left out, since the weighted sum of tangents is zero where
    it is taken; where directions balance, the weighted mean is taken for any number of models
    (docs/methods/multislerp.md).
"""

from collections.abc import Sequence
from math import fsum

from torch import Tensor

from app.domain.parameters import Normalize, Parameters
from workers.contract import MergeContext, StatisticRequest, merge_method
from workers.fusion import FusedMerge
from workers.numerics import fractions, spans
from workers.statistics.gram import TensorGrams

GRAMS = "angles"


class MultislerpParameters(Parameters):
    """Parameters of `multislerp`."""

    normalize: Normalize = True


def collect(_parameters: MultislerpParameters) -> Sequence[StatisticRequest]:
    """Ask for each tensor's inner products."""
    return (TensorGrams(GRAMS),)


def fuse(parameters: MultislerpParameters, context: MergeContext) -> FusedMerge:
    """Return what `merge` computes, fused."""
    return spans.fuse(_shares(parameters, context))


@merge_method(
    name="multislerp",
    title="Multi-slerp",
    summary="Weighted mean direction at the weighted mean length: spherical interpolation of any number of models.",
    source="Goddard 2025, Multi-SLERP, goddard.blog/posts/multislerp-wow-what-a-cool-idea",
    aliases=("multi_slerp",),
    parameters=MultislerpParameters,
    base_model="optional",
    models=(1, None),
    granularity="element",
    statistic_passes=1,
    local_where=({},),
    neutral_parameters={},
    collect=collect,
    fused=fuse,
)
def merge(base: Tensor | None, finetuned: Tensor, parameters: MultislerpParameters, context: MergeContext) -> Tensor:
    """Return θ₀ + N̄ · Σ wᵢ τ̂ᵢ / ‖Σ wᵢ τ̂ᵢ‖, with θᵢ for τᵢ and without θ₀ where no base model is given.

    base: [m] or None; finetuned: [n, m]; result: [m].
    """
    return spans.combine(base, finetuned, _shares(parameters, context))


def _shares(parameters: MultislerpParameters, context: MergeContext) -> list[float]:
    weights: Sequence[float] = context.weights
    if parameters.normalize:
        weights = fractions.of_sum(weights, method="multislerp", tensor=context.tensor)
    return shares(context.statistics[GRAMS][context.tensor], weights)


def shares(gram: spans.Gram, weights: Sequence[float]) -> list[float]:
    """Return how much of each vector the result holds; of vectors whose directions balance, the weights."""
    mean = spans.mean_direction(gram, weights)
    if mean is None:
        return list(weights)
    length = fsum(weight * norm for weight, norm in zip(weights, spans.norms(gram), strict=True))
    return [length * share for share in mean]
