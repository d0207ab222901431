"""DARE with TIES: equal to TIES where nothing is dropped, a trim of what the draws leave, a reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.memory import MemoryMerge
from tests.workers.methods.drawing import merge_entries
from tests.workers.methods.golden import merge_example
from tests.workers.models import assert_close, draw_integers, to_arrays
from tests.workers.references.dare_ties import merge as dare_ties_by_hand
from workers.catalog import load_method
from workers.methods import dare_ties


@pytest.mark.parametrize("reduce", ["mean", "sum", "max"])
def test_density_1_is_ties_without_a_trim(reduce: str) -> None:
    expected = merge_example("ties", {"density": 1.0, "reduce": reduce})
    assert merge_example("dare_ties", {"density": 1.0, "reduce": reduce, "zero_vote": "majority"}) == expected


def test_density_1_with_a_trim_is_ties() -> None:
    # the golden numbers of TIES at density 0.5
    merged = merge_example("dare_ties", {"density": 1.0, "trim_density": 0.5})
    assert merged == [2.0, 2.0, 0.75, 0.0, 1.5, 0.0]


def test_one_model_is_dare_linear() -> None:
    model = torch.randn(20, 30, generator=torch.Generator().manual_seed(3))
    linear, ties = (merge_entries(method, {"density": 0.3}, model) for method in ("dare_linear", "dare_ties"))
    assert torch.equal(linear, ties)


def test_a_trim_keeps_the_largest_of_what_the_draws_left() -> None:
    model = torch.randn(20, 30, generator=torch.Generator().manual_seed(3))
    left = merge_entries("dare_ties", {"density": 0.5}, model)
    trimmed = merge_entries("dare_ties", {"density": 0.5, "trim_density": 0.1}, model)
    assert int(trimmed.count_nonzero()) == 60
    assert torch.equal(trimmed[trimmed != 0], left[trimmed != 0])
    assert float(trimmed[trimmed != 0].abs().min()) >= float(left[trimmed == 0].abs().max())


def test_draws_belong_to_a_model_not_to_its_place() -> None:
    base, models = {"w": torch.zeros(10, 10)}, [{"w": torch.ones(10, 10)}, {"w": torch.full((10, 10), -2.0)}]
    parameters = {"rescale": "l1", "trim_density": 0.4, "zero_vote": "majority"}
    forward = MemoryMerge(load_method("dare_ties"), parameters, model_keys=("a", "b"))(base, models)
    backward = MemoryMerge(load_method("dare_ties"), parameters, model_keys=("b", "a"))(base, models[::-1])
    assert torch.equal(forward["w"], backward["w"])


def test_the_same_seed_gives_the_same_bits_and_another_one_others() -> None:
    first, again, other = (merge_entries("dare_ties", {}, torch.ones(20, 20), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_passes_over_the_inputs_are_at_most_those_of_the_card() -> None:
    method = load_method("dare_ties")
    choices = [{}, {"trim_density": 0.2}, {"rescale": "l1", "trim_density": 0.2, "zero_vote": "majority"}]
    passes = [
        sum(request.n_passes for request in method.collect(dare_ties.DareTiesParameters.model_validate(choice)))
        for choice in choices
    ]
    assert passes == [0, 1, method.card.statistic_passes]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, -1.0, 0.0]), min_size=1, max_size=5),
    parameters=st.fixed_dictionaries(
        {
            "density": st.sampled_from([0.25, 0.5, 1.0]),  # exact in binary, so that balanced votes stay balanced
            "rescale": st.sampled_from(["inverse_density", "none"]),
            "scaling_coefficient": st.just(0.5),
            "trim_density": st.sampled_from([0.1, 0.5, 1.0]),
            "trim_scope": st.sampled_from(["global", "tensor"]),
            "reduce": st.sampled_from(["mean", "sum", "max"]),
            "vote": st.sampled_from(["unweighted", "weighted"]),
            "zero_vote": st.sampled_from(["majority", "positive"]),
        }
    ),
    piece_elements=st.sampled_from([1, 5, 1 << 20]),
)
def test_agrees_with_the_algorithm_worked_entry_by_entry(
    seed: int, weights: list[float], parameters: dict[str, float | str], piece_elements: int
) -> None:
    base, models = draw_integers(seed, len(weights))
    merged = MemoryMerge(load_method("dare_ties"), parameters, weights, piece_elements=piece_elements)(base, models)
    by_hand = dare_ties_by_hand(to_arrays(base), [to_arrays(model) for model in models], weights, parameters)
    assert_close(merged, by_hand, atol=2e-6)
