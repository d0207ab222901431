"""DELLA, linear: drop small entries of each row more often than large ones, scale up what is left, then add up.

Source: Deep et al. 2024, arXiv:2406.11617, section 3.1 (MagPrune).
Departs from source: no signs are elected, as in mergekit; the clamps are those of `della`
    (docs/methods/della_linear.md).
"""

from collections.abc import Sequence

from torch import Tensor

from app.domain.parameters import DensitySpread, KeepProbability, Parameters, RankedDropRescale, ScalingCoefficient
from workers.contract import MergeContext, StatisticRequest, merge_method
from workers.fusion import FusedMerge
from workers.numerics import random_masks, task_vectors
from workers.statistics import drawn


class DellaLinearParameters(Parameters):
    """Parameters of `della_linear`."""

    density: KeepProbability = 0.7
    density_spread: DensitySpread = 0.07
    rescale: RankedDropRescale = "inverse_probability"
    scaling_coefficient: ScalingCoefficient = 1.0


def collect(parameters: DellaLinearParameters) -> Sequence[StatisticRequest]:
    """Ask for the sums of magnitudes, if they are to be restored."""
    return drawn.request_norms(_mask(parameters))


def fuse(parameters: DellaLinearParameters, context: MergeContext) -> FusedMerge:
    """Return what `merge` computes, fused."""
    draws = random_masks.fuse_draws(_mask(parameters), context, drawn.factors_of(context))
    scaling = parameters.scaling_coefficient
    return FusedMerge(context.weights, of_deltas=True, draws=draws, scaling=scaling, base_share=1.0)


@merge_method(
    name="della_linear",
    title="DELLA, linear",
    summary="Drops small entries more often than large ones, rescales the rest, and adds the scaled sum to the base.",
    source="Deep et al. 2024, arXiv:2406.11617",
    aliases=("della_task_arithmetic", "magprune"),
    parameters=DellaLinearParameters,
    base_model="required",
    models=(1, None),
    granularity="row",
    is_random=True,
    statistic_passes=1,
    spared_passes=({"rescale": "inverse_probability"}, {"rescale": "none"}),
    local_where=({},),
    neutral_parameters={"density": 1.0, "density_spread": 0.0, "scaling_coefficient": 1.0},
    per_model=("density", "density_spread"),
    collect=collect,
    fused=fuse,
)
def merge(base: Tensor, finetuned: Tensor, parameters: DellaLinearParameters, context: MergeContext) -> Tensor:
    """Return θ₀ + λ Σ wᵢ rᵢ mᵢ ⊙ τᵢ.

    base: [rows, width]; finetuned: [n, rows, width]; result: [rows, width].
    """
    factors = drawn.factors_of(context)
    left = random_masks.draw_all(_mask(parameters), task_vectors.subtract(finetuned, base), context, factors)
    return task_vectors.add_weighted(base, left, context.weights, scaling_coefficient=parameters.scaling_coefficient)


def _mask(parameters: DellaLinearParameters) -> random_masks.RankedMask:
    own = tuple(random_masks.RankedMask(one.density, one.density_spread, one.rescale) for one in parameters.of_models)
    return random_masks.RankedMask(parameters.density, parameters.density_spread, parameters.rescale, own)
