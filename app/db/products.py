"""What a job has made, as rows: the artifact with its files, and the checkpoint that it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue
from sqlalchemy.orm import Session

from app.db import artifacts, checkpoints
from app.db.owners import Owner
from app.domain.checkpoints import FileEntry, Manifest
from app.domain.recipes import Recipe


@dataclass(frozen=True)
class Product:
    """A checkpoint that a job has made; its files lie in the store."""

    job_id: str
    manifest: Manifest
    output: Mapping[str, JsonValue]  # of the job's spec: `name`, whose next version it becomes, and `tags`
    base_checkpoint_id: str | None
    task: str | None = None
    recipe: Recipe | None = None
    files: Sequence[FileEntry] | None = None  # None: the manifest's


def add(session: Session, owner: Owner, product: Product) -> tuple[str, str]:
    """Add a job's checkpoint; return the artifact's id and its own."""
    recipe = product.recipe
    artifact = artifacts.add(
        session,
        owner,
        kind="checkpoint",
        job_id=product.job_id,
        checkpoint_id=None,
        files=product.manifest.files if product.files is None else product.files,
        recipe=recipe.model_dump(mode="json") if recipe is not None else None,
        recipe_digest=recipe.digest if recipe is not None else None,
    )
    tags = product.output.get("tags")
    checkpoint = checkpoints.add_produced(
        session,
        owner,
        name=str(product.output["name"]),
        kind=product.manifest.kind,
        manifest=product.manifest,
        job_id=product.job_id,
        artifact_id=artifact.id,
        base_checkpoint_id=product.base_checkpoint_id,
        task=product.task,
        tags={key: str(value) for key, value in tags.items()} if isinstance(tags, dict) else {},
    )
    artifacts.name_checkpoint(session, artifact.id, checkpoint.id)
    return artifact.id, checkpoint.id
