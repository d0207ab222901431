"""Rows of uploads and of their complete files."""

from datetime import datetime
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from app.db.owners import Owner
from app.db.tables import Checkpoint, Upload, UploadFile
from app.domain.checkpoints import CheckpointState, FileEntry
from app.domain.errors import NotFound
from app.domain.identifiers import new_id
from app.domain.views.uploads import UploadView


def add(session: Session, owner: Owner, *, request: dict[str, Any], expires_at: datetime) -> Upload:
    """Add an open upload."""
    row = Upload(
        id=new_id("upl"),
        project_id=owner.project_id,
        actor=owner.name,
        state="open",
        request=request,
        expires_at=expires_at,
    )
    session.add(row)
    session.flush()
    return row


def find(session: Session, project_id: str, upload_id: str, *, is_locked: bool = False) -> Upload:
    """Return an upload's row; `is_locked` keeps others from changing it. Raises: NotFound."""
    statement = select(Upload).where(Upload.project_id == project_id, Upload.id == upload_id)
    row = session.scalar(statement.with_for_update() if is_locked else statement)
    if row is None:
        raise NotFound(f"No upload has the id {upload_id!r}. Begin one with POST /v1/checkpoints/uploads.")
    return row


def list_files(session: Session, upload_id: str) -> list[FileEntry]:
    """Return the complete files of an upload, sorted by path."""
    statement = select(UploadFile).where(UploadFile.upload_id == upload_id).order_by(UploadFile.path)
    return [
        FileEntry(path=row.path, size_bytes=row.size_bytes, sha256=row.sha256) for row in session.scalars(statement)
    ]


def put_file(session: Session, upload_id: str, file: FileEntry) -> bool:
    """Record a complete file; True when the path is new, False when it replaces an earlier one."""
    row = session.get(UploadFile, (upload_id, file.path))
    if row is None:
        session.add(UploadFile(upload_id=upload_id, path=file.path, size_bytes=file.size_bytes, sha256=file.sha256))
    else:
        row.size_bytes, row.sha256 = file.size_bytes, file.sha256
    session.flush()
    return row is None


def forget_files(session: Session, upload_id: str) -> None:
    """Forget the files of an upload: an artifact names them now, or nothing does."""
    session.execute(delete(UploadFile).where(UploadFile.upload_id == upload_id))


def expire(session: Session, now: datetime) -> int:
    """Close the uploads that nobody completed in time, and forget the files of those no import waits for."""
    late = update(Upload).where(Upload.state == "open", Upload.expires_at <= now).values(state="expired")
    expired = session.scalars(late.returning(Upload.id)).all()
    importing = select(Checkpoint.id).where(Checkpoint.state == CheckpointState.IMPORTING)
    done = select(Upload.id).where(
        Upload.expires_at <= now, (Upload.checkpoint_id.is_(None)) | (Upload.checkpoint_id.not_in(importing))
    )
    session.execute(delete(UploadFile).where(UploadFile.upload_id.in_(done)))
    return len(expired)


def view(row: Upload, files: list[FileEntry]) -> UploadView:
    """Return what a caller sees of an upload."""
    return UploadView.model_validate(
        {
            **row.request,
            "files": files,
            "checkpoint": row.checkpoint_id,
            **{key: getattr(row, key) for key in ("id", "state", "actor", "created_at", "updated_at", "expires_at")},
        }
    )
