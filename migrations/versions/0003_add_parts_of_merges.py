"""Admit jobs that are parts of a merge.

Why: a large merge is split into jobs of kind `part`, which any worker takes. The release before this one makes none and
claims none (a worker of it would not know their kind): migrate, then start workers of this release, then split merges.
Locks: ACCESS EXCLUSIVE on `jobs` while its rows are checked; SQLite writes the table anew.
"""

from collections.abc import Sequence

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

KINDS = ("import", "finetune", "merge", "evaluate", "analyze", "materialize", "sweep")


def upgrade() -> None:
    """Add the kind to those that are allowed."""
    _allow((*KINDS, "part"))


def downgrade() -> None:
    """Delete the parts, whose merges run again as a whole, and the kind."""
    op.execute("UPDATE jobs SET state = 'queued', n_remaining_children = 0 WHERE n_remaining_children > 0")
    for table in ("events", "job_inputs", "job_attempts"):
        op.execute(f"DELETE FROM {table} WHERE job_id IN (SELECT id FROM jobs WHERE kind = 'part')")
    op.execute("DELETE FROM jobs WHERE kind = 'part'")
    _allow(KINDS)


def _allow(kinds: Sequence[str]) -> None:
    listed = ", ".join(f"'{kind}'" for kind in kinds)
    with op.batch_alter_table("jobs") as table:
        table.drop_constraint(op.f("ck_jobs_kind"), type_="check")
        table.create_check_constraint(op.f("ck_jobs_kind"), f"kind IN ({listed})")
