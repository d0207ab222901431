"""The life of a job outside its worker: made, hinted, looked at, waited for, canceled, retried, ended.

`add` and `conclude` run inside the caller's transaction; messages are sent after it (`hint`). A lost or doubled message
changes nothing: the row is the truth.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import structlog
from pydantic import JsonValue
from sqlalchemy import ColumnElement, select, update
from sqlalchemy.orm import Session

from app.db import clock
from app.db import events as event_log
from app.db import jobs as rows
from app.db.engine import Sessions
from app.db.paging import made_between, paginate
from app.db.tables import Checkpoint, Job, JobInput
from app.domain.checkpoints import CheckpointState
from app.domain.errors import CheckpointInvalid, Conflict, JobIsFinal, JobNotFinal
from app.domain.identifiers import new_id
from app.domain.jobs import FINAL_STATES, LIVE_STATES, RESOURCE_CLASSES, JobKind, JobState, ResourceClass
from app.domain.views.jobs import EventView, GlobalEventView, JobInputRef, JobView
from app.domain.views.pages import EventsRequest, Page, PageRequest
from app.queue import JobQueue, QueueAway
from app.services.actors import Actor
from app.services.idempotency import IdempotentRequest, replay, store_answer

WAIT_POLL_SECONDS = 0.15
log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class JobFilters:
    """What narrows a list of jobs; None: anything."""

    kind: JobKind | None = None
    state: JobState | None = None
    method: str | None = None
    task: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    created_after: datetime | None = None
    created_before: datetime | None = None
    parent: str | None = None


@dataclass(frozen=True)
class Ending:
    """How a job ends. `outcome`: of its last attempt, where that has a name of its own (lost)."""

    state: JobState
    result: dict[str, JsonValue] | None = None
    problem: dict[str, JsonValue] | None = None
    stages: Sequence[tuple[str, float]] = ()
    outcome: str | None = None


def add(  # noqa: PLR0913 (one row, an argument a column)
    session: Session,
    actor: Actor,
    *,
    kind: JobKind,
    spec: Mapping[str, JsonValue],
    inputs: Sequence[JobInputRef],
    max_attempts: int,
    timeout_seconds: int,
    resource_class: ResourceClass | None = None,
    priority: int = 0,
    recipe_digest: str | None = None,
    tags: Mapping[str, JsonValue] | None = None,
    parent_id: str | None = None,
    retry_of: str | None = None,
    waits_for: str | None = None,
    deduplicated_from: str | None = None,
    result: Mapping[str, JsonValue] | None = None,
    job_id: str | None = None,
) -> JobView:
    """Add a job: `queued`, or `succeeded` at once when its result is already known. Call `hint` after the commit.

    `resource_class`: what it needs most, unless that of its kind.
    """
    at = clock.now(session)
    row = Job(
        id=job_id or new_id("job"),
        project_id=actor.project_id,
        actor=actor.name,
        request_id=actor.request_id,
        traceparent=actor.traceparent,
        kind=kind,
        state=JobState.QUEUED if result is None else JobState.SUCCEEDED,
        resource_class=resource_class or RESOURCE_CLASSES[kind],
        priority=priority,
        spec=dict(spec),
        tags=dict(tags or {}),
        recipe_digest=recipe_digest,
        max_attempts=max_attempts,
        timeout_seconds=timeout_seconds,
        parent_id=parent_id,
        retry_of=retry_of,
        waits_for=waits_for,
        deduplicated_from=deduplicated_from,
        result=None if result is None else dict(result),
        hinted_at=at,
        queued_at=at,
        finished_at=None if result is None else at,
    )
    log_lines: list[tuple[str, dict[str, JsonValue]]] = [("job.queued", {"kind": str(kind)})]
    if result is not None:
        log_lines.append(("job.succeeded", {"result": dict(result)}))
    row.last_seq = len(log_lines)
    session.add(row)
    session.flush()
    session.add_all(
        JobInput(job_id=row.id, role=ref.role, position=ref.position, checkpoint_id=ref.checkpoint_id) for ref in inputs
    )
    session.add_all(event_log.first_lines(row, log_lines))
    session.flush()
    return rows.view_new(row)


def hint(queue: JobQueue, jobs: Iterable[JobView]) -> None:
    """Ring the doorbell for queued jobs. With the broker away they stay queued; workers and the reaper find them."""
    for job in jobs:
        if job.state is not JobState.QUEUED or job.waits_for is not None:
            continue
        try:
            queue.send_job(job.id, job.resource_class)
        except QueueAway as error:
            log.warning("hint_failed", job=job.id, reason=str(error))


# ── looking ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def get(sessions: Sessions, actor: Actor, job_id: str) -> JobView:
    """Return a job. Raises: NotFound."""
    with sessions.read() as session:
        return rows.view(session, rows.find(session, actor.project_id, job_id))


async def wait(sessions: Sessions, actor: Actor, job_id: str, wait_seconds: float) -> JobView:
    """Return a job once it is final or the time is over; no session is held while waiting. Raises: NotFound."""
    deadline = time.monotonic() + wait_seconds
    while True:
        job = await asyncio.to_thread(get, sessions, actor, job_id)
        left = deadline - time.monotonic()
        if job.is_final or left <= 0:
            return job
        await asyncio.sleep(min(WAIT_POLL_SECONDS, left))


def list_(sessions: Sessions, actor: Actor, filters: JobFilters, page: PageRequest) -> Page[JobView]:
    """Return a page of jobs. Raises: BadCursor."""
    statement = select(Job).where(Job.project_id == actor.project_id, *_conditions(filters))
    given = {
        "kind": filters.kind,
        "state": filters.state,
        "method": filters.method,
        "task": filters.task,
        "tags": sorted(filters.tags.items()),
        "created_after": filters.created_after,
        "created_before": filters.created_before,
        "parent": filters.parent,
    }
    with sessions.read() as session:
        found, cursor = paginate(session, statement, key=Job.id, request=page, filters=given)
        return Page(items=rows.views(session, found), next_cursor=cursor)


def events(sessions: Sessions, actor: Actor, job_id: str, asked: EventsRequest) -> list[EventView]:
    """Return the part of a job's log that is asked for. Raises: NotFound."""
    with sessions.read() as session:
        rows.find(session, actor.project_id, job_id)
        return event_log.of_job(session, job_id, asked)


def all_events(sessions: Sessions, actor: Actor, asked: EventsRequest) -> list[GlobalEventView]:
    """Return the part of the project's log that is asked for; stamps what has been committed since."""
    with sessions.read() as session:
        has_unstamped = actor.project_id in event_log.unstamped_projects(session)
    if has_unstamped:
        with sessions.begin() as session:
            event_log.stamp(session, actor.project_id)
    with sessions.read() as session:
        return event_log.of_all_jobs(session, actor.project_id, asked)


# ── changing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def cancel(sessions: Sessions, actor: Actor, job_id: str, idempotency: IdempotentRequest | None = None) -> JobView:
    """Cancel a job: a queued one is canceled at once, a running one becomes `canceling` until its worker confirms.

    A merge in parts is canceled at once, too, and its parts with it.
    Raises: NotFound; JobIsFinal; Conflict for a part; Replayed; IdempotencyKeyReused.
    """
    with sessions.begin() as session:
        replay(session, actor, idempotency)
        job = _cancel(session, actor, job_id)
        store_answer(session, actor, idempotency, job, None)
        return job


def _cancel(session: Session, actor: Actor, job_id: str) -> JobView:
    found = rows.find(session, actor.project_id, job_id)
    _refuse_part(found, "cancel")
    asked: dict[str, JsonValue] = {"actor": actor.name}
    at = clock.now(session)
    for free in (rows.in_state(JobState.QUEUED), rows.awaits_parts()):  # no worker holds it
        if rows.move(session, job_id, free, values={"cancel_requested_at": at}) is not None:
            event_log.append(session, job_id, "job.cancel_requested", asked)
            stopped = conclude(session, job_id, free, ending=Ending(JobState.CANCELED))
            return rows.view(session, stopped or found)
    values = {"state": str(JobState.CANCELING), "cancel_requested_at": at}
    row = rows.move(session, job_id, rows.in_state(JobState.RUNNING), values=values)
    if row is not None:
        event_log.append(session, job_id, "job.cancel_requested", asked)
        return rows.view(session, row)
    session.refresh(found)
    if JobState(found.state) in FINAL_STATES:
        raise JobIsFinal(f"Job {job_id} is {found.state}; a job that has ended does not change. Nothing to cancel.")
    return rows.view(session, found)


def retry(
    sessions: Sessions, queue: JobQueue, actor: Actor, job_id: str, idempotency: IdempotentRequest | None = None
) -> JobView:
    """Run a job that has ended once more, as a new job linked to it.

    Raises: NotFound; JobNotFinal; Conflict (a part, an import that succeeded, an input that is gone); Replayed;
        IdempotencyKeyReused.
    """
    with sessions.begin() as session:
        replay(session, actor, idempotency)
        row = rows.find(session, actor.project_id, job_id)
        _refuse_part(row, "retry")
        if JobState(row.state) not in FINAL_STATES:
            raise JobNotFinal(f"Job {job_id} is {row.state}. Wait until it has ended, or cancel it, then retry it.")
        inputs = rows.inputs_of(session, job_id)
        _check_inputs(session, job_id, inputs)
        job = add(
            session,
            actor,
            kind=JobKind(row.kind),
            spec=row.spec,
            resource_class=ResourceClass(row.resource_class),
            inputs=inputs,
            max_attempts=row.max_attempts,
            timeout_seconds=row.timeout_seconds,
            priority=row.priority,
            recipe_digest=row.recipe_digest,
            tags=row.tags,
            retry_of=row.id,
        )
        if job.kind is JobKind.IMPORT:
            _reopen_import(session, row, job.id)
        store_answer(session, actor, idempotency, job, f"/v1/jobs/{job.id}")
    hint(queue, [job])
    return job


def conclude(session: Session, job_id: str, *guards: ColumnElement[bool], ending: Ending) -> Job | None:
    """Bring a job to a final state if the guards hold, with all that follows from it; None when they do not.

    Closes the attempt, writes the event, frees the jobs that waited for this one unless it succeeded, and leaves the
    checkpoint of an import that did not succeed `invalid`.
    """
    at = clock.now(session)
    values = {
        "state": str(ending.state),
        "finished_at": at,
        "lease_until": None,
        "not_before": None,
        "result": ending.result,
        "problem": ending.problem,
        "stages": [{"name": name, "seconds": round(seconds, 6)} for name, seconds in ending.stages],
    }
    row = rows.move(session, job_id, *guards, values=values)
    if row is None:
        return None
    if ending.state is JobState.SUCCEEDED and row.progress is not None:  # the last heartbeat came before the end
        row.progress = row.progress | {"fraction": 1.0, "done": row.progress["total"], "eta_seconds": 0.0}
    rows.close_attempt(session, row, ending.outcome or str(ending.state), at, ending.problem)
    event_log.append(session, job_id, f"job.{ending.state}", _event_data(ending))
    if ending.state is not JobState.SUCCEEDED:
        waiting = (Job.waits_for == job_id, rows.in_state(JobState.QUEUED))
        session.execute(update(Job).where(*waiting).values(waits_for=None, hinted_at=None))
        if row.kind == JobKind.IMPORT:
            _close_import(session, row, ending.problem)
        if row.n_remaining_children:
            _stop_parts(session, row, at)
    return row


def _stop_parts(session: Session, row: Job, at: datetime) -> None:
    """Cancel the parts of a merge that has ended without them; those that run are told by their next heartbeat."""
    rows.move(session, row.id, values={"n_remaining_children": 0})
    live = select(Job.id).where(Job.parent_id == row.id, Job.kind == str(JobKind.PART), rows.in_state(*LIVE_STATES))
    for part_id in session.scalars(live.order_by(Job.id)).all():
        if conclude(session, part_id, rows.in_state(JobState.QUEUED), ending=Ending(JobState.CANCELED)) is None:
            values = {"state": str(JobState.CANCELING), "cancel_requested_at": at}
            rows.move(session, part_id, rows.in_state(JobState.RUNNING), values=values)


def _refuse_part(row: Job, verb: str) -> None:
    if row.kind == JobKind.PART:
        raise Conflict(f"Job {row.id} is a part of the merge {row.parent_id}, which it lives with; {verb} the merge.")


def _event_data(ending: Ending) -> dict[str, JsonValue]:
    if ending.result is not None:
        return {"result": ending.result}
    return {"problem": ending.problem} if ending.problem else {}


def _conditions(filters: JobFilters) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [
        column == value
        for column, value in (
            (Job.kind, filters.kind),
            (Job.state, filters.state),
            (Job.spec["method"].as_string(), filters.method),
            (Job.parent_id, filters.parent),
        )
        if value is not None
    ]
    if filters.kind is None and filters.parent is None:
        conditions.append(Job.kind != str(JobKind.PART))  # listed where they are asked for
    if filters.task is not None:
        conditions.append(rows.about_task(filters.task))
    conditions += [Job.tags[key].as_string() == value for key, value in filters.tags.items()]
    return [*conditions, *made_between(Job.created_at, filters.created_after, filters.created_before)]


def _check_inputs(session: Session, job_id: str, inputs: Sequence[JobInputRef]) -> None:
    ids = [ref.checkpoint_id for ref in inputs]
    gone = session.scalars(
        select(Checkpoint.id).where(Checkpoint.id.in_(ids), Checkpoint.deleted_at.is_not(None)).order_by(Checkpoint.id)
    ).all()
    if gone:
        raise Conflict(f"Job {job_id} cannot run again: its inputs {', '.join(gone)} were deleted. Submit a new job.")


def _close_import(session: Session, row: Job, problem: Mapping[str, JsonValue] | None) -> None:
    detail = "The import was canceled before the files were checked; retry its job, or register the files again."
    session.execute(
        update(Checkpoint)
        .where(Checkpoint.job_id == row.id, Checkpoint.state == CheckpointState.IMPORTING)
        .values(
            state=str(CheckpointState.INVALID),
            problem=dict(problem or CheckpointInvalid(detail).to_json()),
            revision=Checkpoint.revision + 1,
        )
    )


def _reopen_import(session: Session, row: Job, job_id: str) -> None:
    if row.state == JobState.SUCCEEDED:
        raise Conflict(
            f"Import {row.id} succeeded; there is nothing to retry. Register the URI again for a new version."
        )
    waits = (Checkpoint.job_id == row.id, Checkpoint.state == CheckpointState.INVALID, Checkpoint.deleted_at.is_(None))
    values = {"state": str(CheckpointState.IMPORTING), "problem": None, "job_id": job_id}
    reopened = update(Checkpoint).where(*waits).values(**values, revision=Checkpoint.revision + 1)
    if session.execute(reopened.returning(Checkpoint.id)).one_or_none() is None:
        raise Conflict(
            f"Import {row.id} cannot run again: its checkpoint was deleted, or another retry has it. Look at the job"
            " that was made last, or register the URI again."
        )
