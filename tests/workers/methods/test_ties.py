"""TIES: golden numbers, a brute-force reference, and the laws of trim, vote and disjoint merge."""

from collections.abc import Sequence
from itertools import pairwise
from math import floor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.workers.memory import MemoryMerge
from tests.workers.methods.golden import TASK_VECTORS, merge_example
from workers.catalog import load_method
from workers.methods import ties

Vector = NDArray[np.float64]


def trim_by_sorting(vector: Vector, density: float) -> Vector:
    n = len(vector)
    n_kept = max(1, floor(density * n + 1e-9))
    order = sorted(range(n), key=lambda index: (-abs(vector[index]), index))
    kept = np.zeros(n)
    kept[order[:n_kept]] = vector[order[:n_kept]]
    return kept


def merge_by_hand(
    vectors: Sequence[Vector], weights: Sequence[float], parameters: dict[str, Any], groups: Sequence[slice]
) -> Vector:
    """TIES entry by entry over task vectors; `groups` are the runs that are trimmed together."""
    trimmed = [
        np.concatenate([trim_by_sorting(np.sign(weight) * vector[group], parameters["density"]) for group in groups])
        for vector, weight in zip(vectors, weights, strict=True)
    ]
    strengths = [abs(weight) for weight in weights]
    votes = strengths if parameters["vote"] == "weighted" else [1.0] * len(weights)
    totals = sum(vote * vector for vote, vector in zip(votes, trimmed, strict=True))
    elected = np.sign(totals)
    balanced = 1.0 if parameters["zero_vote"] == "positive" or elected.sum() >= 0 else -1.0
    elected[elected == 0] = balanced
    merged = np.zeros(len(elected))
    for index, sign in enumerate(elected):
        agreeing = [(s, v[index]) for s, v in zip(strengths, trimmed, strict=True) if s and np.sign(v[index]) == sign]
        if agreeing:
            weighted = [strength * value for strength, value in agreeing]
            merged[index] = {
                "sum": sum(weighted),
                "mean": sum(weighted) / sum(strength for strength, _ in agreeing),
                "max": max(weighted, key=abs),
            }[parameters["reduce"]]
    return merged


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
    assert max(passes) <= method.card.statistic_passes


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
    shapes = {"bias": (3,), "conv": (2, 1, 2, 2), "scale": (), "weight": (4, 3)}
    generator = torch.Generator().manual_seed(seed)
    models = [
        {name: torch.randint(-3, 4, shape, generator=generator).float() for name, shape in shapes.items()}
        for _ in weights
    ]
    base = {name: torch.zeros(shape) for name, shape in shapes.items()}
    parameters = {
        "density": density, "trim_scope": trim_scope, "reduce": reduce, "vote": vote, "zero_vote": zero_vote,
    }  # fmt: skip
    merged = MemoryMerge(load_method("ties"), parameters, weights, piece_elements=piece_elements)(base, models)
    flat = np.concatenate([merged[name].flatten().numpy() for name in sorted(merged)])
    vectors = [np.concatenate([model[name].flatten().double().numpy() for name in sorted(model)]) for model in models]
    ends = np.cumsum([0, *(base[name].numel() for name in sorted(base))])
    by_tensor = [slice(int(begin), int(end)) for begin, end in pairwise(ends)]
    groups = by_tensor if trim_scope == "tensor" else [slice(0, len(flat))]
    np.testing.assert_allclose(flat, merge_by_hand(vectors, weights, parameters, groups), rtol=1e-6, atol=1e-7)
