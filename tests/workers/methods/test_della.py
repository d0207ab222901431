"""DELLA: equal to TIES where nothing is dropped, to DARE with TIES without a spread, and a reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.memory import MemoryMerge
from tests.workers.methods.drawing import merge_entries
from tests.workers.methods.golden import merge_example
from tests.workers.models import assert_close, draw_integers, draw_normal, to_arrays
from tests.workers.references.della import merge as della_by_hand
from workers.catalog import load_method


@pytest.mark.parametrize("reduce", ["mean", "sum", "max"])
def test_density_1_without_a_spread_is_ties_without_a_trim(reduce: str) -> None:
    expected = merge_example("ties", {"density": 1.0, "reduce": reduce, "zero_vote": "positive"})
    assert merge_example("della", {"density": 1.0, "density_spread": 0.0, "reduce": reduce}) == expected


def test_without_a_spread_it_is_dare_with_ties_to_the_bit() -> None:
    base, models = draw_normal(5, 3)
    dare = MemoryMerge(load_method("dare_ties"), {"density": 0.3})(base, models)
    della = MemoryMerge(load_method("della"), {"density": 0.3, "density_spread": 0.0})(base, models)
    assert all(torch.equal(dare[name], della[name]) for name in base)


def test_one_model_is_della_linear() -> None:
    model = torch.randn(20, 30, generator=torch.Generator().manual_seed(3))
    linear, ties = (merge_entries(method, {"density": 0.3}, model) for method in ("della_linear", "della"))
    assert torch.equal(linear, ties)


def test_draws_belong_to_a_model_not_to_its_place() -> None:
    base, models = {"w": torch.zeros(10, 10)}, [{"w": torch.ones(10, 10)}, {"w": torch.full((10, 10), -2.0)}]
    forward = MemoryMerge(load_method("della"), {"rescale": "l1"}, model_keys=("a", "b"))(base, models)
    backward = MemoryMerge(load_method("della"), {"rescale": "l1"}, model_keys=("b", "a"))(base, models[::-1])
    assert torch.equal(forward["w"], backward["w"])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, -1.0, 0.0]), min_size=1, max_size=5),
    parameters=st.fixed_dictionaries(
        {
            "density": st.sampled_from([0.3, 0.7, 1.0]),
            "density_spread": st.sampled_from([0.0, 0.07, 0.25]),
            "rescale": st.just("none"),  # whole numbers stay whole: balanced votes stay balanced
            "scaling_coefficient": st.just(0.5),
            "reduce": st.sampled_from(["mean", "sum", "max"]),
            "vote": st.sampled_from(["unweighted", "weighted"]),
        }
    ),
    piece_elements=st.sampled_from([1, 5, 1 << 20]),
)
def test_agrees_with_the_algorithm_worked_entry_by_entry(
    seed: int, weights: list[float], parameters: dict[str, float | str], piece_elements: int
) -> None:
    base, models = draw_integers(seed, len(weights))
    merged = MemoryMerge(load_method("della"), parameters, weights, piece_elements=piece_elements)(base, models)
    by_hand = della_by_hand(to_arrays(base), [to_arrays(model) for model in models], weights, parameters)
    assert_close(merged, by_hand)
