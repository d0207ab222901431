"""The parameters that methods share, as annotated types: one name, one range, one description each.

A method's parameters are a frozen pydantic model that refuses unknown names; its JSON Schema goes into the catalog.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue


class Parameters(BaseModel):
    """Base of every method's parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def schema_of(parameters: type[Parameters]) -> dict[str, Any]:
    """Return the JSON Schema of a method's parameters, complete in itself: definitions stand where they are used."""
    schema = parameters.model_json_schema()
    definitions = schema.pop("$defs", {})

    def inline(node: Any) -> Any:
        if isinstance(node, list):
            return [inline(one) for one in node]
        if not isinstance(node, dict):
            return node
        name = str(node.get("$ref", "")).removeprefix("#/$defs/")
        rest = {key: inline(value) for key, value in node.items() if key != "$ref"}
        return {**inline(definitions[name]), **rest} if name else rest

    return {key: inline(value) for key, value in schema.items()}


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
LearningRate = Annotated[
    float,
    Field(gt=0.0, le=1.0, description="Step size of the descent."),
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
Rank = Annotated[
    int,
    Field(ge=1, le=65_536, description="Rank of what is kept of a matrix, at most."),
]
PatchScope = Annotated[
    Literal["global", "tensor"],
    Field(description="Where the largest entries are counted: over the whole model, or within each tensor."),
]
