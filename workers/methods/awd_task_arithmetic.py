"""AWD task arithmetic: subtract the redundant vector that the task vectors share, then add them up.

Source: Xiong et al. 2024, arXiv:2411.18729, equations 9 to 11 and section 4.3, as a third party quotes them.
Departs from source: the descent runs on coefficients of the task vectors, which gives the same vector, and at a
    reference norm; the iterate of the lowest objective is taken (docs/methods/awd_task_arithmetic.md).
"""

from torch import Tensor

from app.domain.parameters import ScalingCoefficient
from workers.contract import MergeContext, merge_method
from workers.numerics import precision
from workers.statistics.redundancy import DisentanglementParameters, coefficients_of, request_redundancy


class AwdTaskArithmeticParameters(DisentanglementParameters):
    """Parameters of `awd_task_arithmetic`."""

    scaling_coefficient: ScalingCoefficient = 0.3


@merge_method(
    name="awd_task_arithmetic",
    title="AWD task arithmetic",
    summary="Subtracts a redundant vector from the task vectors, so that they turn orthogonal, then adds them up.",
    source="Xiong et al. 2024, arXiv:2411.18729",
    aliases=("awd", "awd_ta", "adaptive_weight_disentanglement"),
    parameters=AwdTaskArithmeticParameters,
    base_model="required",
    models=(1, None),
    granularity="row",
    statistic_passes=1,
    neutral_parameters={"scaling_coefficient": 1.0},
    collect=request_redundancy,
)
def merge(base: Tensor, finetuned: Tensor, parameters: AwdTaskArithmeticParameters, context: MergeContext) -> Tensor:
    """Return θ₀ + λ Σ wᵢ (τᵢ − δ) with the redundant vector δ = Σ aⱼ τⱼ.

    base: [rows, width]; finetuned: [n, rows, width]; result: [rows, width]. Computed as task arithmetic with the
    weights wᵢ − aᵢ Σ w, in float64 and rounded once.
    """
    redundancy = coefficients_of(len(base), context).to(base.device)  # [n] or [rows, n]
    weights = redundancy.new_tensor(context.weights)
    own = (weights - weights.sum() * redundancy) * parameters.scaling_coefficient
    total = base.double().mul_(_column(1.0 - own.sum(-1)))
    for model, tensor in enumerate(finetuned):
        total.add_(tensor.double().mul_(_column(own[..., model])))
    return precision.round_to_float32(total)


def _column(values: Tensor) -> Tensor:
    return values.unsqueeze(-1)  # one per row, or one for all
