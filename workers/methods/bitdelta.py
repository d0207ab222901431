"""BitDelta: the base model, and for each task one bit per weight: which way it moved, all by the same length.

Source: Liu et al. 2024, arXiv:2402.10193, section 3.1.
Departs from source: the scales are not distilled, which needs data; small tensors keep their models' values whole
    (docs/methods/bitdelta.md).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from app.domain.catalog import TaskAddition
from app.domain.parameters import Parameters
from workers.contract import MergeContext, merge_method
from workers.numerics import task_vectors
from workers.patches import Patch, Replacement, Signed, Whole


class BitDeltaParameters(Parameters):
    """`bitdelta` has no parameters."""


def patch(
    base: Tensor, finetuned: Tensor, _shared: Tensor, _parameters: BitDeltaParameters, _context: MergeContext
) -> Sequence[Patch]:
    """Return, per model, the signs of its task vector and their scale, mean |τ|; below two dimensions its values."""
    if base.dim() < 2:
        return [Whole(model.reshape(-1)) for model in finetuned]
    return [_compress(model, base) for model in finetuned]


@merge_method(
    name="bitdelta",
    title="BitDelta",
    summary="Keeps the base model and, per task, one sign bit per weight and one scale per tensor.",
    source="Liu et al. 2024, arXiv:2402.10193",
    aliases=("bit_delta", "1bit_delta"),
    parameters=BitDeltaParameters,
    base_model="required",
    models=(1, None),
    weights="unused",
    granularity="tensor",
    patch=patch,
    patch_codec="sign",
    task_addition=TaskAddition(),
)
def merge(base: Tensor, _finetuned: Tensor, _parameters: BitDeltaParameters, _context: MergeContext) -> Tensor:
    """Return θ₀: what all tasks share. base: [*shape]; result: [*shape]."""
    return base.clone()


def _compress(model: Tensor, base: Tensor) -> Patch:
    delta = task_vectors.subtract(model, base).reshape(-1)
    scale = float(delta.abs().mean(dtype=torch.float64)) if delta.numel() else 0.0
    if scale == 0:
        return Replacement(torch.empty(0, dtype=torch.int64), torch.empty(0))
    return Signed(delta >= 0, scale)  # 0 counts as +
