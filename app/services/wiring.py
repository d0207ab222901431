"""What accepting work stands on: tables, methods, stores, the doorbell, and a job's defaults."""

from dataclasses import dataclass

from app.db.engine import Sessions
from app.domain.catalog import Catalog
from app.queue import JobQueue
from app.storage.base import Storage
from app.storage.sources import Sources


@dataclass(frozen=True)
class Defaults:
    """What a job gets where its request is silent."""

    max_attempts: int = 3
    timeout_seconds: int = 7200
    shard_bytes: int = 5_000_000_000
    upload_expires_seconds: float = 86400.0


@dataclass(frozen=True)
class Wiring:
    """Everything a use case reaches the world through; built once by the door."""

    sessions: Sessions
    catalog: Catalog
    storage: Storage
    sources: Sources
    queue: JobQueue
    defaults: Defaults
