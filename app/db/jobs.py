"""Queries on jobs: guarded moves, what can be claimed, what is overdue, and rows as views. Nothing here commits."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, Text, and_, cast, func, or_, select, update
from sqlalchemy.orm import Session

from app.db.tables import Job, JobAttempt, JobInput
from app.domain.errors import NotFound
from app.domain.jobs import JobKind, JobState, Progress, ResourceClass
from app.domain.parts import add_progress
from app.domain.views.jobs import JobInputRef, JobTimings, JobView, PartsView, StageTiming

HELD = (JobState.RUNNING, JobState.CANCELING)  # states in which a worker holds the job


def find(session: Session, project_id: str, job_id: str) -> Job:
    """Return a job of this project. Raises: NotFound."""
    row = session.scalar(select(Job).where(Job.id == job_id, Job.project_id == project_id))
    if row is None:
        raise NotFound(f"There is no job {job_id!r}. `GET /v1/jobs` lists the jobs.")
    return row


def move(session: Session, job_id: str, *guards: ColumnElement[bool], values: Mapping[str, object]) -> Job | None:
    """Change a job in one UPDATE if the guards hold; return the changed row, or None when they do not."""
    statement = (
        update(Job)
        .where(Job.id == job_id, *guards)
        .values(**values, revision=Job.revision + 1)
        .returning(Job)
        .execution_options(synchronize_session=False, populate_existing=True)
    )
    return session.scalars(statement).one_or_none()


def in_state(*states: JobState) -> ColumnElement[bool]:
    """Guard: the job is in one of these states."""
    return Job.state.in_([str(state) for state in states])


def held_with(fence: int) -> ColumnElement[bool]:
    """Guard: the job is held under this claim."""
    return and_(Job.fence == fence, in_state(*HELD))


def awaits_parts() -> ColumnElement[bool]:
    """Guard: the job is a merge that no worker holds, because it waits for its parts."""
    return and_(in_state(JobState.RUNNING), Job.n_remaining_children > 0)


def runnable(at: datetime) -> ColumnElement[bool]:
    """Condition: a worker may claim the job at this instant."""
    return and_(
        in_state(JobState.QUEUED),
        or_(Job.not_before.is_(None), Job.not_before <= at),
        Job.waits_for.is_(None),
        Job.attempts < Job.max_attempts,
    )


def about_task(name: str) -> ColumnElement[bool]:
    """Condition: a fine-tuning on the task, or an evaluation that measures on it, maybe among others."""
    items = func.replace(cast(Job.spec["tasks"], Text), " ", "")  # the databases write JSON with and without blanks
    return or_(Job.spec["task"].as_string() == name, items.contains(f'"task":{json.dumps(name)}', autoescape=True))


def best_runnable(classes: Sequence[ResourceClass], at: datetime) -> Select[str]:
    """Select the id of the job to run next: highest priority, then oldest; what another worker claims is skipped."""
    return (
        select(Job.id)
        .where(Job.resource_class.in_([str(name) for name in classes]), runnable(at))
        .order_by(Job.priority.desc(), Job.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )


def overdue(at: datetime) -> Select[Job]:
    """Select the jobs whose lease has run out."""
    return select(Job).where(in_state(*HELD), Job.lease_until < at).order_by(Job.id)


def unhinted(at: datetime, hinted_before: datetime) -> ColumnElement[bool]:
    """Condition: runnable, and its last message is missing, too old, or from before its backoff ended."""
    return and_(
        runnable(at),
        or_(Job.hinted_at.is_(None), Job.hinted_at < hinted_before, Job.hinted_at < Job.not_before),
    )


def close_attempt(
    session: Session, row: Job, outcome: str, at: datetime, problem: Mapping[str, object] | None = None
) -> None:
    """Say how the attempt under the row's fence ended."""
    session.execute(
        update(JobAttempt)
        .where(JobAttempt.job_id == row.id, JobAttempt.fence == row.fence, JobAttempt.ended_at.is_(None))
        .values(ended_at=at, outcome=outcome, problem=dict(problem) if problem else None)
    )


def inputs_of(session: Session, job_id: str) -> tuple[JobInputRef, ...]:
    """Return the checkpoints a job reads, by role and position."""
    rows = session.scalars(select(JobInput).where(JobInput.job_id == job_id).order_by(JobInput.role, JobInput.position))
    return tuple(JobInputRef(role=row.role, position=row.position, checkpoint_id=row.checkpoint_id) for row in rows)


def count_by_state(session: Session, project_id: str | None = None) -> dict[tuple[str, str, str], int]:
    """Return how many jobs there are by (kind, resource class, state)."""
    statement = select(Job.kind, Job.resource_class, Job.state, func.count()).group_by(
        Job.kind, Job.resource_class, Job.state
    )
    if project_id is not None:
        statement = statement.where(Job.project_id == project_id)
    return {(kind, resource, state): count for kind, resource, state, count in session.execute(statement)}


def view(session: Session, row: Job) -> JobView:
    """Return one job as callers see it."""
    return views(session, [row])[0]


def view_new(row: Job) -> JobView:
    """Return a job that was added in this transaction; it has no children yet."""
    return _view(row, _Family())


def views(session: Session, rows: Sequence[Job]) -> list[JobView]:
    """Return jobs as callers see them, in this order."""
    families = {row.id: _Family() for row in rows}
    columns = (Job.parent_id, Job.id, Job.kind, Job.state, Job.progress)
    children = select(*columns).where(Job.parent_id.in_(list(families))).order_by(Job.id)
    for parent_id, child_id, kind, state, progress in session.execute(children):
        if kind == JobKind.PART:
            families[parent_id].parts.append((JobState(state), progress))
        else:
            families[parent_id].children.append(child_id)
    return [_view(row, families[row.id]) for row in rows]


@dataclass
class _Family:
    """What there is of jobs that belong to one: those that follow it, and those that do its work."""

    children: list[str] = field(default_factory=list)
    parts: list[tuple[JobState, dict[str, Any] | None]] = field(default_factory=list)  # state, progress

    def progress(self, row: Job) -> Progress | None:
        """Return the job's progress, or what that of its parts adds up to while it waits for them."""
        own = Progress.model_validate(row.progress) if row.progress is not None else None
        if own is None or not row.n_remaining_children:
            return own
        return add_progress(own.total, [(s, Progress.model_validate(one)) for s, one in self.parts if one is not None])

    def count(self) -> PartsView | None:
        """Return how many parts there are in each state, if there are any."""
        if not self.parts:
            return None
        counts = Counter(str(state) for state, _ in self.parts)
        return PartsView(total=len(self.parts), **counts)


def _view(row: Job, family: _Family) -> JobView:
    return JobView(
        id=row.id,
        kind=JobKind(row.kind),
        state=JobState(row.state),
        project_id=row.project_id,
        resource_class=ResourceClass(row.resource_class),
        priority=row.priority,
        spec=row.spec,
        tags=row.tags,
        recipe_digest=row.recipe_digest,
        progress=family.progress(row),
        attempts=row.attempts,
        max_attempts=row.max_attempts,
        timeout_seconds=row.timeout_seconds,
        timings=JobTimings(
            queued_at=row.queued_at,
            started_at=row.started_at,
            finished_at=row.finished_at,
            stages=tuple(StageTiming.model_validate(stage) for stage in row.stages),
        ),
        worker=row.worker_id,
        parent=row.parent_id,
        children=tuple(family.children),
        parts=family.count(),
        retry_of=row.retry_of,
        deduplicated_from=row.deduplicated_from,
        waits_for=row.waits_for,
        cancel_requested_at=row.cancel_requested_at,
        result=row.result,
        problem=row.problem,
        actor=row.actor,
        request_id=row.request_id,
        traceparent=row.traceparent,
        created_at=row.created_at,
        updated_at=row.updated_at,
        revision=row.revision,
    )
