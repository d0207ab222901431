"""Inner products, directions that cancel, and combinations of vectors by their shares."""

import math

import pytest
import torch

from workers.numerics import spans
from workers.numerics.programs import PRODUCT_BLOCK

RIGHT_ANGLE = [[4.0, 0.0], [0.0, 9.0]]  # of vectors of lengths 2 and 3


def test_inner_products_are_those_of_each_row() -> None:
    vectors = torch.tensor([[[1.0, 2.0], [0.0, 1.0]], [[3.0, 4.0], [5.0, 6.0]]])
    assert spans.row_products(vectors, None).tolist() == [[[5, 11], [11, 25]], [[1, 6], [6, 61]]]


def test_a_row_does_not_depend_on_those_beside_it() -> None:
    vectors = torch.randn(3, 9, 61, generator=torch.Generator().manual_seed(0))
    whole = spans.row_products(vectors, None)
    for row in range(9):
        assert torch.equal(spans.row_products(vectors[:, row : row + 1].clone(), None)[0], whole[row])


def test_cosines_are_zero_where_a_vector_is() -> None:
    assert spans.cosines([[4.0, 3.0, 0.0], [3.0, 9.0, 0.0], [0.0, 0.0, 0.0]]) == [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 0]]


def test_cosines_do_not_leave_their_range() -> None:
    assert spans.cosines([[1.0, 1.0 + 1e-15], [1.0 + 1e-15, 1.0]])[0][1] == 1.0


def test_the_mean_direction_has_length_one() -> None:
    # (1, 0) and (0, 1), so (1, 1) / √2: of the vectors 1/2 and 1/3 of that
    shares = spans.mean_direction(RIGHT_ANGLE, [1.0, 1.0])
    assert shares == pytest.approx([math.sqrt(0.5) / 2, math.sqrt(0.5) / 3])
    assert spans.length_of(shares or [], RIGHT_ANGLE) == pytest.approx(1.0)


def test_directions_that_cancel_have_no_mean() -> None:
    assert spans.mean_direction([[4.0, -6.0], [-6.0, 9.0]], [1.0, 1.0]) is None
    assert spans.mean_direction([[0.0, 0.0], [0.0, 0.0]], [1.0, 1.0]) is None


@pytest.mark.parametrize("m", [0, 3, PRODUCT_BLOCK, 2 * PRODUCT_BLOCK + 1])
def test_squared_lengths_are_summed_over_blocks(m: int) -> None:
    assert spans.squared_lengths(torch.tensor([[0.5], [2.0]]).expand(2, m)) == [m / 4, m * 4.0]


def test_shares_are_of_the_way_from_the_base() -> None:
    base, finetuned = torch.tensor([1.0]), torch.tensor([[2.0], [5.0]])
    assert spans.combine(base, finetuned, [0.5, 0.25]).tolist() == [2.5]
    assert spans.combine(None, finetuned, [0.5, 0.25]).tolist() == [2.25]


def test_rows_are_combined_by_their_own_shares() -> None:
    base = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    finetuned = torch.tensor([[[2.0, 3.0], [2.0, 3.0]], [[5.0, 5.0], [5.0, 5.0]]])
    shares = torch.tensor([[[1.0], [0.0]], [[0.0], [0.5]]], dtype=torch.float64)
    assert spans.combine_rows(base, finetuned, shares).tolist() == [[2.0, 3.0], [3.0, 3.0]]
    assert spans.combine_rows(None, finetuned, shares).tolist() == [[2.0, 3.0], [2.5, 2.5]]
