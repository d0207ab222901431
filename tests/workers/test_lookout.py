"""The lookout: work is found without messages, and a worker that cannot do its work is ended."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.db.engine import Sessions, make_engine
from app.db.tables import Project, Table
from app.queue import JobQueue
from app.services.running import Keepers, WorkerIdentity
from app.storage.local import LocalStorage
from app.storage.sources import Sources
from tests.app.services.job_world import EVERYTHING, JobWorld
from tests.waiting import wait_until
from workers import lookout
from workers.lookout import Lookout
from workers.runtime import Runtime
from workers.tasks import Supervisor
from workers.warm import WarmServer


class IdleSupervisor(Supervisor):
    """Counts how often it is sent for work, and leaves the work lying."""

    def __init__(self) -> None:
        self.n_sent = 0

    @property
    def has_room(self) -> bool:
        return True

    def run_available(self) -> int:
        self.n_sent += 1
        return 0


class Watch:
    """A lookout over one queued job, and what it does."""

    def __init__(self, folder: Path) -> None:
        engine = make_engine(f"sqlite:///{folder / 'jobs.db'}")
        Table.metadata.create_all(engine)
        self.world = JobWorld(Sessions(engine))
        with self.world.sessions.begin() as session:
            session.add(Project(id="default"))
        self.supervisor = IdleSupervisor()
        self.server = WarmServer("tests.faults.work")
        keepers = Keepers(self.world.sessions, LocalStorage(folder / "store"), Sources([folder], folder / "cache"))
        runtime = Runtime(
            keepers=keepers,
            queue=JobQueue(f"filesystem://{folder / 'broker'}"),
            identity=WorkerIdentity("wrk_1", "worker-1", EVERYTHING),
            scratch=folder / "scratch",
            device="cpu",
            concurrency=1,
            threads=1,
            job_memory_bytes=None,
            lease_seconds=60.0,
            heartbeat_seconds=1.0,
            grace_seconds=1.0,
        )
        self.lookout = Lookout(self.supervisor, runtime, {"merge": self.server}, every_seconds=0.01)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.lookout.run, args=(self._stop,))
        self._thread.start()

    def end(self) -> None:
        self._stop.set()
        self._thread.join()
        self.lookout.join()
        self.world.sessions.engine.dispose()


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    made = Watch(tmp_path)
    yield made
    made.end()


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The signals that would have ended this process."""
    sent: list[int] = []

    def kill(pid: int, number: int) -> None:
        assert pid == os.getpid()
        sent.append(number)

    monkeypatch.setattr(lookout.os, "kill", kill)  # type: ignore[attr-defined]
    return sent


def test_work_without_a_message_is_found(watch: Watch) -> None:
    watch.world.add()
    wait_until(lambda: watch.supervisor.n_sent > 0)


def test_without_work_nobody_is_sent(watch: Watch, signals: list[int]) -> None:
    threading.Event().wait(0.2)
    assert (watch.supervisor.n_sent, signals) == (0, [])


def test_a_worker_that_finds_work_but_hears_nothing_is_ended(
    watch: Watch, signals: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookout, "DEAF_SECONDS", 0.1)
    watch.world.add()
    wait_until(lambda: signals == [signal.SIGTERM])
    assert watch.lookout.is_broken


def test_a_worker_that_hears_is_not_deaf(watch: Watch, signals: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookout, "DEAF_FINDS", 10**9)
    monkeypatch.setattr(lookout, "DEAF_SECONDS", 0.0)
    watch.world.add()
    wait_until(lambda: watch.supervisor.n_sent > 5)
    watch.lookout.note_message()
    assert signals == []


def test_a_worker_whose_warm_process_cannot_start_is_ended(watch: Watch, signals: list[int]) -> None:
    watch.server.is_broken = True
    wait_until(lambda: signals == [signal.SIGTERM])
    assert watch.lookout.is_broken
