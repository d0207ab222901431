"""Calibration of a merged matrix: singular directions that several tasks share are counted once, not several times.

Source: 2026, arXiv:2602.05536 (singular value calibration), equations 4 and 8, algorithm 1.
Departs from source: a task without any response in a direction counts as `floor` there, where the formula divides by 0.
"""

import torch
from torch import Tensor

from workers.numerics import spectra
from workers.numerics.matrices import TaskMatrices


def calibrate(merged: Tensor, tasks: TaskMatrices, *, floor: float) -> Tensor:
    """Return the merged matrix with its r-th singular value times γ_r = K / Σᵢ max(floor, s_r,i).

    s_r,i = ⟨a_r, a_r,i⟩ / ‖a_r,i‖² compares what the merge and task i do along the r-th left singular vector u_r of the
    merge: a_r = u_rᵀ merged, a_r,i = u_rᵀ τᵢ. With floor 1 no direction is amplified; a smaller one amplifies what the
    merge has lost (0.1 suits task arithmetic). K counts the task matrices that are not zero as well as those that are.

    merged and result: [rows, columns] float64, as the task matrices. Directions whose value is 10⁻⁷ of the largest or
    less stay as they are, and so does a matrix of zeros.
    """
    if not merged.any():
        return merged.clone()
    found = spectra.decompose(merged, min(merged.shape))
    total = torch.full_like(found.values, floor * (tasks.n_models - len(tasks.active)))  # [r]
    for model in tasks.active:
        responses = found.left.mT @ tasks.task(model)  # [r, columns]
        overlap = (found.right * responses).sum(dim=1).mul_(found.values)
        strength = responses.square().sum(dim=1)
        share = torch.where(strength > 0, overlap / strength, floor)
        total += share.clamp_min(floor)
    change = (tasks.n_models / total - 1.0) * found.values
    return torch.addmm(merged, found.left * change, found.right)
