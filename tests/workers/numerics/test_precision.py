"""Sums over models: exact where float32 is not, and blind to order and to the cut into pieces."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.numerics import precision


def test_float32_cancellation_is_summed_exactly() -> None:
    # in float32, 1e8 + 1 - 1e8 is 0
    tensors = torch.tensor([[1e8], [1.0], [-1e8]])
    assert precision.weighted_sum(tensors, [1.0, 1.0, 1.0]).tolist() == [1.0]


def test_weights_multiply() -> None:
    tensors = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert precision.weighted_sum(tensors, [2.0, -1.0]).tolist() == [-1.0, 0.0]


@given(seed=st.integers(0, 1000), piece=st.integers(1, 70))
def test_pieces_sum_like_the_whole(seed: int, piece: int) -> None:
    tensors = torch.randn(5, 67, generator=torch.Generator().manual_seed(seed))
    weights = [0.3, 0.1, -0.7, 1.0, 0.9]
    whole = precision.weighted_sum(tensors, weights)
    parts = [precision.weighted_sum(part, weights) for part in torch.split(tensors, piece, dim=1)]
    assert torch.equal(torch.cat(parts), whole)


@given(order=st.permutations(range(5)))
def test_order_does_not_show_after_rounding(order: list[int]) -> None:
    tensors = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    weights = torch.tensor([0.3, 0.1, -0.7, 1.0, 0.9])
    forward = precision.round_to_float32(precision.weighted_sum(tensors, weights.tolist()))
    shuffled = precision.round_to_float32(precision.weighted_sum(tensors[order], weights[order].tolist()))
    assert torch.equal(forward, shuffled)
