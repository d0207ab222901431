"""Create the tables.

Why: the first schema. Inserts the one project that is reachable for now, `default`.
Locks: none that matters; there are no rows yet.
"""

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

INSTANT = sa.DateTime(timezone=True)
DOCUMENT = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TABLES = (
    "projects",
    "models",
    "model_aliases",
    "model_alias_changes",
    "checkpoints",
    "checkpoint_manifests",
    "uploads",
    "upload_files",
    "artifacts",
    "artifact_files",
    "jobs",
    "job_inputs",
    "job_attempts",
    "events",
    "tasks",
    "metrics",
    "idempotency_keys",
    "workers",
)


def upgrade() -> None:
    """Create every table, parents first."""
    op.create_table(
        "projects",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_projects")),
    )
    projects = sa.table("projects", sa.column("id", sa.String), sa.column("created_at", INSTANT))
    op.execute(projects.insert().values(id="default", created_at=datetime.now(UTC)))
    _create_models()
    _create_files()
    _create_jobs()
    _create_results()
    _create_operations()


def downgrade() -> None:
    """Drop every table, children first."""
    for table in reversed(TABLES):
        op.drop_table(table)


def _create_models() -> None:
    """Names, versions, checkpoints."""
    op.create_table(
        "models",
        sa.Column("project_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("last_version", NUMBER, nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_models_project_id_projects")),
        sa.PrimaryKeyConstraint("project_id", "name", name=op.f("pk_models")),
    )
    op.create_table(
        "model_aliases",
        sa.Column("project_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("alias", sa.String(length=128), nullable=False),
        sa.Column("version", NUMBER, nullable=False),
        sa.Column("revision", NUMBER, server_default=sa.text("1"), nullable=False),
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_model_aliases_project_id_projects")),
        sa.PrimaryKeyConstraint("project_id", "name", "alias", name=op.f("pk_model_aliases")),
    )
    op.create_table(
        "model_alias_changes",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("project_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("alias", sa.String(length=128), nullable=False),
        sa.Column("version", NUMBER, nullable=True),
        sa.Column("previous_version", NUMBER, nullable=True),
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.Column("at", INSTANT, nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_model_alias_changes_project_id_projects")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_model_alias_changes")),
    )
    op.create_index(
        op.f("ix_model_alias_changes_project_id_name_alias"), "model_alias_changes", ["project_id", "name", "alias"]
    )
    op.create_table(
        "checkpoints",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("version", NUMBER, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("uri", sa.Text(), nullable=True),
        sa.Column("storage", sa.String(length=16), nullable=False),
        sa.Column("sources", DOCUMENT, nullable=True),
        sa.Column("base_checkpoint_id", sa.String(length=40), nullable=True),
        sa.Column("task", sa.String(length=128), nullable=True),
        sa.Column("tags", DOCUMENT, nullable=False),
        sa.Column("content_digest", sa.String(length=64), nullable=True),
        sa.Column("weights_digest", sa.String(length=64), nullable=True),
        sa.Column("size_bytes", NUMBER, nullable=True),
        sa.Column("n_tensors", NUMBER, nullable=True),
        sa.Column("n_parameters", NUMBER, nullable=True),
        sa.Column("dtype", sa.String(length=16), nullable=True),
        sa.Column("architecture", sa.String(length=256), nullable=True),
        sa.Column("problem", DOCUMENT, nullable=True),
        sa.Column("job_id", sa.String(length=40), nullable=True),
        sa.Column("artifact_id", sa.String(length=40), nullable=True),
        sa.Column("expires_at", INSTANT, nullable=True),
        sa.Column("pinned", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("deleted_at", INSTANT, nullable=True),
        sa.Column("project_id", sa.String(length=40), nullable=False),
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.Column("revision", NUMBER, server_default=sa.text("1"), nullable=False),
        sa.CheckConstraint("kind IN ('dense', 'adapter', 'multitask')", name=op.f("ck_checkpoints_kind")),
        sa.CheckConstraint("state IN ('importing', 'ready', 'invalid')", name=op.f("ck_checkpoints_state")),
        sa.CheckConstraint("storage IN ('reference', 'copy')", name=op.f("ck_checkpoints_storage")),
        sa.ForeignKeyConstraint(
            ["base_checkpoint_id"], ["checkpoints.id"], name=op.f("fk_checkpoints_base_checkpoint_id_checkpoints")
        ),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_checkpoints_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_checkpoints")),
        sa.UniqueConstraint("project_id", "name", "version", name=op.f("uq_checkpoints_project_id_name_version")),
    )
    op.create_index(op.f("ix_checkpoints_base_checkpoint_id"), "checkpoints", ["base_checkpoint_id"])
    op.create_index(op.f("ix_checkpoints_content_digest"), "checkpoints", ["content_digest"])
    op.create_index(op.f("ix_checkpoints_job_id"), "checkpoints", ["job_id"])
    op.create_index(op.f("ix_checkpoints_project_id_id"), "checkpoints", ["project_id", "id"])
    op.create_index(op.f("ix_checkpoints_weights_digest"), "checkpoints", ["weights_digest"])
    op.create_table(
        "checkpoint_manifests",
        sa.Column("checkpoint_id", sa.String(length=40), nullable=False),
        sa.Column("format_version", NUMBER, nullable=False),
        sa.Column("document", DOCUMENT, nullable=False),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"],
            ["checkpoints.id"],
            name=op.f("fk_checkpoint_manifests_checkpoint_id_checkpoints"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("checkpoint_id", name=op.f("pk_checkpoint_manifests")),
    )


def _create_files() -> None:
    """Uploads and artifacts."""
    op.create_table(
        "uploads",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("request", DOCUMENT, nullable=False),
        sa.Column("checkpoint_id", sa.String(length=40), nullable=True),
        sa.Column("expires_at", INSTANT, nullable=False),
        sa.Column("project_id", sa.String(length=40), nullable=False),
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.Column("revision", NUMBER, server_default=sa.text("1"), nullable=False),
        sa.CheckConstraint("state IN ('open', 'completed', 'expired')", name=op.f("ck_uploads_state")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_uploads_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_uploads")),
    )
    op.create_table(
        "upload_files",
        sa.Column("upload_id", sa.String(length=40), nullable=False),
        sa.Column("path", sa.String(length=512), nullable=False),
        sa.Column("size_bytes", NUMBER, nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["upload_id"], ["uploads.id"], name=op.f("fk_upload_files_upload_id_uploads"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("upload_id", "path", name=op.f("pk_upload_files")),
    )
    op.create_index(op.f("ix_upload_files_sha256"), "upload_files", ["sha256"])
    op.create_table(
        "artifacts",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("format_version", NUMBER, server_default=sa.text("1"), nullable=False),
        sa.Column("job_id", sa.String(length=40), nullable=True),
        sa.Column("checkpoint_id", sa.String(length=40), nullable=True),
        sa.Column("content_digest", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", NUMBER, nullable=False),
        sa.Column("recipe", DOCUMENT, nullable=True),
        sa.Column("recipe_digest", sa.String(length=64), nullable=True),
        sa.Column("expires_at", INSTANT, nullable=True),
        sa.Column("pinned", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("project_id", sa.String(length=40), nullable=False),
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.Column("revision", NUMBER, server_default=sa.text("1"), nullable=False),
        sa.CheckConstraint("kind IN ('checkpoint', 'report')", name=op.f("ck_artifacts_kind")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_artifacts_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_artifacts")),
    )
    op.create_index(op.f("ix_artifacts_job_id"), "artifacts", ["job_id"])
    op.create_index(op.f("ix_artifacts_project_id_id"), "artifacts", ["project_id", "id"])
    op.create_index(op.f("ix_artifacts_recipe_digest"), "artifacts", ["recipe_digest"])
    op.create_table(
        "artifact_files",
        sa.Column("artifact_id", sa.String(length=40), nullable=False),
        sa.Column("path", sa.String(length=512), nullable=False),
        sa.Column("size_bytes", NUMBER, nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["artifact_id"], ["artifacts.id"], name=op.f("fk_artifact_files_artifact_id_artifacts"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("artifact_id", "path", name=op.f("pk_artifact_files")),
    )
    op.create_index(op.f("ix_artifact_files_sha256"), "artifact_files", ["sha256"])


def _create_jobs() -> None:
    """Jobs, with what they read, their attempts and their log."""
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("resource_class", sa.String(length=8), nullable=False),
        sa.Column("priority", NUMBER, nullable=False),
        sa.Column("spec_format_version", NUMBER, server_default=sa.text("1"), nullable=False),
        sa.Column("spec", DOCUMENT, nullable=False),
        sa.Column("tags", DOCUMENT, nullable=False),
        sa.Column("recipe_digest", sa.String(length=64), nullable=True),
        sa.Column("max_attempts", NUMBER, nullable=False),
        sa.Column("attempts", NUMBER, nullable=False),
        sa.Column("timeout_seconds", NUMBER, nullable=False),
        sa.Column("parent_id", sa.String(length=40), nullable=True),
        sa.Column("n_remaining_children", NUMBER, nullable=False),
        sa.Column("retry_of", sa.String(length=40), nullable=True),
        sa.Column("deduplicated_from", sa.String(length=40), nullable=True),
        sa.Column("waits_for", sa.String(length=40), nullable=True),
        sa.Column("request_id", sa.String(length=128), nullable=True),
        sa.Column("traceparent", sa.String(length=128), nullable=True),
        sa.Column("fence", NUMBER, nullable=False),
        sa.Column("worker_id", sa.String(length=40), nullable=True),
        sa.Column("lease_until", INSTANT, nullable=True),
        sa.Column("not_before", INSTANT, nullable=True),
        sa.Column("hinted_at", INSTANT, nullable=True),
        sa.Column("cancel_requested_at", INSTANT, nullable=True),
        sa.Column("progress", DOCUMENT, nullable=True),
        sa.Column("stages", DOCUMENT, nullable=False),
        sa.Column("result", DOCUMENT, nullable=True),
        sa.Column("problem", DOCUMENT, nullable=True),
        sa.Column("last_seq", NUMBER, nullable=False),
        sa.Column("queued_at", INSTANT, nullable=False),
        sa.Column("started_at", INSTANT, nullable=True),
        sa.Column("finished_at", INSTANT, nullable=True),
        sa.Column("project_id", sa.String(length=40), nullable=False),
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.Column("revision", NUMBER, server_default=sa.text("1"), nullable=False),
        sa.CheckConstraint(
            "kind IN ('import', 'finetune', 'merge', 'evaluate', 'analyze', 'materialize', 'sweep')",
            name=op.f("ck_jobs_kind"),
        ),
        sa.CheckConstraint("resource_class IN ('io', 'cpu', 'gpu')", name=op.f("ck_jobs_resource_class")),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'canceling', 'succeeded', 'failed', 'canceled')", name=op.f("ck_jobs_state")
        ),
        sa.ForeignKeyConstraint(["deduplicated_from"], ["jobs.id"], name=op.f("fk_jobs_deduplicated_from_jobs")),
        sa.ForeignKeyConstraint(["parent_id"], ["jobs.id"], name=op.f("fk_jobs_parent_id_jobs")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_jobs_project_id_projects")),
        sa.ForeignKeyConstraint(["retry_of"], ["jobs.id"], name=op.f("fk_jobs_retry_of_jobs")),
        sa.ForeignKeyConstraint(["waits_for"], ["jobs.id"], name=op.f("fk_jobs_waits_for_jobs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    op.create_index(
        op.f("ix_jobs_lease"),
        "jobs",
        ["lease_until"],
        sqlite_where=sa.text("state IN ('running', 'canceling')"),
        postgresql_where=sa.text("state IN ('running', 'canceling')"),
    )
    op.create_index(op.f("ix_jobs_parent_id"), "jobs", ["parent_id"])
    op.create_index(op.f("ix_jobs_project_id_id"), "jobs", ["project_id", "id"])
    op.create_index(op.f("ix_jobs_recipe_digest"), "jobs", ["recipe_digest"])
    op.create_index(op.f("ix_jobs_waits_for"), "jobs", ["waits_for"])
    op.create_index(
        op.f("ix_jobs_claimable"),
        "jobs",
        ["resource_class", "priority", "id"],
        sqlite_where=sa.text("state = 'queued'"),
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.create_table(
        "job_inputs",
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("position", NUMBER, nullable=False),
        sa.Column("checkpoint_id", sa.String(length=40), nullable=False),
        sa.CheckConstraint("role IN ('base_model', 'model', 'head')", name=op.f("ck_job_inputs_role")),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"], ["checkpoints.id"], name=op.f("fk_job_inputs_checkpoint_id_checkpoints")
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_inputs_job_id_jobs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "role", "position", name=op.f("pk_job_inputs")),
    )
    op.create_index(op.f("ix_job_inputs_checkpoint_id"), "job_inputs", ["checkpoint_id"])
    op.create_table(
        "job_attempts",
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("fence", NUMBER, nullable=False),
        sa.Column("worker_id", sa.String(length=40), nullable=False),
        sa.Column("started_at", INSTANT, nullable=False),
        sa.Column("ended_at", INSTANT, nullable=True),
        sa.Column("outcome", sa.String(length=32), nullable=True),
        sa.Column("problem", DOCUMENT, nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_attempts_job_id_jobs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "fence", name=op.f("pk_job_attempts")),
    )
    op.create_table(
        "events",
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("seq", NUMBER, nullable=False),
        sa.Column("project_id", sa.String(length=40), nullable=False),
        sa.Column("global_seq", NUMBER, nullable=True),
        sa.Column("type", sa.String(length=64), nullable=False),
        sa.Column("at", INSTANT, nullable=False),
        sa.Column("data", DOCUMENT, nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_events_job_id_jobs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "seq", name=op.f("pk_events")),
        sa.UniqueConstraint("project_id", "global_seq", name=op.f("uq_events_project_id_global_seq")),
    )
    op.create_index(
        op.f("ix_events_unstamped"),
        "events",
        ["project_id"],
        sqlite_where=sa.text("global_seq IS NULL"),
        postgresql_where=sa.text("global_seq IS NULL"),
    )


def _create_results() -> None:
    """Tasks and what was measured."""
    op.create_table(
        "tasks",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("kind", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("format_version", NUMBER, server_default=sa.text("1"), nullable=False),
        sa.Column("spec", DOCUMENT, nullable=False),
        sa.Column("head_base_checkpoint_id", sa.String(length=40), nullable=True),
        sa.Column("project_id", sa.String(length=40), nullable=False),
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.Column("revision", NUMBER, server_default=sa.text("1"), nullable=False),
        sa.ForeignKeyConstraint(
            ["head_base_checkpoint_id"], ["checkpoints.id"], name=op.f("fk_tasks_head_base_checkpoint_id_checkpoints")
        ),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_tasks_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tasks")),
        sa.UniqueConstraint("project_id", "name", name=op.f("uq_tasks_project_id_name")),
    )
    op.create_table(
        "metrics",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("project_id", sa.String(length=40), nullable=False),
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("checkpoint_id", sa.String(length=40), nullable=False),
        sa.Column("task_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("value", sa.Float(), nullable=True),
        sa.Column("unit", sa.String(length=32), nullable=False),
        sa.Column("higher_is_better", sa.Boolean(), nullable=False),
        sa.Column("split", sa.String(length=16), nullable=False),
        sa.Column("n", NUMBER, nullable=False),
        sa.Column("stderr", sa.Float(), nullable=True),
        sa.Column("at", INSTANT, nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_metrics_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_metrics")),
    )
    op.create_index(op.f("ix_metrics_job_id"), "metrics", ["job_id"])
    op.create_index(
        op.f("ix_metrics_project_id_checkpoint_id_task_id"), "metrics", ["project_id", "checkpoint_id", "task_id"]
    )


def _create_operations() -> None:
    """Idempotency keys and workers."""
    op.create_table(
        "idempotency_keys",
        sa.Column("project_id", sa.String(length=40), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("status", NUMBER, nullable=False),
        sa.Column("location", sa.Text(), nullable=True),
        sa.Column("body", DOCUMENT, nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("expires_at", INSTANT, nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_idempotency_keys_project_id_projects")),
        sa.PrimaryKeyConstraint("project_id", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index(op.f("ix_idempotency_keys_expires_at"), "idempotency_keys", ["expires_at"])
    op.create_table(
        "workers",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("queues", DOCUMENT, nullable=False),
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("concurrency", NUMBER, nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("load", DOCUMENT, nullable=False),
        sa.Column("started_at", INSTANT, nullable=False),
        sa.Column("seen_at", INSTANT, nullable=False),
        sa.CheckConstraint("state IN ('active', 'draining', 'stopped')", name=op.f("ck_workers_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
    )
