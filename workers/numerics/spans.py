"""Merges that lie in the span of their vectors: inner products of all pairs, and from shares back to a tensor.

Whatever such a merge needs to know of its vectors, however long they are, is the small matrix of their inner products.
"""

from collections.abc import Sequence
from math import fsum, sqrt

import torch
from torch import Tensor

from workers.fusion import FusedMerge
from workers.numerics import fused, precision, task_vectors
from workers.numerics.programs import PRODUCT_BLOCK

Gram = Sequence[Sequence[float]]  # inner products of all pairs of n vectors, [n][n]

BALANCED = 1e-6  # a mean of directions shorter than this is rounding: the directions cancel


def squared_lengths(vectors: Tensor) -> list[float]:
    """Return the sums of squares, in float64, whatever the number of threads. vectors: [n, m] float32."""
    n, m = vectors.shape
    n_whole = m // PRODUCT_BLOCK * PRODUCT_BLOCK
    parts = (vectors[:, :n_whole].reshape(1, -1, PRODUCT_BLOCK), vectors[:, n_whole:].unsqueeze(0))
    squares = torch.cat([precision.inner_products(part).view(n, -1) for part in parts], dim=1)
    return [fsum(row) for row in squares.tolist()]


def norms(gram: Gram) -> list[float]:
    """Return the lengths of the vectors."""
    return [sqrt(row[index]) for index, row in enumerate(gram)]


def cosines(gram: Gram) -> list[list[float]]:
    """Return the cosines of all pairs, [n][n] in [-1, 1]; 0 wherever a vector is exactly zero."""
    lengths = norms(gram)
    return [
        [
            max(-1.0, min(1.0, product / (one * other))) if one > 0 and other > 0 else 0.0
            for product, other in zip(row, lengths, strict=True)
        ]
        for row, one in zip(gram, lengths, strict=True)
    ]


def row_cosines(grams: Tensor) -> Tensor:
    """Return `cosines` of many. grams: [*batch, n, n] float64; result: the same shape."""
    lengths = grams.diagonal(dim1=-2, dim2=-1).sqrt()
    sizes = lengths.unsqueeze(-1) * lengths.unsqueeze(-2)
    return torch.where(sizes > 0, (grams / sizes).clamp(-1.0, 1.0), 0.0)


def mean_direction(gram: Gram, weights: Sequence[float]) -> list[float] | None:
    """Return the weighted mean of the vectors' directions, scaled to length 1, as a share of each vector.

    A vector of zeros has no direction and takes no part. None where the directions balance and have no mean.
    """
    lengths = norms(gram)
    parts = [weight / length if length > 0 else 0.0 for weight, length in zip(weights, lengths, strict=True)]
    size = fsum(abs(part) * length for part, length in zip(parts, lengths, strict=True))
    length = length_of(parts, gram)
    return None if length <= BALANCED * size else [part / length for part in parts]


def length_of(shares: Sequence[float], gram: Gram) -> float:
    """Return the length of Σ shares[i] · vectors[i]."""
    products = (one * other * gram[i][j] for i, one in enumerate(shares) for j, other in enumerate(shares))
    return sqrt(max(0.0, fsum(products)))


def row_products(finetuned: Tensor, base: Tensor | None) -> Tensor:
    """Return the inner products, row by row, of the task vectors, or of the models where there is no base model.

    finetuned: [n, rows, width]; base: [rows, width]; result: [rows, n, n] float64; no row's bits depend on others.
    """
    return precision.inner_products(finetuned if base is None else task_vectors.subtract(finetuned, base))


def combine(base: Tensor | None, finetuned: Tensor, shares: Sequence[float]) -> Tensor:
    """Return base + Σ shares[i] · (finetuned[i] − base), or Σ shares[i] · finetuned[i] without a base model.

    base: [*shape]; finetuned: [n, *shape]; result: [*shape] float32, computed in float64 and rounded once.
    """
    if base is None:
        return precision.round_to_float32(precision.weighted_sum(finetuned, shares))
    total = precision.weighted_sum(finetuned, shares)
    return precision.round_to_float32(precision.weighted_sum((base, total), (1.0 - fsum(shares), 1.0)))


def fuse(shares: Sequence[float]) -> FusedMerge:
    """Return what `combine` computes, fused."""
    return FusedMerge(tuple(shares), base_share=1.0 - fsum(shares))


def combine_rows(base: Tensor | None, finetuned: Tensor, shares: Tensor) -> Tensor:
    """Return `combine` with shares of each row, or of each entry.

    base: [rows, width]; finetuned: [n, rows, width]; shares: [n, rows, 1 or width] float64; result: [rows, width].
    """
    if shares.shape[-1] == 1 and fused.takes(finetuned):
        return fused.combine_rows(base, finetuned, shares.squeeze(-1))
    total = torch.zeros_like(finetuned[0], dtype=torch.float64)
    rest = torch.ones_like(shares[0])
    for share, vector in zip(shares, finetuned, strict=True):
        total += share * vector.double()
        rest -= share
    return precision.round_to_float32(total if base is None else total.add_(rest * base.double()))
