"""Tasks as callers see them."""

from pydantic import JsonValue

from app.domain.tasks import Columns, DataFile, Head
from app.domain.views.jobs import Instant, View


class TaskView(View):
    """What models are measured on; immutable."""

    id: str
    name: str
    kind: str
    dataset: dict[str, DataFile]
    columns: Columns
    classes: list[str]
    head: Head
    head_weights: DataFile | None
    head_base_model: str | None
    preprocessing: dict[str, JsonValue]
    metric: str
    digest: str
    format_version: int
    actor: str
    created_at: Instant
