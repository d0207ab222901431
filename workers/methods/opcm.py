"""OPCM: add one model after the other, of each only what is orthogonal to the merge so far.

Source: Tang et al. 2025, arXiv:2501.09522, with details from the authors' code.
Departs from source: what is a linear layer is decided by shape and name; directions that the merge so far does not have
    protect nothing (docs/methods/opcm.md).
"""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import fsum, prod, sqrt
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from app.domain.catalog import MatrixWork
from app.domain.parameters import MatrixParameters, VectorReduce
from workers.contract import MergeContext, Piece, PieceSource, StatisticRequest, Tick, ignore_tick, merge_method
from workers.numerics import matrices, spectra
from workers.numerics.matrices import Delta, TaskMatrices
from workers.stored import Models

SCALE = "scale"


class OpcmParameters(MatrixParameters):
    """Parameters of `opcm`."""

    vector_reduce: VectorReduce = "sum"
    protected_fraction: Annotated[
        float,
        Field(
            ge=0.0,
            lt=1.0,
            description="The leading directions of the merge so far that hold this fraction of the sum of its singular "
            "values take nothing from the next model.",
        ),
    ] = 0.5


@dataclass(frozen=True)
class MeanNormScale:
    """Asks for the factor that gives the merge the mean norm of the task vectors; for that it merges all tensors."""

    name: str
    parameters: OpcmParameters

    @property
    def n_passes(self) -> int:
        """How often it reads the merge set."""
        return 1

    def collect(self, source: PieceSource) -> float:
        """Return the factor; 0 where nothing is left of the task vectors."""
        sizes = {name: prod(shape) for name, shape, _ in source.tensors}
        chosen = {name for name, shape, _ in source.tensors if matrices.is_matrix(name, shape, self.parameters)}
        weights = tuple(source.weights)
        squares = [[0.0] * (1 + len(weights))]
        squares += source.map(lambda piece: self._measure(piece, weights, chosen), chosen, granularity="matrix")
        runs = [  # of one length, whatever the engine's pieces
            (name, (name, run.start, run.stop - run.start))
            for name, size in sizes.items()
            for run in matrices.runs(0 if name in chosen else size, 1)
        ]
        (visited,) = source.visit(lambda run: self._measure(source.read(*run), weights, chosen), [runs])
        squares += visited
        norm, *norms = (sqrt(fsum(parts)) for parts in zip(*squares, strict=True))
        return fsum(norms) / len(norms) / norm if norm else 0.0

    def _measure(self, piece: Piece, weights: tuple[float, ...], chosen: Container[str]) -> list[float]:
        """Return the squared norm of what is merged of a piece, and of each model's task vector."""
        is_matrix = piece.tensor in chosen
        base = torch.zeros(piece.n_elements) if piece.base is None else piece.base
        tasks = TaskMatrices.of(base.view(piece.shape[0] if is_matrix else 1, -1), piece.models, weights).wide()
        if is_matrix and tasks.active:
            merged = _square(accumulate(tasks, self.parameters.protected_fraction), tasks)
        else:
            share = {"mean": 1.0 / tasks.n_models, "sum": 1.0, "base": 0.0}[self.parameters.vector_reduce]
            merged = share**2 * _square(tasks.total, tasks)
        return [merged, *(_square(partial(tasks.task, model), tasks) for model in range(tasks.n_models))]


def collect(parameters: OpcmParameters) -> Sequence[StatisticRequest]:
    """Ask for the norm of the whole merge."""
    return (MeanNormScale(SCALE, parameters),)


@merge_method(
    name="opcm",
    title="OPCM",
    summary="Adds models one after the other, each without what the merge so far holds, and keeps the mean norm.",
    source="Tang et al. 2025, arXiv:2501.09522",
    aliases=("orthogonal_projection_continual_merging", "continual_merging"),
    parameters=OpcmParameters,
    base_model="required",
    models=(1, None),
    granularity="matrix",
    order_matters=True,
    neutral_parameters={},
    counts_copies_as_one=False,
    statistic_passes=1,
    collect=collect,
    work=(MatrixWork(seconds=0.3, each="model"),),
)
def merge(base: Tensor, finetuned: Models, parameters: OpcmParameters, context: MergeContext) -> Tensor:
    """Return θ₀ + λ s M for a matrix, with M the sum of projected task vectors; θ₀ + λ s Σ τᵢ for any other tensor.

    base: [*shape]; finetuned: [n, *shape]; result: [*shape].
    """
    scale: float = context.statistics[SCALE]
    scaled = parameters.model_copy(update={"scaling_coefficient": parameters.scaling_coefficient * scale})

    def merge_matrices(tasks: TaskMatrices) -> Delta:
        return accumulate(tasks.wide(), parameters.protected_fraction, context.tick)

    return matrices.merge(base, finetuned, scaled, context, merge_matrices)


def accumulate(tasks: TaskMatrices, protected_fraction: float, tick: Tick = ignore_tick) -> Delta:
    """Return the first task matrix plus the cleaned others, in their order; at least one must not be zero.

    tasks: not tall. Between two models the merge is kept in float32, as a stored one would be.
    """
    merged = torch.zeros_like(tasks.base)
    for n_added, model in enumerate(tasks.active):
        factor = find_factor(tasks, model, merged, protected_fraction) if n_added else None
        for columns in tasks.columns():
            before = merged[:, columns].double()
            added = tasks.task(model, columns).add_(before)
            merged[:, columns] = added if factor is None else added.addmm_(factor, before, alpha=-1.0)
        tick((n_added + 1) / len(tasks.active))
    return lambda columns: merged[:, columns].double()


def find_factor(tasks: TaskMatrices, model: int, merged: Tensor, protected_fraction: float) -> Tensor:
    """Return F, so that τ − F M has no share in the singular pairs of the merge, and none in the block of the leading.

    tasks: not tall; merged: M, [rows, columns]; F: [rows, rows] float64. With M = U Σ Vᵀ and the part R of Uᵀ τ V that
    is taken out, F = U R Σ⁻¹ Uᵀ.
    """

    def runs() -> Iterator[Tensor]:
        return (merged[:, columns].double() for columns in tasks.columns())

    found = spectra.find_all_left(spectra.gram_of(runs(), merged), runs)
    order = found.values.argsort(descending=True)
    left, values = found.vectors[:, order], found.values[order]
    cross = torch.zeros(len(merged), len(merged), dtype=torch.float64, device=merged.device)  # τ Mᵀ
    for columns in tasks.columns():
        cross.addmm_(tasks.task(model, columns), merged[:, columns].double().mT)
    inside = left.mT @ cross @ (left / values)  # Uᵀ τ V, [kept, kept]
    n_leading = int((values.cumsum(0) <= protected_fraction * values.sum()).sum())
    removed = torch.diag(inside.diagonal())
    removed[:n_leading, :n_leading] = inside[:n_leading, :n_leading]
    return left @ removed.div_(values) @ left.mT


def _square(matrix: Delta, tasks: TaskMatrices) -> float:
    return fsum(float(matrix(columns).square_().sum()) for columns in tasks.columns())
