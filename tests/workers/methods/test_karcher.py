"""Karcher mean: arcs worked by hand, agreement with slerp, and directions that have no mean."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from app.domain.errors import Invalid
from tests.workers.memory import MemoryMerge
from tests.workers.models import assert_close, draw_normal, to_arrays
from tests.workers.references import karcher as reference
from workers.catalog import load_method

METHOD = load_method("karcher")


def _merge(vectors: list[list[float]], weights: tuple[float, ...] = (), **parameters: Any) -> Tensor:
    return MemoryMerge(METHOD, parameters, weights)(None, [{"w": torch.tensor(vector)} for vector in vectors])["w"]


def _at(degrees: float, length: float = 1.0) -> list[float]:
    return [length * math.cos(math.radians(degrees)), length * math.sin(math.radians(degrees))]


def test_two_models_meet_halfway_at_their_mean_length() -> None:
    # 0° and 90°, lengths 2 and 4: 45° at 3, which is slerp of the directions times the mean length
    torch.testing.assert_close(_merge([_at(0, 2), _at(90, 4)]), torch.tensor(_at(45, 3)), rtol=1e-6, atol=0)


def test_on_a_circle_it_is_the_mean_of_the_angles() -> None:
    # 0°, 10° and 80°: 30°. The mean direction would lie at 27.6°
    merged = _merge([_at(0), _at(10), _at(80)], tolerance=1e-9, max_iterations=50)
    torch.testing.assert_close(merged, torch.tensor(_at(30)), rtol=1e-6, atol=0)


def test_weights_weigh_angles_and_lengths() -> None:
    # 3/4 · 0° + 1/4 · 80° = 20°; 3/4 · 1 + 1/4 · 5 = 2
    merged = _merge([_at(0), _at(80, 5)], weights=(3.0, 1.0), tolerance=1e-9, max_iterations=50)
    torch.testing.assert_close(merged, torch.tensor(_at(20, 2)), rtol=1e-6, atol=0)


def test_without_steps_it_is_the_mean_of_directions() -> None:
    # (1, 0), (0, 1), (0, 1): direction (1, 2)
    merged = _merge([_at(0), _at(90), _at(90)], max_iterations=0)
    torch.testing.assert_close(merged, torch.tensor([1.0, 2.0]) / math.sqrt(5), rtol=1e-6, atol=1e-7)


def test_equal_models_come_back() -> None:
    assert _merge([[1.0, -2.0]] * 3).tolist() == [1.0, -2.0]


def test_zeros_have_no_direction_but_a_length() -> None:
    assert _merge([[4.0, 0.0], [0.0, 0.0]]).tolist() == [2.0, 0.0]
    assert _merge([[0.0, 0.0], [0.0, 0.0]]).tolist() == [0.0, 0.0]


def test_tiny_models_have_a_direction_too() -> None:
    # mergekit takes what is shorter than the tolerance for zero
    torch.testing.assert_close(_merge([_at(0, 1e-9), _at(90, 1e-9)]), torch.tensor(_at(45, 1e-9)), rtol=1e-6, atol=0)


def test_directions_that_cancel_give_the_mean() -> None:
    assert _merge([[1.0, 2.0], [-3.0, -6.0]]).tolist() == [-1.0, -2.0]


def test_an_opposite_minority_pulls_nowhere() -> None:
    # signs +, +, -: the direction is +, the mean length (1 + 2 + 3) / 3
    assert _merge([[1.0], [2.0], [-3.0]]).tolist() == pytest.approx([2.0])


def test_all_weights_zero_are_refused() -> None:
    with pytest.raises(
        Invalid, match=r"karcher divides by the sum of the weights, which is 0 for tensor 'w'.*change the weights"
    ):
        _merge([[1.0], [2.0]], weights=(0.0, 0.0))


@settings(deadline=None)
@given(
    seed=st.integers(0, 1000),
    weights=st.lists(st.sampled_from([0.25, 1.0, 2.0]), min_size=1, max_size=5),
    is_based=st.booleans(),
    max_iterations=st.integers(0, 12),
)
def test_it_is_what_is_worked_by_hand(seed: int, weights: list[float], is_based: bool, max_iterations: int) -> None:  # noqa: FBT001 drawn
    base, models = draw_normal(seed, len(weights))
    arrays, parameters = list(map(to_arrays, models)), {"max_iterations": max_iterations, "tolerance": 1e-7}
    expected = reference.merge(to_arrays(base) if is_based else None, arrays, weights, parameters)
    merged = MemoryMerge(METHOD, parameters, weights)(base if is_based else None, models)
    assert_close(merged, expected, atol=2e-6)
