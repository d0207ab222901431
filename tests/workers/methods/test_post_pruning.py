import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.parameter_checks import fill_defaults
from tests.workers.memory import MemoryMerge
from tests.workers.methods.golden import merge_example, patch_example
from tests.workers.models import assert_close, draw_normal, to_arrays
from tests.workers.multitask import merge_tasks
from tests.workers.references.post_pruning import tasks as by_hand
from workers.catalog import load_method

METHOD = load_method("post_pruning")


def test_the_golden_example_at_one_half() -> None:
    # methods.md section 2.13: the three largest of each task vector
    assert patch_example("post_pruning", {"density": 0.5}) == [
        [3, -1, 0, 0, 2, 0],
        [1, 2, 0, 0, -1.5, 0],
        [-2, 0, 0.75, 0, 1, 0],
    ]
    assert merge_example("post_pruning", {"density": 0.5}) == [0.0] * 6


def test_of_equal_entries_the_first_is_kept() -> None:
    # |τ₂| = 1, 2, .5, .5, 1.5, .125: four are kept, of the two .5 the first
    assert patch_example("post_pruning", {"density": 2 / 3}, piece_elements=1)[1] == [1, 2, -0.5, 0, -1.5, 0]


@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_density_one_gives_the_models_to_the_bit(scope: str) -> None:
    base, models = draw_normal(3, 3)
    found = merge_tasks(MemoryMerge(METHOD, {"density": 1.0, "scope": scope}), base, models)
    for task, model in zip(found, models, strict=True):
        assert all(torch.equal(task[name], model[name]) for name in base)


def test_exactly_as_many_entries_are_kept_as_the_density_says() -> None:
    base, models = draw_normal(4, 2)
    n = sum(tensor.numel() for tensor in base.values())
    for task, model in zip(merge_tasks(MemoryMerge(METHOD, {"density": 0.1}), base, models), models, strict=True):
        changed = sum(int((task[name] != base[name]).sum()) for name in base)
        assert changed == n // 10
        assert all(((task[name] == base[name]) | (task[name] == model[name])).all() for name in base)


def test_a_patch_does_not_know_the_other_models() -> None:
    base, models = draw_normal(5, 3)
    together = merge_tasks(MemoryMerge(METHOD), base, models)
    (alone,) = merge_tasks(MemoryMerge(METHOD), base, models[1:2])
    assert all(torch.equal(alone[name], together[1][name]) for name in base)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n_models=st.integers(1, 5),
    density=st.floats(0.01, 1.0),
    scope=st.sampled_from(["global", "tensor"]),
)
def test_any_parameters_agree_with_the_reference(seed: int, n_models: int, density: float, scope: str) -> None:
    base, models = draw_normal(seed, n_models)
    effective = fill_defaults(METHOD.card.parameters, {"density": density, "scope": scope})
    found = merge_tasks(MemoryMerge(METHOD, effective), base, models)
    arrays = [to_arrays(model) for model in models]
    expected = by_hand(to_arrays(base), arrays, [1.0] * n_models, effective)
    for task, one in zip(found, expected, strict=True):
        assert_close(task, one)
