"""WUDI-Merging: move the sum of task vectors to where it disturbs each task's own input directions least.

Source: Cheng et al. 2025, arXiv:2503.08099, section 4.
Departs from source: the tasks are folded into two constant matrices, so that a step costs one product however many
    tasks there are; a closed form is offered beside Adam; embeddings and heads are left out by name
    (docs/methods/wudi.md).
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from app.domain.parameters import AdamLearningRate, MatrixParameters, Steps
from workers.contract import MergeContext, Tick, merge_method
from workers.numerics import matrices, optimize
from workers.numerics.matrices import TaskMatrices

NULL = 1e-6  # eigenvalues of the folded inputs up to this fraction of the largest count as zero
FLAT = 1e-12  # a gradient up to this fraction of its own terms is rounding, which Adam would follow like any other


class WudiParameters(MatrixParameters):
    """Parameters of `wudi`."""

    solver: Annotated[
        Literal["adam", "closed_form"],
        Field(description="adam: walk some steps from the sum towards the minimum; closed_form: go there."),
    ] = "adam"
    learning_rate: AdamLearningRate = 1e-5
    steps: Steps = 300


@merge_method(
    name="wudi",
    title="WUDI-Merging",
    summary="Adjusts the sum of task vectors so that it interferes least with what each task vector responds to.",
    source="Cheng et al. 2025, arXiv:2503.08099",
    aliases=("wudi_merging", "wudiv1"),
    parameters=WudiParameters,
    base_model="required",
    models=(1, None),
    granularity="matrix",
    neutral_parameters={},
    is_scale_equivariant=False,
    counts_copies_as_one=False,
)
def merge(base: Tensor, finetuned: Tensor, parameters: WudiParameters, context: MergeContext) -> Tensor:
    """Return θ₀ + λ τ with τ least in Σ ‖(τ − τᵢ) τᵢᵀ‖² / ‖τᵢ‖² for a matrix, θ₀ + λ · mean for any other tensor.

    base: [*shape]; finetuned: [n, *shape]; result: [*shape].
    """

    def merge_matrices(tasks: TaskMatrices) -> Tensor:
        inputs, wanted = fold(tasks)
        if parameters.solver == "closed_form":
            return _solve(tasks.total(), inputs, wanted)
        return _walk(tasks.total(), inputs, wanted, parameters, context.tick)

    return matrices.merge(base, finetuned, parameters, context, merge_matrices)


def fold(tasks: TaskMatrices) -> tuple[Tensor, Tensor]:
    """Return C = Σ τᵢᵀτᵢ / ‖τᵢ‖², [columns, columns], and D = Σ τᵢτᵢᵀτᵢ / ‖τᵢ‖², [rows, columns], float64.

    The gradient at τ is 2 (τ C − D).
    """
    rows, columns = tasks.shape
    inputs = tasks.base.new_zeros(columns, columns, dtype=torch.float64)
    wanted = tasks.base.new_zeros(rows, columns, dtype=torch.float64)
    for model in tasks.active:
        task = tasks.task(model)
        unit = task / torch.linalg.vector_norm(task)
        inputs.addmm_(unit.mT, unit)
        if rows <= columns:
            wanted.addmm_(task @ unit.mT, unit)
        else:
            wanted.addmm_(task, unit.mT @ unit)
    return inputs, wanted


def _walk(start: Tensor, inputs: Tensor, wanted: Tensor, parameters: WudiParameters, tick: Tick) -> Tensor:
    """Take Adam's steps; rows do not know of each other, so a few of them go all the way together.

    A sum that is a minimum already (one task, or tasks that do not meet) stays as it is.
    """
    if is_minimum(start, inputs, wanted):
        return start
    for rows in matrices.runs(*start.shape):

        def gradient(block: Tensor, goal: Tensor = wanted[rows]) -> Tensor:
            return torch.addmm(goal, block, inputs, beta=-2.0, alpha=2.0)

        def tick_rows(fraction: float, begin: int = rows.start, n_rows: int = rows.stop - rows.start) -> None:
            tick((begin + fraction * n_rows) / len(start))

        start[rows] = optimize.descend(
            start[rows], gradient, learning_rate=parameters.learning_rate, steps=parameters.steps, tick=tick_rows
        )
    return start


def is_minimum(start: Tensor, inputs: Tensor, wanted: Tensor) -> bool:
    """Whether the gradient at the start is nothing but rounding."""
    slope = torch.addmm(wanted, start, inputs, beta=-1.0)
    return bool(torch.linalg.vector_norm(slope) <= FLAT * torch.linalg.vector_norm(wanted))


def _solve(start: Tensor, inputs: Tensor, wanted: Tensor) -> Tensor:
    """Return the minimum nearest to the start: what no task responds to stays as it is."""
    values, vectors = torch.linalg.eigh(inputs)
    kept = values > NULL * values[-1]
    vectors = vectors[:, kept]
    return start.addmm_((wanted - start @ inputs) @ (vectors / values[kept]), vectors.mT)
