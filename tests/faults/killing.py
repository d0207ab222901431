"""A place where one merge in parts is run again and again, its worker killed at another point each time."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import torch
from safetensors.torch import save_file
from sqlalchemy import select

from app.config import load_settings
from app.db import migrate
from app.db.tables import Artifact, ArtifactFile, Job
from app.domain.jobs import FINAL_STATES, JobState
from app.domain.registrations import CheckpointRequest
from app.domain.requests import MergeRequest
from app.domain.views.jobs import JobView
from app.main import wire
from app.services import artifacts, checkpoints, freeing, jobs, merges
from app.services.actors import Actor
from tests.faults.points import run_until
from tests.servers import S3Bucket
from workers.housekeeping import Housekeeping

ACTOR = Actor()
LAYERS = {f"layers.{index}.weight": (400, 700) for index in range(4)}  # 1.12 MB each: one to a file
NAMES = ("base", "one", "two")


class LeftBehind(Exception):
    """Something was not as it must be after a kill."""


class Ground:
    """One installation with three models; `bucket`: where its models and its store lie, if not in folders."""

    def __init__(self, home: Path, bucket: S3Bucket | None) -> None:
        home.mkdir(parents=True)
        self.home, self.bucket = home, bucket
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AMALGAM_")}
        own = {"AMALGAM_HOME": str(home), "AMALGAM_FILE_ROOTS": str(home), "AMALGAM_LOG_LEVEL": "error"}
        self.environment = {**inherited, **own}
        if bucket is not None:
            self.environment |= {**bucket.environment, "AMALGAM_STORE_URL": f"{bucket.url}/store"}
        with mock.patch.dict(os.environ, self.environment, clear=True):
            self.settings = load_settings()
            migrate.upgrade(self.settings.database_url)
            self.wiring = wire(self.settings)
        self._register()
        self.expected = self._files(self._run(parallelism=1))
        self._forget()
        self._before = self._objects()

    def count_points(self) -> list[str]:
        """Return the names of the points that the merge comes to when nobody kills its worker."""
        told = self.home / "points.txt"
        job = self._submit()
        run_until(self.environment, told=told)
        self._check(job, 0, "at none")
        return told.read_text().splitlines()

    def kill_at(self, number: int) -> None:
        """Run the merge, kill its worker at a point, start another, and look at everything. Raises: LeftBehind."""
        job = self._submit()
        if run_until(self.environment, number):
            run_until(self.environment)
        self._check(job, number, "at this point")

    def _submit(self, parallelism: int = 2) -> str:
        body = {
            "method": "ties",
            "base_model": "base",
            "models": [{"checkpoint": "one"}, {"checkpoint": "two"}],
            "output": {"shard_bytes": 2**20},
            "parallelism": parallelism,
            "force": True,
        }
        return merges.submit(self.wiring, ACTOR, MergeRequest.model_validate(body)).id

    def _run(self, parallelism: int) -> JobView:
        job = self._submit(parallelism)
        run_until(self.environment)
        return jobs.get(self.wiring.sessions, ACTOR, job)

    def _check(self, job_id: str, number: int, where: str) -> None:
        job = jobs.get(self.wiring.sessions, ACTOR, job_id)
        faults = list(self._look(job)) if job.state is JobState.SUCCEEDED else [f"it is {job.state}: {job.problem}"]
        if not faults:
            self._forget()
            if self._objects() != self._before:
                faults.append(f"objects are left: {sorted(self._objects() - self._before)}")
        if faults:
            raise LeftBehind(f"killed {where} ({number}): {'; '.join(faults)}")

    def _look(self, job: JobView) -> Iterator[str]:
        if self._files(job) != self.expected:
            yield f"the files are {self._files(job)}, expected {self.expected}"
        with self.wiring.sessions.read() as session:
            for row in session.scalars(select(Job)):
                if row.state not in FINAL_STATES:
                    yield f"{row.kind} {row.id} is {row.state}"
            if len(made := session.scalars(select(Artifact.id)).all()) != 1:
                yield f"artifacts: {made}"
            named = set(session.scalars(select(ArtifactFile.sha256)))
        self._sweep()
        if self._objects() != self._before_with(named):
            yield f"objects: {sorted(self._objects() ^ self._before_with(named))}"
        yield from (f"left: {path}" for path in self._leftovers())

    def _before_with(self, named: set[str]) -> set[str]:
        return getattr(self, "_before", set()) | named

    def _sweep(self) -> None:
        freeing.sweep(self.wiring.sessions, self.wiring.storage, grace_seconds=0.0)
        runtime = SimpleNamespace(scratch=self.settings.scratch / "jobs", keepers=self.wiring)
        Housekeeping(cast(Any, None), cast(Any, runtime), cast(Any, None)).sweep_scratch()

    def _leftovers(self) -> Iterator[str]:
        for pattern in ("scratch/jobs/*", "scratch/incoming/*", "store/temp/*", "cache/*/temp/*", "**/*.building"):
            yield from (str(path.relative_to(self.home)) for path in self.home.glob(pattern))
        if self.bucket is not None:
            client = self.bucket.client()
            yield from (
                upload["Key"] for upload in client.list_multipart_uploads(Bucket=self.bucket.name).get("Uploads", [])
            )
            found = client.list_objects_v2(Bucket=self.bucket.name, Prefix="store/").get("Contents", [])
            yield from (one["Key"] for one in found if "/objects/sha256/" not in one["Key"])

    def _objects(self) -> set[str]:
        return {sha256 for sha256, _ in self.wiring.storage.list_objects()}

    def _files(self, job: JobView) -> dict[str, str]:
        if job.result is None:
            raise LeftBehind(f"{job.id} is {job.state}: {job.problem}")
        made = cast(list[str], job.result["artifacts"])
        return {file.path: file.sha256 for file in artifacts.get(self.wiring.sessions, ACTOR, made[0]).files}

    def _forget(self) -> None:
        """Delete what was merged, so that the next merge makes it anew."""
        with self.wiring.sessions.read() as session:
            made = session.scalars(select(Artifact.id)).all()
        for artifact_id in made:
            artifacts.delete(self.wiring.sessions, self.wiring.storage, ACTOR, artifact_id)
        self._sweep()

    def _register(self) -> None:
        for seed, name in enumerate(NAMES):
            folder = self.home / "models" / name
            folder.mkdir(parents=True)
            generator = torch.Generator().manual_seed(seed)
            tensors = {key: torch.randn(*shape, generator=generator) for key, shape in LAYERS.items()}
            save_file(tensors, folder / "model.safetensors")
            uri = folder.as_uri()
            if self.bucket is not None:
                key = f"models/{name}/model.safetensors"
                self.bucket.client().upload_file(str(folder / "model.safetensors"), self.bucket.name, key)
                uri = f"{self.bucket.url}/models/{name}"
            checkpoints.register(self.wiring, ACTOR, CheckpointRequest(uri=uri, name=name))
        run_until(self.environment)

    def close(self) -> None:
        """Give the connections back."""
        self.wiring.queue.close()
        self.wiring.sessions.engine.dispose()


@contextlib.contextmanager
def open_ground(home: Path, bucket: S3Bucket | None = None) -> Iterator[Ground]:
    """Open a ground and close it at the end."""
    with contextlib.ExitStack() as stack:
        if bucket is not None:
            stack.enter_context(mock.patch.dict(os.environ, bucket.environment))
        ground = Ground(home, bucket)
        stack.callback(ground.close)
        yield ground
