"""Greedy soup: models enter the average one by one, the best first, and stay where the average does not lose by them.

Source: Wortsman et al. 2022, arXiv:2203.05482, recipe 1.
"""

from collections.abc import Sequence
from math import fsum
from typing import Annotated, Literal

from pydantic import Field, JsonValue
from torch import Tensor

from app.domain.catalog import ClassesNeed
from app.domain.coefficients import OTHERS
from app.domain.errors import InvalidParameters
from app.domain.parameters import Parameters
from workers.contract import Learning, MergeContext, merge_method
from workers.learning.coefficients import Coefficients, LearnedCoefficients, coefficients_of
from workers.learning.trials import Trials, share_out
from workers.learning_contract import LearningSession
from workers.numerics import precision


class GreedySoupParameters(Parameters):
    """Parameters of `greedy_soup`."""

    metric: Annotated[
        Literal["accuracy", "loss"],
        Field(description="What averages are compared by: the mean over the tasks of accuracy, or of loss."),
    ] = "accuracy"
    coefficients: Coefficients = None


def learn(parameters: GreedySoupParameters, session: LearningSession) -> LearnedCoefficients:
    """Return equal coefficients of the models that are kept, 0 of the others."""
    score = _Score(session, parameters.metric)
    alone = [score([model]) for model in range(score.n_models)]
    keys = session.context.model_keys
    order = sorted(range(score.n_models), key=lambda model: (-alone[model], keys[model], model))
    kept, best = order[:1], alone[order[0]]
    trace: list[JsonValue] = [{"model": order[0], "alone": alone[order[0]], "with": best, "kept": True}]
    for model in order[1:]:
        found = score([*kept, model])
        is_kept = found >= best
        trace.append({"model": model, "alone": alone[model], "with": found, "kept": is_kept})
        if is_kept:
            kept, best = [*kept, model], found
    coefficients = tuple(share_out(kept, score.n_models).tolist())
    return LearnedCoefficients({OTHERS: coefficients}, {"metric": parameters.metric, "score": best, "trace": trace})


class _Score:
    """How good the average of some models is, as a number of which more is better."""

    def __init__(self, session: LearningSession, metric: str) -> None:
        self.n_models = session.source.n_models
        self._session = session
        self._trials = Trials(session, model=0)
        self._is_loss = metric == "loss"
        self._n_done = 0

    def __call__(self, models: Sequence[int]) -> float:
        coefficients = share_out(models, self.n_models)
        score = -self._trials.loss(coefficients) if self._is_loss else self._trials.accuracy(coefficients)
        self._n_done += 1
        self._session.on_count(self._n_done, 2 * self.n_models - 1)
        return score


@merge_method(
    name="greedy_soup",
    title="Greedy soup",
    summary="Average of the models that help on labeled examples, taken in one by one, the best first.",
    source="Wortsman et al. 2022, arXiv:2203.05482",
    aliases=("soup_greedy",),
    parameters=GreedySoupParameters,
    base_model="unused",
    models=(1, None),
    weights="unused",
    granularity="element",
    neutral_parameters={},
    learning=Learning(
        learn,
        data="labelled",
        data_of="merge",
        parameter="coefficients",
        needs_classes=ClassesNeed(
            why="counts what is right with metric 'accuracy' (with 'loss' it takes texts)", where={"metric": "accuracy"}
        ),
    ),
    adapter_spaces=("delta",),
)
def merge(base: Tensor | None, finetuned: Tensor, parameters: GreedySoupParameters, context: MergeContext) -> Tensor:
    """Return Σ cᵢ θᵢ / Σ cᵢ with the coefficients c: learned, given, or all equal.

    base: unused; finetuned: [n, m]; result: [m]. In float64, rounded once.

    Raises: InvalidParameters when the coefficients sum to 0.
    """
    learned: LearnedCoefficients | None = context.learned
    given = parameters.coefficients if learned is None else learned.of_tensor
    coefficients = (1.0,) * len(finetuned) if given is None else coefficients_of(context.tensor, given)
    total = fsum(coefficients)
    if total == 0:
        raise InvalidParameters(
            f"greedy_soup: the coefficients {list(coefficients)} sum to 0, so their mean is not defined. Change them."
        )
    return precision.round_to_float32(precision.weighted_sum(finetuned, coefficients).div_(total))
