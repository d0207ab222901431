"""DELLA, linear: probabilities by rank, unbiased, equal to DARE without a spread, rows of one entry, a reference."""

from math import sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.memory import MemoryMerge
from tests.workers.methods.drawing import ENTRIES, N_SEEDS, draw_seeds, merge_entries, reach_of_mean
from tests.workers.methods.golden import merge_example
from tests.workers.models import assert_close, draw_integers, draw_normal, to_arrays
from tests.workers.references.della_linear import merge as della_linear_by_hand
from workers.catalog import load_method

# of ENTRIES at density 0.5 and spread 0.3, by rank within the row: 0.2, 0.4, 0.6, 0.8
PROBABILITIES = torch.tensor([[0.8, 0.6, 0.4, 0.2], [0.6, 0.2, 0.4, 0.8]], dtype=torch.float64)
SPREAD = {"density": 0.5, "density_spread": 0.3}


def test_density_1_without_a_spread_is_task_arithmetic() -> None:
    parameters = {"density": 1.0, "density_spread": 0.0, "scaling_coefficient": 0.3}
    assert merge_example("della_linear", parameters) == merge_example("task_arithmetic", {"scaling_coefficient": 0.3})


@pytest.mark.parametrize("rescale", [("inverse_density", "inverse_probability"), ("l1", "l1"), ("none", "none")])
def test_without_a_spread_it_is_dare_to_the_bit(rescale: tuple[str, str]) -> None:
    base, models = draw_normal(5, 3)
    dare = MemoryMerge(load_method("dare_linear"), {"density": 0.3, "rescale": rescale[0]})(base, models)
    parameters = {"density": 0.3, "density_spread": 0.0, "rescale": rescale[1]}
    della = MemoryMerge(load_method("della_linear"), parameters)(base, models)
    assert all(torch.equal(dare[name], della[name]) for name in base)


def test_each_rank_of_a_row_is_kept_with_its_probability_within_four_sigma() -> None:
    kept = (draw_seeds("della_linear", SPREAD) != 0).double().mean(0)
    assert ((kept - PROBABILITIES).abs() < reach_of_mean((PROBABILITIES * (1 - PROBABILITIES)).sqrt())).all()


def test_what_is_kept_carries_the_entry_over_its_own_probability() -> None:
    merged = merge_entries("della_linear", SPREAD)
    torch.testing.assert_close(merged[merged != 0], (ENTRIES / PROBABILITIES).float()[merged != 0])


def test_the_mean_over_seeds_is_the_task_vector_within_four_sigma() -> None:
    deviation = ENTRIES.double().abs() * ((1 - PROBABILITIES) / PROBABILITIES).sqrt()
    assert ((draw_seeds("della_linear", SPREAD).mean(0) - ENTRIES).abs() < reach_of_mean(deviation)).all()


def test_large_entries_are_kept_more_often_than_small_ones() -> None:
    row = torch.arange(1.0, 1001.0).view(1, 1000)
    kept = merge_entries("della_linear", {"density": 0.5, "density_spread": 0.4}, row) != 0
    assert int(kept[:, 500:].sum()) > int(kept[:, :500].sum()) + 100


@pytest.mark.parametrize("shape", [(), (1,), (5, 1)])
def test_rows_of_one_entry_are_kept_with_the_density(shape: tuple[int, ...]) -> None:
    parameters = {"density": 0.5, "density_spread": 0.3}
    drawn = torch.stack([merge_entries("della_linear", parameters, torch.ones(shape), seed=s) for s in range(N_SEEDS)])
    n = drawn.numel()
    assert set(drawn.flatten().tolist()) == {0.0, 2.0}
    assert abs(float((drawn != 0).double().mean()) - 0.5) < 4 * 0.5 / sqrt(n)


def test_probabilities_are_clamped() -> None:
    row = torch.arange(1.0, 101.0).view(1, 100)
    merged = merge_entries("della_linear", {"density": 0.9, "density_spread": 0.9}, row)
    assert torch.equal(merged[:, -1:], row[:, -1:])  # 1.8 is 1: always kept, not scaled
    assert merged[0, 0] == 0.0  # 0 is one in a million


def test_the_same_seed_gives_the_same_bits_and_another_one_others() -> None:
    first, again, other = (merge_entries("della_linear", {}, torch.ones(20, 20), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, -1.0, 0.0]), min_size=1, max_size=5),
    density=st.sampled_from([0.05, 0.3, 0.7, 1.0]),
    density_spread=st.sampled_from([0.0, 0.07, 0.5]),
    rescale=st.sampled_from(["l1", "none"]),  # the inverse of a tiny probability leaves no digits to compare
    piece_elements=st.sampled_from([1, 5, 1 << 20]),
)
def test_agrees_with_the_draws_worked_entry_by_entry(  # noqa: PLR0913 - one argument a parameter
    seed: int, weights: list[float], density: float, density_spread: float, rescale: str, piece_elements: int
) -> None:
    parameters = {
        "density": density, "density_spread": density_spread, "rescale": rescale, "scaling_coefficient": 0.5
    }  # fmt: skip
    base, models = draw_integers(seed, len(weights))
    merged = MemoryMerge(load_method("della_linear"), parameters, weights, piece_elements=piece_elements)(base, models)
    by_hand = della_linear_by_hand(to_arrays(base), [to_arrays(model) for model in models], weights, parameters)
    assert_close(merged, by_hand, rtol=2e-6, atol=5e-6)
