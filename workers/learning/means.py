"""The weighted mean, which methods that measure give wherever they know nothing."""

from math import fsum

from torch import Tensor

from app.domain.errors import InvalidParameters
from workers.contract import MergeContext
from workers.numerics import precision
from workers.stored import Models


def weighted_mean(finetuned: Models, context: MergeContext) -> Tensor:
    """Return Σ wᵢ θᵢ / Σ wᵢ, float64. finetuned: [n, *shape]. Raises: InvalidParameters when all weights are 0."""
    total = fsum(context.weights)
    if total == 0:
        raise InvalidParameters(
            f"The weights {list(context.weights)} sum to 0, so their mean is not defined. Change the weights."
        )
    return precision.weighted_sum(finetuned, context.weights).div_(total)
