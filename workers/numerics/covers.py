"""The leading singular directions of several task matrices side by side, and how far they overlap.

Source: Gargiulo et al. 2024, arXiv:2412.00081 (task singular vectors); Zhang et al. 2026, arXiv:2603.06242 (cover
    bases).

With U and V the stacked left and right vectors of all tasks, the orthogonalized bases are U (UᵀU)^(−1/2) and the same
of V. Neither they nor V are ever formed: V is what U makes of the task matrices, so a merge is U C Σ⁻¹ (Uᵀ τ) with a
small core C, computed run by run.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.numerics import spectra
from workers.numerics.matrices import RUN_ELEMENTS, TaskMatrices


@dataclass(frozen=True)
class Cover:
    """Stacked singular directions: q columns, those of one task together, largest first."""

    tasks: TaskMatrices  # rows ≤ columns
    is_turned: bool  # whether the task matrices were turned for that
    lefts: tuple[Tensor, ...]  # of each active task: [rows, k]
    values: Tensor  # [q] singular values
    left_gram: Tensor  # [q, q] UᵀU
    right_gram: Tensor  # [q, q] VᵀV
    left_root: Tensor  # [q, q] (UᵀU)^(−1/2)
    right_root: Tensor  # [q, q] (VᵀV)^(−1/2)

    @property
    def blocks(self) -> tuple[slice, ...]:
        """The columns of each active task."""
        ends = torch.tensor([left.shape[1] for left in self.lefts]).cumsum(0).tolist()
        return tuple(slice(end - left.shape[1], end) for end, left in zip(ends, self.lefts, strict=True))

    def expand(self, core: Tensor) -> Tensor:
        """Return U · core · Vᵀ in the shape of the task matrices, float64; core: [q, q]."""
        weighted = torch.cat(self.lefts, dim=1) @ (core / self.values)  # [rows, q]
        merged = weighted.new_empty(self.tasks.shape)
        for columns in _runs(self.tasks):
            merged[:, columns] = weighted @ _project(self.tasks, self.lefts, columns)
        return merged.mT if self.is_turned else merged


def cover(tasks: TaskMatrices, rank: int) -> Cover:
    """Return the cover of the first `rank` singular directions of each task matrix that is not zero."""
    is_turned = tasks.shape[0] > tasks.shape[1]
    wide = tasks.transposed() if is_turned else tasks
    lefts = tuple(spectra.find_left(_gram(wide, model), rank) for model in wide.active)
    stacked = torch.cat(lefts, dim=1)
    projected = stacked.new_zeros(stacked.shape[1], stacked.shape[1])  # Σ VᵀV Σ
    for columns in _runs(wide):
        part = _project(wide, lefts, columns)
        spectra.add_gram(projected, part)
    values = projected.diagonal().sqrt()
    left_gram, right_gram = spectra.gram_of(stacked.mT), spectra.mirror(projected) / torch.outer(values, values)
    return Cover(
        tasks=wide,
        is_turned=is_turned,
        lefts=lefts,
        values=values,
        left_gram=left_gram,
        right_gram=right_gram,
        left_root=spectra.inverse_root(left_gram, lambda: stacked.mT),
        right_root=spectra.inverse_root(right_gram, lambda: _project(wide, lefts, slice(None)) / values.unsqueeze(1)),
    )


def _gram(tasks: TaskMatrices, model: int) -> Tensor:
    gram = tasks.base.new_zeros(tasks.shape[0], tasks.shape[0], dtype=torch.float64)
    for columns in _runs(tasks):
        part = tasks.task(model, columns)
        spectra.add_gram(gram, part)
    return spectra.mirror(gram)


def _project(tasks: TaskMatrices, lefts: tuple[Tensor, ...], columns: slice) -> Tensor:
    """Return Uᵀτ of each task, one below the other: [q, columns]; the rows are Σ Vᵀ."""
    return torch.cat([left.mT @ tasks.task(model, columns) for left, model in zip(lefts, tasks.active, strict=True)])


def _runs(tasks: TaskMatrices) -> Iterator[slice]:
    rows, columns = tasks.shape
    step = max(64, RUN_ELEMENTS // rows)
    for begin in range(0, columns, step):
        yield slice(begin, min(columns, begin + step))
