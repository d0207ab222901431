"""How much a change matters: its size times how far it shifts the softmax of its row.

Source: mergekit's arcee_fusion (Arcee AI 2025).
"""

from math import log

import torch
from torch import Tensor

from workers.fusion import Importance
from workers.numerics import elementary, fused, precision

LARGEST = torch.finfo(torch.float32).max


def weigh_changes(finetuned: Tensor, base: Tensor) -> Tensor:
    """Return |θ − θ₀| · KL(softmax θ ‖ softmax θ₀), the divergence taken row by row.

    finetuned, base: [rows, width] float32; result: [rows, width] float32, at most the largest of these. Computed in
    float64; a row's bits do not depend on the rows beside it.
    """
    return _weigh(finetuned, base, diverge(finetuned, base).unsqueeze(-1))


def diverge(finetuned: Tensor, base: Tensor) -> Tensor:
    """Return KL(softmax θ ‖ softmax θ₀) of each row. finetuned, base: [rows, width] float32; result: [rows] float64."""
    if not base.numel():
        return torch.zeros(len(base), dtype=torch.float64, device=base.device)
    if base.device.type == "cpu" and fused.is_ready():
        return fused.diverge(finetuned, base)
    return _diverge(finetuned, base)


def weigh(finetuned: Tensor, base: Tensor, importance: Importance, *, start: int) -> Tensor:
    """Return |θ − θ₀| times the divergence of the entry's row, as `weigh_changes` does, for any run of a tensor.

    finetuned, base: [m] float32; importance: of the tensor; start: flat index of the run's first entry; result: [m].
    """
    rows = torch.arange(start, start + len(base), device=base.device) // importance.width
    return _weigh(finetuned, base, torch.from_numpy(importance.divergences).to(base.device)[rows])


def _weigh(finetuned: Tensor, base: Tensor, divergences: Tensor) -> Tensor:
    return (finetuned.double() - base).abs_().mul_(divergences).clamp_max_(LARGEST).float()


def _diverge(finetuned: Tensor, base: Tensor) -> Tensor:
    theirs, ours = (rows.double().sub_(rows.amax(-1, keepdim=True).double()) for rows in (finetuned, base))
    powers = elementary.exp(theirs)
    total, our_total = precision.sum_by_halving(powers), precision.sum_by_halving(elementary.exp(ours))
    moments = precision.sum_by_halving(powers * (theirs - ours))
    return (moments / total - (_log(total) - _log(our_total))).clamp_min_(0.0)  # below 0 by rounding only


def _log(numbers: Tensor) -> Tensor:
    return torch.tensor([log(number) for number in numbers.tolist()], dtype=torch.float64, device=numbers.device)
