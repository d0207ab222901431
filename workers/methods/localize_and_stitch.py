"""Localize-and-stitch: learn per task which entries of its task vector it needs; where tasks overlap, average them.

Source: He et al. 2024, arXiv:2408.13656, section 3.
Departs from source: steps and penalty count per entry, so that they mean the same in models of any size; the penalty is
    the paper's, not that of the authors' code, which is offered too; scores begin nearer to 0, so that masks learn
    (docs/methods/localize_and_stitch.md).
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Annotated

import torch
from pydantic import Field, JsonValue
from torch import Tensor

from app.domain.errors import IncompatibleCheckpoints
from app.domain.parameters import Density, Parameters, TrimScope
from workers.contract import Learning, MergeContext, StatisticRequest, merge_method
from workers.learning.localization import Localization, Regularizer, localize, pack
from workers.learning.measuring import OnExample, measure_models
from workers.learning.statistics_files import MASK, StatisticsFile, StatisticsOfModels
from workers.learning_contract import LearningSession
from workers.model_contract import Probe
from workers.numerics import sparsify, stitching, task_vectors
from workers.statistics import trims
from workers.statistics.magnitudes import BoundaryTable, MagnitudeBoundaries


class LocalizeAndStitchParameters(Parameters):
    """Parameters of `localize_and_stitch`."""

    density: Density = 0.01
    trim_scope: TrimScope = "global"
    sigmoid_bias: Annotated[
        float,
        Field(gt=0.0, le=100.0, description="Scores begin at this where the mask begins, at minus this elsewhere."),
    ] = 1.0
    learning_rate: Annotated[
        float, Field(gt=0.0, le=1e6, description="Step size of gradient descent, times the number of entries.")
    ] = 1.0
    steps: Annotated[int, Field(ge=0, le=100_000, description="Steps, each over all examples of the task.")] = 10
    batch_size: Annotated[int, Field(ge=1, le=4096, description="Examples run at a time; no result depends on it.")] = (
        32
    )
    l1: Annotated[
        float, Field(ge=0.0, le=1e6, description="Penalty on the mean of the mask, in units of the loss.")
    ] = 1.0
    regularizer: Annotated[
        Regularizer,
        Field(description="What the penalty pulls to: 0, as in the paper, or the nearer of 0 and 1, as in the code."),
    ] = "l1"


def collect(parameters: LocalizeAndStitchParameters) -> Sequence[StatisticRequest]:
    """Ask where each task's largest entries end: masks begin there."""
    return (MagnitudeBoundaries(trims.TRIM, parameters.trim_scope, trims.KeptRank(parameters.density)),)


def learn(parameters: LocalizeAndStitchParameters, session: LearningSession) -> StatisticsOfModels:
    """Learn each model's mask on its own task."""
    how = Localization(
        sigmoid_bias=parameters.sigmoid_bias,
        learning_rate=parameters.learning_rate,
        steps=parameters.steps,
        batch_size=parameters.batch_size,
        l1=parameters.l1,
        regularizer=parameters.regularizer,
    )
    positions = {name: position for name, _, position in session.source.tensors}
    told: list[JsonValue] = []

    def measure(model: int, probe: Probe, on_example: OnExample) -> Mapping[str, Tensor]:
        def start(name: str, delta: Tensor) -> Tensor:
            boundaries = [session.context.statistics[trims.TRIM].of(name)[model][0]]
            at = positions[name] if parameters.trim_scope == "global" else 0
            kept = sparsify.trim(delta.reshape(1, -1).cpu(), boundaries, start=at)
            return (kept != 0).view(delta.shape).to(delta.device)

        localizer = localize(session, model, probe, start, how, on_example)
        told.append(localizer.report())
        return pack(localizer.masks)

    found = measure_models(session, MASK, measure)
    return StatisticsOfModels(found.of_model, new_in=session.scratch, told={"masks": told})


@merge_method(
    name="localize_and_stitch",
    title="Localize-and-stitch",
    summary="Learns per task a sparse mask of its task vector on a few examples, and averages where tasks overlap.",
    source="He et al. 2024, arXiv:2408.13656",
    aliases=("localize_stitch",),
    parameters=LocalizeAndStitchParameters,
    base_model="required",
    models=(1, None),
    weights="non_negative",
    granularity="element",
    statistic_passes=1,
    local_where=({"trim_scope": "tensor"},),
    neutral_parameters={"density": 1.0},
    collect=collect,
    learning=Learning(learn, data="labelled", statistics=MASK),
    adapter_spaces=("delta",),
)
def merge(base: Tensor, finetuned: Tensor, parameters: LocalizeAndStitchParameters, context: MergeContext) -> Tensor:
    """Return θ₀ + Σ wᵢ mᵢ ⊙ τᵢ / Σ wᵢ mᵢ, 0/0 being 0, with masks as learned, or as they begin.

    base: [m]; finetuned: [n, m]; result: [m].

    Raises: IncompatibleCheckpoints for masks of another model.
    """
    deltas = task_vectors.subtract(finetuned, base)
    learned: StatisticsOfModels | None = context.learned
    if learned is None:
        table: BoundaryTable = context.statistics[trims.TRIM]
        start = context.position if parameters.trim_scope == "global" else context.offset
        localized = sparsify.trim(deltas, [boundaries[0] for boundaries in table.of(context.tensor)], start=start)
    else:
        masks = [_mask(one, context, deltas.shape[1]).to(deltas.device) for one in learned.of_model]
        localized = torch.where(torch.stack(masks), deltas, 0.0)
    stitched = stitching.add_tasks(localized, context.weights).divide()
    return task_vectors.add(base, stitched, scaling_coefficient=1.0)


def _mask(statistics: StatisticsFile, context: MergeContext, n_elements: int) -> Tensor:
    """Return a model's mask of the piece, [m] bool."""
    n_bytes = -(-prod(context.shape) // 8)
    spec = statistics.tensors.get(context.tensor)
    if spec is None or spec.shape != (n_bytes,):
        found = "nothing" if spec is None else str(list(spec.shape))
        raise IncompatibleCheckpoints(
            f"{statistics.path} holds {found} for {context.tensor!r}, expected the bits of {list(context.shape)} in "
            f"[{n_bytes}]; use masks of these models."
        )
    return statistics.read_bits(context.tensor, context.offset, n_elements)
