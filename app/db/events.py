"""The log of a job, gap-free by its own sequence; and the sequence over all jobs, stamped on committed events."""

from collections.abc import Sequence
from typing import Any

from pydantic import JsonValue
from sqlalchemy import Select, func, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.db.paging import made_between
from app.db.tables import Event, Job, Project, utc_now
from app.domain.views.jobs import EventView, GlobalEventView
from app.domain.views.pages import EventsRequest

STAMPED_AT_ONCE = 1000


def append(session: Session, job_id: str, kind: str, data: dict[str, JsonValue] | None = None) -> None:
    """Add a line to a job's log. The number is taken under the job's row lock, so readers never see a gap."""
    numbered = session.execute(
        update(Job)
        .where(Job.id == job_id)
        .values(last_seq=Job.last_seq + 1)
        .returning(Job.last_seq, Job.project_id)
        .execution_options(synchronize_session=False)
    ).one()
    session.add(Event(job_id=job_id, seq=numbered[0], project_id=numbered[1], type=kind, at=utc_now(), data=data or {}))
    session.flush()


def first_lines(job: Job, lines: Sequence[tuple[str, dict[str, JsonValue]]]) -> list[Event]:
    """Return the lines that a new job's log begins with; the job's `last_seq` is their number."""
    return [
        Event(job_id=job.id, seq=seq, project_id=job.project_id, type=kind, at=utc_now(), data=data)
        for seq, (kind, data) in enumerate(lines, start=1)
    ]


def of_job(session: Session, job_id: str, asked: EventsRequest) -> list[EventView]:
    """Return the part of a job's log that is asked for."""
    rows = session.scalars(_part(select(Event).where(Event.job_id == job_id), Event.seq, asked))
    return [EventView(seq=row.seq, type=row.type, at=row.at, data=row.data) for row in rows]


def of_kind(session: Session, job_id: str, kind: str) -> list[dict[str, JsonValue]]:
    """Return what the lines of one kind in a job's log hold, in order."""
    rows = session.scalars(select(Event).where(Event.job_id == job_id, Event.type == kind).order_by(Event.seq))
    return [row.data for row in rows]


def of_all_jobs(session: Session, project_id: str, asked: EventsRequest) -> list[GlobalEventView]:
    """Return the part of a project's stamped events that is asked for, by their global numbers."""
    rows = session.scalars(_part(select(Event).where(Event.project_id == project_id), Event.global_seq, asked))
    return [
        GlobalEventView(seq=row.global_seq or 0, type=row.type, at=row.at, data=row.data, job=row.job_id)
        for row in rows
    ]


def _part(statement: Select[Event], number: InstrumentedAttribute[Any], asked: EventsRequest) -> Select[Event]:
    statement = statement.where(
        number > asked.after_seq, *made_between(Event.at, asked.created_after, asked.created_before)
    )
    if asked.before_seq is not None:
        statement = statement.where(number < asked.before_seq)
    is_oldest_first = asked.order == "created_at"
    return statement.order_by(number.asc() if is_oldest_first else number.desc()).limit(asked.limit)


def unstamped_projects(session: Session) -> list[str]:
    """Return the projects with events that have no global number yet."""
    rows = session.scalars(select(Event.project_id).where(Event.global_seq.is_(None)).distinct())
    return sorted(rows)


def stamp(session: Session, project_id: str) -> int:
    """Give committed events their global numbers, a job's own order kept; return how many were stamped.

    Numbers are given by whoever holds the project's row, so they grow in the order in which readers can see them.
    """
    session.execute(select(Project.id).where(Project.id == project_id).with_for_update())
    last = session.scalar(select(func.max(Event.global_seq)).where(Event.project_id == project_id)) or 0
    rows = session.scalars(
        select(Event)
        .where(Event.project_id == project_id, Event.global_seq.is_(None))
        .order_by(Event.at, Event.job_id, Event.seq)
        .limit(STAMPED_AT_ONCE)
    ).all()
    for number, row in enumerate(_in_job_order(rows), start=last + 1):
        row.global_seq = number
    session.flush()
    return len(rows)


def _in_job_order(rows: Sequence[Event]) -> list[Event]:
    """Keep the jobs' turns, but give each job's turns to its events by sequence: a clock may have been set back."""
    queues: dict[str, list[Event]] = {}
    for row in sorted(rows, key=lambda row: row.seq, reverse=True):
        queues.setdefault(row.job_id, []).append(row)
    return [queues[row.job_id].pop() for row in rows]
