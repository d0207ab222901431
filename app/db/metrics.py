"""Rows of metrics: measured numbers, the newest of a kind first."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from app.db import tasks
from app.db.tables import Artifact, Checkpoint, Job, Metric, Task
from app.domain.identifiers import new_id
from app.domain.tasks import Measurement, MeasurementDetails
from app.domain.views.metrics import MetricView


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
    seen = looked_at(session, rows)
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
            transductive=row.id in seen,
            at=row.at,
            details=details.get(row.id) if has_details else None,
        )
        for row in rows
    ]


def looked_at(session: Session, rows: Sequence[Metric]) -> set[str]:
    """Return the ids of those metrics that are of test inputs which a merge behind the checkpoint had learned on."""
    on_test = [row for row in rows if row.split == "test"]
    seen = _seen_by(session, {row.checkpoint_id for row in on_test})
    if not any(seen.values()):
        return set()
    of_task = dict(
        session.execute(select(Task.id, Task.digest).where(Task.id.in_({row.task_id for row in on_test}))).all()
    )
    return {row.id for row in on_test if of_task.get(row.task_id) in seen[row.checkpoint_id]}


def _seen_by(session: Session, checkpoint_ids: set[str]) -> dict[str, set[str]]:
    """Return the digests of the tasks whose test inputs went into each checkpoint: its own merge, and all before it.

    Inputs are followed by content, so a copy of a checkpoint carries what the checkpoint carries.
    """
    start = dict(
        session.execute(select(Checkpoint.id, Checkpoint.content_digest).where(Checkpoint.id.in_(checkpoint_ids))).all()
    )
    origins: dict[str, _Origin] = {}
    pending = {str(digest) for digest in start.values()}
    while pending:
        found = _origins_of(session, pending)
        origins.update(found)
        pending = {digest for one in found.values() for digest in one.inputs} - origins.keys()
    return {checkpoint_id: _gather(str(digest), origins) for checkpoint_id, digest in start.items()}


@dataclass
class _Origin:
    """What checkpoints of one content were made from."""

    inputs: set[str] = field(default_factory=set)  # content digests
    tasks: set[str] = field(default_factory=set)  # digests of those whose test inputs were looked at


def _gather(digest: str, origins: Mapping[str, _Origin]) -> set[str]:
    """Return the tasks of a checkpoint and of everything that it was made from."""
    reached, pending = set[str](), [digest]
    while pending:
        if (at := pending.pop()) not in reached:
            reached.add(at)
            pending += origins[at].inputs
    return {task for at in reached for task in origins[at].tasks}


def _origins_of(session: Session, digests: set[str]) -> dict[str, _Origin]:
    """Return what made the checkpoints of these contents: their merges' recipes, and the bases of what was trained."""
    origins = {digest: _Origin() for digest in digests}
    base = aliased(Checkpoint)
    recipe = [Artifact.recipe[name] for name in ("base_model", "onto", "models", "statistics", "data")]
    made = (
        select(Checkpoint.content_digest, base.content_digest, *recipe)
        .outerjoin(base, base.id == Checkpoint.base_checkpoint_id)
        .outerjoin(Artifact, Artifact.checkpoint_id == Checkpoint.id)
        .where(Checkpoint.content_digest.in_(digests))
    )
    for digest, trained_from, base_model, onto, models, statistics, data in session.execute(made):
        pinned = [base_model, onto, *(models or ()), *(statistics or ())]
        origins[digest].inputs |= {one["content_digest"] for one in pinned if one} | {trained_from} - {None}
        if data and data["transductive"]:
            origins[digest].tasks |= {task["digest"] for task in data["tasks"]}
    return origins
