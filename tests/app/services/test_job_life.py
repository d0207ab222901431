"""The life of jobs as a state machine: whatever happens in whatever order, its laws hold; SQLite and PostgreSQL.

Invariants: one live fence, final states and what they left never change, the event sequence has no gap, no more
attempts than allowed, nothing is claimed but queued jobs, nobody writes under an old fence.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from app.db import jobs as rows
from app.db.tables import Event, Job, JobAttempt, utc_now
from app.domain.errors import JobIsFinal, JobNotFinal, OutOfMemory, WorkerLost
from app.domain.identifiers import new_id
from app.domain.jobs import FINAL_STATES, MOVES, JobState
from app.domain.views.jobs import JobView
from app.services import jobs, reaping, running
from app.services.running import Claim, ClaimLost, JobResult, WorkerIdentity
from tests.app.services.job_world import ACTOR, EVERYTHING, LONG, emptied

MAX_ATTEMPTS = 2
LAST = {"job.succeeded", "job.failed", "job.canceled"}


class JobLife(RuleBasedStateMachine):
    """Random lives of a few jobs, worked by two workers."""

    engine: ClassVar[Engine]
    job_ids = Bundle("job_ids")
    claims = Bundle("claims")

    @initialize()
    def begin(self) -> None:
        self.world = emptied(self.engine)
        self.workers = [WorkerIdentity(new_id("wrk"), f"worker-{index}", EVERYTHING) for index in range(2)]
        self.jobs: dict[str, JobView] = {}  # as the last look at the laws found them
        self.live: dict[str, int] = {}  # job -> fence of the claim that holds it, as we understand it
        self.succeeded: list[str] = []

    # ── what callers do ──

    @rule(target=job_ids, priority=st.integers(-1, 1))
    def add(self, priority: int) -> str:
        return self.world.add(priority=priority, max_attempts=MAX_ATTEMPTS).id

    @rule(target=job_ids, source=job_ids)
    def add_waiter(self, source: str) -> str:
        is_live = not self.jobs[source].is_final
        return self.world.add(max_attempts=MAX_ATTEMPTS, waits_for=source if is_live else None).id

    @rule(job_id=job_ids)
    def cancel(self, job_id: str) -> None:
        before = self.jobs[job_id]
        try:
            after = jobs.cancel(self.world.sessions, ACTOR, job_id)
        except JobIsFinal:
            assert before.is_final
            return
        wanted = JobState.CANCELED if before.state is JobState.QUEUED else JobState.CANCELING
        assert after.state is wanted

    @rule(target=job_ids, job_id=job_ids)
    def retry(self, job_id: str) -> str:
        before = self.jobs[job_id]
        try:
            again = jobs.retry(self.world.sessions, self.world.queue, ACTOR, job_id)
        except JobNotFinal:
            assert not before.is_final
            return job_id
        assert before.is_final
        return again.id

    # ── what workers do ──

    @rule(target=claims, worker=st.integers(0, 1))
    def claim(self, worker: int) -> Claim | None:
        claim = running.claim(self.world.sessions, self.workers[worker], lease_seconds=LONG)
        if claim is None:
            return None
        assert self.jobs[claim.job.id].state is JobState.QUEUED
        assert self.jobs[claim.job.id].waits_for is None
        assert claim.job.id not in self.live
        self.live[claim.job.id] = claim.fence
        return claim

    @rule(claim=claims)
    def beat(self, claim: Claim | None) -> None:
        if claim is not None:
            assert running.heartbeat(self.world.sessions, claim).is_lost is not self._holds(claim)

    @rule(claim=claims)
    def finish(self, claim: Claim | None) -> None:
        if claim is not None and self._write(claim, lambda: self.world.finish(claim)):
            self.succeeded.append(claim.job.id)

    @rule(claim=claims, is_retryable=st.booleans())
    def fail(self, claim: Claim | None, is_retryable: bool) -> None:  # noqa: FBT001 (Hypothesis passes by name)
        problem = WorkerLost("gone") if is_retryable else OutOfMemory("too big")
        if claim is not None:
            self._write(claim, lambda: running.fail(self.world.sessions, claim, problem))

    @rule(claim=claims)
    def release(self, claim: Claim | None) -> None:
        if claim is not None:
            self._write(claim, lambda: running.release(self.world.sessions, claim, "drained"))

    @rule(claim=claims)
    def confirm_canceled(self, claim: Claim | None) -> None:
        if claim is None or self.jobs[claim.job.id].state is not JobState.CANCELING:
            return  # a worker confirms only what was asked for
        self._write(claim, lambda: running.confirm_canceled(self.world.sessions, claim))

    # ── what time does ──

    @rule(claim=claims)
    def expire(self, claim: Claim | None) -> None:
        if claim is None or not self._holds(claim):
            return
        self.world.set(claim.job.id, lease_until=utc_now() - timedelta(hours=1))
        assert reaping.lose_expired(self.world.sessions) == 1
        self.live.pop(claim.job.id)

    @rule(job_id=job_ids)
    def end_backoff(self, job_id: str) -> None:
        if self.jobs[job_id].state is JobState.QUEUED:
            self.world.set(job_id, not_before=None)

    @rule()
    def reap(self) -> None:
        settled = [job.id for job in self.jobs.values() if self._is_to_be_settled(job)]
        reaping.Reaper(self.world.sessions, self.world.queue, _complete).reap()
        self.succeeded += settled

    # ── what always holds ──

    @invariant()
    def the_laws_hold(self) -> None:
        with self.world.sessions.read() as session:
            found = rows.views(session, session.scalars(select(Job).order_by(Job.id)).all())
            held = session.execute(select(Job.id, Job.fence).where(Job.lease_until.is_not(None))).all()
            attempts = select(JobAttempt.job_id, JobAttempt.fence).where(JobAttempt.ended_at.is_(None))
            begun = session.execute(attempts).all()
            log = session.execute(select(Event.job_id, Event.seq, Event.type).order_by(Event.job_id, Event.seq)).all()
        for job in found:
            self._check_move(self.jobs.get(job.id), job)
            self._check_log(job, [(seq, kind) for job_id, seq, kind in log if job_id == job.id])
            assert job.attempts <= MAX_ATTEMPTS
        assert sorted(map(tuple, held)) == sorted(map(tuple, begun)) == sorted(self.live.items())
        assert sorted(job.id for job in found if job.state is JobState.SUCCEEDED) == sorted(self.succeeded)
        self.jobs = {job.id: job for job in found}

    def _check_move(self, before: JobView | None, now: JobView) -> None:
        if before is not None and before.is_final:
            assert now == before
        elif before is not None and now.state is not before.state:
            assert now.state in _reachable(before.state)

    def _check_log(self, job: JobView, log: list[tuple[int, str]]) -> None:
        assert [seq for seq, _ in log] == list(range(1, len(log) + 1))
        ends = [kind for _, kind in log if kind in LAST]
        assert ends == ([log[-1][1]] if job.is_final else [])

    # ── helpers ──

    def _holds(self, claim: Claim) -> bool:
        return self.live.get(claim.job.id) == claim.fence

    def _write(self, claim: Claim, write: Callable[[], object]) -> bool:
        """Write under a claim: it succeeds if the claim holds, else nothing happens."""
        holds = self._holds(claim)
        try:
            write()
        except ClaimLost:
            assert not holds
            return False
        assert holds
        self.live.pop(claim.job.id)
        return True

    def _is_to_be_settled(self, job: JobView) -> bool:
        if job.waits_for is None or job.state is not JobState.QUEUED:
            return False
        return self.jobs[job.waits_for].state is JobState.SUCCEEDED


def _complete(_session: Session, _waiter: JobView, source: JobView) -> JobResult:
    return JobResult({"checkpoint": None, "from": source.id})


def _reachable(state: JobState) -> set[JobState]:
    """Return what a job can be after one rule, which may make more than one move."""
    once = set(MOVES[state])
    return once | {later for middle in once - FINAL_STATES for later in MOVES[middle]}


@contextmanager
def _over(engine: Engine) -> Iterator[None]:
    JobLife.engine = engine
    yield
    del JobLife.engine


@pytest.mark.parametrize(("fixture", "n_lives", "n_steps"), [("sqlite_jobs", 20, 25), ("postgresql_jobs", 5, 20)])
def test_the_laws_hold_in_every_life(request: pytest.FixtureRequest, fixture: str, n_lives: int, n_steps: int) -> None:
    chosen = settings(
        max_examples=n_lives,
        stateful_step_count=n_steps,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    with _over(request.getfixturevalue(fixture)):
        run_state_machine_as_test(JobLife, settings=chosen)
