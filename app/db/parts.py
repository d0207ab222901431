"""Rows of the parts of merges, and what they have left in the store. Nothing here commits."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from app.db import jobs as rows
from app.db.tables import Job, Worker
from app.domain.checkpoints import FileEntry
from app.domain.jobs import LIVE_STATES, JobKind, JobState, ResourceClass


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


def count_slots(session: Session, resource_class: ResourceClass) -> int:
    """Return how many jobs of a class the workers that are there could run at once."""
    active = session.execute(select(Worker.queues, Worker.concurrency).where(Worker.state == "active"))
    return sum(concurrency for queues, concurrency in active if str(resource_class) in queues)
