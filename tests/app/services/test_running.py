"""A job in its worker's hands: claims, leases, fences, ends; on SQLite and PostgreSQL."""

import threading
from datetime import timedelta

import pytest
from sqlalchemy.orm import Session

from app.db.tables import utc_now
from app.domain.errors import InvalidHeader, OutOfMemory, WorkerLost
from app.domain.identifiers import new_id
from app.domain.jobs import JobKind, JobState, Progress, ResourceClass
from app.services import jobs, running
from app.services.running import Claim, ClaimLost, JobResult, WorkerIdentity
from tests.app.services.job_world import ACTOR, EVERYTHING, JobWorld

LOST = WorkerLost("the process is gone")


def test_a_claim_runs_the_job_under_a_new_fence(world: JobWorld) -> None:
    job = world.add()
    claim = world.claim()
    now = world.get(job.id)
    assert (claim.job.id, claim.fence, now.state, now.attempts) == (job.id, 1, JobState.RUNNING, 1)
    assert now.worker == world.worker.id
    assert claim.actor == ACTOR


def test_nothing_to_claim_is_none(world: JobWorld) -> None:
    assert running.claim(world.sessions, world.worker, lease_seconds=1.0) is None


def test_the_highest_priority_goes_first_then_the_oldest(world: JobWorld) -> None:
    low, old, new = world.add(priority=-1), world.add(priority=5), world.add(priority=5)
    assert [world.claim().job.id for _ in range(3)] == [old.id, new.id, low.id]


def test_a_worker_takes_only_its_own_classes(world: JobWorld) -> None:
    job = world.add()  # cpu
    io_worker = WorkerIdentity(new_id("wrk"), "io", (ResourceClass.IO,))
    assert running.claim(world.sessions, io_worker, lease_seconds=1.0) is None
    assert not running.has_work(world.sessions, io_worker.classes)
    assert world.claim().job.id == job.id


def test_a_job_in_its_backoff_is_not_claimed(world: JobWorld) -> None:
    job = world.add()
    world.set(job.id, not_before=utc_now() + timedelta(minutes=1))
    assert running.claim(world.sessions, world.worker, lease_seconds=1.0) is None


def test_a_job_that_waits_for_another_is_not_claimed(world: JobWorld) -> None:
    source = world.add()
    world.add(waits_for=source.id)
    assert world.claim().job.id == source.id
    assert running.claim(world.sessions, world.worker, lease_seconds=1.0) is None


def test_many_workers_never_claim_a_job_twice(world: JobWorld) -> None:
    made = {world.add().id for _ in range(20)}
    claims: list[Claim] = []

    def work(index: int) -> None:
        worker = WorkerIdentity(new_id("wrk"), f"worker-{index}", EVERYTHING)
        while (claim := running.claim(world.sessions, worker, lease_seconds=60.0)) is not None:
            claims.append(claim)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    while (left := running.claim(world.sessions, world.worker, lease_seconds=60.0)) is not None:
        claims.append(left)  # a claimer may give up early when another is faster; the job is still there
    assert sorted(claim.job.id for claim in claims) == sorted(made)


# ── while it runs ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_heartbeat_renews_the_lease_and_stores_progress(world: JobWorld) -> None:
    job = world.add()
    claim = world.claim()
    progress = Progress(stage="merging", fraction=0.5, done=5, total=10, unit="bytes")

    heard = running.heartbeat(world.sessions, claim, progress, entered=("reading", "merging"))

    assert not heard.is_lost
    assert world.get(job.id).progress == progress
    stages = [event.data["stage"] for event in world.events(job.id) if event.type == "job.stage"]
    assert stages == ["reading", "merging"]
    assert world.event_types(job.id)[-1] == "job.progress"


def test_a_heartbeat_without_progress_writes_no_event(world: JobWorld) -> None:
    job = world.add()
    claim = world.claim()
    running.heartbeat(world.sessions, claim)
    assert world.event_types(job.id) == ["job.queued", "job.started"]


def test_warnings_go_to_the_log_before_the_end(world: JobWorld) -> None:
    job = world.add()
    made = running.JobResult({}, warnings=("integer tensors differ",))
    running.finish(world.sessions, world.claim(), lambda _session: made)
    assert world.event_types(job.id)[-2:] == ["job.warning", "job.succeeded"]
    assert world.events(job.id)[-2].data == {"message": "integer tensors differ"}


# ── how it ends ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_finish_records_the_result_and_returns_the_followers(world: JobWorld) -> None:
    job = world.add()
    claim = world.claim()

    def record(session: Session) -> JobResult:
        follower = jobs.add(
            session,
            claim.actor,
            kind=JobKind.EVALUATE,
            spec={},
            resource_class=ResourceClass.CPU,
            inputs=(),
            max_attempts=1,
            timeout_seconds=60,
        )
        return JobResult({"checkpoint": "ckpt_1", "evaluations": [follower.id]}, (follower,))

    followers = running.finish(world.sessions, claim, record, [("merging", 1.25)])

    ended = world.get(job.id)
    assert ended.state is JobState.SUCCEEDED
    assert ended.result == {"checkpoint": "ckpt_1", "evaluations": [followers[0].id]}
    assert [(stage.name, stage.seconds) for stage in ended.timings.stages] == [("merging", 1.25)]
    assert followers[0].request_id == "req-1"
    assert world.outcomes(job.id) == ["succeeded"]


def test_a_record_that_fails_leaves_nothing(world: JobWorld) -> None:
    job = world.add()
    claim = world.claim()

    def record(session: Session) -> JobResult:
        jobs.add(
            session,
            claim.actor,
            kind=JobKind.EVALUATE,
            spec={},
            resource_class=ResourceClass.CPU,
            inputs=(),
            max_attempts=1,
            timeout_seconds=60,
        )
        raise InvalidHeader("no")

    with pytest.raises(InvalidHeader):
        running.finish(world.sessions, claim, record)
    assert world.get(job.id).state is JobState.RUNNING
    assert not running.has_work(world.sessions, EVERYTHING)


def test_a_passing_problem_queues_the_job_again_with_backoff(world: JobWorld) -> None:
    job = world.add()
    assert running.fail(world.sessions, world.claim(), LOST) is None
    again = world.get(job.id)
    assert (again.state, again.attempts, again.worker) == (JobState.QUEUED, 1, None)
    assert running.claim(world.sessions, world.worker, lease_seconds=1.0) is None  # not before two seconds have passed
    last = world.events(job.id)[-1]
    assert (last.type, last.data["delay_seconds"]) == ("job.retrying", 2.0)


def test_the_last_attempt_fails_with_its_problem(world: JobWorld) -> None:
    job = world.add(max_attempts=2)
    for _ in range(2):
        world.set(job.id, not_before=None)
        running.fail(world.sessions, world.claim(), LOST)
    ended = world.get(job.id)
    assert (ended.state, ended.attempts) == (JobState.FAILED, 2)
    assert ended.problem == LOST.to_json()
    assert world.outcomes(job.id) == ["failed", "failed"]


def test_a_lasting_problem_fails_at_once(world: JobWorld) -> None:
    job = world.add()
    ended = running.fail(world.sessions, world.claim(), OutOfMemory("too big"))
    assert ended is not None
    assert (ended.state, ended.attempts) == (JobState.FAILED, 1)
    assert world.event_types(job.id)[-1] == "job.failed"


def test_an_import_that_fails_leaves_its_checkpoint_invalid_with_the_problem(world: JobWorld) -> None:
    _, checkpoint_id = world.add_import()
    problem = InvalidHeader("tensor 'x' overlaps tensor 'y'")
    running.fail(world.sessions, world.claim(), problem)
    assert world.checkpoint(checkpoint_id) == ("invalid", problem.to_json())


def test_a_failure_while_canceling_is_a_cancel(world: JobWorld) -> None:
    job = world.add()
    claim = world.claim()
    jobs.cancel(world.sessions, ACTOR, job.id)
    running.fail(world.sessions, claim, LOST)
    assert world.get(job.id).state is JobState.CANCELED


def test_a_result_published_before_the_cancel_was_seen_stands(world: JobWorld) -> None:
    job = world.add()
    claim = world.claim()
    jobs.cancel(world.sessions, ACTOR, job.id)
    world.finish(claim)
    assert world.get(job.id).state is JobState.SUCCEEDED


def test_a_released_job_is_queued_as_if_it_had_not_been_tried(world: JobWorld) -> None:
    job = world.add(max_attempts=1)
    running.release(world.sessions, world.claim(), "its worker was stopped")
    assert (world.get(job.id).state, world.get(job.id).attempts) == (JobState.QUEUED, 0)
    assert world.outcomes(job.id) == ["released"]
    assert world.claim().fence == 2


def test_a_release_while_canceling_is_a_cancel(world: JobWorld) -> None:
    job = world.add()
    claim = world.claim()
    jobs.cancel(world.sessions, ACTOR, job.id)
    running.release(world.sessions, claim, "its worker was stopped")
    assert world.get(job.id).state is JobState.CANCELED


def test_whoever_lost_the_claim_writes_nothing(world: JobWorld) -> None:
    job = world.add()
    stale = world.claim()
    running.release(world.sessions, stale, "frozen")
    current = world.claim()

    assert running.heartbeat(world.sessions, stale).is_lost
    with pytest.raises(ClaimLost):
        running.check(world.sessions, stale)
    with pytest.raises(ClaimLost):
        world.finish(stale)
    with pytest.raises(ClaimLost):
        running.fail(world.sessions, stale, LOST)
    with pytest.raises(ClaimLost):
        running.release(world.sessions, stale, "late")
    with pytest.raises(ClaimLost):
        running.confirm_canceled(world.sessions, stale)

    running.check(world.sessions, current)
    world.finish(current)
    assert world.get(job.id).state is JobState.SUCCEEDED
    assert world.outcomes(job.id) == ["released", "succeeded"]
