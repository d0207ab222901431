"""A database, a broker, and real workers that can be killed, frozen and drained."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from sqlalchemy import text

from app.db import migrate
from app.db import parts as part_rows
from app.db.engine import Sessions, make_engine
from app.domain.jobs import JobKind, JobState, ResourceClass
from app.domain.views.jobs import JobView
from app.domain.views.pages import EventsRequest
from app.queue import JobQueue
from app.services import jobs
from app.services.actors import Actor
from tests.faults.work import BEHAVIOR, PID
from tests.waiting import wait_until

ACTOR = Actor()
START_SECONDS = 60.0
PATIENCE_SECONDS = 40.0
QUICK = {
    "AMALGAM_LEASE_SECONDS": "2",
    "AMALGAM_HEARTBEAT_SECONDS": "0.2",
    "AMALGAM_REAP_SECONDS": "0.2",
    "AMALGAM_POLL_SECONDS": "0.3",
    "AMALGAM_GRACE_SECONDS": "0.5",
    "AMALGAM_LOG_FORMAT": "json",
}


def freeze(process: subprocess.Popen[bytes], sessions: Sessions) -> None:
    """Stop a process between its writes: one that is frozen inside a transaction keeps SQLite's lock from everybody."""
    with sessions.begin() as session:
        session.execute(text("SELECT 1"))  # this transaction has the lock from here
        process.send_signal(signal.SIGSTOP)


class DidNotStart(Exception):
    """The worker ended at once; the message is its log."""


class Worker:
    """A worker process and its log."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def has_started(self) -> bool:
        if self.process.poll() is not None:
            raise DidNotStart(self.log)
        return "worker_started" in self.log

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def wait(self) -> int:
        return self.process.wait(PATIENCE_SECONDS)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()


class Plant:
    """Workers over one home folder, and the jobs they are given."""

    def __init__(self, home: Path, environment: dict[str, str]) -> None:
        self.home = home
        self._environment = {**QUICK, "AMALGAM_HOME": str(home), **environment}
        self._database_url = environment.get("AMALGAM_DATABASE_URL", f"sqlite:///{home / 'amalgam.db'}")
        migrate.upgrade(self._database_url)
        self.sessions = Sessions(make_engine(self._database_url))
        self.queue = JobQueue(environment.get("AMALGAM_BROKER_URL", f"filesystem://{home / 'broker'}"))
        self._workers: list[Worker] = []

    def start_worker(self, *, is_awaited: bool = True, **environment: str) -> Worker:
        log = self.home / f"worker-{len(self._workers)}.log"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AMALGAM_")}
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.worker"],
                env={**inherited, **self._environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        worker = Worker(process, log)
        self._workers.append(worker)
        if is_awaited:
            wait_until(lambda: worker.has_started, deadline_seconds=START_SECONDS, reason=str(log))
        return worker

    @property
    def n_active_workers(self) -> int:
        with self.sessions.read() as session:
            return sum(room.n_slots for room in part_rows.list_rooms(session, ResourceClass.IO))

    def add(
        self, *, hints: int = 1, max_attempts: int = 3, timeout_seconds: int = 60, **behavior: object
    ) -> "Behaving":
        folder = self.home / f"work-{len(list(self.home.glob('work-*')))}"
        folder.mkdir()
        (folder / BEHAVIOR).write_text(json.dumps(behavior))
        with self.sessions.begin() as session:
            job = jobs.add(
                session,
                ACTOR,
                kind=JobKind.IMPORT,
                spec={"folder": str(folder)},
                resource_class=ResourceClass.IO,
                inputs=(),
                max_attempts=max_attempts,
                timeout_seconds=timeout_seconds,
            )
        for _ in range(hints):
            jobs.hint(self.queue, [job])
        return Behaving(self, job.id, folder)

    @property
    def leftovers(self) -> list[str]:
        """Folders of attempts that nobody has removed."""
        return sorted(path.name for path in (self.home / "scratch" / "jobs").glob("*"))

    def close(self) -> None:
        for worker in self._workers:
            worker.stop()
        self.queue.close()
        self.sessions.engine.dispose()


class Behaving:
    """A job that behaves as told, and what has become of it."""

    def __init__(self, plant: Plant, job_id: str, folder: Path) -> None:
        self._plant = plant
        self.id = job_id
        self._folder = folder

    def behave(self, **behavior: object) -> None:
        """Tell its next attempt what to do."""
        (self._folder / BEHAVIOR).write_text(json.dumps(behavior))

    @property
    def view(self) -> JobView:
        return jobs.get(self._plant.sessions, ACTOR, self.id)

    @property
    def events(self) -> list[str]:
        found = jobs.events(self._plant.sessions, ACTOR, self.id, EventsRequest(after_seq=0, limit=1000))
        assert [event.seq for event in found] == list(range(1, len(found) + 1))
        return [event.type for event in found]

    @property
    def problem_code(self) -> str:
        problem = self.view.problem
        assert problem is not None
        return str(problem["code"])

    def cancel(self) -> None:
        jobs.cancel(self._plant.sessions, ACTOR, self.id)

    def until(self, condition: Callable[[JobView], bool]) -> JobView:
        wait_until(lambda: condition(self.view), deadline_seconds=PATIENCE_SECONDS, reason=f"{self.id} {self.events}")
        return self.view

    def until_final(self) -> JobView:
        return self.until(lambda view: view.is_final)

    def until_working(self) -> int:
        """Wait until its process works; return the process's id."""
        wait_until(lambda: self.view.state is not JobState.QUEUED, deadline_seconds=PATIENCE_SECONDS)
        pid = self._folder / PID
        wait_until(lambda: pid.exists() and pid.read_text(), deadline_seconds=PATIENCE_SECONDS, reason="its process")
        number = int(pid.read_text())
        pid.unlink()
        return number


@contextlib.contextmanager
def open_plant(home: Path, **environment: str) -> Iterator[Plant]:
    plant = Plant(home, environment)
    try:
        yield plant
    finally:
        plant.close()


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
