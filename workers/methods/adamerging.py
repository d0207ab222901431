"""AdaMerging: learn the coefficients of task vectors by minimizing the entropy of predictions on unlabeled inputs.

Source: Yang et al. 2023, arXiv:2310.02575, equations 3 to 6.
Departs from source: by default not the test split but the validation split is looked at; coefficients are projected
    into [0, 1] after each step; one batch per task and step (docs/methods/adamerging.md).
"""

from math import fsum
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from app.domain.catalog import ClassesNeed, Preset
from app.domain.parameters import AdamLearningRate, Parameters
from workers.contract import Learning, MergeContext, merge_method
from workers.fusion import FusedMerge
from workers.learning.coefficients import Coefficients, LearnedCoefficients, coefficients_of
from workers.learning.entropy_descent import EntropyDescent, learn_coefficients
from workers.learning_contract import LearningSession
from workers.numerics import precision


class AdamergingParameters(Parameters):
    """Parameters of `adamerging`."""

    granularity: Annotated[
        Literal["layer", "task"],
        Field(description="What has a coefficient of its own: each tensor of each model, or each model."),
    ] = "layer"
    initial_coefficient: Annotated[
        float, Field(ge=-10.0, le=10.0, description="Every coefficient before the first step.")
    ] = 0.3
    learning_rate: AdamLearningRate = 1e-3
    steps: Annotated[int, Field(ge=0, le=100_000, description="Steps of Adam, each over one batch of every task.")] = (
        500
    )
    batch_size: Annotated[int, Field(ge=1, le=4096, description="Examples of each task in a step.")] = 16
    clamp: Annotated[bool, Field(description="Keep the coefficients in [0, 1].")] = True
    coefficients: Coefficients = None


def learn(parameters: AdamergingParameters, session: LearningSession) -> LearnedCoefficients:
    """Return the coefficients that minimize the prediction entropy, summed over the tasks."""
    descent = EntropyDescent(
        granularity=parameters.granularity,
        start=parameters.initial_coefficient,
        learning_rate=parameters.learning_rate,
        steps=parameters.steps,
        batch_size=parameters.batch_size,
        is_clamped=parameters.clamp,
    )
    return learn_coefficients(session, descent)


def fuse(parameters: AdamergingParameters, context: MergeContext) -> FusedMerge:
    """Return what `merge` computes, fused."""
    coefficients = _coefficients(parameters, context, len(context.weights))
    return FusedMerge(coefficients, base_share=1.0 - fsum(coefficients))


@merge_method(
    name="adamerging",
    title="AdaMerging",
    summary="Task arithmetic with a coefficient per model and tensor, learned on unlabeled inputs by least entropy.",
    source="Yang et al. 2023, arXiv:2310.02575",
    aliases=(
        "adamerging_plus_plus",
        "awd_adamerging",
        "layer_wise_adamerging",
        "task_wise_adamerging",
    ),
    presets={
        "adamerging_plus_plus": Preset(transforms=("ties",)),
        "awd_adamerging": Preset(transforms=("awd",)),
        "layer_wise_adamerging": Preset(parameters={"granularity": "layer"}),
        "task_wise_adamerging": Preset(parameters={"granularity": "task"}),
    },
    parameters=AdamergingParameters,
    base_model="required",
    models=(1, None),
    weights="unused",
    granularity="element",
    neutral_parameters={"initial_coefficient": 1.0},
    learning=Learning(
        learn,
        data="unlabelled",
        parameter="coefficients",
        needs_classes=ClassesNeed(why="minimizes the entropy of predictions over classes"),
    ),
    fused=fuse,
    adapter_spaces=("delta",),
)
def merge(base: Tensor, finetuned: Tensor, parameters: AdamergingParameters, context: MergeContext) -> Tensor:
    """Return θ₀ + Σ λᵢ (θᵢ − θ₀) with the coefficients λ of the tensor: learned, given, or those at the start.

    base: [m]; finetuned: [n, m]; result: [m]. In float64, rounded once.
    """
    coefficients = _coefficients(parameters, context, len(finetuned))
    total = precision.weighted_sum(finetuned, coefficients)
    return precision.round_to_float32(precision.weighted_sum((base, total), (1.0 - fsum(coefficients), 1.0)))


def _coefficients(parameters: AdamergingParameters, context: MergeContext, n_models: int) -> tuple[float, ...]:
    learned: LearnedCoefficients | None = context.learned
    given = parameters.coefficients if learned is None else learned.of_tensor
    return (parameters.initial_coefficient,) * n_models if given is None else coefficients_of(context.tensor, given)
