"""Which pre-trained model stands behind a checkpoint: the root of its `base_checkpoint` chain."""

from collections.abc import Sequence

from sqlalchemy.orm import Session

from app.db.tables import Checkpoint, Job
from app.domain.jobs import JobKind

MAX_CHAIN = 1000


def root(session: Session, checkpoint_id: str) -> str | None:
    """Return the id of the base behind a checkpoint; a checkpoint without a base is its own.

    None for a merge whose inputs share no base, and where the base was deleted.
    """
    seen: set[str] = set()
    row = session.get(Checkpoint, checkpoint_id)
    while row is not None and row.base_checkpoint_id is not None and row.id not in seen and len(seen) < MAX_CHAIN:
        seen.add(row.id)
        row = session.get(Checkpoint, row.base_checkpoint_id)
    if row is None or row.deleted_at is not None or _is_merged(session, row):
        return None
    return row.id


def shared_root(session: Session, checkpoint_ids: Sequence[str]) -> str | None:
    """Return the base that all checkpoints share, or None."""
    roots = {root(session, checkpoint_id) for checkpoint_id in checkpoint_ids}
    return roots.pop() if len(roots) == 1 else None


def _is_merged(session: Session, row: Checkpoint) -> bool:
    job = session.get(Job, row.job_id) if row.job_id is not None else None
    return job is not None and job.kind in (JobKind.MERGE, JobKind.SWEEP)
