"""Which workers are there: a row each, renewed while the worker lives."""

from dataclasses import dataclass

from pydantic import JsonValue
from sqlalchemy import update
from sqlalchemy.orm import Session

from app.db import clock
from app.db.engine import Sessions
from app.db.tables import Worker
from app.domain.jobs import ResourceClass


@dataclass(frozen=True)
class WorkerFacts:
    """A worker process as it introduces itself. `id` is new with every start, `name` stays.

    machine: what shares its cores with others that say the same; cores: how many it may use; threads: of a job, 0: the
    cores that are free.
    """

    id: str
    name: str
    queues: tuple[ResourceClass, ...]
    device: str
    concurrency: int
    version: str
    machine: str
    cores: int
    threads: int


def register(sessions: Sessions, facts: WorkerFacts) -> None:
    """Add the row of a worker that has just started."""
    with sessions.begin() as session:
        at = clock.now(session)
        session.add(
            Worker(
                id=facts.id,
                name=facts.name,
                queues=[str(name) for name in facts.queues],
                device=facts.device,
                concurrency=facts.concurrency,
                version=facts.version,
                machine=facts.machine,
                cores=facts.cores,
                threads=facts.threads,
                started_at=at,
                seen_at=at,
            )
        )


def renew(sessions: Sessions, facts: WorkerFacts, *, is_draining: bool, load: dict[str, JsonValue]) -> None:
    """Say that the worker lives, and what it is doing; a row that was dropped meanwhile is added again."""
    with sessions.begin() as session:
        if _set(session, facts.id, state="draining" if is_draining else "active", load=load):
            return
    register(sessions, facts)


def leave(sessions: Sessions, worker_id: str) -> None:
    """Say that the worker has stopped."""
    with sessions.begin() as session:
        _set(session, worker_id, state="stopped", load={})


def _set(session: Session, worker_id: str, *, state: str, load: dict[str, JsonValue]) -> bool:
    values = {"state": state, "load": load, "seen_at": clock.now(session)}
    changed = session.execute(update(Worker).where(Worker.id == worker_id).values(**values).returning(Worker.id))
    return changed.one_or_none() is not None
