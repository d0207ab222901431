"""How much a change matters: its size times how far it shifts the softmax of its row.

Source: mergekit's arcee_fusion (Arcee AI 2025).
"""

import torch
from torch import Tensor

LARGEST = torch.finfo(torch.float32).max


def weigh_changes(finetuned: Tensor, base: Tensor) -> Tensor:
    """Return |θ − θ₀| · KL(softmax θ ‖ softmax θ₀), the divergence taken row by row.

    finetuned, base: [rows, width]; result: [rows, width] float32, at most the largest of these. Computed in float64; a
    row's bits do not depend on the rows beside it.
    """
    theirs, ours = (torch.log_softmax(rows.double(), dim=-1) for rows in (finetuned, base))
    divergence = (theirs.exp() * (theirs - ours)).sum(dim=-1, keepdim=True).clamp_min_(0.0)  # below 0 by rounding only
    return (finetuned.double() - base).abs_().mul_(divergence).clamp_max_(LARGEST).float()
