"""SCE: select the entries on which models differ most, calculate each model's share, erase the minority's signs.

Source: Wan et al. 2024, arXiv:2408.07990 (FuseChat), section 3.3.
Departs from source: by default what was not selected is dropped, as mergekit does, where the authors' code uses the
    selection for the shares alone; a tensor keeps at least one entry (docs/methods/sce.md).
"""

from collections.abc import Iterator, Sequence
from math import fsum
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from app.domain.parameters import Parameters
from workers.contract import MergeContext, Piece, merge_method
from workers.fusion import Election, FusedMerge, Rows
from workers.numerics import fused, precision, signs, spans, sparsify, task_vectors

RUN_ELEMENTS = 1 << 16


class SceParameters(Parameters):
    """Parameters of `sce`."""

    density: Annotated[
        float,
        Field(gt=0.0, le=1.0, description="Fraction selected of each tensor's entries on which the models differ."),
    ] = 1.0
    variant: Annotated[
        Literal["mergekit", "fuseai"],
        Field(description="mergekit: only selected entries are merged; fuseai: these only decide the models' shares."),
    ] = "mergekit"


@merge_method(
    name="sce",
    title="SCE",
    summary="Selects entries by variance, weighs models by their energy there, erases minority signs.",
    source="Wan et al. 2024, arXiv:2408.07990",
    aliases=("select_calculate_erase", "fusechat"),
    parameters=SceParameters,
    base_model="required",
    models=(1, None),
    weights="unused",
    granularity="tensor",
    neutral_parameters={"density": 1.0},
)
def merge(base: Tensor, finetuned: Tensor, parameters: SceParameters, context: MergeContext) -> Tensor:
    """Return θ₀ + Σ wᵢ τᵢ / Σ wᵢ over the τᵢ that have the elected sign.

    base: [*shape]; finetuned: [n, *shape]; result: [*shape]. A run of entries at a time, so that little is held beside
    the models.
    """
    origin, models = base.reshape(-1), finetuned.reshape(len(finetuned), -1)
    selected = select(origin, models, parameters.density)
    shares = weigh(origin, models, selected)
    merged = torch.empty_like(origin)
    for run in _cut(origin):
        agreed = _merge_agreeing(origin[run], models[:, run], shares)
        merged[run] = torch.where(selected[run], agreed, origin[run]) if parameters.variant == "mergekit" else agreed
    return merged.view(base.shape)


def select(base: Tensor, finetuned: Tensor, density: float) -> Tensor:
    """Return which entries are those of the largest variance, [m] bool; of equal ones the first.

    base: [m]; finetuned: [n, m]. Counted among the entries whose variance is not zero; at least one.
    """
    if density == 1.0:
        return torch.ones_like(base, dtype=torch.bool)
    variances = torch.empty_like(base, dtype=torch.float64)
    for run in _cut(base):
        variances[run] = _variance(finetuned[:, run], base[run])
    n_differing = int(variances.count_nonzero())
    n_kept = min(n_differing, max(1, sparsify.count_kept(density, n_differing)))
    last, n_tied = sparsify.find_last(variances, n_kept)
    return sparsify.mark_from(variances, last, n_tied)[0]


def weigh(base: Tensor, finetuned: Tensor, selected: Tensor) -> list[float]:
    """Return each task vector's share of their squared lengths over what is selected; equal shares if all are zero."""
    parts = [
        spans.squared_lengths(task_vectors.subtract(finetuned[:, run], base[run]).mul_(selected[run].float()))
        for run in _cut(base)
    ]
    energies = [fsum(of_model) for of_model in zip(*parts, strict=True)] or [0.0] * len(finetuned)
    total = fsum(energies)
    return [energy / total if total > 0 else 1.0 / len(energies) for energy in energies]


def _merge_agreeing(base: Tensor, finetuned: Tensor, shares: Sequence[float]) -> Tensor:
    """Return θ₀ + Σ wᵢ τᵢ / Σ wᵢ over the τᵢ that have the elected sign. base: [m]; finetuned: [n, m]; result: [m]."""
    once = (1.0,) * len(finetuned)
    if _is_fused(base):
        program = FusedMerge(tuple(shares), of_deltas=True, election=Election(once, 1, "mean"), base_share=1.0)
        merged = torch.empty_like(base)
        if fused.merge(_rows(base, finetuned), program, merged):
            return merged
    deltas = task_vectors.subtract(finetuned, base)
    agreed = signs.reduce_agreeing(deltas, signs.elect(deltas, once, balanced_sign=1), shares, reduction="mean")
    return task_vectors.add(base, agreed, scaling_coefficient=1.0)


def _cut(vector: Tensor) -> Iterator[slice]:
    yield from (slice(begin, begin + RUN_ELEMENTS) for begin in range(0, len(vector), RUN_ELEMENTS))


def _variance(finetuned: Tensor, base: Tensor) -> Tensor:
    # of the task vectors, [m] float64; exactly 0 where all are equal
    if _is_fused(base):
        return fused.spread(_rows(base, finetuned))
    deltas, n = task_vectors.subtract(finetuned, base), len(finetuned)
    mean = precision.weighted_sum(deltas, [1.0] * n).div_(n)
    return precision.weighted_sum([delta.double().sub_(mean).square_() for delta in deltas], [1.0] * n)


def _rows(base: Tensor, finetuned: Tensor) -> Rows:
    return Piece("", tuple(base.shape), 0, 0, base, finetuned).rows


def _is_fused(base: Tensor) -> bool:
    return base.device.type == "cpu" and fused.is_ready()
