"""What can happen to a job process, under a real worker on SQLite and the filesystem broker."""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from app.domain.jobs import JobState
from tests.faults.harness import Plant, Worker, is_alive, open_plant
from tests.waiting import wait_until

MEMORY_LIMIT_BYTES = 400 * 2**20


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    with open_plant(tmp_path_factory.mktemp("plant"), AMALGAM_JOB_MEMORY_BYTES=str(MEMORY_LIMIT_BYTES)) as opened:
        yield opened


@pytest.fixture(scope="module")
def worker(plant: Plant) -> Worker:
    return plant.start_worker(AMALGAM_CONCURRENCY="2")


@pytest.fixture(autouse=True)
def _nothing_left_behind(plant: Plant, worker: Worker) -> Iterator[None]:
    yield
    wait_until(lambda: plant.leftovers == [], reason="no folder of an attempt is left")
    assert worker.process.poll() is None, worker.log


def test_a_job_runs_once_and_tells_its_stages(plant: Plant) -> None:
    job = plant.add()
    view = job.until_final()
    assert (view.state, view.attempts, view.result) == (JobState.SUCCEEDED, 1, {"checkpoint": None, "fence": 1})
    assert [stage.name for stage in view.timings.stages] == ["preparing", "behaving", "done"]
    assert job.events[0] == "job.queued"
    assert job.events[-1] == "job.succeeded"


def test_a_long_job_shows_its_progress_while_it_runs(plant: Plant) -> None:
    job = plant.add(sleep_seconds=1.5)
    view = job.until(lambda view: view.progress is not None and view.progress.stage == "behaving")
    assert view.state is JobState.RUNNING
    job.until_final()
    assert "job.progress" in job.events


def test_a_message_that_came_three_times_starts_one_attempt(plant: Plant) -> None:
    job = plant.add(hints=3, sleep_seconds=0.5)
    job.until_final()
    assert job.events.count("job.started") == 1


def test_a_message_that_never_came_is_made_up_for(plant: Plant) -> None:
    assert plant.add(hints=0).until_final().state is JobState.SUCCEEDED


def test_a_killed_job_process_is_tried_again_and_told_from_a_lack_of_memory(plant: Plant) -> None:
    job = plant.add(sleep_seconds=60)
    pid = job.until_working()
    job.behave()
    os.kill(pid, signal.SIGKILL)
    view = job.until_final()
    assert (view.state, view.attempts) == (JobState.SUCCEEDED, 2)
    assert "job.retrying" in job.events
    assert job.events.count("job.succeeded") == 1


def test_what_a_job_keeps_outlives_its_attempts_and_not_the_job(plant: Plant) -> None:
    job = plant.add(keep=True, sleep_seconds=60)
    kept = plant.home / "scratch" / "jobs" / f"{job.id}.kept" / "fences"
    pid = job.until_working()
    os.kill(pid, signal.SIGKILL)
    job.until_working()
    assert kept.read_text() == "1\n2\n"
    job.cancel()
    job.until_final()
    wait_until(lambda: not kept.parent.exists(), reason="what the job kept is removed")


def test_a_job_process_that_always_dies_fails_as_worker_lost_with_the_signal(plant: Plant) -> None:
    job = plant.add(max_attempts=1, signal=int(signal.SIGSEGV))
    assert job.until_final().state is JobState.FAILED
    assert job.problem_code == "worker_lost"
    assert "SIGSEGV" in str(job.view.problem)


def test_a_job_process_that_leaves_without_a_word_is_worker_lost(plant: Plant) -> None:
    job = plant.add(max_attempts=1, exit_code=3)
    job.until_final()
    assert job.problem_code == "worker_lost"
    assert "exit code 3" in str(job.view.problem)


def test_a_job_that_asks_for_too_much_memory_is_out_of_memory_and_not_tried_again(plant: Plant) -> None:
    job = plant.add(allocate_bytes=4 * MEMORY_LIMIT_BYTES)
    view = job.until_final()
    assert (view.state, view.attempts) == (JobState.FAILED, 1)
    assert job.problem_code == "out_of_memory"


@pytest.mark.parametrize("when", ["fill_disk", "fill_disk_before"])
def test_a_full_disk_is_insufficient_storage_in_the_work_and_before_it(plant: Plant, when: str) -> None:
    job = plant.add(**{when: True})
    job.until_final()
    assert job.problem_code == "insufficient_storage"


def test_a_fault_of_ours_is_internal_with_its_traceback_in_the_log_alone(plant: Plant, worker: Worker) -> None:
    job = plant.add(max_attempts=1, fault="the secret of the fault")
    job.until_final()
    assert job.problem_code == "job_internal"
    assert "secret" not in str(job.view.problem)
    assert "the secret of the fault" in worker.log


def test_a_job_beyond_its_time_limit_is_stopped(plant: Plant) -> None:
    job = plant.add(timeout_seconds=1, sleep_seconds=60)
    pid = job.until_working()
    view = job.until_final()
    assert (view.state, view.attempts) == (JobState.FAILED, 1)
    assert job.problem_code == "timeout"
    assert not is_alive(pid)


def test_a_running_job_is_canceled_within_two_seconds(plant: Plant) -> None:
    job = plant.add(sleep_seconds=60)
    pid = job.until_working()
    asked_at = time.monotonic()
    job.cancel()
    assert job.until_final().state is JobState.CANCELED
    assert time.monotonic() - asked_at < 2.0
    assert not is_alive(pid)


def test_a_job_whose_inputs_are_on_their_way_shows_the_bytes_and_is_canceled_within_two_seconds(plant: Plant) -> None:
    job = plant.add(n_slow_pieces=1000)
    view = job.until(lambda view: view.progress is not None and view.progress.done > 0)
    progress = view.progress
    assert progress is not None
    assert (progress.stage, progress.unit, progress.total) == ("preparing", "bytes", 1000 << 16)
    assert 0.0 < progress.fraction < 0.5
    assert progress.bytes_per_second is not None
    assert progress.eta_seconds is not None
    assert progress.eta_seconds == pytest.approx((progress.total - progress.done) / progress.bytes_per_second)
    asked_at = time.monotonic()
    job.cancel()
    assert job.until_final().state is JobState.CANCELED
    assert time.monotonic() - asked_at < 2.0
    assert list((plant.home / "store" / "temp").iterdir()) == []


def test_the_time_limit_counts_while_inputs_are_on_their_way(plant: Plant) -> None:
    job = plant.add(n_slow_pieces=1000, timeout_seconds=1)
    assert job.until_final().state is JobState.FAILED
    assert job.problem_code == "timeout"


def test_the_loss_of_the_warm_process_costs_one_attempt(plant: Plant, worker: Worker) -> None:
    job = plant.add(sleep_seconds=60)
    pid = job.until_working()
    job.behave()
    server = next(process for process in worker.descendants() if "workers.forkserver" in " ".join(process.cmdline()))
    server.kill()
    view = job.until_final()
    assert (view.state, view.attempts) == (JobState.SUCCEEDED, 2)
    assert not is_alive(pid)


def test_jobs_run_two_at_a_time_the_urgent_ones_first(plant: Plant) -> None:
    running = [plant.add(sleep_seconds=1.0) for _ in range(2)]
    for job in running:
        job.until_working()
    late = plant.add()
    assert late.view.state is JobState.QUEUED
    assert late.until_final().state is JobState.SUCCEEDED
