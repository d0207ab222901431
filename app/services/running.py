"""The running part of a job's life, as its worker sees it: claim, heartbeat, finish, fail, release, confirm a cancel.

Every write is one guarded UPDATE that names the claim's fence, so a worker that lost its lease changes nothing.
What each kind of job does around its work (`JobSteps`) lives beside the service that creates it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pydantic import JsonValue
from sqlalchemy.orm import Session

from app.db.engine import Sessions
from app.domain.jobs import ResourceClass
from app.domain.views.jobs import JobInputRef, JobView
from app.domain.work import Outcome, Work
from app.services.actors import Actor
from app.storage.base import Storage
from app.storage.sources import Sources


class ClaimLost(Exception):
    """The job is no longer this worker's: its lease ran out and another took it, or it was ended. Write nothing."""


@dataclass(frozen=True)
class WorkerIdentity:
    """The worker that claims."""

    id: str
    name: str
    classes: tuple[ResourceClass, ...]


@dataclass(frozen=True)
class Claim:
    """The right to run one attempt of a job; `fence` guards every write."""

    job: JobView
    inputs: tuple[JobInputRef, ...]
    actor: Actor  # of the job's owner: what the job makes belongs to the same project
    worker: WorkerIdentity
    fence: int
    lease_seconds: float


@dataclass(frozen=True)
class Heartbeat:
    """What a worker learns when it renews its lease."""

    cancel_requested: bool
    is_lost: bool


@dataclass(frozen=True)
class JobResult:
    """What `record` made: the job's `result` object, and the jobs that follow (hinted after the commit)."""

    result: dict[str, JsonValue]
    followers: tuple[JobView, ...] = ()


@dataclass(frozen=True)
class Keepers:
    """What steps reach the world through."""

    sessions: Sessions
    storage: Storage
    sources: Sources


class JobSteps(Protocol):
    """What a kind of job does before and after its work; one module-level object per kind.

    A job that ends without success needs no step: jobs.py leaves a failed import's checkpoint `invalid` by itself.
    """

    def prepare(self, keepers: Keepers, claim: Claim, scratch: Path) -> Work:
        """Fetch the inputs and return the work order; no transaction is open while bytes move.

        scratch: an empty folder of this attempt; a work that writes writes into `scratch / "output"` (it exists).
        Raises: any AmalgamError, which ends the attempt (InputChanged, OutOfDisk, …).
        """

    def record(self, session: Session, claim: Claim, outcome: Outcome) -> JobResult:
        """Store what came out, within the transaction that ends the job.

        The files of the outcome have been published into the store by now.
        """


CompleteWaiter = Callable[[Session, JobView, JobView], JobResult]
"""(session, waiter, source) -> result: gives a merge that waited for an equal one its share of that one's result."""
