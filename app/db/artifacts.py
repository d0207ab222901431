"""Rows of artifacts and of the files they hold."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db import checkpoints
from app.db.owners import Owner
from app.db.tables import Artifact, ArtifactFile, Checkpoint
from app.domain.checkpoints import CheckpointKind, FileEntry, digest_json
from app.domain.errors import ArtifactGone, FieldProblem, Invalid, NotFound
from app.domain.identifiers import new_id
from app.domain.patches import MultitaskStorage, measure_storage
from app.domain.views.artifacts import ArtifactView


def add(  # noqa: PLR0913 (one column each)
    session: Session,
    owner: Owner,
    *,
    kind: Literal["checkpoint", "report"],
    job_id: str | None,
    checkpoint_id: str | None,
    files: Sequence[FileEntry],
    recipe: dict[str, Any] | None = None,
    recipe_digest: str | None = None,
) -> ArtifactView:
    """Add an artifact whose files are already in the store."""
    ordered = sorted(files, key=lambda file: file.path)
    row = Artifact(
        id=new_id("art"),
        project_id=owner.project_id,
        actor=owner.name,
        kind=kind,
        job_id=job_id,
        checkpoint_id=checkpoint_id,
        content_digest=digest_json([[file.path, file.size_bytes, file.sha256] for file in ordered]),
        size_bytes=sum(file.size_bytes for file in ordered),
        recipe=recipe,
        recipe_digest=recipe_digest,
    )
    session.add(row)
    session.flush()
    session.add_all(
        ArtifactFile(artifact_id=row.id, path=file.path, size_bytes=file.size_bytes, sha256=file.sha256)
        for file in ordered
    )
    session.flush()
    return view(row, ordered)


def name_checkpoint(session: Session, artifact_id: str, checkpoint_id: str) -> None:
    """Say which checkpoint an artifact is, where the checkpoint was added after it."""
    session.get_one(Artifact, artifact_id).checkpoint_id = checkpoint_id
    session.flush()


def find(session: Session, project_id: str, artifact_id: str) -> Artifact:
    """Return an artifact's row. Raises: NotFound."""
    row = session.scalar(select(Artifact).where(Artifact.project_id == project_id, Artifact.id == artifact_id))
    if row is None:
        raise NotFound(f"No artifact has the id {artifact_id!r}. GET /v1/artifacts lists what there is.")
    return row


def recipe_of(session: Session, job_id: str) -> dict[str, Any]:
    """Return the recipe that a job merged by. Raises: NotFound when what it made was deleted."""
    made = (Artifact.job_id == job_id, Artifact.kind == "checkpoint")
    recipe: dict[str, Any] | None = session.scalar(select(Artifact.recipe).where(*made))
    if recipe is None:
        raise NotFound(f"What job {job_id} made was deleted, and its recipe with it.")
    return recipe


def find_checkpoint(session: Session, project_id: str, artifact_id: str) -> Checkpoint:
    """Return the checkpoint that an artifact is; it stays until the transaction ends.

    Raises: NotFound; Invalid for a report; ArtifactGone.
    """
    artifact = find(session, project_id, artifact_id)
    if artifact.checkpoint_id is None:
        message = f"{artifact_id} is a {artifact.kind}, expected the artifact of a checkpoint"
        raise Invalid(f"{message}.", errors=[FieldProblem("/path/artifact_id", message)])
    row = session.get(Checkpoint, artifact.checkpoint_id, with_for_update={"read": True, "key_share": True})
    if row is None or row.deleted_at is not None:
        raise ArtifactGone(f"The checkpoint of {artifact_id} was deleted. Run its job again to make it anew.")
    return row


def get(session: Session, project_id: str, artifact_id: str) -> ArtifactView:
    """Return one artifact with its files. Raises: NotFound."""
    return view_all(session, [find(session, project_id, artifact_id)])[0]


def view_all(session: Session, rows: Sequence[Artifact]) -> list[ArtifactView]:
    """Return what a caller sees of artifacts: with their files, and what multitask ones take."""
    files = list_files(session, [row.id for row in rows])
    named = [row.checkpoint_id for row in rows if row.checkpoint_id is not None]
    multitask = select(Checkpoint.id).where(Checkpoint.id.in_(named), Checkpoint.kind == CheckpointKind.MULTITASK)
    manifests = checkpoints.load_manifests(session, list(session.scalars(multitask))) if named else {}
    storage = {checkpoint_id: measure_storage(manifest) for checkpoint_id, manifest in manifests.items()}
    return [view(row, files.get(row.id, []), storage.get(row.checkpoint_id or "")) for row in rows]


def list_files(session: Session, artifact_ids: Iterable[str]) -> Mapping[str, list[FileEntry]]:
    """Return the files of artifacts, sorted by path, by artifact id."""
    statement = select(ArtifactFile).where(ArtifactFile.artifact_id.in_(list(artifact_ids)))
    files: dict[str, list[FileEntry]] = {}
    for row in session.scalars(statement.order_by(ArtifactFile.artifact_id, ArtifactFile.path)):
        entry = FileEntry(path=row.path, size_bytes=row.size_bytes, sha256=row.sha256)
        files.setdefault(row.artifact_id, []).append(entry)
    return files


def view(row: Artifact, files: Sequence[FileEntry], storage: MultitaskStorage | None = None) -> ArtifactView:
    """Return what a caller sees of an artifact."""
    return ArtifactView.model_validate(
        {
            "job": row.job_id,
            "checkpoint": row.checkpoint_id,
            "files": list(files),
            "storage": storage,
            **{name: getattr(row, name) for name in ArtifactView.model_fields if hasattr(row, name)},
        }
    )
