"""Merging tensors as matrices: which tensors are matrices, the task matrices of one, and what becomes of the others.

A task matrix is a model's task vector of one tensor, times the model's weight, in float64, twice as large as the tensor
itself: it is made when it is asked for, a run of columns at a time where the formula allows, and so is what is merged.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from math import fsum, prod, sqrt

import torch
from torch import Tensor

from app.domain.parameters import MatrixChoice, MatrixParameters
from workers.contract import MergeContext
from workers.numerics import task_vectors
from workers.stored import Models, StoredModels

RUN_ELEMENTS = 1 << 18  # what is made in float64 at a time where a whole tensor is not needed
MIN_COLUMNS = 64
ALL = slice(None)
Read = Callable[[int, slice, slice], Tensor]  # model, rows and columns with both ends: [rows, columns] float32
Delta = Callable[[slice], Tensor]  # some columns of what is merged, as if no matrix were tall: [rows, columns] float64


@dataclass(frozen=True)
class TaskMatrices:
    """One tensor of all models as matrices."""

    base: Tensor  # [rows, columns] float32
    read: Read
    n_models: int  # those that change nothing included
    weights: tuple[float, ...]
    active: tuple[int, ...]  # the models whose task matrix is not zero, in the order in which they are added up

    @classmethod
    def of(cls, base: Tensor, finetuned: Models, weights: tuple[float, ...]) -> "TaskMatrices":
        """Return the task matrices of some models. base: [rows, columns]; finetuned: [n, *shape], as many elements."""
        read = _reader(finetuned, *base.shape)
        tasks = cls(base, read, len(finetuned), weights, active=())
        changed = (model for model, weight in enumerate(weights) if weight != 0.0 and not tasks._is_base(model))
        return replace(tasks, active=tuple(changed))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.base.shape[0], self.base.shape[1]

    def norm(self, model: int) -> float:
        """Return the norm of a task matrix."""
        wide = self.wide()
        return sqrt(fsum(float(wide.task(model, columns).square_().sum()) for columns in wide.columns()))

    @property
    def is_tall(self) -> bool:
        """Whether there are more rows than columns."""
        return self.shape[0] > self.shape[1]

    def task(self, model: int, columns: slice = ALL) -> Tensor:
        """Return a model's task matrix, or some columns of it: [rows, columns] float64."""
        task = self.stored(model, columns).double().sub_(self.base[:, columns])
        return task if self.weights[model] == 1.0 else task.mul_(self.weights[model])

    def stored(self, model: int, columns: slice = ALL) -> Tensor:
        """Return a model's matrix, or some columns of it: [rows, columns] float32."""
        n_rows, n_columns = self.shape
        begin, end, _ = columns.indices(n_columns)
        return self.read(model, slice(0, n_rows), slice(begin, end))

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

        def read(model: int, some: slice, columns: slice) -> Tensor:
            return self.read(model, slice(rows.start + some.start, rows.start + some.stop), columns)

        return replace(self, base=self.base[rows], read=read)

    def transposed(self) -> "TaskMatrices":
        """Return the same matrices with rows and columns exchanged."""
        return replace(self, base=self.base.mT, read=lambda model, rows, columns: self.read(model, columns, rows).mT)

    def wide(self) -> "TaskMatrices":
        """Return the same matrices, transposed if they are tall: no more rows than columns."""
        return self.transposed() if self.is_tall else self

    def _is_base(self, model: int) -> bool:
        return all(
            torch.equal(self.read(model, rows, slice(0, self.shape[1])), self.base[rows]) for rows in runs(*self.shape)
        )


def _reader(finetuned: Models, rows: int, columns: int) -> Read:
    if isinstance(finetuned, StoredModels):
        return partial(finetuned.read_block, width=columns)
    matrices = finetuned.reshape(len(finetuned), rows, columns)
    return lambda model, some, run: matrices[model, some, run]


def merge(
    base: Tensor,
    finetuned: Models,
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
    tasks = TaskMatrices.of(base.reshape(base.shape[0], -1), finetuned, context.weights)
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


def _merge_vectors(base: Tensor, finetuned: Models, parameters: MatrixParameters, weights: tuple[float, ...]) -> Tensor:
    if parameters.vector_reduce == "base":
        return base.clone()
    divisor = len(finetuned) if parameters.vector_reduce == "mean" else 1
    flat_base, merged = base.reshape(1, base.numel()), torch.empty_like(base)
    read, flat = _reader(finetuned, *flat_base.shape), merged.view(1, -1)
    for run in runs(base.numel(), 1):
        total = torch.zeros_like(flat_base[:, run], dtype=torch.float64)
        for model, weight in enumerate(weights):
            total.add_(read(model, slice(0, 1), run).double().sub_(flat_base[:, run]), alpha=weight)
        flat[:, run] = task_vectors.add(
            flat_base[:, run], total.div_(divisor), scaling_coefficient=parameters.scaling_coefficient
        )
    return merged
