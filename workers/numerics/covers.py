"""The leading singular directions of several task matrices side by side, and how far they overlap.

Source: Gargiulo et al. 2024, arXiv:2412.00081 (task singular vectors); Zhang et al. 2026, arXiv:2603.06242 (cover
    bases).

With U and V the stacked left and right vectors of all parts, and L and R the eigenvectors of UᵀU and VᵀV, the columns
of A = U L √(eigenvalues)⁻¹ are orthonormal, and so are those of B = V R √(eigenvalues)⁻¹. The orthogonalized bases are
A Lᵀ and B Rᵀ, so that a merge is A C Bᵀ with a small core C. V is never formed: Σ Vᵀ is what U makes of the parts,
Uᵀ τ, which is needed twice, for VᵀV and for the merge, and only kept where it is small.
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
    """A matrix, and some of its left singular vectors, largest first."""

    matrix: Delta  # gives columns of it: [rows, any] float64
    left: Tensor  # [rows, k]


@dataclass(frozen=True)
class Cover:
    """Stacked singular directions: q columns, those of one part together."""

    blocks: tuple[slice, ...]  # the columns of each part
    lefts: Tensor  # [rows, q] U
    values: Tensor  # [q] singular values
    left: Left  # of Uᵀ: its squares are UᵀU
    right: Left  # of Vᵀ
    project: Delta  # gives columns of Uᵀτ of all parts, one below the other: [q, any]

    def compare(self) -> Tensor:
        """Return Lᵀ Σ R, [left's k, right's k]: the core of the sum of all parts, both bases orthogonalized."""
        return (self.left.vectors.mT * self.values) @ self.right.vectors

    def expand(self, core: Tensor) -> Delta:
        """Return what gives columns of A · core · Bᵀ. core: [left's k, right's k]."""
        left = self.lefts @ (self.left.vectors / self.left.values) @ core  # [rows, k]
        right = (self.right.vectors / self.right.values).div_(self.values.unsqueeze(1))  # [q, k]
        weighted = left @ right.mT  # [rows, q]
        return lambda columns: weighted @ self.project(columns)


def cover(tasks: TaskMatrices, rank: int, tick: Tick = ignore_tick) -> Cover:
    """Return the cover of the first `rank` singular directions of each task matrix that is not zero.

    tasks: not tall. It ticks after each task, as if what is left took as long as two of them.
    """

    def find_parts() -> Iterator[Part]:
        for n_found, model in enumerate(tasks.active, start=1):
            task = partial(tasks.task, model)
            yield Part(task, spectra.find_left(spectra.gram_of(map(task, tasks.columns()), tasks.base), rank))
            tick(n_found / (len(tasks.active) + 2))

    return stack(find_parts(), rank * len(tasks.active), tasks)


def stack(parts: Iterable[Part], room: int, tasks: TaskMatrices) -> Cover:
    """Return the cover of some parts, each as large as the task matrices, that have at most `room` directions."""
    lefts = tasks.base.new_empty(tasks.shape[0], room, dtype=torch.float64)
    matrices: list[Delta] = []
    blocks: list[slice] = []
    size = 0
    for part in parts:
        matrices.append(part.matrix)
        blocks.append(slice(size, size := size + part.left.shape[1]))
        lefts[:, blocks[-1]] = part.left
    return _project(matrices, tuple(blocks), lefts[:, :size], tasks)


def _project(matrices: Sequence[Delta], blocks: tuple[slice, ...], lefts: Tensor, tasks: TaskMatrices) -> Cover:
    def project(columns: slice) -> Tensor:
        parts = [lefts[:, block].mT @ matrix(columns) for matrix, block in zip(matrices, blocks, strict=True)]
        return torch.cat(parts)

    if lefts.element_size() * lefts.shape[1] * tasks.shape[1] <= KEPT_BYTES:
        kept = torch.cat([project(columns) for columns in tasks.columns()], dim=1)
        return _complete(blocks, lefts, lambda columns: kept[:, columns], tasks)
    return _complete(blocks, lefts, project, tasks)


def _complete(blocks: tuple[slice, ...], lefts: Tensor, project: Delta, tasks: TaskMatrices) -> Cover:
    left = spectra.find_all_left(spectra.gram_of([lefts.mT], lefts.mT), lambda: [lefts.mT])
    right_gram = spectra.gram_of(map(project, tasks.columns()), lefts.mT)  # Σ VᵀV Σ
    values = right_gram.diagonal().sqrt()
    right_gram.div_(values).div_(values.unsqueeze(1))
    right = spectra.find_all_left(
        right_gram, lambda: (project(columns) / values.unsqueeze(1) for columns in tasks.columns())
    )
    return Cover(blocks, lefts, values, left, right, project)
