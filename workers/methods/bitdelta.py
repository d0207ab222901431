"""BitDelta: the base model, and for each task one bit per weight: which way it moved, all by the same length.

Source: Liu et al. 2024, arXiv:2402.10193, section 3.1.
Departs from source: the scales are not distilled, which needs data; small tensors keep their models' values whole
    (docs/methods/bitdelta.md).
"""

from collections.abc import Sequence

from torch import Tensor

from app.domain.catalog import TaskAddition
from app.domain.parameters import Parameters
from workers.contract import MergeContext, StatisticRequest, merge_method
from workers.numerics import task_vectors
from workers.patches import UNCHANGED, Patch, Signed, Whole
from workers.statistics.means import MeanMagnitudes

SCALES = "scales"


class BitDeltaParameters(Parameters):
    """`bitdelta` has no parameters."""


def collect(_parameters: BitDeltaParameters) -> Sequence[StatisticRequest]:
    """Ask for the scales."""
    return (MeanMagnitudes(SCALES),)


def patch(
    base: Tensor, finetuned: Tensor, _shared: Tensor, _parameters: BitDeltaParameters, context: MergeContext
) -> Sequence[Patch]:
    """Return, per model, the signs of its task vector and their scale, mean |τ|; below two dimensions its values."""
    scales = context.statistics[SCALES][context.tensor]
    is_vector = len(context.shape) < 2
    return [
        UNCHANGED if scale == 0 else Whole(model) if is_vector else _compress(model, base, scale)
        for model, scale in zip(finetuned, scales, strict=True)
    ]


@merge_method(
    name="bitdelta",
    version=2,
    title="BitDelta",
    summary="Keeps the base model and, per task, one sign bit per weight and one scale per tensor.",
    source="Liu et al. 2024, arXiv:2402.10193",
    aliases=("bit_delta", "1bit_delta"),
    parameters=BitDeltaParameters,
    base_model="required",
    models=(1, None),
    weights="unused",
    granularity="element",
    statistic_passes=1,
    collect=collect,
    patch=patch,
    patch_codec="sign",
    task_addition=TaskAddition(),
)
def merge(base: Tensor, _finetuned: Tensor, _parameters: BitDeltaParameters, _context: MergeContext) -> Tensor:
    """Return θ₀: what all tasks share. base: [m]; result: [m]."""
    return base.clone()


def _compress(model: Tensor, base: Tensor, scale: float) -> Patch:
    return Signed(task_vectors.subtract(model, base) >= 0, scale)  # 0 counts as +
