"""How many jobs database and broker carry: workers that take a message, claim a job, and end it without any work.

Run: `python -m benchmarks.service.throughput [--servers] [--workers 1 4 16] [--jobs 400]`; see README.md. The jobs wait
when the workers begin, so that what is measured is the draining of a queue.
"""

import argparse
import contextlib
import multiprocessing
import os
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from kombu import Queue

from app.config import load_settings
from app.domain.identifiers import new_id
from app.domain.jobs import ResourceClass
from app.main import wire
from app.queue import make_celery
from app.services import running
from app.services.running import JobResult, WorkerIdentity
from benchmarks.service.site import Site, open_site
from tests import servers

N_ELEMENTS = 64
LEASE_SECONDS = 60.0
IDLE_SECONDS = 2.0  # without a message, then a worker is done


def main() -> None:
    """Measure and print a row for each number of workers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", action="store_true", help="Valkey and PostgreSQL instead of files and SQLite")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4, 16], help="processes")
    parser.add_argument("--jobs", type=int, default=400)
    given = parser.parse_args()
    where = "PostgreSQL, Valkey" if given.servers else "SQLite, files"
    print("| database, broker | workers | accepted per second | ended per second |\n|---|---:|---:|---:|", flush=True)
    for n_workers in given.workers:
        with contextlib.ExitStack() as stack:
            environment: dict[str, str] = {}
            if given.servers:
                server = stack.enter_context(servers.run_postgresql())
                environment["AMALGAM_DATABASE_URL"] = stack.enter_context(servers.fresh_database(server))
                environment["AMALGAM_BROKER_URL"] = stack.enter_context(servers.run_valkey())
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="amalgam-throughput-"))
            site = stack.enter_context(open_site(Path(folder), environment))
            accepted, ended = measure(site, n_workers, given.jobs)
        print(f"| {where} | {n_workers} | {accepted:.0f} | {ended:.0f} |", flush=True)


def measure(site: Site, n_workers: int, n_jobs: int) -> tuple[float, float]:
    """Return the jobs accepted per second by one process, and ended per second by some workers."""
    _register_models(site)
    began_at = time.monotonic()
    ids = [site.submit(1.0 + index / n_jobs).id for index in range(n_jobs)]
    accepted = n_jobs / (time.monotonic() - began_at)
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(1 + n_workers)
    workers = [context.Process(target=serve, args=(site.environment, start)) for _ in range(n_workers)]
    for worker in workers:
        worker.start()
    start.wait()
    began_at = time.monotonic()
    site.wait(ids)
    ended = n_jobs / (time.monotonic() - began_at)
    for worker in workers:
        worker.join()
    return accepted, ended


def _register_models(site: Site) -> None:
    site.start_worker()
    for seed, name in enumerate(("base", "one", "two")):
        site.register(name, seed, N_ELEMENTS)
    site.stop_workers()


def serve(environment: dict[str, str], start: Barrier) -> None:
    """Be a worker that does nothing, until no message comes any more."""
    os.environ.update(environment)
    settings = load_settings()
    wiring, celery = wire(settings), make_celery(settings.broker_url)
    worker = WorkerIdentity(id=new_id("wrk"), name="idle", classes=tuple(ResourceClass))

    def end_one(_body: Any, message: Any) -> None:  # as kombu gives them
        claim = running.claim(wiring.sessions, worker, lease_seconds=LEASE_SECONDS)
        if claim is not None:
            running.finish(wiring.sessions, claim, lambda _session: JobResult(result={}))
        message.ack()

    queues = [Queue(str(name), routing_key=str(name)) for name in ResourceClass]
    with celery.connection_for_read() as connection, connection.Consumer(queues, callbacks=[end_one]) as consumer:
        consumer.qos(prefetch_count=1)
        start.wait()
        with contextlib.suppress(TimeoutError):
            while True:
                connection.drain_events(timeout=IDLE_SECONDS)


if __name__ == "__main__":
    main()
