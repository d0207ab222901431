"""Fisher merging: the mean of the models, each weight counted by how much the model's own predictions depend on it.

Source: Matena, Raffel 2021, arXiv:2111.09832, equation 7.
Departs from source: each model's information is scaled to length 1 unless told otherwise; per example and over all
    labels, where other code squares the gradient of a batch (docs/methods/fisher.md).
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from app.domain.catalog import ClassesNeed
from app.domain.errors import IncompatibleCheckpoints
from app.domain.parameters import Parameters
from workers.contract import Learning, MergeContext, merge_method
from workers.learning.fisher import Labels, measure_fisher
from workers.learning.means import weighted_mean
from workers.learning.measuring import OnExample, measure_models, merged_weights
from workers.learning.statistics_files import StatisticsFile, StatisticsOfModels
from workers.learning_contract import LearningSession
from workers.model_contract import Probe
from workers.numerics import precision

KIND = "fisher"


class FisherParameters(Parameters):
    """Parameters of `fisher`."""

    labels: Annotated[
        Labels,
        Field(
            description="Of which label the gradient is: all, each with the probability that the model gives it; one "
            "drawn by it; the example's own."
        ),
    ] = "expected"
    normalize: Annotated[bool, Field(description="Scale each model's information to length 1 over all tensors.")] = True
    floor: Annotated[
        float, Field(ge=0.0, le=1.0, description="Added to each entry, so that what no model needs is averaged.")
    ] = 1e-6


def learn(parameters: FisherParameters, session: LearningSession) -> StatisticsOfModels:
    """Measure each model on its own task."""

    def measure(model: int, probe: Probe, on_example: OnExample) -> dict[str, Tensor]:
        weights = merged_weights(session, probe.module)
        return measure_fisher(probe, weights, parameters.labels, session.generator("labels", model), on_example)

    return measure_models(session, KIND, measure)


@merge_method(
    name="fisher",
    title="Fisher-weighted averaging",
    summary="Mean of the models' weights, each entry weighted by the model's diagonal Fisher information.",
    source="Matena, Raffel 2021, arXiv:2111.09832",
    aliases=("fisher_merging", "fisher_weighted_average"),
    parameters=FisherParameters,
    base_model="unused",
    models=(1, None),
    weights="non_negative",
    granularity="element",
    neutral_parameters={},
    learning=Learning(
        learn,
        data="fisher",
        statistics=KIND,
        reads=("labels",),
        needs_classes=ClassesNeed(
            why="sums over all classes with labels 'expected' (with 'sampled' or 'given' it takes texts)",
            where={"labels": "expected"},
        ),
    ),
    adapter_spaces=("delta",),
)
def merge(base: Tensor | None, finetuned: Tensor, parameters: FisherParameters, context: MergeContext) -> Tensor:
    """Return Σ wᵢ (Fᵢ + floor) θᵢ / Σ wᵢ (Fᵢ + floor), entry by entry; where all counts are 0, the weighted mean.

    base: unused; finetuned: [n, m]; result: [m]. In float64, rounded once.

    Raises: InvalidParameters when all weights are 0.
    """
    mean = weighted_mean(finetuned, context)
    learned: StatisticsOfModels | None = context.learned
    if learned is None:
        return precision.round_to_float32(mean)
    total, counts = torch.zeros_like(mean), torch.zeros_like(mean)
    for tensor, weight, statistics in zip(finetuned, context.weights, learned.of_model, strict=True):
        found = _information(statistics, parameters, context, len(tensor)).to(tensor.device)
        count = found.add_(parameters.floor).mul_(weight)
        counts.add_(count)
        total.addcmul_(count, tensor.double())
    return precision.round_to_float32(torch.where(counts > 0, total.div_(counts), mean))


def _information(
    statistics: StatisticsFile, parameters: FisherParameters, context: MergeContext, n_elements: int
) -> Tensor:
    """Return a model's information of the piece, [m] float64; zeros for a tensor that no prediction depends on."""
    if context.tensor not in statistics.tensors:
        return torch.zeros(n_elements, dtype=torch.float64)
    shape = statistics.tensors[context.tensor].shape
    if shape != context.shape:
        raise IncompatibleCheckpoints(
            f"{statistics.path} holds {list(shape)} for {context.tensor!r}, expected {list(context.shape)}; use "
            "statistics of these models."
        )
    found = statistics.read(context.tensor, context.offset, n_elements).double()
    return found.div_(statistics.norm) if parameters.normalize and statistics.norm > 0 else found
