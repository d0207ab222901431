"""What a merge would do, before anything is done."""

from typing import Any

from pydantic import Field, JsonValue

from app.domain.views.jobs import View


class PinnedView(View):
    """An input, pinned to what its ref means now."""

    ref: str
    checkpoint: str
    name: str
    version: int
    content_digest: str
    weights_digest: str


class PlanView(View):
    """What a merge would read, write and need. Nothing is stored."""

    method: str
    method_version: int
    parameters: dict[str, JsonValue] = Field(description="Effective: defaults filled in.")
    base_model: PinnedView | None
    models: list[PinnedView]
    recipe_digest: str
    deduplicated_from: str | None = Field(description="The job whose result would be reused.")
    is_runnable: bool = Field(description="False where `problems` would make POST /v1/merges refuse.")
    problems: list[dict[str, Any]]
    warnings: list[str]
    n_tensors: int | None = None
    n_merged_tensors: int | None = None
    n_copied_tensors: int | None = None
    n_passes: int | None = None
    bytes_read: int | None = None
    bytes_written: int | None = None
    peak_memory_bytes: int | None = None
    disk_bytes: int | None = None
    free_disk_bytes: int | None = None
    estimated_seconds: float | None = None
    n_parts: int | None = Field(default=None, description="Into how many jobs the merge would be split now.")
