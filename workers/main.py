"""The worker's door: reads the settings, warms up, listens to the queue, keeps house, and drains on SIGTERM.

Run as `python -m workers.main`. Imports no torch; the warm processes do.
"""

import contextlib
import os
import pkgutil
import signal
import sys
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec

import structlog
from celery import signals

from app.config import Settings, SettingsInvalid, load_settings
from app.db import migrate
from app.db.engine import Sessions, make_engine
from app.domain.errors import AmalgamError
from app.domain.identifiers import new_id
from app.domain.jobs import JobKind
from app.logging import set_up_logging
from app.queue import TASK_NAME, JobQueue, make_celery
from app.services import (
    analyses,
    evaluations,
    finetunes,
    freeing,
    importing,
    materializations,
    merges,
    parts,
    presence,
    reaping,
    sweeps,
)
from app.services.presence import WorkerFacts
from app.services.reaping import Reaper, ReapLimits
from app.services.running import Keepers, WorkerIdentity
from app.storage.buckets import WORKER_PATIENCE_SECONDS
from app.storage.factory import open_storage
from app.storage.sources import Sources
from workers.housekeeping import Housekeeping
from workers.identity import NameTaken, find_machine, take_name
from workers.lookout import Lookout
from workers.runtime import Runtime
from workers.tasks import Kind, Supervisor
from workers.warm import WarmServer

WARM_SECONDS = 120.0  # that a worker waits for its libraries before it takes jobs all the same
log = structlog.get_logger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """Run a worker with the settings of the environment; return its exit code."""
    try:
        settings = load_settings()
    except SettingsInvalid as error:
        sys.stderr.write(f"{error}\n")
        return 2
    set_up_logging(settings.log_format, settings.log_level)
    return run(settings)


def modules_of(package: str) -> tuple[str, ...]:
    """Return the names of a package's modules, sorted, without importing them."""
    spec = find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    return tuple(sorted(f"{package}.{module.name}" for module in pkgutil.iter_modules(folders)))


@dataclass(frozen=True)
class Trade:
    """What kinds of jobs a worker runs, and what its warm processes are made of."""

    kinds: Mapping[JobKind, Kind]
    entry: str  # the module that does the work
    preloaded: Mapping[str, tuple[str, ...]]  # warm process -> modules it imports


TRADE = Trade(
    kinds={
        JobKind.IMPORT: Kind(importing.import_steps, "merge", takes_free_cores=True),
        JobKind.MERGE: Kind(merges.steps, "merge", takes_free_cores=True),
        JobKind.PART: Kind(parts.steps, "merge", takes_free_cores=True),
        JobKind.MATERIALIZE: Kind(materializations.steps, "merge", takes_free_cores=True),
        JobKind.ANALYZE: Kind(
            analyses.steps, "merge", takes_free_cores=True, when_models_run=Kind(analyses.steps, "model")
        ),
        JobKind.EVALUATE: Kind(evaluations.steps, "model"),
        JobKind.FINETUNE: Kind(finetunes.steps, "model"),
        JobKind.SWEEP: Kind(sweeps.steps, "model"),
    },
    entry="workers.runner",
    preloaded={
        "merge": (
            "workers.pipelines.importing",
            "workers.pipelines.merge",
            "workers.pipelines.parts",
            "workers.pipelines.materialize",
            *modules_of("workers.methods"),
        ),
        "model": (
            "transformers",
            "workers.pipelines.evaluate",
            "workers.pipelines.finetune",
            "workers.pipelines.merge",
        ),
    },
)


def run(settings: Settings, trade: Trade = TRADE) -> int:
    """Run a worker until it is told to stop; return its exit code (1: it cannot work as it is)."""
    try:
        with take_name(settings.home / "workers", settings.worker_name) as name:
            return _Worker(settings, name, trade).run()
    except NameTaken as error:
        sys.stderr.write(f"AMALGAM_WORKER_NAME: {error}\n")
        return 2


class _Worker:
    """Everything that lives as long as the worker."""

    def __init__(self, settings: Settings, name: str, trade: Trade) -> None:
        self._settings = settings
        self._sessions = Sessions(make_engine(settings.database_url))
        self._storage = open_storage(
            settings.store_url,
            settings.cache,
            settings.scratch,
            cache_bytes=settings.cache_bytes,
            patience_seconds=WORKER_PATIENCE_SECONDS,
        )
        self._sources = Sources(
            settings.file_roots,
            settings.cache,
            cache_bytes=settings.cache_bytes,
            patience_seconds=WORKER_PATIENCE_SECONDS,
        )
        self._queue = JobQueue(settings.broker_url)
        machine, cores = find_machine(name)
        self._facts = WorkerFacts(
            id=new_id("wrk"),
            name=name,
            queues=settings.queues,
            device=settings.device,
            concurrency=settings.concurrency,
            version=version("amalgam"),
            machine=machine,
            cores=cores,
            threads=settings.threads,
        )
        runtime = self._make_runtime()
        self._servers = {
            server: WarmServer(trade.entry, modules, threads=settings.threads or os.cpu_count() or 1)
            for server, modules in trade.preloaded.items()
        }
        self._supervisor = Supervisor(runtime, trade.kinds, self._servers, merges.complete_waiter)
        self._lookout = Lookout(self._supervisor, runtime, self._servers, every_seconds=settings.poll_seconds)
        self._housekeeping = Housekeeping(self._supervisor, runtime, self._facts)

    def run(self) -> int:
        if not migrate.is_at_head(self._sessions.engine):
            sys.stderr.write("The database does not have this release's schema. Run `amalgam migrate`, then start.\n")
            return 2
        reaping.release_former(self._sessions, self._facts.name, self._facts.id)
        self._housekeeping.sweep_scratch()
        try:
            signal.signal(signal.SIGTERM, _leave)  # until Celery listens
            self._warm_up()
            self._work()
        finally:
            for server in self._servers.values():
                server.stop()
            self._sessions.engine.dispose()
            log.info("worker_stopped", worker=self._facts.id, is_broken=self._lookout.is_broken)
        return 1 if self._lookout.is_broken else 0

    def _warm_up(self) -> None:
        """Import the libraries of a merge; meanwhile others take the jobs, and nobody counts on this worker."""
        self._servers["merge"].start()
        self._servers["merge"].wait_until_warm(WARM_SECONDS)

    def _work(self) -> None:
        """Take jobs until told to stop."""
        stop = threading.Event()
        threads: list[threading.Thread] = []
        try:
            presence.register(self._sessions, self._facts)
            threads += self._start_threads(stop)
            log.info(
                "worker_started",
                worker=self._facts.id,
                name=self._facts.name,
                queues=[str(name) for name in self._settings.queues],
            )
            self._listen()
        finally:
            self._supervisor.drain()
            self._lookout.join()
            stop.set()
            for thread in threads:
                thread.join()
            with contextlib.suppress(AmalgamError):
                presence.leave(self._sessions, self._facts.id)

    def _make_runtime(self) -> Runtime:
        settings = self._settings
        return Runtime(
            keepers=Keepers(self._sessions, self._storage, self._sources),
            queue=self._queue,
            identity=WorkerIdentity(self._facts.id, self._facts.name, settings.queues),
            scratch=settings.scratch / "jobs",
            device=settings.device,
            concurrency=settings.concurrency,
            threads=settings.threads,
            job_memory_bytes=settings.job_memory_bytes,
            lease_seconds=settings.lease_seconds,
            heartbeat_seconds=settings.heartbeat_seconds,
            grace_seconds=settings.grace_seconds,
        )

    def _start_threads(self, stop: threading.Event) -> list[threading.Thread]:
        settings = self._settings
        limits = ReapLimits(
            hint_seconds=settings.hint_seconds,
            cancel_grace_seconds=settings.cancel_grace_seconds,
            worker_seconds=max(60.0, settings.lease_seconds),
        )
        reaper = Reaper(self._sessions, self._queue, merges.complete_waiter, limits)
        threads = [
            threading.Thread(
                target=reaping.keep_reaping,
                args=(reaper, stop),
                kwargs={"every_seconds": settings.reap_seconds},
                name="reaper",
            ),
            threading.Thread(target=self._lookout.run, args=(stop,), name="lookout"),
            threading.Thread(target=self._housekeeping.run, args=(stop,), name="housekeeping"),
            threading.Thread(target=self._sweep, args=(stop,), name="sweeper"),
        ]
        for thread in threads:
            thread.start()
        return threads

    def _sweep(self, stop: threading.Event) -> None:
        """Free bytes that nothing names any more, and what was fetched and is not used."""
        grace_seconds = self._settings.sweep_grace_seconds
        while not stop.wait(self._settings.sweep_seconds):
            try:
                freeing.sweep(self._sessions, self._storage, grace_seconds=grace_seconds)
                self._sources.sweep(older_than_seconds=grace_seconds)
            except (AmalgamError, OSError) as error:
                log.warning("sweep_failed", error=repr(error))

    def _listen(self) -> None:
        """Let Celery listen until SIGTERM or SIGINT; returns when the running jobs have ended or gone back."""
        celery = make_celery(self._settings.broker_url)
        celery.task(name=TASK_NAME, ignore_result=True)(self._on_message)
        signals.setup_logging.connect(_keep_our_logging)
        signals.worker_shutting_down.connect(self._on_shutdown)
        warnings.filterwarnings("ignore", message="You're running the worker with superuser privileges")
        worker = celery.Worker(
            pool="threads",
            concurrency=self._settings.concurrency,
            queues=[str(name) for name in self._settings.queues],
            hostname=f"{self._facts.id}@{self._facts.name}",
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            quiet=True,
        )
        worker.start()

    def _on_message(self, _job_id: str) -> None:
        self._lookout.note_message()
        self._supervisor.run_available()

    def _on_shutdown(self, **_facts: object) -> None:
        self._supervisor.drain()


def _leave(_number: int, _frame: object) -> None:
    """Stop a worker that does not take jobs yet."""
    sys.exit(0)


def _keep_our_logging(**_facts: object) -> None:
    """Being connected is enough: Celery then sets up no logging of its own."""


if __name__ == "__main__":
    sys.exit(main())
