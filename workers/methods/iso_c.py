"""Iso-C: add up the task vectors and give all singular directions of the sum the same strength.

Source: Marczak et al. 2025, arXiv:2502.04959, algorithm 1.
Departs from source: directions of the sum that are zero up to rounding stay zero; embeddings and heads are left out by
    name (docs/methods/iso_c.md).
"""

from torch import Tensor

from app.domain.catalog import MatrixWork
from app.domain.parameters import MatrixParameters, RankTolerance
from workers.contract import MergeContext, merge_method
from workers.numerics import matrices, spectra
from workers.numerics.matrices import Delta, TaskMatrices
from workers.stored import Models


class IsoCParameters(MatrixParameters):
    """Parameters of `iso_c`."""

    rank_tolerance: RankTolerance = 1e-6


@merge_method(
    name="iso_c",
    title="Iso-C",
    summary="Adds up the task vectors and makes all singular values of the sum equal to their mean.",
    source="Marczak et al. 2025, arXiv:2502.04959",
    aliases=("isotropic_merging", "iso_c_merge"),
    parameters=IsoCParameters,
    base_model="required",
    models=(1, None),
    granularity="matrix",
    counts_copies_as_one=False,
    work=(MatrixWork(seconds=0.14),),
)
def merge(base: Tensor, finetuned: Models, parameters: IsoCParameters, context: MergeContext) -> Tensor:
    """Return θ₀ + λ σ̄ U Vᵀ for a matrix, with U Σ Vᵀ the sum of task vectors; θ₀ + λ · mean for any other tensor.

    base: [*shape]; finetuned: [n, *shape]; result: [*shape].
    """

    def merge_matrices(tasks: TaskMatrices) -> Delta:
        wide = tasks.wide()
        gram = spectra.gram_of(map(wide.total, wide.columns()), wide.base)
        if not gram.any():
            return wide.total
        found = spectra.find_all_left(
            gram, lambda: map(wide.total, wide.columns()), tolerance=parameters.rank_tolerance
        )
        level = found.power(-1.0).mul_(found.values.mean())
        return lambda columns: level @ wide.total(columns)

    return matrices.merge(base, finetuned, parameters, context, merge_matrices)
