"""Uploads: files sent one by one, each whole or not at all; complete, they become a checkpoint.

A file is stored as soon as it has arrived, so a broken connection costs one file: send again what `files`
does not list.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy.orm import Session

from app.db import checkpoints as checkpoint_rows
from app.db import uploads as rows
from app.db.engine import Sessions
from app.db.tables import Upload, utc_now
from app.domain.checkpoints import FileEntry
from app.domain.errors import DigestMismatch, FieldProblem, Invalid, UnsafeFormat, UploadClosed, UploadIncomplete
from app.domain.registrations import CONVERT_ADVICE, PICKLE_SUFFIXES, WEIGHTS_SUFFIX, UploadRequest
from app.domain.views.checkpoints import ImportView
from app.domain.views.uploads import UploadView
from app.services import importing, jobs
from app.services.actors import Actor
from app.services.idempotency import IdempotentRequest, replay, store_answer
from app.services.wiring import Wiring
from app.storage.base import Storage, TempObject

MAX_PATH_CHARACTERS = 512
MAX_FILES = 2000
MAX_INDEX_BYTES = 64_000_000
INDEX_SUFFIX = ".safetensors.index.json"
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Arrival:
    """A file on its way into an upload."""

    upload_id: str
    path: str
    temp: TempObject


def begin(
    wiring: Wiring, actor: Actor, request: UploadRequest, idempotency: IdempotentRequest | None = None
) -> UploadView:
    """Open an upload. Raises: UnknownCheckpoint, CheckpointNotReady; Replayed, IdempotencyKeyReused."""
    expires_at = utc_now() + timedelta(seconds=wiring.defaults.upload_expires_seconds)
    with wiring.sessions.begin() as session:
        replay(session, actor, idempotency)
        content = request.model_dump(mode="json")
        if request.base_checkpoint is not None:
            base = checkpoint_rows.resolve(session, actor.project_id, [("/base_checkpoint", request.base_checkpoint)])[
                0
            ]
            content["base_checkpoint"] = base.id
        row = rows.add(session, actor, request=content, expires_at=expires_at)
        opened = rows.view(row, [])
        store_answer(session, actor, idempotency, opened, f"/v1/checkpoints/uploads/{opened.id}")
        return opened


def get(sessions: Sessions, actor: Actor, upload_id: str) -> UploadView:
    """Return an upload with its complete files. Raises: NotFound."""
    with sessions.read() as session:
        row = rows.find(session, actor.project_id, upload_id)
        return rows.view(row, rows.list_files(session, upload_id))


def receive(wiring: Wiring, actor: Actor, upload_id: str, path: str, announced_bytes: int | None) -> Arrival:
    """Return where a file's bytes go, if the upload may take it. `announced_bytes`: its Content-Length, if any.

    Raises: NotFound, UploadClosed, Invalid, UnsafeFormat, OutOfDisk.
    """
    check_path(path)
    with wiring.sessions.read() as session:
        _check_open(rows.find(session, actor.project_id, upload_id))
    importing.check_room(wiring.storage, announced_bytes or 0, f"The file {path!r}")
    return Arrival(upload_id, path, wiring.storage.new_temp())


def keep(wiring: Wiring, actor: Actor, arrival: Arrival, *, announced_sha256: str | None) -> tuple[FileEntry, bool]:
    """Store a file that has arrived whole; return it and whether its path is new.

    Raises: DigestMismatch, NotFound, UploadClosed, Invalid, OutOfDisk, Unavailable.
    """
    path, temp = arrival.path, arrival.temp
    if announced_sha256 is not None and announced_sha256 != temp.sha256:
        raise DigestMismatch(
            f"{path!r}: Content-Digest announces sha-256 {announced_sha256}, the {temp.size_bytes} bytes received have"
            f" {temp.sha256}. Send the file again."
        )
    entry = FileEntry(path=path, size_bytes=temp.size_bytes, sha256=temp.sha256)
    temp.publish()
    with wiring.sessions.begin() as session:
        row = rows.find(session, actor.project_id, arrival.upload_id, is_locked=True)
        _check_open(row)
        is_new = rows.put_file(session, row.id, entry)
        _check_files(rows.list_files(session, row.id))
        row.expires_at = utc_now() + timedelta(seconds=wiring.defaults.upload_expires_seconds)
        return entry, is_new


def complete(wiring: Wiring, actor: Actor, upload_id: str, idempotency: IdempotentRequest | None = None) -> ImportView:
    """Turn an upload into a checkpoint; a job checks and hashes it.

    Raises: NotFound, UploadClosed, UploadIncomplete, UnknownCheckpoint, CheckpointNotReady, Unavailable; Replayed,
        IdempotencyKeyReused.
    """
    if idempotency is not None:
        with wiring.sessions.begin() as session:
            replay(session, actor, idempotency)
    listed = get(wiring.sessions, actor, upload_id)
    if listed.state == "open":
        _check_complete(wiring.storage, listed.files)
    with wiring.sessions.begin() as session:
        replay(session, actor, idempotency)
        row = rows.find(session, actor.project_id, upload_id, is_locked=True)
        _check_open(row)
        begun = _begin_import(session, wiring, actor, row)
        store_answer(session, actor, idempotency, begun, f"/v1/checkpoints/{begun.checkpoint.id}")
    jobs.hint(wiring.queue, [begun.job])
    return begun


def check_path(path: str) -> None:
    """Return if a path is plain: names of letters, digits, `.`, `_`, `-`, joined by `/`, none beginning with a dot.

    Raises: Invalid; UnsafeFormat for a pickle.
    """
    segments = path.split("/")
    is_plain = len(path) <= MAX_PATH_CHARACTERS and all(_SEGMENT.fullmatch(segment) for segment in segments)
    if not is_plain:
        message = (
            f"found {path[:200]!r}, expected a relative path of at most {MAX_PATH_CHARACTERS} characters whose names"
            " hold letters, digits, '.', '_' and '-' and do not begin with a dot"
        )
        raise Invalid(f"The file's path is not allowed: {message}.", errors=[FieldProblem("/path/path", message)])
    if path.endswith(PICKLE_SUFFIXES):
        raise UnsafeFormat(f"{path!r} is a pickle, which can run code. {CONVERT_ADVICE}")


def _begin_import(session: Session, wiring: Wiring, actor: Actor, row: Upload) -> ImportView:
    origin = importing.Origin(storage="copy", upload_id=row.id)
    request = UploadRequest.model_validate(row.request)
    begun = importing.begin(session, actor, wiring.defaults, request, origin)
    row.state = "completed"
    row.checkpoint_id = begun.checkpoint.id
    row.revision += 1
    return begun


def _check_open(row: Upload) -> None:
    if row.state != "open" or row.expires_at <= utc_now():
        state = "expired" if row.state == "open" else row.state
        raise UploadClosed(f"The upload {row.id} is {state}. Begin a new one with POST /v1/checkpoints/uploads.")


def _check_files(files: Sequence[FileEntry]) -> None:
    """Refuse a path that is a folder of another, and more files than a checkpoint has."""
    if len(files) > MAX_FILES:
        raise Invalid(
            f"The upload has {len(files)} files, at most {MAX_FILES} are taken. Leave out what is not needed."
        )
    paths = {file.path for file in files}
    for path in sorted(paths):
        parents = [path[:at] for at, character in enumerate(path) if character == "/"]
        clashing = next((parent for parent in parents if parent in paths), None)
        if clashing is not None:
            message = f"{clashing!r} is a file, so {path!r} cannot lie below it"
            raise Invalid(f"The file's path is not allowed: {message}.", errors=[FieldProblem("/path/path", message)])


def _check_complete(storage: Storage, files: Sequence[FileEntry]) -> None:
    """Look whether the weights, and all that an index names, have arrived."""
    paths = {file.path for file in files}
    if not any(path.endswith(WEIGHTS_SUFFIX) for path in paths):
        raise UploadIncomplete(f"The upload has {len(paths)} files, but none is {WEIGHTS_SUFFIX}. Send the weights.")
    for file in files:
        if file.path.endswith(INDEX_SUFFIX) and file.size_bytes <= MAX_INDEX_BYTES:
            folder = file.path.rpartition("/")[0]
            named = _read_index(b"".join(storage.read(file.sha256)))
            missing = sorted(name for name in named if (f"{folder}/{name}" if folder else name) not in paths)
            if missing:
                shown = ", ".join(missing[:10])
                raise UploadIncomplete(f"{file.path!r} names {len(missing)} files not yet sent: {shown}. Send them.")


def _read_index(content: bytes) -> set[str]:
    """Return the files that an index names; one that cannot be read names none, and the import will say so."""
    try:
        placed = json.loads(content)["weight_map"]
        return {file for file in placed.values() if isinstance(file, str)}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return set()
