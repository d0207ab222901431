"""PERU-FFT: merge the models by any method, and keep for each task the largest entries of what the merge has lost.

Source: Jiang et al. 2023, arXiv:2310.01886 (PERU in versions 1 and 2, BYOM-FFT in version 3).
Departs from source: entries are replaced by the model's own values, so that density 1 gives the models to the bit;
    where entries are ranked the sources at hand do not say (docs/methods/peru_fft.md).
"""

from collections.abc import Mapping, Sequence

from pydantic import Field
from torch import Tensor

from app.domain.catalog import TaskAddition
from app.domain.parameters import Density, NestedMethod, Parameters, TrimScope
from workers.contract import MergeContext, NestedMerge, StatisticRequest, merge_method
from workers.numerics import residuals
from workers.patches import Patch
from workers.statistics.magnitudes import MagnitudeBoundaries
from workers.statistics.views import AgainstNested

SHARED = "shared"


class PeruFftParameters(Parameters):
    """Parameters of `peru_fft`."""

    shared: NestedMethod = Field(
        default=NestedMethod(method="task_arithmetic", parameters={"scaling_coefficient": 0.3}),
        description="The method that merges the models into what all tasks share.",
    )
    density: Density = 0.05
    scope: TrimScope = "global"


def collect(parameters: PeruFftParameters, nested: Mapping[str, NestedMerge]) -> Sequence[StatisticRequest]:
    """Ask where the largest entries of θᵢ − θ* end, unless all are kept."""
    if parameters.density >= 1:
        return ()
    boundaries = MagnitudeBoundaries(residuals.LARGEST, parameters.scope, residuals.KeptRank(parameters.density))
    return (AgainstNested(nested[SHARED], boundaries, nested[SHARED].granularity),)


def patch(
    _base: Tensor, finetuned: Tensor, shared: Tensor, parameters: PeruFftParameters, context: MergeContext
) -> Sequence[Patch]:
    """Return, per model, its values at the largest entries of its residual. finetuned: [n, m]; shared: [m]."""
    return residuals.replace_largest(finetuned, shared, parameters, context)


@merge_method(
    name="peru_fft",
    title="PERU-FFT",
    summary="Merges the models by any method and keeps, per task, the largest entries of what the merge lost.",
    source="Jiang et al. 2023, arXiv:2310.01886",
    aliases=("peru", "byom_fft", "byom"),
    parameters=PeruFftParameters,
    base_model="required",
    models=(1, None),
    granularity="element",
    statistic_passes=1,
    spared_passes=({"density": 1.0},),
    nested={SHARED: "merge_set"},
    collect=collect,
    patch=patch,
    patch_codec="replacement",
    task_addition=TaskAddition(method="post_pruning"),
)
def merge(base: Tensor, finetuned: Tensor, _parameters: PeruFftParameters, context: MergeContext) -> Tensor:
    """Return θ*, the merge that all tasks share. base: [m]; finetuned: [n, m]; result: [m]."""
    return context.nested[SHARED](base, finetuned, context)
