"""Consensus task arithmetic: golden numbers, laws of the mask, counts of tasks that are refused, a reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.catalog import load_catalog
from app.domain.errors import InvalidParameters
from app.domain.parameter_checks import fill_defaults
from tests.workers.memory import MemoryMerge
from tests.workers.methods.golden import TASK_VECTORS, merge_example
from tests.workers.models import assert_close, draw_integers, to_arrays
from tests.workers.references.consensus_ta import merge as by_hand
from workers.catalog import load_method


def test_threshold_1_of_the_example() -> None:
    # masks 101010, 010000, 001011 of the sums 2, 1.5, .75, 0, 1.5, .25: two tasks need the third and fifth
    assert merge_example("consensus_ta", {"mask_threshold": 1.0}) == [0.0, 0.0, 0.75, 0.0, 1.5, 0.0]


def test_the_default_threshold_of_the_example() -> None:
    assert merge_example("consensus_ta", {}) == [2.0, 1.5, 0.75, 0.0, 1.5, 0.25]


def test_threshold_0_keeps_what_enough_tasks_changed() -> None:
    vectors = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 2.0, 0.0, 0.0, 0.0]])
    merged = merge_example("consensus_ta", {"mask_threshold": 0.0}, task_vectors=vectors)
    assert merged == [2.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_a_huge_threshold_keeps_what_one_task_alone_changed() -> None:
    vectors = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 2.0, 0.0, 0.0, 0.0]])
    merged = merge_example("consensus_ta", {"mask_threshold": 1e6, "min_tasks": 1}, task_vectors=vectors)
    assert merged == [0.0, 1.0, 2.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(("mask_threshold", "is_kept"), [(0.49, True), (0.51, False)])
def test_identical_models_need_an_entry_below_one_over_the_others(mask_threshold: float, is_kept: bool) -> None:  # noqa: FBT001
    # |τ| > λ · 2 |τ| if and only if λ < 1/2
    merged = merge_example("consensus_ta", {"mask_threshold": mask_threshold}, task_vectors=TASK_VECTORS[[0, 0, 0]])
    assert merged == [3 * value * is_kept for value in TASK_VECTORS[0].tolist()]


def test_one_model_comes_back_by_default() -> None:
    assert merge_example("consensus_ta", {}, task_vectors=TASK_VECTORS[:1]) == TASK_VECTORS[0].tolist()


def test_more_tasks_than_models_are_refused() -> None:
    with pytest.raises(InvalidParameters) as refusal:
        load_catalog().check("consensus_ta", {"min_tasks": 3}, has_base_model=True, weights=[1.0, 1.0])
    assert refusal.value.detail == ("consensus_ta: min_tasks is 3, but 2 models are merged; expected at most 2")
    assert [problem.pointer for problem in refusal.value.errors] == ["/parameters/min_tasks"]


def test_a_single_model_needs_itself_alone() -> None:
    _, effective = load_catalog().check("consensus_ta", {}, has_base_model=True, weights=[1.0])
    assert effective["min_tasks"] == 1


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, -1.0, 0.0]), min_size=1, max_size=5),
    mask_threshold=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    min_tasks=st.integers(1, 5),
    piece_elements=st.sampled_from([1, 5, 1 << 20]),
)
def test_agrees_with_the_algorithm_worked_by_hand(
    seed: int, weights: list[float], mask_threshold: float, min_tasks: int, piece_elements: int
) -> None:
    parameters = {"mask_threshold": mask_threshold, "min_tasks": min_tasks, "scaling_coefficient": 0.5}
    base, models = draw_integers(seed, len(weights))
    merged = MemoryMerge(load_method("consensus_ta"), parameters, weights, piece_elements=piece_elements)(base, models)
    assert_close(merged, by_hand(to_arrays(base), [to_arrays(model) for model in models], weights, parameters))


def test_each_task_may_have_a_threshold_of_its_own() -> None:
    base, models = draw_integers(11, 3)
    thresholds = [0.0, 0.5, 1e6]
    parameters = fill_defaults(load_method("consensus_ta").card.parameters, {"mask_threshold": 0.5})
    own = [{"mask_threshold": 0.0}, {}, {"mask_threshold": 1e6}]
    merged = MemoryMerge(load_method("consensus_ta"), parameters, (1.0, 0.5, 2.0), of_models=own)(base, models)
    arrays = [to_arrays(model) for model in models]
    expected = by_hand(to_arrays(base), arrays, [1.0, 0.5, 2.0], {**parameters, "thresholds": thresholds})
    assert_close(merged, expected)
    alike = MemoryMerge(load_method("consensus_ta"), parameters, (1.0, 0.5, 2.0))(base, models)
    assert any(not torch.equal(alike[name], merged[name]) for name in base)
