"""What a worker process stands on; built once by its door (workers/main.py)."""

from dataclasses import dataclass
from pathlib import Path

from app.queue import JobQueue
from app.services.running import Keepers, WorkerIdentity


@dataclass(frozen=True)
class Runtime:
    """Tables, stores and doorbell; who this worker is; where and how its jobs run."""

    keepers: Keepers
    queue: JobQueue
    identity: WorkerIdentity
    scratch: Path  # holds one folder per attempt, named <job id>.<fence>
    device: str
    concurrency: int
    threads: int  # of a job; 0: the cores, shared by the jobs that run when it starts
    job_memory_bytes: int | None
    lease_seconds: float
    heartbeat_seconds: float
    grace_seconds: float
