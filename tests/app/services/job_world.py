"""A migrated database with a silent queue, and short ways to make and run jobs in it."""

import contextlib
from collections.abc import Iterator

from sqlalchemy import Engine, select, update

from app.db.engine import Sessions, make_engine
from app.db.tables import Checkpoint, Job, JobAttempt, Project, Table
from app.domain.identifiers import new_id
from app.domain.jobs import JobKind, ResourceClass
from app.domain.views.jobs import EventView, JobView
from app.domain.views.pages import EventsRequest
from app.queue import JobQueue, QueueAway
from app.services import jobs, running
from app.services.actors import Actor
from app.services.running import Claim, JobResult, WorkerIdentity

ACTOR = Actor(name="tester", request_id="req-1", traceparent="00-trace")
EVERYTHING = tuple(ResourceClass)
LONG = 3600.0


class RecordingQueue(JobQueue):
    """A doorbell that writes down who was rung for, or is away."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.is_away = False

    def send_job(self, job_id: str, resource_class: ResourceClass) -> None:
        if self.is_away:
            raise QueueAway("away")
        self.sent.append(job_id)


class JobWorld:
    """Jobs in a real database, worked by hand."""

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions
        self.queue = RecordingQueue()
        self.worker = WorkerIdentity(new_id("wrk"), "worker-1", EVERYTHING)

    def add(
        self,
        kind: JobKind = JobKind.MERGE,
        *,
        priority: int = 0,
        max_attempts: int = 3,
        waits_for: str | None = None,
        job_id: str | None = None,
    ) -> JobView:
        with self.sessions.begin() as session:
            return jobs.add(
                session,
                ACTOR,
                kind=kind,
                spec={"method": "ties", "models": []},
                inputs=(),
                max_attempts=max_attempts,
                timeout_seconds=60,
                priority=priority,
                tags={"team": "a"},
                waits_for=waits_for,
                job_id=job_id,
            )

    def add_import(self, *, max_attempts: int = 1) -> tuple[JobView, str]:
        """Add an import job with its checkpoint; return both."""
        job_id, checkpoint_id = new_id("job"), new_id("ckpt")
        with self.sessions.begin() as session:
            session.add(
                Checkpoint(
                    id=checkpoint_id,
                    project_id="default",
                    actor="tester",
                    name=checkpoint_id.replace("_", "-"),
                    version=1,
                    state="importing",
                    storage="reference",
                    job_id=job_id,
                )
            )
        return self.add(JobKind.IMPORT, max_attempts=max_attempts, job_id=job_id), checkpoint_id

    def claim(self, worker: WorkerIdentity | None = None, *, lease_seconds: float = LONG) -> Claim:
        claim = running.claim(self.sessions, worker or self.worker, lease_seconds=lease_seconds)
        assert claim is not None, "there was nothing to claim"
        return claim

    def finish(self, claim: Claim) -> list[JobView]:
        return running.finish(self.sessions, claim, lambda _session: JobResult({"checkpoint": None}), [("work", 1.0)])

    def get(self, job_id: str) -> JobView:
        return jobs.get(self.sessions, ACTOR, job_id)

    def events(self, job_id: str) -> list[EventView]:
        return jobs.events(self.sessions, ACTOR, job_id, EventsRequest(after_seq=0, limit=1000))

    def event_types(self, job_id: str) -> list[str]:
        return [event.type for event in self.events(job_id)]

    def outcomes(self, job_id: str) -> list[str | None]:
        with self.sessions.read() as session:
            statement = select(JobAttempt.outcome).where(JobAttempt.job_id == job_id).order_by(JobAttempt.fence)
            return list(session.scalars(statement))

    def checkpoint(self, checkpoint_id: str) -> tuple[str, object]:
        with self.sessions.read() as session:
            row = session.get_one(Checkpoint, checkpoint_id)
            return row.state, row.problem

    def set(self, job_id: str, **values: object) -> None:
        """Change a row behind the services' back: lets time pass."""
        with self.sessions.begin() as session:
            session.execute(update(Job).where(Job.id == job_id).values(**values))


@contextlib.contextmanager
def made(url: str) -> Iterator[Engine]:
    """Yield an engine on a database with our tables; the migrations give the same (tests/app/db/test_migrate.py)."""
    engine = make_engine(url)
    Table.metadata.create_all(engine)
    try:
        yield engine
    finally:
        engine.dispose()


def emptied(engine: Engine) -> JobWorld:
    """Return a world without a row but the default project."""
    sessions = Sessions(engine)
    with sessions.begin() as session:
        for table in reversed(Table.metadata.sorted_tables):
            session.execute(table.delete())
        session.add(Project(id="default"))
    return JobWorld(sessions)
