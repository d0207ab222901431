"""TIES: golden numbers, a brute-force reference, and the laws of trim, vote and disjoint merge."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.memory import MemoryMerge
from tests.workers.methods.golden import TASK_VECTORS, merge_example
from tests.workers.models import assert_close, draw_integers, to_arrays
from tests.workers.references.ties import merge as ties_by_hand
from workers.catalog import load_method
from workers.methods import ties


@pytest.mark.parametrize(
    ("reduce", "expected"),
    [
        ("mean", [2.0, 2.0, 0.75, 0.0, 1.5, 0.0]),
        ("sum", [4.0, 2.0, 0.75, 0.0, 3.0, 0.0]),
        ("max", [3.0, 2.0, 0.75, 0.0, 2.0, 0.0]),
    ],
)
def test_half_of_the_example(reduce: str, expected: list[float]) -> None:
    # kept: τ1 3, -1, 2; τ2 1, 2, -1.5; τ3 -2, .75, 1. First entry: 3 + 1 - 2 > 0, so 3 and 1 agree
    assert merge_example("ties", {"density": 0.5, "reduce": reduce}) == expected


def test_balanced_votes_take_the_majority_sign() -> None:
    # entry 3 holds 0, .5 and -.5: a tie; the other entries elect +, so .5 stands
    assert merge_example("ties", {"density": 1.0}) == [2.0, 1.25, 0.625, 0.5, 1.5, 0.625]


def test_balanced_votes_take_minus_where_most_entries_elect_minus() -> None:
    flipped = merge_example("ties", {"density": 1.0}, task_vectors=-TASK_VECTORS)
    assert flipped == [-2.0, -1.25, -0.625, -0.5, -1.5, -0.625]


def test_balanced_votes_take_plus_when_asked_to() -> None:
    flipped = merge_example("ties", {"density": 1.0, "zero_vote": "positive"}, task_vectors=-TASK_VECTORS)
    assert flipped[3] == 0.5


def test_weighted_votes_and_weighted_mean_of_the_example() -> None:
    # weights .5, .3, .2: first entry (.5·3 + .3·1) / .8 = 2.25; fifth (.5·2 + .2·1) / .7 = 1.714286
    merged = merge_example("ties", {"density": 0.5, "trim_scope": "tensor", "vote": "weighted"}, [0.5, 0.3, 0.2])
    assert merged == [2.25, 2.0, 0.75, 0.0, 1.714286, 0.0]


def test_a_weight_can_turn_a_weighted_vote_and_no_unweighted_one() -> None:
    vectors = torch.tensor([[1.0, 0, 0, 0, 0, 0], [-2.0, 0, 0, 0, 0, 0]])
    weighted = merge_example("ties", {"density": 1.0, "vote": "weighted"}, [3.0, 1.0], vectors)
    unweighted = merge_example("ties", {"density": 1.0}, [3.0, 1.0], vectors)
    assert (weighted[0], unweighted[0]) == (1.0, -2.0)


def test_a_negative_weight_negates_the_task_vector() -> None:
    turned = merge_example("ties", {"density": 0.5}, [1.0, -1.0, 1.0])
    vectors = TASK_VECTORS * torch.tensor([[1.0], [-1.0], [1.0]])
    assert turned == merge_example("ties", {"density": 0.5}, task_vectors=vectors)


def test_a_model_of_weight_zero_takes_no_part() -> None:
    assert merge_example("ties", {"density": 0.5}, [1.0, 1.0, 0.0]) == merge_example(
        "ties", {"density": 0.5}, task_vectors=TASK_VECTORS[:2]
    )


def test_scaling_zero_returns_base() -> None:
    assert merge_example("ties", {"scaling_coefficient": 0.0}) == [0.0] * 6


def test_equal_magnitudes_are_kept_from_the_front() -> None:
    vectors = torch.tensor([[1.0, -1.0, 1.0, 1.0, -1.0, 1.0]])
    assert merge_example("ties", {"density": 0.5}, task_vectors=vectors) == [1.0, -1.0, 1.0, 0.0, 0.0, 0.0]


def test_at_least_one_entry_is_kept() -> None:
    assert merge_example("ties", {"density": 0.01}, task_vectors=TASK_VECTORS[:1]) == [3.0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("trim_scope", ["global", "tensor"])
def test_tensor_scope_keeps_something_of_a_scalar_that_global_scope_drops(trim_scope: str) -> None:
    base = {"big": torch.zeros(10), "scale": torch.tensor(0.0)}
    model = {"big": torch.arange(1.0, 11.0), "scale": torch.tensor(0.5)}
    merged = MemoryMerge(load_method("ties"), {"density": 0.2, "trim_scope": trim_scope})(base, [model])
    assert float(merged["scale"]) == (0.5 if trim_scope == "tensor" else 0.0)
    assert int(merged["big"].count_nonzero()) == 2


def test_passes_over_the_inputs_are_those_of_the_card() -> None:
    method = load_method("ties")
    passes = {
        sum(request.n_passes for request in method.collect(ties.TiesParameters(trim_scope=scope, zero_vote=zero_vote)))
        for scope in ("global", "tensor")
        for zero_vote in ("majority", "positive")
    }
    assert max(passes) == method.card.statistic_passes


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, -1.0, 0.0]), min_size=1, max_size=4),
    density=st.sampled_from([0.1, 0.2, 0.5, 0.9, 1.0]),
    trim_scope=st.sampled_from(["global", "tensor"]),
    reduce=st.sampled_from(["mean", "sum", "max"]),
    vote=st.sampled_from(["unweighted", "weighted"]),
    zero_vote=st.sampled_from(["majority", "positive"]),
    piece_elements=st.sampled_from([1, 3, 7, 1 << 20]),
)
def test_agrees_with_the_algorithm_worked_entry_by_entry(  # noqa: PLR0913 - one argument a parameter
    seed: int,
    weights: list[float],
    density: float,
    trim_scope: str,
    reduce: str,
    vote: str,
    zero_vote: str,
    piece_elements: int,
) -> None:
    # small integers: many ties in magnitude, many balanced votes, and sums without rounding
    parameters = {
        "density": density, "trim_scope": trim_scope, "reduce": reduce, "vote": vote, "zero_vote": zero_vote,
        "scaling_coefficient": 0.5,
    }  # fmt: skip
    base, models = draw_integers(seed, len(weights))
    merged = MemoryMerge(load_method("ties"), parameters, weights, piece_elements=piece_elements)(base, models)
    assert_close(merged, ties_by_hand(to_arrays(base), [to_arrays(model) for model in models], weights, parameters))
