"""Slerp: walk from one model to the other along the arc between them, tensor by tensor.

Source: Shoemake 1985, "Animating rotation with quaternion curves", equation of section 3.3.
Departs from source: the tensors are not normalized, only their angle is taken from unit vectors, so that equal norms
    are kept; nearly parallel and zero tensors take the straight line (docs/methods/slerp.md).
"""

from collections.abc import Sequence
from math import acos, sin

from torch import Tensor

from app.domain.parameters import InterpolationPosition, Parameters
from workers.contract import MergeContext, StatisticRequest, merge_method
from workers.fusion import FusedMerge
from workers.numerics import spans
from workers.statistics.gram import TensorGrams

GRAMS = "angles"
NEARLY_PARALLEL = 0.9995  # |cosine| from which the arc is taken as its chord: sin(angle) gets too small to divide by


class SlerpParameters(Parameters):
    """Parameters of `slerp`."""

    t: InterpolationPosition = 0.5


def collect(_parameters: SlerpParameters) -> Sequence[StatisticRequest]:
    """Ask for each tensor's inner products."""
    return (TensorGrams(GRAMS, of_weights=True),)


def fuse(parameters: SlerpParameters, context: MergeContext) -> FusedMerge:
    """Return what `merge` computes, fused."""
    return FusedMerge(shares(context.statistics[GRAMS][context.tensor], parameters.t))


@merge_method(
    name="slerp",
    title="Slerp",
    summary="Spherical interpolation between exactly two models.",
    source="Shoemake 1985, Animating rotation with quaternion curves",
    aliases=("spherical_interpolation",),
    parameters=SlerpParameters,
    base_model="unused",
    models=(2, 2),
    weights="unused",
    granularity="element",
    order_matters=True,
    is_scale_equivariant=False,
    statistic_passes=1,
    local_where=({},),
    collect=collect,
    fused=fuse,
)
def merge(base: Tensor | None, finetuned: Tensor, parameters: SlerpParameters, context: MergeContext) -> Tensor:
    """Return the point at t of the arc from models[0] to models[1], the angle being that of the whole tensors.

    base: unused; finetuned: [2, m]; result: [m].
    """
    return spans.combine(None, finetuned, shares(context.statistics[GRAMS][context.tensor], parameters.t))


def shares(gram: spans.Gram, t: float) -> tuple[float, float]:
    """Return how much of each tensor the point at t of the arc holds: sin((1 − t)Ω) / sin Ω and sin(tΩ) / sin Ω.

    The tensors are not normalized, so equal norms are kept. Where a norm is 0 or |cos Ω| > 0.9995 there is no arc to
    speak of: the straight line is taken, as for tensors of one element.
    """
    one, other = spans.norms(gram)
    cosine = gram[0][1] / (one * other) if one > 0 and other > 0 else 1.0
    if abs(cosine) > NEARLY_PARALLEL:
        return 1.0 - t, t
    angle = acos(cosine)
    return sin((1.0 - t) * angle) / sin(angle), sin(t * angle) / sin(angle)
