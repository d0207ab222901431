"""What the reaper makes up for: leases, messages, cancels, waiters, leftovers; on SQLite and PostgreSQL."""

from datetime import timedelta

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.db.tables import IdempotencyKey, Worker, utc_now
from app.domain.errors import OutOfDisk, Unavailable
from app.domain.identifiers import new_id
from app.domain.jobs import JobState, ResourceClass
from app.domain.views.jobs import JobView
from app.services import jobs, presence, reaping, running
from app.services.presence import WorkerFacts
from app.services.reaping import Reaper
from app.services.running import JobResult, WorkerIdentity
from tests.app.services.job_world import ACTOR, EVERYTHING, JobWorld

PAST = timedelta(hours=1)


def complete(_session: Session, waiter: JobView, source: JobView) -> JobResult:
    return JobResult({"checkpoint": None, "of": waiter.id, "from": source.id})


def expire(world: JobWorld, job_id: str) -> None:
    world.set(job_id, lease_until=utc_now() - PAST)


def facts(name: str) -> WorkerFacts:
    return WorkerFacts(new_id("wrk"), name, tuple(ResourceClass), "cpu", 2, "0", "here", 2, 0)


def test_an_expired_lease_queues_the_job_again(world: JobWorld) -> None:
    job = world.add()
    claim = world.claim()
    assert reaping.lose_expired(world.sessions) == 0

    expire(world, job.id)

    assert reaping.lose_expired(world.sessions) == 1
    assert (world.get(job.id).state, world.get(job.id).attempts) == (JobState.QUEUED, 1)
    assert world.event_types(job.id)[-2:] == ["job.attempt_lost", "job.retrying"]
    assert world.outcomes(job.id) == ["lost"]
    assert running.heartbeat(world.sessions, claim).is_lost


def test_the_last_attempt_that_is_lost_fails_as_worker_lost(world: JobWorld) -> None:
    job = world.add(max_attempts=1)
    world.claim()
    expire(world, job.id)
    reaping.lose_expired(world.sessions)
    ended = world.get(job.id)
    assert ended.state is JobState.FAILED
    assert ended.problem is not None
    assert ended.problem["code"] == "worker_lost"


def test_a_lost_import_leaves_its_checkpoint_invalid(world: JobWorld) -> None:
    job, checkpoint_id = world.add_import(max_attempts=1)
    world.claim()
    expire(world, job.id)
    reaping.lose_expired(world.sessions)
    assert world.checkpoint(checkpoint_id)[0] == "invalid"


def test_an_expired_job_that_was_canceling_is_canceled(world: JobWorld) -> None:
    job = world.add()
    world.claim()
    jobs.cancel(world.sessions, ACTOR, job.id)
    expire(world, job.id)
    reaping.lose_expired(world.sessions)
    assert world.get(job.id).state is JobState.CANCELED


def test_a_cancel_that_is_not_confirmed_in_time_is_made_final(world: JobWorld) -> None:
    job = world.add()
    claim = world.claim()
    jobs.cancel(world.sessions, ACTOR, job.id)
    assert reaping.end_canceling(world.sessions, grace_seconds=30.0) == 0
    world.set(job.id, cancel_requested_at=utc_now() - PAST)
    assert reaping.end_canceling(world.sessions, grace_seconds=30.0) == 1
    assert world.get(job.id).state is JobState.CANCELED
    assert running.heartbeat(world.sessions, claim).is_lost


def test_a_job_nobody_took_is_hinted_again_once_per_span(world: JobWorld) -> None:
    job = world.add()
    assert reaping.hint_again(world.sessions, world.queue, 60.0) == 0
    world.set(job.id, hinted_at=utc_now() - PAST)
    assert reaping.hint_again(world.sessions, world.queue, 60.0) == 1
    assert reaping.hint_again(world.sessions, world.queue, 60.0) == 0
    assert world.queue.sent == [job.id]


def test_a_job_that_waits_long_is_hinted_ever_more_seldom(world: JobWorld) -> None:
    job = world.add()
    now = utc_now()
    world.set(job.id, queued_at=now - timedelta(minutes=30), hinted_at=now - timedelta(minutes=10))
    assert reaping.hint_again(world.sessions, world.queue, 60.0) == 0
    world.set(job.id, queued_at=now - timedelta(minutes=30), hinted_at=now - timedelta(minutes=16))
    assert reaping.hint_again(world.sessions, world.queue, 60.0) == 1


def test_a_job_is_hinted_as_soon_as_its_backoff_is_over(world: JobWorld) -> None:
    job = world.add()
    running.fail(world.sessions, world.claim(), Unavailable("the store is away"))
    assert reaping.hint_again(world.sessions, world.queue, 60.0) == 0
    world.set(job.id, not_before=utc_now() - timedelta(milliseconds=1), hinted_at=utc_now() - timedelta(seconds=1))
    assert reaping.hint_again(world.sessions, world.queue, 60.0) == 1


def test_a_released_job_is_hinted_at_once(world: JobWorld) -> None:
    job = world.add()
    running.release(world.sessions, world.claim(), "drained")
    assert reaping.hint_again(world.sessions, world.queue, 60.0) == 1
    assert world.queue.sent == [job.id]


def test_waiters_share_the_result_of_a_source_that_succeeded(world: JobWorld) -> None:
    source = world.add()
    waiter = world.add(waits_for=source.id)
    assert reaping.settle_waiters(world.sessions, world.queue, complete) == 0

    world.finish(world.claim())

    assert reaping.settle_waiters(world.sessions, world.queue, complete) == 1
    ended = world.get(waiter.id)
    assert (ended.state, ended.deduplicated_from) == (JobState.SUCCEEDED, source.id)
    assert ended.result == {"checkpoint": None, "of": waiter.id, "from": source.id}
    assert ended.attempts == 0


def test_waiters_of_a_source_that_failed_run_themselves(world: JobWorld) -> None:
    source = world.add()
    waiter = world.add(waits_for=source.id)
    running.fail(world.sessions, world.claim(), OutOfDisk("full"))
    assert world.claim().job.id == waiter.id


def test_a_waiter_that_came_as_its_source_failed_is_freed_by_the_reaper(world: JobWorld) -> None:
    source = world.add()
    running.fail(world.sessions, world.claim(), OutOfDisk("full"))
    waiter = world.add(waits_for=source.id)
    reaping.settle_waiters(world.sessions, world.queue, complete)
    assert world.claim().job.id == waiter.id


def test_a_worker_that_starts_anew_ends_the_attempts_of_its_former_life(world: JobWorld) -> None:
    former, other, anew = facts("host-1"), facts("host-2"), facts("host-1")
    for worker in (former, other):
        presence.register(world.sessions, worker)
    first, second = world.add(), world.add()
    world.claim(WorkerIdentity(former.id, former.name, EVERYTHING))
    world.claim(WorkerIdentity(other.id, other.name, EVERYTHING))

    presence.register(world.sessions, anew)

    assert reaping.release_former(world.sessions, anew.name, anew.id) == 1
    assert world.get(first.id).state is JobState.QUEUED
    assert world.get(second.id).state is JobState.RUNNING


def test_answers_past_their_time_are_forgotten(world: JobWorld) -> None:
    with world.sessions.begin() as session:
        for key, expires_at in (("old", utc_now() - PAST), ("new", utc_now() + PAST)):
            session.add(
                IdempotencyKey(
                    project_id="default", key=key, fingerprint="f", status=202, body={}, expires_at=expires_at
                )
            )
    reaping.forget_expired(world.sessions, worker_seconds=60.0)
    with world.sessions.read() as session:
        assert session.scalars(select(IdempotencyKey.key)).all() == ["new"]


def test_silent_workers_are_marked_stopped_and_dropped_after_a_day(world: JobWorld) -> None:
    workers = {name: facts(name) for name in ("alive", "silent", "gone")}
    for worker in workers.values():
        presence.register(world.sessions, worker)
    with world.sessions.begin() as session:
        session.get_one(Worker, workers["silent"].id).seen_at = utc_now() - PAST
        session.get_one(Worker, workers["gone"].id).seen_at = utc_now() - timedelta(days=2)

    reaping.forget_expired(world.sessions, worker_seconds=60.0)

    with world.sessions.read() as session:
        states = session.execute(select(Worker.name, Worker.state).order_by(Worker.name)).all()
    assert [tuple(row) for row in states] == [("alive", "active"), ("silent", "stopped")]


def test_only_held_attempts_are_live(world: JobWorld) -> None:
    job = world.add()
    claim = world.claim()
    candidates = [(job.id, claim.fence), (job.id, claim.fence - 1), ("job_unknown", 1)]
    assert reaping.live_attempts(world.sessions, candidates) == {(job.id, claim.fence)}
    world.finish(claim)
    assert reaping.live_attempts(world.sessions, candidates) == set()


def test_live_jobs_are_those_that_have_not_ended(world: JobWorld) -> None:
    running, waiting = world.add(), world.add()
    claim = world.claim()
    candidates = [running.id, waiting.id, "job_unknown"]
    assert reaping.live_jobs(world.sessions, candidates) == {running.id, waiting.id}
    world.finish(claim)
    assert reaping.live_jobs(world.sessions, candidates) == {waiting.id}


def test_a_round_does_everything(world: JobWorld) -> None:
    lost, waiting = world.add(), world.add()
    world.claim()
    expire(world, lost.id)
    world.set(waiting.id, hinted_at=None)

    report = Reaper(world.sessions, world.queue, complete).reap()

    assert (report.n_lost, report.n_hinted, report.n_stamped > 0) == (1, 1, True)


def test_presence_renews_and_leaves(world: JobWorld) -> None:
    worker = facts("host-1")
    presence.renew(world.sessions, worker, is_draining=False, load={})  # was dropped: added again
    presence.renew(world.sessions, worker, is_draining=True, load={"n_running": 1})
    with world.sessions.read() as session:
        row = session.get_one(Worker, worker.id)
        assert (row.state, row.load) == ("draining", {"n_running": 1})
        assert session.scalar(select(func.count()).select_from(Worker)) == 1
    presence.leave(world.sessions, worker.id)
    with world.sessions.read() as session:
        assert session.get_one(Worker, worker.id).state == "stopped"


@pytest.mark.parametrize("n_waiters", [3])
def test_every_waiter_is_settled(world: JobWorld, n_waiters: int) -> None:
    source = world.add()
    for _ in range(n_waiters):
        world.add(waits_for=source.id)
    world.finish(world.claim())
    assert reaping.settle_waiters(world.sessions, world.queue, complete) == n_waiters
