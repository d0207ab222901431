"""Consensus: of a merged task vector keep what enough tasks need.

Source: Wang et al. 2024, arXiv:2405.07813, sections 4.1 (which task needs which entry) and 5 (consensus).
"""

from collections.abc import Sequence
from typing import Protocol, Self

import torch
from torch import Tensor

from workers.fusion import Needed
from workers.numerics import unification


class Masking(Protocol):
    """Parameters with the threshold of masks, of which models may have their own."""

    @property
    def mask_threshold(self) -> float:
        """How much larger than what the others add an entry must be."""

    def of(self, model: int) -> Self:
        """Return a model's own."""


def thresholds_of(parameters: Masking, n_models: int) -> tuple[float, ...]:
    """Return the mask threshold of each model."""
    return tuple(parameters.of(model).mask_threshold for model in range(n_models))


def need(parameters: Masking, n_models: int, min_tasks: int) -> Needed | None:
    """Return what `keep_needed` computes, fused; None where thresholds differ."""
    thresholds = thresholds_of(parameters, n_models)
    return Needed(thresholds[0], min_tasks) if len(set(thresholds)) == 1 else None


def keep_needed(
    merged: Tensor, deltas: Tensor, weights: Sequence[float], *, thresholds: Sequence[float], min_tasks: int
) -> Tensor:
    """Return the merged task vector, zero where fewer than `min_tasks` tasks need the entry.

    A task needs an entry where |wᵢ τᵢ| > λᵢ · |merged − wᵢ τᵢ| with its threshold λᵢ. merged: [*shape] float64;
    deltas: [n, *shape]; result: [*shape] float64.
    """
    n_tasks = torch.zeros_like(merged)
    for delta, weight, threshold in zip(deltas, weights, thresholds, strict=True):
        own = delta.double().mul_(weight)
        n_tasks.add_(unification.outweighs(own, merged, threshold))
    return torch.where(n_tasks >= min_tasks, merged, 0.0)
