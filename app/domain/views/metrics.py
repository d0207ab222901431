"""Measured numbers as callers see them: single metrics, and comparisons of checkpoints over tasks."""

from pydantic import Field

from app.domain.tasks import Interval, MeasurementDetails
from app.domain.views.jobs import Instant, View


class TuningView(View):
    """A sweep that chose parameters: of the merge, or of one behind its inputs.

    On that split of these tasks the number of the sweep's own result is the best of `n_points`, and too good.
    """

    job: str
    split: str
    metric: str
    tasks: list[str] = Field(description="Their names when the sweep was accepted.")
    n_points: int = Field(description="How many points were compared.")


class MetricView(View):
    """One number measured for one checkpoint on one task."""

    id: str
    checkpoint: str
    task: str = Field(description="The task's name; its id where the task was deleted.")
    task_id: str
    job: str
    name: str
    value: float | None = Field(description="Null where the number is undefined.")
    unit: str
    higher_is_better: bool
    split: str
    n: int
    stderr: float | None
    interval: Interval | None = Field(
        default=None,
        description="95 %; null for one example, for a validation during a training, and where the job's result is "
        "gone.",
    )
    step: int | None = Field(
        default=None, description="Of a validation during the training: after which step. Null: of the checkpoint."
    )
    transductive: bool = Field(
        description="Whether these are test inputs that the merge, or one behind its inputs, had learned on or was "
        "chosen by; the same file under another task counts too."
    )
    tuned_on: tuple[TuningView, ...] = Field(
        default=(), description="The sweeps that chose parameters of the merge, or of one behind its inputs."
    )
    at: Instant
    details: MeasurementDetails | None = Field(
        default=None, description="Counts, those of each class among them, and other numbers; a list has it on request."
    )


class ComparedValue(View):
    """One cell of a comparison; null where it was never measured."""

    value: float | None
    n: int
    stderr: float | None
    interval: Interval | None = Field(default=None, description="As of the metric.")
    transductive: bool = Field(default=False, description="As of the metric: these inputs had been learned on.")
    tuned_on: tuple[TuningView, ...] = Field(default=(), description="As of the metric.")
    normalized: float | None = Field(description="Relative to the individual model of the task; null without one.")
    job: str


class ComparisonRow(View):
    """One checkpoint in a comparison. An average is null as soon as one of its values is."""

    ref: str
    checkpoint: str
    values: dict[str, ComparedValue | None]
    average: float | None
    normalized_average: float | None


class ComparisonView(View):
    """Checkpoints against tasks under one metric and split."""

    metric: str
    split: str
    higher_is_better: bool | None = Field(description="Null where nothing was measured yet.")
    unit: str | None = Field(description="Of the values; null where nothing was measured yet.")
    tasks: list[str]
    individual: dict[str, str | None] = Field(description="Per task, the checkpoint that `normalized` is relative to.")
    rows: list[ComparisonRow]
    cosines: list[list[float | None]] | None = Field(
        default=None, description="With cosines=true: cosine of each pair of task vectors, from stored analyses."
    )
