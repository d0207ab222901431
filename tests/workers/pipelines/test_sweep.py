"""Sweeps through the pipeline: what is measured in memory is what is stored; the best is a merge like any other."""

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from pydantic import JsonValue

from app.domain.catalog import load_catalog
from app.domain.checkpoints import LocalCheckpoint, Manifest
from app.domain.errors import JobError
from app.domain.jobs import Progress
from app.domain.planning import plan_merge
from app.domain.recipes import Recipe, RecipeModel, pin
from app.domain.sweep_requests import Choices, NumberRange
from app.domain.sweeps import MeasuredPoint, Search, Selection, Space, make_grid, recipe_at
from app.domain.work import CheckpointOutcome, EvaluateWork, MergeWork, SweepOutcome, SweepWork
from tests.workers import tiny_bert
from tests.workers.learning.world import make_world
from workers import catalog
from workers.checkpoints.model import Models
from workers.figures import style
from workers.pipelines import held_points
from workers.pipelines.evaluate import evaluate
from workers.pipelines.held_merge import can_hold, merge_together
from workers.pipelines.held_points import HeldPoints
from workers.pipelines.surface import Side, Surface, draw_surface
from workers.pipelines.sweep import Workshop, sweep
from workers.pipelines.sweep_report import find_surface
from workers.runner import WorkOrder, perform

KIND = "text-classification"
ROOM = 1 << 30


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> list[LocalCheckpoint]:
    """A base model and two others."""
    folder = tmp_path_factory.mktemp("family")
    return [tiny_bert.local(tiny_bert.make_encoder(folder / f"bert-{seed}", seed=seed)) for seed in range(3)]


class Sweeps:
    """Runs sweeps over a family in a folder of its own."""

    def __init__(self, family: Sequence[LocalCheckpoint], folder: Path) -> None:
        self.base, *self.models = family
        self.folder = folder
        task = tiny_bert.make_task(folder / "task", preprocessing={"max_tokens": 16})
        other = task.spec.model_copy(update={"name": "other"})
        self.tasks = (task, task.model_copy(update={"id": "task_b", "spec": other}))
        self.n_works = 0
        self.progress: list[Progress] = []
        self.told: list[MeasuredPoint] = []

    def work(self, space: Space, method: str = "task_arithmetic", **changes: object) -> SweepWork:
        card, parameters = load_catalog().check(method, {}, has_base_model=True, weights=[1.0, 1.0])
        recipe = Recipe(
            method=card.name,
            method_version=card.version,
            base_model=pin(self.base),
            models=tuple(RecipeModel(**pin(model).model_dump()) for model in self.models),
            parameters=parameters,
            shard_bytes=5_000_000_000,
        )
        self.n_works += 1
        place = self.folder / f"attempt-{self.n_works}"
        (place / "output").mkdir(parents=True)
        merge = MergeWork(recipe=recipe, base_model=self.base, models=tuple(self.models), output=place / "output")
        made = SweepWork(
            merge=merge,
            space=space,
            selection=Selection(split="validation", metric="accuracy"),
            tasks=self.tasks,
            base_models={task.id: self.base for task in self.tasks},
            scratch=place / "scratch",
        )
        return made.model_copy(update=changes)

    def run(self, work: SweepWork, *, room_bytes: int = ROOM) -> SweepOutcome:
        workshop = Workshop(
            evaluators={KIND: catalog.load_evaluator(KIND)},
            load_code=catalog.load_recipe,
            merge=lambda merge, _: merge_to(merge),
            threads=1,
            room_bytes=room_bytes,
        )
        return sweep(work, workshop, self.progress.append, self.told.append)


def merge_to(work: MergeWork) -> CheckpointOutcome:
    outcome = perform(WorkOrder(work=work), tiny_bert.ignore)
    assert isinstance(outcome, CheckpointOutcome)
    return outcome


@pytest.fixture
def sweeps(family: list[LocalCheckpoint], tmp_path: Path) -> Sweeps:
    return Sweeps(family, tmp_path)


GRID = make_grid({"scaling_coefficient": [0.0, 0.5, 1.0]})


def test_the_best_merge_is_the_plain_merge_with_its_parameters(sweeps: Sweeps, tmp_path: Path) -> None:
    work = sweeps.work(GRID)

    outcome = sweeps.run(work)

    recipe = recipe_at(load_catalog(), work.merge.recipe, outcome.best.parameters)
    (tmp_path / "plain").mkdir()
    plain = merge_to(work.merge.model_copy(update={"recipe": recipe, "output": tmp_path / "plain"}))
    assert outcome.recipe == recipe
    assert outcome.manifest == plain.manifest
    for file in plain.manifest.files:
        assert (work.merge.output / file.path).read_bytes() == (tmp_path / "plain" / file.path).read_bytes()
    assert list(work.scratch.joinpath("held").glob("*.safetensors")) == []


@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_what_is_measured_in_memory_is_what_a_stored_merge_measures(
    sweeps: Sweeps, tmp_path: Path, method: str
) -> None:
    held = sweeps.run(sweeps.work(GRID, method))
    work = sweeps.work(GRID, method)

    stored = sweeps.run(work, room_bytes=0)

    assert held.curve == stored.curve
    assert list(work.scratch.iterdir()) == []  # losers are not kept
    checkpoint = LocalCheckpoint(id="best", path=work.merge.output, manifest=stored.manifest)
    order = EvaluateWork(
        checkpoint=checkpoint,
        tasks=work.tasks,
        base_models=work.base_models,
        split={task.id: "validation" for task in work.tasks},
    )
    assert evaluate(order, {KIND: catalog.load_evaluator(KIND)}, tiny_bert.ignore) == held.best.measurements


def test_a_method_that_learns_learns_at_every_point(tmp_path: Path) -> None:
    world = make_world(tmp_path / "world")
    sweeps = Sweeps([world.base, *world.models], tmp_path)
    merge = world.work(tmp_path / "learned" / "output", {}, method="regmean")
    work = sweeps.work(make_grid({"non_diagonal_scale": [0.0, 0.9]})).model_copy(update={"merge": merge})

    outcome = sweeps.run(work)

    assert all(point.mean is not None for point in sweeps.told)
    plain = world.merge(tmp_path / "plain", dict(outcome.best.parameters), method="regmean")
    assert outcome.manifest == plain.manifest
    assert any(file.path.startswith("statistics/gram-") for file in outcome.manifest.files)


@pytest.mark.parametrize(
    ("method", "grid", "n_sets"),
    [
        ("regmean", {"non_diagonal_scale": [0.0, 0.5, 0.9], "models.0.weight": [1.0, 0.5]}, 1),
        ("fisher", {"floor": [0.0, 1e-3], "labels": ["given", "expected"]}, 2),
    ],
)
def test_statistics_are_measured_once_for_all_points_that_need_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, grid: dict[str, list[JsonValue]], n_sets: int
) -> None:
    world = make_world(tmp_path / "world")
    measured = count_measuring(monkeypatch, method)
    merge = world.work(tmp_path / "swept" / "output", {}, method=method)
    work = Sweeps([world.base, *world.models], tmp_path).work(make_grid(grid)).model_copy(update={"merge": merge})

    outcome = perform(WorkOrder(work=work), tiny_bert.ignore)

    assert isinstance(outcome, SweepOutcome)
    assert len(measured) == n_sets * len(world.models)
    order = merge.model_copy(update={"recipe": outcome.recipe, "output": tmp_path / "plain" / "output"})
    order.output.mkdir(parents=True)
    plain = merge_to(order)
    assert (outcome.manifest, outcome.report) == (plain.manifest, plain.report)
    for file in plain.manifest.files:
        assert (merge.output / file.path).read_bytes() == (order.output / file.path).read_bytes()


def count_measuring(monkeypatch: pytest.MonkeyPatch, method: str) -> list[str]:
    """Return a list that grows by one whenever the method measures a model."""
    module = import_module(f"workers.methods.{method}")
    name = {"regmean": "measure_grams", "fisher": "measure_fisher"}[method]
    measure, seen = getattr(module, name), list[str]()

    def counted(*arguments: Any) -> Any:
        seen.append(method)
        return measure(*arguments)

    monkeypatch.setattr(module, name, counted)
    return seen


@pytest.mark.parametrize(
    ("method", "parameters", "place"),
    [
        ("adamerging", {"coefficients": {"*": [0.3, 0.3]}}, "memory"),
        ("adamerging", {}, "files"),
        ("fisher", {}, "files"),
    ],
)
def test_a_merge_stays_in_memory_unless_it_learns(
    sweeps: Sweeps, method: str, parameters: dict[str, JsonValue], place: str
) -> None:
    base, models = sweeps.base.manifest, [model.manifest for model in sweeps.models]
    card, effective = load_catalog().check(method, parameters, has_base_model=True, weights=[1.0, 1.0])
    recipe = sweeps.work(GRID).merge.recipe.model_copy(update={"method": card.name, "parameters": effective})

    found = can_hold(recipe, card, plan_merge(recipe, base, models, card), room_bytes=ROOM)

    assert found is (place == "memory")


def test_a_multitask_result_is_measured_with_each_task_s_patch(sweeps: Sweeps) -> None:
    work = sweeps.work(make_grid({"density": [0.5, 1.0]}), "peru_fft", labels={"task_kind": "a", "task_b": "b"})
    labeled = zip(work.merge.recipe.models, "ab", strict=True)
    models = tuple(model.model_copy(update={"task": label}) for model, label in labeled)
    recipe = work.merge.recipe.model_copy(update={"models": models})

    outcome = sweeps.run(work.model_copy(update={"merge": work.merge.model_copy(update={"recipe": recipe})}))

    assert [patch.task for patch in outcome.manifest.patches] == ["a", "b"]
    assert all(point.mean is not None for point in sweeps.told)


def test_every_point_is_told_with_progress(sweeps: Sweeps) -> None:
    outcome = sweeps.run(sweeps.work(GRID))

    assert [point.parameters for point in sweeps.told] == [{"scaling_coefficient": value} for value in (0.0, 0.5, 1.0)]
    assert [point.index for point in sweeps.told] == [0, 1, 2]
    fractions = [report.fraction for report in sweeps.progress]
    assert fractions == sorted(fractions)
    assert (sweeps.progress[-1].done, sweeps.progress[-1].total, sweeps.progress[-1].unit) == (2, 3, "points")
    assert outcome.curve["n_points"] == 3


def test_points_of_an_earlier_attempt_are_not_measured_again(sweeps: Sweeps) -> None:
    whole = sweeps.run(sweeps.work(GRID))
    known = tuple(sweeps.told[:2])
    sweeps.told.clear()

    resumed = sweeps.run(sweeps.work(GRID, measured=known))

    assert [point.index for point in sweeps.told] == [2]
    assert resumed == whole


def test_a_point_that_cannot_be_merged_loses(sweeps: Sweeps) -> None:
    work = sweeps.work(make_grid({"scaling_coefficient": [1e39, 0.5]}))

    outcome = sweeps.run(work)

    assert outcome.best.index == 1
    assert "finite" in str(sweeps.told[0].problem)
    assert outcome.curve["n_failed"] == 1


def test_a_sweep_without_a_measured_point_fails_with_the_first_reason(sweeps: Sweeps) -> None:
    with pytest.raises(JobError, match="None of the 1 points could be measured; the first: "):
        sweeps.run(sweeps.work(make_grid({"scaling_coefficient": [1e39]})))


def test_equal_points_go_to_the_first(sweeps: Sweeps) -> None:
    outcome = sweeps.run(sweeps.work(make_grid({"scaling_coefficient": [0.0, 1e-12, 2e-12]})))

    assert outcome.best.index == 0


def test_the_report_holds_every_task_and_a_figure(sweeps: Sweeps) -> None:
    work = sweeps.work(make_grid({"scaling_coefficient": [0.5], "models.0.weight": [0.0, 1.0]}))

    outcome = sweeps.run(work)

    data = json.loads((work.merge.output / "sweep.json").read_text())
    assert [point["parameters"]["models.0.weight"] for point in data["points"]] == [0.0, 1.0]
    assert list(data["points"][0]["tasks"]) == ["kind", "other"]
    assert {**data, "points": outcome.curve["points"]} == outcome.curve
    ElementTree.fromstring((work.merge.output / "sweep.svg").read_text())
    assert (work.merge.output / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_the_area_under_the_curve_of_one_number_is_in_the_report(sweeps: Sweeps) -> None:
    outcome = sweeps.run(sweeps.work(make_grid({"scaling_coefficient": [1.0, 0.0, 0.5]})))

    one, zero, half = (float(point.mean or 0.0) for point in sweeps.told)
    area = outcome.curve["area"]
    assert isinstance(area, dict)
    assert (area["path"], area["low"], area["high"]) == ("scaling_coefficient", 0.0, 1.0)
    assert area["mean"] == pytest.approx((zero + 2 * half + one) / 4)  # two trapezoids of width 1/2
    assert set(area["tasks"]) == {"kind", "other"}  # type: ignore[arg-type]  # JSON


@pytest.mark.parametrize(
    "grid",
    [
        {"scaling_coefficient": [0.0, 1.0], "models.0.weight": [0.0, 1.0]},
        {"scaling_coefficient": [0.5]},
        {"scaling_coefficient": [0.5, 1e39]},  # a point without a number
    ],
)
def test_where_no_curve_spans_a_range_there_is_no_area(sweeps: Sweeps, grid: dict[str, list[JsonValue]]) -> None:
    area = sweeps.run(sweeps.work(make_grid(grid))).curve["area"]

    assert area is None or (isinstance(area, dict) and area["mean"] is None)


def test_two_axes_make_a_surface_with_the_best_point_framed(sweeps: Sweeps) -> None:
    work = sweeps.work(make_grid({"scaling_coefficient": [1.0, 1e39, 0.0], "models.0.weight": [1.0, 0.0]}))
    outcome = sweeps.run(work)

    surface = find_surface(work, sweeps.told, outcome.best, "title")

    assert surface is not None
    assert (surface.rows.path, surface.rows.values) == ("models.0.weight", ["0.0", "1.0"])
    assert (surface.columns.path, surface.columns.values) == ("scaling_coefficient", ["0.0", "1.0", "1e+39"])
    row, column = surface.best
    assert surface.means[row][column] == outcome.best.mean
    assert [cells[2] for cells in surface.means] == [None, None]
    told = {json.dumps(point.parameters): point.mean for point in sweeps.told}
    assert surface.means[0][1] == told['{"models.0.weight": 0.0, "scaling_coefficient": 1.0}']


@pytest.mark.parametrize(
    "grid",
    [
        {"scaling_coefficient": [0.5], "models.0.weight": [0.0, 1.0]},
        {"scaling_coefficient": [0.5, 1.0], "models.0.weight": [0.0, 1.0], "models.1.weight": [0.0, 1.0]},
    ],
)
def test_any_other_number_of_axes_makes_a_curve(sweeps: Sweeps, grid: dict[str, list[JsonValue]]) -> None:
    work = sweeps.work(make_grid(grid))

    assert find_surface(work, sweeps.told, sweeps.run(work).best, "title") is None


@pytest.mark.parametrize("means", [[[0.5, 0.5]], [[None, 0.5]], [[12.5, 3.0]]])
def test_a_surface_is_drawn_whatever_the_means(means: list[list[float | None]]) -> None:
    surface = Surface(
        "title", Side("a", ["1"]), Side("b", ["x", "y"]), means, "perplexity", higher_is_better=False, best=(0, 1)
    )

    with style.applied():
        svg = style.to_svg(draw_surface(surface), "title")

    ElementTree.fromstring(svg)


def test_a_search_proposes_the_same_points_each_time(sweeps: Sweeps) -> None:
    pytest.importorskip("optuna")
    axes = (("density", NumberRange(low=0.1, high=1.0)), ("vote", Choices(choices=["unweighted", "weighted"])))
    space = Search(axes=axes, n_trials=4, seed=3)

    first = sweeps.run(sweeps.work(space, "ties"))
    again = sweeps.run(sweeps.work(space, "ties"))

    assert first == again
    assert len({json.dumps(point.parameters) for point in sweeps.told[:4]}) == 4
    assert all(0.1 <= float(str(point.parameters["density"])) <= 1.0 for point in sweeps.told)


# --- points that are merged together ------------------------------------------------------------------------------


class Batches:
    """Hears of the merges that are made together, and of the order in which points are merged and measured."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []

        def listen(merge_set: Any, points: Sequence[Any], *others: Any) -> Any:
            self.sizes.append(len(points))
            return merge_together(merge_set, points, *others)

        monkeypatch.setattr(held_points, "merge_together", listen)


FIVE = make_grid({"scaling_coefficient": [0.0, 0.25, 0.5, 0.75, 1.0]})


def room_for(work: SweepWork, n_points: int) -> int:
    """Return room in which so many results fit."""
    elements = sum(tensor.n_elements for tensor in sweep_base(work).tensors)
    return 4 * elements + n_points * sum(tensor.size_bytes for tensor in sweep_base(work).tensors)


def sweep_base(work: SweepWork) -> Manifest:
    assert work.merge.base_model is not None
    return work.merge.base_model.manifest


@pytest.mark.parametrize(("n_fitting", "sizes"), [(1, [1] * 5), (2, [2, 2, 1]), (4, [4, 1]), (9, [5])])
def test_points_of_a_grid_are_merged_as_many_at_once_as_fit(
    sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch, n_fitting: int, sizes: list[int]
) -> None:
    alone = sweeps.run(sweeps.work(FIVE), room_bytes=0)
    batches, work = Batches(monkeypatch), sweeps.work(FIVE)

    outcome = sweeps.run(work, room_bytes=room_for(work, n_fitting))

    assert batches.sizes == sizes
    assert outcome == alone
    assert "merging points" in {report.stage for report in sweeps.progress}


def test_points_that_were_measured_before_are_not_merged_again(sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sweeps.run(sweeps.work(FIVE))
    known = tuple(sweeps.told[1:3])
    batches = Batches(monkeypatch)

    assert sweeps.run(sweeps.work(FIVE, measured=known)) == whole
    assert batches.sizes == [3]


def test_a_point_that_is_not_finite_takes_no_other_with_it(sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = Batches(monkeypatch)

    outcome = sweeps.run(sweeps.work(make_grid({"scaling_coefficient": [0.0, 1e39, 0.5, 1.0]})))

    assert batches.sizes == [4]
    assert [point.problem is None for point in sweeps.told] == [True, False, True, True]
    assert outcome.curve["n_failed"] == 1


def test_points_with_equal_recipes_are_merged_one_after_the_other(
    sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = Batches(monkeypatch)

    sweeps.run(sweeps.work(make_grid({"scaling_coefficient": [1, 1.0, 0.5]})))

    assert len({point.mean for point in sweeps.told[:2]}) == 1
    assert batches.sizes == [2, 1]


def test_only_points_of_one_plan_are_merged_together(sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch) -> None:
    batches, work = Batches(monkeypatch), sweeps.work(FIVE)
    first, second, *_ = (recipe_at(load_catalog(), work.merge.recipe, values) for values in FIVE.points())
    other = second.model_copy(update={"output_dtype": "bfloat16"})
    work.scratch.mkdir()
    points = HeldPoints(work.merge, work.scratch / "held", catalog.load_recipe, Models(), 1, ROOM)
    plan = points.find_plan(first)
    assert plan is not None

    with points.merged(first, plan, [other, second], tiny_bert.ignore):
        assert batches.sizes == [1]


def test_a_search_merges_one_point_at_a_time(sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    batches = Batches(monkeypatch)

    sweeps.run(sweeps.work(Search(axes=(("scaling_coefficient", NumberRange(low=0.1, high=1.0)),), n_trials=3, seed=1)))

    assert batches.sizes == [1, 1, 1]
