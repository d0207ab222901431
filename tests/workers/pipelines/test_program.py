"""What a recipe computes for each piece: transforms, the method as it holds for the tensor, nested ones, post-steps."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from app.domain.parameters import NestedMethod, Parameters, ScalingCoefficient
from app.domain.recipes import Override, PinnedCheckpoint, PinnedStep, Recipe, RecipeModel
from tests.workers.memory import MemoryMerge, MemorySource
from workers.catalog import load_method, load_recipe
from workers.contract import (
    MergeContext,
    MergeMethod,
    NestedMerge,
    StatisticRequest,
    merge_method,
    post_step,
    transform,
)
from workers.pipelines.program import MergeProgram, prepare
from workers.statistics.magnitudes import MagnitudeBoundaries
from workers.statistics.views import AgainstNested, ChangedSource

BASE = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}
MODELS = [
    {"a": torch.tensor([[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]]), "b": torch.tensor([0.5, 0.25, -0.75, 7.0])},
    {"a": torch.tensor([[2.0, 2.0, -1.0], [0.0, 5.0, 6.0]]), "b": torch.tensor([-0.5, 8.0, 1.0, 1.0])},
]


class Factor(Parameters):
    """One number."""

    factor: ScalingCoefficient = 2.0


class Inside(Parameters):
    """A method inside a method."""

    inner: NestedMethod = NestedMethod(method="task_arithmetic")


@transform(name="stretch", title="", summary="", source="", parameters=Factor, granularity="row")
def stretch(base: Tensor, finetuned: Tensor, parameters: Factor, _context: MergeContext) -> Tensor:
    """Multiply every task vector."""
    return base + parameters.factor * (finetuned - base)


@post_step(name="shift", title="", summary="", source="", parameters=Factor, granularity="tensor")
def shift(_base: Tensor, _finetuned: Tensor, merged: Tensor, parameters: Factor, context: MergeContext) -> Tensor:
    """Add a number to what was merged."""
    assert tuple(merged.shape) == context.shape
    return merged + parameters.factor


def _merge(method: str, parameters: Mapping[str, Any], *, size: int = 1 << 20, **options: Any) -> dict[str, Tensor]:
    return MemoryMerge(load_method(method), parameters, piece_elements=size, **options)(BASE, MODELS)


def _assert_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


# --- transforms and post-steps ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4, 100])
def test_a_transform_changes_what_a_method_and_its_statistics_see(size: int) -> None:
    stretched = [{name: 2 * tensor for name, tensor in model.items()} for model in MODELS]
    expected = MemoryMerge(load_method("ties"), {"density": 0.4})(BASE, stretched)
    _assert_equal(_merge("ties", {"density": 0.4}, size=size, transforms=[(stretch, {})]), expected)


def test_transforms_follow_one_another() -> None:
    steps = [(stretch, {"factor": 2.0}), (stretch, {"factor": 0.25})]
    expected = _merge("task_arithmetic", {"scaling_coefficient": 0.5})
    _assert_equal(_merge("task_arithmetic", {"scaling_coefficient": 1.0}, transforms=steps), expected)


@pytest.mark.parametrize("size", [1, 4, 100])
def test_a_post_step_changes_what_was_merged(size: int) -> None:
    merged = _merge("average", {}, size=size, post_steps=[(shift, {"factor": 3.0})])
    _assert_equal(merged, {name: (MODELS[0][name] + MODELS[1][name]) / 2 + 3.0 for name in BASE})


class Sum:
    """A statistic of post-steps: the sum of what was merged."""

    name = "sum"
    n_passes = 1

    def collect(self, source: Any) -> float:
        return float(sum(source.map(lambda piece: float(piece.merged.sum()))))

    def report(self) -> float:
        return 0.0


@post_step(
    name="center", title="", summary="", source="", parameters=Factor, granularity="element", statistic_passes=1,
    collect=lambda _: (Sum(),),
)  # fmt: skip
def center(_base: Tensor, _finetuned: Tensor, merged: Tensor, _parameters: Factor, context: MergeContext) -> Tensor:
    """Subtract the sum of all that was merged."""
    total: float = context.statistics["sum"]
    return merged - total


def test_a_post_step_may_ask_about_all_that_was_merged_before_it() -> None:
    merged = _merge("average", {}, post_steps=[(shift, {"factor": 3.0}), (center, {})])
    before = _merge("average", {}, post_steps=[(shift, {"factor": 3.0})])
    total = sum(float(tensor.sum()) for tensor in before.values())
    _assert_equal(merged, {name: tensor - total for name, tensor in before.items()})


# --- nested methods -----------------------------------------------------------------------------------------------


@merge_method(
    name="probe", title="", summary="", source="", parameters=Inside, base_model="required", models=(1, None),
    granularity="element", nested={"inner": "merge_set"},
)  # fmt: skip
def through(base: Tensor, finetuned: Tensor, _parameters: Inside, context: MergeContext) -> Tensor:
    """Do what the nested method does."""
    return context.nested["inner"](base, finetuned, context)


@merge_method(
    name="probe", title="", summary="", source="", parameters=Inside, base_model="required", models=(1, None),
    granularity="tensor", nested={"inner": "local"},
)  # fmt: skip
def beside(base: Tensor, finetuned: Tensor, _parameters: Inside, context: MergeContext) -> Tensor:
    """Run the nested method on the models alone, as if the base were zero and the tensor were all there is."""
    return base + context.nested["inner"](torch.zeros_like(base), finetuned - base, context)


@pytest.mark.parametrize("inner", ["task_arithmetic", "ties", "breadcrumbs"])
@pytest.mark.parametrize("size", [1, 4, 100])
def test_a_nested_method_gives_what_it_gives_alone(inner: str, size: int) -> None:
    values = {"inner": {"method": inner, "version": 1, "parameters": _effective(inner)}}
    merge = MemoryMerge(through, values, nested={"inner": load_method(inner)}, piece_elements=size)
    _assert_equal(merge(BASE, MODELS), _merge(inner, {}))


def test_a_local_nested_method_counts_within_the_tensor_at_hand() -> None:
    values = {"inner": {"method": "ties", "version": 1, "parameters": {**_effective("ties"), "density": 0.5}}}
    merged = MemoryMerge(beside, values, nested={"inner": load_method("ties")})(BASE, MODELS)
    for name in BASE:
        alone = MemoryMerge(load_method("ties"), {"density": 0.5})
        expected = alone({name: BASE[name]}, [{name: model[name]} for model in MODELS])
        _assert_equal({name: merged[name]}, expected)


def _ask_for_largest(_parameters: Inside, nested: Mapping[str, NestedMerge]) -> Sequence[StatisticRequest]:
    return (AgainstNested(nested["inner"], MagnitudeBoundaries("largest", "global", lambda _: (1,)), "element"),)


@merge_method(
    name="probe", title="", summary="", source="", parameters=Inside, base_model="required", models=(1, None),
    granularity="element", statistic_passes=1, nested={"inner": "merge_set"}, collect=_ask_for_largest,
)  # fmt: skip
def largest(base: Tensor, _finetuned: Tensor, _parameters: Inside, context: MergeContext) -> Tensor:
    """Fill with the largest difference of the first model from the nested method's result."""
    return torch.full_like(base, context.statistics["largest"].of(context.tensor)[0][0].magnitude)


def test_statistics_may_be_taken_against_a_nested_methods_result() -> None:
    values = {"inner": {"method": "average", "version": 1, "parameters": {"normalize": True}}}
    merged = MemoryMerge(largest, values, nested={"inner": load_method("average")})(BASE, MODELS)
    differences = [(MODELS[0][name] - (MODELS[0][name] + MODELS[1][name]) / 2).abs().max() for name in BASE]
    assert float(merged["b"][0]) == float(max(differences))


def _effective(method: str) -> dict[str, Any]:
    properties = load_method(method).card.parameters["properties"]
    return {name: rule["default"] for name, rule in properties.items()}


# --- overrides ----------------------------------------------------------------------------------------------------


def _program(method: str, source: MemorySource, **changes: Any) -> MergeProgram:
    key = PinnedCheckpoint(content_digest="c", weights_digest="w")
    recipe = Recipe(
        method=method,
        method_version=1,
        base_model=key,
        models=tuple(RecipeModel(**key.model_dump()) for _ in MODELS),
        shard_bytes=1 << 30,
        **{"parameters": _effective(method), **changes},
    )
    return prepare(recipe, load_recipe(recipe), source)


def _run(program: MergeProgram, source: MemorySource) -> dict[str, Tensor]:
    return {
        name: program.merge(source.read(name, 0, BASE[name].numel())).view(shape) for name, shape, _ in source.tensors
    }


def test_each_tensor_is_merged_with_its_own_parameters_and_weights() -> None:
    source = MemorySource(BASE, MODELS)
    override = Override(match="b", parameters={"scaling_coefficient": 2.0}, weights=(1.0, 0.0))
    merged = _run(_program("task_arithmetic", source, overrides=(override,)), source)
    _assert_equal(
        merged, {"a": _merge("task_arithmetic", {"scaling_coefficient": 0.3})["a"], "b": 2.0 * MODELS[0]["b"]}
    )


def test_what_is_counted_globally_is_counted_among_tensors_merged_alike() -> None:
    source = MemorySource(BASE, MODELS)
    merged = _run(_program("ties", source, overrides=(Override(match="b", parameters={"density": 0.5}),)), source)
    for name, density in (("a", 0.2), ("b", 0.5)):
        alone = MemoryMerge(load_method("ties"), {"density": density})
        expected = alone({name: BASE[name]}, [{name: model[name]} for model in MODELS])
        _assert_equal({name: merged[name]}, expected)


def test_the_report_has_what_statistics_tell_by_step() -> None:
    source = MemorySource(BASE, MODELS)
    step = PinnedStep(name="awd", version=1, parameters={})
    told = _program("task_arithmetic", source, transforms=(step,)).report()
    assert list(told) == ["awd.redundancy"]
    found: Any = told["awd.redundancy"]
    assert found["mean_absolute_cosine_after"] < found["mean_absolute_cosine_before"]


# --- the views under it -------------------------------------------------------------------------------------------


def test_a_changed_source_reads_whole_rows_around_a_run() -> None:
    seen: list[tuple[int, int]] = []

    def change(piece: Any) -> Any:
        seen.append((piece.offset, piece.finetuned.shape[1]))
        return replace(piece, models=10 * piece.finetuned)

    source = ChangedSource(MemorySource(BASE, MODELS), change, "row")
    piece = source.read("a", 2, 2)
    assert (piece.offset, piece.position, piece.finetuned[0].tolist()) == (2, 2, [30.0, 40.0])
    assert source.read("a", 1, 2).finetuned[1].tolist() == [20.0, -10.0]
    assert seen == [(0, 6), (0, 3)]
    source.read("a", 0, 3)
    assert len(seen) == 2  # the last rows are kept
    with ThreadPoolExecutor(1) as other:
        other.submit(source.read, "b", 0, 4).result()
    source.read("a", 0, 3)
    assert len(seen) == 3  # of each thread


def test_methods_keep_their_own_granularity_inside_coarser_pieces() -> None:
    method: MergeMethod = load_method("breadcrumbs")
    merged = MemoryMerge(method, {"scope": "row"}, post_steps=[(shift, {"factor": 0.0})])(BASE, MODELS)
    _assert_equal(merged, _merge("breadcrumbs", {"scope": "row"}))
