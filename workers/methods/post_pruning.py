"""Post-pruning: the base model, and for each task the largest entries of its task vector; nothing is merged.

Source: Jiang et al. 2023, arXiv:2310.01886, the baseline that PERU-FFT is compared with.
Departs from source: entries are replaced by the model's own values, so that density 1 gives the models to the bit;
    where entries are ranked the sources at hand do not say (docs/methods/post_pruning.md).
"""

from collections.abc import Sequence

from torch import Tensor

from app.domain.catalog import TaskAddition
from app.domain.parameters import Density, Parameters, TrimScope
from workers.contract import MergeContext, StatisticRequest, merge_method
from workers.numerics import residuals
from workers.patches import Patch
from workers.statistics.magnitudes import MagnitudeBoundaries


class PostPruningParameters(Parameters):
    """Parameters of `post_pruning`."""

    density: Density = 0.1
    scope: TrimScope = "global"


def collect(parameters: PostPruningParameters) -> Sequence[StatisticRequest]:
    """Ask where the largest entries end, unless all are kept."""
    if parameters.density >= 1:
        return ()
    return (MagnitudeBoundaries(residuals.LARGEST, parameters.scope, residuals.KeptRank(parameters.density)),)


def patch(
    base: Tensor, finetuned: Tensor, _shared: Tensor, parameters: PostPruningParameters, context: MergeContext
) -> Sequence[Patch]:
    """Return, per model, its values at the largest entries of its task vector. finetuned: [n, m]."""
    return residuals.replace_largest(finetuned, base, parameters, context)


@merge_method(
    name="post_pruning",
    title="Post-pruning",
    summary="Keeps the base model and, per task, the largest entries of its task vector.",
    source="Jiang et al. 2023, arXiv:2310.01886",
    aliases=("pp",),
    parameters=PostPruningParameters,
    base_model="required",
    models=(1, None),
    weights="unused",
    granularity="element",
    statistic_passes=1,
    spared_passes=({"density": 1.0},),
    local_where=({"scope": "tensor"},),
    collect=collect,
    patch=patch,
    patch_codec="replacement",
    task_addition=TaskAddition(),
)
def merge(base: Tensor, _finetuned: Tensor, _parameters: PostPruningParameters, _context: MergeContext) -> Tensor:
    """Return θ₀: what all tasks share. base: [m]; result: [m]."""
    return base.clone()
