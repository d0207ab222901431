"""Add the step of a metric.

Why: a fine-tuning measures on the validation split every so many steps. Null, as in every row until now: of the
checkpoint itself. The release before this one writes no step and reads by name and split, so both can run side by side.
Locks: ACCESS EXCLUSIVE on `metrics`, for a moment; no row is rewritten.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add the column."""
    with op.batch_alter_table("metrics") as table:
        table.add_column(sa.Column("step", NUMBER, nullable=True))


def downgrade() -> None:
    """Drop the column, and the rows that mean nothing without it."""
    op.execute("DELETE FROM metrics WHERE step IS NOT NULL")
    with op.batch_alter_table("metrics") as table:
        table.drop_column("step")
