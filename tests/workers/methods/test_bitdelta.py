import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.memory import MemoryMerge
from tests.workers.methods.golden import patch_example
from tests.workers.models import assert_close, draw_normal, to_arrays
from tests.workers.multitask import merge_tasks
from tests.workers.references.bitdelta import tasks as by_hand
from workers.catalog import load_method
from workers.patches import UNCHANGED

METHOD = load_method("bitdelta")


def test_every_entry_moves_by_the_mean_magnitude() -> None:
    # mean |τ| = 6.75 / 6, 5.625 / 6, 5.375 / 6; the 0 of the first task counts as +
    assert patch_example("bitdelta", {}) == [
        [1.125, -1.125, 1.125, 1.125, 1.125, -1.125],
        [0.9375, 0.9375, -0.9375, 0.9375, -0.9375, -0.9375],
        [-0.895833, 0.895833, 0.895833, -0.895833, 0.895833, 0.895833],
    ]


def test_small_tensors_are_kept_whole() -> None:
    base, models = draw_normal(4, 2)
    for task, model in zip(merge_tasks(MemoryMerge(METHOD), base, models), models, strict=True):
        assert all(torch.equal(task[name], model[name]) for name in ("bias", "norm", "scale"))
        assert not torch.equal(task["weight"], model["weight"])


def test_a_model_whose_entries_all_moved_alike_comes_back() -> None:
    base = {"w": torch.zeros(4, 4)}
    model = {"w": torch.where(torch.eye(4) > 0, 0.5, -0.5)}
    assert torch.equal(merge_tasks(MemoryMerge(METHOD), base, [model])[0]["w"], model["w"])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), n_models=st.integers(1, 5))
def test_any_models_agree_with_the_reference(seed: int, n_models: int) -> None:
    base, models = draw_normal(seed, n_models)
    found = merge_tasks(MemoryMerge(METHOD), base, models)
    arrays = [to_arrays(model) for model in models]
    for task, one in zip(found, by_hand(to_arrays(base), arrays, [1.0] * n_models, {}), strict=True):
        assert_close(task, one)


def test_what_a_task_has_not_changed_takes_no_room() -> None:
    base, (model,) = draw_normal(4, 1)
    source, program = MemoryMerge(METHOD).prepare(base, [{**model, "bias": base["bias"], "weight": base["weight"]}])
    bias, norm = (program.patch(program.complete(source.read(name, 0, n)))[0] for name, n in (("bias", 3), ("norm", 1)))
    assert bias is UNCHANGED
    assert norm is not UNCHANGED
