"""A worker that is killed at a numbered point: before or after a write, a sync, a rename, a link, a put, a commit.

`run_until` runs every job that there is in a process of its own, which dies by SIGKILL when it comes to the point of
that number. Points are numbered as they are reached, so a number is about the same place in every run. For tests.
"""

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any
from unittest import mock

import obstore
from sqlalchemy import event, update
from sqlalchemy.orm import Session

from app.config import load_settings
from app.db.tables import Job
from app.domain.identifiers import new_id
from app.domain.jobs import ResourceClass
from app.main import wire
from app.services import parts, presence, reaping, running
from app.services.presence import WorkerFacts
from app.services.running import Keepers, WorkerIdentity
from app.storage import buckets
from app.storage.buckets import Outgoing
from tests.attempts import run_attempt

WORKER = "mortal"
JOIN_SECONDS = 120.0
SMALL_PUT_BYTES = 1 << 16  # so that files of a megabyte go up in parts


@dataclass
class Points:
    """Counts the points that are reached, and kills this process at one of them."""

    killed_at: int
    names: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reach(self, name: str) -> None:
        """Come to a point."""
        with self._lock:
            self.names.append(name)
            if len(self.names) == self.killed_at:
                os.kill(os.getpid(), signal.SIGKILL)

    def around(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:  # Any: of any signature
        """Return a function with a point before and one after it."""

        @functools.wraps(function)
        def watched(*arguments: Any, **named: Any) -> Any:
            self.reach(f"before {name}")
            result = function(*arguments, **named)
            self.reach(f"after {name}")
            return result

        return watched


@contextlib.contextmanager
def watch(points: Points) -> Iterator[None]:
    """Put points around everything that changes a file, a bucket or a table."""
    with contextlib.ExitStack() as stack:
        for owner, names in (
            (os, ("pwrite", "pwritev", "fsync", "link", "rename", "replace", "unlink", "posix_fallocate")),
            (Path, ("write_bytes",)),
            (obstore, ("put", "copy", "delete")),
        ):
            for name in names:
                stack.enter_context(mock.patch.object(owner, name, points.around(getattr(owner, name), name)))
        read = Outgoing.read

        def read_watched(outgoing: Outgoing) -> Iterator[bytes]:
            for data in read(outgoing):
                yield data
                points.reach("within a put")

        stack.enter_context(mock.patch.object(Outgoing, "read", read_watched))
        stack.enter_context(mock.patch.object(buckets, "SINGLE_PUT_BYTES", SMALL_PUT_BYTES))
        stack.enter_context(mock.patch("app.storage.growing.SINGLE_PUT_BYTES", SMALL_PUT_BYTES))
        for when in ("before_commit", "after_commit"):
            reach = functools.partial(_reach_commit, points, when)
            event.listen(Session, when, reach)
            stack.callback(event.remove, Session, when, reach)
        yield


def _reach_commit(points: Points, when: str, _session: Session) -> None:
    points.reach(when)


def run_jobs(environment: Mapping[str, str], killed_at: int, told: Path | None = None) -> None:
    """Run what there is to run, to the end or to the point; write the names of all points into the file `told`."""
    os.environ.update(environment)
    settings = load_settings()
    wiring = wire(settings)
    keepers = Keepers(wiring.sessions, wiring.storage, wiring.sources)
    worker = WorkerIdentity(new_id("wrk"), WORKER, tuple(ResourceClass))
    presence.register(wiring.sessions, WorkerFacts(worker.id, WORKER, worker.classes, "cpu", 1, "0", "here", 2, 0))
    reaping.release_former(wiring.sessions, WORKER, worker.id)
    with wiring.sessions.begin() as session:
        session.execute(update(Job).values(not_before=None))  # the backoff is over
    parts.settle_all(wiring.sessions, wiring.queue)
    points = Points(killed_at)
    with watch(points):
        while (claim := running.claim(wiring.sessions, worker, lease_seconds=600.0)) is not None:
            points.reach("after claim")
            run_attempt(keepers, claim, settings.scratch / "jobs" / f"{claim.job.id}.{claim.fence}")
            points.reach("after finish")
            if claim.job.parent is not None:
                parts.settle(wiring.sessions, wiring.queue, claim.job.parent)
    if told is not None:
        told.write_text("\n".join(points.names), encoding="utf-8")
    wiring.queue.close()
    wiring.sessions.engine.dispose()


@functools.cache
def _forks() -> ForkServerContext:
    """Return what forks processes that have imported all of this."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.points", "workers.pipelines.parts", "workers.methods.ties"])
    return context


def run_until(environment: Mapping[str, str], killed_at: int = 0, told: Path | None = None) -> bool:
    """Run what there is to run in a process of its own; tell whether it was killed at the point (0: at none)."""
    process = _forks().Process(target=run_jobs, args=(dict(environment), killed_at, told))
    process.start()
    process.join(JOIN_SECONDS)
    if process.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the worker ended with {process.exitcode}, expected 0, or a kill at point {killed_at}")
    return process.exitcode != 0
