"""CABS: models one after the other keep the largest entries of every block, among those that no earlier one has taken.

Source: Yang et al. 2025, arXiv:2503.01874, section 4.
Departs from source: a count is rounded up, so that short blocks at the end of a tensor keep their share
    (docs/methods/cabs.md).
"""

from collections.abc import Sequence
from math import ceil
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from app.domain.parameters import Density, Parameters, ScalingCoefficient
from workers.contract import MergeContext, merge_method
from workers.numerics import precision, sparsify, task_vectors

RUN_ELEMENTS = 1 << 17  # about as many are merged at a time


class CabsParameters(Parameters):
    """Parameters of `cabs`."""

    density: Density = 0.25
    block_size: Annotated[
        int, Field(ge=1, le=1 << 20, description="How many consecutive entries of a tensor are ranked together.")
    ] = 256
    scaling_coefficient: ScalingCoefficient = 1.0


@merge_method(
    name="cabs",
    title="Conflict-aware and balanced sparsification",
    summary="In the order given, each model keeps the largest free entries of every block; then they are added up.",
    source="Yang et al. 2025, arXiv:2503.01874",
    parameters=CabsParameters,
    base_model="required",
    models=(1, None),
    granularity="tensor",
    order_matters=True,
    neutral_parameters={"density": 1.0, "scaling_coefficient": 1.0},
)
def merge(base: Tensor, finetuned: Tensor, parameters: CabsParameters, context: MergeContext) -> Tensor:
    """Return θ₀ + λ Σ wᵢ mᵢ ⊙ τᵢ with masks that do not overlap. base: [*shape]; finetuned: [n, *shape].

    Blocks know nothing of each other, so that a run of them at a time is merged.
    """
    merged = torch.empty_like(base, memory_format=torch.contiguous_format).view(-1)
    run = parameters.block_size * max(1, RUN_ELEMENTS // parameters.block_size)
    models = finetuned.reshape(len(finetuned), -1)
    parts = (torch.split(base.reshape(-1), run), torch.split(models, run, dim=1), torch.split(merged, run))
    for origin, some, out in zip(*parts, strict=True):
        out.copy_(_merge_run(origin, some, parameters, context.weights))
    return merged.view(base.shape)


def _merge_run(base: Tensor, finetuned: Tensor, parameters: CabsParameters, weights: Sequence[float]) -> Tensor:
    # base: [m], whole blocks but for the tensor's last; finetuned: [n, m]
    free = torch.ones(base.numel(), dtype=torch.bool, device=base.device)
    kept: list[Tensor] = []
    for model, weight in zip(finetuned, weights, strict=True):
        delta = task_vectors.subtract(model, base)
        claimed = _claim(delta * free, parameters) if weight else torch.zeros_like(delta)
        free &= claimed == 0
        kept.append(claimed)
    merged = precision.weighted_sum(kept, weights)
    return task_vectors.add(base, merged, scaling_coefficient=parameters.scaling_coefficient)


def _claim(vector: Tensor, parameters: CabsParameters) -> Tensor:
    """Return the largest entries of every block, the others zero. vector: [m]; the last block may be short."""
    size = parameters.block_size
    whole = vector.numel() // size * size
    parts = (vector[:whole].view(-1, size), vector[whole:].view(1, -1))
    return torch.cat(
        [sparsify.keep_band_of_rows(rows, (0, _count(rows, parameters))).flatten() for rows in parts if rows.numel()]
        or [vector]
    )


def _count(rows: Tensor, parameters: CabsParameters) -> int:
    return ceil(parameters.density * rows.shape[-1] - 1e-9)
