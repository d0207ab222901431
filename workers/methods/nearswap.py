"""NearSwap: take from a second model what lies near the first; what is far off moves by a fixed step only.

Source: alchemonaut 2024, QuartetAnemoi-70B-t0.0001, huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001.
Departs from source: differences below 1e-6 are treated like all others (docs/methods/nearswap.md).
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from app.domain.parameters import Parameters
from workers.contract import MergeContext, merge_method
from workers.fusion import FusedMerge
from workers.numerics import precision, task_vectors


class NearswapParameters(Parameters):
    """Parameters of `nearswap`."""

    max_change: Annotated[
        float,
        Field(ge=0.0, description="How far an entry may move at most; entries no farther apart are swapped."),
    ] = 1e-4


def fuse(parameters: NearswapParameters, _context: MergeContext) -> FusedMerge:
    """Return what `merge` computes, fused."""
    return FusedMerge((1.0,), of_deltas=True, reduction="near", reach=parameters.max_change)


@merge_method(
    name="nearswap",
    title="NearSwap",
    summary="Moves the base model towards another one, no entry by more than a given step.",
    source="alchemonaut 2024, QuartetAnemoi-70B-t0.0001",
    aliases=("near_swap",),
    parameters=NearswapParameters,
    base_model="required",
    models=(1, 1),
    weights="unused",
    granularity="element",
    neutral_parameters={"max_change": 1e6},
    is_scale_equivariant=False,
    fused=fuse,
)
def merge(base: Tensor, finetuned: Tensor, parameters: NearswapParameters, context: MergeContext) -> Tensor:
    """Return θ₀ + τ cut off at ± max_change.

    base: [m]; finetuned: [1, m]; result: [m]. Where nothing is cut off, it is the model to the bit.
    """
    delta = task_vectors.subtract(finetuned[0], base)
    step = parameters.max_change
    moved = precision.weighted_sum((base, delta.sign()), (1.0, step))
    return torch.where(delta.abs() <= step, finetuned[0], precision.round_to_float32(moved))
