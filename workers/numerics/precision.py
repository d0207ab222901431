"""Sums over models in float64: exact enough that neither the order of models nor the cut into pieces shows.

Every sum runs over the models one after the other, entry by entry. A reduction over the model axis (`x.sum(0)`) is not
used anywhere: in float32 torch orders its additions by the length of the piece, so the bits would depend on the cut.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def weighted_sum(tensors: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the sum of weights[i] · tensors[i], accumulated in float64.

    tensors: [n, *shape]; result: [*shape] float64.
    """
    total = torch.mul(tensors[0].double(), weights[0])
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total.add_(tensor, alpha=weight)
    return total


def count_true(masks: Tensor) -> Tensor:
    """Return, entry by entry, how many of the n masks hold.

    masks: [n, *shape] bool; result: [*shape] int16.
    """
    count = masks[0].to(torch.int16)
    for mask in masks[1:]:
        count.add_(mask)
    return count


def round_to_float32(tensor: Tensor) -> Tensor:
    """Return the tensor in float32, rounded once."""
    return tensor.to(torch.float32)
