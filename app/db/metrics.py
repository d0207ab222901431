"""Rows of metrics: measured numbers, the newest of a kind first."""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db import tasks
from app.db.tables import Artifact, Checkpoint, Metric, Task
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
            step=measured.step,
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
    """Return the newest metric of a name and split per (checkpoint id, task id); none of a step on the way there."""
    statement = select(Metric).where(
        Metric.project_id == project_id,
        Metric.checkpoint_id.in_(set(checkpoint_ids)),
        Metric.task_id.in_(set(task_ids)),
        Metric.name == name,
        Metric.split == split,
        Metric.step.is_(None),
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
            step=row.step,
            transductive=(row.checkpoint_id, row.task_id, row.split) in seen,
            at=row.at,
        )
        for row in rows
    ]


def _looked_at(session: Session, rows: Sequence[Metric]) -> set[tuple[str, str, str]]:
    """Return (checkpoint, task, split) of the metrics on test inputs that the checkpoint's merge had learned on."""
    wanted = Artifact.checkpoint_id.in_({row.checkpoint_id for row in rows if row.split == "test"})
    fields = (Artifact.checkpoint_id, Artifact.recipe["data"], Artifact.recipe["statistics"])
    learned = session.execute(select(*fields).where(wanted)).all()
    sources = {one["content_digest"] for _, _, used in learned for one in used or ()}
    earlier = _data_of(session, sources)
    digests = {
        (checkpoint_id, task["digest"])
        for checkpoint_id, data, used in learned
        for one in (data, *(earlier.get(source["content_digest"]) for source in used or ()))
        if isinstance(one, dict) and one["transductive"]
        for task in one["tasks"]
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


def _data_of(session: Session, content_digests: set[str]) -> dict[str, Any]:
    """Return what the merges looked at that made these checkpoints, by content digest; JSON of a recipe's data."""
    if not content_digests:
        return {}
    made = select(Checkpoint.content_digest, Artifact.recipe["data"]).join(
        Artifact, Artifact.checkpoint_id == Checkpoint.id
    )
    found = session.execute(made.where(Checkpoint.content_digest.in_(content_digests)))
    return {str(digest): data for digest, data in found}
