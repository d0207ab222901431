"""DARE, linear: exact supports, means and densities within four sigma, keys by content, norms restored, edge cases."""

from math import sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.memory import MemoryMerge
from tests.workers.methods.drawing import ENTRIES, draw_seeds, merge_entries, reach_of_mean
from tests.workers.methods.golden import merge_example
from tests.workers.models import assert_close, draw_integers, draw_normal, to_arrays
from tests.workers.references.dare_linear import merge as dare_linear_by_hand
from workers.catalog import load_method
from workers.methods import dare_linear


def test_density_1_is_task_arithmetic() -> None:
    expected = merge_example("task_arithmetic", {"scaling_coefficient": 0.3})
    assert merge_example("dare_linear", {"density": 1.0, "scaling_coefficient": 0.3}) == expected


@pytest.mark.parametrize("density", [0.1, 0.3, 0.5, 0.9])
def test_what_is_kept_carries_the_entry_over_the_density_exactly(density: float) -> None:
    model = torch.randn(40, 50, generator=torch.Generator().manual_seed(3))
    merged = merge_entries("dare_linear", {"density": density}, model)
    kept = merged != 0
    assert torch.equal(merged[kept], (model.double() / density).float()[kept])


def test_without_rescale_what_is_kept_is_the_entry_itself() -> None:
    merged = merge_entries("dare_linear", {"density": 0.5, "rescale": "none"})
    assert torch.equal(merged[merged != 0], ENTRIES[merged != 0])


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_the_number_kept_is_within_four_sigma_of_the_density(density: float) -> None:
    n = 100_000
    kept = int(merge_entries("dare_linear", {"density": density}, torch.ones(100, n // 100)).count_nonzero())
    assert abs(kept - density * n) < 4 * sqrt(n * density * (1 - density))


def test_the_mean_over_seeds_is_the_task_vector_within_four_sigma() -> None:
    density = 0.3
    drawn = draw_seeds("dare_linear", {"density": density})
    deviation = ENTRIES.double().abs() * sqrt((1 - density) / density)
    assert ((drawn.mean(0) - ENTRIES).abs() < reach_of_mean(deviation)).all()


def test_l1_restores_the_sum_of_magnitudes_of_each_tensor_and_model() -> None:
    base, models = draw_normal(5, 1)
    merged = MemoryMerge(load_method("dare_linear"), {"density": 0.5, "rescale": "l1"})(base, models)
    before = float((models[0]["weight"] - base["weight"]).double().abs().sum())
    assert float((merged["weight"] - base["weight"]).double().abs().sum()) == pytest.approx(before, rel=1e-6)


def test_l1_of_a_tensor_that_lost_every_entry_is_the_base() -> None:
    parameters = {"density": 0.1, "rescale": "l1"}
    drawn = [float(merge_entries("dare_linear", parameters, ENTRIES[:1, :1], seed=seed)) for seed in range(40)]
    assert set(drawn) == {0.0, 3.0}  # lost, or restored to its own magnitude


def test_the_same_seed_gives_the_same_bits_and_another_one_others() -> None:
    first, again, other = (merge_entries("dare_linear", {}, torch.ones(20, 20), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_draws_belong_to_a_model_not_to_its_place() -> None:
    base, models = {"w": torch.zeros(10, 10)}, [{"w": torch.ones(10, 10)}, {"w": torch.full((10, 10), 2.0)}]
    forward = MemoryMerge(load_method("dare_linear"), model_keys=("a", "b"))(base, models)
    backward = MemoryMerge(load_method("dare_linear"), model_keys=("b", "a"))(base, models[::-1])
    assert torch.equal(forward["w"], backward["w"])


def test_draws_of_two_models_and_of_two_tensors_are_independent() -> None:
    n = 10_000
    base = {"v": torch.zeros(n), "w": torch.zeros(n)}
    model = {name: torch.ones(n) for name in base}
    merge = MemoryMerge(load_method("dare_linear"), {"rescale": "none"}, weights=(1.0, 10.0))
    merged = merge(base, [model, model])
    both = [float((merged[name] == 11.0).double().mean()) for name in base]  # kept by both: 1/4
    alike = float((merged["v"] == merged["w"]).double().mean())  # each of four outcomes in both tensors: 1/4
    assert all(abs(share - 0.25) < 4 * sqrt(0.25 * 0.75 / n) for share in (*both, alike))


def test_only_restored_norms_need_a_pass_beforehand() -> None:
    method = load_method("dare_linear")
    passes = [
        sum(request.n_passes for request in method.collect(dare_linear.DareLinearParameters(rescale=rescale)))
        for rescale in ("inverse_density", "none", "l1")
    ]
    assert passes == [0, 0, method.card.statistic_passes]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, -1.0, 0.0]), min_size=1, max_size=5),
    density=st.sampled_from([0.05, 0.3, 0.5, 1.0]),
    rescale=st.sampled_from(["inverse_density", "l1", "none"]),
    piece_elements=st.sampled_from([1, 5, 1 << 20]),
)
def test_agrees_with_the_draws_worked_entry_by_entry(
    seed: int, weights: list[float], density: float, rescale: str, piece_elements: int
) -> None:
    parameters = {"density": density, "rescale": rescale, "scaling_coefficient": 0.5}
    base, models = draw_integers(seed, len(weights))
    merged = MemoryMerge(load_method("dare_linear"), parameters, weights, piece_elements=piece_elements)(base, models)
    by_hand = dare_linear_by_hand(to_arrays(base), [to_arrays(model) for model in models], weights, parameters)
    assert_close(merged, by_hand, atol=2e-6)
