"""Merging tensors as matrices: which tensors are matrices, the task matrices of one, and what becomes of the others.

A task matrix is a model's task vector of one tensor, times the model's weight, in float64, twice as large as the tensor
itself: it is made when it is asked for, a run of columns at a time where the formula allows, and so is what is merged.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from app.domain.parameters import MatrixChoice, MatrixParameters
from workers.contract import MergeContext
from workers.numerics import task_vectors

RUN_ELEMENTS = 1 << 18  # what is made in float64 at a time where a whole tensor is not needed
MIN_COLUMNS = 64
ALL = slice(None)
Delta = Callable[[slice], Tensor]  # some columns of what is merged, as if no matrix were tall: [rows, columns] float64


@dataclass(frozen=True)
class TaskMatrices:
    """One tensor of all models as matrices."""

    base: Tensor  # [rows, columns] float32
    finetuned: Tensor  # [n_models, rows, columns] float32
    weights: tuple[float, ...]

    @property
    def n_models(self) -> int:
        """How many models there are, those that change nothing included."""
        return len(self.finetuned)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.base.shape[0], self.base.shape[1]

    @cached_property
    def active(self) -> tuple[int, ...]:
        """The models whose task matrix is not zero."""
        return tuple(
            model
            for model, (tensor, weight) in enumerate(zip(self.finetuned, self.weights, strict=True))
            if weight != 0.0 and not torch.equal(tensor, self.base)
        )

    @property
    def is_tall(self) -> bool:
        """Whether there are more rows than columns."""
        return self.shape[0] > self.shape[1]

    def task(self, model: int, columns: slice = ALL) -> Tensor:
        """Return a model's task matrix, or some columns of it: [rows, columns] float64."""
        difference = self.finetuned[model, :, columns].double().sub_(self.base[:, columns])
        return difference.mul_(self.weights[model])

    def total(self, columns: slice = ALL) -> Tensor:
        """Return the sum of the task matrices, or some columns of it: [rows, columns] float64."""
        total = torch.zeros_like(self.base[:, columns], dtype=torch.float64)
        for model in self.active:
            total += self.task(model, columns)
        return total

    def columns(self) -> Iterator[slice]:
        """Yield runs of columns that hold about RUN_ELEMENTS elements, but not too few columns for products."""
        step = max(MIN_COLUMNS, RUN_ELEMENTS // max(1, self.shape[0]))
        for begin in range(0, self.shape[1], step):
            yield slice(begin, min(self.shape[1], begin + step))

    def some_rows(self, rows: slice) -> "TaskMatrices":
        """Return the same matrices, some of their rows."""
        return replace(self, base=self.base[rows], finetuned=self.finetuned[:, rows])

    def transposed(self) -> "TaskMatrices":
        """Return the same matrices with rows and columns exchanged."""
        return replace(self, base=self.base.mT, finetuned=self.finetuned.mT)

    def wide(self) -> "TaskMatrices":
        """Return the same matrices, transposed if they are tall: no more rows than columns."""
        return self.transposed() if self.is_tall else self


def merge(
    base: Tensor,
    finetuned: Tensor,
    parameters: MatrixParameters,
    context: MergeContext,
    merge_matrices: Callable[[TaskMatrices], Delta],
) -> Tensor:
    """Return base + λ · merge_matrices(task matrices) for a matrix, base + λ · mean or sum of task vectors otherwise.

    base: [*shape]; finetuned: [n, *shape]; result: [*shape] float32. `merge_matrices` is only asked where at least one
    task matrix is not zero, and returns what gives columns of the merge of `tasks.wide()`. Matrices are tensors of two
    dimensions, and with `conv_as_matrix` of more, none of them empty, whose names fit no dense pattern.
    """
    if parameters.scaling_coefficient == 0.0:
        return base.clone()
    if not is_matrix(context.tensor, tuple(base.shape), parameters):
        return _merge_vectors(base, finetuned, parameters, context.weights)
    rows = base.shape[0]
    tasks = TaskMatrices(base.reshape(rows, -1), finetuned.reshape(len(finetuned), rows, -1), context.weights)
    if not tasks.active:
        return base.clone()
    delta = merge_matrices(tasks)
    wide, merged = tasks.wide(), torch.empty_like(tasks.base)
    turned = merged.mT if tasks.is_tall else merged
    for run in wide.columns():
        added = task_vectors.add(wide.base[:, run], delta(run), scaling_coefficient=parameters.scaling_coefficient)
        turned[:, run] = added
    return merged.view(base.shape)


def cut(whole: Tensor) -> Delta:
    """Return the columns of a merge that is held whole. whole: [rows, columns] float64, in the models' own shape."""
    wide = whole.mT if whole.shape[0] > whole.shape[1] else whole
    return lambda columns: wide[:, columns]


def is_matrix(tensor: str, shape: tuple[int, ...], parameters: MatrixChoice) -> bool:
    """Whether a tensor is treated as a matrix."""
    has_sides = len(shape) == 2 or (len(shape) > 2 and parameters.conv_as_matrix)
    if not has_sides or prod(shape) == 0:
        return False
    return not any(fnmatchcase(tensor, pattern) for pattern in parameters.dense_patterns)


def count_directions(tasks: TaskMatrices, rank_fraction: float | None) -> int:
    """Return how many singular directions each task matrix contributes: at least one."""
    return count_of_side(min(tasks.shape), tasks.n_models, rank_fraction)


def count_of_side(smaller: int, n_models: int, rank_fraction: float | None) -> int:
    """Return the same for matrices of which only the smaller side is known."""
    if rank_fraction is None:
        return max(1, smaller // n_models)
    return max(1, int(rank_fraction * smaller + 1e-9))


def runs(rows: int, columns: int) -> Iterator[slice]:
    """Yield runs of rows that hold about RUN_ELEMENTS elements."""
    step = max(1, RUN_ELEMENTS // max(1, columns))
    for begin in range(0, rows, step):
        yield slice(begin, min(rows, begin + step))


def _merge_vectors(base: Tensor, finetuned: Tensor, parameters: MatrixParameters, weights: tuple[float, ...]) -> Tensor:
    if parameters.vector_reduce == "base":
        return base.clone()
    divisor = len(finetuned) if parameters.vector_reduce == "mean" else 1
    flat_base, flat = base.flatten(), finetuned.reshape(len(finetuned), base.numel())
    merged = torch.empty_like(flat_base)
    for run in runs(base.numel(), 1):
        total = torch.zeros_like(flat_base[run], dtype=torch.float64)
        for model, weight in zip(flat, weights, strict=True):
            total.add_(model[run].double().sub_(flat_base[run]), alpha=weight)
        merged[run] = task_vectors.add(
            flat_base[run], total.div_(divisor), scaling_coefficient=parameters.scaling_coefficient
        )
    return merged.view(base.shape)
