"""The leading singular directions of several task matrices side by side, and how far they overlap.

Source: Gargiulo et al. 2024, arXiv:2412.00081 (task singular vectors); Zhang et al. 2026, arXiv:2603.06242 (cover
    bases).

With U and V the stacked left and right vectors of all parts, the orthogonalized bases are their polar factors, U⊥ =
U (UᵀU)⁻¹ᐟ² and V⊥ likewise, and a merge is U⊥ M V⊥ᵀ with a small matrix M on each part's directions. V is never formed:
C Vᵀ is what U makes of the parts, Uᵀ τ, which is needed twice, for VᵀV and for the merge, and only kept where it is
small. With singular vectors C is Σ. A merge that puts C itself between them does not ask which basis of a part's span U
holds: then any will do, and C is a triangle.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from workers.contract import Tick, ignore_tick
from workers.numerics import spectra
from workers.numerics.matrices import Delta, TaskMatrices
from workers.numerics.spectra import Left

KEPT_BYTES = 1 << 25  # of what is needed twice


@dataclass(frozen=True)
class Part:
    """A matrix, and a basis of what its first left singular vectors span."""

    matrix: Delta  # gives columns of it: [rows, any] float64
    left: Tensor  # [rows, k]
    is_singular: bool = True  # the basis is these vectors, largest first


@dataclass(frozen=True)
class Cover:
    """Stacked directions: q columns, those of one part together."""

    blocks: tuple[slice, ...]  # the columns of each part
    lefts: Tensor  # [rows, q] U
    factors: tuple[Tensor, ...]  # C of each part, [k, k]: a lower triangle, or the diagonal matrix of singular values
    left: Left  # of Uᵀ: its squares are UᵀU
    right: Left  # of Vᵀ
    project: Delta  # gives columns of Uᵀτ of all parts, one below the other: [q, any]

    def expand(self, between: Sequence[Tensor]) -> Delta:
        """Return what gives columns of U⊥ M V⊥ᵀ. between: M on each part's directions, [k, k]."""
        first = self.lefts @ self.left.power(-1.0)  # [rows, q]
        for block, one in zip(self.blocks, between, strict=True):
            first[:, block] = first[:, block] @ one
        weighted = first @ self.right.power(-1.0)
        for block, factor in zip(self.blocks, self.factors, strict=True):
            weighted[:, block] = torch.linalg.solve_triangular(factor, weighted[:, block], upper=False, left=False)
        return lambda columns: weighted @ self.project(columns)


def cover(tasks: TaskMatrices, rank: int, tick: Tick = ignore_tick, *, is_singular: bool) -> Cover:
    """Return the cover of the first `rank` singular directions of each task matrix that is not zero.

    tasks: not tall; is_singular: whether the bases must be the singular vectors. It ticks after each task, as if what
    is left took as long as two of them.
    """

    def find_parts() -> Iterator[Part]:
        for n_found, model in enumerate(tasks.active, start=1):
            task = partial(tasks.task, model)
            gram = spectra.gram_of(map(task, tasks.columns()), tasks.base)
            if is_singular:
                yield Part(task, spectra.find_left(gram, rank))
            else:
                yield Part(task, *spectra.find_span(gram, rank))
            tick(n_found / (len(tasks.active) + 2))

    return stack(find_parts(), rank * len(tasks.active), tasks)


def stack(parts: Iterable[Part], room: int, tasks: TaskMatrices) -> Cover:
    """Return the cover of some parts, each as large as the task matrices, that have at most `room` directions."""
    lefts = tasks.base.new_empty(tasks.shape[0], room, dtype=torch.float64)
    matrices: list[Delta] = []
    blocks: list[slice] = []
    are_singular: list[bool] = []
    size = 0
    for part in parts:
        matrices.append(part.matrix)
        blocks.append(slice(size, size := size + part.left.shape[1]))
        are_singular.append(part.is_singular)
        lefts[:, blocks[-1]] = part.left
    lefts = lefts[:, :size]
    left = spectra.find_all_left(spectra.gram_of([lefts.mT], lefts.mT), lambda: [lefts.mT])
    project = _project(matrices, blocks, lefts, tasks)
    factors, right = _factorize(blocks, are_singular, project, tasks)
    return Cover(tuple(blocks), lefts, factors, left, right, project)


def _project(matrices: Sequence[Delta], blocks: Sequence[slice], lefts: Tensor, tasks: TaskMatrices) -> Delta:
    def project(columns: slice) -> Tensor:
        found = lefts.new_empty(lefts.shape[1], columns.stop - columns.start)
        for block, matrix in zip(blocks, matrices, strict=True):
            torch.mm(lefts[:, block].mT, matrix(columns), out=found[block])
        return found

    if lefts.element_size() * lefts.shape[1] * tasks.shape[1] > KEPT_BYTES:
        return project
    kept = lefts.new_empty(lefts.shape[1], tasks.shape[1])
    for columns in tasks.columns():
        kept[:, columns] = project(columns)
    return lambda columns: kept[:, columns]


def _factorize(
    blocks: Sequence[slice], are_singular: Sequence[bool], project: Delta, tasks: TaskMatrices
) -> tuple[tuple[Tensor, ...], Left]:
    """Return C of each part, and what is left of Uᵀτ once it is divided by them: of Vᵀ."""
    like = tasks.base.new_empty(blocks[-1].stop if blocks else 0, 0)
    gram = spectra.gram_of(map(project, tasks.columns()), like)  # C VᵀV Cᵀ
    factors = tuple(
        torch.diag(gram.diagonal()[block].sqrt()) if is_singular else torch.linalg.cholesky(gram[block, block])
        for block, is_singular in zip(blocks, are_singular, strict=True)
    )

    def divide(rows: Tensor) -> Tensor:
        """Return C⁻¹ · rows, in their place. rows: [q, any]."""
        for block, factor in zip(blocks, factors, strict=True):
            rows[block] = torch.linalg.solve_triangular(factor, rows[block], upper=False)
        return rows

    divide(divide(gram).mT)
    return factors, spectra.find_all_left(gram, lambda: (divide(project(run).clone()) for run in tasks.columns()))
