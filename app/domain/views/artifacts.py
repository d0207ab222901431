"""Artifacts as callers see them."""

from typing import Any, Literal

from pydantic import Field

from app.domain.checkpoints import FileEntry
from app.domain.patches import MultitaskStorage
from app.domain.views.jobs import Instant, View


class ArtifactView(View):
    """Anything stored with a digest: a checkpoint's files, or a report."""

    id: str
    kind: Literal["checkpoint", "report"]
    format_version: int
    job: str | None
    checkpoint: str | None
    content_digest: str
    size_bytes: int
    files: list[FileEntry]
    recipe: dict[str, Any] | None
    recipe_digest: str | None
    storage: MultitaskStorage | None = Field(
        default=None, description="What a multitask artifact's weights take; null for anything else."
    )
    pinned: bool
    expires_at: Instant | None
    actor: str
    created_at: Instant
