"""Locks on names: whoever asks second waits until the first one's transaction has ended.

SQLite admits one writing transaction at a time and needs none.
"""

import hashlib

from sqlalchemy import func, select
from sqlalchemy.orm import Session


def lock(session: Session, *names: str) -> None:
    """Hold the lock on a name until the transaction ends."""
    if session.get_bind().dialect.name != "postgresql":
        return
    digest = hashlib.sha256("\0".join(names).encode()).digest()
    session.execute(select(func.pg_advisory_xact_lock(int.from_bytes(digest[:8], "big", signed=True))))
