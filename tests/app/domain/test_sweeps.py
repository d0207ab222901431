"""Points of a sweep, the best of them, and the recipe at each."""

import pytest
from pydantic import JsonValue, ValidationError

from app.domain.catalog import load_catalog
from app.domain.errors import Invalid
from app.domain.recipes import Override, PinnedCheckpoint, PinnedStep, Recipe, RecipeModel
from app.domain.sweep_requests import SearchRequest, SweepRequest
from app.domain.sweeps import MeasuredPoint, find_area, find_best, make_grid, make_search, recipe_at
from app.domain.tasks import Measurement

CATALOG = load_catalog()


def make_recipe() -> Recipe:
    """Return a recipe of TIES with an override and a post-step."""
    card, parameters = CATALOG.check("ties", {}, has_base_model=True, weights=[1.0, 1.0])
    step, of_step = CATALOG.check_step("post_steps", "lines", {}, pointer="")
    return Recipe(
        method=card.name,
        method_version=card.version,
        base_model=PinnedCheckpoint(content_digest="a", weights_digest="b"),
        models=tuple(RecipeModel(content_digest=name, weights_digest=name) for name in "cd"),
        parameters=parameters,
        shard_bytes=1,
        overrides=(
            Override(match="*", parameters={"density": 0.5}),
            Override(match="*a*", weights=(1.0, None), models=({"density": 0.5}, None)),
        ),
        post_steps=(PinnedStep(name=step.name, version=step.version, parameters=of_step),),
    )


def measured(index: int, *values: float | None, higher_is_better: bool = True) -> MeasuredPoint:
    found = [
        Measurement(
            task=f"task_{at}", name="m", value=value, split="validation", n=4, stderr=0.3,
            higher_is_better=higher_is_better,
        )
        for at, value in enumerate(values)
    ]  # fmt: skip
    return MeasuredPoint(index=index, parameters={}, measurements=tuple(found))


def test_points_of_a_grid_vary_the_last_path_by_name_fastest() -> None:
    grid = make_grid({"b": [1, 2], "a": ["x", "y"]})

    assert grid.n_points == 4
    assert list(grid.points()) == [{"a": a, "b": b} for a in ("x", "y") for b in (1, 2)]


def test_corners_of_a_search_are_its_ends_and_choices() -> None:
    asked = {"k": {"low": 1, "high": 5, "integer": True}, "c": {"choices": ["x", "y"]}}
    search = make_search(SearchRequest.model_validate({"parameters": asked}))

    assert list(search.corners()) == [{"c": c, "k": k} for c in ("x", "y") for k in (1, 5)]


def test_the_area_is_the_mean_height_over_the_range() -> None:
    assert find_area([0.0, 3.0, 1.0], [0.0, 1.0, 1.0]) == pytest.approx((0.5 * 1 + 1.0 * 2) / 3)
    assert find_area([1.0, 0.0, 1.0], [0.5, 0.5, 9.0]) == 0.5  # of two at 1 the first
    assert find_area([0.0, 1.0], [0.5, None]) is None


def test_the_best_has_the_highest_mean_and_of_equal_ones_the_first() -> None:
    points = [measured(0, 0.5, 0.5), measured(1, 0.9, 0.7), measured(2, 0.7, 0.9), measured(3, 0.99, None)]

    assert find_best(points) == points[1]  # (0.9 + 0.7) / 2 = 0.8, as the third; the fourth has no mean


def test_the_best_is_the_lowest_where_lower_is_better() -> None:
    points = [measured(index, value, higher_is_better=False) for index, value in enumerate((3.0, 1.0, 2.0, 1.0))]

    assert find_best(points) == points[1]


def test_nothing_measured_has_no_best() -> None:
    assert find_best([measured(0, None), MeasuredPoint(index=1, parameters={}, problem="not finite")]) is None


def test_the_error_of_a_mean_is_that_of_independent_tasks() -> None:
    point = measured(0, 0.5, 0.7)

    assert point.stderr == pytest.approx(0.3 * 2**0.5 / 2)
    assert point.n == 8


def test_values_stand_where_their_paths_lead() -> None:
    values = {
        "density": 1, "models.1.weight": 0.5, "overrides.0.parameters.density": 0.1, "post_steps.0.parameters.slope": 2
    }  # fmt: skip
    before = make_recipe()

    recipe = recipe_at(CATALOG, before, values)

    assert recipe.parameters == {**before.parameters, "density": 1.0}  # 1 and 1.0 are one number, one digest
    assert [model.weight for model in recipe.models] == [1.0, 0.5]
    assert recipe.overrides[0].parameters == {"density": 0.1}
    assert recipe.post_steps[0].parameters["slope"] == 2.0
    assert recipe_at(CATALOG, recipe, {}) == recipe


def test_values_of_one_model_and_of_one_model_in_some_tensors_stand_where_their_paths_lead() -> None:
    values = {"models.0.parameters.density": 1, "overrides.1.weights.1": 2, "overrides.1.models.0.density": 1}
    before = make_recipe()

    recipe = recipe_at(CATALOG, before, values)

    assert [model.parameters for model in recipe.models] == [{"density": 1.0}, {}]
    assert recipe.overrides[0] == before.overrides[0]
    assert recipe.overrides[1].weights == (1.0, 2.0)
    assert recipe.overrides[1].models == ({"density": 1.0}, None)
    written = recipe_at(CATALOG, before, {"overrides.1.weights": [[0, 1], 0.5]})
    assert written.overrides[1].weights == ((0.0, 1.0), 0.5)  # a list over the depth
    assert recipe_at(CATALOG, written, {"overrides.1.weights.0": 0.5}).overrides[1].weights == (0.5, 0.5)


def test_one_step_of_a_list_over_the_depth_is_swept() -> None:
    before = recipe_at(CATALOG, make_recipe(), {"scaling_coefficient": [0.2, 0.6]})

    recipe = recipe_at(CATALOG, before, {"parameters.scaling_coefficient.1": 0.5})

    assert recipe.parameters["scaling_coefficient"] == [0.2, 0.5]


def test_a_method_inside_a_method_is_reached_by_a_longer_path() -> None:
    card, parameters = CATALOG.check("knots", {}, has_base_model=True, weights=[1.0, 1.0])
    (nested,) = card.nested
    before = make_recipe().model_copy(
        update={"method": card.name, "parameters": parameters, "overrides": (), "post_steps": ()}
    )

    recipe = recipe_at(CATALOG, before, {f"parameters.{nested}.parameters.density": 0.7})

    inside = recipe.parameters[nested]
    assert isinstance(inside, dict)
    assert isinstance(inside["parameters"], dict)
    assert inside["parameters"]["density"] == 0.7


@pytest.mark.parametrize(
    ("path", "value", "pointer"),
    [
        ("densty", 0.5, "/parameters/densty"),
        ("density", 2.0, "/parameters/density"),
        ("models.2.weight", 0.5, "/models/2/weight"),
        ("models.0.weight", 1e7, "/models/0/weight"),
        ("transforms.0.parameters.steps", 1, "/transforms/0/parameters/steps"),
        ("post_steps.0.parameters.slop", 1, "/post_steps/0/parameters/slop"),
        ("overrides.0.parameters.density", -1, "/overrides/0/parameters/density"),
        ("parameters.density.0", 0.5, "/parameters/density/0"),  # one number, no list
        ("models.0.parameters.densty", 0.5, "/models/0/parameters/densty"),
        ("models.0.parameters.density", 2, "/models/0/parameters/density"),
        ("models.0.parameters.trim_scope", "tensor", "/models/0/parameters/trim_scope"),  # of no single model
        ("overrides.0.weights.0", 0.5, "/overrides/0/weights/0"),  # there are none to change
        ("overrides.1.weights.2", 0.5, "/overrides/1/weights/2"),
        ("overrides.1.weights", [1.0], "/overrides/1/weights"),
        ("overrides.1.weights.0", "x", "/overrides/1/weights/0"),
        ("overrides.1.models.0.density", -1, "/overrides/1/models/0/density"),
        ("overrides.1.models.1.density", 0.5, "/overrides/1/models/1/density"),  # null
    ],
)
def test_a_value_that_the_merge_does_not_take_is_refused(path: str, value: JsonValue, pointer: str) -> None:
    with pytest.raises(Invalid) as refused:
        recipe_at(CATALOG, make_recipe(), {path: value})

    assert refused.value.errors[0].pointer == pointer


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"low": 1.0, "high": 1.0}, "low must be below high"),
        ({"low": 0.0, "high": 1.0, "log": True}, "log needs low > 0"),
        ({"low": 0.5, "high": 4, "integer": True}, "whole numbers"),
        ({"low": 0.0, "high": 1.0, "stepp": 0.1}, "stepp"),
        ({"choices": []}, "at least 1 item"),
    ],
)
def test_a_range_that_makes_no_sense_is_refused(asked: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        SearchRequest.model_validate({"parameters": {"density": asked}})


def test_how_the_job_runs_is_said_of_the_sweep() -> None:
    merge = {"method": "ties", "models": [{"checkpoint": "a"}], "evaluate": ["t"], "priority": 5}

    with pytest.raises(ValidationError, match=r"merge\.priority is said of the sweep"):
        SweepRequest.model_validate({"merge": merge, "grid": {"density": [0.1]}})


@pytest.mark.parametrize(
    "path",
    [
        "models.0.task",
        "models.0.checkpoint",
        "overrides.0.match",
        "overrides.0.models",
        "seed.0",
        "output.dtype",
    ],
)
def test_what_is_no_value_of_a_method_is_not_swept(path: str) -> None:
    merge = {"method": "ties", "models": [{"checkpoint": "a"}], "evaluate": ["t"]}

    with pytest.raises(ValidationError, match="should match pattern"):
        SweepRequest.model_validate({"merge": merge, "grid": {path: [0.1]}})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("density", "parameters.density"),
        ("overrides.0.weights", "overrides.0.weights.1"),
        ("parameters.shared", "parameters.shared.parameters.density"),
    ],
)
def test_a_place_is_swept_once(first: str, second: str) -> None:
    merge = {"method": "ties", "models": [{"checkpoint": "a"}], "evaluate": ["t"]}

    with pytest.raises(ValidationError, match="is swept twice; name it once"):
        SweepRequest.model_validate({"merge": merge, "grid": {first: [0.1], second: [0.2]}})
