"""Merges of an equal recipe: equal recipes give equal bytes, so what one made another need not make again."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db import artifacts, jobs
from app.db.locks import lock
from app.db.tables import Artifact, Checkpoint, Job
from app.domain.checkpoints import FileEntry
from app.domain.errors import ArtifactGone
from app.domain.jobs import JobKind, JobState
from app.domain.views.jobs import JobView


def find(session: Session, project_id: str, recipe_digest: str) -> JobView | None:
    """Return a merge of the recipe that has succeeded and whose artifact is there, else one that runs or will, or None.

    Two merges of one recipe that are accepted at the same time do not miss each other.
    """
    lock(session, "recipe", project_id, recipe_digest)
    equal = (Job.project_id == project_id, Job.kind == str(JobKind.MERGE), Job.recipe_digest == recipe_digest)
    if session.scalar(select(Job.id).where(*equal).limit(1)) is None:
        return None  # as most merges: the first of its kind
    made = (
        select(Job)
        .join(Artifact, Artifact.job_id == Job.id)
        .join(Checkpoint, Checkpoint.artifact_id == Artifact.id)
        .where(*equal, Job.state == str(JobState.SUCCEEDED), Checkpoint.deleted_at.is_(None))
    )
    row = session.scalars(made.order_by(Job.id.desc()).limit(1)).first()
    if row is None:
        live = Job.state.in_([str(JobState.QUEUED), str(JobState.RUNNING)])
        first = select(Job).where(*equal, live, Job.waits_for.is_(None)).order_by(Job.id).limit(1)
        row = session.scalars(first).first()
    return jobs.view(session, row) if row is not None else None


def made_by(session: Session, job_id: str) -> tuple[str, Sequence[FileEntry]]:
    """Return the checkpoint that a merge made, and its files; both stay until the transaction ends.

    Raises: ArtifactGone.
    """
    artifact = session.scalars(
        select(Artifact).where(Artifact.job_id == job_id, Artifact.kind == "checkpoint").with_for_update()
    ).first()
    checkpoint = session.get(Checkpoint, artifact.checkpoint_id) if artifact is not None else None
    if artifact is None or checkpoint is None or checkpoint.deleted_at is not None:
        raise ArtifactGone(f"What job {job_id} made was deleted. Submit the merge again to make it anew.")
    return checkpoint.id, artifacts.list_files(session, [artifact.id])[artifact.id]
