"""Sweeps: the points of a merge's parameters, the recipe at each, and which of them is the best.

A point is a value for each swept path. Points of a grid are numbered in the order of the paths' names, the last path
varying fastest; points of a search in the order in which they were proposed.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise, product
from math import prod, sqrt
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, TypeAdapter, ValidationError

from app.domain import merge_checks
from app.domain.catalog import Catalog
from app.domain.checkpoints import Value
from app.domain.errors import FieldProblem, InvalidParameters
from app.domain.recipes import Recipe
from app.domain.requests import OverrideRequest, Weight
from app.domain.sweep_requests import MAX_POINTS, Choices, NumberRange, SearchRequest, full_path
from app.domain.tasks import Measurement

POINT_EVENT = "job.point"  # in the job's log: a point that was measured

Values = dict[str, JsonValue]  # swept path -> value
WEIGHT: TypeAdapter[float] = TypeAdapter(Weight)


class Grid(Value):
    """Every combination of some values."""

    kind: Literal["grid"] = "grid"
    axes: tuple[tuple[str, tuple[JsonValue, ...]], ...]  # path, values; sorted by path

    @property
    def n_points(self) -> int:
        """How many points there are."""
        return prod(len(values) for _, values in self.axes)

    @property
    def paths(self) -> tuple[str, ...]:
        """What is swept."""
        return tuple(path for path, _ in self.axes)

    def points(self) -> Iterator[Values]:
        """Yield the points in order."""
        for values in product(*(values for _, values in self.axes)):
            yield dict(zip(self.paths, values, strict=True))


class Search(Value):
    """Points proposed one after the other."""

    kind: Literal["search"] = "search"
    axes: tuple[tuple[str, NumberRange | Choices], ...]  # sorted by path
    n_trials: int
    seed: int

    @property
    def n_points(self) -> int:
        """How many points there are."""
        return self.n_trials

    @property
    def paths(self) -> tuple[str, ...]:
        """What is swept."""
        return tuple(path for path, _ in self.axes)

    def corners(self) -> Iterator[Values]:
        """Yield the outermost points, a thousand at most: what holds for them holds between them."""
        ends = [_ends(values) for _, values in self.axes]
        for values in islice(product(*ends), MAX_POINTS):
            yield dict(zip(self.paths, values, strict=True))


Space = Annotated[Grid | Search, Field(discriminator="kind")]


class Selection(Value):
    """What points are compared by."""

    split: str
    metric: str


class MeasuredPoint(Value):
    """A point with what was measured there; `problem` says why a point could not be measured."""

    index: int
    parameters: Values
    measurements: tuple[Measurement, ...] = ()  # of the metric that is selected by, one per task
    problem: str | None = None

    @property
    def mean(self) -> float | None:
        """The mean over the tasks, each counting alike; None where one is undefined."""
        values = [one.value for one in self.measurements if one.value is not None]
        return sum(values) / len(values) if values and len(values) == len(self.measurements) else None

    @property
    def stderr(self) -> float | None:
        """Standard error of the mean, the tasks' errors being independent."""
        errors = [one.stderr for one in self.measurements if one.stderr is not None]
        if not errors or len(errors) < len(self.measurements):
            return None
        return sqrt(sum(error * error for error in errors)) / len(errors)

    @property
    def n(self) -> int:
        """How many examples were measured, over all tasks."""
        return sum(one.n for one in self.measurements)


def make_grid(grid: Mapping[str, Sequence[JsonValue]]) -> Grid:
    """Return the grid of a request."""
    return Grid(axes=tuple((path, tuple(grid[path])) for path in sorted(grid)))


def make_search(request: SearchRequest) -> Search:
    """Return the search of a request."""
    axes = tuple((path, request.parameters[path]) for path in sorted(request.parameters))
    return Search(axes=axes, n_trials=request.n_trials, seed=request.seed)


def find_best(points: Sequence[MeasuredPoint]) -> MeasuredPoint | None:
    """Return the point with the best mean, of equal ones the first; None where none was measured."""
    measured = [point for point in points if point.mean is not None]
    if not measured:
        return None
    sign = 1 if measured[0].measurements[0].higher_is_better else -1
    return max(measured, key=lambda point: (sign * (point.mean or 0.0), -point.index))


def find_area(x: Sequence[float], y: Sequence[float | None]) -> float | None:
    """Return the area under a curve by trapezoids over its range of x: its mean height; None where a value is missing.

    x: at least two values that differ, in any order; of equal ones the first counts.
    """
    if None in y:
        return None
    height = {at: value for at, value in reversed(list(zip(x, y, strict=True))) if value is not None}
    ends = sorted(height)
    area = sum((high - low) * (height[low] + height[high]) / 2 for low, high in pairwise(ends))
    return area / (ends[-1] - ends[0])


def put(document: dict[str, Any], values: Mapping[str, JsonValue]) -> None:
    """Set a point's values in the JSON of a merge or a recipe.

    Raises: InvalidParameters naming the path that leads nowhere, as a pointer into the document.
    """
    for path, value in values.items():
        *steps, last = full_path(path).split(".")
        place: Any = document
        for step in steps:
            place = _below(place, step)
            if place is None:
                raise _lead_nowhere(path, step)
        if isinstance(place, dict):
            place[last] = value
        elif isinstance(place, list) and last.isdigit() and int(last) < len(place):
            place[int(last)] = value
        else:
            raise _lead_nowhere(path, last)


def recipe_at(catalog: Catalog, recipe: Recipe, values: Mapping[str, JsonValue]) -> Recipe:
    """Return the recipe with a point's values: the one that a merge with these parameters has.

    Raises: Invalid and InvalidParameters, with pointers into the merge.
    """
    document = recipe.model_dump(mode="json")
    put(document, values)
    for index, model in enumerate(document["models"]):
        model["weight"] = _check_weight(model["weight"], f"/models/{index}/weight")
    card, parameters = catalog.check(
        recipe.method,
        document["parameters"],
        has_base_model=recipe.base_model is not None,
        weights=[model["weight"] for model in document["models"]],
        model_parameters=[model["parameters"] for model in document["models"]],
    )
    for index, model in enumerate(document["models"]):
        model["parameters"] = catalog.check_override(
            card, model["parameters"], n_models=len(recipe.models), pointer=f"/models/{index}/parameters", elsewhere={}
        )
    for kind in ("transforms", "post_steps"):
        for index, step in enumerate(document[kind]):
            pointer = f"/{kind}/{index}"
            _, step["parameters"] = catalog.check_step(kind, step["name"], step["parameters"], pointer=pointer)
    asked = [_check_override(one, f"/overrides/{index}") for index, one in enumerate(document["overrides"])]
    overrides = merge_checks.check_overrides(catalog, card, asked, parameters, n_models=len(recipe.models))
    return Recipe.model_validate({**document, "parameters": parameters, "overrides": overrides})


def _lead_nowhere(path: str, step: str) -> InvalidParameters:
    message = f"{path!r} leads to nothing in the merge: there is no {step!r}, or it is null"
    pointer = f"/{full_path(path).replace('.', '/')}"
    return InvalidParameters(f"{message}.", errors=[FieldProblem(pointer, message)])


def _below(place: Any, step: str) -> Any:
    if isinstance(place, dict):
        return place.get(step)
    if isinstance(place, list) and step.isdigit() and int(step) < len(place):
        return place[int(step)]
    return None


def _check_weight(weight: object, pointer: str) -> float:
    try:
        return WEIGHT.validate_python(weight, strict=True)
    except ValidationError as error:
        raise _describe(error, pointer) from None


def _check_override(override: object, pointer: str) -> OverrideRequest:
    try:
        return OverrideRequest.model_validate(override)
    except ValidationError as error:
        raise _describe(error, pointer) from None


def _describe(error: ValidationError, pointer: str) -> InvalidParameters:
    first = error.errors()[0]
    steps = [str(step) for step in first["loc"]]
    place = "/".join([pointer, *(step for step in steps if step.isalnum())])  # no branches of a union: `list[…]`
    message = f"{first['msg']}, found {first['input']!r}"
    return InvalidParameters(f"{place}: {message}.", errors=[FieldProblem(place, message)])


def _ends(values: NumberRange | Choices) -> list[JsonValue]:
    if isinstance(values, Choices):
        return list(values.choices)
    return [int(end) if values.integer else end for end in (values.low, values.high)]
