"""A service without its API: database, broker, store, real workers, and small checkpoints to merge."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy
from safetensors.numpy import save_file

from app.config import load_settings
from app.db import migrate
from app.domain.registrations import CheckpointRequest
from app.domain.requests import MergeRequest
from app.domain.views.jobs import JobView
from app.main import wire
from app.services import checkpoints, jobs, merges
from app.services.actors import Actor
from app.services.wiring import Wiring

ACTOR = Actor(name="benchmark")
PATIENCE_SECONDS = 300.0


class Site:
    """One home folder with what runs in it."""

    def __init__(self, home: Path, environment: dict[str, str]) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AMALGAM_")}
        self.environment = {**inherited, "AMALGAM_HOME": str(home), "AMALGAM_FILE_ROOTS": str(home), **environment}
        with _only(self.environment):
            self.settings = load_settings()
        migrate.upgrade(self.settings.database_url)
        self.wiring: Wiring = wire(self.settings)
        self.workers: list[subprocess.Popen[bytes]] = []
        self.worker_module = "workers.main"

    def start_worker(self, core: int | None = None) -> subprocess.Popen[bytes]:
        """Start a worker process; its log goes to `worker.log` in the home folder.

        core: the only one that it and its children run on.
        """
        with (self.home / "worker.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", self.worker_module],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=None if core is None else partial(os.sched_setaffinity, 0, {core}),
            )
        self.workers.append(process)
        return process

    def register(self, name: str, seed: int, n_elements: int) -> None:
        """Make a checkpoint of random float32 weights, register it, and wait until it is ready."""
        folder = self.home / "models" / name
        folder.mkdir(parents=True)
        draw = numpy.random.default_rng(seed).standard_normal
        parts = {f"layer.{index}.weight": draw((n_elements // 4,), dtype=numpy.float32) for index in range(4)}
        save_file(parts, folder / "model.safetensors", metadata={"format": "pt"})
        request = CheckpointRequest(uri=folder.as_uri(), name=name)
        self.wait([checkpoints.register(self.wiring, ACTOR, request).job.id])

    def submit(self, weight: float, *, n_parts: int = 1) -> JobView:
        """Submit a merge that differs from the others by a weight; its files are small enough for two parts."""
        return merges.submit(
            self.wiring,
            ACTOR,
            MergeRequest.model_validate(
                {
                    "method": "task_arithmetic",
                    "base_model": "base",
                    "models": [{"checkpoint": "one", "weight": weight}, {"checkpoint": "two"}],
                    "max_attempts": 50,
                    "output": {"shard_bytes": 2**20},
                    "parallelism": n_parts,
                }
            ),
        )

    def wait(self, job_ids: Sequence[str], *, patience_seconds: float = PATIENCE_SECONDS) -> list[JobView]:
        """Return the jobs once all of them have ended."""
        deadline = time.monotonic() + patience_seconds
        ended: dict[str, JobView] = {}
        while len(ended) < len(job_ids):
            for job_id in job_ids:
                if job_id not in ended and (view := jobs.get(self.wiring.sessions, ACTOR, job_id)).is_final:
                    ended[job_id] = view
            if time.monotonic() > deadline:
                left = sorted(set(job_ids) - set(ended))
                raise TimeoutError(f"{len(left)} of {len(job_ids)} jobs have not ended in {patience_seconds} s: {left}")
            time.sleep(0.05)
        return [ended[job_id] for job_id in job_ids]

    def stop_workers(self) -> None:
        """Drain every worker that still runs."""
        for process in self.workers:
            if process.poll() is None:
                process.terminate()
        for process in self.workers:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def close(self) -> None:
        """Stop everything."""
        self.stop_workers()
        self.wiring.queue.close()
        self.wiring.sessions.engine.dispose()


@contextlib.contextmanager
def open_site(home: Path, environment: dict[str, str]) -> Iterator[Site]:
    """Open a site and close it at the end."""
    site = Site(home, environment)
    try:
        yield site
    finally:
        site.close()


@contextlib.contextmanager
def _only(environment: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
