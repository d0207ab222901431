"""Merges in memory, several in one read of their inputs: each is bit for bit what it would be alone."""

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from app.domain.catalog import load_catalog
from app.domain.checkpoints import LocalCheckpoint
from app.domain.errors import InputChanged, NotFinite
from app.domain.jobs import Progress
from app.domain.planning import plan_merge
from app.domain.recipes import Override, PinnedStep, Recipe, RecipeModel, pin
from tests.workers.files import FileMerge, read_tensors, write_checkpoint
from workers.catalog import load_recipe
from workers.checkpoints import held_source
from workers.numerics import fused
from workers.pipelines import held_merge
from workers.pipelines.held_merge import (
    MERGED_AT_ONCE,
    HeldTensors,
    MergeSet,
    count_held,
    merge_in_memory,
    merge_together,
)
from workers.statistics.kept import Shelf

SHAPES = {
    "model.embed.weight": (60, 24), "model.layers.0.w": (37, 61), "model.layers.0.bias": (37,),
    "model.layers.1.w": (48, 24), "model.layers.1.conv": (4, 3, 2, 2), "model.norm.running_var": (24,),
    "model.empty": (0, 4), "model.scale": (), "model.long": (3000,),
}  # fmt: skip
Parameters = Mapping[str, Any]


@pytest.fixture(autouse=True)
def _kernels() -> None:
    assert fused.load()


@pytest.fixture
def _short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_merge, "piece_elements", lambda _n_models: 500)


def write(
    folder: Path,
    n_models: int = 3,
    dtypes: Sequence[torch.dtype] = (torch.bfloat16,),
    changes: Mapping[str, Tensor] | None = None,
) -> tuple[LocalCheckpoint, list[LocalCheckpoint]]:
    """Write a base and models near it, in turn of the dtypes, with tensors that are copied; changes: of the first."""
    generator = torch.Generator().manual_seed(1)
    base = {name: torch.randn(shape, generator=generator).abs() for name, shape in SHAPES.items()}
    checkpoints: list[LocalCheckpoint] = []
    for index in range(n_models + 1):
        moved = {name: one + 0.1 * index * torch.randn(one.shape, generator=generator) for name, one in base.items()}
        tensors = {name: one.to(dtypes[index % len(dtypes)]) for name, one in moved.items()}
        tensors |= {"model.positions": torch.arange(7) + index, **(changes or {} if index == 1 else {})}
        checkpoints.append(write_checkpoint(folder / f"m{index}", tensors))
    return checkpoints[0], checkpoints[1:]


class Points:
    """Points of a method over some models."""

    def __init__(
        self,
        merge: FileMerge,
        points: Sequence[Parameters],
        base: LocalCheckpoint | None,
        models: Sequence[LocalCheckpoint],
        **of_recipe: Any,
    ) -> None:
        planned = [replace(merge, parameters={**merge.parameters, **point}).plan(base, models) for point in points]
        self.recipes: list[Recipe] = [recipe.model_copy(update=of_recipe) for recipe, _ in planned]
        self.merge_set = MergeSet(planned[0][1], base, models, "cpu", threads=2)

    def together(self, shelf: Shelf | None = None) -> list[HeldTensors | NotFinite]:
        points = [(recipe, load_recipe(recipe)) for recipe in self.recipes]
        return merge_together(self.merge_set, points, shelf or Shelf())

    def alone(self) -> list[HeldTensors]:
        return [merge_in_memory(self.merge_set, recipe, load_recipe(recipe), Shelf()) for recipe in self.recipes]


def assert_equal(found: HeldTensors | NotFinite, expected: Mapping[str, Tensor]) -> None:
    assert not isinstance(found, NotFinite)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name].view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8)), name


SCALES: Sequence[Parameters] = [{"scaling_coefficient": value} for value in (0.0, 0.4, 1.3)]
DENSITIES: Sequence[Parameters] = [{"density": value} for value in (0.1, 0.5, 1.0)]
BATCHES: Sequence[tuple[str, Parameters, Sequence[Parameters]]] = [
    ("task_arithmetic", {}, SCALES),
    ("ties", {}, SCALES),
    ("ties", {"trim_scope": "tensor"}, DENSITIES),
    ("breadcrumbs", {}, [{"outlier_fraction": value} for value in (0.0, 0.05, 0.1)]),
    ("dare_ties", {}, DENSITIES),
    ("della", {"density_spread": 0.1}, [{"density": value} for value in (0.3, 0.8)]),
    ("slerp", {}, [{"t": value} for value in (0.0, 0.3, 1.0)]),
    ("karcher", {}, [{"max_iterations": value} for value in (1, 5)]),
    ("model_stock", {}, [{}]),
    ("sce", {}, DENSITIES),
    ("tsv_m", {}, SCALES),
    ("iso_c", {}, SCALES),
    ("adamerging", {}, [{"coefficients": {"*": [value, 0.3, 0.2]}} for value in (0.1, 0.5)]),
]


@pytest.mark.usefixtures("_short_pieces")
@pytest.mark.parametrize(("method", "parameters", "points"), BATCHES)
def test_points_that_are_merged_together_are_what_each_is_alone_and_in_files(
    method: str, parameters: Parameters, points: Sequence[Parameters], tmp_path: Path
) -> None:
    dtypes = (torch.bfloat16, torch.float32, torch.float16, torch.float64)
    base, models = write(tmp_path, 2 if method == "slerp" else 3, dtypes)
    grid = Points(FileMerge(method, parameters), points, base, models)

    found = grid.together()

    for made, alone, point in zip(found, grid.alone(), points, strict=True):
        assert_equal(made, alone)
        place = tmp_path / json.dumps(point)
        FileMerge(method, {**parameters, **point})(base, models, place)
        assert_equal(made, read_tensors(place))


@pytest.mark.usefixtures("_short_pieces")
@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "tsv_m"])
def test_what_only_some_models_have_is_the_base_s(method: str, tmp_path: Path) -> None:
    base, models = write(tmp_path)
    lacking = write_checkpoint(tmp_path / "lacking", {"model.layers.0.w": torch.ones(37, 61)})
    grid = Points(FileMerge(method), SCALES, base, [*models, models[0]])
    manifests = [model.manifest for model in (*models, lacking)]
    recipes = [
        recipe.model_copy(
            update={
                "tensors": "intersection",
                "models": (*recipe.models[:-1], RecipeModel(**pin(lacking).model_dump())),
            }
        )
        for recipe in grid.recipes
    ]
    plan = plan_merge(recipes[0], base.manifest, manifests, load_catalog().method(method))
    assert {one.copied_because for one in plan.tensors} >= {None, "missing"}
    grid.recipes, grid.merge_set = recipes, MergeSet(plan, base, [*models, lacking], "cpu", threads=2)

    for made, alone in zip(grid.together(), grid.alone(), strict=True):
        assert_equal(made, alone)


@pytest.mark.usefixtures("_short_pieces")
@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "tsv_m"])
@pytest.mark.parametrize("kernels", ["with", "without"])
def test_what_is_not_finite_is_zero_for_all_where_the_policy_says_so(
    method: str, kernels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "is_ready", lambda: kernels == "with")
    broken = torch.ones(48, 24)
    broken[3, 5], broken[40, 1] = float("nan"), float("inf")
    grid = Points(FileMerge(method), SCALES, *write(tmp_path, changes={"model.layers.1.w": broken}), nan_policy="zero")

    for made, alone in zip(grid.together(), grid.alone(), strict=True):
        assert_equal(made, alone)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "tsv_m"])
def test_broken_inputs_lose_every_point_with_the_reason_that_each_has_alone(method: str, tmp_path: Path) -> None:
    broken = torch.ones(48, 24)
    broken[3, 5] = float("nan")
    grid = Points(FileMerge(method), SCALES, *write(tmp_path, changes={"model.layers.1.w": broken}))

    with pytest.raises(NotFinite) as alone:
        grid.alone()

    assert [str(one) for one in grid.together()] == [str(alone.value)] * 3


@pytest.mark.usefixtures("_short_pieces")
@pytest.mark.parametrize("method", ["task_arithmetic", "tsv_m"])
def test_a_point_that_is_not_finite_loses_alone(method: str, tmp_path: Path) -> None:
    points = [{"scaling_coefficient": value} for value in (0.5, 1e39, 1.0)]
    grid = Points(FileMerge(method), points, *write(tmp_path))

    first, lost, last = grid.together()

    with pytest.raises(NotFinite) as alone:
        Points(FileMerge(method), points[1:2], grid.merge_set.base, grid.merge_set.models).alone()
    assert str(lost) == str(alone.value)
    others = Points(FileMerge(method), [points[0], points[2]], grid.merge_set.base, grid.merge_set.models)
    for made, expected in zip((first, last), others.alone(), strict=True):
        assert_equal(made, expected)


@pytest.mark.usefixtures("_short_pieces")
def test_transforms_post_steps_weights_and_overrides_may_differ(tmp_path: Path) -> None:
    base, models = write(tmp_path)
    grids = [
        Points(
            FileMerge(
                "ties",
                weights=(1.0, weight, 0.5),
                overrides=(Override(match="*.w", parameters={"density": weight / 2}),),
                transforms=(PinnedStep(name="awd", version=1, parameters={"norm_penalty": weight}),),
                post_steps=(PinnedStep(name="lines", version=1, parameters={"slope": weight}),),
            ),
            [{}],
            base,
            models,
        )
        for weight in (0.2, 0.7)
    ]
    both = grids[0]
    expected = [grid.alone()[0] for grid in grids]
    both.recipes += grids[1].recipes

    for made, alone in zip(both.together(), expected, strict=True):
        assert_equal(made, alone)


@pytest.mark.parametrize(
    ("method", "points", "n_passes"),
    [
        ("task_arithmetic", SCALES, 1),
        ("ties", SCALES, 3),  # for the trim, for the majority, for the merge
        ("ties", [{"density": value} for value in (0.1, 0.5, 0.9)], 3),
        ("breadcrumbs", [{"density": value} for value in (0.1, 0.5, 0.9)], 2),
        ("karcher", [{"max_iterations": value} for value in (1, 5, 9)], 2),
        ("tsv_m", SCALES, 1),
    ],
)
def test_a_pass_reads_the_inputs_once_for_all_points(
    method: str, points: Sequence[Parameters], n_passes: int, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    base, *models = [
        write_checkpoint(
            tmp_path / f"m{index}",
            {f"w{at}": torch.randn(768, 1024, generator=generator).bfloat16() for at in range(3)}
            | {"model.positions": torch.arange(1 << 18)},
        )
        for index in range(3)
    ]
    grid = Points(FileMerge(method), points, base, models)
    a_read = n_passes * 3 * (3 * 768 * 1024 * 2) + 3 * (1 << 18) * 8  # positions are compared with the other models'

    read, alone = count_read(grid.together), count_read(grid.alone)

    assert a_read <= read < alone - (len(points) - 1) * a_read + 200_000  # samples are each point's own, as are ties


def count_read(function: Callable[[], object]) -> int:
    """Return how many bytes this process asks the system for meanwhile, from the page cache or not."""
    before = read_bytes()
    function()
    return read_bytes() - before


def read_bytes() -> int:
    """Return how many bytes this process has asked the system for."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


@pytest.mark.usefixtures("_short_pieces")
def test_a_tensor_too_large_to_be_held_is_read_by_each_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_source, "HELD_BYTES", 0)
    for method in ("task_arithmetic", "ties", "tsv_m", "model_stock"):
        grid = Points(FileMerge(method), [{}, {}], *write(tmp_path / method))
        for made, alone in zip(grid.together(), grid.alone(), strict=True):
            assert_equal(made, alone)


def test_what_points_ask_for_alike_is_collected_once_and_kept_on_the_shelf(tmp_path: Path) -> None:
    base, models = write(tmp_path)
    shelf = CountingShelf()

    Points(FileMerge("ties"), SCALES, base, models).together(shelf)
    assert shelf.n_asked == 1
    Points(FileMerge("ties"), DENSITIES, base, models).together(shelf)
    assert shelf.n_asked == 4


class CountingShelf(Shelf):
    """Counts how often it is asked."""

    n_asked = 0

    def collect(self, key: Hashable, collect: Callable[[], Any]) -> Any:
        self.n_asked += 1
        return super().collect(key, collect)


def test_an_input_that_is_not_there_any_more_ends_it(tmp_path: Path) -> None:
    grid = Points(FileMerge("ties"), SCALES, *write(tmp_path))
    (tmp_path / "m2" / "model.safetensors").write_bytes(b"")

    with pytest.raises(InputChanged, match="register"):
        grid.together()


def test_an_input_that_shrinks_meanwhile_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Points(FileMerge("ties"), SCALES, *write(tmp_path))
    before = held_source.HeldSource.read_rows

    def shrink(self: held_source.HeldSource, run: Any) -> Any:
        (tmp_path / "m2" / "model.safetensors").write_bytes(b"")
        return before(self, run)

    monkeypatch.setattr(held_source.HeldSource, "read_rows", shrink)
    with pytest.raises(InputChanged, match="ends before byte"):
        grid.together()


def test_progress_counts_the_inputs_once(tmp_path: Path) -> None:
    grid, heard = Points(FileMerge("task_arithmetic"), SCALES, *write(tmp_path)), list[Progress]()

    merge_together(grid.merge_set, [(one, load_recipe(one)) for one in grid.recipes], Shelf(), heard.append)

    assert {one.stage for one in heard} == {"merging points"}
    assert all(one.fraction <= 1.0 for one in heard)


@pytest.mark.parametrize(("room", "n"), [(0, 1), (3, 1), (3.5, 1), (4, 2), (6.2, 4), (1000, MERGED_AT_ONCE)])
def test_as_many_points_as_fit_are_held_beside_one_that_runs(room: float, n: int, tmp_path: Path) -> None:
    grid = Points(FileMerge("task_arithmetic"), [{}], *write(tmp_path))
    plan = grid.merge_set.plan
    merged = plan.model_copy(update={"tensors": tuple(one for one in plan.tensors if one.copied_because is None)})
    written = sum(one.end - one.begin for one in merged.tensors)  # bfloat16: the run one is twice as large

    assert count_held(merged, room_bytes=int(room * written), threads=1) == n
