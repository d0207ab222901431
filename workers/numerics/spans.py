"""Merges that lie in the span of their vectors: inner products of all pairs, and from shares back to a tensor.

Whatever such a merge needs to know of its vectors, however long they are, is the small matrix of their inner products.
"""

from collections.abc import Sequence
from math import fsum, sqrt

import torch
from torch import Tensor

from workers.numerics import precision, task_vectors

Gram = Sequence[Sequence[float]]  # inner products of all pairs of n vectors, [n][n]

BLOCK_ELEMENTS = 1 << 12  # entries whose products are summed together, whatever the pieces are


def inner_products(vectors: Tensor) -> Tensor:
    """Return the inner products of all pairs, row by row.

    vectors: [n, rows, width]; result: [n, n, rows] float64. A row's bits do not depend on the rows beside it.
    """
    exact = vectors.double()
    n = len(exact)
    products = torch.empty(n, n, exact.shape[1], dtype=torch.float64, device=vectors.device)
    for first in range(n):
        for second in range(first + 1):
            products[first, second] = products[second, first] = (exact[first] * exact[second]).sum(-1)
    return products


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


def of_rows(finetuned: Tensor, base: Tensor | None) -> list[Gram]:
    """Return the Gram matrix of each row of the task vectors, or of the models where there is no base model.

    finetuned: [n, rows, width]; base: [rows, width].
    """
    vectors = finetuned if base is None else task_vectors.subtract(finetuned, base)
    grams: list[Gram] = inner_products(vectors).permute(2, 0, 1).tolist()
    return grams


def combine(base: Tensor | None, finetuned: Tensor, shares: Sequence[float]) -> Tensor:
    """Return base + Σ shares[i] · (finetuned[i] − base), or Σ shares[i] · finetuned[i] without a base model.

    base: [*shape]; finetuned: [n, *shape]; result: [*shape] float32, computed in float64 and rounded once.
    """
    if base is None:
        return precision.round_to_float32(precision.weighted_sum(finetuned, shares))
    return precision.round_to_float32(
        precision.weighted_sum((base, *finetuned), (1.0 - fsum(shares), *shares)),
    )


def combine_rows(base: Tensor | None, finetuned: Tensor, shares: Sequence[Sequence[float]]) -> Tensor:
    """Return `combine` of each row with its own shares.

    base: [rows, width]; finetuned: [n, rows, width]; shares: [rows][n]; result: [rows, width] float32.
    """
    columns = torch.tensor(shares, dtype=torch.float64, device=finetuned.device).view(-1, len(finetuned), 1)
    rest = [1.0 - fsum(row) for row in shares]
    total = torch.zeros_like(finetuned[0], dtype=torch.float64)
    if base is not None:
        total += base.double() * torch.tensor(rest, dtype=torch.float64, device=base.device).view(-1, 1)
    for model, vector in enumerate(finetuned):
        total += vector.double() * columns[:, model]
    return precision.round_to_float32(total)
