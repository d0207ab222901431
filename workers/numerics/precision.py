"""Sums over models in float64: exact enough that neither the order of models nor the cut into pieces shows.

Every sum runs over the models one after the other, entry by entry. A reduction over the model axis (`x.sum(0)`) is not
used anywhere: in float32 torch orders its additions by the length of the piece, so the bits would depend on the cut.
"""

from collections.abc import Iterable, Sequence
from math import prod

import torch
from torch import Tensor

from workers.numerics import fused


def weighted_sum(tensors: Iterable[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the sum of weights[i] · tensors[i], accumulated in float64.

    tensors: [n, *shape], or n of [*shape], any floating dtype; result: [*shape] float64.
    """
    rest = iter(tensors)
    total = next(rest).to(torch.float64, copy=True)
    if weights[0] != 1.0:
        total.mul_(weights[0])
    for tensor, weight in zip(rest, weights[1:], strict=True):
        total.add_(tensor, alpha=weight)
    return total


def round_to_float32(tensor: Tensor) -> Tensor:
    """Return the tensor in float32, rounded once."""
    return tensor.to(torch.float32)


def inner_products(vectors: Tensor) -> Tensor:
    """Return the inner products of all pairs of vectors, their last axis summed.

    vectors: [n, *batch, m] float32; result: [*batch, n, n] float64. The products are exact; the second half of them is
    added to the first (as long as the largest power of two below m), then again, until one is left: the bits of an
    entry depend on the two vectors alone, not on where they stand among the others, as in a product of matrices.
    """
    n, m, batch = len(vectors), vectors.shape[-1], vectors.shape[1:-1]
    if m == 0:
        return torch.zeros(*batch, n, n, dtype=torch.float64, device=vectors.device)
    if vectors.device.type == "cpu" and fused.is_ready():
        return fused.inner_products(vectors.reshape(n, prod(batch), m)).view(*batch, n, n)
    products = torch.empty(*batch, n, n, dtype=torch.float64, device=vectors.device)
    for row in range(n):
        for column in range(row, n):
            product = sum_by_halving(vectors[row].double() * vectors[column].double())
            products[..., row, column] = products[..., column, row] = product
    return products


def sum_by_halving(products: Tensor) -> Tensor:
    """Return the sum over the last axis, m > 0, in the order of `inner_products`. products: [*batch, m]."""
    while (m := products.shape[-1]) > 1:
        half = 1 << (m - 1).bit_length() - 1
        rest = products[..., half:]
        products = products[..., :half].clone()
        products[..., : m - half] += rest
    return products[..., 0]
