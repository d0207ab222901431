"""Comparisons: checkpoints against tasks, absolute and relative to the individually fine-tuned models.

Only what was measured is compared; what never was is null. The newest metric of a kind counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db import checkpoints as checkpoint_rows
from app.db import metrics as metric_rows
from app.db import tasks as task_rows
from app.db.engine import Sessions
from app.db.metrics import Standing
from app.db.tables import Checkpoint, Job, Metric, Task
from app.domain.errors import FieldProblem, Invalid
from app.domain.jobs import JobKind, JobState
from app.domain.tasks import MeasurementDetails
from app.domain.views.metrics import ComparedValue, ComparisonRow, ComparisonView
from app.services.actors import Actor

COSINES = "task_vector_cosines"  # the kind of analysis that finds them
MAX_ANALYSES = 200  # newest analyses that are looked through for cosines

Measured = Mapping[tuple[str, str], Metric]  # (checkpoint id, task id) -> its newest metric


@dataclass(frozen=True)
class Known:
    """What else is known of metrics, by their ids."""

    standing: Mapping[str, Standing]
    details: Mapping[str, MeasurementDetails]


@dataclass(frozen=True)
class ComparisonRequest:
    """Which checkpoints (refs) to compare on which tasks (names or ids)."""

    checkpoints: Sequence[str]
    tasks: Sequence[str]
    split: str = "test"
    metric: str = "accuracy"
    individual: Mapping[str, str] = field(default_factory=dict)  # task -> ref
    has_cosines: bool = False


def compare(sessions: Sessions, actor: Actor, request: ComparisonRequest) -> ComparisonView:
    """Return the comparison.

    Raises: UnknownCheckpoint, CheckpointNotReady, UnknownTask; Invalid where `individual` names a task that is not
        compared.
    """
    with sessions.read() as session:
        tasks = task_rows.resolve(
            session, actor.project_id, [(f"/query/tasks/{index}", name) for index, name in enumerate(request.tasks)]
        )
        refs = [(f"/query/checkpoints/{index}", ref) for index, ref in enumerate(request.checkpoints)]
        compared = checkpoint_rows.resolve(session, actor.project_id, refs)
        individual = _individual(session, actor, request, tasks, compared)
        measured = metric_rows.newest(
            session,
            actor.project_id,
            checkpoint_ids=[row.id for row in (*compared, *individual.values())],
            task_ids=[task.id for task in tasks],
            name=request.metric,
            split=request.split,
        )
        measures = {(metric.higher_is_better, metric.unit) for metric in measured.values()}
        known = Known(
            metric_rows.stand(session, list(measured.values())),
            metric_rows.find_details(session, measured.values()),
        )
        direction, unit = measures.pop() if len(measures) == 1 else (None, None)
        return ComparisonView(
            metric=request.metric,
            split=request.split,
            higher_is_better=direction,
            unit=unit,
            tasks=[task.name for task in tasks],
            individual={task.name: individual[task.id].id if task.id in individual else None for task in tasks},
            rows=[
                _row(ref, row, tasks, measured, individual, known)
                for ref, row in zip(request.checkpoints, compared, strict=True)
            ],
            cosines=_cosines(session, actor, [row.id for row in compared]) if request.has_cosines else None,
        )


def _individual(
    session: Session, actor: Actor, request: ComparisonRequest, tasks: Sequence[Task], compared: Sequence[Checkpoint]
) -> dict[str, Checkpoint]:
    """Return the individually fine-tuned model of each task: the one named, else the newest compared with that task."""
    by_name = {task.name: task.id for task in tasks} | {task.id: task.id for task in tasks}
    foreign = [name for name in request.individual if name not in by_name]
    if foreign:
        message = (
            f"names {', '.join(map(repr, foreign))}, which is not among `tasks`; write task:ref for compared tasks"
        )
        raise Invalid(f"individual {message}.", errors=[FieldProblem("/query/individual", message)])
    refs = [("/query/individual", ref) for ref in request.individual.values()]
    named = checkpoint_rows.resolve(session, actor.project_id, refs)
    found = {by_name[name]: row for name, row in zip(request.individual, named, strict=True)}
    for task in tasks:
        own = sorted((row for row in compared if row.task in (task.name, task.id)), key=lambda row: row.id)
        if own and task.id not in found:
            found[task.id] = own[-1]
    return found


def _row(  # noqa: PLR0913 (a row, and what is known of its cells)
    ref: str,
    row: Checkpoint,
    tasks: Sequence[Task],
    measured: Measured,
    individual: Mapping[str, Checkpoint],
    known: Known,
) -> ComparisonRow:
    values = {task.name: _value(row, task, measured, individual.get(task.id), known) for task in tasks}
    return ComparisonRow(
        ref=ref,
        checkpoint=row.id,
        values=values,
        average=_mean([cell.value if cell is not None else None for cell in values.values()]),
        normalized_average=_mean([cell.normalized if cell is not None else None for cell in values.values()]),
    )


def _value(
    row: Checkpoint, task: Task, measured: Measured, own: Checkpoint | None, known: Known
) -> ComparedValue | None:
    metric = measured.get((row.id, task.id))
    if metric is None:
        return None
    reference = measured.get((own.id, task.id)) if own is not None else None
    details = known.details.get(metric.id)
    return ComparedValue(
        value=metric.value,
        n=metric.n,
        stderr=metric.stderr,
        interval=details.interval if details is not None else None,
        transductive=known.standing[metric.id].is_transductive,
        tuned_on=known.standing[metric.id].tuned_on,
        normalized=_normalized(metric, reference) if reference is not None else None,
        job=metric.job_id,
    )


def _normalized(metric: Metric, reference: Metric) -> float | None:
    """Return how near a value comes to the reference: 1 is equal, more is better; None where a ratio means nothing."""
    if metric.value is None or reference.value is None:
        return None
    over, under = (metric.value, reference.value) if metric.higher_is_better else (reference.value, metric.value)
    return over / under if under > 0 and over >= 0 else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _cosines(session: Session, actor: Actor, checkpoint_ids: Sequence[str]) -> list[list[float | None]]:
    """Return the cosine of each pair of task vectors, from the newest analysis that holds the pair."""
    statement = select(Job.spec, Job.result).where(
        Job.project_id == actor.project_id,
        Job.kind == str(JobKind.ANALYZE),
        Job.state == str(JobState.SUCCEEDED),
        Job.spec["kind"].as_string() == COSINES,
    )
    known: dict[tuple[str, str], float | None] = {}
    for spec, result in session.execute(statement.order_by(Job.id.desc()).limit(MAX_ANALYSES)):
        models = spec["models"]
        for first, line in zip(models, (result or {}).get("data", {}).get("cosines", ()), strict=False):
            for second, cosine in zip(models, line, strict=False):
                known.setdefault((first, second), cosine)
    return [[known.get((first, second)) for second in checkpoint_ids] for first in checkpoint_ids]
