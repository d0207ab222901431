"""Consensus TIES: a worked example, TIES where every task counts, a reference."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.parameter_checks import fill_defaults
from tests.workers.memory import MemoryMerge
from tests.workers.methods.golden import merge_example
from tests.workers.models import assert_close, draw_integers, to_arrays
from tests.workers.references.consensus_ties import merge as by_hand
from workers.catalog import load_method


def test_half_of_the_example() -> None:
    # TIES sums to 4, 2, .75, 0, 3, 0. First entry: 3 > .4 · 1, but 1 < .4 · 3 and 2 < .4 · 6: one task.
    # Third: .5 > .4 · .25, .5 = .4 · 1.25, .75 > 0: two. Fifth: 2 > .4 · 1, 1.5 < .4 · 4.5, 1 > .4 · 2: two.
    assert merge_example("consensus_ties", {"density": 0.5}) == [0.0, 0.0, 0.75, 0.0, 3.0, 0.0]


def test_threshold_0_and_one_task_is_ties() -> None:
    parameters = {"density": 0.5, "mask_threshold": 0.0, "min_tasks": 1}
    assert merge_example("consensus_ties", parameters) == merge_example("ties", {"density": 0.5, "reduce": "sum"})


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, -1.0, 0.0]), min_size=1, max_size=5),
    parameters=st.fixed_dictionaries(
        {
            "mask_threshold": st.sampled_from([0.0, 0.25, 0.5, 1.0]),
            "min_tasks": st.integers(1, 5),
            "scaling_coefficient": st.just(0.5),
            "density": st.sampled_from([0.1, 0.5, 1.0]),
            "trim_scope": st.sampled_from(["global", "tensor"]),
            "reduce": st.sampled_from(["sum", "max"]),  # whole numbers: at the threshold exactly, in both
            "vote": st.sampled_from(["unweighted", "weighted"]),
            "zero_vote": st.sampled_from(["majority", "positive"]),
        }
    ),
    piece_elements=st.sampled_from([1, 5, 1 << 20]),
)
def test_agrees_with_the_algorithm_worked_by_hand(
    seed: int, weights: list[float], parameters: dict[str, float | str], piece_elements: int
) -> None:
    base, models = draw_integers(seed, len(weights))
    merge = MemoryMerge(load_method("consensus_ties"), parameters, weights, piece_elements=piece_elements)
    expected = by_hand(to_arrays(base), [to_arrays(model) for model in models], weights, parameters)
    assert_close(merge(base, models), expected)


def test_each_task_may_have_a_threshold_of_its_own() -> None:
    base, models = draw_integers(11, 3)
    thresholds = [0.0, 0.5, 1e6]
    parameters = fill_defaults(load_method("consensus_ties").card.parameters, {"mask_threshold": 0.5})
    own = [{"mask_threshold": 0.0}, {}, {"mask_threshold": 1e6}]
    merged = MemoryMerge(load_method("consensus_ties"), parameters, (1.0, 0.5, 2.0), of_models=own)(base, models)
    arrays = [to_arrays(model) for model in models]
    expected = by_hand(to_arrays(base), arrays, [1.0, 0.5, 2.0], {**parameters, "thresholds": thresholds})
    assert_close(merged, expected)
    alike = MemoryMerge(load_method("consensus_ties"), parameters, (1.0, 0.5, 2.0))(base, models)
    assert any(not torch.equal(alike[name], merged[name]) for name in base)
