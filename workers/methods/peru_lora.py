"""PERU-LoRA: for each task the largest singular components of its task vector, over the base or over a merge.

Source: Jiang et al. 2023, arXiv:2310.01886 (PERU-LoRA in versions 1 and 2, BYOM-LoRA in version 3).
Departs from source: dense models are taken, too, and adapters as the update they make; `energy` chooses the rank per
    matrix; the mode `residual` is ours (docs/methods/peru_lora.md).
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from app.domain.catalog import MatrixWork, TaskAddition
from app.domain.parameters import Parameters, TaskArithmeticCoefficient
from app.domain.patches import default_rank
from workers.contract import MergeContext, merge_method
from workers.numerics import low_rank, matrices, precision, residuals, task_vectors
from workers.patches import LowRank, Patch


class PeruLoraParameters(Parameters):
    """Parameters of `peru_lora`."""

    rank: Annotated[
        int | None,
        Field(
            ge=1,
            le=65_536,
            description="Rank of what is kept of a matrix, at most; null: of an adapter a quarter of the rank that its "
            "update of the matrix has, at least 1, and 16 of a dense model.",
        ),
    ] = None
    energy: Annotated[
        float,
        Field(
            gt=0.0,
            le=1.0,
            description="Keep only as many singular components as hold this share of the sum of their squares; 1: as "
            "many as `rank` says.",
        ),
    ] = 1.0
    mode: Annotated[
        Literal["per_adapter", "residual"],
        Field(
            description="per_adapter: the base model, and each task vector's components; residual: the task arithmetic "
            "of all models, and the components of what it lost."
        ),
    ] = "per_adapter"
    scaling_coefficient: TaskArithmeticCoefficient = 0.3


def patch(
    _base: Tensor, finetuned: Tensor, shared: Tensor, parameters: PeruLoraParameters, context: MergeContext
) -> Sequence[Patch]:
    """Return, per model, the truncated difference from the shared model, or its values where that is no smaller.

    A kernel [out, in, …] is a matrix of out rows. What is the shared one, to the bit, has no patch.
    """
    of_models = context.update_ranks.get(context.tensor, (None,) * len(finetuned))
    changes = _find_changes(context.read_updates(context.tensor), len(finetuned), parameters, context)
    made: list[Patch] = []
    for model, rank in enumerate(_ranks(parameters, of_models)):
        made.append(_truncate(finetuned[model], shared, changes[model], rank, parameters.energy))
        context.tick((model + 1) / len(finetuned))
    return made


def _find_changes(
    updates: Sequence[LowRank | None], n_models: int, parameters: PeruLoraParameters, context: MergeContext
) -> list[LowRank | None]:
    """Return what each model has beyond the shared one as a product, or None where it is not known as one.

    What a merge has lost of a model is ΔWₜ − λ Σ wᵢ ΔWᵢ: all factors stacked, with these coefficients.
    """
    known = [update for update in updates if update is not None]
    if not updates or (parameters.mode == "residual" and len(known) < len(updates)):
        return [None] * n_models
    if parameters.mode == "per_adapter":
        return list(updates)
    shares = [parameters.scaling_coefficient * weight for weight in context.weights]
    stacked = torch.cat([update.a for update in known])
    return [
        LowRank(
            stacked,
            torch.cat(
                [((at == model) - share) * one.b for at, (share, one) in enumerate(zip(shares, known, strict=True))],
                dim=1,
            ),
        )
        for model in range(n_models)
    ]


def _truncate(model: Tensor, shared: Tensor, change: LowRank | None, rank: int, energy: float) -> Patch:
    rows, columns = (len(shared), shared[0].numel()) if shared.dim() > 1 and shared.numel() else (0, 0)
    if not low_rank.pays(min(rank, rows, columns), rows, columns) or residuals.is_same(model, shared):
        return residuals.replace_changed(model.unsqueeze(0), shared)[0]
    if change is not None:
        return low_rank.truncate_product(change, rank=rank, energy=energy)
    matrices_of = model.reshape(1, rows, columns), shared.reshape(rows, columns)
    return low_rank.truncate_changes(*matrices_of, rank=rank, energy=energy)[0]


def _ranks(parameters: PeruLoraParameters, of_models: Sequence[int | None]) -> list[int]:
    """Return the rank that is kept of each model, at most. of_models: the highest that its update can have, if known.

    What a merge lost of an adapter holds the others' updates, too.
    """
    is_residual = parameters.mode == "residual"
    highest = max((rank for rank in of_models if rank is not None), default=0)
    found: list[int] = []
    for own in of_models:
        known = highest if is_residual and own is not None else own
        asked = parameters.rank or default_rank(known)
        found.append(asked if is_residual or own is None else min(asked, own))
    return found


@merge_method(
    name="peru_lora",
    version=3,
    title="PERU-LoRA",
    summary="Keeps, per task, the largest singular components of its task vector, or of what a merge lost of it.",
    source="Jiang et al. 2023, arXiv:2310.01886",
    aliases=("byom_lora",),
    parameters=PeruLoraParameters,
    base_model="required",
    models=(1, None),
    granularity="tensor",
    patch=patch,
    patch_codec="low_rank",
    task_addition=TaskAddition(fixed={"mode": "per_adapter"}),
    work=(MatrixWork(seconds=0.065, each="model", takes_factors=True),),
)
def merge(base: Tensor, finetuned: Tensor, parameters: PeruLoraParameters, context: MergeContext) -> Tensor:
    """Return θ₀ itself, or θ₀ + λ Σ wᵢ τᵢ in mode "residual".

    base: [*shape]; finetuned: [n, *shape]; result: [*shape].
    """
    if parameters.mode == "per_adapter":
        return base
    merged = torch.empty_like(base)
    flat, flat_base, flat_merged = finetuned.reshape(len(finetuned), -1), base.reshape(-1), merged.view(-1)
    for run in matrices.runs(base.numel(), 1):
        total = precision.weighted_sum(task_vectors.subtract(flat[:, run], flat_base[run]), context.weights)
        flat_merged[run] = task_vectors.add(flat_base[run], total, scaling_coefficient=parameters.scaling_coefficient)
    return merged
