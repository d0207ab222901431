"""Singular vectors and polar factors in float64: from the smaller Gram matrix where that is as good, by SVD elsewhere.

The eigenvectors of X Xᵀ are the left singular vectors of X, found several times faster than by an SVD. The price: a
Gram matrix squares the condition number. Leading directions do not suffer from it; a polar factor does, because it
gives every direction the same weight, and is taken from an SVD where the condition exceeds 10⁴ (error 10⁻¹⁶ · 10⁸).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

GRAM_CONDITION = 1e4  # up to here a polar factor is taken from the Gram matrix
NULL = 1e-7  # a singular value up to this fraction of the largest is noise of float32 inputs


@dataclass(frozen=True)
class Singular:
    """Singular triples, largest value first."""

    left: Tensor  # [m, k]
    values: Tensor  # [k]
    right: Tensor  # [k, n]


def find_left(gram: Tensor, rank: int) -> Tensor:
    """Return the first `rank` left singular vectors of X from gram = X Xᵀ, [m, ≤ rank], null directions left out."""
    values, vectors = _eigh(gram)
    n_kept = min(rank, int((values > NULL**2 * values[-1]).sum()))
    return vectors[:, len(values) - n_kept :].flip(1)


def decompose(matrix: Tensor, rank: int) -> Singular:
    """Return the first `rank` singular triples of a matrix that is not zero, null directions left out.

    matrix: [m, n] float64.
    """
    if matrix.shape[0] > matrix.shape[1]:
        turned = decompose(matrix.mT, rank)
        return Singular(turned.right.mT, turned.values, turned.left.mT)
    left = find_left(matrix @ matrix.mT, rank)
    right = left.mT @ matrix
    values = torch.linalg.vector_norm(right, dim=1)
    return Singular(left, values, right / values.unsqueeze(1))


def decompose_exactly(matrix: Tensor) -> Singular:
    """Return all singular triples by SVD; one that does not converge is tried again on the triangle of a QR.

    matrix: [m, n] float64.
    """
    try:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # public all the same
        # the divide-and-conquer driver fails on some inputs: give it others, of the same singular values
        basis, triangle = torch.linalg.qr(matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT)
        right, values, left = torch.linalg.svd(triangle.mT, full_matrices=False)
        left, right = basis @ left.mT, right.mT
        if matrix.shape[0] < matrix.shape[1]:
            left, right = right.mT, left.mT
    return Singular(left, values, right)


def polar_factor(matrix: Tensor, *, tolerance: float) -> tuple[Tensor, Tensor]:
    """Return U Vᵀ of a matrix that is not zero, and its singular values.

    matrix: [m, n] float64. Directions whose singular value is at most tolerance · the largest are left out of both.
    """
    is_wide = matrix.shape[0] <= matrix.shape[1]
    values, vectors = _eigh(matrix @ matrix.mT if is_wide else matrix.mT @ matrix)
    if _is_benign(values):
        root = (vectors / values.sqrt()) @ vectors.mT
        return root @ matrix if is_wide else matrix @ root, values.sqrt().flip(0)
    found = decompose_exactly(matrix)
    kept = found.values > tolerance * found.values[0]
    return found.left[:, kept] @ found.right[kept], found.values[kept]


def inverse_root(gram: Tensor, rows: Callable[[], Tensor]) -> Tensor:
    """Return R = (X Xᵀ)^(−1/2), so that R X is the polar factor of X: the nearest rows that are orthonormal.

    gram: X Xᵀ, [k, k] float64; rows: X, [k, n], only asked for where the Gram matrix is not enough. Where rows depend
    on each other, the root is the pseudo-inverse one: R X has the span of X, and no arbitrary direction.
    """
    values, vectors = _eigh(gram)
    if _is_benign(values):
        return (vectors / values.sqrt()) @ vectors.mT
    found = decompose_exactly(rows())
    kept = found.values > NULL * found.values[0]
    left = found.left[:, kept]
    return (left / found.values[kept]) @ left.mT


def _eigh(gram: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(gram)
    return values, vectors


def _is_benign(eigenvalues: Tensor) -> bool:
    return bool(eigenvalues[0] * GRAM_CONDITION**2 >= eigenvalues[-1])
