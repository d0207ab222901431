"""Localize-and-stitch without data: each task keeps its largest entries; where tasks overlap, they are averaged.

Source: He et al. 2024, arXiv:2408.13656, section 3 (dataless variant, stitching).
Departs from source: entries are counted exactly, and one that a task did not change is not its own, however high the
    density (docs/methods/localize_and_stitch_dataless.md).
"""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor

from app.domain.catalog import TaskAddition
from app.domain.parameters import Density, Parameters, TrimScope
from app.domain.sums import SUMS_FILE
from workers.contract import MergeContext, StatisticRequest, merge_method
from workers.numerics import sparsify, stitching, task_vectors
from workers.statistics import trims
from workers.statistics.magnitudes import BoundaryTable, MagnitudeBoundaries
from workers.sums import Sums


class LocalizeAndStitchDatalessParameters(Parameters):
    """Parameters of `localize_and_stitch_dataless`."""

    density: Density = 0.05
    trim_scope: TrimScope = "global"
    keep_sums: Annotated[
        bool,
        Field(description="Keep numerator and denominator beside the result, so that tasks can be added to it."),
    ] = True


def collect(parameters: LocalizeAndStitchDatalessParameters) -> Sequence[StatisticRequest]:
    """Ask where each task's own entries end."""
    return (MagnitudeBoundaries(trims.TRIM, parameters.trim_scope, trims.KeptRank(parameters.density)),)


def keep(
    base: Tensor,
    finetuned: Tensor,
    parameters: LocalizeAndStitchDatalessParameters,
    context: MergeContext,
    onto: Sums | None,
) -> Sums | None:
    """Return Σ wᵢ mᵢ ⊙ τᵢ and Σ wᵢ mᵢ, the tasks of `onto` included, as the result keeps them."""
    return _stitch(base, finetuned, parameters, context, onto) if parameters.keep_sums else None


@merge_method(
    name="localize_and_stitch_dataless",
    title="Localize-and-stitch, dataless",
    summary="Keeps each task vector's largest entries and averages them where tasks overlap.",
    source="He et al. 2024, arXiv:2408.13656",
    aliases=("localize_stitch_dataless",),
    parameters=LocalizeAndStitchDatalessParameters,
    base_model="required",
    models=(1, None),
    weights="non_negative",
    granularity="element",
    statistic_passes=1,
    local_where=({"trim_scope": "tensor"},),
    neutral_parameters={"density": 1.0},
    collect=collect,
    sums=keep,
    task_addition=TaskAddition(fixed={"keep_sums": True}, file=SUMS_FILE),
)
def merge(
    base: Tensor, finetuned: Tensor, parameters: LocalizeAndStitchDatalessParameters, context: MergeContext
) -> Tensor:
    """Return θ₀ + Σ wᵢ mᵢ ⊙ τᵢ / Σ wᵢ mᵢ, 0/0 being 0.

    base: [m]; finetuned: [n, m]; result: [m].
    """
    stitched = _stitch(base, finetuned, parameters, context).divide()
    return task_vectors.add(base, stitched, scaling_coefficient=1.0)


def _stitch(
    base: Tensor,
    finetuned: Tensor,
    parameters: LocalizeAndStitchDatalessParameters,
    context: MergeContext,
    onto: Sums | None = None,
) -> Sums:
    table: BoundaryTable = context.statistics[trims.TRIM]
    kept = [boundaries[0] for boundaries in table.of(context.tensor)]
    start = context.position if parameters.trim_scope == "global" else context.offset
    localized = sparsify.trim(task_vectors.subtract(finetuned, base), kept, start=start)  # [n, m]
    return stitching.add_tasks(localized, context.weights, onto)
