"""Singular vectors and polar factors in float64: from the smaller Gram matrix where that is as good, by SVD elsewhere.

The eigenvectors of X Xᵀ are the left singular vectors of X, found several times faster than by an SVD. The price: a
Gram matrix squares the condition number. Leading directions do not suffer from it; a polar factor does, because it
gives every direction the same weight, and is taken from an SVD where the condition exceeds 10⁴ (error 10⁻¹⁶ · 10⁸).

A few leading directions of a large matrix are looked for in float32, in half the time, and corrected in float64.

Source: Ogita, Aishima 2018, "Iterative refinement for symmetric eigenvalue decomposition", for the correction.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

GRAM_CONDITION = 1e4  # up to here a polar factor is taken from the Gram matrix
NULL = 1e-7  # a singular value up to this fraction of the largest is noise of float32 inputs
GRAM_ROWS = 96  # of a Gram matrix that are computed at a time, up to the diagonal
REFINED_SIDE = 256  # from here on leading directions are first looked for in float32,
REFINED_SHARE = 4  # if they are at most a quarter of all,
REFINED_NULL = 1e-5  # and their eigenvalues exceed this fraction of the largest
LARGEST_TURN = 2e-3  # radians that a direction may be corrected by; what is left is of the order of its square


@dataclass(frozen=True)
class Singular:
    """Singular triples, largest value first."""

    left: Tensor  # [m, k]
    values: Tensor  # [k]
    right: Tensor  # [k, n]


def add_gram(gram: Tensor, rows: Tensor) -> Tensor:
    """Add X Xᵀ to the lower triangle of a Gram matrix, which is all that is read of one here; return it.

    gram: [m, m]; rows: X, [m, n], of the same dtype.
    """
    for begin in range(0, len(rows), GRAM_ROWS):
        end = min(len(rows), begin + GRAM_ROWS)
        gram[begin:end, :end].addmm_(rows[begin:end], rows[:end].mT)
    return gram


def gram_of(rows: Tensor) -> Tensor:
    """Return X Xᵀ, whole. rows: X, [m, n]."""
    return mirror(add_gram(rows.new_zeros(len(rows), len(rows)), rows))


def mirror(gram: Tensor) -> Tensor:
    """Return a symmetric matrix whose lower triangle is given."""
    return gram.tril().add_(gram.tril(-1).mT)


def find_left(gram: Tensor, rank: int) -> Tensor:
    """Return the first `rank` left singular vectors of X, [m, ≤ rank], null directions left out. gram: X Xᵀ, [m, m]."""
    if len(gram) >= REFINED_SIDE and REFINED_SHARE * rank <= len(gram):
        refined = _find_refined(gram, rank)
        if refined is not None:
            return refined.flip(1)
    values, vectors = torch.linalg.eigh(gram)
    n_kept = min(rank, int((values > NULL**2 * values[-1]).sum()))
    return vectors[:, len(values) - n_kept :].flip(1)


def decompose(matrix: Tensor, rank: int) -> Singular:
    """Return the first `rank` singular triples of a matrix that is not zero, null directions left out.

    matrix: [m, n] float64.
    """
    if matrix.shape[0] > matrix.shape[1]:
        turned = decompose(matrix.mT, rank)
        return Singular(turned.right.mT, turned.values, turned.left.mT)
    left = find_left(gram_of(matrix), rank)
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
    values, vectors = torch.linalg.eigh(gram_of(matrix if is_wide else matrix.mT))
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
    values, vectors = torch.linalg.eigh(gram)
    if _is_benign(values):
        return (vectors / values.sqrt()) @ vectors.mT
    found = decompose_exactly(rows())
    kept = found.values > NULL * found.values[0]
    left = found.left[:, kept]
    return (left / found.values[kept]) @ left.mT


def _find_refined(gram: Tensor, rank: int) -> Tensor | None:
    """Return the leading eigenvectors, the largest last; None where float32 does not come near enough to them.

    Float32 mixes what lies next to each other on the two sides of the border: there, the directions are found anew.
    Each that is kept is then turned by what its residual has in those dropped, to first order.
    """
    scale = gram.diagonal().sum()
    found, vectors = torch.linalg.eigh(gram.div(scale).float())
    n_dropped, reach = len(gram) - rank, min(rank, len(gram) // 16)
    if found[n_dropped] <= REFINED_NULL * found[-1]:
        return None
    values, basis = found.double().mul_(scale), vectors.double()
    border = slice(n_dropped - reach, n_dropped + reach)
    values[border], basis[:, border] = _find_within(gram, basis[:, border])
    dropped, kept = basis[:, :n_dropped], basis[:, n_dropped:]
    image = gram @ kept
    level = (kept * image).sum(dim=0)
    turns = (dropped.mT @ (image - kept * level)).div_(level - values[:n_dropped].unsqueeze(1))
    if not bool(turns.abs().max() <= LARGEST_TURN):
        return None
    return _find_within(gram, torch.addmm(kept, dropped, turns))[1]


def _find_within(gram: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues and eigenvectors of a Gram matrix as the span of some vectors has them (Rayleigh, Ritz)."""
    triangle = torch.linalg.cholesky(vectors.mT @ vectors)
    basis = torch.linalg.solve_triangular(triangle, vectors.mT, upper=False)  # [k, m], orthonormal rows
    values, turned = torch.linalg.eigh(basis @ gram @ basis.mT)
    return values, basis.mT @ turned


def _is_benign(eigenvalues: Tensor) -> bool:
    return bool(eigenvalues[0] * GRAM_CONDITION**2 >= eigenvalues[-1])
