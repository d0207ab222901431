"""Singular vectors and polar factors: Gram matrices against an SVD, null directions, and what is read in runs."""

import pytest
import torch
from torch import Tensor

from workers.numerics import spectra


def _draw(rows: int, columns: int, *, condition: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    smaller = min(rows, columns)
    left = torch.linalg.qr(torch.randn(rows, smaller, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(columns, smaller, generator=generator, dtype=torch.float64)).Q
    values = torch.logspace(0, -torch.tensor(condition).log10().item(), smaller, dtype=torch.float64)
    matrix: Tensor = left * values @ right.T
    return matrix


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (7, 7)])
def test_leading_triples_are_those_of_an_svd(shape: tuple[int, int]) -> None:
    matrix = _draw(*shape, condition=1e3)
    found = spectra.decompose(matrix, 4)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    torch.testing.assert_close(found.values, values[:4])
    torch.testing.assert_close(found.left * found.values @ found.right, left[:, :4] * values[:4] @ right[:4])


def test_null_directions_are_left_out() -> None:
    matrix = _draw(6, 10, condition=10.0)[:, :3] @ torch.ones(3, 10, dtype=torch.float64)
    assert spectra.decompose(matrix, 6).values.shape == (1,)


def _find_all(matrix: Tensor, tolerance: float = spectra.NULL) -> spectra.Left:
    return spectra.find_all_left(matrix @ matrix.mT, lambda: torch.split(matrix, 3, dim=1), tolerance=tolerance)


@pytest.mark.parametrize("shape", [(6, 10), (7, 7)])
@pytest.mark.parametrize("condition", [1e2, 1e3, 1e5, 1e6, 1e8])
def test_a_polar_factor_is_orthonormal_whatever_the_condition(shape: tuple[int, int], condition: float) -> None:
    matrix = _draw(*shape, condition=condition)
    found = _find_all(matrix, tolerance=0.0)
    factor = found.power(-1.0) @ matrix
    error = max(1e-8, 1e-13 * condition)  # of one Gram matrix; of what a small direction is computed from
    torch.testing.assert_close(factor @ factor.mT, torch.eye(len(matrix)).double(), rtol=0, atol=error)
    values = found.values.sort(descending=True).values
    torch.testing.assert_close(values, torch.linalg.svdvals(matrix), rtol=error, atol=0)


@pytest.mark.parametrize("condition", [1e2, 1e8])
def test_a_root_of_the_gram_matrix_is_the_symmetric_one(condition: float) -> None:
    matrix = _draw(5, 9, condition=condition)
    root = _find_all(matrix, tolerance=0.0).power(1.0)
    torch.testing.assert_close(root @ root, matrix @ matrix.mT, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("tolerance", "n"), [(1e-1, 1), (1e-3, 2), (1e-5, 3), (1e-7, 4), (0.0, 5)])
def test_what_is_below_the_tolerance_is_left_out(tolerance: float, n: int) -> None:
    found = _find_all(_draw(5, 8, condition=1e8), tolerance)  # 1, 1e-2, 1e-4, 1e-6, 1e-8
    assert len(found.values) == n
    torch.testing.assert_close(found.vectors.mT @ found.vectors, torch.eye(n).double(), rtol=0, atol=1e-12)


def test_rows_that_depend_on_each_other_keep_their_span() -> None:
    rows = _draw(2, 9, condition=3.0)
    twice = torch.cat([rows, rows])
    orthonormal = _find_all(twice).power(-1.0) @ twice
    span = rows.mT @ torch.linalg.pinv(rows.mT)
    torch.testing.assert_close(orthonormal.mT @ orthonormal, span, rtol=0, atol=1e-10)


def test_small_directions_are_read_for_only_where_there_are_some() -> None:
    matrix = _draw(5, 9, condition=1e3)

    def refuse() -> list[Tensor]:
        raise AssertionError("read again")

    assert len(spectra.find_all_left(matrix @ matrix.mT, refuse).values) == 5


def test_a_matrix_in_runs_is_decomposed_like_a_whole_one() -> None:
    matrix = _draw(6, 10, condition=1e3)
    whole, runs = spectra.decompose(matrix, 4), spectra.decompose_runs(lambda: torch.split(matrix, 3, dim=1), matrix, 4)
    torch.testing.assert_close(runs.left * runs.values @ runs.right, whole.left * whole.values @ whole.right)


def _draw_spectrum(values: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    vectors = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64)).Q
    return torch.matmul(vectors * values, vectors.mT)


@pytest.mark.parametrize("decay", [0.0, -0.7, -1.4])  # flat but for a slope, as task vectors are, steep
def test_directions_found_in_float32_are_those_of_float64(decay: float) -> None:
    n, rank = 256, 48
    order = torch.arange(1, n + 1, dtype=torch.float64)
    gram = _draw_spectrum(order.pow(decay) * (1.0 - order / (2 * n)))
    values, vectors = torch.linalg.eigh(gram)
    span = spectra._refine(gram, rank)
    assert span is not None
    outside = vectors[:, :-rank].mT @ span  # what the kept directions have in those dropped
    assert outside.abs().max() < 4e-6
    torch.testing.assert_close(span.mT @ span, torch.eye(rank).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(spectra._find_leading(gram, rank)[0], values[-rank:].flip(0), rtol=1e-10, atol=0)


def test_float32_is_not_trusted_with_what_it_cannot_tell_apart() -> None:
    n, rank = 256, 48
    small = _draw_spectrum(torch.logspace(0, -40, n, dtype=torch.float64))  # 4e-8 of the largest at the border
    assert spectra._refine(small, rank) is None
    low = _draw_spectrum(torch.where(torch.arange(n) < 10, 1.0, 0.0).double())
    assert spectra._refine(low, rank) is None
    assert spectra.find_left(low, rank).shape == (n, 10)


@pytest.mark.parametrize("rank", [48, 200])
def test_a_span_is_that_of_the_vectors(rank: int) -> None:
    gram = _draw_spectrum(torch.arange(1, 257, dtype=torch.float64).pow(-0.7))
    found = spectra.find_span(gram.clone(), rank)
    vectors = spectra.find_left(gram.clone(), rank)
    assert found[1] == (rank == 200)  # of so many float32 is not asked
    torch.testing.assert_close(found[0] @ found[0].mT, vectors @ vectors.mT, rtol=0, atol=1e-12)


def test_vectors_take_the_place_of_the_matrix_they_are_of() -> None:
    matrix = _draw_spectrum(torch.tensor([3.0, 2.0, 1.0]).double())
    gram = matrix.clone()
    values, vectors = spectra.decompose_square(gram)
    assert vectors.data_ptr() == gram.data_ptr()
    torch.testing.assert_close(values, torch.tensor([1.0, 2.0, 3.0]).double())
    torch.testing.assert_close(vectors * values @ vectors.mT, matrix)


def test_equal_directions_at_the_border_are_told_apart_somehow_and_always_the_same_way() -> None:
    gram = _draw_spectrum(torch.cat([torch.full((40,), 2.0), torch.full((216,), 1.0)]).double())
    first, again = spectra.find_left(gram.clone(), 48), spectra.find_left(gram.clone(), 48)
    assert torch.equal(first, again)
    torch.testing.assert_close((first.mT @ gram @ first).diagonal().sum(), torch.tensor(88.0).double())


def test_a_gram_matrix_is_summed_over_runs_of_columns() -> None:
    rows = _draw(200, 300, condition=10.0)
    gram = spectra.gram_of((rows[:, begin : begin + 70] for begin in range(0, 300, 70)), rows)
    torch.testing.assert_close(gram, rows @ rows.mT)
    assert torch.equal(gram, gram.mT)


@pytest.mark.parametrize("rows", [3, 256])
def test_a_matrix_of_zeros_has_no_directions(rows: int) -> None:
    found = spectra.decompose(torch.zeros(rows, 300, dtype=torch.float64), 2)
    assert (found.left.shape, found.values.shape, found.right.shape) == ((rows, 0), (0,), (0, 300))
    assert spectra.find_basis(torch.zeros(4, 0, dtype=torch.float64), 1e-5).shape == (4, 0)
    assert _find_all(torch.zeros(rows, 300, dtype=torch.float64)).vectors.shape == (rows, 0)
    assert _find_all(torch.zeros(0, 300, dtype=torch.float64)).power(-1.0).shape == (0, 0)
