"""Low-rank patches: the best approximation of a difference by thin factors, and whether they pay.

Source: Eckart, Young 1936, "The approximation of one matrix by another of lower rank".
"""

from collections.abc import Iterable
from functools import partial
from math import sqrt

import torch
from torch import Tensor

from workers.contract import Tick, ignore_tick
from workers.numerics import spectra, thin_products
from workers.numerics.matrices import TaskMatrices
from workers.numerics.spectra import Singular
from workers.patches import LowRank
from workers.stored import Models

ROUNDING = 2.0**-24  # of an entry, at most, to float32


def truncate(matrix: Tensor, *, rank: int, energy: float = 1.0) -> LowRank:
    """Return U√Σ and √ΣVᵀ of the largest singular values: at most `rank`, and no more than hold `energy` of Σσ².

    matrix: [rows, columns] float64; the factors: float64. Singular values of 0 are dropped: a matrix of zeros has rank
    0.
    """
    found = spectra.decompose(matrix, rank, null=0.0)
    return first(found, _count(found, energy, matrix.square().sum()))


def truncate_product(product: LowRank, *, rank: int, energy: float = 1.0) -> LowRank:
    """Return the same of a product B·A, which is never formed, in float32.

    Singular values up to 10⁻¹⁰ of the largest are rounding of float64, where factors depend on each other.
    """
    if product.rank == 0:
        return LowRank(product.a.float(), product.b.float())
    found = Singular(*thin_products.decompose(product.a, product.b))
    n_above = int((found.values > spectra.SMALLEST * found.values[0]).sum())
    factors = first(found, min(rank, n_above, _count(found, energy, found.values.square().sum())))
    return LowRank(factors.a.float(), factors.b.float())


def first(found: Singular, n: int) -> LowRank:
    """Return √ΣVᵀ and U√Σ of the first n singular triples."""
    return LowRank(*thin_products.balance(found.left[:, :n], found.values[:n], found.right[:n]))


def truncate_changes(
    finetuned: Models, origin: Tensor, *, rank: int, energy: float = 1.0, tick: Tick = ignore_tick
) -> list[LowRank]:
    """Return what each model has beyond the origin, truncated, in float32; it ticks after each.

    finetuned: [n, rows, columns]; origin: [rows, columns], float32 both. Components no larger than what rounding the
    weights to float32 adds are left out: a model of a low rank has no others.
    """
    changes = TaskMatrices.of(origin, finetuned, (1.0,) * len(finetuned))
    made: list[LowRank] = []
    for model in range(len(finetuned)):
        made.append(_truncate_change(changes, model, rank, energy))
        tick(len(made) / len(finetuned))
    return made


def _truncate_change(changes: TaskMatrices, model: int, rank: int, energy: float) -> LowRank:
    """Do what `truncate` does, without ever holding the difference as a whole."""
    wide = changes.wide()
    runs = partial(map, partial(wide.task, model), tuple(wide.columns()))
    found = spectra.decompose_runs(runs, wide.base, rank, null=0.0)
    square = torch.stack([run.square_().sum() for run in runs()]).sum() if energy < 1.0 else found.values.sum()
    if changes.is_tall:
        found = Singular(found.right.mT, found.values, found.left.mT)
    n_above = int((found.values > _rounding(wide, model)).sum())
    factors = first(found, min(n_above, _count(found, energy, square)))
    return LowRank(factors.a.float(), factors.b.float())


def _rounding(wide: TaskMatrices, model: int) -> float:
    return rounding(
        (
            wide.stored(model, columns).double().square_().add_(wide.base[:, columns].double().square_())
            for columns in wide.columns()
        ),
        wide.base,
    )


def rounding(squares: Iterable[Tensor], like: Tensor) -> float:
    """Return the largest singular value that rounding a model and its origin to float32 makes.

    squares: runs of columns of the sum of both's squares, [rows, any] float64; like: any tensor of as many rows.
    Errors that are independent of each other, of at most 2⁻²⁴ of an entry each, make a matrix whose norm is at most the
    largest norm of its rows plus that of its columns: Bandeira, van Handel 2016, arXiv:1408.6185, theorem 1.1, whose
    further term is small. Errors are uniform, so that these are √3 times too large.
    """
    of_rows = like.new_zeros(len(like), dtype=torch.float64)
    largest_column = 0.0
    for some in squares:
        of_rows += some.sum(1)
        largest_column = max(largest_column, float(some.sum(0).max()))
    return ROUNDING * (sqrt(float(of_rows.max())) + sqrt(largest_column))


def _count(found: Singular, energy: float, square: Tensor) -> int:
    """Return how many singular values hold a share of the sum of the squares of all."""
    if energy >= 1.0:
        return len(found.values)
    return min(len(found.values), int((found.values.square().cumsum(0) < energy * square).sum()) + 1)


def pays(rank: int, rows: int, columns: int) -> bool:
    """Tell whether two factors of a rank hold fewer numbers than the matrix itself."""
    return rank * (rows + columns) < rows * columns
