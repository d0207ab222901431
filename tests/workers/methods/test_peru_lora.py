from dataclasses import replace
from math import prod
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
from workers.patches import UNCHANGED, LowRank, Patch, Whole

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


def patches_of(
    base: dict[str, torch.Tensor], models: list[dict[str, torch.Tensor]], ranks: Any = None, **parameters: Any
) -> dict[str, list[Patch]]:
    """Return each model's patch by tensor; ranks: of adapters' updates, by tensor."""
    source, program = MemoryMerge(METHOD, parameters).prepare(base, models)
    (group,) = program.groups
    bound = replace(group.bound, context=replace(group.bound.context, update_ranks=ranks or {}))
    program = replace(program, groups=(replace(group, bound=bound),))
    pieces = {name: program.complete(source.read(name, 0, prod(shape))) for name, shape, _ in source.tensors}
    return {name: list(program.patch(piece)) for name, piece in pieces.items()}


def draw_update(seed: int, shape: tuple[int, ...], rank: int) -> torch.Tensor:
    """Return an update of some rank, as weights near 1 hold it: rounded to float32 with them."""
    generator = torch.Generator().manual_seed(seed)
    b, a = torch.randn(shape[0], rank, generator=generator), torch.randn(rank, *shape[1:], generator=generator)
    return 0.05 * (b @ a.flatten(1)).view(shape)


def rank_of(patch: Patch) -> int:
    assert isinstance(patch, LowRank)
    return patch.rank


@pytest.mark.parametrize("shape", [(60, 60), (40, 90), (90, 40), (24, 6, 3, 3), (300, 280)])
@pytest.mark.parametrize("rank", [1, 4])
def test_no_more_components_are_kept_than_a_model_has(shape: tuple[int, ...], rank: int) -> None:
    for seed in range(3):
        base = {"w": torch.randn(shape, generator=torch.Generator().manual_seed(99 + seed))}
        models = [{"w": base["w"] + draw_update(seed + index, shape, rank)} for index in range(2)]
        assert list(map(rank_of, patches_of(base, models, rank=8)["w"])) == [rank, rank]
        # of two models, a residual holds both updates
        lost = patches_of(base, models, rank=8, mode="residual")["w"]
        assert list(map(rank_of, lost)) == [2 * rank, 2 * rank]


def test_full_rank_changes_near_the_rounding_of_weights_are_kept() -> None:
    # 2**-20 of the weights: 16 steps of float32, in every direction
    generator = torch.Generator().manual_seed(1)
    base = {"w": torch.randn(64, 64, generator=generator)}
    model = {"w": base["w"] * (1 + 2.0**-20 * torch.randn(64, 64, generator=generator))}
    assert rank_of(patches_of(base, [model], rank=20)["w"][0]) == 20


@pytest.mark.parametrize(
    ("update_rank", "asked", "mode", "kept"),
    [
        (8, None, "per_adapter", 2),  # a quarter of its own
        (3, None, "per_adapter", 1),  # at least one
        (8, 5, "per_adapter", 5),
        (8, 30, "per_adapter", 8),  # all it has
        (8, None, "residual", 2),
        (None, None, "per_adapter", 8),  # 16 of a dense model, of which it has 8
    ],
)
def test_the_rank_of_an_adapter_is_a_quarter_of_its_own(
    update_rank: int | None, asked: int | None, mode: str, kept: int
) -> None:
    base = {"w": torch.randn(60, 80, generator=torch.Generator().manual_seed(7))}
    model = {"w": base["w"] + draw_update(1, (60, 80), 8)}
    asked_for = {"rank": asked, "mode": mode, "scaling_coefficient": 0.5}  # at 1, a merge of one model loses nothing
    (patch,) = patches_of(base, [model], {"w": (update_rank,)}, **asked_for)["w"]
    assert rank_of(patch) == kept


def test_a_merge_loses_of_an_adapter_that_leaves_a_tensor_alone_what_the_others_added() -> None:
    base = {"w": torch.randn(60, 80, generator=torch.Generator().manual_seed(7))}
    models = [{"w": base["w"] + draw_update(1, (60, 80), 8)}, {"w": base["w"].clone()}]
    ranks = {"w": (8, 0)}
    assert list(map(rank_of, patches_of(base, models, ranks, mode="residual")["w"])) == [2, 2]
    first, second = patches_of(base, models, ranks)["w"]
    assert (rank_of(first), second is UNCHANGED) == (2, True)


def test_a_kernel_is_a_matrix_of_its_outputs() -> None:
    base = {"conv": torch.randn(16, 4, 3, 3, generator=torch.Generator().manual_seed(7))}
    model = {"conv": base["conv"] + draw_update(1, (16, 4, 3, 3), 2)}
    (patch,) = patches_of(base, [model], rank=4)["conv"]
    assert isinstance(patch, LowRank)
    assert (tuple(patch.b.shape), tuple(patch.a.shape)) == ((16, 2), (2, 36))
    (task,) = merge_tasks(MemoryMerge(METHOD, {"rank": 4}), base, [model])
    assert_close(task, to_arrays(model), rtol=1e-6, atol=1e-6)


def test_what_did_not_change_has_no_patch() -> None:
    base, models = draw_normal(3, 2)
    models[0] = {**models[0], "bias": base["bias"].clone(), "weight": base["weight"].clone()}
    models[0]["norm"] = torch.tensor([-0.0])
    found = patches_of({**base, "norm": torch.zeros(1)}, models)
    assert found["bias"][0] is found["weight"][0] is UNCHANGED
    assert isinstance(found["norm"][0], Whole)  # the sign of a zero is a bit, too
    assert isinstance(found["bias"][1], Whole)


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
