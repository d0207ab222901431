"""TSV-Merge: keep the leading singular directions of each task vector, make those of all tasks orthogonal, add up.

Source: Gargiulo et al. 2024, arXiv:2412.00081, algorithm 1.
Departs from source: where the stacked directions depend on each other, no arbitrary direction is added; at least one
    direction is kept of each task; embeddings and heads are left out by name (docs/methods/tsv_m.md).
"""

from torch import Tensor

from app.domain.catalog import MatrixWork
from app.domain.parameters import MatrixParameters, RankFraction
from workers.contract import MergeContext, merge_method
from workers.numerics import covers, matrices
from workers.numerics.matrices import Delta, TaskMatrices
from workers.stored import Models


class TsvMParameters(MatrixParameters):
    """Parameters of `tsv_m`."""

    rank_fraction: RankFraction = None


@merge_method(
    name="tsv_m",
    title="TSV-Merge",
    summary="Keeps each task vector's leading singular directions, orthogonalizes them across tasks and adds them up.",
    source="Gargiulo et al. 2024, arXiv:2412.00081",
    aliases=("task_singular_vector", "task_singular_vector_merging", "tsvm"),
    parameters=TsvMParameters,
    base_model="required",
    models=(1, None),
    granularity="matrix",
    neutral_parameters={},
    counts_copies_as_one=False,
    work=(MatrixWork(seconds=0.45), MatrixWork(seconds=0.055, each="model")),
)
def merge(base: Tensor, finetuned: Models, parameters: TsvMParameters, context: MergeContext) -> Tensor:
    """Return θ₀ + λ U⊥ Σ V⊥ᵀ for a matrix, θ₀ + λ · mean of task vectors for any other tensor.

    base: [*shape]; finetuned: [n, *shape]; result: [*shape].
    """

    def merge_matrices(tasks: TaskMatrices) -> Delta:
        rank = matrices.count_directions(tasks, parameters.rank_fraction)
        cover = covers.cover(tasks.wide(), rank, context.tick, is_singular=False)
        return cover.expand(cover.factors)

    return matrices.merge(base, finetuned, parameters, context, merge_matrices)
