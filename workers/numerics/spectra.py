"""Singular vectors and polar factors in float64: from the smaller Gram matrix where that is as good, by SVD elsewhere.

The eigenvectors of X Xᵀ are the left singular vectors of X, found several times faster than by an SVD. The price: a
Gram matrix squares the condition number. Leading directions do not suffer from it; a polar factor does, because it
gives every direction the same weight, and is taken from an SVD where the condition exceeds 10⁴ (error 10⁻¹⁶ · 10⁸).

A few leading directions of a large matrix are looked for in float32, in half the time, and corrected in float64.

Source: Ogita, Aishima 2018, "Iterative refinement for symmetric eigenvalue decomposition", for the correction.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.numerics import thin_products

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


def gram_of(runs: Iterable[Tensor], like: Tensor) -> Tensor:
    """Return X Xᵀ, [m, m] float64; only its lower half is computed.

    runs: of columns of X, each [m, any] float64; like: any tensor of m rows on the same device.
    """
    size = len(like)
    gram = like.new_zeros(size, size, dtype=torch.float64)
    blocks = [slice(begin, min(size, begin + GRAM_ROWS)) for begin in range(0, size, GRAM_ROWS)]
    for run in runs:
        for block in blocks:
            gram[block, : block.stop].addmm_(run[block], run[: block.stop].mT)
    for block in blocks:
        gram[: block.start, block] = gram[block, : block.start].mT
    return gram


def find_left(gram: Tensor, rank: int) -> Tensor:
    """Return the first `rank` left singular vectors of X, [m, ≤ rank], null directions left out. gram: X Xᵀ, [m, m]."""
    values, vectors = _find_leading(gram, rank)
    return vectors[:, values > NULL**2 * values[:1]]


def decompose(matrix: Tensor, rank: int, *, null: float = NULL) -> Singular:
    """Return the first `rank` singular triples, without those of at most `null` · the largest value.

    matrix: [m, n] float64; one of zeros has none. The right vectors are projected from the left ones (of a tall matrix,
    the left from the right): where all are kept, U σ Vᵀ is the matrix to the last digits, however small a value.
    """
    if matrix.shape[0] > matrix.shape[1]:
        turned = decompose(matrix.mT, rank, null=null)
        return Singular(turned.right.mT, turned.values, turned.left.mT)
    left = _find_leading(gram_of([matrix], matrix), rank)[1]
    right = left.mT @ matrix
    values = torch.linalg.vector_norm(right, dim=1)
    kept = values > null * values[:1]
    left, values, right = left[:, kept], values[kept], right[kept]
    return Singular(left, values, right / values.unsqueeze(1))


def find_basis(vectors: Tensor, tolerance: float) -> Tensor:
    """Return the left singular vectors of values above tolerance · the largest one, [m, k], largest first.

    vectors: [m, n] float64. The largest entry of each is positive.
    """
    return thin_products.fix_signs(decompose(vectors, min(vectors.shape), null=tolerance).left)


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
    wide = matrix if is_wide else matrix.mT
    values, vectors = torch.linalg.eigh(gram_of([wide], wide))
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


def _find_leading(gram: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the first `rank` eigenvalues and eigenvectors of a Gram matrix, the largest first: [k], [m, k]."""
    found = None
    if len(gram) >= REFINED_SIDE and REFINED_SHARE * rank <= len(gram) and gram.any():
        found = _find_refined(gram, rank)
    values, vectors = torch.linalg.eigh(gram) if found is None else found
    begin = max(0, len(values) - rank)
    return values[begin:].flip(0), vectors[:, begin:].flip(1)


def _find_refined(gram: Tensor, rank: int) -> tuple[Tensor, Tensor] | None:
    """Return the leading eigenvalues and eigenvectors, the largest last; None where float32 does not come near them.

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
    return _find_within(gram, torch.addmm(kept, dropped, turns))


def _find_within(gram: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues and eigenvectors of a Gram matrix within the span of some vectors (Rayleigh, Ritz)."""
    triangle = torch.linalg.cholesky(vectors.mT @ vectors)
    basis = torch.linalg.solve_triangular(triangle, vectors.mT, upper=False)  # [k, m], orthonormal rows
    values, turned = torch.linalg.eigh(basis @ gram @ basis.mT)
    return values, basis.mT @ turned


def _is_benign(eigenvalues: Tensor) -> bool:
    return bool(eigenvalues[0] * GRAM_CONDITION**2 >= eigenvalues[-1])
