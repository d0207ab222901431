"""Consensus: of a merged task vector keep what enough tasks need.

Source: Wang et al. 2024, arXiv:2405.07813, sections 4.1 (which task needs which entry) and 5 (consensus).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.numerics import unification


def keep_needed(
    merged: Tensor, deltas: Tensor, weights: Sequence[float], *, mask_threshold: float, min_tasks: int
) -> Tensor:
    """Return the merged task vector, zero where fewer than `min_tasks` tasks need the entry.

    A task needs an entry where |wᵢ τᵢ| > mask_threshold · |merged − wᵢ τᵢ|. merged: [*shape] float64;
    deltas: [n, *shape]; result: [*shape] float64.
    """
    n_tasks = torch.zeros_like(merged)
    for delta, weight in zip(deltas, weights, strict=True):
        own = delta.double().mul_(weight)
        n_tasks.add_(unification.outweighs(own, merged, mask_threshold))
    return torch.where(n_tasks >= min_tasks, merged, 0.0)
