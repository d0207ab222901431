"""TSV-Compress: the base model, and for each task its matrices' largest singular components.

Source: Gargiulo et al. 2024, arXiv:2412.00081, section 3.1 (compression).
Departs from source: tensors that are no matrices keep their models' values whole; so do matrices whose factors would
    be no smaller (docs/methods/tsv_c.md).
"""

from collections.abc import Sequence

from torch import Tensor

from app.domain.catalog import MatrixWork
from app.domain.parameters import Parameters, RankFraction
from workers.contract import MergeContext, merge_method
from workers.numerics import low_rank, matrices, residuals
from workers.patches import Patch
from workers.stored import Models


class TsvCompressParameters(Parameters):
    """Parameters of `tsv_c`."""

    rank_fraction: RankFraction = None


def patch(
    base: Tensor, finetuned: Models, _shared: Tensor, parameters: TsvCompressParameters, context: MergeContext
) -> Sequence[Patch]:
    """Return, per model, the truncated task vector, or its values where that would be no smaller."""
    if base.dim() != 2:
        return residuals.replace_changed(finetuned, base)
    rows, columns = base.shape
    rank = matrices.count_of_side(min(rows, columns), len(finetuned), parameters.rank_fraction)
    if not low_rank.pays(rank, rows, columns):
        return residuals.replace_changed(finetuned, base)
    return low_rank.truncate_changes(finetuned, base, rank=rank, tick=context.tick)


@merge_method(
    name="tsv_c",
    version=2,
    title="TSV-Compress",
    summary="Keeps the base model and, per task, the largest singular components of its task matrices.",
    source="Gargiulo et al. 2024, arXiv:2412.00081",
    aliases=("tsv_compress", "tsvc"),
    parameters=TsvCompressParameters,
    base_model="required",
    models=(1, None),
    weights="unused",
    granularity="matrix",
    patch=patch,
    patch_codec="low_rank",
    work=(MatrixWork(seconds=0.1, each="model"),),
)
def merge(base: Tensor, _finetuned: Models, _parameters: TsvCompressParameters, _context: MergeContext) -> Tensor:
    """Return θ₀ itself: what all tasks share. base: [*shape]; result: [*shape]."""
    return base
