"""How long things take: a merge from accepted to running, the POST itself, the start of the API and its memory.

Run: `python -m benchmarks.service.latency [--servers] [--jobs 40]`; see README.md. Merges are tiny and come one after
another, so what is measured is the way and not the work.
"""

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from benchmarks.service.site import Site, open_site
from tests import servers

N_ELEMENTS = 4096
START_SECONDS = 60.0
TENSOR_LIBRARIES = ("libtorch", "numpy", "transformers")


@dataclass(frozen=True)
class Api:
    """A running API process."""

    url: str
    process: psutil.Process
    start_seconds: float


@contextlib.contextmanager
def run_api(site: Site) -> Iterator[Api]:
    """Start the API of a site and wait until it answers."""
    port = servers.free_port()
    command = [sys.executable, "-m", "app.cli.main", "api", "--port", str(port)]
    began_at = time.monotonic()
    with (site.home / "api.log").open("wb") as log:
        process = subprocess.Popen(command, env=site.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        while not _answers(url):
            if process.poll() is not None or time.monotonic() - began_at > START_SECONDS:
                raise RuntimeError((site.home / "api.log").read_text())
            time.sleep(0.005)
        yield Api(url, psutil.Process(process.pid), time.monotonic() - began_at)
    finally:
        process.terminate()
        process.wait(30)


def measure(site: Site, api: Api, n_jobs: int) -> dict[str, float]:
    """Submit merges one after another over HTTP; return milliseconds."""
    posts: list[float] = []
    waits: list[float] = []
    runs: list[float] = []
    with httpx.Client(base_url=api.url, timeout=30) as client:
        for index in range(n_jobs + 3):
            body = {
                "method": "task_arithmetic",
                "base_model": "base",
                "models": [{"checkpoint": "one", "weight": 0.5 + index / 1024}, {"checkpoint": "two"}],
            }
            began_at = time.perf_counter()
            answer = client.post("/v1/merges", json=body)
            posted = time.perf_counter() - began_at
            answer.raise_for_status()
            job = site.wait([answer.json()["id"]])[0]
            timings = job.timings
            if job.problem is not None or timings.started_at is None or timings.finished_at is None:
                raise RuntimeError(f"{job.id} is {job.state}: {job.problem}")
            if index >= 3:  # the first ones warm up connections and caches
                posts.append(posted)
                waits.append((timings.started_at - timings.queued_at).total_seconds())
                runs.append((timings.finished_at - timings.started_at).total_seconds())
    return {
        **_quantiles("POST /v1/merges", posts),
        **_quantiles("accepted to running", waits),
        **_quantiles("running to succeeded", runs),
    }


def _quantiles(name: str, seconds: Sequence[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=20)
    return {f"{name}, p50": 1000 * statistics.median(seconds), f"{name}, p95": 1000 * cuts[18]}


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def _tensor_libraries(process: psutil.Process) -> list[str]:
    paths = [mapped.path for mapped in process.memory_maps()]
    return [name for name in TENSOR_LIBRARIES if any(f"/{name}" in path for path in paths)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", action="store_true", help="Valkey and PostgreSQL instead of files and SQLite")
    parser.add_argument("--jobs", type=int, default=40)
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        environment = {}
        if given.servers:
            server = stack.enter_context(servers.run_postgresql())
            environment["AMALGAM_DATABASE_URL"] = stack.enter_context(servers.fresh_database(server))
            environment["AMALGAM_BROKER_URL"] = stack.enter_context(servers.run_valkey())
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="amalgam-latency-"))
        site = stack.enter_context(open_site(Path(folder), environment))
        api = stack.enter_context(run_api(site))
        print(f"API: start {api.start_seconds:.2f} s")
        site.start_worker()
        for seed, name in enumerate(("base", "one", "two")):
            site.register(name, seed, N_ELEMENTS)
        for name, milliseconds in measure(site, api, given.jobs).items():
            print(f"{name}: {milliseconds:.1f} ms")
        memory = api.process.memory_full_info()
        print(f"API: resident {memory.rss / 2**20:.0f} MiB, its own {memory.uss / 2**20:.0f} MiB")
        print(f"API: tensor libraries loaded: {_tensor_libraries(api.process) or 'none'}")


if __name__ == "__main__":
    main()
