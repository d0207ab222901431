"""DARE, linear: drop entries of each task vector by chance, scale up what is left, then add as task arithmetic does.

Source: Yu et al. 2023, arXiv:2311.03099, section 3.2 and equation 3.
"""

from collections.abc import Sequence

from torch import Tensor

from app.domain.parameters import DropRescale, KeepProbability, Parameters, ScalingCoefficient
from workers.contract import MergeContext, StatisticRequest, merge_method
from workers.fusion import FusedMerge
from workers.numerics import precision, random_masks, task_vectors
from workers.statistics import drawn


class DareLinearParameters(Parameters):
    """Parameters of `dare_linear`."""

    density: KeepProbability = 0.5
    rescale: DropRescale = "inverse_density"
    scaling_coefficient: ScalingCoefficient = 1.0


def collect(parameters: DareLinearParameters) -> Sequence[StatisticRequest]:
    """Ask for the sums of magnitudes, if they are to be restored."""
    return drawn.request_norms(_mask(parameters))


def fuse(parameters: DareLinearParameters, context: MergeContext) -> FusedMerge:
    """Return what `merge` computes, fused."""
    draws = random_masks.fuse_draws(_mask(parameters), context, drawn.factors_of(context))
    scaling = parameters.scaling_coefficient
    return FusedMerge(context.weights, of_deltas=True, draws=draws, scaling=scaling, base_share=1.0)


@merge_method(
    name="dare_linear",
    title="DARE, linear",
    summary="Drops entries of each task vector by chance, rescales the rest, and adds the scaled sum to the base.",
    source="Yu et al. 2023, arXiv:2311.03099",
    aliases=("dare", "dare_task_arithmetic"),
    parameters=DareLinearParameters,
    base_model="required",
    models=(1, None),
    granularity="element",
    is_random=True,
    statistic_passes=1,
    spared_passes=({"rescale": "inverse_density"}, {"rescale": "none"}),
    local_where=({},),
    neutral_parameters={"density": 1.0, "scaling_coefficient": 1.0},
    per_model=("density",),
    collect=collect,
    fused=fuse,
)
def merge(base: Tensor, finetuned: Tensor, parameters: DareLinearParameters, context: MergeContext) -> Tensor:
    """Return θ₀ + λ Σ wᵢ rᵢ mᵢ ⊙ τᵢ.

    base: [m]; finetuned: [n, m]; result: [m].
    """
    factors = drawn.factors_of(context)
    left = random_masks.draw_all(_mask(parameters), task_vectors.subtract(finetuned, base), context, factors)
    merged = precision.weighted_sum(left, context.weights)
    return task_vectors.add(base, merged, scaling_coefficient=parameters.scaling_coefficient)


def _mask(parameters: DareLinearParameters) -> random_masks.UniformMask:
    own = tuple(random_masks.UniformMask(one.density, one.rescale) for one in parameters.of_models)
    return random_masks.UniformMask(parameters.density, parameters.rescale, own)
