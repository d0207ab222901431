"""DOGE on task arithmetic: learn one change that all task vectors share, so that adding them up harms each less.

Source: Wei et al. 2025, arXiv:2501.01230, with details from the authors' code.
Departs from source: which tensors take part is decided by shape and name for any architecture, and the largest entries
    are counted exactly (docs/methods/doge_ta.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from app.domain.parameters import AdamLearningRate, Density, MatrixParameters, Steps, VectorReduce
from workers.contract import MergeContext, PieceSource, StatisticRequest, Tick, merge_method
from workers.numerics import matrices, optimize, sparsify, spectra
from workers.numerics.matrices import TaskMatrices
from workers.numerics.sparsify import Boundary
from workers.statistics.ranks import USUAL_EFFORT, Scope, select

TRIM = "trim"


class DogeTaParameters(MatrixParameters):
    """Parameters of `doge_ta`."""

    vector_reduce: VectorReduce = "base"
    density: Density = 0.3
    strength: Annotated[
        float, Field(gt=0.0, le=10.0, description="Norm that each task vector of a tensor is scaled to (eta).")
    ] = 0.07
    subspace_divisor: Annotated[
        int,
        Field(
            ge=1,
            le=10_000,
            description="The shared directions that learning keeps out of: the smaller side divided by this.",
        ),
    ] = 6
    learning_rate: AdamLearningRate = 1e-4
    steps: Steps = 400
    trim_scope: Annotated[
        Literal["global", "tensor"],
        Field(description="Where the largest entries are counted: over all matrices of the model, or within each."),
    ] = "global"


@dataclass(frozen=True)
class Trim:
    """Where each model's task vector of a matrix is cut."""

    boundaries: tuple[Boundary, ...]  # one per model
    start: int  # index of the matrix's first element among what is ranked together


@dataclass(frozen=True)
class MatrixTrims:
    """Asks for the trim of each matrix, entries ranked over all matrices together or within each."""

    name: str
    parameters: DogeTaParameters

    @property
    def n_passes(self) -> int:
        """How often it reads the merge set."""
        return 1

    def collect(self, source: PieceSource) -> dict[str, Trim]:
        """Find the boundaries."""
        sizes = [
            (name, prod(shape)) for name, shape, _ in source.tensors if matrices.is_matrix(name, shape, self.parameters)
        ]
        n, starts = 0, []
        for _, size in sizes:
            starts.append(n)
            n += size
        if self.parameters.trim_scope == "tensor":
            starts = [0] * len(sizes)
            scopes = [Scope(((name, size, 0),), size, self._ranks(size)) for name, size in sizes]
        else:
            parts = tuple((name, size, start) for (name, size), start in zip(sizes, starts, strict=True))
            scopes = [Scope(parts, n, self._ranks(n))]
        found = select(source, scopes, USUAL_EFFORT)
        return {
            name: Trim(tuple(bounds[0] for bounds in found[index if len(found) == len(sizes) else 0]), starts[index])
            for index, (name, _) in enumerate(sizes)
        }

    def _ranks(self, n: int) -> tuple[int]:
        return (min(n, max(1, sparsify.count_kept(self.parameters.density, n))),)


def collect(parameters: DogeTaParameters) -> Sequence[StatisticRequest]:
    """Ask where the trim cuts."""
    return (MatrixTrims(TRIM, parameters),)


@merge_method(
    name="doge_ta",
    title="DOGE task arithmetic",
    summary="Learns a change that all task vectors share, then adds up their largest entries, tensors at equal norms.",
    source="Wei et al. 2025, arXiv:2501.01230",
    aliases=("doge", "adaptive_projective_gradient_descent"),
    parameters=DogeTaParameters,
    base_model="required",
    models=(1, None),
    weights="unused",
    granularity="matrix",
    is_scale_equivariant=False,
    statistic_passes=1,
    collect=collect,
)
def merge(base: Tensor, finetuned: Tensor, parameters: DogeTaParameters, context: MergeContext) -> Tensor:
    """Return θ₀ + λ Σ λᵢ mᵢ ⊙ (τᵢ + δ) for a matrix, θ₀ for any other tensor.

    base: [*shape]; finetuned: [n, *shape]; result: [*shape].
    """

    def merge_matrices(tasks: TaskMatrices) -> Tensor:
        trims: dict[str, Trim] = context.statistics[TRIM]
        return _merge_matrices(tasks, parameters, trims[context.tensor], context.tick)

    return matrices.merge(base, finetuned, parameters, context, merge_matrices)


def _merge_matrices(tasks: TaskMatrices, parameters: DogeTaParameters, trim: Trim, tick: Tick) -> Tensor:
    norms = {model: float(tasks.task(model).norm()) for model in tasks.active}
    # in the order of their norms: Adam would make rounding, and so the order of models, visible
    shares = {model: parameters.strength / norms[model] for model in sorted(norms, key=lambda model: norms[model])}
    change = _learn(tasks, shares, parameters, tick)
    merged = torch.zeros_like(change)
    for model, share in shares.items():
        flat = (tasks.finetuned[model] - tasks.base).flatten()
        is_kept = sparsify.keep_first(flat, trim.boundaries[model], start=trim.start).view(change.shape) != 0
        merged.add_((tasks.task(model) + change).mul_(is_kept), alpha=share)
    return merged


def _learn(tasks: TaskMatrices, shares: dict[int, float], parameters: DogeTaParameters, tick: Tick) -> Tensor:
    """Return δ, which lessens Σⱼ Σ over rows of ⟨τⱼ, τⱼ − Σ λᵢ(τᵢ + δ)⟩².

    A row of the gradient is a sum of the tasks' rows, −2 Λ Σⱼ rⱼ τⱼ with rⱼ the inner product and Λ = Σ λᵢ.
    """
    shared = _find_shared(tasks, list(shares), parameters.subspace_divisor)
    total_share = sum(shares.values())
    target = torch.zeros_like(tasks.base, dtype=torch.float64)  # Σ λᵢ τᵢ
    for model, share in shares.items():
        target.add_(tasks.task(model), alpha=share)
    constants = [_inner(task := tasks.task(model), task - target) for model in shares]  # each [rows, 1]

    def gradient(change: Tensor) -> Tensor:
        slope = torch.zeros_like(change)
        for model, constant in zip(shares, constants, strict=True):
            task = tasks.task(model)
            residual = constant - total_share * _inner(task, change)
            slope.addcmul_(task, residual, value=-2.0 * total_share)
        return slope.sub_(shared @ (shared.mT @ slope))

    return optimize.descend(
        torch.zeros_like(target), gradient, learning_rate=parameters.learning_rate, steps=parameters.steps, tick=tick
    )


def _find_shared(tasks: TaskMatrices, models: Sequence[int], divisor: int) -> Tensor:
    """Return the directions that the tasks' leading left singular vectors share most, [rows, ≤ smaller side / divisor].

    A single task shares its own leading ones.
    """
    rank = matrices.count_directions(tasks, None)
    stacked = torch.cat([spectra.decompose(tasks.task(model), rank).left for model in models], dim=1)
    n_shared = min(tasks.shape) // divisor
    if n_shared == 0 or len(models) == 1:
        return stacked[:, :n_shared]
    return spectra.decompose(stacked, n_shared).left


def _inner(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum(dim=1, keepdim=True)
