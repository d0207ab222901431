"""Rows of metrics: measured numbers, the newest of a kind first."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db import origins, tasks
from app.db.origins import Origin
from app.db.tables import Job, Metric, Task
from app.domain.identifiers import new_id
from app.domain.tasks import Measurement, MeasurementDetails
from app.domain.views.metrics import MetricView, TuningView


@dataclass(frozen=True)
class Standing:
    """What a number is to be read with: whether its inputs were seen before, and what parameters were chosen by."""

    is_transductive: bool
    tuned_on: tuple[TuningView, ...]


def add(
    session: Session, project_id: str, *, job_id: str, checkpoint_id: str, measurements: Sequence[Measurement]
) -> list[MetricView]:
    """Add what a job measured of a checkpoint; the details stay in the job's result, which takes what is returned."""
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
    found = {row.id: measured.details for row, measured in zip(rows, measurements, strict=True)}
    return views(session, rows, found, has_details=True)


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


def find_details(session: Session, rows: Iterable[Metric]) -> dict[str, MeasurementDetails]:
    """Return what stands behind metrics by their ids, from the results of the jobs that measured them."""
    of_jobs = session.scalars(select(Job.result["metrics"]).where(Job.id.in_({row.job_id for row in rows})))
    return {
        metric["id"]: MeasurementDetails.model_validate(metric["details"])
        for metrics in of_jobs
        for metric in metrics or ()
    }


def views(
    session: Session, rows: Sequence[Metric], details: Mapping[str, MeasurementDetails], *, has_details: bool
) -> list[MetricView]:
    """Return what a caller sees of metrics, in this order. details: by their ids; has_details: whether all are shown.

    The interval always is.
    """
    names = tasks.names(session, [row.task_id for row in rows])
    standing = stand(session, rows)
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
            interval=details[row.id].interval if row.id in details else None,
            step=row.step,
            transductive=standing[row.id].is_transductive,
            tuned_on=standing[row.id].tuned_on,
            at=row.at,
            details=details.get(row.id) if has_details else None,
        )
        for row in rows
    ]


def stand(session: Session, rows: Sequence[Metric]) -> dict[str, Standing]:
    """Return what the numbers are to be read with, by the metrics' ids."""
    behind = origins.find(session, {row.checkpoint_id for row in rows})
    tested = {row.task_id for row in rows if row.split == "test"}
    found = select(Task.id, Task.spec["dataset"]["test"]["sha256"].as_string()).where(Task.id.in_(tested))
    files: dict[str, str] = dict(session.execute(found).all())
    return {row.id: _stand(row, behind[row.checkpoint_id], files) for row in rows}


def _stand(row: Metric, origin: Origin, files: Mapping[str, str]) -> Standing:
    """Compare test inputs by their file: another prompt or batch size makes another task, not other inputs."""
    is_seen = row.split == "test" and files.get(row.task_id) in origin.files
    return Standing(is_transductive=is_seen, tuned_on=origin.tunings)
