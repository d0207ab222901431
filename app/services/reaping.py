"""Makes up for what got lost: leases that ran out, messages, waiters, leftovers. Any process may run it at any time.

Each step is its own short transaction of guarded changes, so reapers do not disturb each other.
"""

import random
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from sqlalchemy import delete, select, update

from app.db import clock
from app.db import events as event_log
from app.db import jobs as rows
from app.db.engine import Sessions
from app.db.tables import IdempotencyKey, Job, Worker
from app.domain.errors import ArtifactGone, Unavailable
from app.domain.jobs import LIVE_STATES, JobState
from app.domain.views.jobs import JobView
from app.queue import JobQueue
from app.services import parts
from app.services.jobs import Ending, conclude, hint
from app.services.running import CompleteWaiter, lose_attempt

HINTED_AT_ONCE = 50
LOOKED_AT_AT_ONCE = 500
LONGEST_HINT = timedelta(hours=1)
WORKER_KEPT = timedelta(days=1)
log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class ReapLimits:
    """How long things may be silent; seconds."""

    hint_seconds: float = 60.0
    cancel_grace_seconds: float = 30.0
    worker_seconds: float = 60.0


@dataclass(frozen=True)
class ReapReport:
    """What one round did."""

    n_lost: int = 0
    n_canceled: int = 0
    n_hinted: int = 0
    n_settled: int = 0
    n_stamped: int = 0


@dataclass(frozen=True)
class Reaper:
    """One round after another of making up for losses.

    `complete_waiter`: gives a merge that waited for an equal one its result.
    """

    sessions: Sessions
    queue: JobQueue
    complete_waiter: CompleteWaiter
    limits: ReapLimits = ReapLimits()

    def reap(self) -> ReapReport:
        """Run one round. Raises: Unavailable when the database is away."""
        report = ReapReport(
            n_lost=lose_expired(self.sessions),
            n_canceled=end_canceling(self.sessions, self.limits.cancel_grace_seconds),
            n_settled=settle_waiters(self.sessions, self.queue, self.complete_waiter)
            + parts.settle_all(self.sessions, self.queue),
            n_hinted=hint_again(self.sessions, self.queue, self.limits.hint_seconds),
            n_stamped=stamp_events(self.sessions),
        )
        forget_expired(self.sessions, self.limits.worker_seconds)
        return report


def keep_reaping(reaper: Reaper, stop: threading.Event, *, every_seconds: float) -> None:
    """Reap until told to stop, each round a little earlier or later so that several reapers do not meet."""
    jitter = random.Random()  # of its own: others may have seeded the shared one
    while not stop.wait(every_seconds * jitter.uniform(0.8, 1.2)):
        try:
            reaper.reap()
        except Unavailable:
            log.warning("reap_failed", reason="the database is away")
        except Exception:
            log.exception("reap_broke")  # the next round may do better; without rounds nothing gets well


def lose_expired(sessions: Sessions) -> int:
    """End the attempts whose lease has run out: queued again with backoff, or failed as `worker_lost`."""
    with sessions.read() as session:
        expired = [(row.id, row.fence) for row in session.scalars(rows.overdue(clock.now(session)))]
    return sum(_lose(sessions, job_id, fence) for job_id, fence in expired)


def release_former(sessions: Sessions, worker_name: str, worker_id: str) -> int:
    """End the attempts of this worker's earlier lives: it has just started, so they are gone. Return how many."""
    with sessions.begin() as session:
        former = select(Worker.id).where(Worker.name == worker_name, Worker.id != worker_id)
        held = session.scalars(
            select(Job).where(Job.worker_id.in_(former), rows.in_state(*rows.HELD)).order_by(Job.id)
        ).all()
        session.execute(update(Worker).where(Worker.id.in_(former)).values(state="stopped"))
        reason = f"worker {worker_name} was started anew"
        lost = [lose_attempt(session, row.id, rows.held_with(row.fence), reason=reason) for row in held]
        return sum(row is not None for row in lost)


def end_canceling(sessions: Sessions, grace_seconds: float) -> int:
    """Cancel jobs whose worker did not confirm in time; its fence keeps it from writing later."""
    with sessions.begin() as session:
        asked_before = clock.now(session) - timedelta(seconds=grace_seconds)
        guards = (rows.in_state(JobState.CANCELING), Job.cancel_requested_at < asked_before)
        ids = session.scalars(select(Job.id).where(*guards).order_by(Job.id)).all()
        ended = [conclude(session, job_id, *guards, ending=Ending(JobState.CANCELED)) for job_id in ids]
        return sum(row is not None for row in ended)


def settle_waiters(sessions: Sessions, queue: JobQueue, complete: CompleteWaiter) -> int:
    """Give jobs that waited for an equal one its result, now that it has succeeded; return how many.

    Those whose source ended otherwise run themselves; `conclude` frees them, save one that came in that very moment.
    """
    _free_waiters(sessions)
    with sessions.read() as session:
        source = select(Job.id).where(rows.in_state(JobState.SUCCEEDED))
        waiting = select(Job.id).where(rows.in_state(JobState.QUEUED), Job.waits_for.in_(source)).order_by(Job.id)
        ids = session.scalars(waiting).all()
    return sum(_settle(sessions, queue, complete, job_id) for job_id in ids)


def hint_again(sessions: Sessions, queue: JobQueue, hint_seconds: float) -> int:
    """Send the messages of queued jobs that nobody has taken for a while, the most urgent first.

    A job that waits long is hinted ever more seldom: where no worker listens, messages would pile up.
    """
    with sessions.read() as session:
        at = clock.now(session)
        unhinted = rows.unhinted(at, at - timedelta(seconds=hint_seconds))
        oldest = select(Job).where(unhinted).order_by(Job.hinted_at).limit(LOOKED_AT_AT_ONCE)
        due = [row for row in session.scalars(oldest) if _is_due(row, at)]
        ids = [row.id for row in sorted(due, key=lambda row: (-row.priority, row.id))[:HINTED_AT_ONCE]]
    if not ids:
        return 0
    with sessions.begin() as session:
        at = clock.now(session)
        unhinted = rows.unhinted(at, at - timedelta(seconds=hint_seconds))
        moved = [rows.move(session, job_id, unhinted, values={"hinted_at": at}) for job_id in sorted(ids)]
        jobs: list[JobView] = rows.views(session, [row for row in moved if row is not None])
    hint(queue, jobs)
    return len(jobs)


def _is_due(row: Job, at: datetime) -> bool:
    """Whether a job has waited as long since its last message as it had waited until then, or an hour."""
    if row.hinted_at is None or (row.not_before is not None and row.hinted_at < row.not_before):
        return True
    return at - row.hinted_at >= min(row.hinted_at - row.queued_at, LONGEST_HINT)


def stamp_events(sessions: Sessions) -> int:
    """Give committed events their place in the sequence over all jobs."""
    with sessions.read() as session:
        projects = event_log.unstamped_projects(session)
    return sum(_stamp(sessions, project_id) for project_id in projects)


def forget_expired(sessions: Sessions, worker_seconds: float) -> None:
    """Drop answers kept for idempotency past their time; mark silent workers stopped, and drop them after a day."""
    with sessions.read() as session:
        at = clock.now(session)
        silent = (Worker.seen_at < at - timedelta(seconds=worker_seconds), Worker.state != "stopped")
        old = Worker.seen_at < at - WORKER_KEPT
        stale = IdempotencyKey.expires_at < at
        found = [
            session.scalar(statement.limit(1))
            for statement in (
                select(Worker.id).where(*silent),
                select(Worker.id).where(old),
                select(IdempotencyKey.key).where(stale),
            )
        ]
    if not any(found):
        return
    with sessions.begin() as session:
        session.execute(update(Worker).where(*silent).values(state="stopped"))
        session.execute(delete(Worker).where(old))
        session.execute(delete(IdempotencyKey).where(stale))


def live_attempts(sessions: Sessions, candidates: Iterable[tuple[str, int]]) -> set[tuple[str, int]]:
    """Return which of these (job id, fence) are held at this moment; the folders of the others are leftovers."""
    wanted = sorted(set(candidates))
    with sessions.read() as session:
        held = select(Job.id, Job.fence).where(Job.id.in_([job_id for job_id, _ in wanted]), rows.in_state(*rows.HELD))
        return {(job_id, fence) for job_id, fence in session.execute(held)} & set(wanted)


def live_jobs(sessions: Sessions, candidates: Iterable[str]) -> set[str]:
    """Return which of these jobs have not ended; what was kept for the next attempt of the others is a leftover."""
    with sessions.read() as session:
        return set(
            session.scalars(select(Job.id).where(Job.id.in_(sorted(set(candidates))), rows.in_state(*LIVE_STATES)))
        )


def _lose(sessions: Sessions, job_id: str, fence: int) -> bool:
    with sessions.begin() as session:
        guards = (rows.held_with(fence), Job.lease_until < clock.now(session))
        row = lose_attempt(session, job_id, *guards, reason="its worker was not heard of before the lease ended")
        if row is None:
            return False
        log.warning("attempt_lost", job=job_id, fence=fence, state=row.state, attempts=row.attempts)
        return True


def _free_waiters(sessions: Sessions) -> None:
    ended = select(Job.id).where(rows.in_state(JobState.FAILED, JobState.CANCELED))
    stuck = (rows.in_state(JobState.QUEUED), Job.waits_for.in_(ended))
    with sessions.read() as session:
        if session.scalar(select(Job.id).where(*stuck).limit(1)) is None:
            return
    with sessions.begin() as session:
        session.execute(
            update(Job)
            .where(*stuck)
            .values(waits_for=None, hinted_at=None)
            .execution_options(synchronize_session=False)
        )


def _settle(sessions: Sessions, queue: JobQueue, complete: CompleteWaiter, job_id: str) -> bool:
    try:
        followers = _complete(sessions, complete, job_id)
    except ArtifactGone:  # what the other made was deleted meanwhile: this one runs itself
        with sessions.begin() as session:
            rows.move(session, job_id, rows.in_state(JobState.QUEUED), values={"waits_for": None, "hinted_at": None})
        return False
    if followers is None:
        return False
    hint(queue, followers)
    return True


def _complete(sessions: Sessions, complete: CompleteWaiter, job_id: str) -> list[JobView] | None:
    """End a waiter with its share of the result; return the jobs that follow, or None when it waits no more."""
    with sessions.begin() as session:
        guards = (rows.in_state(JobState.QUEUED), Job.waits_for.is_not(None))
        row = rows.move(session, job_id, *guards, values={})
        source = session.get(Job, row.waits_for) if row is not None else None
        if row is None or source is None or source.state != JobState.SUCCEEDED:
            return None
        row.deduplicated_from = source.id
        session.flush()
        made = complete(session, rows.view(session, row), rows.view(session, source))
        conclude(session, job_id, *guards, ending=Ending(JobState.SUCCEEDED, made.result))
        return list(made.followers)


def _stamp(sessions: Sessions, project_id: str) -> int:
    with sessions.begin() as session:
        return event_log.stamp(session, project_id)
