"""How much a change matters: its size times how far it shifts the softmax of its row.

Source: mergekit's arcee_fusion (Arcee AI 2025).
"""

from math import log

import torch
from torch import Tensor

from workers.numerics import elementary, fused, precision

LARGEST = torch.finfo(torch.float32).max


def weigh_changes(finetuned: Tensor, base: Tensor) -> Tensor:
    """Return |θ − θ₀| · KL(softmax θ ‖ softmax θ₀), the divergence taken row by row.

    finetuned, base: [rows, width] float32; result: [rows, width] float32, at most the largest of these. Computed in
    float64; a row's bits do not depend on the rows beside it.
    """
    if base.numel() and base.device.type == "cpu" and fused.is_ready():
        return fused.weigh_changes(finetuned, base)
    return _weigh_by_torch(finetuned, base)


def _weigh_by_torch(finetuned: Tensor, base: Tensor) -> Tensor:
    if not base.numel():
        return torch.empty_like(base)
    theirs, ours = (rows.double().sub_(rows.amax(-1, keepdim=True).double()) for rows in (finetuned, base))
    powers = elementary.exp(theirs)
    total, our_total = precision.sum_by_halving(powers), precision.sum_by_halving(elementary.exp(ours))
    moments = precision.sum_by_halving(powers * (theirs - ours))
    divergence = (moments / total - (_log(total) - _log(our_total))).clamp_min_(0.0)  # below 0 by rounding only
    return (finetuned.double() - base).abs_().mul_(divergence.unsqueeze(-1)).clamp_max_(LARGEST).float()


def _log(numbers: Tensor) -> Tensor:
    return torch.tensor([log(number) for number in numbers.tolist()], dtype=torch.float64, device=numbers.device)
