"""Multi-slerp: arcs worked by hand, lengths, and directions that cancel."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.workers.memory import MemoryMerge
from tests.workers.models import assert_close, draw_normal, to_arrays
from tests.workers.references import multislerp as reference
from workers.catalog import load_method

METHOD = load_method("multislerp")


def _merge(
    vectors: list[list[float]], weights: tuple[float, ...] = (), base: list[float] | None = None, **parameters: Any
) -> Tensor:
    models = [{"w": torch.tensor(vector)} for vector in vectors]
    origin = None if base is None else {"w": torch.tensor(base)}
    return MemoryMerge(METHOD, parameters, weights)(origin, models)["w"]


def test_halfway_between_two_unit_vectors_is_slerp() -> None:
    # 45° between (1, 0) and (0, 1)
    torch.testing.assert_close(_merge([[1.0, 0.0], [0.0, 1.0]]), torch.full((2,), math.sqrt(0.5)), rtol=1e-6, atol=0)


def test_three_axes_meet_in_the_diagonal_at_their_mean_length() -> None:
    # direction (1, 1, 1) / √3, lengths 1, 2 and 6: 3
    merged = _merge([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 6.0]])
    torch.testing.assert_close(merged, torch.full((3,), math.sqrt(3.0)), rtol=1e-6, atol=0)


def test_weights_turn_the_direction_and_the_length() -> None:
    # weights 3/4 and 1/4: direction (3, 1) / √10; length 3/4 · 2 + 1/4 · 4 = 2.5
    merged = _merge([[2.0, 0.0], [0.0, 4.0]], weights=(3.0, 1.0))
    torch.testing.assert_close(merged, torch.tensor([3.0, 1.0]) * 2.5 / math.sqrt(10), rtol=1e-6, atol=0)


def test_weights_that_are_not_normalized_scale_the_length_alone() -> None:
    merged = _merge([[2.0, 0.0], [0.0, 4.0]], weights=(3.0, 1.0), normalize=False)
    torch.testing.assert_close(merged, torch.tensor([3.0, 1.0]) * 10 / math.sqrt(10), rtol=1e-6, atol=0)


def test_with_a_base_model_task_vectors_are_merged() -> None:
    merged = _merge([[6.0, 5.0], [5.0, 6.0]], base=[5.0, 5.0])
    torch.testing.assert_close(merged, torch.full((2,), 5 + math.sqrt(0.5)), rtol=1e-6, atol=0)


def test_directions_that_cancel_give_the_weighted_mean() -> None:
    assert _merge([[1.0, 2.0], [-3.0, -6.0]]).tolist() == [-1.0, -2.0]
    assert _merge([[1.0], [3.0], [-2.0], [-6.0]]).tolist() == [-1.0]


def test_zeros_have_no_direction_but_a_length() -> None:
    # direction (1, 0); lengths 4 and 0: 2
    assert _merge([[4.0, 0.0], [0.0, 0.0]]).tolist() == [2.0, 0.0]
    assert _merge([[0.0], [0.0], [0.0]]).tolist() == [0.0]


@settings(deadline=None)
@given(
    seed=st.integers(0, 1000),
    weights=st.lists(st.sampled_from([0.25, 1.0, 2.0, -0.125]), min_size=1, max_size=5),
    normalize=st.booleans(),
    is_based=st.booleans(),
)
def test_it_is_what_is_worked_by_hand(seed: int, weights: list[float], normalize: bool, is_based: bool) -> None:  # noqa: FBT001 drawn
    if sum(weights) == 0:
        weights[0] = 1.0
    base, models = draw_normal(seed, len(weights))
    arrays, parameters = list(map(to_arrays, models)), {"normalize": normalize}
    expected = reference.merge(to_arrays(base) if is_based else None, arrays, weights, parameters)
    merged = MemoryMerge(METHOD, parameters, weights)(base if is_based else None, models)
    assert_close(merged, expected, atol=1e-5)


def test_its_pieces_do_not_show_across_blocks() -> None:
    generator = torch.Generator().manual_seed(1)
    models = [{"w": torch.randn(9000, generator=generator)} for _ in range(3)]
    whole = MemoryMerge(METHOD)(None, models)["w"]
    for piece_elements in (4096, 1000, 333, 5001):
        assert torch.equal(MemoryMerge(METHOD, piece_elements=piece_elements)(None, models)["w"], whole)


@pytest.mark.parametrize("shape", [(), (1,), (0, 3)])
def test_small_tensors_keep_their_shape(shape: tuple[int, ...]) -> None:
    models = [{"w": torch.ones(shape)}, {"w": 3 * torch.ones(shape)}]
    assert torch.equal(MemoryMerge(METHOD)(None, models)["w"], 2 * torch.ones(shape))
