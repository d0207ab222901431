"""OPCM: add one model after the other, of each only what is orthogonal to the merge so far.

Source: Tang et al. 2025, arXiv:2501.09522, with details from the authors' code.
Departs from source: what is a linear layer is decided by shape and name; directions that the merge so far does not have
    protect nothing (docs/methods/opcm.md).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import fsum, prod, sqrt
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from app.domain.parameters import MatrixParameters, VectorReduce
from workers.contract import MergeContext, PieceSource, StatisticRequest, Tick, ignore_tick, merge_method
from workers.numerics import matrices, spectra
from workers.numerics.matrices import TaskMatrices

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
        merged: list[float] = []
        models: list[list[float]] = [[] for _ in range(source.n_models)]
        for tasks, is_matrix in self._read(source):
            for model in tasks.active:
                models[model].append(_square(tasks.task(model)))
            if is_matrix and tasks.active:
                merged.append(_square(accumulate(tasks, self.parameters.protected_fraction)))
            else:
                share = {"mean": 1.0 / tasks.n_models, "sum": 1.0, "base": 0.0}[self.parameters.vector_reduce]
                merged.append(_square(tasks.total().mul_(share)))
        norms = [sqrt(fsum(squares)) for squares in models]
        return fsum(norms) / len(norms) / norm if (norm := sqrt(fsum(merged))) else 0.0

    def _read(self, source: PieceSource) -> Iterator[tuple[TaskMatrices, bool]]:
        """Yield matrices whole, all else in runs of one length: sums do not depend on the engine's pieces."""
        for name, shape, _ in source.tensors:
            n_elements, is_matrix = prod(shape), matrices.is_matrix(name, shape, self.parameters)
            rows = shape[0] if is_matrix else 1
            step = max(1, n_elements) if is_matrix else matrices.RUN_ELEMENTS
            for offset in range(0, n_elements, step):
                piece = source.read(name, offset, min(step, n_elements - offset))
                finetuned = piece.finetuned.view(source.n_models, rows, -1)
                base = torch.zeros_like(finetuned[0]) if piece.base is None else piece.base.view(rows, -1)
                yield TaskMatrices(base, finetuned, tuple(source.weights)), is_matrix


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
)
def merge(base: Tensor, finetuned: Tensor, parameters: OpcmParameters, context: MergeContext) -> Tensor:
    """Return θ₀ + λ s M for a matrix, with M the sum of projected task vectors; θ₀ + λ s Σ τᵢ for any other tensor.

    base: [*shape]; finetuned: [n, *shape]; result: [*shape].
    """
    scale: float = context.statistics[SCALE]
    scaled = parameters.model_copy(update={"scaling_coefficient": parameters.scaling_coefficient * scale})

    def merge_matrices(tasks: TaskMatrices) -> Tensor:
        return accumulate(tasks, parameters.protected_fraction, context.tick)

    return matrices.merge(base, finetuned, scaled, context, merge_matrices)


def accumulate(tasks: TaskMatrices, protected_fraction: float, tick: Tick = ignore_tick) -> Tensor:
    """Return the first task matrix plus the cleaned others, in their order; at least one must not be zero."""
    first, *others = tasks.active
    merged = tasks.task(first)
    for n_added, model in enumerate(others, start=1):
        merged = merged.add_(clean(tasks.task(model), merged, protected_fraction))
        tick(n_added / len(others))
    return merged


def clean(task: Tensor, merged: Tensor, protected_fraction: float) -> Tensor:
    """Return a task matrix without its share in the singular pairs of the merge, and in the block of the leading ones.

    task, merged: [rows, columns] float64.
    """
    if not merged.any():
        return task
    found = spectra.decompose_exactly(merged)
    n_kept = int((found.values > spectra.NULL * found.values[0]).sum())
    left, values, right = found.left[:, :n_kept], found.values[:n_kept], found.right[:n_kept]
    n_leading = int((values.cumsum(0) <= protected_fraction * values.sum()).sum())
    inside = left.mT @ task @ right.mT  # [kept, kept]
    removed = torch.diag(inside.diagonal())
    removed[:n_leading, :n_leading] = inside[:n_leading, :n_leading]
    return task - left @ removed @ right


def _square(tensor: Tensor) -> float:
    return float(tensor.square().sum())
