"""Low-rank patches: the best approximation of a difference by thin factors, and whether they pay.

Source: Eckart, Young 1936, "The approximation of one matrix by another of lower rank".
"""

from torch import Tensor

from workers.numerics import thin_products
from workers.patches import LowRank


def truncate(matrix: Tensor, *, rank: int, energy: float = 1.0) -> LowRank:
    """Return U√Σ and √ΣVᵀ of the largest singular values: at most `rank`, and no more than hold `energy` of Σσ².

    matrix: [rows, columns] float64; the factors: [rows, r] and [r, columns] float64. Singular values of 0 are dropped:
    a matrix of zeros has rank 0.
    """
    left, values, right = thin_products.decompose(matrix, rank)
    kept = len(values)
    if energy < 1.0:
        wanted = energy * matrix.square().sum()
        kept = min(kept, int((values.square().cumsum(0) < wanted).sum()) + 1)
    a, b = thin_products.balance(left[:, :kept], values[:kept], right[:kept])
    return LowRank(b, a)


def pays(rank: int, rows: int, columns: int) -> bool:
    """Tell whether two factors of a rank hold fewer numbers than the matrix itself."""
    return rank * (rows + columns) < rows * columns
