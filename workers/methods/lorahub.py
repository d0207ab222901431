"""LoraHub: coefficients of adapters or task vectors for a new task, found without gradients on a few labeled examples.

Source: Huang et al. 2023, arXiv:2307.13269, section 3.
Departs from source: an evolution strategy of our own in place of nevergrad's choice; the loss is the mean per example,
    whatever the batches; dense models, and adapters in the space `delta`, are composed too (docs/methods/lorahub.md).
"""

from math import fsum
from typing import Annotated

from pydantic import Field, JsonValue
from torch import Tensor

from app.domain.coefficients import OTHERS
from app.domain.parameters import Parameters
from workers.contract import Learning, MergeContext, merge_method
from workers.learning.coefficients import Coefficients, LearnedCoefficients, coefficients_of
from workers.learning.trials import Trials
from workers.learning_contract import LearningSession
from workers.model_contract import Step
from workers.numerics import evolution, precision


class LorahubParameters(Parameters):
    """Parameters of `lorahub`."""

    budget: Annotated[int, Field(ge=1, le=10_000, description="How many sets of coefficients are tried.")] = 40
    bound: Annotated[float, Field(gt=0.0, le=10.0, description="Largest magnitude of a coefficient.")] = 1.5
    regularization: Annotated[
        float, Field(ge=0.0, le=10.0, description="Factor on the mean magnitude of the coefficients (L1).")
    ] = 0.05
    coefficients: Coefficients = None


def learn(parameters: LorahubParameters, session: LearningSession) -> LearnedCoefficients:
    """Return the coefficients of the least loss on the tasks' labeled examples, regularized."""
    trials = Trials(session)
    tried: list[JsonValue] = []

    def objective(coefficients: Tensor) -> float:
        loss = trials.loss(coefficients) + parameters.regularization * coefficients.abs().mean().item()
        tried.append({"step": len(tried) + 1, "loss": loss})
        session.on_step(Step(done=len(tried), total=parameters.budget, loss=loss))
        return loss

    found = evolution.minimize(
        objective,
        session.source.n_models,
        bound=parameters.bound,
        budget=parameters.budget,
        generator=session.generator("coefficients", 0),
    )
    return LearnedCoefficients({OTHERS: tuple(found.tolist())}, {"losses": tried})


@merge_method(
    name="lorahub",
    title="LoraHub",
    summary="Adapters or task vectors with a coefficient each, found without gradients on a few labeled examples.",
    source="Huang et al. 2023, arXiv:2307.13269",
    parameters=LorahubParameters,
    base_model="required",
    models=(1, None),
    weights="unused",
    granularity="element",
    neutral_parameters={"coefficients": {"*": [1.0]}},
    learning=Learning(learn, data="labelled", data_of="merge", parameter="coefficients"),
    adapter_spaces=("factors", "delta"),
)
def merge(base: Tensor, finetuned: Tensor, parameters: LorahubParameters, context: MergeContext) -> Tensor:
    """Return θ₀ + Σ wᵢ (θᵢ − θ₀) with the coefficients w: learned, given, or 0.

    base: [m]; finetuned: [n, m]; result: [m]. In float64, rounded once. Factors of adapters lie around a base of zeros.
    """
    learned: LearnedCoefficients | None = context.learned
    given = parameters.coefficients if learned is None else learned.of_tensor
    coefficients = (0.0,) * len(finetuned) if given is None else coefficients_of(context.tensor, given)
    total = precision.weighted_sum(finetuned, coefficients)
    return precision.round_to_float32(precision.weighted_sum((base, total), (1.0 - fsum(coefficients), 1.0)))
