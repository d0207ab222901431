"""Deleting checkpoints and artifacts: who still needs them, what goes with them, which bytes nothing names any more.

A deleted checkpoint stays as a tombstone for the lineage; its manifest and its artifact go. Bytes are removed after the
commit, by digest, and only where no other artifact or upload names them.
"""

from collections.abc import Iterable, Sequence

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from app.db import parts
from app.db.tables import (
    Artifact,
    ArtifactFile,
    Checkpoint,
    CheckpointManifest,
    Job,
    JobInput,
    ModelAlias,
    Task,
    Upload,
    UploadFile,
    utc_now,
)
from app.domain.checkpoints import CheckpointState
from app.domain.errors import ResourceInUse
from app.domain.jobs import LIVE_STATES

SHOWN = 5
DIGESTS_AT_ONCE = 500


def delete_checkpoint(session: Session, row: Checkpoint) -> list[str]:
    """Delete a checkpoint, whose row is locked, with its artifact; return the digests of the files that went with it.

    Raises: ResourceInUse naming what still needs it.
    """
    needed_by = _needed_by(session, row)
    if needed_by:
        raise ResourceInUse(
            f"{row.name}@{row.version} ({row.id}) is still needed: {'; '.join(needed_by)}. Let those end, or delete"
            " or change them first."
        )
    row.deleted_at = utc_now()
    row.revision += 1
    session.execute(delete(CheckpointManifest).where(CheckpointManifest.checkpoint_id == row.id))
    digests = _drop_upload(session, row.id)
    if row.artifact_id is not None:
        digests += _delete_files(session, row.artifact_id)
    session.flush()
    return digests


def delete_artifact(session: Session, row: Artifact) -> list[str]:
    """Delete an artifact with the checkpoint it is; return the digests of its files.

    The checkpoint's row is locked first, as `delete_checkpoint`'s callers do: nobody waits in a circle.

    Raises: ResourceInUse naming what still needs the checkpoint.
    """
    if row.checkpoint_id is not None:
        statement = select(Checkpoint).where(Checkpoint.id == row.checkpoint_id, Checkpoint.deleted_at.is_(None))
        checkpoint = session.scalar(statement.with_for_update())
        if checkpoint is not None:
            return delete_checkpoint(session, checkpoint)
    return _delete_files(session, row.id)


def find_unnamed(session: Session, digests: Iterable[str]) -> list[str]:
    """Return those of the digests that no artifact, no upload and no part of a live merge names, sorted."""
    wanted = sorted(set(digests))
    named: set[str] = set()
    for start in range(0, len(wanted), DIGESTS_AT_ONCE):
        some = wanted[start : start + DIGESTS_AT_ONCE]
        for column in (ArtifactFile.sha256, UploadFile.sha256):
            named.update(session.scalars(select(column).where(column.in_(some))))
    named |= parts.kept_digests(session)
    return [digest for digest in wanted if digest not in named]


def _needed_by(session: Session, row: Checkpoint) -> list[str]:
    """Return, in words, everything that needs a checkpoint."""
    reasons: list[str] = []
    if row.state == CheckpointState.IMPORTING:
        reasons.append(f"its import {row.job_id} has not ended")
    live = select(Job.id).join(JobInput, JobInput.job_id == Job.id).where(JobInput.checkpoint_id == row.id)
    jobs = session.scalars(live.where(Job.state.in_(sorted(LIVE_STATES))).distinct().order_by(Job.id)).all()
    dependents = session.scalars(
        select(Checkpoint)
        .where(Checkpoint.base_checkpoint_id == row.id, Checkpoint.deleted_at.is_(None))
        .order_by(Checkpoint.id)
    ).all()
    tasks = session.scalars(select(Task.name).where(Task.head_base_checkpoint_id == row.id).order_by(Task.name)).all()
    aliases = session.scalars(
        select(ModelAlias.alias)
        .where(ModelAlias.project_id == row.project_id, ModelAlias.name == row.name, ModelAlias.version == row.version)
        .order_by(ModelAlias.alias)
    ).all()
    reasons += _count("job", jobs)
    reasons += _count("checkpoint based on it", [f"{found.name}@{found.version}" for found in dependents])
    reasons += _count("task whose head it makes", tasks)
    reasons += _count("alias", aliases)
    return reasons


def _count(what: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    shown = ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
    return [f"{len(names)} × {what} ({shown})"]


def _delete_files(session: Session, artifact_id: str) -> list[str]:
    digests = list(session.scalars(select(ArtifactFile.sha256).where(ArtifactFile.artifact_id == artifact_id)))
    session.execute(delete(ArtifactFile).where(ArtifactFile.artifact_id == artifact_id))
    session.execute(delete(Artifact).where(Artifact.id == artifact_id))
    return digests


def _drop_upload(session: Session, checkpoint_id: str) -> list[str]:
    uploads = select(Upload.id).where(Upload.checkpoint_id == checkpoint_id)
    files = UploadFile.upload_id.in_(uploads.scalar_subquery())
    digests = list(session.scalars(select(UploadFile.sha256).where(files)))
    session.execute(delete(UploadFile).where(files))
    return digests
