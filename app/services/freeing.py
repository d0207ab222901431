"""Bytes that nothing names any more: removed after the commit that forgot them, or by the sweep.

Safe beside a publish that has not committed yet: publishing makes an object young again, and only old ones are removed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import structlog

from app.db import deletion, uploads
from app.db.engine import Sessions
from app.db.tables import utc_now
from app.domain.errors import AmalgamError
from app.storage.base import Storage

PUBLISH_SECONDS = 3600.0  # younger bytes may belong to a job that has not committed yet
DIGESTS_AT_ONCE = 500
log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class SweepReport:
    """What one sweep did."""

    n_expired_uploads: int
    n_deleted_objects: int
    n_removed_temps: int


def free_bytes(storage: Storage, digests: Sequence[str]) -> None:
    """Remove objects that nothing named when the caller committed; what fails or is too young is left to the sweep."""
    try:
        storage.delete(digests, min_age_seconds=PUBLISH_SECONDS)
    except AmalgamError as error:
        log.warning("bytes_left_to_sweep", reason=error.detail, n_objects=len(digests))


def sweep(sessions: Sessions, storage: Storage, *, grace_seconds: float) -> SweepReport:
    """Close late uploads, and remove objects and leftovers that nothing has named for the grace time.

    Raises: Unavailable.
    """
    with sessions.begin() as session:
        n_expired = uploads.expire(session, utc_now())
    old = (sha256 for sha256, age_seconds in storage.list_objects() if age_seconds >= grace_seconds)
    n_deleted = sum(_delete_unnamed(sessions, storage, some, grace_seconds) for some in _batches(old))
    return SweepReport(n_expired, n_deleted, storage.sweep_temp(older_than_seconds=grace_seconds))


def _delete_unnamed(sessions: Sessions, storage: Storage, digests: Sequence[str], grace_seconds: float) -> int:
    with sessions.read() as session:
        unnamed = deletion.find_unnamed(session, digests)
    return storage.delete(unnamed, min_age_seconds=grace_seconds)


def _batches(digests: Iterable[str]) -> Iterable[list[str]]:
    iterator = iter(digests)
    while some := list(islice(iterator, DIGESTS_AT_ONCE)):
        yield some
