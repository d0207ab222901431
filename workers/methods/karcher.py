"""Karcher mean: the point on the sphere whose squared angles to all models have the smallest sum, at their mean length.

Source: Karcher 1977, "Riemannian center of mass and mollifier smoothing"; for models arXiv:2603.04972.
Departs from source: models may be weighted; task vectors where a base model is given; only exact zeros have no
    direction; where directions balance, the mean is taken (docs/methods/karcher.md).
"""

from collections.abc import Sequence
from math import acos, cos, fsum, sin, sqrt
from typing import Annotated

from pydantic import Field
from torch import Tensor

from app.domain.parameters import Parameters
from workers.contract import MergeContext, StatisticRequest, merge_method
from workers.fusion import FusedMerge
from workers.numerics import fractions, spans
from workers.statistics.gram import TensorGrams

GRAMS = "angles"
OPPOSITE = 1e-6  # radians from a half turn within which no way to a point is the shortest


class KarcherParameters(Parameters):
    """Parameters of `karcher`."""

    max_iterations: Annotated[
        int, Field(ge=0, le=1000, description="Steps towards the mean at most; 0 stays at the mean of directions.")
    ] = 10
    tolerance: Annotated[
        float, Field(gt=0.0, le=1.0, description="Length of a step, in radians, below which the mean is found.")
    ] = 1e-5


def collect(_parameters: KarcherParameters) -> Sequence[StatisticRequest]:
    """Ask for each tensor's inner products."""
    return (TensorGrams(GRAMS),)


def fuse(parameters: KarcherParameters, context: MergeContext) -> FusedMerge:
    """Return what `merge` computes, fused."""
    return spans.fuse(_shares(parameters, context))


@merge_method(
    name="karcher",
    title="Karcher mean",
    summary="Center of mass of the models on the sphere of their directions, at their mean length.",
    source="Karcher 1977, Riemannian center of mass; for models arXiv:2603.04972",
    aliases=("karcher_mean", "frechet_mean"),
    parameters=KarcherParameters,
    base_model="optional",
    models=(1, None),
    weights="non_negative",
    granularity="element",
    statistic_passes=1,
    local_where=({},),
    neutral_parameters={},
    collect=collect,
    fused=fuse,
)
def merge(base: Tensor | None, finetuned: Tensor, parameters: KarcherParameters, context: MergeContext) -> Tensor:
    """Return θ₀ + N̄ · μ, μ the Karcher mean of the τᵢ; of the θᵢ, and without θ₀, where no base model is given.

    base: [m] or None; finetuned: [n, m]; result: [m].

    Raises: Invalid if all weights are 0.
    """
    return spans.combine(base, finetuned, _shares(parameters, context))


def _shares(parameters: KarcherParameters, context: MergeContext) -> list[float]:
    weights = fractions.of_sum(context.weights, method="karcher", tensor=context.tensor)
    return shares(context.statistics[GRAMS][context.tensor], weights, parameters)


def shares(gram: spans.Gram, weights: Sequence[float], parameters: KarcherParameters) -> list[float]:
    """Return how much of each vector the result holds. weights: their sum is 1."""
    lengths = spans.norms(gram)
    mean = spans.mean_direction(gram, weights)
    if mean is None:
        return list(weights)
    units = [share * length for share, length in zip(mean, lengths, strict=True)]
    found = _descend(spans.cosines(gram), units, _of_directions(weights, lengths), parameters)
    length = fsum(weight * length for weight, length in zip(weights, lengths, strict=True))
    return [length * share / own if own > 0 else 0.0 for share, own in zip(found, lengths, strict=True)]


def _of_directions(weights: Sequence[float], lengths: Sequence[float]) -> list[float]:
    # weights of those that have a direction; their sum is 1
    total = fsum(weight for weight, length in zip(weights, lengths, strict=True) if length > 0)
    return [weight / total if length > 0 else 0.0 for weight, length in zip(weights, lengths, strict=True)]


def _descend(
    cosines: spans.Gram, mean: list[float], weights: Sequence[float], parameters: KarcherParameters
) -> list[float]:
    # all points are given as shares of the unit vectors, whose inner products are their cosines
    for _ in range(parameters.max_iterations):
        step = _step(cosines, mean, weights)
        angle = spans.length_of(step, cosines)
        if angle < parameters.tolerance:
            break
        moved = [cos(angle) * at + sin(angle) / angle * to for at, to in zip(mean, step, strict=True)]
        length = spans.length_of(moved, cosines)
        mean = [share / length for share in moved]
    return mean


def _step(cosines: spans.Gram, mean: Sequence[float], weights: Sequence[float]) -> list[float]:
    # Σ wᵢ log_μ(uᵢ), with log_μ(u) = θ / sin θ · (u − cos θ · μ)
    towards = [fsum(share * cosine for share, cosine in zip(mean, row, strict=True)) for row in cosines]
    pulls = [weight * _stretch(dot) for weight, dot in zip(weights, towards, strict=True)]
    back = fsum(pull * dot for pull, dot in zip(pulls, towards, strict=True))
    return [pull - back * share for pull, share in zip(pulls, mean, strict=True)]


def _stretch(cosine: float) -> float:
    """Return θ / sin θ; 1 at 0, and 0 for opposite points, which pull every way alike."""
    angle = acos(max(-1.0, min(1.0, cosine)))
    sine = sqrt(max(0.0, (1.0 - cosine) * (1.0 + cosine)))
    if cosine < 0 and sine < OPPOSITE:
        return 0.0
    return angle / sine if sine > 0 else 1.0
