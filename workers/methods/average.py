"""Average: the weighted mean of the models' weights, also known as a uniform soup or linear merge.

Source: Wortsman et al. 2022, arXiv:2203.05482, section 2 (uniform soup).
"""

from math import fsum

from torch import Tensor

from app.domain.errors import InvalidParameters
from app.domain.parameters import Normalize, Parameters
from workers.contract import MergeContext, merge_method
from workers.fusion import FusedMerge
from workers.numerics import precision


class AverageParameters(Parameters):
    """Parameters of `average`."""

    normalize: Normalize = True


def fuse(parameters: AverageParameters, context: MergeContext) -> FusedMerge:
    """Return what `merge` computes, fused."""
    return FusedMerge(context.weights, divisor=_sum_of(context.weights) if parameters.normalize else 1.0)


def coefficients(parameters: AverageParameters, weights: tuple[float, ...]) -> list[float]:
    """Return the factor on each model's task vector.

    Raises: InvalidParameters when the weights to divide by sum to 0.
    """
    total = _sum_of(weights) if parameters.normalize else 1.0
    return [weight / total for weight in weights]


@merge_method(
    name="average",
    title="Average",
    summary="Weighted mean of the models' weights.",
    source="Wortsman et al. 2022, arXiv:2203.05482",
    aliases=("linear", "simple_average", "uniform_soup", "weighted_average"),
    parameters=AverageParameters,
    base_model="unused",
    models=(1, None),
    granularity="element",
    neutral_parameters={"normalize": True},
    fused=fuse,
    coefficients=coefficients,
    adapter_spaces=("delta", "factors", "concat"),
)
def merge(base: Tensor | None, finetuned: Tensor, parameters: AverageParameters, context: MergeContext) -> Tensor:
    """Return Σ wᵢ θᵢ, divided by Σ wᵢ if normalized; the base model is not used.

    base: unused; finetuned: [n, m]; result: [m]. Summed in float64 and rounded once.

    Raises: InvalidParameters when the weights to divide by sum to 0.
    """
    total = precision.weighted_sum(finetuned, context.weights)
    if parameters.normalize:
        total.div_(_sum_of(context.weights))
    return precision.round_to_float32(total)


def _sum_of(weights: tuple[float, ...]) -> float:
    total = fsum(weights)
    if total == 0:
        raise InvalidParameters(
            f"average: the weights {list(weights)} sum to 0, so their mean is not defined. "
            "Change the weights, or set normalize to false to sum without dividing."
        )
    return total
