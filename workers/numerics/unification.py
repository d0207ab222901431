"""One vector for all tasks, the mask through which each task sees it, and the scale that restores what the mask loses.

Source: Huang et al. 2024, arXiv:2405.17461, section 3.2 (elect, mask, rescale); Wang et al. 2024, arXiv:2405.07813,
section 4.1 (mask of what a task needs of a sum).
"""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.numerics import exact_sums, precision, signs, task_vectors
from workers.patches import Measured

Sums = NDArray[np.int64]  # [2, 256]: of |τ| and of the unified entries that its mask keeps; see exact_sums.py


def elect(base: Tensor, finetuned: Tensor) -> Tensor:
    """Return the model's entry that lies farthest from the base's on the side of Σ τ; the base's where that is 0.

    base: [*shape]; finetuned: [n, *shape]; result: [*shape] float32. That is θ₀ + γ ⊙ max |τ| over the task vectors
    whose sign is γ = sign Σ τ, without rounding.
    """
    elected = signs.elect(task_vectors.subtract(finetuned, base), [1.0] * len(finetuned))
    farthest = base * elected
    for model in finetuned:
        turned = model * elected
        farthest = torch.where(turned > farthest, turned, farthest)
    return torch.where(elected != 0, farthest * elected, base)


def agrees(delta: Tensor, unified: Tensor) -> Tensor:
    """Return where a task vector points the way of the unified one, bool. Both [*shape]; zero agrees with nothing."""
    return torch.logical_and(delta > 0, unified > 0).logical_or_(torch.logical_and(delta < 0, unified < 0))


def measure(delta: Tensor, unified: Tensor, is_kept: Tensor) -> Sums:
    """Return the exact sums of |τ| and of what its mask keeps of the unified vector. delta, unified: float32."""
    return np.stack([exact_sums.sum_magnitudes(delta), exact_sums.sum_magnitudes(unified * is_kept)])


def restoring_scales(tensors: Sequence[Measured], *, by_tensor: bool) -> tuple[float, ...]:
    """Return Σ|τᵢ| / Σ|Mᵢ ⊙ τ_unified| of each model: 1 where nothing is lost, 0 where the mask keeps nothing.

    by_tensor: sums the means of the tensors, so that small ones count as much as large ones.
    """
    n_models = len(tensors[0].measures) if tensors else 0
    totals = [[Fraction(0), Fraction(0)] for _ in range(n_models)]
    for tensor in tensors:
        share = Fraction(1, tensor.n_elements) if by_tensor else Fraction(1)
        for total, sums in zip(totals, tensor.measures, strict=True):
            for index in (0, 1):
                total[index] += share * exact_sums.to_fraction(sums[index])
    return tuple(float(whole / kept) if kept else 0.0 for whole, kept in totals)


def subtract(finetuned: Tensor, base: Tensor) -> Tensor:
    """Return task vectors in float64, where they are exact unless numbers lie far apart. result: as finetuned."""
    return finetuned.to(torch.float64) - base.to(torch.float64)


def total(deltas: Tensor) -> Tensor:
    """Return the sum of the task vectors. deltas: [n, *shape]; result: [*shape] float64."""
    return precision.weighted_sum(deltas, [1.0] * len(deltas))


def outweighs(delta: Tensor, summed: Tensor, threshold: float) -> Tensor:
    """Return where |τ| > threshold · |Σ − τ|: what the others would add is smaller, bool.

    delta, summed: [*shape] float64; an entry of zero never does.
    """
    return delta.abs() > (summed - delta).abs().mul_(threshold)
