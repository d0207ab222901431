"""Checkpoints: registering, looking at, changing, comparing and deleting stored models. Imports are in importing.py."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from app.db import checkpoints as rows
from app.db import deletion, lineage
from app.db.engine import Sessions
from app.db.paging import made_between, paginate, paginate_sorted
from app.db.tables import Checkpoint
from app.domain.checkpoints import CheckpointKind, CheckpointState
from app.domain.errors import (
    CheckpointNotReady,
    MissingWeights,
    PreconditionFailed,
    UnsafeFormat,
)
from app.domain.merge_sets import compare_manifests
from app.domain.registrations import (
    CONVERT_ADVICE,
    PICKLE_SUFFIXES,
    WEIGHTS_SUFFIX,
    CheckpointChange,
    CheckpointRequest,
    CompatibilityRequest,
)
from app.domain.sources import SourceListing
from app.domain.views.checkpoints import CheckpointView, CompatibilityView, ImportView, LineageView, TensorView
from app.domain.views.pages import Page, PageRequest
from app.services import freeing, importing, jobs
from app.services.actors import Actor
from app.services.idempotency import IdempotentRequest, replay, store_answer
from app.services.wiring import Wiring
from app.storage.base import Storage

SHOWN_DIFFERENCES = 1000


@dataclass(frozen=True)
class CheckpointFilters:
    """What narrows a list of checkpoints; None: anything."""

    name: str | None = None
    state: CheckpointState | None = None
    kind: CheckpointKind | None = None
    task: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    created_after: datetime | None = None
    created_before: datetime | None = None


def register(
    wiring: Wiring, actor: Actor, request: CheckpointRequest, idempotency: IdempotentRequest | None = None
) -> ImportView:
    """Register what lies at a URI as the next version of a name; a job checks and hashes it.

    Raises: UriNotAllowed, UriNotFound, UnsafeFormat, MissingWeights, UnknownCheckpoint, CheckpointNotReady, OutOfDisk,
        Unavailable; Replayed, IdempotencyKeyReused.
    """
    if idempotency is not None:
        with wiring.sessions.begin() as session:
            replay(session, actor, idempotency)  # before the URI is looked at: it may be gone by now
    listing = wiring.sources.look(request.uri)
    _check_listing(request.uri, listing)
    if request.storage == "copy":
        importing.check_room(wiring.storage, listing.size_bytes, f"A copy of {request.uri!r}")
    origin = importing.Origin(storage=request.storage, uri=request.uri, listing=listing)
    with wiring.sessions.begin() as session:
        replay(session, actor, idempotency)
        begun = importing.begin(session, actor, wiring.defaults, request, origin)
        store_answer(session, actor, idempotency, begun, f"/v1/checkpoints/{begun.checkpoint.id}")
    jobs.hint(wiring.queue, [begun.job])
    return begun


def get(sessions: Sessions, actor: Actor, ref: str) -> CheckpointView:
    """Return a checkpoint. Raises: NotFound."""
    with sessions.read() as session:
        return rows.view(rows.find(session, actor.project_id, ref))


def list_(sessions: Sessions, actor: Actor, filters: CheckpointFilters, page: PageRequest) -> Page[CheckpointView]:
    """Return a page of checkpoints. Raises: BadCursor."""
    statement = select(Checkpoint).where(
        Checkpoint.project_id == actor.project_id, Checkpoint.deleted_at.is_(None), *_conditions(filters)
    )
    given = {**vars(filters), "tags": sorted(filters.tags.items())}
    with sessions.read() as session:
        found, cursor = paginate(session, statement, key=Checkpoint.id, request=page, filters=given)
        return Page(items=[rows.view(row) for row in found], next_cursor=cursor)


def change(
    sessions: Sessions, actor: Actor, ref: str, request: CheckpointChange, *, if_revision: int | None
) -> CheckpointView:
    """Change what the request names; what it leaves out stays. Raises: NotFound, PreconditionFailed."""
    with sessions.begin() as session:
        row = _lock(session, actor, ref, if_revision)
        given = request.model_fields_set
        rows.change(
            session,
            row,
            task=request.task if "task" in given else row.task,
            tags=request.tags if "tags" in given else dict(row.tags),
        )
        return rows.view(row)


def delete(sessions: Sessions, storage: Storage, actor: Actor, ref: str, *, if_revision: int | None) -> None:
    """Delete a checkpoint and the artifact it is; a tombstone stays for the lineage.

    Raises: NotFound, PreconditionFailed; ResourceInUse while a job, a checkpoint, a task or an alias needs it.
    """
    with sessions.begin() as session:
        row = _lock(session, actor, ref, if_revision)
        unnamed = deletion.find_unnamed(session, deletion.delete_checkpoint(session, row))
    freeing.free_bytes(storage, unnamed)


def list_tensors(sessions: Sessions, actor: Actor, ref: str, *, limit: int, cursor: str | None) -> Page[TensorView]:
    """Return a page of a checkpoint's tensors, by name. Raises: NotFound, CheckpointNotReady, BadCursor."""
    with sessions.read() as session:
        row = rows.find(session, actor.project_id, ref)
        if row.state != CheckpointState.READY:
            raise CheckpointNotReady(f"{ref!r} is {row.state}; its tensors are known once its import has succeeded.")
        manifest = rows.load_manifest(session, row.id)
        filters = {"checkpoint": row.id}
    names = [tensor.name for tensor in manifest.tensors]
    page = paginate_sorted(names, limit=limit, cursor=cursor, filters=filters)
    items = [
        TensorView(
            name=tensor.name,
            dtype=tensor.dtype,
            shape=list(tensor.shape),
            n_elements=tensor.n_elements,
            size_bytes=tensor.size_bytes,
            file=tensor.file,
        )
        for tensor in manifest.tensors[page.start : page.end]
    ]
    return Page(items=items, next_cursor=page.next_cursor)


def trace_lineage(sessions: Sessions, actor: Actor, ref: str, *, depth: int) -> LineageView:
    """Return what a checkpoint was made from and what from it; an id may also name a deleted one. Raises: NotFound."""
    with sessions.read() as session:
        row = rows.find_tombstone(session, actor.project_id, ref) or rows.find(session, actor.project_id, ref)
        return lineage.trace(session, row, depth=depth)


def compare(sessions: Sessions, actor: Actor, request: CompatibilityRequest) -> CompatibilityView:
    """Compare the tensors of checkpoints from their manifests. Raises: UnknownCheckpoint, CheckpointNotReady."""
    refs = [(f"/models/{index}", text) for index, text in enumerate(request.models)]
    if request.base_model is not None:
        refs.insert(0, ("/base_model", request.base_model))
    with sessions.read() as session:
        found = rows.resolve(session, actor.project_id, refs)
        by_id = rows.load_manifests(session, [row.id for row in found])
    manifests = [by_id[row.id] for row in found]
    models = manifests[1:] if request.base_model is not None else manifests
    outcome = compare_manifests(manifests[0] if request.base_model is not None else None, models)
    return CompatibilityView(
        is_mergeable=outcome.is_mergeable,
        n_tensors=outcome.n_tensors,
        n_parameters=outcome.n_parameters,
        n_differences=len(outcome.differences),
        differences=list(outcome.differences[:SHOWN_DIFFERENCES]),
        tied=[list(group) for group in outcome.tied],
        vocab_sizes=list(outcome.vocab_sizes),
    )


def _check_listing(uri: str, listing: SourceListing) -> None:
    """Refuse what no import could read, from the names alone."""
    paths = [file.path for file in listing.files]
    if any(path.endswith(WEIGHTS_SUFFIX) for path in paths):
        return
    pickled = [path for path in paths if path.endswith(PICKLE_SUFFIXES)]
    if pickled:
        raise UnsafeFormat(f"{uri!r} has its weights in {pickled[0]!r}, a pickle, which can run code. {CONVERT_ADVICE}")
    raise MissingWeights(f"{uri!r} has {len(paths)} files, but none is {WEIGHTS_SUFFIX}. Name the checkpoint's folder.")


def _lock(session: Session, actor: Actor, ref: str, if_revision: int | None) -> Checkpoint:
    row = rows.find(session, actor.project_id, ref, is_locked=True)
    if if_revision is not None and row.revision != if_revision:
        raise PreconditionFailed(
            f"{ref!r} has the revision {row.revision}, If-Match names {if_revision}. Read it again, then decide anew."
        )
    return row


def _conditions(filters: CheckpointFilters) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [
        column == value
        for column, value in (
            (Checkpoint.name, filters.name),
            (Checkpoint.state, filters.state),
            (Checkpoint.kind, filters.kind),
            (Checkpoint.task, filters.task),
        )
        if value is not None
    ]
    conditions += [Checkpoint.tags[key].as_string() == value for key, value in filters.tags.items()]
    return [*conditions, *made_between(Checkpoint.created_at, filters.created_after, filters.created_before)]
