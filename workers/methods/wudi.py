"""WUDI-Merging: move the sum of task vectors to where it disturbs each task's own input directions least.

Source: Cheng et al. 2025, arXiv:2503.08099, section 4.
Departs from source: the tasks are folded into two constant matrices, so that a step costs one product however many
    tasks there are; a closed form is offered beside Adam; embeddings and heads are left out by name
    (docs/methods/wudi.md).
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from app.domain.catalog import MatrixWork
from app.domain.parameters import AdamLearningRate, MatrixParameters, Steps
from workers.contract import MergeContext, merge_method
from workers.numerics import matrices, optimize, spectra
from workers.numerics.matrices import Delta, TaskMatrices
from workers.stored import Models

NULL = 1e-6  # eigenvalues of the folded inputs up to this fraction of the largest count as zero
WALKED_ROWS, WALKED_ELEMENTS = 160, 1 << 19  # that walk together at least, as far as there are
FLAT = 1e-13  # a slope up to this fraction of the task vectors is rounding, which Adam would follow like any other


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
    version=2,
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
    work=(
        MatrixWork(seconds=0.08, each="model"),
        MatrixWork(seconds=0.022, of="inputs", each="step", where={"solver": "adam"}),
        MatrixWork(seconds=0.3, of="input_square", where={"solver": "closed_form"}),
    ),
)
def merge(base: Tensor, finetuned: Models, parameters: WudiParameters, context: MergeContext) -> Tensor:
    """Return θ₀ + λ τ with τ least in Σ ‖(τ − τᵢ) τᵢᵀ‖² / ‖τᵢ‖² for a matrix, θ₀ + λ · mean for any other tensor.

    base: [*shape]; finetuned: [n, *shape]; result: [*shape].
    """

    def merge_matrices(tasks: TaskMatrices) -> Delta:
        if parameters.solver == "closed_form":
            return matrices.cut(_solve(tasks))
        return _walk(tasks, parameters, context)

    return matrices.merge(base, finetuned, parameters, context, merge_matrices)


def fold(tasks: TaskMatrices, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return C = Σ τᵢᵀτᵢ / ‖τᵢ‖² and G = Σ (S − τᵢ) τᵢᵀτᵢ / ‖τᵢ‖², with S the sum of the task matrices.

    C: [columns, columns]; G: [rows, columns], both in the dtype. The gradient at S + δ is 2 (G + δ C). What of G could
    cancel, (S − τᵢ) τᵢᵀ of tasks that do not meet, is float64 in any case.
    """
    rows, columns = tasks.shape
    return _fold_wide(tasks, dtype) if rows < columns else _fold_tall(tasks, dtype)


def _fold_tall(tasks: TaskMatrices, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Do so by way of each task's [columns, columns]."""
    turned = tasks.transposed()
    inputs = turned.base.new_zeros(len(turned.base), len(turned.base), dtype=dtype)
    slope = torch.zeros_like(tasks.base, dtype=dtype)
    for model in tasks.active:
        gram = spectra.gram_of(map(partial(turned.task, model), turned.columns()), turned.base)
        gram /= gram.trace()
        inputs += gram
        for rows in matrices.runs(*tasks.shape):
            some = tasks.some_rows(rows)
            slope[rows] += some.total().sub_(some.task(model)) @ gram
    return inputs, slope


def _fold_wide(tasks: TaskMatrices, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Do so by way of each task's [rows, rows]; C is a Gram matrix of all tasks' rows."""
    norms = {model: tasks.norm(model) for model in tasks.active}
    slope = torch.zeros_like(tasks.base, dtype=dtype)
    for model, norm in norms.items():
        others = slope.new_zeros(len(slope), len(slope), dtype=torch.float64)
        for columns in tasks.columns():  # (S − τᵢ) τᵢᵀ
            task = tasks.task(model, columns)
            others.addmm_(tasks.total(columns).sub_(task), task.mT)
        weighted = others.div_(norm**2).to(dtype)
        for columns in tasks.columns():
            slope[:, columns].addmm_(weighted, tasks.task(model, columns).to(dtype))

    def units() -> Iterator[Tensor]:
        for rows in _runs(*tasks.shape):
            some = tasks.some_rows(rows)
            yield from (some.task(model).div_(norm).to(dtype).mT for model, norm in norms.items())

    return spectra.gram_of(units(), tasks.base.mT, dtype=dtype), slope


def _walk(tasks: TaskMatrices, parameters: WudiParameters, context: MergeContext) -> Delta:
    """Take Adam's steps from the sum; rows do not know of each other, so a few of them go all the way together,
    and beside others where a thread is free.

    A sum that is a minimum already (one task, or tasks that do not meet) stays as it is.
    """
    norms = {model: tasks.norm(model) for model in tasks.active}
    # Adam would make rounding, and so the order of models, visible
    tasks = replace(tasks, active=tuple(sorted(norms, key=lambda model: norms[model])))
    wide = tasks.wide()
    inputs, slope = fold(tasks, torch.float32)
    if float(torch.linalg.vector_norm(slope)) <= FLAT * sum(norms.values()):
        return wide.total
    all_rows = list(_runs(*tasks.shape))
    walked = [0.0] * len(all_rows)  # how many rows of each run, in effect

    def walk(index: int, rows: slice) -> None:
        begins = slope[rows]

        def gradient(change: Tensor) -> Tensor:
            if not change.any():  # at the first step, which needs no product
                return 2.0 * begins
            return torch.addmm(begins, change, inputs, beta=2.0, alpha=2.0)

        def tick(fraction: float) -> None:
            walked[index] = fraction * (rows.stop - rows.start)
            context.tick(sum(walked) / len(slope))

        slope[rows] = optimize.descend(  # of these rows nobody needs the slope any more
            torch.zeros_like(begins),
            gradient,
            learning_rate=parameters.learning_rate,
            steps=parameters.steps,
            tick=tick,
        )

    context.spread([partial(walk, index, rows) for index, rows in enumerate(all_rows)])
    change = matrices.cut(slope)
    return lambda columns: wide.total(columns).add_(change(columns))


def _runs(rows: int, columns: int) -> Iterator[slice]:
    """Yield runs of rows that are long enough for a product with [columns, columns], all about as long."""
    n_runs = max(1, rows // max(WALKED_ROWS, WALKED_ELEMENTS // columns))
    step = max(1, -(-rows // n_runs))
    return (slice(begin, min(rows, begin + step)) for begin in range(0, rows, step))


def _solve(tasks: TaskMatrices) -> Tensor:
    """Return the minimum nearest to the sum, S − G C⁺: what no task responds to stays as it is there."""
    inputs, merged = fold(tasks, torch.float64)
    values, vectors = spectra.decompose_square(inputs)
    n_null = int((values <= NULL * values[-1]).sum())
    values, vectors = values[n_null:], vectors[:, n_null:]
    for rows in matrices.runs(*tasks.shape):
        move = (merged[rows] @ vectors).div_(values)
        merged[rows] = tasks.some_rows(rows).total().addmm_(move, vectors.mT, alpha=-1.0)
    return merged
