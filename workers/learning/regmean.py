"""The parameters that `regmean` and `regmean_plus_plus` share."""

from typing import Annotated

from pydantic import Field

from app.domain.parameters import Parameters


class RegmeanParameters(Parameters):
    """Parameters of `regmean` and `regmean_plus_plus`."""

    non_diagonal_scale: Annotated[
        float, Field(ge=0.0, le=1.0, description="Factor on what lies off the diagonals of the Gram matrices.")
    ] = 0.9
    ridge: Annotated[
        float,
        Field(ge=1e-9, le=1.0, description="Pull towards the mean, as a fraction of the Gram matrices' mean diagonal."),
    ] = 1e-6
