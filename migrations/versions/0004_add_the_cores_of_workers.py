"""Add the machine, cores and threads of a worker.

Why: `parallelism: auto` counts machines and cores that are free, not slots. The release before this one writes none of
them: its workers count as a machine each, with one core. Both can run side by side.
Locks: ACCESS EXCLUSIVE on `workers`, for a moment; no row is rewritten, save on SQLite, whose table is small.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add the columns."""
    with op.batch_alter_table("workers") as table:
        table.add_column(sa.Column("machine", sa.String(256), nullable=False, server_default=sa.text("''")))
        table.add_column(sa.Column("cores", NUMBER, nullable=False, server_default=sa.text("1")))
        table.add_column(sa.Column("threads", NUMBER, nullable=False, server_default=sa.text("0")))


def downgrade() -> None:
    """Drop the columns."""
    with op.batch_alter_table("workers") as table:
        for name in ("machine", "cores", "threads"):
            table.drop_column(name)
