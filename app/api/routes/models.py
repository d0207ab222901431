"""Models: names with versions, and aliases that move between them."""

from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Body, Header, Path, Query, Response

from app.api.dependencies import ActorDep, SessionsDep
from app.api.etags import etag, parse_if_match, parse_if_none_match
from app.api.pages import CreatedAfterDep, CreatedBeforeDep, PageDep
from app.api.problems import problems
from app.domain.errors import (
    BadCursor,
    CheckpointNotReady,
    NotFound,
    PreconditionFailed,
    PreconditionRequired,
    UnknownCheckpoint,
)
from app.domain.identifiers import Name
from app.domain.registrations import AliasRequest
from app.domain.views.models import AliasChangeView, AliasView, ModelDetailView, ModelView
from app.domain.views.pages import DEFAULT_LIMIT, MAX_LIMIT, NameOrder, Order, Page, PageRequest
from app.services import models

router = APIRouter(prefix="/v1/models", tags=["models"])

ModelName = Annotated[str, Path(description="The name under which checkpoints are versions.")]
IfMatch = Annotated[str | None, Header(description="The ETag of the alias that the change is based on.")]
ALIAS_EXAMPLES = {"move": {"summary": "Name version 3", "value": {"version": 3}}}


@router.get("", operation_id="list_models", summary="List models", responses=problems(BadCursor))
def list_models(
    sessions: SessionsDep,
    actor: ActorDep,
    created_after: CreatedAfterDep,
    created_before: CreatedBeforeDep,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT,
    cursor: Annotated[str | None, Query(max_length=512)] = None,
    order: Annotated[Order | NameOrder, Query(description="By name, or by when it was first used.")] = "name",
) -> Page[ModelView]:
    """List the names that checkpoints have, with their aliases; by name."""
    page = PageRequest(limit=limit, cursor=cursor, order=order)
    return models.list_(sessions, actor, page, created_after=created_after, created_before=created_before)


@router.get("/{name}", operation_id="get_model", summary="Get a model", responses=problems(NotFound))
def get_model(name: ModelName, sessions: SessionsDep, actor: ActorDep) -> ModelDetailView:
    """Return a name with its newest versions and its aliases."""
    return models.get(sessions, actor, name)


@router.get("/{name}/aliases/{alias}", operation_id="get_alias", summary="Get an alias", responses=problems(NotFound))
def get_alias(name: ModelName, alias: str, response: Response, sessions: SessionsDep, actor: ActorDep) -> AliasView:
    """Return which version an alias names."""
    found = models.get_alias(sessions, actor, name, alias)
    response.headers["ETag"] = etag(found.revision)
    return found


@router.put(
    "/{name}/aliases/{alias}",
    operation_id="put_alias",
    summary="Make or move an alias",
    responses={
        201: {"description": "The alias was made", "model": AliasView},
        **problems(NotFound, PreconditionRequired, PreconditionFailed, UnknownCheckpoint, CheckpointNotReady),
    },
)
def put_alias(
    name: ModelName,
    alias: Name,
    body: Annotated[AliasRequest, Body(openapi_examples=ALIAS_EXAMPLES)],
    response: Response,
    sessions: SessionsDep,
    actor: ActorDep,
    if_match: IfMatch = None,
    if_none_match: Annotated[str | None, Header(description="*: make the alias, which is not there yet.")] = None,
) -> AliasView:
    """Move an alias to a version, from the revision that was read; or make one."""
    condition = models.Condition(parse_if_match(if_match), is_new=parse_if_none_match(if_none_match))
    changed, is_new = models.put_alias(sessions, actor, name, alias, body, condition)
    response.headers["ETag"] = etag(changed.revision)
    response.status_code = 201 if is_new else 200
    if is_new:
        response.headers["Location"] = f"/v1/models/{quote(name)}/aliases/{quote(alias)}"
    return changed


@router.delete(
    "/{name}/aliases/{alias}",
    operation_id="delete_alias",
    summary="Delete an alias",
    status_code=204,
    responses=problems(NotFound, PreconditionFailed),
)
def delete_alias(name: ModelName, alias: str, sessions: SessionsDep, actor: ActorDep, if_match: IfMatch = None) -> None:
    """Delete an alias; its history stays."""
    models.delete_alias(sessions, actor, name, alias, models.Condition(parse_if_match(if_match)))


@router.get(
    "/{name}/aliases/{alias}/history",
    operation_id="list_alias_changes",
    summary="List an alias's changes",
    responses=problems(NotFound, BadCursor),
)
def list_alias_changes(
    name: ModelName, alias: str, sessions: SessionsDep, actor: ActorDep, page: PageDep
) -> Page[AliasChangeView]:
    """List who moved an alias where and when, newest first."""
    return models.list_alias_changes(sessions, actor, name, alias, page)
