from typing import Any

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
from workers.numerics import fused

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


TIES = {"method": "ties", "parameters": {"density": 0.5}}


@pytest.mark.parametrize("piece_elements", [1, 4, 6])
def test_masks_may_choose_from_a_merge_by_ties(piece_elements: int) -> None:
    # methods.md section 2.13: TIES at one half gives m = 2, 2, .75, 0, 1.5, 0. What the others add, |m − τ|, is
    # 1, 3, .25, 0, .5, .25 for the first task; 1, 0, 1.25, .5, 3, .125; 4, 1.5, 0, .5, .5, .625
    parameters = {"mask_threshold": 1.0, "shared": TIES}
    assert merge_example("tall_mask", parameters, piece_elements=piece_elements) == [2, 2, 0.75, 0, 1.5, 0]
    assert patch_example("tall_mask", parameters, piece_elements=piece_elements) == [
        [2, 0, 0.75, 0, 1.5, 0],
        [0, 2, 0, 0, 0, 0],
        [0, 0, 0.75, 0, 1.5, 0],
    ]


def test_each_task_may_have_a_threshold_of_its_own() -> None:
    found = [patch_example("tall_mask", {"mask_threshold": threshold}) for threshold in (0.2, 1.0, 3.0)]
    merge = MemoryMerge(
        METHOD, {"mask_threshold": 1.0}, of_models=[{"mask_threshold": 0.2}, {}, {"mask_threshold": 3.0}]
    )
    vectors = [{"w": vector.view(1, 6)} for vector in TASK_VECTORS]
    own = merge_tasks(merge, {"w": torch.zeros(1, 6)}, vectors)
    assert [task["w"].flatten().tolist() for task in own] == [found[0][0], found[1][1], found[2][2]]
    assert len({tuple(task[0]) for task in found}) == 3  # the thresholds do differ


@pytest.mark.parametrize(
    ("changes", "is_fused"),
    [
        ({}, True),
        ({"of_models": [{"mask_threshold": 0.4}, {}]}, True),
        ({"of_models": [{"mask_threshold": 0.3}, {}]}, False),
        ({"parameters": {"shared": TIES}}, False),
        ({"parameters": {"shared": {"method": "task_arithmetic", "parameters": {"scaling_coefficient": 0.5}}}}, False),
    ],
)
def test_sums_under_one_threshold_are_fused(changes: dict[str, Any], is_fused: bool) -> None:  # noqa: FBT001
    base, models = draw_normal(4, 2)
    fused.load()
    _, program = MemoryMerge(METHOD, **changes).prepare(base, models)
    assert (program.fuse("weight", (4, 30)) is not None) == is_fused


def test_one_model_comes_back_to_the_bit() -> None:
    base, models = draw_normal(4, 1)
    (task,) = merge_tasks(MemoryMerge(METHOD), base, models)
    assert all(torch.equal(task[name], models[0][name]) for name in base)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    thresholds=st.lists(st.floats(0, 3), min_size=1, max_size=5),
    shared=st.sampled_from(["sum", "ties", "task_arithmetic", "consensus_ta"]),
)
def test_any_parameters_agree_with_the_reference(seed: int, thresholds: list[float], shared: str) -> None:
    base, models = draw_normal(seed, len(thresholds))
    asked: dict[str, Any] = {}
    if shared != "sum":
        inside = fill_defaults(load_method(shared).card.parameters, {}, n_models=len(models))
        asked = {"shared": {"method": shared, "parameters": inside}}
    effective = fill_defaults(METHOD.card.parameters, asked)
    merge = MemoryMerge(METHOD, effective, of_models=[{"mask_threshold": one} for one in thresholds])
    arrays = [to_arrays(model) for model in models]
    expected = by_hand(to_arrays(base), arrays, [1.0] * len(models), {**effective, "thresholds": thresholds})
    for task, one in zip(merge_tasks(merge, base, models), expected, strict=True):
        assert_close(task, one)
