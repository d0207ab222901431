"""Rows of models (names with versions) and of their aliases, with every change of an alias."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.db.owners import Owner
from app.db.tables import Checkpoint, Model, ModelAlias, ModelAliasChange, utc_now
from app.domain.checkpoints import CheckpointState
from app.domain.errors import NotFound, near_match
from app.domain.identifiers import new_id
from app.domain.views.models import AliasChangeView, AliasView, ModelDetailView, ModelView, VersionView

SHOWN_VERSIONS = 200
NEAR_NAMES = 1000


@dataclass(frozen=True)
class AliasKey:
    """Which alias of which model."""

    project_id: str
    name: str
    alias: str


def find(session: Session, project_id: str, name: str) -> Model:
    """Return a model's row. Raises: NotFound with a near match."""
    row = session.get(Model, (project_id, name))
    if row is None:
        names = select(Model.name).where(Model.project_id == project_id).order_by(Model.name).limit(NEAR_NAMES)
        near = near_match(name, session.scalars(names))
        hint = f" Did you mean {near!r}?" if near else " GET /v1/models lists what there is."
        raise NotFound(f"No model is named {name!r}.{hint}")
    return row


def views(session: Session, project_id: str, rows: Sequence[Model]) -> list[ModelView]:
    """Return what a caller sees of models, with a query for all of them each for versions and aliases."""
    names = [row.name for row in rows]
    is_ready = Checkpoint.state == CheckpointState.READY
    counted = (
        select(Checkpoint.name, func.count(), func.max(Checkpoint.version).filter(is_ready))
        .where(Checkpoint.project_id == project_id, Checkpoint.name.in_(names), Checkpoint.deleted_at.is_(None))
        .group_by(Checkpoint.name)
    )
    counts = {name: (n_versions, ready) for name, n_versions, ready in session.execute(counted)}
    aliases: dict[str, dict[str, int]] = {}
    listed = select(ModelAlias).where(ModelAlias.project_id == project_id, ModelAlias.name.in_(names))
    for alias in session.scalars(listed.order_by(ModelAlias.name, ModelAlias.alias)):
        aliases.setdefault(alias.name, {})[alias.alias] = alias.version
    return [
        ModelView(
            name=row.name,
            last_version=row.last_version,
            n_versions=counts.get(row.name, (0, None))[0],
            latest_ready_version=counts.get(row.name, (0, None))[1],
            aliases=aliases.get(row.name, {}),
            created_at=row.created_at,
        )
        for row in rows
    ]


def detail(session: Session, project_id: str, name: str) -> ModelDetailView:
    """Return a model with its newest versions. Raises: NotFound."""
    summary = views(session, project_id, [find(session, project_id, name)])[0]
    versions = session.scalars(
        select(Checkpoint)
        .where(Checkpoint.project_id == project_id, Checkpoint.name == name, Checkpoint.deleted_at.is_(None))
        .order_by(Checkpoint.version.desc())
        .limit(SHOWN_VERSIONS)
    )
    listed = [
        VersionView.model_validate(
            {
                "checkpoint": row.id,
                **{key: getattr(row, key) for key in VersionView.model_fields if hasattr(row, key)},
            }
        )
        for row in versions
    ]
    return ModelDetailView(**dict(summary), versions=listed)


def find_version(session: Session, project_id: str, name: str, version: int) -> Checkpoint | None:
    """Return a version that is not deleted, locked against deletion until the transaction ends, or None."""
    statement = select(Checkpoint).where(
        Checkpoint.project_id == project_id,
        Checkpoint.name == name,
        Checkpoint.version == version,
        Checkpoint.deleted_at.is_(None),
    )
    return session.scalar(statement.with_for_update(read=True, key_share=True))


# --- aliases ------------------------------------------------------------------------------------------------------


def get_alias(session: Session, key: AliasKey) -> AliasView:
    """Return an alias. Raises: NotFound."""
    row = session.get(ModelAlias, (key.project_id, key.name, key.alias))
    if row is None:
        raise alias_not_found(session, key)
    return alias_view(session, row)


def alias_not_found(session: Session, key: AliasKey) -> NotFound:
    """Return the error of an unknown alias, with a near match. Raises: NotFound when the model is unknown."""
    find(session, key.project_id, key.name)
    known = select(ModelAlias.alias).where(ModelAlias.project_id == key.project_id, ModelAlias.name == key.name)
    near = near_match(key.alias, session.scalars(known))
    hint = f" Did you mean {near!r}?" if near else ""
    return NotFound(f"The model {key.name!r} has no alias {key.alias!r}.{hint}")


def lock_alias(session: Session, key: AliasKey) -> ModelAlias | None:
    """Return an alias's row for changing, or None; the model's row is locked, so nobody else makes it meanwhile."""
    statement = select(Model).where(Model.project_id == key.project_id, Model.name == key.name)
    session.scalar(statement.with_for_update())
    return session.get(ModelAlias, (key.project_id, key.name, key.alias), populate_existing=True)


def put_alias(session: Session, owner: Owner, key: AliasKey, row: ModelAlias | None, version: int) -> ModelAlias:
    """Make or move an alias and record the change. Its revision goes on counting where an older one was deleted."""
    change = _record(session, owner, key, version=version, previous=row.version if row else None)
    if row is None:
        row = ModelAlias(project_id=key.project_id, name=key.name, alias=key.alias)
        session.add(row)
    row.version = version
    row.actor = owner.name
    row.updated_at = change.at
    row.revision = _count_changes(session, key)
    session.flush()
    return row


def delete_alias(session: Session, owner: Owner, key: AliasKey, row: ModelAlias) -> None:
    """Delete an alias and record it."""
    _record(session, owner, key, version=None, previous=row.version)
    session.delete(row)
    session.flush()


def alias_view(session: Session, row: ModelAlias) -> AliasView:
    """Return what a caller sees of an alias."""
    statement = select(Checkpoint.id).where(
        Checkpoint.project_id == row.project_id, Checkpoint.name == row.name, Checkpoint.version == row.version
    )
    return AliasView(
        model=row.name,
        alias=row.alias,
        version=row.version,
        checkpoint=session.execute(statement).scalar_one(),
        actor=row.actor,
        updated_at=row.updated_at,
        revision=row.revision,
    )


def change_view(row: ModelAliasChange) -> AliasChangeView:
    """Return what a caller sees of a change."""
    return AliasChangeView(version=row.version, previous_version=row.previous_version, actor=row.actor, at=row.at)


def _record(
    session: Session, owner: Owner, key: AliasKey, *, version: int | None, previous: int | None
) -> ModelAliasChange:
    change = ModelAliasChange(
        id=new_id("evt"),
        project_id=key.project_id,
        name=key.name,
        alias=key.alias,
        version=version,
        previous_version=previous,
        actor=owner.name,
        at=utc_now(),
    )
    session.add(change)
    session.flush()
    return change


def _count_changes(session: Session, key: AliasKey) -> int:
    counted = select(func.count()).where(
        ModelAliasChange.project_id == key.project_id,
        ModelAliasChange.name == key.name,
        ModelAliasChange.alias == key.alias,
    )
    return session.execute(counted).scalar_one()
