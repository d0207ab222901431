"""Checkpoints: stored models, each a version of a name."""

from typing import Annotated

from fastapi import APIRouter, Body, Depends, Header, Path, Query, Response

from app.api.dependencies import ActorDep, IdempotencyDep, SessionsDep, StorageDep, WiringDep, accept_key
from app.api.etags import etag, parse_if_match
from app.api.pages import TAG_FILTERS, CreatedAfterDep, CreatedBeforeDep, PageDep, TagFiltersDep
from app.api.problems import problems
from app.api.schemas.checkpoints import (
    CHANGE_EXAMPLES,
    COMPATIBILITY_EXAMPLES,
    REGISTER_EXAMPLES,
    show,
    show_import,
)
from app.domain.checkpoints import CheckpointKind, CheckpointState
from app.domain.errors import (
    BadCursor,
    CheckpointNotReady,
    MissingWeights,
    NotFound,
    OutOfDisk,
    PreconditionFailed,
    ResourceInUse,
    UnknownCheckpoint,
    UnsafeFormat,
    UriNotAllowed,
    UriNotFound,
)
from app.domain.registrations import CheckpointChange, CheckpointRequest, CompatibilityRequest
from app.domain.views.checkpoints import CheckpointView, CompatibilityView, ImportView, LineageView, TensorView
from app.domain.views.pages import DEFAULT_LIMIT, MAX_LIMIT, Page
from app.services import checkpoints

router = APIRouter(prefix="/v1/checkpoints", tags=["checkpoints"])

Ref = Annotated[
    str, Path(description="An id, a name (its latest ready version), name@version, name@alias or sha256:….")
]
IfMatch = Annotated[str | None, Header(description="The ETag that the change is based on; left out: whatever it is.")]


@router.post(
    "",
    operation_id="register_checkpoint",
    summary="Register a checkpoint by URI",
    status_code=202,
    responses=problems(
        UriNotAllowed, UriNotFound, UnsafeFormat, MissingWeights, UnknownCheckpoint, CheckpointNotReady, OutOfDisk
    ),
)
def register_checkpoint(
    body: Annotated[CheckpointRequest, Body(openapi_examples=REGISTER_EXAMPLES)],
    response: Response,
    wiring: WiringDep,
    actor: ActorDep,
    idempotency: IdempotencyDep,
) -> ImportView:
    """Register what lies at a URI as the next version of a name. A job reads its headers, hashes and checks it."""
    begun = checkpoints.register(wiring, actor, body, idempotency)
    response.headers["Location"] = f"/v1/checkpoints/{begun.checkpoint.id}"
    return show_import(begun)


@router.get(
    "",
    operation_id="list_checkpoints",
    summary="List checkpoints",
    responses=problems(BadCursor),
    openapi_extra=TAG_FILTERS,
)
def list_checkpoints(
    sessions: SessionsDep,
    actor: ActorDep,
    page: PageDep,
    tags: TagFiltersDep,
    created_after: CreatedAfterDep,
    created_before: CreatedBeforeDep,
    name: Annotated[str | None, Query(max_length=128)] = None,
    state: CheckpointState | None = None,
    kind: CheckpointKind | None = None,
    task: Annotated[str | None, Query(max_length=128)] = None,
) -> Page[CheckpointView]:
    """List checkpoints, newest first. Tags are filtered by `tag.KEY=value`."""
    filters = checkpoints.CheckpointFilters(
        name=name,
        state=state,
        kind=kind,
        task=task,
        tags=tags,
        created_after=created_after,
        created_before=created_before,
    )
    found = checkpoints.list_(sessions, actor, filters, page)
    return Page(items=[show(item) for item in found.items], next_cursor=found.next_cursor)


@router.post(
    "/compatibility",
    operation_id="check_compatibility",
    summary="Say whether checkpoints can be merged",
    dependencies=[Depends(accept_key)],
    responses=problems(UnknownCheckpoint, CheckpointNotReady),
)
def check_compatibility(
    body: Annotated[CompatibilityRequest, Body(openapi_examples=COMPATIBILITY_EXAMPLES)],
    sessions: SessionsDep,
    actor: ActorDep,
) -> CompatibilityView:
    """Compare the tensors of checkpoints from their headers alone: missing, extra, other shapes, other dtypes."""
    return checkpoints.compare(sessions, actor, body)


@router.get("/{ref}", operation_id="get_checkpoint", summary="Get a checkpoint", responses=problems(NotFound))
def get_checkpoint(ref: Ref, response: Response, sessions: SessionsDep, actor: ActorDep) -> CheckpointView:
    """Return a checkpoint."""
    found = checkpoints.get(sessions, actor, ref)
    response.headers["ETag"] = etag(found.revision)
    return show(found)


@router.patch(
    "/{ref}",
    operation_id="change_checkpoint",
    summary="Change a checkpoint's task or tags",
    responses=problems(NotFound, PreconditionFailed),
)
def change_checkpoint(
    ref: Ref,
    body: Annotated[CheckpointChange, Body(openapi_examples=CHANGE_EXAMPLES)],
    response: Response,
    sessions: SessionsDep,
    actor: ActorDep,
    if_match: IfMatch = None,
) -> CheckpointView:
    """Change the task or all tags; what the body leaves out stays."""
    changed = checkpoints.change(sessions, actor, ref, body, if_revision=parse_if_match(if_match))
    response.headers["ETag"] = etag(changed.revision)
    return show(changed)


@router.delete(
    "/{ref}",
    operation_id="delete_checkpoint",
    summary="Delete a checkpoint",
    status_code=204,
    responses=problems(NotFound, PreconditionFailed, ResourceInUse),
)
def delete_checkpoint(
    ref: Ref, sessions: SessionsDep, storage: StorageDep, actor: ActorDep, if_match: IfMatch = None
) -> None:
    """Delete a checkpoint and its artifact. What was registered by reference is left where it lies."""
    checkpoints.delete(sessions, storage, actor, ref, if_revision=parse_if_match(if_match))


@router.get(
    "/{ref}/tensors",
    operation_id="list_tensors",
    summary="List a checkpoint's tensors",
    responses=problems(NotFound, CheckpointNotReady, BadCursor),
)
def list_tensors(
    ref: Ref,
    sessions: SessionsDep,
    actor: ActorDep,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT,
    cursor: Annotated[str | None, Query(max_length=2048)] = None,
) -> Page[TensorView]:
    """List names, dtypes, shapes and sizes of the tensors, by name."""
    return checkpoints.list_tensors(sessions, actor, ref, limit=limit, cursor=cursor)


@router.get(
    "/{ref}/lineage",
    operation_id="get_lineage",
    summary="Say what a checkpoint was made from, and what from it",
    responses=problems(NotFound),
)
def get_lineage(
    ref: Ref,
    sessions: SessionsDep,
    actor: ActorDep,
    depth: Annotated[int, Query(ge=1, le=10, description="Generations up and down.")] = 10,
) -> LineageView:
    """Return the lineage as nodes and edges. The id of a deleted checkpoint is known here."""
    return checkpoints.trace_lineage(sessions, actor, ref, depth=depth)
