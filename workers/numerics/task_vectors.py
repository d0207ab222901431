"""Task vectors, what fine-tuning added to the base model: τᵢ = θᵢ − θ₀.

Source: Ilharco et al. 2022, arXiv:2212.04089, section 2.
"""

from torch import Tensor

from workers.numerics import precision


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
