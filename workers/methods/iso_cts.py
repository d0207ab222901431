"""Iso-CTS: Iso-C on the common directions of all task vectors and on a few directions of each task beside them.

Source: Marczak et al. 2025, arXiv:2502.04959, algorithm 2.
Departs from source: no more directions are taken than there are; directions that are zero up to rounding are left out;
    embeddings and heads are left out by name (docs/methods/iso_cts.md).
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from app.domain.parameters import MatrixParameters, RankTolerance
from workers.contract import MergeContext, Tick, merge_method
from workers.numerics import matrices, spectra
from workers.numerics.matrices import TaskMatrices
from workers.numerics.spectra import Singular


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
)
def merge(base: Tensor, finetuned: Tensor, parameters: IsoCtsParameters, context: MergeContext) -> Tensor:
    """Return θ₀ + λ σ̄ U⊥ V⊥ᵀ for a matrix, θ₀ + λ · mean of task vectors for any other tensor.

    base: [*shape]; finetuned: [n, *shape]; result: [*shape].
    """

    def merge_matrices(tasks: TaskMatrices) -> Tensor:
        return _merge_matrices(tasks, parameters, context.tick)

    return matrices.merge(base, finetuned, parameters, context, merge_matrices)


def _merge_matrices(tasks: TaskMatrices, parameters: IsoCtsParameters, tick: Tick) -> Tensor:
    n_common, n_specific = count_directions(min(tasks.shape), tasks.n_models, parameters.common_fraction)
    total = tasks.total()
    parts: list[Singular] = []
    common = total[:, :0]
    if n_common:
        parts.append(_keep(spectra.decompose(total, n_common), parameters.rank_tolerance))
        common = parts[0].left
    for index, model in enumerate(tasks.active if n_specific else ()):
        tick((index + 1) / (len(tasks.active) + 3))
        task = tasks.task(model)
        norm = torch.linalg.vector_norm(task)
        beside = task.sub_(common @ (common.mT @ task))
        found = spectra.decompose(beside, n_specific)
        parts.append(_keep(found, parameters.rank_tolerance, largest=norm))
    return _level(parts) if any(len(part.values) for part in parts) else total


def count_directions(smaller_side: int, n_models: int, common_fraction: float) -> tuple[int, int]:
    """Return how many directions are common, and how many each task has to itself; they fill the smaller side.

    The fraction is rounded so that the tasks share evenly; a half is rounded to the even number.
    """
    n_common = int(common_fraction * smaller_side + 1e-9)
    n_specific = min(round((smaller_side - n_common) / n_models), smaller_side // n_models)
    return smaller_side - n_specific * n_models, n_specific


def _keep(found: Singular, tolerance: float, largest: Tensor | None = None) -> Singular:
    """Drop the directions that are noise beside the largest value."""
    if not len(found.values):
        return found
    kept = found.values > tolerance * (found.values[0] if largest is None else largest)
    return Singular(found.left[:, kept], found.values[kept], found.right[kept])


def _level(parts: list[Singular]) -> Tensor:
    """Return σ̄ U⊥ V⊥ᵀ of the stacked directions."""
    left = torch.cat([part.left for part in parts], dim=1)
    right = torch.cat([part.right for part in parts])
    mean = torch.cat([part.values for part in parts]).mean()
    left_root = spectra.inverse_root(spectra.gram_of([left.mT], left.mT), lambda: left.mT)
    right_root = spectra.inverse_root(spectra.gram_of([right], right), lambda: right)
    return (left @ (left_root @ right_root).mul_(mean)) @ right
