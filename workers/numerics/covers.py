"""The leading singular directions of several task matrices side by side, and how far they overlap.

Source: Gargiulo et al. 2024, arXiv:2412.00081 (task singular vectors); Zhang et al. 2026, arXiv:2603.06242 (cover
    bases).

With U and V the stacked left and right vectors of all parts, the orthogonalized bases are U (UᵀU)^(−1/2) and the same
of V. They are never formed: Σ V is what U makes of the parts, so a merge is U C Σ⁻¹ (Uᵀ τ) with a small core C,
computed run by run, Uᵀ τ twice: once for VᵀV, once for the merge.
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


@dataclass(frozen=True)
class Part:
    """A matrix, and some of its left singular vectors, largest first."""

    matrix: Delta  # gives columns of it: [rows, any] float64
    left: Tensor  # [rows, k]


@dataclass(frozen=True)
class Cover:
    """Stacked singular directions: q columns, those of one part together."""

    matrices: tuple[Delta, ...]  # of the parts
    blocks: tuple[slice, ...]  # the columns of each part
    lefts: Tensor  # [rows, q] U
    values: Tensor  # [q] singular values
    left: Left  # of Uᵀ: its squares are UᵀU
    right: Left  # of Vᵀ

    def expand(self, core: Tensor) -> Delta:
        """Return what gives columns of U · core · Vᵀ. core: [q, q]."""
        weighted = self.lefts @ core.div(self.values)  # [rows, q]
        return lambda columns: weighted @ _project(self.matrices, self.blocks, self.lefts, columns)


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
    return _compare(tuple(matrices), tuple(blocks), lefts[:, :size], tasks)


def _compare(matrices: tuple[Delta, ...], blocks: tuple[slice, ...], lefts: Tensor, tasks: TaskMatrices) -> Cover:
    project = partial(_project, matrices, blocks, lefts)
    left = spectra.find_all_left(spectra.gram_of([lefts.mT], lefts.mT), lambda: [lefts.mT])
    right_gram = spectra.gram_of(map(project, tasks.columns()), lefts.mT)  # Σ VᵀV Σ
    values = right_gram.diagonal().sqrt()
    right_gram /= torch.outer(values, values)
    right = spectra.find_all_left(
        right_gram, lambda: (project(columns).div_(values.unsqueeze(1)) for columns in tasks.columns())
    )
    return Cover(matrices, blocks, lefts, values, left, right)


def _project(matrices: Sequence[Delta], blocks: Sequence[slice], lefts: Tensor, columns: slice) -> Tensor:
    """Return some columns of Uᵀτ of each part, one below the other: [q, any]."""
    parts = [lefts[:, block].mT @ matrix(columns) for matrix, block in zip(matrices, blocks, strict=True)]
    return torch.cat(parts)
