"""Singular vectors in float64, from the Gram matrix of the smaller side: a fraction of the time and memory of an SVD.

The eigenvectors of X Xᵀ are the left singular vectors of X. The price: a Gram matrix squares the condition number, so
that rounding hides directions of less than 10⁻⁸ of the largest value. Leading directions do not suffer from it; where
all are asked for, those below 10⁻⁴ of the largest value are looked for again, in the Gram matrix of what the others
leave of X (error 10⁻¹⁶ · 10⁸, at every level).

X is only ever read in runs of columns: what a run is computed from takes no memory beside it.

A few leading directions of a large matrix are looked for in float32, in half the time, and corrected in float64.

Source: Ogita, Aishima 2018, "Iterative refinement for symmetric eigenvalue decomposition", for the correction.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.numerics import thin_products

Runs = Callable[[], Iterable[Tensor]]  # runs of columns of X, each [m, any] float64, made anew each time

GRAM_CONDITION = 1e4  # of the values that are found at once
NULL = 1e-7  # a singular value up to this fraction of the largest is noise of float32 inputs
SMALLEST = 1e-10  # a singular value up to this fraction of the largest is noise of float64
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


@dataclass(frozen=True)
class Left:
    """All left singular vectors of a matrix X but those of values that count as zero, in no order."""

    vectors: Tensor  # [m, k]
    values: Tensor  # [k]

    def power(self, exponent: float) -> Tensor:
        """Return (X Xᵀ)^(exponent / 2), [m, m].

        With −1, its product with X is the polar factor: the nearest rows that are orthonormal. Where rows depend on
        each other, those span what X spans, and no arbitrary direction.
        """
        return gram_of([self.vectors * self.values ** (exponent / 2)], self.vectors)


def gram_of(runs: Iterable[Tensor], like: Tensor, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return X Xᵀ, [m, m] in the dtype; only its lower half is computed.

    runs: of columns of X, each [m, any] in the dtype; like: any tensor of m rows on the same device.
    """
    size = len(like)
    gram = like.new_zeros(size, size, dtype=dtype)
    blocks = [slice(begin, min(size, begin + GRAM_ROWS)) for begin in range(0, size, GRAM_ROWS)]
    for run in runs:
        for block in blocks:
            gram[block, : block.stop].addmm_(run[block], run[: block.stop].mT)
    for block in blocks:
        gram[: block.start, block] = gram[block, : block.start].mT
    return gram


def find_left(gram: Tensor, rank: int) -> Tensor:
    """Return the first `rank` left singular vectors of X, [m, ≤ rank], null directions left out.

    gram: X Xᵀ, [m, m], used up.
    """
    return _drop_null(*_find_leading(gram, rank))


def find_span(gram: Tensor, rank: int) -> tuple[Tensor, bool]:
    """Return an orthonormal basis of what these vectors span, and whether it is these vectors. gram: used up."""
    span = _refine(gram, rank)
    return (_drop_null(*_find_first(gram, rank)), True) if span is None else (span, False)


def decompose_square(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues and eigenvectors of a symmetric matrix, [m], [m, m], the largest last.

    The vectors take the place of the matrix, which is used up: LAPACK holds two squares beside it, and not three.
    """
    turned, values = gram.mT, gram.new_empty(len(gram))  # LAPACK's columns lie one after the other
    torch.linalg.eigh(turned, out=(values, turned))
    return values, turned


def find_all_left(gram: Tensor, runs: Runs, *, tolerance: float = NULL) -> Left:
    """Return the left singular vectors of values above tolerance · the largest one.

    gram: X Xᵀ, [m, m] float64, used up; runs: X, only asked for where the Gram matrix is not enough.
    """
    if not len(gram):
        return Left(gram, gram.diagonal())
    values, vectors = decompose_square(gram)
    least = max(tolerance, SMALLEST) ** 2 * values[-1]
    found: list[tuple[Tensor, Tensor]] = []
    while True:
        border = torch.maximum(values[-1] / GRAM_CONDITION**2, least)
        n_small = int((values <= border).sum())
        found.append((values[n_small:].sqrt(), vectors[:, n_small:]))
        if n_small == 0 or border <= least:
            break
        rest = vectors[:, :n_small]
        values, turned = decompose_square(gram_of((rest.mT @ run for run in runs()), rest.mT))
        vectors = rest @ turned
    if len(found) > 1:
        values, vectors = torch.cat([part for part, _ in found]), torch.cat([part for _, part in found], dim=1)
    else:
        values, vectors = found[0]
    return Left(vectors, values)


def decompose(matrix: Tensor, rank: int, *, null: float = NULL) -> Singular:
    """Return the first `rank` singular triples, without those of at most `null` · the largest value.

    matrix: [m, n] float64; one of zeros has none. The right vectors are projected from the left ones (of a tall matrix,
    the left from the right): where all are kept, U σ Vᵀ is the matrix to the last digits, however small a value.
    """
    if matrix.shape[0] > matrix.shape[1]:
        turned = decompose(matrix.mT, rank, null=null)
        return Singular(turned.right.mT, turned.values, turned.left.mT)
    return decompose_runs(lambda: [matrix], matrix, rank, null=null)


def decompose_runs(runs: Runs, like: Tensor, rank: int, *, null: float = NULL) -> Singular:
    """Return the same of a matrix that is read in runs. like: as many rows and columns as it has, not more rows."""
    left = _find_leading(gram_of(runs(), like), rank)[1]
    right = left.new_empty(left.shape[1], like.shape[1])  # [k, n]
    begin = 0
    for run in runs():
        torch.mm(left.mT, run, out=right[:, begin : begin + run.shape[1]])
        begin += run.shape[1]
    values = torch.linalg.vector_norm(right, dim=1)
    kept = values > null * values[:1]
    if not bool(kept.all()):
        left, values, right = left[:, kept], values[kept], right[kept]
    return Singular(left, values, right.div_(values.unsqueeze(1)))


def find_basis(vectors: Tensor, tolerance: float) -> Tensor:
    """Return the left singular vectors of values above tolerance · the largest one, [m, k], largest first.

    vectors: [m, n] float64. The largest entry of each is positive.
    """
    return thin_products.fix_signs(decompose(vectors, min(vectors.shape), null=tolerance).left)


def _find_leading(gram: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the first `rank` eigenvalues and eigenvectors of a Gram matrix, the largest first: [k], [m, k]."""
    span = _refine(gram, rank)
    if span is None:
        return _find_first(gram, rank)
    values, vectors = _decompose_within(gram, span)
    return values.flip(0), vectors.flip(1)


def _find_first(gram: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    values, vectors = decompose_square(gram)
    begin = max(0, len(values) - rank)
    return values[begin:].flip(0), vectors[:, begin:].flip(1)


def _drop_null(values: Tensor, vectors: Tensor) -> Tensor:
    return vectors[:, values > NULL**2 * values[:1]]


def _refine(gram: Tensor, rank: int) -> Tensor | None:
    """Return an orthonormal basis of what the leading eigenvectors span; None where float32 does not come near it.

    Float32 mixes what lies next to each other on the two sides of the border: there, the directions are found anew.
    Each that is kept is then turned by what its residual, found in float64, has in those dropped, to first order.
    """
    if len(gram) < REFINED_SIDE or REFINED_SHARE * rank > len(gram) or not gram.any():
        return None
    scale, n_dropped, reach = gram.diagonal().sum(), len(gram) - rank, min(rank, len(gram) // 16)
    found, vectors = decompose_square(torch.div(gram, scale, out=torch.empty_like(gram, dtype=torch.float32)))
    if found[n_dropped] <= REFINED_NULL * found[-1]:
        return None
    values, kept, dropped = found.double().mul_(scale), vectors[:, n_dropped:].double(), vectors[:, :n_dropped]
    border = slice(n_dropped - reach, n_dropped + reach)
    values[border], turned = _decompose_within(gram, _orthonormalize(vectors[:, border].double()))
    dropped[:, n_dropped - reach :], kept[:, :reach] = turned[:, :reach], turned[:, reach:]
    residual = gram @ kept
    level = torch.linalg.vecdot(kept, residual, dim=0)
    residual = residual.addcmul_(kept, level, value=-1.0).div_(scale).float()
    gaps = (level - values[:n_dropped].unsqueeze(1)).div_(scale).float()
    turns = torch.mm(dropped.mT, residual).div_(gaps)
    if not bool(turns.abs().max() <= LARGEST_TURN):
        return None
    return _orthonormalize(kept.add_(dropped @ turns))


def _orthonormalize(vectors: Tensor) -> Tensor:
    """Return an orthonormal basis of the span of some vectors that are nearly so. vectors: [m, k]."""
    triangle = torch.linalg.cholesky(vectors.mT @ vectors)
    basis: Tensor = torch.linalg.solve_triangular(triangle, vectors.mT, upper=False)
    return basis.mT


def _decompose_within(gram: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues and eigenvectors of a Gram matrix within the span of a basis (Rayleigh, Ritz)."""
    values, turned = decompose_square(basis.mT @ gram @ basis)
    return values, basis @ turned
