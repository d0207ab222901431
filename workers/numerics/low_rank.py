"""The best approximation of a matrix by one of low rank, as two thin factors that share the singular values.

Source: Eckart, Young 1936, "The approximation of one matrix by another of lower rank".
"""

import torch
from torch import Tensor

from workers.patches import LowRank


def truncate(matrix: Tensor, *, rank: int, energy: float = 1.0) -> LowRank:
    """Return U√Σ and √ΣVᵀ of the largest singular values: at most `rank`, and no more than hold `energy` of Σσ².

    matrix: [rows, columns] float64; the factors: [rows, r] and [r, columns] float64. Singular values of 0 are dropped:
    a matrix of zeros has rank 0.
    """
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    kept = min(rank, int(torch.count_nonzero(values)), _count_energy(values, energy))
    roots = values[:kept].sqrt()
    return LowRank(left[:, :kept] * roots, roots.unsqueeze(1) * right[:kept])


def pays(rank: int, rows: int, columns: int) -> bool:
    """Tell whether two factors of a rank hold fewer numbers than the matrix itself."""
    return rank * (rows + columns) < rows * columns


def _count_energy(values: Tensor, energy: float) -> int:
    """Return how many of the values, largest first, hold a share of the sum of squares; all of them at 1."""
    if energy >= 1.0:
        return len(values)
    squares = values.square()
    return int((squares.cumsum(0) < energy * squares.sum()).sum()) + 1
