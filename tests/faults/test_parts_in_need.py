"""Merges in parts whose disk is full, or whose store is cut off: they end, the bytes are right, nothing is left."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import update

from app.db.tables import Job
from app.services import freeing, parts
from app.storage.buckets import WORKER_PATIENCE_SECONDS
from app.storage.factory import open_storage
from tests.app.api.house import Document, House, open_house
from tests.app.api.test_parts import files_of, objects, parts_of, register_family, ties
from tests.s3_proxy import run_proxy
from tests.servers import S3Bucket

MEGABYTE = 1 << 20


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with open_house(tmp_path / "house") as opened:
        yield opened


@contextmanager
def small_disk(folder: Path, n_bytes: int) -> Iterator[Path]:
    """Yield a folder that is a disk of its own, of so many bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small disk needs the right to mount one: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def work_until(house: House, job: Document, state: str) -> Document:
    """Run attempts, without backoff, until the merge is in a state."""
    for _ in range(40):
        with house.wiring.sessions.begin() as session:
            session.execute(update(Job).values(not_before=None))
        house.work()
        found = house.read(f"/v1/jobs/{job['id']}")
        if found["state"] == state:
            return found
    raise AssertionError(f"the merge is {found['state']}, expected {state}: {found['problem']}")


def check_bytes_and_leftovers(house: House, ended: Document, before: set[str]) -> None:
    whole = house.finish("/v1/merges", ties(method=ended["spec"]["method"], parallelism=1, force=True))
    assert files_of(house, ended) == files_of(house, whole)
    freeing.sweep(house.wiring.sessions, house.wiring.storage, grace_seconds=0.0)
    assert objects(house) == before | set(files_of(house, ended).values()) | set(files_of(house, whole).values())
    assert list((house.folder / "scratch").iterdir()) == []


def test_a_disk_that_is_full_while_parts_are_merged_fails_the_merge_and_nothing_is_left(house: House) -> None:
    register_family(house)
    before = objects(house)
    with small_disk(house.folder / "scratch", MEGABYTE):
        job = house.finish("/v1/merges", ties(parallelism=2))
        assert (job["state"], job["problem"]["code"]) == ("failed", "insufficient_storage")
        assert "free some, or point the service's data folder at a larger disk" in job["problem"]["detail"]
        assert list((house.folder / "scratch").iterdir()) == []
    freeing.sweep(house.wiring.sessions, house.wiring.storage, grace_seconds=0.0)
    assert objects(house) == before


def test_a_disk_that_fills_up_between_two_parts_fails_the_merge_and_a_retry_ends_it(house: House) -> None:
    register_family(house)
    before = objects(house)
    with small_disk(house.folder / "scratch", 4 * MEGABYTE) as disk:
        job = house.made("/v1/merges", ties(method="task_arithmetic", parallelism=2))
        for _ in range(2):
            claim = house.claim()
            assert claim is not None
            house.run(claim)  # the merge is split, and one part merged
        (disk / "something-else").write_bytes(bytes(2 * MEGABYTE))
        house.work()
        assert house.read(f"/v1/jobs/{job['id']}")["problem"]["code"] == "insufficient_storage"
        assert [part["state"] for part in parts_of(house, job)] == ["succeeded", "failed"]
        (disk / "something-else").unlink()
        again = house.made(f"/v1/jobs/{job['id']}/retry", None)
        ended = work_until(house, again, "succeeded")
    check_bytes_and_leftovers(house, ended, before)


def test_a_store_that_is_full_fails_the_merge_and_nothing_is_left(tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "disk", 17 * MEGABYTE) as disk,
        open_house(tmp_path / "house", store_url=disk.as_uri()) as house,
    ):
        register_family(house)
        job = house.made("/v1/merges", ties(method="task_arithmetic", parallelism=4))
        (disk / "something-else").write_bytes(bytes(14 * MEGABYTE))  # when the merge had been accepted
        house.work()
        job = house.read(f"/v1/jobs/{job['id']}")
        assert job["problem"]["code"] == "insufficient_storage", job["problem"]
        freeing.sweep(house.wiring.sessions, house.wiring.storage, grace_seconds=0.0)
        assert objects(house) == set()
        assert [path.name for path in disk.rglob("*") if path.is_file() and path.suffix != ".lock"] == [
            "something-else"
        ]


@pytest.mark.slow
def test_a_store_that_is_cut_for_ten_seconds_costs_ten_seconds(
    tmp_path: Path, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with run_proxy(s3_bucket.endpoint_url) as proxy:
        for name, value in {**s3_bucket.environment, "AWS_ENDPOINT_URL": proxy.url}.items():
            monkeypatch.setenv(name, value)
        with open_house(tmp_path / "house", store_url=s3_bucket.url) as house:
            storage = open_storage(
                s3_bucket.url, tmp_path / "cache", tmp_path / "scratch", patience_seconds=WORKER_PATIENCE_SECONDS
            )
            house.keepers = replace(house.keepers, storage=storage)  # a worker's
            register_family(house)
            before = objects(house)
            job = house.made("/v1/merges", ties(method="task_arithmetic", parallelism=2))
            claim = house.claim()
            assert claim is not None
            house.run(claim)
            claim = house.claim()
            assert claim is not None
            proxy.cut(10.0)
            house.run(claim)
            parts.settle(house.wiring.sessions, house.wiring.queue, job["id"])
            ended = work_until(house, job, "succeeded")
            assert {part["attempts"] for part in parts_of(house, job)} == {1}
            check_bytes_and_leftovers(house, ended, before)
