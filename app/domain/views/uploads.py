"""Uploads as callers see them."""

from typing import Literal

from app.domain.checkpoints import FileEntry
from app.domain.views.jobs import Instant, View


class UploadView(View):
    """Files on their way in; `files` lists those that are complete."""

    id: str
    state: Literal["open", "completed", "expired"]
    name: str
    task: str | None
    base_checkpoint: str | None
    tags: dict[str, str]
    checkpoint: str | None
    files: list[FileEntry]
    actor: str
    created_at: Instant
    updated_at: Instant
    expires_at: Instant
