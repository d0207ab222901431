"""A real installation in small: API and two workers as processes of their own, on PostgreSQL, Valkey and S3."""

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load, save_file
from torch import Tensor

from tests.embedded import PROGRAM, ROOT, environment
from tests.servers import S3Bucket, free_port
from tests.waiting import wait_until


@dataclass
class Installation:
    """The processes, and a client of their API."""

    client: httpx.Client
    environment: dict[str, str]
    folder: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *words: str) -> None:
        """Start a part; its output goes to a file of its name."""
        with (self.folder / f"{name}.log").open("wb") as output:
            self.processes[name] = subprocess.Popen(
                (*PROGRAM, *words), env=self.environment, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
            )

    def is_ready(self) -> bool:
        """Tell whether the API can work and sees both workers."""
        for name, process in self.processes.items():
            assert process.poll() is None, (self.folder / f"{name}.log").read_text()
        with contextlib.suppress(httpx.TransportError):
            answer = self.client.get("/readyz")
            return answer.status_code == 200 and "2 active" in answer.json()["parts"]["workers"]["detail"]
        return False

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:  # Any: JSON
        """Post a body that is accepted as work."""
        answer = self.client.post(path, json=body)
        assert answer.status_code == 202, answer.text
        accepted: dict[str, Any] = answer.json()
        return accepted

    def finish(self, job_id: str) -> dict[str, Any]:  # Any: JSON
        """Wait until a job has ended well, and return it."""
        job: dict[str, Any] = {}

        def is_over() -> bool:
            job.update(self.client.get(f"/v1/jobs/{job_id}", params={"wait_seconds": 5}).json())
            return job["state"] in ("succeeded", "failed", "canceled")

        try:
            wait_until(is_over, deadline_seconds=120)
        except AssertionError as error:
            error.add_note(f"{job}\n{self.logs()}")
            raise
        assert job["state"] == "succeeded", job["problem"]
        return job

    def logs(self) -> str:
        """Return what the parts printed."""
        return "\n".join(
            f"== {name}\n{(self.folder / name).with_suffix('.log').read_text()}" for name in self.processes
        )

    def end(self) -> None:
        """Kill what still runs."""
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()


@pytest.fixture
def models(tmp_path: Path) -> dict[str, dict[str, Tensor]]:
    """Three small checkpoints below `models/`: a base model and two that were moved from it."""
    tensors = {
        name: {"embeddings.weight": torch.full((6, 4), value), "head.bias": torch.full((3,), -value)}
        for name, value in {"base": 1.0, "first": 3.0, "second": 7.0}.items()
    }
    for name, own in tensors.items():
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True)
        save_file(own, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps({"model_type": "toy"}))
    return tensors


@pytest.fixture
def installation(
    tmp_path: Path, migrated_postgresql_url: str, redis_url: str, s3_bucket: S3Bucket
) -> Iterator[Installation]:
    settings = {
        "AMALGAM_DATABASE_URL": migrated_postgresql_url,
        "AMALGAM_BROKER_URL": redis_url,
        "AMALGAM_STORE_URL": f"{s3_bucket.url}/artifacts",
        "AMALGAM_CONCURRENCY": "1",
        **s3_bucket.environment,
    }
    port = free_port()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        parts = Installation(client, environment(tmp_path / "home", settings), tmp_path)
        try:
            parts.start("api", "api", "--port", str(port))
            parts.start("worker-1", "worker")
            parts.start("worker-2", "worker", "--queues", "cpu")
            wait_until(parts.is_ready, deadline_seconds=60, reason="the installation")
            yield parts
        finally:
            parts.end()


@pytest.mark.slow
def test_a_merge_travels_through_every_part(
    installation: Installation, models: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    for name in models:
        accepted = installation.post("/v1/checkpoints", {"uri": (tmp_path / "models" / name).as_uri(), "name": name})
        installation.finish(accepted["job"]["id"])

    recipe = {
        "method": "task_arithmetic",
        "base_model": "base",
        "models": [{"checkpoint": "first"}, {"checkpoint": "second", "weight": 0.5}],
        "parameters": {"scaling_coefficient": 0.5},
        "output": {"name": "merged"},
    }
    job = installation.finish(installation.post("/v1/merges", recipe)["id"])

    artifact = job["result"]["artifacts"][0]
    paths = {file["path"] for file in installation.client.get(f"/v1/artifacts/{artifact}").json()["files"]}
    weights = load(installation.client.get(f"/v1/artifacts/{artifact}/files/model.safetensors").content)
    assert {"model.safetensors", "config.json", "recipe.json", "README.md"} <= paths
    # base + 0.5 * (1.0 * (3 - 1) + 0.5 * (7 - 1)) = 1 + 0.5 * 5 = 3.5; the bias is its mirror image
    assert torch.equal(weights["embeddings.weight"], torch.full((6, 4), 3.5))
    assert torch.equal(weights["head.bias"], torch.full((3,), -3.5))

    for name in ("worker-1", "worker-2"):
        installation.processes[name].send_signal(signal.SIGTERM)
    assert [installation.processes[name].wait(40) for name in ("worker-1", "worker-2")] == [0, 0]


@pytest.mark.slow
def test_the_containers_health_check_sees_the_worker(installation: Installation) -> None:
    command = [sys.executable, str(ROOT / "docker" / "worker_health.py")]
    variables = {**installation.environment, "PYTHONPATH": str(ROOT)}

    result = subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stdout + result.stderr
