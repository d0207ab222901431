"""A job outside its worker: made, hinted, listed, waited for, canceled, retried; on SQLite and PostgreSQL."""

import asyncio
import threading
import time
from datetime import UTC, datetime

import pytest

from app.db.tables import Event
from app.domain.errors import BadCursor, Conflict, JobIsFinal, JobNotFinal, NotFound
from app.domain.jobs import JobKind, JobState, ResourceClass
from app.domain.views.pages import EventsRequest, PageRequest
from app.services import jobs, running
from app.services.actors import Actor
from app.services.jobs import JobFilters
from app.services.running import WorkerIdentity
from tests.app.services.job_world import ACTOR, JobWorld


def test_a_new_job_is_queued_with_its_request_s_marks(world: JobWorld) -> None:
    job = world.add(priority=3)

    assert (job.state, job.attempts, job.priority, job.revision) == (JobState.QUEUED, 0, 3, 1)
    assert (job.actor, job.request_id, job.tags) == ("tester", "req-1", {"team": "a"})
    assert world.event_types(job.id) == ["job.queued"]


def test_instants_on_the_wire_have_microseconds_and_z(world: JobWorld) -> None:
    document = world.add().model_dump(mode="json")

    assert datetime.strptime(document["timings"]["queued_at"], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
    assert "project_id" not in document


def test_a_job_with_its_result_is_succeeded_at_once(world: JobWorld) -> None:
    source = world.add()
    with world.sessions.begin() as session:
        job = jobs.add(
            session,
            ACTOR,
            kind=JobKind.MERGE,
            spec={},
            resource_class=ResourceClass.CPU,
            inputs=(),
            max_attempts=3,
            timeout_seconds=60,
            deduplicated_from=source.id,
            result={"checkpoint": "ckpt_1"},
        )

    assert (job.state, job.result, job.deduplicated_from) == (JobState.SUCCEEDED, {"checkpoint": "ckpt_1"}, source.id)
    assert job.timings.finished_at is not None
    assert world.event_types(job.id) == ["job.queued", "job.succeeded"]


@pytest.mark.parametrize(
    ("kind", "resource_class"),
    [
        (JobKind.IMPORT, ResourceClass.IO),
        (JobKind.MERGE, ResourceClass.CPU),
        (JobKind.ANALYZE, ResourceClass.CPU),
        (JobKind.EVALUATE, ResourceClass.GPU),
        (JobKind.FINETUNE, ResourceClass.GPU),
    ],
)
def test_a_job_is_for_the_workers_that_serve_the_class_of_its_kind(
    world: JobWorld, kind: JobKind, resource_class: ResourceClass
) -> None:
    job = world.add(kind)
    others = tuple(set(ResourceClass) - {resource_class})
    elsewhere, here = WorkerIdentity("wrk_1", "a", others), WorkerIdentity("wrk_2", "b", (resource_class,))
    assert running.claim(world.sessions, elsewhere, lease_seconds=60) is None
    claim = running.claim(world.sessions, here, lease_seconds=60)
    assert claim is not None
    assert claim.job.id == job.id


def test_hints_go_to_queued_jobs_that_wait_for_nothing(world: JobWorld) -> None:
    queued = world.add()
    waiting = world.add(waits_for=queued.id)
    canceled = jobs.cancel(world.sessions, ACTOR, world.add().id)

    jobs.hint(world.queue, [queued, waiting, canceled])

    assert world.queue.sent == [queued.id]


def test_a_hint_with_the_broker_away_is_swallowed(world: JobWorld) -> None:
    world.queue.is_away = True
    jobs.hint(world.queue, [world.add()])


def test_an_unknown_job_is_named(world: JobWorld) -> None:
    with pytest.raises(NotFound, match="job_nowhere"):
        world.get("job_nowhere")


def test_a_job_of_another_project_is_not_found(world: JobWorld) -> None:
    job = world.add()
    with pytest.raises(NotFound):
        jobs.get(world.sessions, Actor(project_id="other"), job.id)


# ── waiting and listing ───────────────────────────────────────────────────────────────────────────────────────────────


def test_wait_returns_a_final_job_at_once(world: JobWorld) -> None:
    job = jobs.cancel(world.sessions, ACTOR, world.add().id)
    started = time.monotonic()
    waited = asyncio.run(jobs.wait(world.sessions, ACTOR, job.id, 30.0))
    assert waited.state is JobState.CANCELED
    assert time.monotonic() - started < 5.0


def test_wait_returns_an_unfinished_job_when_the_time_is_over(world: JobWorld) -> None:
    job = world.add()
    assert asyncio.run(jobs.wait(world.sessions, ACTOR, job.id, 0.3)).state is JobState.QUEUED


def test_wait_notices_the_end(world: JobWorld) -> None:
    job = world.add()
    timer = threading.Timer(0.3, lambda: jobs.cancel(world.sessions, ACTOR, job.id))
    timer.start()
    waited = asyncio.run(jobs.wait(world.sessions, ACTOR, job.id, 30.0))
    timer.join()
    assert waited.state is JobState.CANCELED


def test_lists_are_filtered_and_paged(world: JobWorld) -> None:
    made = [world.add() for _ in range(5)]
    jobs.cancel(world.sessions, ACTOR, made[0].id)
    filters = JobFilters(state=JobState.QUEUED, kind=JobKind.MERGE, method="ties", tags={"team": "a"})

    first = jobs.list_(world.sessions, ACTOR, filters, PageRequest(limit=3))
    world.add()  # a newer one does not disturb the pages
    second = jobs.list_(world.sessions, ACTOR, filters, PageRequest(limit=3, cursor=first.next_cursor))

    assert [job.id for job in first.items + second.items] == [job.id for job in reversed(made[1:])]
    assert second.next_cursor is None


@pytest.mark.parametrize(
    "filters",
    [JobFilters(method="slerp"), JobFilters(tags={"team": "b"}), JobFilters(kind=JobKind.IMPORT), JobFilters(task="x")],
)
def test_filters_that_match_nothing_give_an_empty_page(world: JobWorld, filters: JobFilters) -> None:
    world.add()
    assert jobs.list_(world.sessions, ACTOR, filters, PageRequest()).items == []


def test_created_before_and_after_bound_a_list(world: JobWorld) -> None:
    job = world.add()
    at = job.created_at
    assert jobs.list_(world.sessions, ACTOR, JobFilters(created_after=at), PageRequest()).items == []
    assert jobs.list_(world.sessions, ACTOR, JobFilters(created_before=at), PageRequest()).items == []


def test_a_cursor_of_other_filters_is_refused(world: JobWorld) -> None:
    for _ in range(2):
        world.add()
    page = jobs.list_(world.sessions, ACTOR, JobFilters(), PageRequest(limit=1))
    with pytest.raises(BadCursor):
        jobs.list_(world.sessions, ACTOR, JobFilters(method="ties"), PageRequest(limit=1, cursor=page.next_cursor))


def test_children_are_named_by_their_parent(world: JobWorld) -> None:
    parent, child = world.add(), world.add()
    world.set(child.id, parent_id=parent.id)
    assert world.get(parent.id).children == (child.id,)
    assert world.get(child.id).parent == parent.id


# ── events ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_events_can_be_read_from_any_point(world: JobWorld) -> None:
    job = world.add()
    world.finish(world.claim())
    rest = jobs.events(world.sessions, ACTOR, job.id, EventsRequest(after_seq=1, limit=1))
    assert [(event.seq, event.type) for event in rest] == [(2, "job.started")]


def test_the_sequence_over_all_jobs_has_no_gap_and_keeps_each_job_s_order(world: JobWorld) -> None:
    first, second = world.add(), world.add()
    world.finish(world.claim())
    early = jobs.all_events(world.sessions, ACTOR, EventsRequest(after_seq=0, limit=1000))
    world.finish(world.claim())
    everything = jobs.all_events(world.sessions, ACTOR, EventsRequest(after_seq=0, limit=1000))

    assert everything[: len(early)] == early
    assert [event.seq for event in everything] == list(range(1, 7))
    for job in (first, second):
        types = [event.type for event in everything if event.job == job.id]
        assert types == ["job.queued", "job.started", "job.succeeded"]


def test_the_sequence_keeps_a_job_s_order_when_the_clock_is_set_back(world: JobWorld) -> None:
    job = world.add()
    claim = world.claim()
    world.finish(claim)
    with world.sessions.begin() as session:
        last = session.get_one(Event, (job.id, 3))
        last.at = datetime(2000, 1, 1, tzinfo=UTC)
    types = [event.type for event in jobs.all_events(world.sessions, ACTOR, EventsRequest(after_seq=0, limit=10))]
    assert types == ["job.queued", "job.started", "job.succeeded"]


# ── cancel and retry ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_queued_job_is_canceled_at_once(world: JobWorld) -> None:
    job = jobs.cancel(world.sessions, ACTOR, world.add().id)
    assert job.state is JobState.CANCELED
    assert world.event_types(job.id) == ["job.queued", "job.cancel_requested", "job.canceled"]


def test_a_running_job_is_canceling_until_its_worker_confirms(world: JobWorld) -> None:
    job = world.add()
    claim = world.claim()
    assert jobs.cancel(world.sessions, ACTOR, job.id).state is JobState.CANCELING
    assert jobs.cancel(world.sessions, ACTOR, job.id).state is JobState.CANCELING  # asked twice: the same
    assert running.heartbeat(world.sessions, claim).cancel_requested
    running.confirm_canceled(world.sessions, claim)
    assert world.get(job.id).state is JobState.CANCELED
    assert world.event_types(job.id).count("job.cancel_requested") == 1


def test_a_job_that_has_ended_cannot_be_canceled(world: JobWorld) -> None:
    job = world.add()
    world.finish(world.claim())
    with pytest.raises(JobIsFinal, match="succeeded"):
        jobs.cancel(world.sessions, ACTOR, job.id)


def test_a_retry_is_a_new_job_with_the_same_request(world: JobWorld) -> None:
    job = jobs.cancel(world.sessions, ACTOR, world.add(priority=5).id)
    again = jobs.retry(world.sessions, world.queue, ACTOR, job.id)
    assert (again.state, again.retry_of, again.spec, again.priority) == (JobState.QUEUED, job.id, job.spec, 5)
    assert world.queue.sent == [again.id]
    assert world.get(job.id).state is JobState.CANCELED


def test_a_live_job_cannot_be_retried(world: JobWorld) -> None:
    with pytest.raises(JobNotFinal, match="queued"):
        jobs.retry(world.sessions, world.queue, ACTOR, world.add().id)


def test_canceling_an_import_leaves_its_checkpoint_invalid_and_a_retry_opens_it_again(world: JobWorld) -> None:
    job, checkpoint_id = world.add_import()

    jobs.cancel(world.sessions, ACTOR, job.id)
    state, problem = world.checkpoint(checkpoint_id)
    assert state == "invalid"
    assert isinstance(problem, dict)
    assert "canceled" in problem["detail"]

    jobs.retry(world.sessions, world.queue, ACTOR, job.id)
    assert world.checkpoint(checkpoint_id) == ("importing", None)


def test_an_import_that_succeeded_is_not_retried(world: JobWorld) -> None:
    job, _ = world.add_import()
    world.finish(world.claim())
    with pytest.raises(Conflict, match="nothing to retry"):
        jobs.retry(world.sessions, world.queue, ACTOR, job.id)


def test_canceling_a_job_frees_those_that_waited_for_it(world: JobWorld) -> None:
    source = world.add()
    waiter = world.add(waits_for=source.id)
    jobs.cancel(world.sessions, ACTOR, source.id)
    assert world.get(waiter.id).waits_for is None
    assert world.claim().job.id == waiter.id
