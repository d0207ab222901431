"""Models: names with versions, and the aliases that move between the versions."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db import models as rows
from app.db.engine import Sessions
from app.db.models import AliasKey
from app.db.paging import made_between, paginate
from app.db.tables import Model, ModelAlias, ModelAliasChange
from app.domain.checkpoints import CheckpointState
from app.domain.errors import (
    CheckpointNotReady,
    FieldProblem,
    Invalid,
    PreconditionFailed,
    PreconditionRequired,
    UnknownCheckpoint,
)
from app.domain.registrations import AliasRequest
from app.domain.views.models import AliasChangeView, AliasView, ModelDetailView, ModelView
from app.domain.views.pages import Page, PageRequest
from app.services.actors import Actor


@dataclass(frozen=True)
class Condition:
    """What a change of an alias is based on: the revision of If-Match, or `is_new` for If-None-Match: *."""

    revision: int | None = None
    is_new: bool = False


def list_(
    sessions: Sessions,
    actor: Actor,
    page: PageRequest,
    *,
    created_after: datetime | None,
    created_before: datetime | None,
) -> Page[ModelView]:
    """Return a page of models, by name or by when the name was first used. Raises: BadCursor."""
    between = made_between(Model.created_at, created_after, created_before)
    statement = select(Model).where(Model.project_id == actor.project_id, *between)
    filters = {"created_after": created_after, "created_before": created_before}
    with sessions.read() as session:
        at = Model.created_at if page.order.endswith("created_at") else None
        found, following = paginate(session, statement, key=Model.name, at=at, request=page, filters=filters)
        return Page(items=rows.views(session, actor.project_id, found), next_cursor=following)


def get(sessions: Sessions, actor: Actor, name: str) -> ModelDetailView:
    """Return a model with its newest versions. Raises: NotFound."""
    with sessions.read() as session:
        return rows.detail(session, actor.project_id, name)


def get_alias(sessions: Sessions, actor: Actor, name: str, alias: str) -> AliasView:
    """Return an alias. Raises: NotFound."""
    with sessions.read() as session:
        return rows.get_alias(session, AliasKey(actor.project_id, name, alias))


def put_alias(  # noqa: PLR0913 (who, what, whither, on what condition)
    sessions: Sessions, actor: Actor, name: str, alias: str, request: AliasRequest, condition: Condition
) -> tuple[AliasView, bool]:
    """Move an alias from the revision the caller has seen, or make one; return it and whether it was made.

    Raises: NotFound, PreconditionRequired, PreconditionFailed, Invalid, UnknownCheckpoint, CheckpointNotReady.
    """
    _check_alias(alias)
    key = AliasKey(actor.project_id, name, alias)
    if condition.revision is None and not condition.is_new:
        raise PreconditionRequired(
            "Moving an alias needs If-Match with the ETag it was read with, making one needs If-None-Match: *."
        )
    with sessions.begin() as session:
        rows.find(session, actor.project_id, key.name)
        row = rows.lock_alias(session, key)
        _check_condition(key, row, condition)
        _check_version(session, key, request.version)
        changed = rows.put_alias(session, actor, key, row, request.version)
        return rows.alias_view(session, changed), row is None


def delete_alias(sessions: Sessions, actor: Actor, name: str, alias: str, condition: Condition) -> None:
    """Delete an alias. Raises: NotFound, PreconditionFailed."""
    key = AliasKey(actor.project_id, name, alias)
    with sessions.begin() as session:
        row = rows.lock_alias(session, key)
        if row is None:
            raise rows.alias_not_found(session, key)
        if condition.revision is not None:
            _check_condition(key, row, condition)
        rows.delete_alias(session, actor, key, row)


def list_alias_changes(
    sessions: Sessions, actor: Actor, name: str, alias: str, page: PageRequest
) -> Page[AliasChangeView]:
    """Return a page of an alias's changes, also of one that was deleted. Raises: NotFound, BadCursor."""
    statement = select(ModelAliasChange).where(
        ModelAliasChange.project_id == actor.project_id, ModelAliasChange.name == name, ModelAliasChange.alias == alias
    )
    with sessions.read() as session:
        if session.scalar(statement.limit(1)) is None:
            raise rows.alias_not_found(session, AliasKey(actor.project_id, name, alias))
        filters = {"name": name, "alias": alias}
        found, cursor = paginate(session, statement, key=ModelAliasChange.id, request=page, filters=filters)
        return Page(items=[rows.change_view(row) for row in found], next_cursor=cursor)


def _check_alias(alias: str) -> None:
    if alias.isdigit():
        message = f"an alias of digits alone, {alias!r}, would read as a version; add a letter"
        raise Invalid(f"The alias is not valid: {message}.", errors=[FieldProblem("/path/alias", message)])


def _check_condition(key: AliasKey, row: ModelAlias | None, condition: Condition) -> None:
    named = f"{key.name}@{key.alias}"
    if row is None and not condition.is_new:
        raise PreconditionFailed(f"{named} does not exist (any more). Make it with If-None-Match: *.")
    if row is not None and condition.is_new:
        raise PreconditionFailed(f"{named} exists, at version {row.version}. Move it with If-Match and its ETag.")
    if row is not None and row.revision != condition.revision:
        raise PreconditionFailed(
            f"{named} has the revision {row.revision}, If-Match names {condition.revision}. Read it"
            " again, then decide anew."
        )


def _check_version(session: Session, key: AliasKey, version: int) -> None:
    row = rows.find_version(session, key.project_id, key.name, version)
    if row is None:
        message = f"{key.name!r} has no version {version}; GET /v1/models/{key.name} lists its versions"
        raise UnknownCheckpoint(f"{message}.", errors=[FieldProblem("/version", message)])
    if row.state != CheckpointState.READY:
        message = f"{key.name}@{version} is {row.state}; an alias names a ready version"
        raise CheckpointNotReady(f"{message}.", errors=[FieldProblem("/version", message)])
