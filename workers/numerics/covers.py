"""The leading singular directions of several task matrices side by side, and how far they overlap.

Source: Gargiulo et al. 2024, arXiv:2412.00081 (task singular vectors); Zhang et al. 2026, arXiv:2603.06242 (cover
    bases).

With U and V the stacked left and right vectors of all tasks, the orthogonalized bases are U (UᵀU)^(−1/2) and the same
of V. They are never formed: Σ V is what U makes of the task matrices, so a merge is U C Σ⁻¹ (Uᵀ τ) with a small core
C, computed run by run where Uᵀ τ lies.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.contract import Tick, ignore_tick
from workers.numerics import spectra
from workers.numerics.matrices import RUN_ELEMENTS, TaskMatrices


@dataclass(frozen=True)
class Cover:
    """Stacked singular directions: q columns, those of one task together, largest first."""

    tasks: TaskMatrices  # rows ≤ columns
    is_turned: bool  # whether the task matrices were turned for that
    lefts: tuple[Tensor, ...]  # of each active task: [rows, k]
    projected: Tensor  # [at least rows, columns]: its first q rows are Uᵀτ, task below task, until `expand` uses it up
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
        """Return U · core · Vᵀ in the shape of the task matrices, float64, once; core: [q, q]."""
        weighted = torch.cat(self.lefts, dim=1) @ (core / self.values)  # [rows, q]
        merged = self.projected[: len(weighted)]
        for columns in _runs(self.tasks):
            merged[:, columns] = weighted @ self.projected[: len(core), columns]
        return merged.mT if self.is_turned else merged


def cover(tasks: TaskMatrices, rank: int, tick: Tick = ignore_tick) -> Cover:
    """Return the cover of the first `rank` singular directions of each task matrix that is not zero.

    It ticks after each task, as if what is left took as long as two of them.
    """
    is_turned = tasks.shape[0] > tasks.shape[1]
    wide = tasks.transposed() if is_turned else tasks
    lefts: tuple[Tensor, ...] = ()
    for model in wide.active:
        lefts += (spectra.find_left(_gram(wide, model), rank),)
        tick(len(lefts) / (len(wide.active) + 2))
    stacked = torch.cat(lefts, dim=1)
    size = stacked.shape[1]
    projected = _project(wide, lefts, size)
    left_gram = spectra.gram_of([stacked.mT], stacked.mT)
    right_gram = spectra.gram_of((projected[:size, columns] for columns in _runs(wide)), stacked.mT)  # Σ VᵀV Σ
    values = right_gram.diagonal().sqrt()
    right_gram /= torch.outer(values, values)
    return Cover(
        tasks=wide,
        is_turned=is_turned,
        lefts=lefts,
        projected=projected,
        values=values,
        left_gram=left_gram,
        right_gram=right_gram,
        left_root=spectra.inverse_root(left_gram, lambda: stacked.mT),
        right_root=spectra.inverse_root(right_gram, lambda: projected[:size] / values.unsqueeze(1)),
    )


def _gram(tasks: TaskMatrices, model: int) -> Tensor:
    return spectra.gram_of((tasks.task(model, columns) for columns in _runs(tasks)), tasks.base)


def _project(tasks: TaskMatrices, lefts: tuple[Tensor, ...], size: int) -> Tensor:
    """Return Uᵀτ of each task, one below the other, with room for a merge: [max(q, rows), columns]."""
    projected = lefts[0].new_empty(max(size, tasks.shape[0]), tasks.shape[1])
    begin = 0
    for left, model in zip(lefts, tasks.active, strict=True):
        rows = projected[begin : begin + left.shape[1]]
        for columns in _runs(tasks):
            rows[:, columns] = left.mT @ tasks.task(model, columns)
        begin += left.shape[1]
    return projected


def _runs(tasks: TaskMatrices) -> Iterator[slice]:
    rows, columns = tasks.shape
    step = max(64, RUN_ELEMENTS // rows)
    for begin in range(0, columns, step):
        yield slice(begin, min(columns, begin + step))
