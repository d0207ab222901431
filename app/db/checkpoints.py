"""Rows of checkpoints: adding versions of a name, finding them by ref, keeping their manifests.

Refs in bodies go through `resolve` (all faults named at once), refs in paths through `find`. What keeps a checkpoint
from being deleted is in deletion.py, what it was made from in lineage.py.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Insert, Select, Text, cast, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.db.owners import Owner
from app.db.tables import Checkpoint, CheckpointManifest, Model, ModelAlias, utc_now
from app.domain.checkpoints import CheckpointKind, CheckpointState, Manifest
from app.domain.errors import CheckpointNotReady, FieldProblem, NotFound, UnknownCheckpoint, near_match
from app.domain.identifiers import Reference, new_id, parse_reference
from app.domain.views.checkpoints import CheckpointView

NEAR_NAMES = 1000  # how many names are looked through for a near match


def view(row: Checkpoint) -> CheckpointView:
    """Return what a caller sees of a checkpoint."""
    return CheckpointView.model_validate(
        {
            "base_checkpoint": row.base_checkpoint_id,
            "job": row.job_id,
            "artifact": row.artifact_id,
            **{name: getattr(row, name) for name in CheckpointView.model_fields if hasattr(row, name)},
        }
    )


# --- finding ------------------------------------------------------------------------------------------------------


def resolve(session: Session, project_id: str, refs: Sequence[tuple[str, str]]) -> list[Checkpoint]:
    """Return the ready checkpoints that a body names, in order; refs are (JSON pointer, text).

    The rows are locked against deletion until the transaction ends.
    Raises: UnknownCheckpoint naming every unknown ref; CheckpointNotReady naming all that import or are invalid.
    """
    found = [_find(session, project_id, text, is_locked=True) for _, text in refs]
    unknown = [ref for ref, row in zip(refs, found, strict=True) if row is None]
    if unknown:
        problems = [_unknown(session, project_id, pointer, text) for pointer, text in unknown]
        raise UnknownCheckpoint(_sentence(problems), errors=problems)
    rows = [row for row in found if row is not None]
    waiting = [
        FieldProblem(pointer, _not_ready(text, row))
        for (pointer, text), row in zip(refs, rows, strict=True)
        if row.state != CheckpointState.READY
    ]
    if waiting:
        raise CheckpointNotReady(_sentence(waiting), errors=waiting)
    return rows


def find(session: Session, project_id: str, text: str, *, is_locked: bool = False) -> Checkpoint:
    """Return the checkpoint that a path names, in whatever state; a bare name is its latest ready, else latest version.

    `is_locked`: keep others from changing it until the transaction ends. Raises: NotFound.
    """
    row = _find(session, project_id, text)
    if row is None:
        raise NotFound(_unknown(session, project_id, "", text).message)
    if is_locked:
        session.refresh(row, with_for_update=True)
        if row.deleted_at is not None:
            raise NotFound(f"{text!r} was deleted a moment ago.")
    return row


def find_tombstone(session: Session, project_id: str, checkpoint_id: str) -> Checkpoint | None:
    """Return a deleted checkpoint by its id, or None."""
    row = session.get(Checkpoint, checkpoint_id)
    return row if row is not None and row.project_id == project_id and row.deleted_at is not None else None


def load_manifest(session: Session, checkpoint_id: str) -> Manifest:
    """Return the manifest of a ready checkpoint. Raises: NotFound."""
    row = session.get(CheckpointManifest, checkpoint_id)
    if row is None:
        raise NotFound(f"{checkpoint_id} has no manifest: it is not imported yet, or its import failed.")
    return Manifest.model_validate(row.document)


def load_manifests(session: Session, checkpoint_ids: Sequence[str]) -> dict[str, Manifest]:
    """Return the manifests of ready checkpoints by id, read at once. Raises: NotFound."""
    text = cast(CheckpointManifest.document, Text)  # parsed once, by pydantic: a manifest may name 200,000 tensors
    wanted = CheckpointManifest.checkpoint_id.in_(checkpoint_ids)
    statement = select(CheckpointManifest.checkpoint_id, text).where(wanted)
    found = {name: Manifest.model_validate_json(document) for name, document in session.execute(statement)}
    for checkpoint_id in checkpoint_ids:
        if checkpoint_id not in found:
            raise NotFound(f"{checkpoint_id} has no manifest: it is not imported yet, or its import failed.")
    return found


def _find(session: Session, project_id: str, text: str, *, is_locked: bool = False) -> Checkpoint | None:
    try:
        reference = parse_reference(text)
    except ValueError:
        return None
    statement = _matching(session, project_id, reference)
    if statement is None:
        return None
    if is_locked:
        statement = statement.with_for_update(read=True, key_share=True)
    return session.scalars(statement.limit(1)).first()


def _matching(session: Session, project_id: str, reference: Reference) -> Select[Checkpoint] | None:
    """Return the query whose first row a ref means, or None when an alias is unknown."""
    statement = select(Checkpoint).where(Checkpoint.project_id == project_id, Checkpoint.deleted_at.is_(None))
    if reference.id is not None:
        return statement.where(Checkpoint.id == reference.id)
    if reference.content_digest is not None:
        statement = statement.where(Checkpoint.content_digest == reference.content_digest)
        return statement.order_by(Checkpoint.id.desc())
    statement = statement.where(Checkpoint.name == reference.name)
    version = reference.version
    if reference.alias is not None:
        alias = session.get(ModelAlias, (project_id, reference.name, reference.alias))
        if alias is None:
            return None
        version = alias.version
    if version is not None:
        return statement.where(Checkpoint.version == version)
    is_ready = (Checkpoint.state == CheckpointState.READY).desc()
    return statement.order_by(is_ready, Checkpoint.version.desc())


def _unknown(session: Session, project_id: str, pointer: str, text: str) -> FieldProblem:
    name = text.split("@", 1)[0]
    names = select(Checkpoint.name).where(Checkpoint.project_id == project_id, Checkpoint.deleted_at.is_(None))
    known = list(session.scalars(names.distinct().order_by(Checkpoint.name).limit(NEAR_NAMES)))
    if name in known and "@" in text:
        return FieldProblem(pointer, f"{name!r} has no version or alias {text.split('@', 1)[1]!r}.")
    near = near_match(name, known)
    hint = f" Did you mean {near!r}?" if near else " GET /v1/checkpoints lists what there is."
    return FieldProblem(pointer, f"No checkpoint is named {text!r}.{hint}", near)


def _not_ready(text: str, row: Checkpoint) -> str:
    if row.state == CheckpointState.IMPORTING:
        return f"{text!r} is still importing; wait for {row.job_id} and send the request again."
    detail = (row.problem or {}).get("detail", "its import failed")
    return f"{text!r} is invalid: {detail}"


def _sentence(problems: Sequence[FieldProblem]) -> str:
    return " ".join(problem.message for problem in problems)


# --- adding and changing ------------------------------------------------------------------------------------------


def add_importing(  # noqa: PLR0913 (one column each)
    session: Session,
    owner: Owner,
    *,
    name: str,
    job_id: str,
    uri: str | None,
    storage: str,
    sources: dict[str, Any] | None,
    base_checkpoint_id: str | None,
    task: str | None,
    tags: dict[str, str],
) -> Checkpoint:
    """Add the next version of a name, to be imported by a job."""
    row = Checkpoint(
        id=new_id("ckpt"),
        project_id=owner.project_id,
        actor=owner.name,
        name=name,
        version=_next_version(session, owner.project_id, name),
        kind=CheckpointKind.DENSE,
        state=CheckpointState.IMPORTING,
        uri=uri,
        storage=storage,
        sources=sources,
        base_checkpoint_id=base_checkpoint_id,
        task=task,
        tags=dict(tags),
        job_id=job_id,
    )
    session.add(row)
    session.flush()
    return row


def add_produced(  # noqa: PLR0913 (one column each)
    session: Session,
    owner: Owner,
    *,
    name: str,
    kind: CheckpointKind,
    manifest: Manifest,
    job_id: str,
    artifact_id: str,
    base_checkpoint_id: str | None,
    task: str | None,
    tags: dict[str, str],
    expires_at: datetime | None = None,
) -> CheckpointView:
    """Add what a job made as the next version of a name, ready at once."""
    row = Checkpoint(
        id=new_id("ckpt"),
        project_id=owner.project_id,
        actor=owner.name,
        name=name,
        version=_next_version(session, owner.project_id, name),
        storage="copy",
        base_checkpoint_id=base_checkpoint_id,
        task=task,
        tags=dict(tags),
        job_id=job_id,
        expires_at=expires_at,
        **_described(manifest, artifact_id) | {"kind": kind},
    )
    session.add(row)
    session.flush()
    _keep_manifest(session, row.id, manifest)
    return view(row)


def mark_ready(session: Session, checkpoint_id: str, manifest: Manifest, artifact_id: str | None) -> bool:
    """Complete an import; False when the checkpoint does not wait for it any more."""
    waiting = update(Checkpoint).where(
        Checkpoint.id == checkpoint_id,
        Checkpoint.state == CheckpointState.IMPORTING,
        Checkpoint.deleted_at.is_(None),
    )
    values = _described(manifest, artifact_id) | {"problem": None, "revision": Checkpoint.revision + 1}
    if session.execute(waiting.values(**values).returning(Checkpoint.id)).first() is None:
        return False
    _keep_manifest(session, checkpoint_id, manifest)
    return True


def change(session: Session, row: Checkpoint, *, task: str | None, tags: dict[str, str]) -> None:
    """Change what a caller may change; the row is locked (`find(..., is_locked=True)`)."""
    row.task = task
    row.tags = dict(tags)
    row.revision += 1
    session.flush()


def _next_version(session: Session, project_id: str, name: str) -> int:
    """Return the next version number of a name; concurrent callers get different ones."""
    values = {"project_id": project_id, "name": name, "last_version": 1, "created_at": utc_now()}
    raised = {"last_version": Model.last_version + 1}
    keys = [Model.project_id, Model.name]
    statement: Insert
    if session.get_bind().dialect.name == "postgresql":
        statement = postgresql.insert(Model).values(values).on_conflict_do_update(index_elements=keys, set_=raised)
    else:
        statement = sqlite.insert(Model).values(values).on_conflict_do_update(index_elements=keys, set_=raised)
    return session.execute(statement.returning(Model.last_version)).scalar_one()


def _described(manifest: Manifest, artifact_id: str | None) -> dict[str, Any]:
    return {
        "state": CheckpointState.READY,
        "kind": manifest.kind,
        "content_digest": manifest.digest,
        "weights_digest": manifest.weights_digest,
        "size_bytes": manifest.size_bytes,
        "n_tensors": len(manifest.tensors),
        "n_parameters": manifest.n_parameters,
        "dtype": next(iter(manifest.dtypes), None),
        "architecture": manifest.architecture,
        "artifact_id": artifact_id,
        "updated_at": utc_now(),
    }


def _keep_manifest(session: Session, checkpoint_id: str, manifest: Manifest) -> None:
    values = {
        "checkpoint_id": checkpoint_id,
        "format_version": manifest.format_version,
        "document": manifest.model_dump(mode="json"),
    }
    session.execute(insert(CheckpointManifest).values(values))
