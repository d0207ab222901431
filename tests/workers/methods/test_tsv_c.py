import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.parameter_checks import fill_defaults
from tests.workers.memory import MemoryMerge
from tests.workers.models import assert_close, draw_normal, to_arrays
from tests.workers.multitask import merge_tasks
from tests.workers.references.tsv_c import tasks as by_hand
from workers.catalog import load_method
from workers.patches import UNCHANGED, LowRank

METHOD = load_method("tsv_c")

ZERO = torch.zeros(8, 8)


def draw_matrix(seed: int, rank: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, rank, generator=generator) @ torch.randn(rank, 8, generator=generator)


def test_a_task_of_low_rank_comes_back() -> None:
    models = [{"w": draw_matrix(seed, 2)} for seed in (1, 2, 3)]  # floor(8 / 3) = 2 components each
    for task, model in zip(merge_tasks(MemoryMerge(METHOD), {"w": ZERO}, models), models, strict=True):
        assert_close(task, to_arrays(model), rtol=1e-5, atol=1e-5)


def test_the_error_is_what_was_cut_off() -> None:
    # Eckart and Young: the squared error is the sum of the squared singular values that were dropped
    model = draw_matrix(5, 8)
    (task,) = merge_tasks(MemoryMerge(METHOD, {"rank_fraction": 0.25}), {"w": ZERO}, [{"w": model}])
    values = np.linalg.svd(model.double().numpy(), compute_uv=False)
    error = float((task["w"] - model).double().square().sum())
    assert error == pytest.approx(float(np.square(values[2:]).sum()), rel=1e-4)


def test_one_model_comes_back_to_the_bit() -> None:
    base, models = draw_normal(7, 1)
    (task,) = merge_tasks(MemoryMerge(METHOD), base, models)
    assert all(torch.equal(task[name], models[0][name]) for name in base)


def test_more_models_than_components_keep_one_each() -> None:
    models = [{"w": draw_matrix(seed, 1)} for seed in range(20)]
    for task, model in zip(merge_tasks(MemoryMerge(METHOD), {"w": ZERO}, models), models, strict=True):
        assert_close(task, to_arrays(model), rtol=1e-5, atol=1e-5)


def test_what_did_not_change_and_directions_that_a_task_has_not_take_no_room() -> None:
    generator = torch.Generator().manual_seed(3)
    base = {"b": torch.randn(5, generator=generator), "w": torch.randn(40, 50, generator=generator)}
    change = 0.1 * torch.randn(40, 2, generator=generator) @ torch.randn(2, 50, generator=generator)
    source, program = MemoryMerge(METHOD, {"rank_fraction": 0.25}).prepare(base, [{**base, "w": base["w"] + change}])
    (bias,) = program.patch(program.complete(source.read("b", 0, 5)))
    (matrix,) = program.patch(program.complete(source.read("w", 0, 2000)))
    assert bias is UNCHANGED
    assert isinstance(matrix, LowRank)
    assert matrix.rank == 2


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), n_models=st.integers(1, 5), fraction=st.none() | st.floats(0, 1, exclude_min=True))
def test_any_parameters_agree_with_the_reference(seed: int, n_models: int, fraction: float | None) -> None:
    base, models = draw_normal(seed, n_models)
    effective = fill_defaults(METHOD.card.parameters, {"rank_fraction": fraction})
    found = merge_tasks(MemoryMerge(METHOD, effective), base, models)
    arrays = [to_arrays(model) for model in models]
    for task, one in zip(found, by_hand(to_arrays(base), arrays, [1.0] * n_models, effective), strict=True):
        assert_close(task, one, rtol=1e-5, atol=1e-6)
