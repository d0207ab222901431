"""ExPO: walk on beyond a fine-tuned model, along the way from the base model to it.

Source: Zheng et al. 2024, arXiv:2404.16792, equation 1.
Departs from source: several models are averaged by weight first, as fusion-bench does (docs/methods/expo.md).
"""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from app.domain.parameters import Parameters
from workers.contract import MergeContext, merge_method
from workers.fusion import FusedMerge
from workers.numerics import fractions, spans


class ExpoParameters(Parameters):
    """Parameters of `expo`."""

    extrapolation_factor: Annotated[
        float,
        Field(description="How far beyond the model, as a fraction of the way to it; 0 gives the model, -1 the base."),
    ] = 0.3


def fuse(parameters: ExpoParameters, context: MergeContext) -> FusedMerge:
    """Return what `merge` computes, fused."""
    return spans.fuse(_shares(parameters, context))


@merge_method(
    name="expo",
    title="ExPO",
    summary="Extrapolates from the base model through the (average of the) fine-tuned model and beyond.",
    source="Zheng et al. 2024, arXiv:2404.16792",
    aliases=("model_extrapolation", "weak_to_strong_extrapolation"),
    parameters=ExpoParameters,
    base_model="required",
    models=(1, None),
    weights="non_negative",
    granularity="element",
    neutral_parameters={"extrapolation_factor": 0.0},
    fused=fuse,
)
def merge(base: Tensor, finetuned: Tensor, parameters: ExpoParameters, context: MergeContext) -> Tensor:
    """Return θ + α (θ − θ₀), θ the weighted average of the models.

    base: [m]; finetuned: [n, m]; result: [m].

    Raises: Invalid if all weights are 0.
    """
    return spans.combine(base, finetuned, _shares(parameters, context))


def _shares(parameters: ExpoParameters, context: MergeContext) -> list[float]:
    weights = fractions.of_sum(context.weights, method="expo", tensor=context.tensor)
    factor = 1.0 + parameters.extrapolation_factor
    return [factor * weight for weight in weights]
