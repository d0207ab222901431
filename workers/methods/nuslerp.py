"""NuSLERP: slerp with a weight per model, between task vectors where a base model is given, and line by line if wanted.

Source: Goddard 2024, mergekit's method of that name; Shoemake 1985 for the arc.
Departs from source: vectors that are parallel or opposite up to rounding, and zeros, take the straight line
    (docs/methods/nuslerp.md).
"""

from collections.abc import Sequence
from math import prod
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from app.domain.parameters import Parameters
from workers.contract import MergeContext, StatisticRequest, merge_method
from workers.fusion import FusedMerge
from workers.numerics import spans
from workers.statistics.gram import ColumnGrams, TensorGrams

GRAMS = "angles"
NO_SUM = 1e-6  # of the weights: below, there is no share to take of it, and both models count alike
NO_ARC = 1e-6  # sine of the angle: below, the arc is its chord, or no way is the shortest


class NuslerpParameters(Parameters):
    """Parameters of `nuslerp`."""

    scope: Annotated[
        Literal["tensor", "row", "column"],
        Field(
            description="What is a vector: each tensor, each of its rows (last axis), or each column (first axis); a "
            "tensor of fewer than 2 dimensions is always one."
        ),
    ] = "tensor"


def collect(parameters: NuslerpParameters) -> Sequence[StatisticRequest]:
    """Ask for the inner products of tensors or columns; rows are solved on the spot."""
    if parameters.scope == "row":
        return ()
    return (TensorGrams(GRAMS) if parameters.scope == "tensor" else ColumnGrams(GRAMS),)


def fuse(parameters: NuslerpParameters, context: MergeContext) -> FusedMerge | None:
    """Return what `merge` computes, fused; rows and columns have shares of their own."""
    return spans.fuse(_of_tensor(context)) if parameters.scope == "tensor" else None


@merge_method(
    name="nuslerp",
    title="NuSLERP",
    summary="Spherical interpolation between two models by weight, of tensors, rows or columns, or of task vectors.",
    source="Goddard 2024, NuSLERP, mergekit; Shoemake 1985 for the arc",
    parameters=NuslerpParameters,
    base_model="optional",
    models=(2, 2),
    granularity="row",
    statistic_passes=1,
    spared_passes=({"scope": "row"},),
    local_where=({},),
    collect=collect,
    fused=fuse,
)
def merge(base: Tensor | None, finetuned: Tensor, parameters: NuslerpParameters, context: MergeContext) -> Tensor:
    """Return θ₀ + the point at t = w₂ / (w₁ + w₂) of the arc from τ₁ to τ₂; of θ₁ and θ₂ where there is no base model.

    base: [rows, width] or None; finetuned: [2, rows, width]; result: [rows, width].
    """
    if parameters.scope == "tensor":
        return spans.combine(base, finetuned, _of_tensor(context))
    t = position(context.weights)
    if parameters.scope == "row" or len(context.shape) < 2:
        own = shares(spans.row_products(finetuned, base), t).unsqueeze(-1)  # [2, rows, 1]
    else:
        own = _of_columns(shares(context.statistics[GRAMS][context.tensor], t), context, n_rows=finetuned.shape[1])
    return spans.combine_rows(base, finetuned, own.to(finetuned.device))


def position(weights: Sequence[float]) -> float:
    """Return t: the second model's share of the weights, one half where they cancel."""
    total = weights[0] + weights[1]
    return 0.5 if abs(total) < NO_SUM else weights[1] / total


def shares(gram: Tensor, t: float) -> Tensor:
    """Return how much of each vector the point at t of the arc holds.

    gram: [n_vectors, 2, 2] float64, the inner products; result: [2, n_vectors] float64.
    """
    lengths = gram[:, 0, 0].sqrt() * gram[:, 1, 1].sqrt()
    has_arc = lengths > 0
    cosine = torch.where(has_arc, gram[:, 0, 1] / lengths.where(has_arc, 1.0), 1.0).clamp_(-1.0, 1.0)
    sine = ((1.0 - cosine) * (1.0 + cosine)).sqrt_()
    has_arc = sine >= NO_ARC
    angle, sine = cosine.acos(), sine.where(has_arc, 1.0)
    arc = torch.stack([((1.0 - t) * angle).sin() / sine, (t * angle).sin() / sine])
    chord = torch.tensor([1.0 - t, t], dtype=torch.float64, device=gram.device).unsqueeze(-1)
    return torch.where(has_arc, arc, chord)


def _of_tensor(context: MergeContext) -> list[float]:
    gram = torch.tensor(context.statistics[GRAMS][context.tensor], dtype=torch.float64).view(1, 2, 2)
    found: list[float] = shares(gram, position(context.weights)).flatten().tolist()
    return found


def _of_columns(own: Tensor, context: MergeContext, *, n_rows: int) -> Tensor:
    # from shares of each column, [2, columns], to those of the piece's entries, [2, rows, width]
    width = context.shape[-1]
    planes = own.view(2, -1, width)
    first = context.offset // width
    rows = torch.arange(first, first + n_rows) % (prod(context.shape[1:]) // width)
    return planes[:, rows]
