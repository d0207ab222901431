"""What `regmean` and `regmean_plus_plus` share: their parameters, and the mean of what is not regressed."""

from math import fsum
from typing import Annotated

from pydantic import Field
from torch import Tensor

from app.domain.errors import InvalidParameters
from app.domain.parameters import Parameters
from workers.contract import MergeContext
from workers.numerics import precision


class RegmeanParameters(Parameters):
    """Parameters of `regmean` and `regmean_plus_plus`."""

    non_diagonal_scale: Annotated[
        float, Field(ge=0.0, le=1.0, description="Factor on what lies off the diagonals of the Gram matrices.")
    ] = 0.9
    ridge: Annotated[
        float,
        Field(ge=1e-9, le=1.0, description="Pull towards the mean, as a fraction of the Gram matrices' mean diagonal."),
    ] = 1e-6


def weighted_mean(finetuned: Tensor, context: MergeContext) -> Tensor:
    """Return Σ wᵢ θᵢ / Σ wᵢ, float64. finetuned: [n, *shape]. Raises: InvalidParameters when all weights are 0."""
    total = fsum(context.weights)
    if total == 0:
        raise InvalidParameters(
            f"The weights {list(context.weights)} sum to 0, so their mean is not defined. Change the weights."
        )
    return precision.weighted_sum(finetuned, context.weights).div_(total)
