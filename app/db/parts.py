"""Rows of the parts of merges, and what they have left in the store. Nothing here commits."""

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session, aliased

from app.db import clock
from app.db import jobs as rows
from app.db.tables import Job, Worker
from app.domain.checkpoints import FileEntry
from app.domain.jobs import LIVE_STATES, JobKind, JobState, ResourceClass
from app.domain.parts import Room


def of_merge(session: Session, merge_id: str) -> Sequence[Job]:
    """Return the parts of a merge, of all rounds, in the order in which they were added."""
    wanted = select(Job).where(Job.parent_id == merge_id, Job.kind == str(JobKind.PART)).order_by(Job.id)
    return session.scalars(wanted.execution_options(populate_existing=True)).all()


def list_waiting(session: Session) -> Sequence[str]:
    """Return the merges that wait for parts of which some have ended."""
    part = aliased(Job)
    ended = select(part.id).where(part.parent_id == Job.id, part.state.not_in([str(one) for one in LIVE_STATES]))
    return session.scalars(select(Job.id).where(rows.awaits_parts(), ended.exists()).order_by(Job.id)).all()


def files_of(row: Job) -> tuple[FileEntry, ...]:
    """Return the files that a part which has succeeded left in the store."""
    return tuple(FileEntry.model_validate(file) for file in (row.result or {}).get("files", ()))


def kept_digests(session: Session) -> set[str]:
    """Return the digests of the files that parts of live merges left in the store: nothing else names them yet."""
    merge = aliased(Job)
    live = (
        select(Job)
        .join(merge, merge.id == Job.parent_id)
        .where(
            Job.kind == str(JobKind.PART),
            rows.in_state(JobState.SUCCEEDED),
            merge.state.in_([str(state) for state in LIVE_STATES]),
        )
    )
    return {file.sha256 for row in session.scalars(live) for file in files_of(row)}


def list_rooms(session: Session, resource_class: ResourceClass) -> list[Room]:
    """Return the active workers with the jobs that each holds; of those that serve another class no slots."""
    holding = select(Job.worker_id, func.count()).where(rows.in_state(*rows.HELD)).group_by(Job.worker_id)
    held = {worker_id: n_jobs for worker_id, n_jobs in session.execute(holding)}  # noqa: C416 (rows are not pairs to mypy)
    return [
        Room(
            machine=worker.machine or worker.name,
            cores=worker.cores,
            threads=worker.threads,
            n_slots=worker.concurrency if str(resource_class) in worker.queues else 0,
            n_held=held.get(worker.id, 0),
        )
        for worker in session.scalars(select(Worker).where(Worker.state == "active").order_by(Worker.id))
    ]


def count_waiting(session: Session, resource_class: ResourceClass) -> int:
    """Return how many jobs of a class wait for a worker."""
    waiting = select(func.count()).where(rows.runnable(clock.now(session)), Job.resource_class == str(resource_class))
    return session.scalar(waiting) or 0
