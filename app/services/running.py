"""The running part of a job's life, as its worker sees it: claim, heartbeat, finish, fail, release, confirm a cancel.

Every write is one guarded UPDATE that names the claim's fence, so a worker that lost its lease changes nothing.
What each kind of job does around its work (`JobSteps`) lives beside the service that creates it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from pydantic import JsonValue
from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from app.db import clock
from app.db import events as event_log
from app.db import jobs as rows
from app.db.engine import Sessions
from app.db.tables import Job, JobAttempt
from app.domain.errors import AmalgamError, WorkerLost
from app.domain.jobs import JobState, Progress, ResourceClass, retry_delay_seconds
from app.domain.views.jobs import JobView
from app.domain.work import Outcome, Work
from app.services.actors import Actor
from app.services.jobs import Ending, conclude
from app.storage.base import UNWATCHED, Storage, Watch
from app.storage.sources import Sources

KEPT_SUFFIX = ".kept"


class ClaimLost(Exception):
    """The job is no longer this worker's: its lease ran out and another took it, or it was ended. Write nothing."""


@dataclass(frozen=True)
class WorkerIdentity:
    """The worker that claims."""

    id: str
    name: str
    classes: tuple[ResourceClass, ...]


@dataclass(frozen=True)
class Claim:
    """The right to run one attempt of a job; `fence` guards every write."""

    job: JobView
    actor: Actor  # of the job's owner: what the job makes belongs to the same project
    worker: WorkerIdentity
    fence: int
    lease_seconds: float


@dataclass(frozen=True)
class Heartbeat:
    """What a worker learns when it renews its lease."""

    cancel_requested: bool
    is_lost: bool


@dataclass(frozen=True)
class JobResult:
    """What `record` made: the job's `result` object, and the jobs that follow (hinted after the commit)."""

    result: dict[str, JsonValue]
    followers: tuple[JobView, ...] = ()
    warnings: tuple[str, ...] = ()  # for the job's log


@dataclass(frozen=True)
class Keepers:
    """What steps reach the world through."""

    sessions: Sessions
    storage: Storage
    sources: Sources
    watch: Watch = UNWATCHED  # is told of the bytes that steps move, and stops them when the attempt must stop


@dataclass(frozen=True)
class HandedOver:
    """Instead of work: the claim has been given up, and the job waits for these others, hinted after the commit."""

    jobs: tuple[JobView, ...] = ()


class JobSteps(Protocol):
    """What a kind of job does before and after its work; one module-level object per kind.

    A job that ends without success needs no step: jobs.py leaves a failed import's checkpoint `invalid` by itself.
    """

    def prepare(self, keepers: Keepers, claim: Claim, scratch: Path) -> Work | HandedOver:
        """Fetch the inputs and return the work order; no transaction is open while bytes move.

        scratch: an empty folder of this attempt; a work that writes writes into `scratch / "output"` (it exists).
        Raises: any AmalgamError, which ends the attempt (InputChanged, OutOfDisk, …).
        """

    def record(self, session: Session, claim: Claim, outcome: Outcome) -> JobResult:
        """Store what came out, within the transaction that ends the job.

        The files of the outcome have been published into the store by now.
        """


def kept_folder(scratch: Path) -> Path:
    """Return the folder of an attempt's job that outlives the attempt: what lies in it helps the next one on.

    It is this worker's, is made by whoever writes into it, and is removed when the job has ended.
    """
    return scratch.with_suffix(KEPT_SUFFIX)


LogLine = tuple[str, dict[str, JsonValue]]  # kind of event, what it holds
CompleteWaiter = Callable[[Session, JobView, JobView], JobResult]
"""(session, waiter, source) -> result: gives a merge that waited for an equal one its share of that one's result."""


# ── one attempt ───────────────────────────────────────────────────────────────────────────────────────────────────────


def has_work(sessions: Sessions, classes: Sequence[ResourceClass]) -> bool:
    """Tell whether a job of these classes could be claimed now."""
    with sessions.read() as session:
        condition = rows.runnable(clock.now(session))
        found = session.scalar(select(Job.id).where(Job.resource_class.in_(_names(classes)), condition).limit(1))
        return found is not None


def claim(sessions: Sessions, worker: WorkerIdentity, *, lease_seconds: float) -> Claim | None:
    """Take the best job that this worker may run: highest priority, then oldest. None: there is none.

    Which message woke the worker does not matter: the best job goes first, and a lost message is made up for.
    """
    if not has_work(sessions, worker.classes):
        return None  # many messages find nothing left: they need not wait for the writer's lock
    with sessions.begin() as session:
        at = clock.now(session)
        job_id = session.scalar(rows.best_runnable(worker.classes, at))
        if job_id is None:
            return None
        values = {
            "state": str(JobState.RUNNING),
            "fence": Job.fence + 1,
            "attempts": Job.attempts + 1,
            "worker_id": worker.id,
            "lease_until": at + timedelta(seconds=lease_seconds),
            "not_before": None,
            "started_at": at,
            "progress": None,
        }
        row = rows.move(session, job_id, rows.runnable(at), values=values)
        if row is None:
            return None
        session.add(JobAttempt(job_id=job_id, fence=row.fence, worker_id=worker.id, started_at=at))
        event_log.append(session, job_id, "job.started", {"attempt": row.attempts, "worker": worker.id})
        return Claim(
            job=rows.view(session, row),
            actor=Actor(row.project_id, row.actor, row.request_id, row.traceparent),
            worker=worker,
            fence=row.fence,
            lease_seconds=lease_seconds,
        )


def heartbeat(
    sessions: Sessions,
    claim: Claim,
    progress: Progress | None = None,
    *,
    entered: Sequence[str] = (),
    told: Sequence[LogLine] = (),
) -> Heartbeat:
    """Renew the lease and store the progress; say whether to stop.

    entered, told: the stages begun, and the lines for the job's log, since the last beat.
    """
    with sessions.begin() as session:
        at = clock.now(session)
        values: dict[str, object] = {"lease_until": at + timedelta(seconds=claim.lease_seconds)}
        if progress is not None:
            values["progress"] = progress.model_dump(mode="json")
        row = rows.move(session, claim.job.id, rows.held_with(claim.fence), values=values)
        if row is None:
            return Heartbeat(cancel_requested=False, is_lost=True)
        for stage in entered:
            event_log.append(session, claim.job.id, "job.stage", {"stage": stage})
        for kind, data in told:
            event_log.append(session, claim.job.id, kind, data)
        if progress is not None:
            event_log.append(session, claim.job.id, "job.progress", progress.model_dump(mode="json"))
        return Heartbeat(cancel_requested=row.state == JobState.CANCELING, is_lost=False)


def check(sessions: Sessions, claim: Claim) -> None:
    """Raise ClaimLost unless the job is still this worker's; asked before anything is published."""
    with sessions.read() as session:
        held = session.scalar(select(Job.id).where(Job.id == claim.job.id, rows.held_with(claim.fence)))
    if held is None:
        raise ClaimLost(claim.job.id)


def finish(
    sessions: Sessions,
    claim: Claim,
    record: Callable[[Session], JobResult],
    stages: Sequence[tuple[str, float]] = (),
) -> list[JobView]:
    """Record what came out and end the job as succeeded, in one transaction; return the jobs to hint.

    A job whose cancel was not seen in time succeeds all the same. Raises: ClaimLost; whatever `record` raises.
    """
    with sessions.begin() as session:
        guard = rows.held_with(claim.fence)
        if rows.move(session, claim.job.id, guard, values={}) is None:  # takes the row's lock before anything is made
            raise ClaimLost(claim.job.id)
        made = record(session)
        for message in made.warnings:
            event_log.append(session, claim.job.id, "job.warning", {"message": message})
        conclude(session, claim.job.id, guard, ending=Ending(JobState.SUCCEEDED, made.result, stages=stages))
        return list(made.followers)


def fail(
    sessions: Sessions, claim: Claim, problem: AmalgamError, stages: Sequence[tuple[str, float]] = ()
) -> JobView | None:
    """End the attempt with a problem: queued again with backoff if the problem may pass and attempts are left, else
    failed. Return the job if it has ended. Raises: ClaimLost.
    """
    with sessions.begin() as session:
        row = end_attempt(session, claim.job.id, rows.held_with(claim.fence), problem=problem, stages=stages)
        if row is None:
            raise ClaimLost(claim.job.id)
        job = rows.view(session, row)
        return job if job.is_final else None


def confirm_canceled(sessions: Sessions, claim: Claim, stages: Sequence[tuple[str, float]] = ()) -> None:
    """End a job whose cancel was requested; its process is gone. Raises: ClaimLost."""
    with sessions.begin() as session:
        ending = Ending(JobState.CANCELED, stages=stages)
        if conclude(session, claim.job.id, rows.held_with(claim.fence), ending=ending) is None:
            raise ClaimLost(claim.job.id)


def release(sessions: Sessions, claim: Claim, reason: str) -> None:
    """Give a running job back, as if this attempt had not been; a worker that drains does so. Raises: ClaimLost."""
    with sessions.begin() as session:
        at = clock.now(session)
        guard = rows.held_with(claim.fence)
        if rows.move(session, claim.job.id, guard, rows.in_state(JobState.CANCELING), values={}) is not None:
            conclude(session, claim.job.id, guard, ending=Ending(JobState.CANCELED))
            return
        values = {
            "state": str(JobState.QUEUED),
            "attempts": Job.attempts - 1,
            "lease_until": None,
            "worker_id": None,
            "hinted_at": None,
            "progress": None,
        }
        row = rows.move(session, claim.job.id, guard, values=values)
        if row is None:
            raise ClaimLost(claim.job.id)
        rows.close_attempt(session, row, "released", at)
        event_log.append(session, row.id, "job.queued", {"reason": reason})


# ── shared with the reaper ────────────────────────────────────────────────────────────────────────────────────────────


def lose_attempt(session: Session, job_id: str, *guards: ColumnElement[bool], reason: str) -> Job | None:
    """End the attempt of a worker that is gone; None when the guards do not hold."""
    row = rows.move(session, job_id, *guards, values={})
    if row is None:
        return None
    event_log.append(session, job_id, "job.attempt_lost", {"attempt": row.attempts, "worker": row.worker_id})
    detail = (
        f"Attempt {row.attempts} of {row.max_attempts} of job {job_id} was lost: {reason}."
        " Look at the worker's log, then retry the job."
    )
    return end_attempt(session, job_id, *guards, problem=WorkerLost(detail), outcome="lost")


def end_attempt(
    session: Session,
    job_id: str,
    *guards: ColumnElement[bool],
    problem: AmalgamError,
    stages: Sequence[tuple[str, float]] = (),
    outcome: str = "failed",
) -> Job | None:
    """End an attempt with a problem: canceled if that was asked for, queued again, or failed. None: the guards fail."""
    stored = _stored(problem)
    canceling = rows.in_state(JobState.CANCELING)
    canceled = conclude(session, job_id, *guards, canceling, ending=Ending(JobState.CANCELED, outcome=outcome))
    if canceled is not None:
        return canceled
    if problem.retryable:
        row = _queue_again(session, job_id, *guards, problem=stored, outcome=outcome)
        if row is not None:
            return row
    ending = Ending(JobState.FAILED, problem=stored, stages=stages, outcome=outcome)
    return conclude(session, job_id, *guards, ending=ending)


def _queue_again(
    session: Session, job_id: str, *guards: ColumnElement[bool], problem: dict[str, JsonValue], outcome: str
) -> Job | None:
    at = clock.now(session)
    locked = rows.move(session, job_id, *guards, Job.attempts < Job.max_attempts, values={})
    if locked is None:
        return None
    delay_seconds = retry_delay_seconds(locked.attempts)
    rows.close_attempt(session, locked, outcome, at, problem)
    values = {
        "state": str(JobState.QUEUED),
        "lease_until": None,
        "worker_id": None,
        "not_before": at + timedelta(seconds=delay_seconds),
        "progress": None,
    }
    row = rows.move(session, job_id, values=values)
    data: dict[str, JsonValue] = {"attempt": locked.attempts, "delay_seconds": delay_seconds, "problem": problem}
    event_log.append(session, job_id, "job.retrying", data)
    return row


def _stored(problem: AmalgamError) -> dict[str, JsonValue]:
    document: dict[str, JsonValue] = {}
    document.update(problem.to_json())  # type: ignore[arg-type]  # JSON by construction
    return document


def _names(classes: Sequence[ResourceClass]) -> list[str]:
    return [str(name) for name in classes]
