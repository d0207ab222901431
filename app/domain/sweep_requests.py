"""The body of POST /v1/sweeps: a merge, the parameters to try, and what the best of them is chosen by."""

from collections.abc import Mapping
from math import prod
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, JsonValue, StringConstraints, Tag, field_validator, model_validator

from app.domain.requests import MAX_TASKS, MergeRequest, Request, Split, TaskReference, WorkRequest

MAX_POINTS = 1000
OF_THE_SWEEP = ("priority", "max_attempts", "timeout_seconds", "force")  # not of the merge inside it

SweptPath = Annotated[
    str,
    StringConstraints(
        max_length=512,
        pattern=r"^([A-Za-z0-9_]+"
        r"|models\.[0-9]{1,3}\.weight"
        r"|((models|transforms|post_steps|overrides)\.[0-9]{1,3}\.)?parameters(\.[A-Za-z0-9_]+)+"
        r"|overrides\.[0-9]{1,3}\.weights(\.[0-9]{1,3})?"
        r"|overrides\.[0-9]{1,3}\.models\.[0-9]{1,3}(\.[A-Za-z0-9_]+)+)$",
    ),
    Field(description="A parameter of the method, or a path in the merge: `models.0.weight`, `overrides.0.weights.1`."),
]
SweptValues = Annotated[list[JsonValue], Field(min_length=1, max_length=MAX_POINTS)]
Number = Annotated[float, Field(ge=-1e9, le=1e9)]


class NumberRange(Request):
    """Numbers from `low` to `high`, both included."""

    low: Number
    high: Number
    step: Annotated[float, Field(gt=0, le=1e9, description="Only low + k · step.")] | None = None
    log: bool = Field(default=False, description="Spread evenly over the logarithm.")
    integer: bool = Field(default=False, description="Whole numbers alone.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low must be below high; found {self.low:g} and {self.high:g}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs low > 0 and no step")
        if self.integer and any(number % 1 for number in (self.low, self.high, self.step or 1)):
            raise ValueError("integer needs whole numbers as low, high and step")
        return self


class Choices(Request):
    """One of some values."""

    choices: Annotated[list[str | float | bool], Field(min_length=1, max_length=100)]


def _kind_of_range(value: object) -> Literal["choices", "range"]:
    return "choices" if isinstance(value, Choices) or (isinstance(value, Mapping) and "choices" in value) else "range"


SweptRange = Annotated[
    Annotated[NumberRange, Tag("range")] | Annotated[Choices, Tag("choices")], Discriminator(_kind_of_range)
]


class SearchRequest(Request):
    """Points that a sampler proposes one after the other, knowing how good the earlier ones were."""

    parameters: Annotated[dict[SweptPath, SweptRange], Field(min_length=1, max_length=16)]
    n_trials: int = Field(default=20, ge=1, le=MAX_POINTS)
    seed: int = Field(default=0, ge=0, le=2**32 - 1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        _refuse_same_place(self.parameters)
        return self


class SelectOn(Request):
    """What the best point is chosen by: the mean of a metric over tasks."""

    split: Split = Field(default="validation", description="validation or train; never test.")
    metric: Annotated[str, Field(min_length=1, max_length=64)] | None = Field(
        default=None, description="The metric of all these tasks. Default: the one that they have in common."
    )
    tasks: Annotated[list[TaskReference], Field(min_length=1, max_length=MAX_TASKS)] | None = Field(
        default=None, description="Default: the tasks of the merge's `evaluate`."
    )

    @field_validator("split")
    @classmethod
    def _refuse_test(cls, split: Split) -> Split:
        if split == "test":
            raise ValueError(
                "parameters chosen on test make its numbers too good; choose on validation, and measure the winner on "
                "test with the merge's `evaluate`"
            )
        return split


class SweepRequest(WorkRequest):
    """One merge with many values of its parameters; the one that measures best is kept."""

    merge: MergeRequest = Field(description="As for POST /v1/merges; what is swept may be left out.")
    grid: Annotated[dict[SweptPath, SweptValues], Field(min_length=1, max_length=16)] | None = Field(
        default=None, description="Every combination of these values."
    )
    search: SearchRequest | None = None
    select_on: SelectOn = SelectOn()

    @model_validator(mode="before")
    @classmethod
    def _check_ways(cls, document: Any) -> Any:  # Any: whatever was sent
        if isinstance(document, Mapping) and (document.get("grid") is None) == (document.get("search") is None):
            raise ValueError("give either a grid or a search")
        return document

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [name for name in OF_THE_SWEEP if name in self.merge.model_fields_set]
        if given:
            raise ValueError(f"merge.{given[0]} is said of the sweep as a whole; leave it out of the merge")
        if self.select_on.tasks is None and not self.merge.evaluate:
            raise ValueError("there is nothing to choose by: name tasks in merge.evaluate or in select_on.tasks")
        if self.grid is not None:
            _refuse_same_place(self.grid)
            _check_values(self.grid)
        return self


def full_path(path: str) -> str:
    """Return where in a merge the value of a swept path stands; a bare name is a parameter of the method."""
    return path if "." in path else f"parameters.{path}"


def _refuse_same_place(swept: Mapping[str, object]) -> None:
    places = [full_path(path) for path in swept]
    for index, place in enumerate(places):
        others = [other for at, other in enumerate(places) if at != index and f"{place}.".startswith(f"{other}.")]
        if others:
            raise ValueError(f"{max(place, others[0], key=len)} is swept twice; name it once")


def _check_values(grid: Mapping[str, list[JsonValue]]) -> None:
    for path, values in grid.items():
        double = [value for index, value in enumerate(values) if value in values[:index]]
        if double:
            raise ValueError(f"grid.{path} holds {double[0]!r} twice; name each value once")
    n_points = prod(len(values) for values in grid.values())
    if n_points > MAX_POINTS:
        raise ValueError(f"the grid has {n_points:,} points, expected at most {MAX_POINTS:,}; use a search for so many")
