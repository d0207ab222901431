"""Merges in parts by real workers: the bytes are those of the whole merge, whatever happens to a worker meanwhile."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.domain.jobs import JobState
from app.domain.views.jobs import JobView
from tests.faults.harness import freeze
from tests.faults.merging import MergingPlant, open_merging_plant
from tests.servers import S3Bucket
from tests.waiting import wait_until

pytestmark = pytest.mark.slow
ROWS = {f"layers.{index}.weight": (500, 600) for index in range(4)}  # 1.2 MB each: one to a file
SQUARES = {f"layers.{index}.weight": (700, 700) for index in range(4)}  # seconds of decompositions each


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[MergingPlant]:
    with open_merging_plant(tmp_path / "plant") as opened:
        yield opened


def check_nothing_is_left(plant: MergingPlant, *merges: JobView) -> None:
    """No job, no folder of an attempt, no file on its way into the store, and no object that none of these names."""
    ended = [part for merge in merges for part in plant.parts(merge.id)]
    assert {part.state for part in ended} <= {JobState.SUCCEEDED}
    wait_until(lambda: plant.leftovers == [], deadline_seconds=60, reason="no folder of an attempt is left")
    assert plant.sweep() == {sha256 for merge in merges for sha256 in plant.files(merge).values()}
    assert plant.temporary_files == []


def check_two_workers(plant: MergingPlant, rows: int = 500) -> None:
    """Two workers, each alone with its part, merge what one of them merges as a whole: matrices of so many rows."""
    plant.start_worker("first")
    plant.start_worker("second")
    plant.register_family(dict.fromkeys(ROWS, (rows, 600)))
    named: set[str] = set()
    for method in ("task_arithmetic", "ties"):
        asked = [plant.merge(method, parallelism=n, output={"shard_bytes": rows * 2500}) for n in (4, 1)]
        split, whole = plant.end([job.id for job in asked])
        assert split.state is JobState.SUCCEEDED, split.problem
        assert plant.files(split) == plant.files(whole)
        assert len(plant.files(split)) == 4 + 3  # weights; index, recipe and card
        assert {part.attempts for part in plant.parts(split.id)} == {1}
        named |= set(plant.files(split).values())
    assert len({part.worker for part in plant.parts(split.id)}) == 2
    assert plant.sweep() == named  # nothing else is left in the store
    wait_until(lambda: plant.leftovers == [], reason="no folder of an attempt is left")


def test_two_workers_over_files_and_sqlite(plant: MergingPlant) -> None:
    check_two_workers(plant)


def test_two_workers_over_valkey_postgresql_and_s3(
    tmp_path: Path, redis_url: str, postgresql_url: str, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_bucket.environment.items():
        monkeypatch.setenv(name, value)
    environment = {
        "AMALGAM_BROKER_URL": redis_url,
        "AMALGAM_DATABASE_URL": postgresql_url,
        "AMALGAM_STORE_URL": f"{s3_bucket.url}/store",
    }
    with open_merging_plant(tmp_path / "plant", environment) as plant:
        check_two_workers(plant, rows=4000)  # 9.6 MB each, which go up in parts


def test_a_killed_worker_costs_its_part_and_nothing_more(plant: MergingPlant) -> None:
    first = plant.start_worker("first")
    plant.register_family(SQUARES)
    job = plant.merge("tsv_m", parallelism=4)
    wait_until(lambda: plant.running_part(job.id), deadline_seconds=60, reason="a part that runs")
    first.send_signal(signal.SIGKILL)
    first.wait()
    plant.start_worker("second")
    whole = plant.merge("tsv_m", parallelism=1)
    split, whole = plant.end([job.id, whole.id])
    assert split.state is JobState.SUCCEEDED, split.problem
    assert plant.files(split) == plant.files(whole)
    assert split.attempts == 1
    assert sorted(part.attempts for part in plant.parts(job.id)) == [1, 1, 1, 2]
    plant.start_worker("first")  # the killed one's folder is removed by whoever works there again
    check_nothing_is_left(plant, split, whole)


def test_a_worker_frozen_past_its_lease_does_no_harm(plant: MergingPlant) -> None:
    frozen = plant.start_worker("first")
    plant.register_family(SQUARES)
    job = plant.merge("tsv_m", parallelism=4)
    wait_until(lambda: plant.running_part(job.id), deadline_seconds=60, reason="a part that runs")
    freeze(frozen, plant.wiring.sessions)
    plant.start_worker("second")
    whole = plant.merge("tsv_m", parallelism=1)
    split, whole = plant.end([job.id, whole.id])
    frozen.send_signal(signal.SIGCONT)
    log = plant.home / "first.log"
    wait_until(lambda: b"claim_lost" in log.read_bytes(), deadline_seconds=30, reason="the frozen worker knows")
    assert split.state is JobState.SUCCEEDED, split.problem
    assert plant.files(split) == plant.files(whole)
    assert plant.look(job.id) == split
    check_nothing_is_left(plant, split, whole)


def test_canceling_stops_every_part_and_leaves_nothing(plant: MergingPlant) -> None:
    plant.start_worker("first")
    plant.start_worker("second")
    plant.register_family(SQUARES)
    job = plant.merge("tsv_m", parallelism=4)
    wait_until(lambda: plant.running_part(job.id), deadline_seconds=60, reason="a part that runs")
    canceled = plant.cancel(job.id)
    assert canceled.state is JobState.CANCELED
    plant.end([part.id for part in plant.parts(job.id)])
    assert JobState.RUNNING not in {part.state for part in plant.parts(job.id)}
    wait_until(lambda: plant.leftovers == [], reason="no folder of an attempt is left")
    assert plant.sweep() == set()


def test_without_its_broker_parts_are_found_all_the_same(tmp_path: Path) -> None:
    with open_merging_plant(tmp_path / "plant", {"AMALGAM_BROKER_URL": "redis://127.0.0.1:9/0"}) as plant:
        plant.start_worker("first")
        plant.register_family(ROWS)
        (job,) = plant.end([plant.merge("ties", parallelism=2).id])
        assert job.state is JobState.SUCCEEDED, job.problem
