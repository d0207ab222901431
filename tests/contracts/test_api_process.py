"""The API runs as a process where no tensor library is installed, and stays small."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.servers import free_port
from tests.waiting import wait_until
from tests.without_tensors import make_environment

MEMORY_BYTES = 150 * 10**6


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**make_environment(tmp_path), "AMALGAM_HOME": str(tmp_path / "home")}


@pytest.fixture
def api(environment: dict[str, str], tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    amalgam = [sys.executable, "-m", "app.cli.main"]
    subprocess.run([*amalgam, "migrate"], cwd=tmp_path, env=environment, check=True, capture_output=True)
    port = free_port()
    with (tmp_path / "log.txt").open("wb") as log:
        command = [*amalgam, "api", "--port", str(port)]
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        yield process, client
    if process.poll() is None:
        process.kill()
        process.wait()


def is_alive(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False


def test_api_serves_its_catalog_without_a_tensor_library(
    api: tuple[subprocess.Popen[bytes], httpx.Client], tmp_path: Path
) -> None:
    process, client = api
    wait_until(lambda: is_alive(client) or process.poll() is not None, deadline_seconds=30)
    assert process.poll() is None, (tmp_path / "log.txt").read_text()

    assert client.get("/readyz").status_code == 200
    assert client.get("/v1/methods").json()["items"]
    assert client.get("/openapi.json").status_code == 200
    assert psutil.Process(process.pid).memory_info().rss <= MEMORY_BYTES

    process.send_signal(signal.SIGTERM)
    assert process.wait(20) in (0, -signal.SIGTERM)  # uvicorn shuts down, then ends by the signal it got


def test_a_worker_says_what_it_misses(environment: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "app.cli.main", "worker"]

    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    assert result.returncode == 1
    assert "torch" in result.stderr
    assert "Traceback" not in result.stderr
