"""The supervisor: claims a job, prepares it, runs it in a process of its own, and records how it ended.

Imports no torch. Celery's threads call `Supervisor.run_available`; time limits, cancels and kills are done here (and in
workers/attempt.py), since a thread pool does none of them.
"""

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from app.domain.errors import AmalgamError, Unavailable
from app.domain.jobs import JobKind, ResourceClass
from app.services import parts, reaping, running
from app.services.running import Claim, ClaimLost, CompleteWaiter, JobSteps
from workers.attempt import Attempt, Place
from workers.pulse import Pulse
from workers.runtime import Runtime
from workers.warm import WarmServer

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Kind:
    """How a kind of job is run: its steps, and the warm process that its job process is forked from."""

    steps: JobSteps
    server: str
    takes_free_cores: bool = False  # else its share of all cores: results must not depend on what else runs
    when_models_run: "Kind | None" = None  # how those of its jobs are run that run models, if others do not

    def suited_to(self, needed: ResourceClass) -> "Kind":
        """Return how a job is run that needs this most."""
        return self.when_models_run if self.when_models_run and needed is ResourceClass.GPU else self


class Supervisor:
    """Runs jobs, at most `runtime.concurrency` at a time."""

    def __init__(
        self,
        runtime: Runtime,
        kinds: Mapping[JobKind, Kind],
        servers: Mapping[str, WarmServer],
        complete_waiter: CompleteWaiter,
    ) -> None:
        self._runtime = runtime
        self._kinds = kinds
        self._servers = servers
        self._complete_waiter = complete_waiter
        self._sessions = runtime.keepers.sessions
        self._slots = threading.Semaphore(runtime.concurrency)
        self._lock = threading.Lock()
        self._pulses: dict[str, Pulse] = {}
        self._is_draining = False

    @property
    def running(self) -> tuple[str, ...]:
        """The jobs that run at this moment."""
        with self._lock:
            return tuple(sorted(self._pulses))

    @property
    def has_room(self) -> bool:
        """Whether another job could be taken now."""
        with self._lock:
            return not self._is_draining and len(self._pulses) < self._runtime.concurrency

    @property
    def is_draining(self) -> bool:
        """Whether no new jobs are taken."""
        return self._is_draining

    def run_available(self) -> int:
        """Run jobs, best first, until none is left that this worker may run; return how many.

        Returns at once when all slots are taken: whoever holds one looks for the next job when it is done.
        """
        n_run = 0
        while not self._is_draining and self._slots.acquire(blocking=False):
            try:
                claim = self._claim()
                if claim is None:
                    break
                self._run(claim)
                n_run += 1
            finally:
                self._slots.release()
        return n_run

    def drain(self) -> None:
        """Take no new jobs; running ones have the grace of the settings, then go back to the queue."""
        with self._lock:
            self._is_draining = True
            for pulse in self._pulses.values():
                pulse.drain(self._runtime.grace_seconds)

    def _claim(self) -> Claim | None:
        try:
            return running.claim(self._sessions, self._runtime.identity, lease_seconds=self._runtime.lease_seconds)
        except Unavailable:
            log.warning("claim_failed", reason="the database is away")
            return None

    def _run(self, claim: Claim) -> None:
        facts = {
            "job": claim.job.id,
            "kind": str(claim.job.kind),
            "fence": claim.fence,
            "request_id": claim.job.request_id,
            "traceparent": claim.job.traceparent,
        }
        with structlog.contextvars.bound_contextvars(**facts):
            log.info("job_started", attempt=claim.job.attempts)
            pulse = Pulse(self._sessions, claim, every_seconds=self._runtime.heartbeat_seconds)
            with self._lock:
                self._pulses[claim.job.id] = pulse
                if self._is_draining:
                    pulse.drain(self._runtime.grace_seconds)
            try:
                kind = self._kinds[claim.job.kind].suited_to(claim.job.resource_class)
                with pulse, self._scratch(claim) as scratch:
                    place = Place(scratch, self._servers[kind.server], self._n_threads(kind))
                    Attempt(self._runtime, claim, pulse, place).run(kind.steps)
            except ClaimLost:
                log.warning("claim_lost")
            except Unavailable:
                log.warning("job_left_to_the_reaper", reason="the database is away")
            finally:
                with self._lock:
                    del self._pulses[claim.job.id]
            if claim.job.kind is JobKind.MERGE:
                self._settle_waiters()
            elif claim.job.kind is JobKind.PART:
                self._settle_merge(str(claim.job.parent))

    @contextlib.contextmanager
    def _scratch(self, claim: Claim) -> Iterator[Path]:
        folder = self._runtime.scratch / f"{claim.job.id}.{claim.fence}"
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _n_threads(self, kind: Kind) -> int:
        if self._runtime.threads:
            return self._runtime.threads
        n_sharing = len(self.running) if kind.takes_free_cores else self._runtime.concurrency
        return max(1, (os.cpu_count() or 1) // max(1, n_sharing))

    def _settle_merge(self, merge_id: str) -> None:
        try:
            parts.settle(self._sessions, self._runtime.queue, merge_id)
        except AmalgamError as error:
            log.warning("merge_not_settled", merge=merge_id, error=repr(error))  # the reaper will

    def _settle_waiters(self) -> None:
        try:
            reaping.settle_waiters(self._sessions, self._runtime.queue, self._complete_waiter)
        except AmalgamError as error:
            log.warning("waiters_not_settled", error=repr(error))  # the reaper will
