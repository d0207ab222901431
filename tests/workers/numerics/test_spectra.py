"""Singular vectors and polar factors: Gram matrix against SVD, null directions, and an SVD that does not converge."""

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


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (7, 7)])
@pytest.mark.parametrize("condition", [1e2, 1e3, 1e5, 1e6])
def test_a_polar_factor_is_orthonormal_whatever_the_condition(shape: tuple[int, int], condition: float) -> None:
    matrix = _draw(*shape, condition=condition)
    factor, values = spectra.polar_factor(matrix, tolerance=0.0)
    small = factor if shape[0] <= shape[1] else factor.mT
    identity = torch.eye(len(small), dtype=torch.float64)
    torch.testing.assert_close(small @ small.mT, identity, rtol=0, atol=1e-7)
    torch.testing.assert_close(values, torch.linalg.svdvals(matrix), rtol=1e-6, atol=1e-12)


def test_a_polar_factor_leaves_out_what_is_below_the_tolerance() -> None:
    factor, values = spectra.polar_factor(_draw(5, 8, condition=1e8), tolerance=1e-3)  # 1, 1e-2, 1e-4, …
    assert len(values) == 2
    torch.testing.assert_close(torch.linalg.svdvals(factor)[:3], torch.tensor([1.0, 1.0, 0.0]).double())


@pytest.mark.parametrize("condition", [1e2, 1e6])
def test_the_inverse_root_makes_rows_orthonormal(condition: float) -> None:
    rows = _draw(5, 9, condition=condition)
    orthonormal = spectra.inverse_root(rows @ rows.mT, lambda: rows) @ rows
    torch.testing.assert_close(orthonormal @ orthonormal.mT, torch.eye(5).double(), rtol=0, atol=1e-8)


def test_the_inverse_root_of_dependent_rows_keeps_their_span() -> None:
    rows = _draw(2, 9, condition=3.0)
    twice = torch.cat([rows, rows])
    orthonormal = spectra.inverse_root(twice @ twice.mT, lambda: twice) @ twice
    span = rows.mT @ torch.linalg.pinv(rows.mT)
    torch.testing.assert_close(orthonormal.mT @ orthonormal, span, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (7, 7)])
def test_an_svd_that_does_not_converge_is_tried_again(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = _draw(*shape, condition=1e3)
    expected = torch.linalg.svdvals(matrix)
    svd, calls = torch.linalg.svd, []

    def fail_once(*arguments: Tensor, full_matrices: bool) -> tuple[Tensor, Tensor, Tensor]:
        calls.append(arguments)
        if len(calls) == 1:
            raise torch.linalg.LinAlgError("did not converge")  # type: ignore[attr-defined]
        left, values, right = svd(*arguments, full_matrices=full_matrices)
        return left, values, right

    monkeypatch.setattr(torch.linalg, "svd", fail_once)
    found = spectra.decompose_exactly(matrix)
    torch.testing.assert_close(found.values, expected)
    torch.testing.assert_close(found.left * found.values @ found.right, matrix)
