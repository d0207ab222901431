"""The parameters that methods share, as annotated types: one name, one range, one description each.

A method's parameters are a frozen pydantic model that refuses unknown names; its JSON Schema goes into the catalog.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue


class Parameters(BaseModel):
    """Base of every method's parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NestedMethod(BaseModel):
    """A method inside a method, as a request writes it; in a recipe its version and defaults are filled in."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    method: str = Field(min_length=1, max_length=128)
    version: int | None = None
    parameters: dict[str, JsonValue] = Field(default_factory=dict)


Density = Annotated[
    float,
    Field(gt=0.0, le=1.0, description="Fraction of entries kept, by magnitude, in (0, 1]; 1 keeps all."),
]
OutlierFraction = Annotated[
    float,
    Field(ge=0.0, lt=1.0, description="Fraction of the largest entries dropped, in [0, 1)."),
]
ScalingCoefficient = Annotated[
    float,
    Field(description="Factor on the merged task vector (lambda); 0 gives the base model."),
]
InterpolationPosition = Annotated[
    float,
    Field(ge=0.0, le=1.0, description="Position between the two models: 0 is models[0], 1 is models[1]."),
]
TaskArithmeticCoefficient = Annotated[
    float,
    Field(
        description="Factor on the sum of task vectors (lambda): 0.3 for several models, 1 for one; 0 gives the base.",
        json_schema_extra={"x-default-for-one-model": 1.0},
    ),
]
Normalize = Annotated[
    bool,
    Field(description="Divide by the sum of the weights, which must not be 0."),
]
