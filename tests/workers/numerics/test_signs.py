"""Signs: votes, agreement, and what becomes of the entries that agree."""

from typing import Literal

import pytest
import torch

from workers.numerics import signs

DELTAS = torch.tensor([[3.0, -1.0, 0.0, 0.5], [-1.0, -2.0, 0.0, -0.5], [1.0, 4.0, 0.0, 0.0]])
ELECTED = torch.ones(4)


def test_the_larger_total_elects() -> None:
    assert signs.elect(DELTAS, [1.0, 1.0, 1.0]).tolist() == [1, 1, 0, 0]


def test_votes_count_by_their_weight() -> None:
    # second entry: -2 - 4 + 4 < 0
    assert signs.elect(DELTAS, [2.0, 2.0, 1.0]).tolist() == [1, -1, 0, 0]


def test_balanced_votes_are_seen_in_spite_of_rounding() -> None:
    # float32 sums .1 + .2 - .3 to something else than 0 in some order; these three cancel exactly in float64
    deltas = torch.tensor([[1e8], [0.5], [-1e8], [-0.5]])
    assert signs.elect(deltas, [1.0] * 4).tolist() == [0]


def test_balanced_votes_take_the_sign_they_are_given() -> None:
    assert signs.elect(DELTAS, [1.0, 1.0, 1.0], balanced_sign=-1).tolist() == [1, 1, -1, -1]
    assert signs.elect(DELTAS, [1.0, 1.0, 1.0], balanced_sign=1).tolist() == [1, 1, 1, 1]


def test_the_smallest_number_outvotes_the_sign_of_balanced_votes() -> None:
    assert signs.elect(torch.tensor([[1.4e-45]]), [1.0], balanced_sign=-1).tolist() == [1]


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [("mean", [2.0, 4.0, 0.0, 0.5]), ("sum", [4.0, 4.0, 0.0, 0.5]), ("max", [3.0, 4.0, 0.0, 0.5])],
)
def test_what_agrees_is_merged(reduction: Literal["mean", "sum", "max"], expected: list[float]) -> None:
    merged = signs.reduce_agreeing(DELTAS, ELECTED, [1.0, 1.0, 1.0], reduction=reduction)
    assert merged.tolist() == expected


@pytest.mark.parametrize(("reduction", "expected"), [("mean", 1.5), ("sum", 6.0), ("max", 3.0)])
def test_weights_enter_the_merge(reduction: Literal["mean", "sum", "max"], expected: float) -> None:
    # first entry: 3 of weight 1 and 1 of weight 3
    merged = signs.reduce_agreeing(DELTAS, ELECTED, [1.0, 1.0, 3.0], reduction=reduction)
    assert merged[0] == expected


@pytest.mark.parametrize("reduction", ["mean", "sum", "max"])
def test_where_nobody_agrees_the_merge_is_zero(reduction: Literal["mean", "sum", "max"]) -> None:
    merged = signs.reduce_agreeing(torch.zeros(2, 3), torch.ones(3), [0.1, 0.0], reduction=reduction)
    assert merged.tolist() == [0.0, 0.0, 0.0]


def test_negative_signs_merge_like_positive_ones() -> None:
    merged = signs.reduce_agreeing(-DELTAS, -ELECTED, [1.0, 1.0, 1.0], reduction="mean")
    assert merged.tolist() == [-2.0, -4.0, 0.0, -0.5]


def test_a_negative_weight_turns_a_task_vector_and_zero_removes_it() -> None:
    oriented = signs.orient(DELTAS, [-0.5, 2.0, 0.0])
    assert torch.equal(oriented, torch.stack([-DELTAS[0], DELTAS[1], torch.zeros(4)]))


def test_votes_are_magnitudes_of_weights_or_one_each() -> None:
    assert signs.weigh_votes([-0.5, 2.0], is_weighted=True) == [0.5, 2.0]
    assert signs.weigh_votes([-0.5, 2.0], is_weighted=False) == [1.0, 1.0]
