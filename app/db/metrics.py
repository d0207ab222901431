"""Rows of metrics: measured numbers, the newest of a kind first."""

from collections.abc import Iterable, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db import tasks
from app.db.tables import Artifact, Metric, Task
from app.domain.identifiers import new_id
from app.domain.tasks import Measurement
from app.domain.views.metrics import MeasuredView, MetricView


def add(
    session: Session, project_id: str, *, job_id: str, checkpoint_id: str, measurements: Sequence[Measurement]
) -> list[MeasuredView]:
    """Add what a job measured of a checkpoint; the details stay in the job's result."""
    rows = [
        Metric(
            id=new_id("met"),
            project_id=project_id,
            job_id=job_id,
            checkpoint_id=checkpoint_id,
            task_id=measured.task,
            name=measured.name,
            value=measured.value,
            unit=measured.unit,
            higher_is_better=measured.higher_is_better,
            split=measured.split,
            n=measured.n,
            stderr=measured.stderr,
        )
        for measured in measurements
    ]
    session.add_all(rows)
    session.flush()
    made = zip(views(session, rows), measurements, strict=True)
    return [MeasuredView(**view.model_dump(), details=measured.details) for view, measured in made]


def newest(  # noqa: PLR0913 (one filter each)
    session: Session, project_id: str, *, checkpoint_ids: Iterable[str], task_ids: Iterable[str], name: str, split: str
) -> dict[tuple[str, str], Metric]:
    """Return the newest metric of a name and split per (checkpoint id, task id)."""
    statement = select(Metric).where(
        Metric.project_id == project_id,
        Metric.checkpoint_id.in_(set(checkpoint_ids)),
        Metric.task_id.in_(set(task_ids)),
        Metric.name == name,
        Metric.split == split,
    )
    ordered = session.scalars(statement.order_by(Metric.at, Metric.id))
    return {(row.checkpoint_id, row.task_id): row for row in ordered}


def views(session: Session, rows: Sequence[Metric]) -> list[MetricView]:
    """Return what a caller sees of metrics, in this order."""
    names = tasks.names(session, [row.task_id for row in rows])
    seen = _looked_at(session, rows)
    return [
        MetricView(
            id=row.id,
            checkpoint=row.checkpoint_id,
            task=names.get(row.task_id, row.task_id),
            task_id=row.task_id,
            job=row.job_id,
            name=row.name,
            value=row.value,
            unit=row.unit,
            higher_is_better=row.higher_is_better,
            split=row.split,
            n=row.n,
            stderr=row.stderr,
            transductive=(row.checkpoint_id, row.task_id, row.split) in seen,
            at=row.at,
        )
        for row in rows
    ]


def _looked_at(session: Session, rows: Sequence[Metric]) -> set[tuple[str, str, str]]:
    """Return (checkpoint, task, split) of the metrics on test inputs that the checkpoint's merge had learned on."""
    wanted = Artifact.checkpoint_id.in_({row.checkpoint_id for row in rows if row.split == "test"})
    learned = session.execute(select(Artifact.checkpoint_id, Artifact.recipe["data"]).where(wanted))
    digests = {
        (checkpoint_id, task["digest"])
        for checkpoint_id, data in learned
        if isinstance(data, dict) and data["transductive"]
        for task in data["tasks"]
    }
    if not digests:
        return set()
    of_task = {
        row.id: row.digest for row in session.scalars(select(Task).where(Task.id.in_({row.task_id for row in rows})))
    }
    return {
        (row.checkpoint_id, row.task_id, row.split)
        for row in rows
        if row.split == "test" and (row.checkpoint_id, of_task.get(row.task_id)) in digests
    }
