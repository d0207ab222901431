"""DC-Merge: write all task vectors in one orthogonal basis of their leading directions, and elect signs there.

Source: Zhang et al. 2026, arXiv:2603.06242, with details from the authors' code.
Departs from source: the basis holds only directions that tasks have; embeddings and heads are left out by name
    (docs/methods/dc_merge.md).
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from app.domain.parameters import Density, MatrixParameters, RankFraction
from workers.contract import MergeContext, Tick, merge_method
from workers.numerics import covers, matrices, sparsify
from workers.numerics.covers import Cover
from workers.numerics.matrices import TaskMatrices

TIE = 1e-9  # magnitudes closer than this fraction are equal: rounding must not decide which coordinates are kept
Smoothing = Literal["none", "linear", "average"]


class DcMergeParameters(MatrixParameters):
    """Parameters of `dc_merge`."""

    density: Density = 0.001
    rank_fraction: RankFraction = None
    smoothing: Annotated[
        Smoothing,
        Field(
            description="How the kept singular values of a task are evened out, their sum kept: not at all; linearly "
            "falling; all equal. The authors do so for LoRA."
        ),
    ] = "none"
    smoothing_ratio: Annotated[
        float, Field(ge=1.0, le=1e6, description="Largest by smallest singular value, at most, with linear smoothing.")
    ] = 5.0


@merge_method(
    name="dc_merge",
    title="DC-Merge",
    summary="Elects signs among the largest coordinates of the task vectors in a basis of their leading directions.",
    source="Zhang et al. 2026, arXiv:2603.06242",
    aliases=("directional_consistency", "dcmerge"),
    parameters=DcMergeParameters,
    base_model="required",
    models=(1, None),
    granularity="matrix",
    neutral_parameters={"density": 1.0},
    counts_copies_as_one=False,
)
def merge(base: Tensor, finetuned: Tensor, parameters: DcMergeParameters, context: MergeContext) -> Tensor:
    """Return θ₀ + λ U⊥ M V⊥ᵀ for a matrix, θ₀ + λ · mean of task vectors for any other tensor.

    base: [*shape]; finetuned: [n, *shape]; result: [*shape].
    """

    def merge_matrices(tasks: TaskMatrices) -> Tensor:
        return _merge_matrices(tasks, parameters, context.tick)

    return matrices.merge(base, finetuned, parameters, context, merge_matrices)


def _merge_matrices(tasks: TaskMatrices, parameters: DcMergeParameters, tick: Tick) -> Tensor:
    rank = matrices.count_directions(tasks, parameters.rank_fraction)
    cover = covers.cover(tasks, rank, tick)
    n_kept = max(1, sparsify.count_kept(parameters.density, (rank * tasks.n_models) ** 2))
    total = torch.zeros_like(cover.left_gram)
    for block in cover.blocks:
        total += _keep_largest(_coordinates(cover, block, parameters), n_kept)
    elected = total.sign()
    merged, count = torch.zeros_like(total), torch.zeros_like(total)
    for block in cover.blocks:  # once more: all coordinates together would be K large squares
        kept = _keep_largest(_coordinates(cover, block, parameters), n_kept)
        agrees = (kept.sign() == elected) & (elected != 0)
        merged += kept * agrees
        count += agrees
    merged = _keep_blocks(merged / count.clamp_min(1.0), cover)
    return cover.expand(cover.left_root @ merged @ cover.right_root)


def _coordinates(cover: Cover, block: slice, parameters: DcMergeParameters) -> Tensor:
    """Return U⊥ᵀ Uᵢ Σᵢ Vᵢᵀ V⊥ of one task, [q, q]."""
    values = smooth(cover.values[block], parameters.smoothing, parameters.smoothing_ratio)
    left = cover.left_root @ cover.left_gram[:, block]
    return (left * values) @ (cover.right_gram[block] @ cover.right_root)


def smooth(values: Tensor, smoothing: Smoothing, ratio: float) -> Tensor:
    """Return singular values of the same sum, evened out; values: [k], largest first, none of them 0."""
    if smoothing == "none":
        return values
    if smoothing == "average":
        return values.mean().expand(len(values))
    steepness = min(ratio, float(values[0] / values[-1]))
    line = torch.linspace(steepness, 1.0, len(values), dtype=values.dtype, device=values.device)
    return values.sum() * line / line.sum()


def _keep_largest(coordinates: Tensor, n_kept: int) -> Tensor:
    """Set all but the n largest entries to zero; those as large as the last one stay, too."""
    magnitudes = coordinates.abs()
    threshold = magnitudes.flatten().topk(min(n_kept, magnitudes.numel())).values[-1]
    return coordinates * (magnitudes >= threshold * (1.0 - TIE))


def _keep_blocks(coordinates: Tensor, cover: Cover) -> Tensor:
    """Set to zero what mixes the directions of one task with those of another."""
    kept = torch.zeros_like(coordinates)
    for block in cover.blocks:
        kept[block, block] = coordinates[block, block]
    return kept
