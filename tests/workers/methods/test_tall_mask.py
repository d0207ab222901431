import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.parameter_checks import fill_defaults
from tests.workers.memory import MemoryMerge
from tests.workers.methods.golden import TASK_VECTORS, merge_example, patch_example
from tests.workers.models import assert_close, draw_normal, to_arrays
from tests.workers.multitask import merge_tasks
from tests.workers.references.tall_mask import tasks as by_hand
from workers.catalog import load_method

METHOD = load_method("tall_mask")


def test_the_golden_example() -> None:
    # methods.md section 2.13: Στ = 2, 1.5, .75, 0, 1.5, .25; masks at 1: 101010, 010000, 001011
    assert merge_example("tall_mask", {}) == [2, 1.5, 0.75, 0, 1.5, 0.25]
    assert patch_example("tall_mask", {"mask_threshold": 1.0}) == [
        [2, 0, 0.75, 0, 1.5, 0],
        [0, 1.5, 0, 0, 0, 0],
        [0, 0, 0.75, 0, 1.5, 0.25],
    ]


def test_threshold_zero_keeps_what_a_task_has_changed() -> None:
    masks = TASK_VECTORS != 0
    total = TASK_VECTORS.sum(0)
    assert patch_example("tall_mask", {"mask_threshold": 0}) == torch.where(masks, total, 0.0).tolist()


def test_a_high_threshold_keeps_only_what_no_other_task_has_changed() -> None:
    # entry 0 of the second task, entry 1 of the first; entry 2 belongs to both
    vectors = torch.tensor([[0.0, 2.0, 1.0, 0.0, 0.0, 0.0], [3.0, 0.0, 1.0, 0.0, 0.0, 0.0]])
    found = patch_example("tall_mask", {"mask_threshold": 1e6}, task_vectors=vectors)
    assert found == [[0, 2, 0, 0, 0, 0], [3, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize(("threshold", "is_kept"), [(0.4, True), (0.5, False), (0.6, False)])
def test_equal_models_keep_all_or_nothing(threshold: float, is_kept: bool) -> None:  # noqa: FBT001
    # three times τ: |τ| > λ · 2|τ| while λ < 1/2
    vectors = TASK_VECTORS[:1].expand(3, 6)
    expected = (3 * TASK_VECTORS[0]).tolist() if is_kept else [0.0] * 6
    assert patch_example("tall_mask", {"mask_threshold": threshold}, task_vectors=vectors) == [expected] * 3


def test_one_model_comes_back_to_the_bit() -> None:
    base, models = draw_normal(4, 1)
    (task,) = merge_tasks(MemoryMerge(METHOD), base, models)
    assert all(torch.equal(task[name], models[0][name]) for name in base)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), n_models=st.integers(1, 5), threshold=st.floats(0, 3))
def test_any_parameters_agree_with_the_reference(seed: int, n_models: int, threshold: float) -> None:
    base, models = draw_normal(seed, n_models)
    effective = fill_defaults(METHOD.card.parameters, {"mask_threshold": threshold})
    found = merge_tasks(MemoryMerge(METHOD, effective), base, models)
    arrays = [to_arrays(model) for model in models]
    for task, one in zip(found, by_hand(to_arrays(base), arrays, [1.0] * n_models, effective), strict=True):
        assert_close(task, one)
