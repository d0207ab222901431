"""Iso-CTS: Iso-C on the common directions of all task vectors and on a few directions of each task beside them.

Source: Marczak et al. 2025, arXiv:2502.04959, algorithm 2.
Departs from source: no more directions are taken than there are; directions that are zero up to rounding are left out;
    embeddings and heads are left out by name (docs/methods/iso_cts.md).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from app.domain.catalog import MatrixWork
from app.domain.parameters import MatrixParameters, RankTolerance
from workers.contract import MergeContext, Tick, merge_method
from workers.numerics import covers, matrices, spectra
from workers.numerics.covers import Part
from workers.numerics.matrices import Delta, TaskMatrices
from workers.stored import Models


class IsoCtsParameters(MatrixParameters):
    """Parameters of `iso_cts`."""

    common_fraction: Annotated[
        float,
        Field(
            ge=0.0,
            le=1.0,
            description="Fraction of the directions that are common ones, those of the sum; the tasks share the rest.",
        ),
    ] = 0.8
    rank_tolerance: RankTolerance = 1e-6


@merge_method(
    name="iso_cts",
    title="Iso-CTS",
    summary="Equal singular values on common directions and on a few task-specific ones beside them.",
    source="Marczak et al. 2025, arXiv:2502.04959",
    aliases=("iso_cts_merge", "isotropic_merging_common_and_task_specific"),
    parameters=IsoCtsParameters,
    base_model="required",
    models=(1, None),
    granularity="matrix",
    counts_copies_as_one=False,
    work=(MatrixWork(seconds=0.4), MatrixWork(seconds=0.05, each="model")),
)
def merge(base: Tensor, finetuned: Models, parameters: IsoCtsParameters, context: MergeContext) -> Tensor:
    """Return θ₀ + λ σ̄ U⊥ V⊥ᵀ for a matrix, θ₀ + λ · mean of task vectors for any other tensor.

    base: [*shape]; finetuned: [n, *shape]; result: [*shape].
    """

    def merge_matrices(tasks: TaskMatrices) -> Delta:
        find = _find_along if tasks.is_tall else _find_beside
        return _merge_matrices(tasks.wide(), find, parameters, context.tick)

    return matrices.merge(base, finetuned, parameters, context, merge_matrices)


@dataclass(frozen=True)
class _Common:
    """The left singular vectors of the sum of all task matrices."""

    squares: Tensor  # [k] their singular values, squared
    vectors: Tensor  # [rows, k] the first, largest first
    others: Tensor  # [rows, rows - k] a basis of what is orthogonal to them


def _merge_matrices(tasks: TaskMatrices, find: "FindPart", parameters: IsoCtsParameters, tick: Tick) -> Delta:
    n_common, n_specific = count_directions(tasks.shape[0], tasks.n_models, parameters.common_fraction)
    tolerance = max(parameters.rank_tolerance, spectra.NULL)
    common = _find_common(spectra.gram_of(map(tasks.total, tasks.columns()), tasks.base), n_common, tolerance)

    def find_parts() -> Iterator[Part]:
        yield Part(tasks.total, common.vectors)
        for index, model in enumerate(tasks.active if n_specific else ()):
            tick((index + 1) / (len(tasks.active) + 3))
            runs = partial(map, partial(tasks.task, model), tuple(tasks.columns()))
            noise = tolerance**2 * sum(float(run.square().sum()) for run in runs())
            yield find(tasks, model, common, n_specific, noise)

    cover = covers.stack(find_parts(), tasks.shape[0], tasks)
    values = torch.cat([factor.diagonal() for factor in cover.factors])
    if not len(values):
        return tasks.total
    return cover.expand([torch.diag(values.mean().expand(len(factor))) for factor in cover.factors])


FindPart = Callable[[TaskMatrices, int, _Common, int, float], Part]


def _find_common(gram: Tensor, n_common: int, tolerance: float) -> _Common:
    values, vectors = spectra.decompose_square(gram)
    n_kept = min(n_common, int((values > tolerance**2 * values[-1]).sum()))
    n_others = len(values) - n_kept
    return _Common(values[n_others:].flip(0), vectors[:, n_others:].flip(1), vectors[:, :n_others])


def _find_beside(tasks: TaskMatrices, model: int, common: _Common, rank: int, noise: float) -> Part:
    """Return the first directions of (I − U Uᵀ) τ, with U the common vectors: of coordinates in the others."""
    task, others = partial(tasks.task, model), common.others
    gram = spectra.gram_of((others.mT @ task(columns) for columns in tasks.columns()), others.mT)
    return Part(task, others @ _first(gram, rank, noise))


def _find_along(tasks: TaskMatrices, model: int, common: _Common, rank: int, noise: float) -> Part:
    """Return the first directions of τ (I − V Vᵀ): the same where matrices were turned, V being on their other side.

    With S = U Σ Vᵀ the sum, τ V Vᵀ is τ Sᵀ U Σ⁻² Uᵀ S.
    """
    task = partial(tasks.task, model)
    along = torch.zeros_like(common.vectors @ common.vectors.mT)
    for columns in tasks.columns():
        along.addmm_(task(columns), tasks.total(columns).mT)
    along = along @ (common.vectors / common.squares) @ common.vectors.mT

    gram = spectra.gram_of(
        (task(columns).addmm_(along, tasks.total(columns), alpha=-1.0) for columns in tasks.columns()), tasks.base
    )
    left = _first(gram, rank, noise)
    thin = left.mT @ along  # what is orthogonal to the directions need not be taken out

    def subtract(columns: slice) -> Tensor:
        return task(columns).addmm_(left, thin @ tasks.total(columns), alpha=-1.0)

    return Part(subtract, left)


def _first(gram: Tensor, rank: int, noise: float) -> Tensor:
    """Return the first left singular vectors, [rows, ≤ rank], largest first, of squared values above the noise."""
    values, vectors = spectra.decompose_square(gram)
    n_kept = min(rank, int((values > noise).sum()))
    first: Tensor = vectors[:, len(values) - n_kept :].flip(1)
    return first


def count_directions(smaller_side: int, n_models: int, common_fraction: float) -> tuple[int, int]:
    """Return how many directions are common, and how many each task has to itself; they fill the smaller side.

    The fraction is rounded so that the tasks share evenly; a half is rounded to the even number.
    """
    n_common = int(common_fraction * smaller_side + 1e-9)
    n_specific = min(round((smaller_side - n_common) / n_models), smaller_side // n_models)
    return smaller_side - n_specific * n_models, n_specific
