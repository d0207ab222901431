"""AWD as a transform: subtract the redundant vector from every task vector, before any method sees them.

Source: Xiong et al. 2024, arXiv:2411.18729, equations 9 to 11, as a third party quotes them.
Departs from source: as methods/awd_task_arithmetic.py.
"""

import torch
from torch import Tensor

from workers.contract import MergeContext, transform
from workers.numerics import precision, task_vectors
from workers.statistics.redundancy import DisentanglementParameters, coefficients_of, request_redundancy


class AwdParameters(DisentanglementParameters):
    """Parameters of the transform `awd`."""


@transform(
    name="awd",
    title="Adaptive weight disentanglement",
    summary="Subtracts from every task vector the redundant vector they share, so that they turn orthogonal.",
    source="Xiong et al. 2024, arXiv:2411.18729",
    parameters=AwdParameters,
    granularity="row",
    statistic_passes=1,
    collect=request_redundancy,
)
def apply(base: Tensor, finetuned: Tensor, _parameters: AwdParameters, context: MergeContext) -> Tensor:
    """Return the models θᵢ − δ with the redundant vector δ = Σ aⱼ τⱼ.

    base: [rows, width]; finetuned: [n, rows, width]; result: [n, rows, width]. Rounded once, so a task vector of the
    result has the precision of the weights.
    """
    deltas = task_vectors.subtract(finetuned, base)
    redundancy = coefficients_of(len(base), context).to(base.device)  # [n] or [rows, n]
    redundant = torch.zeros_like(base, dtype=torch.float64)
    for model, delta in enumerate(deltas):
        redundant.add_(delta.double().mul_(redundancy[..., model].unsqueeze(-1)))
    return precision.round_to_float32(finetuned.double().sub_(redundant))
