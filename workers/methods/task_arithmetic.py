"""Task arithmetic: add scaled task vectors to the base model; a negative weight makes the model forget that task.

Source: Ilharco et al. 2022, arXiv:2212.04089, equations of section 2.
"""

from math import fsum

from torch import Tensor

from app.domain.catalog import TaskAddition
from app.domain.parameters import Parameters, TaskArithmeticCoefficient
from workers.contract import MergeContext, merge_method
from workers.fusion import FusedMerge
from workers.numerics import precision


class TaskArithmeticParameters(Parameters):
    """Parameters of `task_arithmetic`."""

    scaling_coefficient: TaskArithmeticCoefficient = 0.3


def fuse(parameters: TaskArithmeticParameters, context: MergeContext) -> FusedMerge:
    """Return what `merge` computes, fused."""
    coefficient = parameters.scaling_coefficient
    return FusedMerge(context.weights, scaling=coefficient, base_share=_base_share(coefficient, context.weights))


def coefficients(parameters: TaskArithmeticParameters, weights: tuple[float, ...]) -> list[float]:
    """Return the factor on each model's task vector."""
    return [parameters.scaling_coefficient * weight for weight in weights]


@merge_method(
    name="task_arithmetic",
    title="Task arithmetic",
    summary="Base model plus the scaled sum of task vectors; negative weights negate a task.",
    source="Ilharco et al. 2022, arXiv:2212.04089",
    aliases=("analogy", "negation", "ta", "task_addition"),
    parameters=TaskArithmeticParameters,
    base_model="required",
    models=(1, None),
    granularity="element",
    neutral_parameters={"scaling_coefficient": 1.0},
    fused=fuse,
    task_addition=TaskAddition(),
    coefficients=coefficients,
    adapter_spaces=("delta", "factors", "concat"),
)
def merge(base: Tensor, finetuned: Tensor, parameters: TaskArithmeticParameters, context: MergeContext) -> Tensor:
    """Return θ₀ + λ Σ wᵢ (θᵢ − θ₀).

    base: [m]; finetuned: [n, m]; result: [m]. Regrouped as λ Σ wᵢ θᵢ + (1 − λ Σ wᵢ) θ₀, which in float64 loses nothing
    and rounds once: one model with λ = 1 comes back exactly.
    """
    coefficient = parameters.scaling_coefficient
    total = precision.weighted_sum(finetuned, context.weights)
    shares = (_base_share(coefficient, context.weights), coefficient)
    return precision.round_to_float32(precision.weighted_sum((base, total), shares))


def _base_share(coefficient: float, weights: tuple[float, ...]) -> float:
    return 1.0 - coefficient * fsum(weights)
