"""Model Breadcrumbs: of each task vector keep the middle band of magnitudes, neither noise nor outliers, then add up.

Source: Davari, Belilovsky 2023, arXiv:2312.06795, section 3.
Departs from source: ranks are counted exactly, ties by position; a scope too small to keep one entry is kept whole
    (docs/methods/breadcrumbs.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from app.domain.catalog import TaskAddition
from app.domain.parameters import Density, OutlierFraction, Parameters, ScalingCoefficient
from workers.contract import MergeContext, StatisticRequest, merge_method
from workers.fusion import Band, Draw, Election, FusedMerge
from workers.numerics import randomness, signs, sparsify, task_vectors
from workers.numerics.precision import weighted_sum
from workers.statistics.magnitudes import BoundaryTable, MagnitudeBoundaries

BAND = "band"

MaskMode = Literal["band", "drop_outliers", "keep_largest", "random"]


class BreadcrumbsParameters(Parameters):
    """Parameters of `breadcrumbs`."""

    density: Density = 0.15
    outlier_fraction: OutlierFraction = 0.01
    scaling_coefficient: ScalingCoefficient = 0.3
    scope: Annotated[
        Literal["tensor", "row", "global"],
        Field(description="Where magnitudes are ranked: within each tensor, each row (last axis), or the whole model."),
    ] = "tensor"
    mask_mode: Annotated[
        MaskMode,
        Field(
            description="band: drop the outliers, keep the next `density`; drop_outliers: keep all but the outliers; "
            "keep_largest: keep the largest `density`; random: keep each entry with probability `density`."
        ),
    ] = "band"
    elect_signs: Annotated[
        bool,
        Field(description="Sum only the entries that agree with the sign of their weighted sum, as TIES does."),
    ] = False


@dataclass(frozen=True)
class BandRanks:
    """The two ranks between which entries are kept."""

    density: float
    outlier_fraction: float
    mask_mode: MaskMode

    def __call__(self, n: int) -> tuple[int, int]:
        """Return the first rank kept of n, and the first rank behind it that is not."""
        n_outliers = sparsify.count_kept(self.outlier_fraction, n)
        n_kept = sparsify.count_kept(self.density, n)
        if self.mask_mode == "drop_outliers":
            return n_outliers, n
        if n_kept == 0:
            return 0, n
        if self.mask_mode == "keep_largest":
            return 0, n_kept
        return n_outliers, min(n, n_outliers + n_kept)


def collect(parameters: BreadcrumbsParameters) -> Sequence[StatisticRequest]:
    """Ask where the band lies, unless rows are ranked on the spot or nothing is."""
    if parameters.scope == "row" or parameters.mask_mode == "random":
        return ()
    own = tuple(_ranks(one) for one in parameters.of_models)
    return (MagnitudeBoundaries(BAND, parameters.scope, _ranks(parameters), of_models=own),)


def fuse(parameters: BreadcrumbsParameters, context: MergeContext) -> FusedMerge | None:
    """Return what `merge` computes, fused; rows are ranked by torch alone."""
    if parameters.scope == "row" and parameters.mask_mode != "random":
        return None
    strengths = tuple(abs(weight) for weight in context.weights)
    return FusedMerge(
        context.weights,
        of_deltas=True,
        draws=_fuse_draws(parameters, context) if parameters.mask_mode == "random" else (),
        masks=_fuse_bands(context, parameters.scope) if parameters.mask_mode != "random" else (),
        election=Election(strengths, 1, "sum") if parameters.elect_signs else None,
        scaling=parameters.scaling_coefficient,
        base_share=1.0,
    )


@merge_method(
    name="breadcrumbs",
    title="Model Breadcrumbs",
    summary="Keeps the middle band of each task vector's magnitudes and adds the scaled sum to the base model.",
    source="Davari, Belilovsky 2023, arXiv:2312.06795",
    aliases=("magnitude_outliers", "middle_keep", "model_breadcrumbs"),
    parameters=BreadcrumbsParameters,
    base_model="required",
    models=(1, None),
    granularity="row",
    is_random=True,
    statistic_passes=1,
    spared_passes=({"scope": "row"}, {"mask_mode": "random"}),
    local_where=({"scope": "tensor"},),
    neutral_parameters={"density": 1.0, "outlier_fraction": 0.0, "scaling_coefficient": 1.0},
    per_model=("density", "outlier_fraction"),
    task_addition=TaskAddition(fixed={"elect_signs": False}),
    collect=collect,
    fused=fuse,
)
def merge(base: Tensor, finetuned: Tensor, parameters: BreadcrumbsParameters, context: MergeContext) -> Tensor:
    """Return θ₀ + α Σ wᵢ mᵢ ⊙ τᵢ.

    base: [rows, width]; finetuned: [n, rows, width]; result: [rows, width].
    """
    deltas = task_vectors.subtract(finetuned, base)  # [n, rows, width]
    masked = torch.stack([_mask(delta, model, parameters, context) for model, delta in enumerate(deltas)])
    merged = _sum_agreeing(masked, context) if parameters.elect_signs else weighted_sum(masked, context.weights)
    return task_vectors.add(base, merged, scaling_coefficient=parameters.scaling_coefficient)


def _mask(delta: Tensor, model: int, parameters: BreadcrumbsParameters, context: MergeContext) -> Tensor:
    # [rows, width]: the task vector with what is not kept set to zero
    if parameters.mask_mode == "random":
        key = context.random_key("mask", model)
        draws = randomness.draw_uniform(key, start=context.offset, n=delta.numel(), device=delta.device)
        return delta * (draws < parameters.of(model).density).view(delta.shape)
    if parameters.scope == "row":
        return sparsify.keep_band_of_rows(delta, _ranks(parameters.of(model))(delta.shape[-1]))
    band: BoundaryTable = context.statistics[BAND]
    upper, lower = band.of(context.tensor)[model]
    start = context.position if parameters.scope == "global" else context.offset
    return sparsify.keep_band(delta.flatten(), upper, lower, start=start).view(delta.shape)


def _fuse_draws(parameters: BreadcrumbsParameters, context: MergeContext) -> tuple[Draw, ...]:
    keys = [context.random_key("mask", model) for model in range(len(context.weights))]
    return tuple(Draw(key, parameters.of(model).density) for model, key in enumerate(keys))


def _fuse_bands(context: MergeContext, scope: Literal["tensor", "row", "global"]) -> tuple[Band, ...]:
    bands: BoundaryTable = context.statistics[BAND]
    origin = context.position if scope == "global" else 0
    return tuple(sparsify.fuse_band(*band, origin=origin) for band in bands.of(context.tensor))


def _sum_agreeing(deltas: Tensor, context: MergeContext) -> Tensor:
    strengths = [abs(weight) for weight in context.weights]
    oriented = signs.orient(deltas, context.weights)
    elected = signs.elect(oriented, strengths, balanced_sign=1)
    return signs.reduce_agreeing(oriented, elected, strengths, reduction="sum")


def _ranks(parameters: BreadcrumbsParameters) -> BandRanks:
    return BandRanks(parameters.density, parameters.outlier_fraction, parameters.mask_mode)
