"""Model Stock: pull the average of fine-tunings back towards the base model, the farther the wider their angle.

Source: Jang, Yun, Han 2024, arXiv:2403.19522, equation 2 for any number of models.
Departs from source: the ratio is held within [0, 1], also where task vectors oppose each other; rows can be taken one
    by one; no tensor is frozen by its name (docs/methods/model_stock.md).
"""

from collections.abc import Callable, Sequence
from math import acos, cos
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from app.domain.parameters import Parameters
from workers.contract import MergeContext, StatisticRequest, merge_method
from workers.fusion import FusedMerge, RowRatio
from workers.numerics import precision, spans
from workers.numerics.programs import SINGULAR
from workers.statistics.gram import TensorGrams

GRAMS = "angles"


class ModelStockParameters(Parameters):
    """Parameters of `model_stock`."""

    mean: Annotated[
        Literal["angle", "cosine"],
        Field(description="What is averaged over all pairs of task vectors: their angles, or the angles' cosines."),
    ] = "angle"
    scope: Annotated[
        Literal["tensor", "row"],
        Field(description="Where angles are measured: over each tensor, or each of its rows (last axis)."),
    ] = "tensor"
    clamp: Annotated[
        bool,
        Field(description="Hold the ratio within [0, 1]; off, opposed task vectors push away from their average."),
    ] = True


def collect(parameters: ModelStockParameters) -> Sequence[StatisticRequest]:
    """Ask for each tensor's inner products, unless rows are solved on the spot."""
    return (TensorGrams(GRAMS),) if parameters.scope == "tensor" else ()


def fuse(parameters: ModelStockParameters, context: MergeContext) -> FusedMerge:
    """Return what `merge` computes, fused."""
    if parameters.scope == "row":
        ratio = RowRatio(of_angles=parameters.mean == "angle", is_clamped=parameters.clamp)
        return FusedMerge(context.weights, of_deltas=True, reduction="pulled", ratio=ratio)
    return spans.fuse(_shares(context.statistics[GRAMS][context.tensor], parameters))


@merge_method(
    name="model_stock",
    title="Model Stock",
    summary="Interpolates between the base model and the average of fine-tunings by the angle between these.",
    source="Jang, Yun, Han 2024, arXiv:2403.19522",
    parameters=ModelStockParameters,
    base_model="required",
    models=(2, None),
    weights="unused",
    granularity="row",
    statistic_passes=1,
    spared_passes=({"scope": "row"},),
    local_where=({},),
    collect=collect,
    fused=fuse,
)
def merge(base: Tensor, finetuned: Tensor, parameters: ModelStockParameters, context: MergeContext) -> Tensor:
    """Return t · mean(θᵢ) + (1 − t) · θ₀.

    base: [rows, width]; finetuned: [n, rows, width]; result: [rows, width].
    """
    if parameters.scope == "row":
        shares = ratios(spans.row_products(finetuned, base), parameters) / len(finetuned)  # [rows]
        return spans.combine_rows(base, finetuned, shares.view(1, -1, 1).expand(len(finetuned), -1, -1))
    return spans.combine(base, finetuned, _shares(context.statistics[GRAMS][context.tensor], parameters))


def ratio(gram: spans.Gram, parameters: ModelStockParameters) -> float:
    """Return how far the result lies from the base model, as a fraction of the way to the average."""
    return float(ratios(torch.tensor([gram], dtype=torch.float64), parameters)[0])


def ratios(grams: Tensor, parameters: ModelStockParameters) -> Tensor:
    """Return `ratio` of each of many inner products. grams: [rows, n, n] float64; result: [rows] float64."""
    n = grams.shape[-1]
    first, second = torch.triu_indices(n, n, 1)
    pairs = spans.row_cosines(grams)[:, first, second].T  # [n_pairs, rows]
    cosine = _of_each(cos, _mean(_of_each(acos, pairs))) if parameters.mean == "angle" else _mean(pairs)
    denominator = 1 + (n - 1) * cosine
    has_none = denominator.abs() < SINGULAR
    if parameters.clamp:
        has_none |= cosine <= 0
    return torch.where(has_none, 0.0, n * cosine / denominator)


def _shares(gram: spans.Gram, parameters: ModelStockParameters) -> list[float]:
    return [ratio(gram, parameters) / len(gram)] * len(gram)


def _mean(values: Tensor) -> Tensor:
    return precision.weighted_sum(values, [1.0] * len(values)) / len(values)


def _of_each(function: Callable[[float], float], numbers: Tensor) -> Tensor:
    # one by one: torch's own differ by the last bit between processors
    found = [function(number) for number in numbers.flatten().tolist()]
    return torch.tensor(found, dtype=torch.float64, device=numbers.device).view(numbers.shape)
