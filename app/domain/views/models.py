"""Models as callers see them: a name, its versions and aliases."""

from app.domain.checkpoints import CheckpointKind, CheckpointState
from app.domain.views.jobs import Instant, View


class ModelView(View):
    """A name under which checkpoints are versions."""

    name: str
    last_version: int
    n_versions: int
    latest_ready_version: int | None
    aliases: dict[str, int]
    created_at: Instant


class VersionView(View):
    """One version of a model."""

    version: int
    checkpoint: str
    kind: CheckpointKind
    state: CheckpointState
    task: str | None
    created_at: Instant


class ModelDetailView(ModelView):
    """A model with its newest versions, newest first."""

    versions: list[VersionView]


class AliasView(View):
    """A movable name for one version of a model."""

    model: str
    alias: str
    version: int
    checkpoint: str
    actor: str
    updated_at: Instant
    revision: int


class AliasChangeView(View):
    """One change of an alias; `version` is null where it was deleted."""

    version: int | None
    previous_version: int | None
    actor: str
    at: Instant
