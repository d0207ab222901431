"""DOGE on task arithmetic: learn one change that all task vectors share, so that adding them up harms each less.

Source: Wei et al. 2025, arXiv:2501.01230, with details from the authors' code.
Departs from source: which tensors take part is decided by shape and name for any architecture, and the largest entries
    are counted exactly (docs/methods/doge_ta.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from app.domain.catalog import MatrixWork
from app.domain.parameters import AdamLearningRate, Density, MatrixParameters, Steps, VectorReduce
from workers.contract import MergeContext, PieceSource, StatisticRequest, Tick, merge_method
from workers.numerics import matrices, optimize, sparsify, spectra
from workers.numerics.matrices import Delta, TaskMatrices
from workers.numerics.sparsify import Boundary
from workers.statistics.rank_scopes import USUAL_EFFORT, Scope
from workers.statistics.ranks import select
from workers.stored import Models

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
    work=(
        MatrixWork(seconds=0.2),
        MatrixWork(seconds=0.08, each="model"),
        MatrixWork(seconds=0.034, of="product", each="step"),
    ),
)
def merge(base: Tensor, finetuned: Models, parameters: DogeTaParameters, context: MergeContext) -> Tensor:
    """Return θ₀ + λ Σ λᵢ mᵢ ⊙ (τᵢ + δ) for a matrix, θ₀ for any other tensor.

    base: [*shape]; finetuned: [n, *shape]; result: [*shape].
    """

    def merge_matrices(tasks: TaskMatrices) -> Delta:
        trims: dict[str, Trim] = context.statistics[TRIM]
        return _merge_matrices(tasks, parameters, trims[context.tensor], context.tick)

    return matrices.merge(base, finetuned, parameters, context, merge_matrices)


def _merge_matrices(tasks: TaskMatrices, parameters: DogeTaParameters, trim: Trim, tick: Tick) -> Delta:
    norms = {model: tasks.norm(model) for model in tasks.active}
    # in the order of their norms: Adam would make rounding, and so the order of models, visible
    shares = {model: parameters.strength / norms[model] for model in sorted(norms, key=lambda model: norms[model])}
    merged = _learn(tasks, shares, parameters, tick)
    for rows in matrices.runs(*tasks.shape):
        some, change = tasks.some_rows(rows), merged[rows].clone()
        merged[rows] = 0.0
        for model, share in shares.items():
            flat = (some.stored(model) - some.base).flatten()
            start = trim.start + rows.start * tasks.shape[1]
            is_kept = sparsify.keep_first(flat, trim.boundaries[model], start=start).view(change.shape) != 0
            merged[rows].add_((some.task(model) + change).mul_(is_kept), alpha=share)
    return matrices.cut(merged)


def _learn(tasks: TaskMatrices, shares: dict[int, float], parameters: DogeTaParameters, tick: Tick) -> Tensor:
    """Return δ, [rows, columns] float64, which lessens Σⱼ Σ over rows of ⟨τⱼ, τⱼ − Σ λᵢ(τᵢ + δ)⟩².

    A row of the gradient is a sum of the tasks' rows, −2 Λ Σⱼ rⱼ τⱼ with rⱼ the inner product and Λ = Σ λᵢ. What all
    rows are needed for is its coordinates in the shared directions, which are taken out: they are summed up while the
    step before moves the rows, one run after the other, so that a step reads the tasks once. All in float64, as what is
    left of the gradient may be small, and Adam would follow rounding.
    """
    shared = _find_shared(tasks, list(shares), parameters.subspace_divisor)
    total_share, runs = sum(shares.values()), list(matrices.runs(*tasks.shape))
    unit = _bound_slopes(shares, parameters.strength)
    walk = optimize.Walk(tasks.base, learning_rate=parameters.learning_rate, epsilon=optimize.EPSILON / unit)
    constants = shared.new_empty(len(shares), tasks.shape[0], 1)  # rⱼ where δ is 0
    residuals = torch.empty_like(constants)  # rⱼ
    inside = shared.new_zeros(shared.shape[1], tasks.shape[1])  # the gradient's coordinates in the shared directions

    def find_slope(some: list[Tensor], rows: slice) -> Tensor:
        slope = torch.zeros_like(some[0])
        for task, residual in zip(some, residuals[:, rows], strict=True):
            slope.addcmul_(task, residual, value=-2.0 * total_share / unit)
        return slope

    for step in range(parameters.steps + 1):
        taken_out, inside = inside, torch.zeros_like(inside)
        for rows in runs:
            some = [tasks.some_rows(rows).task(model) for model in shares]
            if step == 0:
                constants[:, rows] = residuals[:, rows] = _find_constants(some, list(shares.values()))
            else:
                walk.move(rows, find_slope(some, rows).addmm_(shared[rows], taken_out, alpha=-1.0), step=step)
                moved = torch.stack([_inner(task, walk.point[rows]) for task in some])
                residuals[:, rows] = torch.sub(constants[:, rows], moved, alpha=total_share)
            inside.addmm_(shared[rows].mT, find_slope(some, rows))
        tick(step / max(1, parameters.steps))
    return walk.point


def _bound_slopes(shares: dict[int, float], strength: float) -> float:
    """Return what no entry of the gradient exceeds where δ is 0: the unit in which float32 holds what Adam needs."""
    norms = [strength / share for share in shares.values()]
    return 2.0 * sum(shares.values()) * sum(norm**2 * (norm + strength * len(norms)) for norm in norms)


def _find_constants(tasks: list[Tensor], shares: list[float]) -> Tensor:
    """Return ⟨τⱼ, τⱼ − Σ λᵢτᵢ⟩ of some rows, [n, rows, 1]."""
    target = torch.zeros_like(tasks[0])
    for task, share in zip(tasks, shares, strict=True):
        target.add_(task, alpha=share)
    return torch.stack([_inner(task, task - target) for task in tasks])


def _find_shared(tasks: TaskMatrices, models: Sequence[int], divisor: int) -> Tensor:
    """Return the directions that the tasks' leading left singular vectors share most, [rows, ≤ smaller side / divisor].

    A single task shares its own leading ones.
    """
    wide, rank = tasks.wide(), matrices.count_directions(tasks, None)
    stacked = tasks.base.new_empty(tasks.shape[0], rank * len(models), dtype=torch.float64)
    size = 0
    for model in models:
        runs = partial(map, partial(wide.task, model), tuple(wide.columns()))
        found = spectra.decompose_runs(runs, wide.base, rank)
        stacked[:, size : (size := size + len(found.values))] = found.right.mT if tasks.is_tall else found.left
    stacked = stacked[:, :size]
    n_shared = min(tasks.shape) // divisor
    if n_shared == 0 or len(models) == 1:
        return stacked[:, :n_shared]
    return spectra.decompose(stacked, n_shared).left


def _inner(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum(dim=1, keepdim=True)
