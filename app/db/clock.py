"""The clock that leases are measured with: the database's own on PostgreSQL, the host's on SQLite (one host)."""

from datetime import UTC, datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.db.tables import utc_now


def now(session: Session) -> datetime:
    """Return the current instant, aware, by the clock that all processes of this database share."""
    if session.get_bind().dialect.name == "postgresql":
        instant = session.scalar(select(func.clock_timestamp()))
        if isinstance(instant, datetime):
            return instant.astimezone(UTC)
    return utc_now()
