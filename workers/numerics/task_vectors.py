"""Task vectors, what fine-tuning added to the base model: τᵢ = θᵢ − θ₀.

Source: Ilharco et al. 2022, arXiv:2212.04089, section 2.
"""

from collections.abc import Sequence

from torch import Tensor

from workers.fusion import FusedMerge
from workers.numerics import fused, precision


def subtract(finetuned: Tensor, base: Tensor) -> Tensor:
    """Return the task vectors.

    finetuned: [n, *shape]; base: [*shape]; result: [n, *shape] in the same dtype.
    """
    return finetuned - base


def add(base: Tensor, delta: Tensor, *, scaling_coefficient: float) -> Tensor:
    """Return base + scaling_coefficient · delta, computed in float64 and rounded once.

    base, delta: [*shape] in any floating dtype; result: [*shape] float32. A coefficient of 0 gives the base.
    """
    return precision.round_to_float32(precision.weighted_sum((base, delta), (1.0, scaling_coefficient)))


def add_weighted(base: Tensor, deltas: Tensor, weights: Sequence[float], *, scaling_coefficient: float) -> Tensor:
    """Return base + scaling_coefficient · Σ weights[i] · deltas[i], computed in float64 and rounded once.

    base: [*shape]; deltas: [n, *shape]; result: [*shape] float32.
    """
    if fused.takes(base):
        program = FusedMerge(tuple(weights), scaling=scaling_coefficient, base_share=1.0)
        merged = fused.join(base, deltas, program)
        if merged is not None:
            return merged
    return add(base, precision.weighted_sum(deltas, weights), scaling_coefficient=scaling_coefficient)
