from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import JsonValue

from app.domain.parameter_checks import fill_defaults
from tests.workers.memory import MemoryMerge
from tests.workers.models import assert_close, draw_normal, to_arrays
from tests.workers.multitask import merge_tasks
from tests.workers.references.peru_lora import tasks as by_hand
from workers.catalog import load_method
from workers.numerics import low_rank

METHOD = load_method("peru_lora")

MODES = ["per_adapter", "residual"]


def draw_matrices(n: int, rank: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        {"w": torch.randn(20, rank, generator=generator) @ torch.randn(rank, 30, generator=generator)} for _ in range(n)
    ]


def tasks_of(models: list[dict[str, torch.Tensor]], parameters: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
    return merge_tasks(MemoryMerge(METHOD, parameters), {"w": torch.zeros(20, 30)}, models)


@pytest.mark.parametrize("mode", MODES)
def test_a_rank_that_holds_everything_gives_the_models(mode: str) -> None:
    # the residual of three models of rank 2 has up to rank 6
    models = draw_matrices(3, 2)
    for task, model in zip(tasks_of(models, {"rank": 6, "mode": mode}), models, strict=True):
        assert_close(task, to_arrays(model), rtol=1e-5, atol=1e-5)


def test_the_residual_mode_shares_task_arithmetic() -> None:
    base, models = draw_normal(2, 3)
    merged = MemoryMerge(METHOD, {"mode": "residual", "scaling_coefficient": 0.5})(base, models)
    expected = {name: base[name] + 0.5 * sum(model[name] - base[name] for model in models) for name in base}
    assert_close(merged, to_arrays(expected))


def test_energy_keeps_as_many_components_as_it_needs() -> None:
    # squares of the singular values: 16, 4, 1: shares .762, .952, 1
    matrix = torch.diag(torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64))
    ranks = [low_rank.truncate(matrix, rank=3, energy=energy).rank for energy in (0.1, 0.76, 0.77, 0.95, 0.96, 1.0)]
    assert ranks == [1, 1, 2, 2, 3, 3]
    assert low_rank.truncate(matrix, rank=1, energy=0.96).rank == 1


def test_factors_are_balanced_and_a_zero_matrix_has_rank_0() -> None:
    found = low_rank.truncate(torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64)), rank=2)
    assert found.b.norm(dim=0).tolist() == found.a.norm(dim=1).tolist() == [2.0, 1.0]
    assert low_rank.truncate(torch.zeros(3, 4, dtype=torch.float64), rank=2).b.shape == (3, 0)


def test_a_matrix_whose_factors_are_no_smaller_is_kept_whole() -> None:
    models = draw_matrices(2, 10)
    for task, model in zip(tasks_of(models, {"rank": 12}), models, strict=True):  # 12 · (20 + 30) = 20 · 30
        assert torch.equal(task["w"], model["w"])


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=1, max_size=5),
    rank=st.integers(1, 6),
    energy=st.floats(0.1, 1.0),
    mode=st.sampled_from(MODES),
)
def test_any_parameters_agree_with_the_reference(
    seed: int, weights: list[float], rank: int, energy: float, mode: str
) -> None:
    base, models = draw_normal(seed, len(weights))
    asked: dict[str, JsonValue] = {"rank": rank, "energy": energy, "mode": mode}
    effective = fill_defaults(METHOD.card.parameters, asked, n_models=len(weights))
    found = merge_tasks(MemoryMerge(METHOD, effective, weights), base, models)
    arrays = [to_arrays(model) for model in models]
    for task, one in zip(found, by_hand(to_arrays(base), arrays, weights, effective), strict=True):
        assert_close(task, one, rtol=1e-5, atol=1e-6)
