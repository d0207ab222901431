"""Real workers that merge: a database, a broker, a store, and checkpoints large enough to be worth a shard."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import torch
from safetensors.torch import save_file
from torch import Tensor

from app.config import load_settings
from app.db import migrate
from app.domain.jobs import JobKind, JobState
from app.domain.registrations import CheckpointRequest
from app.domain.requests import MergeRequest
from app.domain.views.jobs import JobView
from app.domain.views.pages import PageRequest
from app.main import wire
from app.services import artifacts, checkpoints, freeing, jobs, merges
from app.services.actors import Actor
from app.services.jobs import JobFilters
from tests.faults.harness import QUICK
from tests.waiting import wait_until

ACTOR = Actor()
PATIENCE_SECONDS = 120.0


class MergingPlant:
    """Workers over one installation, and the merges they are given."""

    def __init__(self, home: Path, environment: Mapping[str, str]) -> None:
        home.mkdir()
        self.home = home
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AMALGAM_")}
        own = {
            "AMALGAM_HOME": str(home),
            "AMALGAM_FILE_ROOTS": str(home),
            "AMALGAM_CONCURRENCY": "1",
            "AMALGAM_THREADS": "1",
        }
        self.environment = {**inherited, **QUICK, **own, **environment}
        with mock.patch.dict(os.environ, self.environment, clear=True):
            settings = load_settings()
            migrate.upgrade(settings.database_url)
            self.wiring = wire(settings)
        self.workers: dict[str, subprocess.Popen[bytes]] = {}

    def start_worker(self, name: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start a worker with data of its own: as on another machine, it shares what the settings name alone."""
        log = self.home / f"{name}.log"
        own = {"AMALGAM_WORKER_NAME": name, "AMALGAM_SCRATCH": str(self.home / f"scratch-{name}"), **environment}
        with log.open("wb") as output:
            self.workers[name] = subprocess.Popen(
                [sys.executable, "-m", "workers.main"],
                env={**self.environment, **own},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        wait_until(lambda: b"worker_started" in log.read_bytes(), deadline_seconds=PATIENCE_SECONDS, reason=str(log))
        return self.workers[name]

    def register(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write a checkpoint and register it; a worker that is there imports it."""
        folder = self.home / "models" / name
        folder.mkdir(parents=True)
        save_file(dict(tensors), folder / "model.safetensors")
        request = CheckpointRequest(uri=folder.as_uri(), name=name)
        self.end([checkpoints.register(self.wiring, ACTOR, request).job.id])

    def register_family(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Register `base`, `one` and `two`, of random float32 numbers."""
        for seed, name in enumerate(("base", "one", "two")):
            generator = torch.Generator().manual_seed(seed)
            self.register(name, {key: torch.randn(*shape, generator=generator) for key, shape in shapes.items()})

    def merge(self, method: str, **fields: Any) -> JobView:
        """Submit a merge of `one` and `two`, written in files of at least a megabyte."""
        body = {
            "method": method,
            "base_model": "base",
            "models": [{"checkpoint": "one"}, {"checkpoint": "two"}],
            "output": {"shard_bytes": 2**20},
            "force": True,
            **fields,
        }
        return merges.submit(self.wiring, ACTOR, MergeRequest.model_validate(body))

    def cancel(self, job_id: str) -> JobView:
        """Cancel a job."""
        return jobs.cancel(self.wiring.sessions, ACTOR, job_id)

    def look(self, job_id: str) -> JobView:
        """Return a job as it is now."""
        return jobs.get(self.wiring.sessions, ACTOR, job_id)

    def parts(self, job_id: str) -> list[JobView]:
        """Return the parts of a merge, in order."""
        filters = JobFilters(kind=JobKind.PART, parent=job_id)
        return list(jobs.list_(self.wiring.sessions, ACTOR, filters, PageRequest(limit=200, order="created_at")).items)

    def running_part(self, job_id: str) -> JobView | None:
        """Return a part that a worker works at, if there is one."""
        found = (one for one in self.parts(job_id) if one.state is JobState.RUNNING and one.progress is not None)
        return next(found, None)

    def end(self, job_ids: Sequence[str]) -> list[JobView]:
        """Wait until jobs have ended, and return them."""
        wait_until(
            lambda: all(self.look(job_id).is_final for job_id in job_ids),
            deadline_seconds=PATIENCE_SECONDS,
            reason=f"the end of {job_ids}",
        )
        return [self.look(job_id) for job_id in job_ids]

    def files(self, job: JobView) -> dict[str, str]:
        """Return the digests of what a merge made, by path."""
        assert job.result is not None, job.problem
        made = job.result["artifacts"]
        assert isinstance(made, list)
        artifact = artifacts.get(self.wiring.sessions, ACTOR, str(made[0]))
        return {file.path: file.sha256 for file in artifact.files}

    def sweep(self) -> set[str]:
        """Remove what nothing names, and return the digests of what is left in the store."""
        freeing.sweep(self.wiring.sessions, self.wiring.storage, grace_seconds=0.0)
        return {sha256 for sha256, _ in self.wiring.storage.list_objects()}

    @property
    def temporary_files(self) -> list[str]:
        """Files of the store, a local folder, that are no objects yet."""
        return sorted(path.name for path in self.home.glob("store/temp/*"))

    @property
    def leftovers(self) -> list[str]:
        """Folders of attempts that nobody has removed."""
        return sorted(path.name for path in self.home.glob("scratch-*/jobs/*"))

    def close(self) -> None:
        """Kill the workers, with what they have started."""
        for process in self.workers.values():
            if process.poll() is None:
                left = psutil.Process(process.pid).children(recursive=True)
                process.send_signal(signal.SIGKILL)
                for one in left:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        one.kill()
            process.wait()
        self.wiring.queue.close()
        self.wiring.sessions.engine.dispose()


@contextlib.contextmanager
def open_merging_plant(home: Path, environment: Mapping[str, str] | None = None) -> Iterator[MergingPlant]:
    """Open a plant and close it at the end."""
    plant = MergingPlant(home, environment or {})
    try:
        yield plant
    finally:
        plant.close()
