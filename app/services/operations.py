"""How the service is: ready or not, its workers, what it holds, and the gauges for monitoring."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.db import clock
from app.db import jobs as job_rows
from app.db.engine import Sessions
from app.db.migrate import is_at_head
from app.db.paging import paginate_sorted
from app.db.tables import Artifact, ArtifactFile, Checkpoint, Job, Metric, Model, Task, Worker
from app.domain.errors import AmalgamError, Unavailable
from app.domain.jobs import JobState
from app.domain.views.operations import PartView, ReadinessView, UsageView, WorkerView
from app.domain.views.pages import Page, PageRequest
from app.services.actors import Actor
from app.services.wiring import Wiring

SILENT_AFTER = timedelta(seconds=30)


@dataclass(frozen=True)
class Gauge:
    """One measured quantity of the service, by labels."""

    name: str
    help: str
    labels: tuple[str, ...]
    values: Mapping[tuple[str, ...], float]


def check_readiness(wiring: Wiring) -> ReadinessView:
    """Look at everything the service stands on; the broker and workers are reported, not required."""
    parts = {
        "database": _look(lambda: _check_database(wiring.sessions), "answers"),
        "migrations": _look(lambda: _check_migrations(wiring.sessions), "at head"),
        "storage": _look(wiring.storage.check, "can be used"),
        "broker": _check_broker(wiring),
        "workers": _check_workers(wiring),
    }
    is_ready = all(part.ok for part in parts.values() if part.required)
    return ReadinessView(status="ready" if is_ready else "not_ready", parts=parts)


def list_workers(sessions: Sessions, page: PageRequest) -> Page[WorkerView]:
    """Return a page of the workers seen lately, by name. Raises: BadCursor."""
    workers = {f"{worker.name} {worker.id}": worker for worker in find_workers(sessions)}
    names = sorted(workers, reverse=page.is_descending)
    filters = {"list": "workers"}
    cut = paginate_sorted(
        names, limit=page.limit, cursor=page.cursor, filters=filters, is_descending=page.is_descending
    )
    return Page(items=[workers[name] for name in names[cut.start : cut.end]], next_cursor=cut.next_cursor)


def find_workers(sessions: Sessions) -> list[WorkerView]:
    """Return all workers seen lately."""
    with sessions.read() as session:
        now = clock.now(session)
        return [_worker(row, is_silent=row.seen_at < now - SILENT_AFTER) for row in session.scalars(select(Worker))]


def count_usage(sessions: Sessions, actor: Actor) -> UsageView:
    """Return how much the project holds; `stored_bytes` counts equal files once."""
    with sessions.read() as session:
        held = (
            select(ArtifactFile.sha256, ArtifactFile.size_bytes)
            .distinct()
            .join(Artifact, Artifact.id == ArtifactFile.artifact_id)
            .where(Artifact.project_id == actor.project_id)
            .subquery()
        )
        by_state = (
            select(Job.state, func.count())
            .where(Job.project_id == actor.project_id)
            .group_by(Job.state)
            .order_by(Job.state)
        )
        return UsageView(
            checkpoints=_count(session, Checkpoint, actor, Checkpoint.deleted_at.is_(None)),
            models=_count(session, Model, actor),
            tasks=_count(session, Task, actor),
            artifacts=_count(session, Artifact, actor),
            artifact_bytes=_sum(
                session, select(func.sum(Artifact.size_bytes)).where(Artifact.project_id == actor.project_id)
            ),
            stored_bytes=_sum(session, select(func.sum(held.c.size_bytes))),
            metrics=_count(session, Metric, actor),
            jobs={state: count for state, count in session.execute(by_state)},  # noqa: C416 (rows are not pairs to mypy)
        )


def read_gauges(sessions: Sessions) -> list[Gauge]:
    """Return what is monitored, read from the tables at this moment."""
    with sessions.read() as session:
        now = clock.now(session)
        oldest = select(Job.resource_class, func.min(Job.queued_at)).where(Job.state == str(JobState.QUEUED))
        waiting = session.execute(oldest.group_by(Job.resource_class)).all()
        workers = session.execute(select(Worker.state, func.count()).group_by(Worker.state)).all()
        checkpoints = select(Checkpoint.state, func.count()).where(Checkpoint.deleted_at.is_(None))
        states = session.execute(checkpoints.group_by(Checkpoint.state)).all()
        stored = _sum(session, select(func.sum(Artifact.size_bytes)))
        return [
            Gauge(
                "amalgam_jobs",
                "Jobs by kind, resource class and state.",
                ("kind", "resource_class", "state"),
                {key: float(count) for key, count in job_rows.count_by_state(session).items()},
            ),
            Gauge(
                "amalgam_queue_oldest_seconds",
                "Age of the oldest queued job.",
                ("resource_class",),
                {(name,): max((now - at).total_seconds(), 0.0) for name, at in waiting},
            ),
            Gauge(
                "amalgam_workers", "Workers by state.", ("state",), {(state,): float(count) for state, count in workers}
            ),
            Gauge(
                "amalgam_checkpoints",
                "Checkpoints by state.",
                ("state",),
                {(state,): float(count) for state, count in states},
            ),
            Gauge("amalgam_artifact_bytes", "Bytes of all artifacts.", (), {(): float(stored)}),
        ]


def _look(check: Callable[[], object], fine: str) -> PartView:
    try:
        check()
    except AmalgamError as error:
        return PartView(ok=False, required=True, detail=error.detail)
    return PartView(ok=True, required=True, detail=fine)


def _check_database(sessions: Sessions) -> None:
    with sessions.read() as session:
        session.execute(select(1))


def _check_migrations(sessions: Sessions) -> None:
    with sessions.read():  # says so clearly when the database is away
        is_current = is_at_head(sessions.engine)
    if not is_current:
        raise Unavailable("The database has not the schema of this release. Run `amalgam migrate`.")


def _check_broker(wiring: Wiring) -> PartView:
    if wiring.queue.is_reachable():
        return PartView(ok=True, required=False, detail="answers")
    return PartView(ok=False, required=False, detail="The broker is away; work is accepted and stays queued.")


def _check_workers(wiring: Wiring) -> PartView:
    try:
        active = [worker for worker in find_workers(wiring.sessions) if worker.state == "active"]
    except AmalgamError as error:
        return PartView(ok=False, required=False, detail=error.detail)
    if not active:
        return PartView(ok=False, required=False, detail="No worker is active; start one with `amalgam worker`.")
    return PartView(ok=True, required=False, detail=f"{len(active)} active")


def _worker(row: Worker, *, is_silent: bool) -> WorkerView:
    return WorkerView.model_validate(
        {
            **{name: getattr(row, name) for name in WorkerView.model_fields},
            "state": "silent" if is_silent and row.state != "stopped" else row.state,
        }
    )


def _count(session: Session, table: Any, actor: Actor, *conditions: Any) -> int:  # Any: a mapped class with project_id
    statement = select(func.count()).select_from(table).where(table.project_id == actor.project_id, *conditions)
    return session.scalar(statement) or 0


def _sum(session: Session, statement: Any) -> int:  # Any: a sum is Decimal on PostgreSQL and int on SQLite
    return int(session.scalar(statement) or 0)
