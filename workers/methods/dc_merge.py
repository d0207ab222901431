"""DC-Merge: write all task vectors in one orthogonal basis of their leading directions, and elect signs there.

Source: Zhang et al. 2026, arXiv:2603.06242, with details from the authors' code.
Departs from source: the basis holds only directions that tasks have; embeddings and heads are left out by name
    (docs/methods/dc_merge.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from app.domain.catalog import MatrixWork
from app.domain.parameters import Density, MatrixParameters, RankFraction
from workers.contract import MergeContext, Tick, merge_method
from workers.numerics import covers, matrices, sparsify
from workers.numerics.covers import Cover
from workers.numerics.matrices import Delta, TaskMatrices
from workers.stored import Models

TIE = 1e-9  # magnitudes closer than this fraction are equal: rounding must not decide which are kept, nor signs
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
    work=(MatrixWork(seconds=0.6), MatrixWork(seconds=0.04, each="model")),
)
def merge(base: Tensor, finetuned: Models, parameters: DcMergeParameters, context: MergeContext) -> Tensor:
    """Return θ₀ + λ U⊥ M V⊥ᵀ for a matrix, θ₀ + λ · mean of task vectors for any other tensor.

    base: [*shape]; finetuned: [n, *shape]; result: [*shape].
    """

    def merge_matrices(tasks: TaskMatrices) -> Delta:
        return _merge_matrices(tasks.wide(), parameters, context.tick)

    return matrices.merge(base, finetuned, parameters, context, merge_matrices)


def _merge_matrices(tasks: TaskMatrices, parameters: DcMergeParameters, tick: Tick) -> Delta:
    rank = matrices.count_directions(tasks, parameters.rank_fraction)
    cover = covers.cover(tasks, rank, tick, is_singular=True)
    n_kept = max(1, sparsify.count_kept(parameters.density, (rank * tasks.n_models) ** 2))
    values = [smooth(one.diagonal(), parameters.smoothing, parameters.smoothing_ratio) for one in cover.factors]
    coordinates = [_Coordinates(cover, block, some) for block, some in zip(cover.blocks, values, strict=True)]
    thresholds = [one.find_threshold(n_kept) for one in coordinates]
    elected = [  # what mixes the directions of one task with those of another becomes zero
        _elect([one.keep(block, threshold) for one, threshold in zip(coordinates, thresholds, strict=True)])
        for block in cover.blocks
    ]
    return cover.expand(elected)


@dataclass(frozen=True)
class _Coordinates:
    """U⊥ᵀ Uᵢ Σᵢ Vᵢᵀ V⊥ of one task, [q, q], made from thin factors when they are asked for."""

    cover: Cover
    block: slice  # the task's directions
    values: Tensor  # [k], evened out

    def find_threshold(self, n_kept: int) -> Tensor:
        """Return the magnitude of the n-th largest, a little less: rounding must not decide."""
        left, right = self._factors(slice(None), slice(None))
        largest = left[:0, 0]
        for rows in matrices.runs(len(left), len(left)):
            magnitudes = torch.cat([largest, (left[rows] @ right).abs_().flatten()])
            largest = magnitudes.topk(min(n_kept, len(magnitudes)), sorted=False).values
        return largest.min() * (1.0 - TIE)

    def keep(self, block: slice, threshold: Tensor) -> Tensor:
        """Return those of a square block, the ones below the threshold as zeros."""
        left, right = self._factors(block, block)
        found = left @ right
        return found * (found.abs() >= threshold)

    def _factors(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        left, right = self.cover.left, self.cover.right
        one = left.vectors[rows] @ (left.vectors[self.block] * left.values).mT  # of (UᵀU)^(1/2)
        other = (right.vectors[self.block] * right.values) @ right.vectors[columns].mT
        return one * self.values, other


def _elect(coordinates: Sequence[Tensor]) -> Tensor:
    """Return the mean of the coordinates that have the sign of their sum; zero where they cancel out."""
    total = sum(coordinates[1:], coordinates[0])
    is_elected = total.abs() > TIE * sum((one.abs() for one in coordinates[1:]), coordinates[0].abs())
    merged, count = torch.zeros_like(total), torch.zeros_like(total)
    for one in coordinates:
        agrees = (one.sign() == total.sign()) & is_elected
        merged += one * agrees
        count += agrees
    return merged / count.clamp_min(1.0)


def smooth(values: Tensor, smoothing: Smoothing, ratio: float) -> Tensor:
    """Return singular values of the same sum, evened out; values: [k], largest first, none of them 0."""
    if smoothing == "none":
        return values
    if smoothing == "average":
        return values.mean().expand(len(values))
    steepness = min(ratio, float(values[0] / values[-1]))
    line = torch.linspace(steepness, 1.0, len(values), dtype=values.dtype, device=values.device)
    return values.sum() * line / line.sum()
