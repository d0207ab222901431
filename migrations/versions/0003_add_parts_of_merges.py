"""Admit jobs that are parts of a merge.

Why: a large merge is split into jobs of kind `part`, which any worker takes. The release before this one makes none and
claims none (a worker of it would not know their kind): migrate, then start workers of this release, then split merges.
Locks: ACCESS EXCLUSIVE on `jobs` while its rows are checked; SQLite writes the table anew.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

KINDS = ("import", "finetune", "merge", "evaluate", "analyze", "materialize", "sweep")
STATES = ("queued", "running", "canceling", "succeeded", "failed", "canceled")


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
    if op.get_bind().dialect.name == "postgresql":
        op.drop_constraint(op.f("ck_jobs_kind"), "jobs", type_="check")
        op.create_check_constraint(op.f("ck_jobs_kind"), "jobs", _one_of("kind", kinds))
        return
    # SQLite's checks are not reflected: the new table gets those that are named here.
    checks = (
        sa.CheckConstraint(_one_of("kind", kinds), name=op.f("ck_jobs_kind")),
        sa.CheckConstraint(_one_of("resource_class", ("io", "cpu", "gpu")), name=op.f("ck_jobs_resource_class")),
        sa.CheckConstraint(_one_of("state", STATES), name=op.f("ck_jobs_state")),
    )
    with op.batch_alter_table("jobs", recreate="always", table_args=checks):
        pass


def _one_of(column: str, values: Sequence[str]) -> str:
    return f"{column} IN ({', '.join(repr(value) for value in values)})"
