"""The parameters that methods share, as annotated types: one name, one range, one description each.

A method's parameters are a frozen pydantic model that refuses unknown names; its JSON Schema goes into the catalog.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, PrivateAttr


class Parameters(BaseModel):
    """Base of every method's parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    _of_models: tuple[Self, ...] = PrivateAttr(default=())

    @property
    def of_models(self) -> tuple[Self, ...]:
        """Each model's parameters where some model has its own; else none."""
        return self._of_models

    def of(self, model: int) -> Self:
        """Return a model's parameters: its own, else these."""
        return self._of_models[model] if self._of_models else self

    def with_models(self, own: Sequence[Self]) -> Self:
        """Return these parameters, of which each model has its own."""
        bound = self.model_copy()
        bound._of_models = tuple(own)
        return bound


def schema_of(parameters: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON Schema of parameters or of other values, complete: definitions stand where they are used."""
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


class NestedStep(BaseModel):
    """A transform inside an analysis, as a request writes it; version and defaults are filled in."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(min_length=1, max_length=128)
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
TrimScope = Annotated[
    Literal["global", "tensor"],
    Field(description="Where the largest entries are counted: over the whole model, or within each tensor."),
]
Reduce = Annotated[
    Literal["mean", "sum", "max"],
    Field(description="What becomes of the entries that agree with the elected sign."),
]
Vote = Annotated[
    Literal["unweighted", "weighted"],
    Field(description="Whether an entry votes by its magnitude, or by its magnitude times the model's weight."),
]
ZeroVote = Annotated[
    Literal["majority", "positive"],
    Field(description="Sign of an entry whose votes balance exactly: that of most entries of the model, or +."),
]
KeepProbability = Annotated[
    float,
    Field(gt=0.0, le=1.0, description="Probability with which an entry is kept, in (0, 1]; 1 keeps all."),
]
TrimDensity = Annotated[
    float,
    Field(
        gt=0.0,
        le=1.0,
        description="Fraction of entries that a trim by magnitude keeps of what the draws left; 1 trims nothing.",
    ),
]
DropRescale = Annotated[
    Literal["inverse_density", "l1", "none"],
    Field(
        description="What makes up for dropped entries: division by the density; a factor that restores each tensor's "
        "sum of magnitudes; nothing."
    ),
]
RankedDropRescale = Annotated[
    Literal["inverse_probability", "l1", "none"],
    Field(
        description="What makes up for dropped entries: division by the probability with which the entry was kept; a "
        "factor that restores each tensor's sum of magnitudes; nothing."
    ),
]
DensitySpread = Annotated[
    float,
    Field(
        ge=0.0,
        lt=1.0,
        description="How far the keep probability reaches below and above the density: the smallest entry of a row is "
        "kept with density - spread, the largest with density + spread.",
    ),
]
MaskThreshold = Annotated[
    float,
    Field(
        ge=0.0,
        le=1e6,
        description="A task needs an entry where its own part is larger than this times what the others add.",
    ),
]
MinTasks = Annotated[
    int,
    Field(
        ge=1,
        le=256,
        description="How many tasks at least must need an entry for it to be kept; at most the number of models.",
        json_schema_extra={"x-default-for-one-model": 1, "x-at-most-models": True},
    ),
]
RankFraction = Annotated[
    float | None,
    Field(
        gt=0.0,
        le=1.0,
        description="Singular directions kept of each task vector, as a fraction of the smaller side; null: 1 by the "
        "number of models.",
    ),
]
RankTolerance = Annotated[
    float,
    Field(
        ge=0.0,
        lt=1.0,
        description="Singular values up to this fraction of the largest count as zero; their directions are left out.",
    ),
]
AdamLearningRate = Annotated[float, Field(gt=0.0, le=0.1, description="Step size of Adam, the learning rate.")]
Steps = Annotated[int, Field(ge=0, le=10_000, description="Steps of Adam, each over all tasks.")]
VectorReduce = Annotated[
    Literal["mean", "sum", "base"],
    Field(description="What tensors that are no matrices become: base plus mean or sum of task vectors, or base."),
]
Glob = Annotated[str, Field(min_length=1, max_length=200)]
DensePatterns = Annotated[
    tuple[Glob, ...],
    Field(max_length=100, description="Globs of tensors that are never treated as matrices: embeddings and heads."),
]
DENSE_PATTERNS = (
    "*embed*", "*wte*", "*wpe*", "*shared.weight", "*lm_head*", "head.*", "*.head.*", "*classifier*",
    "*text_projection*",
)  # fmt: skip


class MatrixChoice(Parameters):
    """Which tensors are treated as matrices."""

    conv_as_matrix: Annotated[
        bool, Field(description="Treat a kernel [out, in, …] as a matrix of out rows, not entry by entry.")
    ] = False
    dense_patterns: DensePatterns = DENSE_PATTERNS


class MatrixParameters(MatrixChoice):
    """Parameters of every method that treats matrices as matrices, and all other tensors entry by entry."""

    scaling_coefficient: ScalingCoefficient = 1.0
    vector_reduce: VectorReduce = "mean"
