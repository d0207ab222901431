"""Artifacts: looking at them, reading their files, packing them into one tar, deleting them."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import Literal

from sqlalchemy import ColumnElement, select

from app.db import artifacts as rows
from app.db import deletion
from app.db.engine import Sessions
from app.db.paging import made_between, paginate
from app.db.tables import Artifact
from app.domain.checkpoints import FileEntry
from app.domain.errors import ArtifactGone, NotFound, near_match
from app.domain.views.artifacts import ArtifactView
from app.domain.views.pages import Page, PageRequest
from app.services import freeing
from app.services.actors import Actor
from app.storage.base import Storage

BLOCK_BYTES = tarfile.BLOCKSIZE
END_OF_ARCHIVE = bytes(2 * BLOCK_BYTES)
OPAQUE = "application/octet-stream"
REPORTED = {".json": "application/json", ".png": "image/png", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class ArtifactFilters:
    """What narrows a list of artifacts; None: anything."""

    kind: Literal["checkpoint", "report"] | None = None
    job: str | None = None
    checkpoint: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


@dataclass(frozen=True)
class Archive:
    """A tar on its way out: its size in bytes, and its bytes."""

    name: str
    size_bytes: int
    chunks: Iterator[bytes]


def get(sessions: Sessions, actor: Actor, artifact_id: str) -> ArtifactView:
    """Return an artifact. Raises: NotFound."""
    with sessions.read() as session:
        return rows.get(session, actor.project_id, artifact_id)


def list_(sessions: Sessions, actor: Actor, filters: ArtifactFilters, page: PageRequest) -> Page[ArtifactView]:
    """Return a page of artifacts. Raises: BadCursor."""
    statement = select(Artifact).where(Artifact.project_id == actor.project_id, *_conditions(filters))
    with sessions.read() as session:
        found, cursor = paginate(session, statement, key=Artifact.id, request=page, filters=vars(filters))
        return Page(items=rows.view_all(session, found), next_cursor=cursor)


def find_file(sessions: Sessions, storage: Storage, actor: Actor, artifact_id: str, path: str) -> tuple[FileEntry, str]:
    """Return one file of an artifact, whose bytes are there, and its media type.

    Only reports, which are made here, have types that a browser shows; what was uploaded may be anything.

    Raises: NotFound, ArtifactGone, Unavailable.
    """
    artifact = get(sessions, actor, artifact_id)
    files = {file.path: file for file in artifact.files}
    if path not in files:
        near = near_match(path, files)
        hint = f" Did you mean {near!r}?" if near else f" GET /v1/artifacts/{artifact_id} lists its files."
        raise NotFound(f"{artifact_id} has no file {path!r}.{hint}")
    _check_there(storage, artifact_id, files[path])
    return files[path], REPORTED.get(PurePosixPath(path).suffix, OPAQUE) if artifact.kind == "report" else OPAQUE


def pack(sessions: Sessions, storage: Storage, actor: Actor, artifact_id: str) -> Archive:
    """Return all files of an artifact as one tar, below a folder with its id; equal artifacts give equal bytes.

    Raises: NotFound, ArtifactGone, Unavailable, before the first byte.
    """
    artifact = get(sessions, actor, artifact_id)
    for file in artifact.files:
        _check_there(storage, artifact_id, file)
    headers = [_header(artifact_id, file) for file in artifact.files]
    size = sum(len(header) + _padded(file.size_bytes) for header, file in zip(headers, artifact.files, strict=True))
    chunks = _pack(storage, artifact.files, headers)
    return Archive(f"{artifact_id}.tar", size + len(END_OF_ARCHIVE), chunks)


def delete(sessions: Sessions, storage: Storage, actor: Actor, artifact_id: str) -> None:
    """Delete an artifact and the checkpoint it is.

    Raises: NotFound; ResourceInUse while a job, a checkpoint, a task or an alias needs the checkpoint.
    """
    with sessions.begin() as session:
        row = rows.find(session, actor.project_id, artifact_id)
        unnamed = deletion.find_unnamed(session, deletion.delete_artifact(session, row))
    freeing.free_bytes(storage, unnamed)


def _check_there(storage: Storage, artifact_id: str, file: FileEntry) -> None:
    if storage.size(file.sha256) != file.size_bytes:
        raise ArtifactGone(
            f"The bytes of {file.path!r} of {artifact_id} are not in the store any more. Run its job again with"
            ' "force": true.'
        )


def _pack(storage: Storage, files: list[FileEntry], headers: list[bytes]) -> Iterator[bytes]:
    for file, header in zip(files, headers, strict=True):
        yield header
        yield from storage.read(file.sha256)
        yield bytes(_padded(file.size_bytes) - file.size_bytes)
    yield END_OF_ARCHIVE


def _header(artifact_id: str, file: FileEntry) -> bytes:
    info = tarfile.TarInfo(f"{artifact_id}/{file.path}")
    info.size = file.size_bytes
    info.mode = 0o644
    return info.tobuf(tarfile.PAX_FORMAT)  # PAX: no limit on sizes and names


def _padded(size_bytes: int) -> int:
    return -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES


def _conditions(filters: ArtifactFilters) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [
        column == value
        for column, value in (
            (Artifact.kind, filters.kind),
            (Artifact.job_id, filters.job),
            (Artifact.checkpoint_id, filters.checkpoint),
        )
        if value is not None
    ]
    return [*conditions, *made_between(Artifact.created_at, filters.created_after, filters.created_before)]
