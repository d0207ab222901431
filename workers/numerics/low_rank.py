"""Low-rank patches: the best approximation of a difference by thin factors, and whether they pay.

Source: Eckart, Young 1936, "The approximation of one matrix by another of lower rank".
"""

from torch import Tensor

from workers.contract import Tick
from workers.numerics import spectra, thin_products
from workers.numerics.spectra import Singular
from workers.patches import LowRank


def truncate(matrix: Tensor, *, rank: int, energy: float = 1.0) -> LowRank:
    """Return U√Σ and √ΣVᵀ of the largest singular values: at most `rank`, and no more than hold `energy` of Σσ².

    matrix: [rows, columns] float64; the factors: float64. Singular values of 0 are dropped: a matrix of zeros has rank
    0.
    """
    found = spectra.decompose(matrix, rank, null=0.0)
    kept = len(found.values)
    if energy < 1.0:
        wanted = energy * matrix.square().sum()
        kept = min(kept, int((found.values.square().cumsum(0) < wanted).sum()) + 1)
    return first(found, kept)


def first(found: Singular, n: int) -> LowRank:
    """Return √ΣVᵀ and U√Σ of the first n singular triples."""
    return LowRank(*thin_products.balance(found.left[:, :n], found.values[:n], found.right[:n]))


def truncate_changes(finetuned: Tensor, origin: Tensor, *, rank: int, energy: float = 1.0, tick: Tick) -> list[LowRank]:
    """Return what each model has beyond the origin, truncated; it ticks after each.

    finetuned: [n, rows, columns]; origin: [rows, columns], float32 both.
    """
    made: list[LowRank] = []
    for model in finetuned:
        made.append(truncate(model.double().sub_(origin), rank=rank, energy=energy))
        tick(len(made) / len(finetuned))
    return made


def pays(rank: int, rows: int, columns: int) -> bool:
    """Tell whether two factors of a rank hold fewer numbers than the matrix itself."""
    return rank * (rows + columns) < rows * columns
