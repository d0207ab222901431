"""Model Stock: pull the average of fine-tunings back towards the base model, the farther the wider their angle.

Source: Jang, Yun, Han 2024, arXiv:2403.19522, equation 2 for any number of models.
Departs from source: the ratio is held within [0, 1], also where task vectors oppose each other; rows can be taken one
    by one; no tensor is frozen by its name (docs/methods/model_stock.md).
"""

from collections.abc import Sequence
from itertools import combinations
from math import acos, cos, fsum
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from app.domain.parameters import Parameters
from workers.contract import MergeContext, StatisticRequest, merge_method
from workers.fusion import FusedMerge
from workers.numerics import spans
from workers.statistics.gram import TensorGrams

GRAMS = "angles"
SINGULAR = 1e-6  # 1 + (n − 1) cos θ below which nothing can be solved for: task vectors cancel


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


def fuse(parameters: ModelStockParameters, context: MergeContext) -> FusedMerge | None:
    """Return what `merge` computes, fused; rows are solved by torch alone."""
    if parameters.scope == "row":
        return None
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
    collect=collect,
    fused=fuse,
)
def merge(base: Tensor, finetuned: Tensor, parameters: ModelStockParameters, context: MergeContext) -> Tensor:
    """Return t · mean(θᵢ) + (1 − t) · θ₀.

    base: [rows, width]; finetuned: [n, rows, width]; result: [rows, width].
    """
    if parameters.scope == "row":
        grams = spans.row_products(finetuned, base).tolist()
        shares = torch.tensor([_shares(gram, parameters) for gram in grams], dtype=torch.float64)  # [rows, n]
        return spans.combine_rows(base, finetuned, shares.T.unsqueeze(-1).to(finetuned.device))
    return spans.combine(base, finetuned, _shares(context.statistics[GRAMS][context.tensor], parameters))


def ratio(gram: spans.Gram, parameters: ModelStockParameters) -> float:
    """Return how far the result lies from the base model, as a fraction of the way to the average."""
    n = len(gram)
    cosines = spans.cosines(gram)
    pairs = [cosines[first][second] for first, second in combinations(range(n), 2)]
    mean = _mean([acos(cosine) for cosine in pairs]) if parameters.mean == "angle" else _mean(pairs)
    cosine = cos(mean) if parameters.mean == "angle" else mean
    if parameters.clamp and cosine <= 0:
        return 0.0
    denominator = 1 + (n - 1) * cosine
    return 0.0 if abs(denominator) < SINGULAR else n * cosine / denominator


def _shares(gram: spans.Gram, parameters: ModelStockParameters) -> list[float]:
    return [ratio(gram, parameters) / len(gram)] * len(gram)


def _mean(values: Sequence[float]) -> float:
    return fsum(values) / len(values)
