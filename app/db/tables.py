"""Every table. One schema for SQLite and PostgreSQL; only app/services and app/db import it.

Rows that a caller owns carry `project_id` and `actor`; unique keys include the project. Instants are UTC. Enums are
short strings with a CHECK. Digests are sha256 in hex. Places kept, not yet built: keys, triggers, webhooks.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class UtcDateTime(TypeDecorator[datetime]):
    """An aware instant, stored in UTC; SQLite would drop the zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse naive instants and store UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"naive datetime {value!r}: instants are stored with a zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return an aware UTC instant."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def utc_now() -> datetime:
    """Return the current instant, aware."""
    return datetime.now(UTC)


def one_of(column: str, *values: str) -> CheckConstraint:
    """Return the CHECK of an enum column."""
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


Document = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


class Table(DeclarativeBase):
    """Base of all tables."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {  # noqa: RUF012 (SQLAlchemy's own declaration)
        datetime: UtcDateTime,
        dict[str, Any]: Document,
        list[Any]: Document,
        str: Text,
        int: BigInteger().with_variant(Integer, "sqlite"),
    }


class Owned:
    """Columns of a row that a caller owns."""

    project_id: Mapped[str] = mapped_column(String(40), ForeignKey("projects.id"))
    actor: Mapped[str] = mapped_column(String(128))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    updated_at: Mapped[datetime] = mapped_column(default=utc_now, onupdate=utc_now)
    revision: Mapped[int] = mapped_column(default=1, server_default=text("1"))


class Project(Table):
    """A tenant. One is reachable for now: `default`."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class Model(Table):
    """A name under which checkpoints are versions 1, 2, …; hands out the version numbers."""

    __tablename__ = "models"

    project_id: Mapped[str] = mapped_column(String(40), ForeignKey("projects.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(128), primary_key=True)
    last_version: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class ModelAlias(Table):
    """A movable name for one version of a model."""

    __tablename__ = "model_aliases"

    project_id: Mapped[str] = mapped_column(String(40), ForeignKey("projects.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(128), primary_key=True)
    alias: Mapped[str] = mapped_column(String(128), primary_key=True)
    version: Mapped[int]
    revision: Mapped[int] = mapped_column(default=1, server_default=text("1"))
    actor: Mapped[str] = mapped_column(String(128))
    updated_at: Mapped[datetime] = mapped_column(default=utc_now)


class ModelAliasChange(Table):
    """One change of an alias; `version` is null when it was deleted."""

    __tablename__ = "model_alias_changes"
    __table_args__ = (Index(None, "project_id", "name", "alias"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(40), ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(String(128))
    alias: Mapped[str] = mapped_column(String(128))
    version: Mapped[int | None]
    previous_version: Mapped[int | None]
    actor: Mapped[str] = mapped_column(String(128))
    at: Mapped[datetime] = mapped_column(default=utc_now)


class Checkpoint(Owned, Table):
    """A stored model: one version of a name. Deleted rows stay as tombstones for the lineage."""

    __tablename__ = "checkpoints"
    __table_args__ = (
        UniqueConstraint("project_id", "name", "version"),
        one_of("kind", "dense", "adapter", "multitask"),
        one_of("state", "importing", "ready", "invalid"),
        one_of("storage", "reference", "copy"),
        Index(None, "project_id", "id"),
        Index(None, "content_digest"),
        Index(None, "weights_digest"),
        Index(None, "base_checkpoint_id"),
        Index(None, "job_id"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(128))
    version: Mapped[int]
    kind: Mapped[str] = mapped_column(String(16), default="dense")
    state: Mapped[str] = mapped_column(String(16))
    uri: Mapped[str | None]  # where it was registered from; null for what a job produced
    storage: Mapped[str] = mapped_column(String(16))
    sources: Mapped[dict[str, Any] | None]  # reference: path -> size, mtime_ns, inode or etag, checked at every use
    base_checkpoint_id: Mapped[str | None] = mapped_column(String(40), ForeignKey("checkpoints.id"))
    task: Mapped[str | None] = mapped_column(String(128))
    tags: Mapped[dict[str, Any]] = mapped_column(default=dict)
    content_digest: Mapped[str | None] = mapped_column(String(64))
    weights_digest: Mapped[str | None] = mapped_column(String(64))
    size_bytes: Mapped[int | None]
    n_tensors: Mapped[int | None]
    n_parameters: Mapped[int | None]
    dtype: Mapped[str | None] = mapped_column(String(16))  # the one with most bytes
    architecture: Mapped[str | None] = mapped_column(String(256))
    problem: Mapped[dict[str, Any] | None]
    job_id: Mapped[str | None] = mapped_column(String(40))  # the job that imported or produced it
    artifact_id: Mapped[str | None] = mapped_column(String(40))  # where its bytes lie, unless referenced
    expires_at: Mapped[datetime | None]
    pinned: Mapped[bool] = mapped_column(Boolean, default=False, server_default=text("false"))
    deleted_at: Mapped[datetime | None]


class CheckpointManifest(Table):
    """The full manifest of a checkpoint (app.domain.checkpoints.Manifest), apart because it is large."""

    __tablename__ = "checkpoint_manifests"

    checkpoint_id: Mapped[str] = mapped_column(
        String(40), ForeignKey("checkpoints.id", ondelete="CASCADE"), primary_key=True
    )
    format_version: Mapped[int]
    document: Mapped[dict[str, Any]]


class Upload(Owned, Table):
    """Files on their way in; completed, it becomes a checkpoint."""

    __tablename__ = "uploads"
    __table_args__ = (one_of("state", "open", "completed", "expired"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    state: Mapped[str] = mapped_column(String(16), default="open")
    request: Mapped[dict[str, Any]]  # name, task, tags, … of the checkpoint to be
    checkpoint_id: Mapped[str | None] = mapped_column(String(40))
    expires_at: Mapped[datetime]


class UploadFile(Table):
    """One complete file of an upload, already in the store."""

    __tablename__ = "upload_files"

    upload_id: Mapped[str] = mapped_column(String(40), ForeignKey("uploads.id", ondelete="CASCADE"), primary_key=True)
    path: Mapped[str] = mapped_column(String(512), primary_key=True)
    size_bytes: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64), index=True)


class Artifact(Owned, Table):
    """Anything stored with a digest: a checkpoint's files, or a report."""

    __tablename__ = "artifacts"
    __table_args__ = (
        one_of("kind", "checkpoint", "report"),
        Index(None, "project_id", "id"),
        Index(None, "job_id"),
        Index(None, "recipe_digest"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    format_version: Mapped[int] = mapped_column(default=1, server_default=text("1"))
    job_id: Mapped[str | None] = mapped_column(String(40))
    checkpoint_id: Mapped[str | None] = mapped_column(String(40))
    content_digest: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int]
    recipe: Mapped[dict[str, Any] | None]
    recipe_digest: Mapped[str | None] = mapped_column(String(64))
    expires_at: Mapped[datetime | None]
    pinned: Mapped[bool] = mapped_column(Boolean, default=False, server_default=text("false"))


class ArtifactFile(Table):
    """One file of an artifact; equal bytes are stored once, under their digest."""

    __tablename__ = "artifact_files"

    artifact_id: Mapped[str] = mapped_column(
        String(40), ForeignKey("artifacts.id", ondelete="CASCADE"), primary_key=True
    )
    path: Mapped[str] = mapped_column(String(512), primary_key=True)
    size_bytes: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64), index=True)


class Task(Owned, Table):
    """What a model is measured on; immutable (app.domain.tasks.TaskSpec)."""

    __tablename__ = "tasks"
    __table_args__ = (UniqueConstraint("project_id", "name"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(128))
    kind: Mapped[str] = mapped_column(String(64))
    digest: Mapped[str] = mapped_column(String(64))
    format_version: Mapped[int] = mapped_column(default=1, server_default=text("1"))
    spec: Mapped[dict[str, Any]]
    head_base_checkpoint_id: Mapped[str | None] = mapped_column(String(40), ForeignKey("checkpoints.id"))


class Job(Owned, Table):
    """One piece of work. State changes are single guarded UPDATEs; final states never change."""

    __tablename__ = "jobs"
    __table_args__ = (
        one_of("kind", "import", "finetune", "merge", "evaluate", "analyze", "materialize", "sweep", "part"),
        one_of("state", "queued", "running", "canceling", "succeeded", "failed", "canceled"),
        one_of("resource_class", "io", "cpu", "gpu"),
        Index(
            "ix_jobs_claimable",
            "resource_class",
            "priority",
            "id",
            sqlite_where=text("state = 'queued'"),
            postgresql_where=text("state = 'queued'"),
        ),
        Index(
            "ix_jobs_lease",
            "lease_until",
            sqlite_where=text("state IN ('running', 'canceling')"),
            postgresql_where=text("state IN ('running', 'canceling')"),
        ),
        Index(None, "project_id", "id"),
        Index(None, "recipe_digest"),
        Index(None, "parent_id"),
        Index(None, "waits_for"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16), default="queued")
    resource_class: Mapped[str] = mapped_column(String(8))
    priority: Mapped[int] = mapped_column(default=0)
    spec_format_version: Mapped[int] = mapped_column(default=1, server_default=text("1"))
    spec: Mapped[dict[str, Any]]  # the request, refs pinned to ids
    tags: Mapped[dict[str, Any]] = mapped_column(default=dict)
    recipe_digest: Mapped[str | None] = mapped_column(String(64))
    max_attempts: Mapped[int]
    attempts: Mapped[int] = mapped_column(default=0)
    timeout_seconds: Mapped[int]
    parent_id: Mapped[str | None] = mapped_column(String(40), ForeignKey("jobs.id"))
    n_remaining_children: Mapped[int] = mapped_column(default=0)  # parts that a running merge waits for
    retry_of: Mapped[str | None] = mapped_column(String(40), ForeignKey("jobs.id"))
    deduplicated_from: Mapped[str | None] = mapped_column(String(40), ForeignKey("jobs.id"))
    waits_for: Mapped[str | None] = mapped_column(String(40), ForeignKey("jobs.id"))  # the same recipe, running
    request_id: Mapped[str | None] = mapped_column(String(128))
    traceparent: Mapped[str | None] = mapped_column(String(128))
    # the claim
    fence: Mapped[int] = mapped_column(default=0)  # raised by every claim; guards every write of a worker
    worker_id: Mapped[str | None] = mapped_column(String(40))
    lease_until: Mapped[datetime | None]
    not_before: Mapped[datetime | None]  # backoff
    hinted_at: Mapped[datetime | None]  # last message sent
    cancel_requested_at: Mapped[datetime | None]
    # what is seen
    progress: Mapped[dict[str, Any] | None]
    stages: Mapped[list[Any]] = mapped_column(default=list)  # [{"name", "seconds"}]
    result: Mapped[dict[str, Any] | None]
    problem: Mapped[dict[str, Any] | None]
    last_seq: Mapped[int] = mapped_column(default=0)  # of its events
    queued_at: Mapped[datetime] = mapped_column(default=utc_now)
    started_at: Mapped[datetime | None]  # of the last attempt
    finished_at: Mapped[datetime | None]


class JobInput(Table):
    """A checkpoint that a job reads: keeps it from being deleted, and is the lineage."""

    __tablename__ = "job_inputs"
    __table_args__ = (one_of("role", "base_model", "model", "head"), Index(None, "checkpoint_id"))

    job_id: Mapped[str] = mapped_column(String(40), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    role: Mapped[str] = mapped_column(String(16), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    checkpoint_id: Mapped[str] = mapped_column(String(40), ForeignKey("checkpoints.id"))


class JobAttempt(Table):
    """One attempt of a job and how it ended."""

    __tablename__ = "job_attempts"

    job_id: Mapped[str] = mapped_column(String(40), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    fence: Mapped[int] = mapped_column(primary_key=True)
    worker_id: Mapped[str] = mapped_column(String(40))
    started_at: Mapped[datetime] = mapped_column(default=utc_now)
    ended_at: Mapped[datetime | None]
    outcome: Mapped[str | None] = mapped_column(String(32))  # succeeded, failed, canceled, lost, released
    problem: Mapped[dict[str, Any] | None]


class Event(Table):
    """One line of a job's log. `seq` is gap-free per job; `global_seq` is stamped once the event is committed."""

    __tablename__ = "events"
    __table_args__ = (
        UniqueConstraint("project_id", "global_seq"),
        Index(
            "ix_events_unstamped",
            "project_id",
            sqlite_where=text("global_seq IS NULL"),
            postgresql_where=text("global_seq IS NULL"),
        ),
    )

    job_id: Mapped[str] = mapped_column(String(40), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(String(40))
    global_seq: Mapped[int | None]
    type: Mapped[str] = mapped_column(String(64))
    at: Mapped[datetime] = mapped_column(default=utc_now)
    data: Mapped[dict[str, Any]] = mapped_column(default=dict)


class Metric(Table):
    """One measured number of one checkpoint on one task."""

    __tablename__ = "metrics"
    __table_args__ = (Index(None, "project_id", "checkpoint_id", "task_id"), Index(None, "job_id"))

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(40), ForeignKey("projects.id"))
    job_id: Mapped[str] = mapped_column(String(40))
    checkpoint_id: Mapped[str] = mapped_column(String(40))
    task_id: Mapped[str] = mapped_column(String(40))
    name: Mapped[str] = mapped_column(String(64))
    value: Mapped[float | None] = mapped_column(Float)  # null: undefined
    unit: Mapped[str] = mapped_column(String(32))
    higher_is_better: Mapped[bool] = mapped_column(Boolean)
    split: Mapped[str] = mapped_column(String(16))
    n: Mapped[int]
    stderr: Mapped[float | None] = mapped_column(Float)
    step: Mapped[int | None]  # of the training that made the checkpoint; null: of the checkpoint itself
    at: Mapped[datetime] = mapped_column(default=utc_now)


class IdempotencyKey(Table):
    """The first answer to a POST with an Idempotency-Key, committed with what it created."""

    __tablename__ = "idempotency_keys"

    project_id: Mapped[str] = mapped_column(String(40), ForeignKey("projects.id"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))  # of method, path and body
    status: Mapped[int]
    location: Mapped[str | None]
    body: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    expires_at: Mapped[datetime] = mapped_column(index=True)


class Worker(Table):
    """A worker process as last seen."""

    __tablename__ = "workers"
    __table_args__ = (one_of("state", "active", "draining", "stopped"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(256))
    queues: Mapped[list[Any]]
    device: Mapped[str] = mapped_column(String(64))
    concurrency: Mapped[int]
    machine: Mapped[str] = mapped_column(String(256), server_default=text("''"))  # workers of one share its cores
    cores: Mapped[int] = mapped_column(server_default=text("1"))
    threads: Mapped[int] = mapped_column(server_default=text("0"))  # of a job; 0: the cores that are free
    version: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16), default="active")
    load: Mapped[dict[str, Any]] = mapped_column(default=dict)
    started_at: Mapped[datetime] = mapped_column(default=utc_now)
    seen_at: Mapped[datetime] = mapped_column(default=utc_now)
