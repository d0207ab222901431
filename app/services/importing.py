"""Imports: a checkpoint that waits for its files to be checked, the job that does it, and what the job leaves behind.

Begun by registering a URI (checkpoints.py) or completing an upload (uploads.py), within their transaction. An import
that fails or is canceled leaves the checkpoint `invalid` (jobs.py).
"""

from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue
from sqlalchemy.orm import Session

from app.db import artifacts, uploads
from app.db import checkpoints as rows
from app.db.tables import Checkpoint
from app.domain.checkpoints import FileEntry, Manifest
from app.domain.errors import Conflict, InputChanged, OutOfDisk
from app.domain.identifiers import new_id
from app.domain.jobs import JobKind
from app.domain.registrations import PICKLE_SUFFIXES, UploadRequest
from app.domain.sources import SourceListing
from app.domain.views.checkpoints import ImportView
from app.domain.work import ImportOutcome, ImportWork, Outcome, Work
from app.services import jobs
from app.services.actors import Actor
from app.services.running import Claim, JobResult, Keepers
from app.services.wiring import Defaults
from app.storage.base import Storage

RESERVE_BYTES = 64 << 20  # room left for everybody else


@dataclass(frozen=True)
class Origin:
    """Where the files come from: a URI as it was looked at, or an upload."""

    storage: str  # reference | copy
    uri: str | None = None
    listing: SourceListing | None = None
    upload_id: str | None = None


def begin(session: Session, actor: Actor, defaults: Defaults, request: UploadRequest, origin: Origin) -> ImportView:
    """Add the checkpoint and its import job; hint the job after the commit.

    Raises: UnknownCheckpoint, CheckpointNotReady for the base checkpoint.
    """
    base = None
    if request.base_checkpoint is not None:
        base = rows.resolve(session, actor.project_id, [("/base_checkpoint", request.base_checkpoint)])[0]
    job_id = new_id("job")
    row = rows.add_importing(
        session,
        actor,
        name=request.name,
        job_id=job_id,
        uri=origin.uri,
        storage=origin.storage,
        sources=origin.listing.model_dump(mode="json") if origin.listing else None,
        base_checkpoint_id=base.id if base else None,
        task=request.task,
        tags=request.tags,
    )
    spec: dict[str, JsonValue] = {"checkpoint": row.id, "storage": origin.storage}
    spec |= {"uri": origin.uri} if origin.uri else {"upload": origin.upload_id}
    job = jobs.add(
        session,
        actor,
        kind=JobKind.IMPORT,
        spec=spec,
        inputs=(),
        max_attempts=defaults.max_attempts,
        timeout_seconds=defaults.timeout_seconds,
        tags=dict(request.tags),
        job_id=job_id,
    )
    return ImportView(checkpoint=rows.view(row), job=job)


def check_room(storage: Storage, size_bytes: int, what: str) -> None:
    """Return if the store has room for so many bytes. Raises: OutOfDisk."""
    free = storage.free_bytes()
    if free is not None and size_bytes + RESERVE_BYTES > free:
        raise OutOfDisk(
            f"{what} needs {size_bytes} bytes, the store has {free} left and keeps {RESERVE_BYTES} in reserve. Delete"
            " artifacts, give the store more room, or register by reference."
        )


class ImportSteps:
    """What an import does around its work (running.JobSteps)."""

    def prepare(self, keepers: Keepers, claim: Claim, scratch: Path) -> Work:
        """Fetch the files, or find them where they lie."""
        with keepers.sessions.read() as session:
            row = _find(session, claim)
            uri, storage, document = row.uri, row.storage, row.sources
            upload_id = claim.job.spec.get("upload")
            files = uploads.list_files(session, str(upload_id)) if uri is None else []
        if uri is None:
            return ImportWork(source=_fetch_upload(keepers, files))
        listing = SourceListing.model_validate(document)
        keepers.sources.check(uri, listing, watch=keepers.watch)
        if storage == "reference":
            return ImportWork(source=keepers.sources.fetch(uri, listing, watch=keepers.watch))
        return ImportWork(source=_fetch_copy(keepers, uri, listing))

    def record(self, session: Session, claim: Claim, outcome: Outcome) -> JobResult:
        """Make the checkpoint ready; what is not a reference becomes an artifact."""
        if not isinstance(outcome, ImportOutcome):
            raise TypeError(f"an import cannot record {type(outcome).__name__}")
        manifest = outcome.manifest
        row = _find(session, claim)
        artifact_id = None
        if row.storage == "copy":
            artifact_id = artifacts.add(
                session,
                claim.actor,
                kind="checkpoint",
                job_id=claim.job.id,
                checkpoint_id=row.id,
                files=manifest.files,
            ).id
            upload_id = claim.job.spec.get("upload")
            if upload_id is not None:
                uploads.forget_files(session, str(upload_id))
        else:
            row.sources = _narrow(SourceListing.model_validate(row.sources), manifest).model_dump(mode="json")
            session.flush()
        if not rows.mark_ready(session, row.id, manifest, artifact_id):
            raise Conflict(f"{row.id} is {row.state} and does not wait for an import; register it again.")
        result: dict[str, JsonValue] = {
            "checkpoint": row.id,
            "artifacts": [artifact_id] if artifact_id else [],
            "evaluations": [],
            "metrics": [],
        }
        return JobResult(result=result)


import_steps = ImportSteps()


def _find(session: Session, claim: Claim) -> Checkpoint:
    row = session.get(Checkpoint, str(claim.job.spec["checkpoint"]))
    if row is None or row.deleted_at is not None:
        raise Conflict(f"{claim.job.spec['checkpoint']} was deleted; there is nothing to import. Register it again.")
    return row


def _fetch_copy(keepers: Keepers, uri: str, listing: SourceListing) -> Path:
    """Put the listed files into the store and fetch them from there: what is checked is what is kept."""
    check_room(keepers.storage, listing.size_bytes, f"A copy of {uri!r}")
    wanted = [file for file in listing.files if not file.path.endswith(PICKLE_SUFFIXES)]
    keepers.watch.expect(sum(file.size_bytes for file in wanted))
    files: list[FileEntry] = []
    for file in wanted:
        with keepers.storage.new_temp(watch=keepers.watch) as temp:
            for data in keepers.sources.read_listed(uri, listing, file, watch=keepers.watch):
                temp.write(data)
            temp.publish()
            files.append(FileEntry(path=file.path, size_bytes=temp.size_bytes, sha256=temp.sha256))
    keepers.sources.check(uri, listing, watch=keepers.watch)
    folder = keepers.storage.fetch(files, watch=keepers.watch)
    return folder / files[0].path if listing.is_file else folder


def _fetch_upload(keepers: Keepers, files: list[FileEntry]) -> Path:
    if not files:
        raise Conflict("The files of the upload are gone: it ended too long ago. Upload them again.")
    return keepers.storage.fetch(files, watch=keepers.watch)


def _narrow(listing: SourceListing, manifest: Manifest) -> SourceListing:
    """Return the listing of the checkpoint's own files: a change of any other file beside them does not matter."""
    listed = {file.path: file for file in listing.files}
    for file in manifest.files:
        if file.path not in listed or listed[file.path].size_bytes != file.size_bytes:
            raise InputChanged(f"{file.path!r} changed while it was imported; register the checkpoint again.")
    return SourceListing(is_file=listing.is_file, files=tuple(listed[file.path] for file in manifest.files))
