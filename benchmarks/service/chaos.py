"""Chaos: small merges while workers and job processes are killed with -9, and messages are dropped and doubled.

What must hold at the end: every job succeeded, with exactly one result; every byte is that of a quiet run; no
temporary folder is left. Run: `python -m benchmarks.service.chaos [--servers] [--jobs 100]`; see README.md.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from sqlalchemy import func, select

from app.db.tables import Artifact, ArtifactFile, Checkpoint, Event
from app.domain.jobs import JobState
from benchmarks.service import unreliable
from benchmarks.service.site import Site, open_site
from benchmarks.service.unreliable import UnreliableQueue
from tests import servers

QUICK = {
    "AMALGAM_LEASE_SECONDS": "4",
    "AMALGAM_HEARTBEAT_SECONDS": "0.5",
    "AMALGAM_REAP_SECONDS": "0.5",
    "AMALGAM_POLL_SECONDS": "2",
    "AMALGAM_CONCURRENCY": "1",
    "AMALGAM_LOG_FORMAT": "json",
}
N_WORKERS = 2


@dataclass(frozen=True)
class Weather:
    """How bad it gets."""

    n_jobs: int = 100
    n_elements: int = 2_000_000  # of each model
    kill_every_seconds: float = 3.0
    dropped: float = 0.15  # fraction of messages
    doubled: float = 0.30
    seed: int = 0
    split_every: int = 3  # merges in two parts among the others


@dataclass
class Damage:
    """What was done; messages are counted that we sent, those of the workers are lost and doubled as well."""

    n_workers_killed: int = 0
    n_job_processes_killed: int = 0
    n_dropped: int = 0
    n_doubled: int = 0


@dataclass(frozen=True)
class Report:
    """What came out; `faults` is empty when all that must hold holds."""

    seconds: float
    damage: Damage
    n_attempts: int
    faults: tuple[str, ...]


class Killer:
    """Kills a worker or a job process every few seconds, and starts a new worker for each that died."""

    def __init__(self, site: Site, weather: Weather, damage: Damage) -> None:
        self._site = site
        self._weather = weather
        self._damage = damage
        self._random = random.Random(weather.seed + 1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="killer")

    def __enter__(self) -> "Killer":
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._weather.kill_every_seconds * self._random.uniform(0.5, 1.5)):
            if self._random.random() < 0.5:
                self._kill_worker()
            else:
                self._kill_job_process()

    def _kill_worker(self) -> None:
        living = [process for process in self._site.workers if process.poll() is None]
        victim = self._random.choice(living)
        victim.kill()
        victim.wait()
        self._damage.n_workers_killed += 1
        self._site.start_worker()

    def _kill_job_process(self) -> None:
        """Kill a job process as soon as there is one; they do not live long."""
        deadline = time.monotonic() + self._weather.kill_every_seconds
        while time.monotonic() < deadline and not self._stop.is_set():
            for process in self._site.workers:
                for victim in _job_processes(process.pid):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        victim.kill()
                        self._damage.n_job_processes_killed += 1
                        return
            time.sleep(0.01)


def run_chaos(folder: Path, environment: dict[str, str], weather: Weather) -> Report:
    """Run the jobs quietly, then in the weather, and compare."""
    quiet = run_quietly(folder / "quiet", weather)
    damage = Damage()
    started_at = time.monotonic()
    with open_site(folder / "stormy", {**QUICK, **environment}) as site:
        site.environment |= unreliable.describe(weather.dropped, weather.doubled, weather.seed)
        site.worker_module = unreliable.__name__
        for _ in range(N_WORKERS):
            site.start_worker()
        _register(site, weather)
        queue = UnreliableQueue(site.settings.broker_url, weather.dropped, weather.doubled, weather.seed)
        reliable, site.wiring = site.wiring.queue, dataclasses.replace(site.wiring, queue=queue)
        with Killer(site, weather, damage):
            job_ids = [
                site.submit(_weight(index), n_parts=1 if index % weather.split_every else 2).id
                for index in range(weather.n_jobs)
            ]
            site.wait(job_ids)
        damage.n_dropped, damage.n_doubled = queue.n_dropped, queue.n_doubled
        seconds = time.monotonic() - started_at
        faults = [*_look_at_jobs(site, job_ids), *_look_at_bytes(site, job_ids, quiet)]
        attempts = sum(view.attempts for view in site.wait(job_ids))
        site.stop_workers()
        faults += _look_at_leftovers(site)
        queue.close()
        reliable.close()
    return Report(seconds, damage, attempts, tuple(faults))


def run_quietly(home: Path, weather: Weather) -> dict[int, str]:
    """Return the digest of each merge's files, by its number, from a run in which nothing happens."""
    with open_site(home, QUICK) as site:
        site.start_worker()
        _register(site, weather)
        job_ids = [site.submit(_weight(index)).id for index in range(weather.n_jobs)]
        site.wait(job_ids)
        digests = _digests(site)
        return {index: digests[job_id][0] for index, job_id in enumerate(job_ids)}


def _register(site: Site, weather: Weather) -> None:
    for seed, name in enumerate(("base", "one", "two")):
        site.register(name, seed, weather.n_elements)


def _weight(index: int) -> float:
    return 0.5 + index / 128  # exact in binary: no two recipes are equal


def _digests(site: Site) -> dict[str, list[str]]:
    """Return the content digests of the checkpoints that each job made."""
    with site.wiring.sessions.read() as session:
        found: dict[str, list[str]] = {}
        for job_id, digest in session.execute(select(Checkpoint.job_id, Checkpoint.content_digest)):
            found.setdefault(job_id or "", []).append(digest or "")
        return found


def _look_at_jobs(site: Site, job_ids: list[str]) -> Iterator[str]:
    with site.wiring.sessions.read() as session:
        ends = select(Event.job_id, func.count()).where(Event.type == "job.succeeded").group_by(Event.job_id)
        n_ends = {job_id: count for job_id, count in session.execute(ends)}  # noqa: C416 (rows are no pairs to mypy)
        made = select(Artifact.job_id, func.count()).group_by(Artifact.job_id)
        n_artifacts = {job_id: count for job_id, count in session.execute(made)}  # noqa: C416
    for view in site.wait(job_ids):
        if view.state is not JobState.SUCCEEDED:
            yield f"{view.id} is {view.state}: {view.problem}"
        if n_ends.get(view.id) != 1 or n_artifacts.get(view.id) != 1:
            yield f"{view.id} ended {n_ends.get(view.id)} times with {n_artifacts.get(view.id)} artifacts"


def _look_at_bytes(site: Site, job_ids: list[str], quiet: dict[int, str]) -> Iterator[str]:
    digests = _digests(site)
    for index, job_id in enumerate(job_ids):
        if digests.get(job_id) != [quiet[index]]:
            yield f"{job_id} made {digests.get(job_id)}, the quiet run made {quiet[index]}"
    with site.wiring.sessions.read() as session:
        stored = session.scalars(select(ArtifactFile.sha256).distinct()).all()
    for sha256 in stored:
        content = hashlib.sha256()
        for part in site.wiring.storage.read(sha256):
            content.update(part)
        if content.hexdigest() != sha256:
            yield f"object {sha256} holds other bytes: {content.hexdigest()}"


def _look_at_leftovers(site: Site) -> Iterator[str]:
    """Look after a last sweep: a worker started and drained once more, and the store's own."""
    site.start_worker()
    time.sleep(0.1)
    _wait_for_idle(site)
    site.stop_workers()
    site.wiring.storage.sweep_temp(older_than_seconds=0.0)
    for pattern in ("scratch/jobs/*", "store/temp/*", "broker/processed/*", "broker/messages/*.part"):
        for path in site.home.glob(pattern):
            yield f"left behind: {path.relative_to(site.home)}"


def _wait_for_idle(site: Site) -> None:
    deadline = time.monotonic() + 60
    while list((site.home / "scratch" / "jobs").glob("*")) and time.monotonic() < deadline:
        time.sleep(0.2)


def _job_processes(worker_pid: int) -> list[psutil.Process]:
    """Return the job processes of a worker: the children of its warm processes."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [job for warm in psutil.Process(worker_pid).children() for job in warm.children()]
    return []


def main() -> None:
    """Run chaos and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", action="store_true", help="Valkey and PostgreSQL instead of files and SQLite")
    parser.add_argument("--jobs", type=int, default=Weather.n_jobs)
    parser.add_argument("--seed", type=int, default=Weather.seed)
    given = parser.parse_args()
    weather = Weather(n_jobs=given.jobs, seed=given.seed)
    with contextlib.ExitStack() as stack:
        environment = {}
        if given.servers:
            server = stack.enter_context(servers.run_postgresql())
            environment["AMALGAM_DATABASE_URL"] = stack.enter_context(servers.fresh_database(server))
            environment["AMALGAM_BROKER_URL"] = stack.enter_context(servers.run_valkey())
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="amalgam-chaos-"))
        report = run_chaos(Path(folder), environment, weather)
    print(f"{weather}\n{report}")
    raise SystemExit(1 if report.faults else 0)


if __name__ == "__main__":
    main()
