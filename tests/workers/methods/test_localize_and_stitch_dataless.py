"""Localize-and-stitch: golden numbers, averages where tasks overlap, tasks added later, a reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.memory import MemoryMerge
from tests.workers.methods.golden import TASK_VECTORS, merge_example
from tests.workers.models import assert_close, draw_integers, to_arrays
from tests.workers.references.localize_and_stitch_dataless import merge as by_hand
from workers.catalog import load_method
from workers.numerics.stitching import add_tasks

METHOD = "localize_and_stitch_dataless"


def test_half_of_the_example() -> None:
    # masks 110010, 110010, 101010; first entry (3 + 1 - 2) / 3
    assert merge_example(METHOD, {"density": 0.5}) == [0.666667, 0.5, 0.75, 0.0, 0.5, 0.0]


def test_disjoint_masks_leave_every_task_its_own_values() -> None:
    vectors = torch.tensor([[5.0, 4.0, 0.5, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.5, 7.0, 6.0]])
    assert merge_example(METHOD, {"density": 1 / 3}, task_vectors=vectors) == [5.0, 4.0, 0.0, 0.0, 7.0, 6.0]


def test_where_every_task_has_every_entry_it_is_the_average() -> None:
    vectors = TASK_VECTORS[:, [0, 1, 2, 4, 5, 0]]
    average = merge_example("average", {}, task_vectors=vectors)
    assert merge_example(METHOD, {"density": 1.0}, task_vectors=vectors) == average


def test_an_entry_that_a_task_did_not_change_is_not_its_own() -> None:
    vectors = torch.tensor([[4.0, 0.0, 0.0, 0.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0, 2.0, 2.0]])
    assert merge_example(METHOD, {"density": 1.0}, task_vectors=vectors) == [3.0, 2.0, 2.0, 2.0, 2.0, 2.0]


def test_weights_count_among_the_tasks_that_have_the_entry() -> None:
    # first entry (3·3 + 1·1 - 0·2) / 4; third: of τ3 alone, whose weight is 0
    assert merge_example(METHOD, {"density": 0.5}, [3.0, 1.0, 0.0])[:3] == [2.5, -0.25, 0.0]


def test_a_task_can_be_added_to_what_was_stitched_before() -> None:
    localized = TASK_VECTORS * (TASK_VECTORS.abs() > 0.7)
    added = add_tasks(localized[2:], [0.5], onto=add_tasks(localized[:2], [1.0, 2.0]))
    assert torch.equal(added.divide(), add_tasks(localized, [1.0, 2.0, 0.5]).divide())


@pytest.mark.parametrize("shape", [(), (1,), (3,)])
def test_a_model_of_one_small_tensor_keeps_at_least_one_entry(shape: tuple[int, ...]) -> None:
    model = {"w": torch.full(shape, 2.0)}
    merged = MemoryMerge(load_method(METHOD))({"w": torch.zeros(shape)}, [model])["w"]
    assert int(merged.count_nonzero()) == 1
    assert float(merged.flatten()[0]) == 2.0


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 0.0]), min_size=1, max_size=5),
    density=st.sampled_from([0.05, 0.2, 0.5, 1.0]),
    trim_scope=st.sampled_from(["global", "tensor"]),
    piece_elements=st.sampled_from([1, 5, 1 << 20]),
)
def test_agrees_with_the_algorithm_worked_entry_by_entry(
    seed: int, weights: list[float], density: float, trim_scope: str, piece_elements: int
) -> None:
    parameters = {"density": density, "trim_scope": trim_scope}
    base, models = draw_integers(seed, len(weights))
    merged = MemoryMerge(load_method(METHOD), parameters, weights, piece_elements=piece_elements)(base, models)
    assert_close(merged, by_hand(to_arrays(base), [to_arrays(model) for model in models], weights, parameters))
