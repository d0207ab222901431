"""What merges score on tasks, absolute and relative to the models that were fine-tuned on one task alone."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from workers.numerics.numbers import mean, normalize


class Scores(BaseModel):
    """The tasks' metrics of one model, and their means; null where a metric is not defined."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    values: list[float | None] = Field(description="Of each task, in the request's order.")
    normalized: list[float | None] = Field(description="Relative to the task's individual model: 1 is as good.")
    mean: float | None
    normalized_mean: float | None


def score(values: Sequence[float | None], individual: Sequence[float | None], rises: Sequence[bool]) -> Scores:
    """Return the scores of a model. individual: those of each task's own model; rises: whether higher is better."""
    relative = [
        normalize(value, own, higher_is_better=is_rising)
        for value, own, is_rising in zip(values, individual, rises, strict=True)
    ]
    return Scores(values=list(values), normalized=relative, mean=mean(values), normalized_mean=mean(relative))
