"""Merges in parts whose inputs and results lie in a bucket: each part moves its own bytes, and they are the same bytes.

Each part has a cache of its own, as on a machine of its own.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from app.services import freeing, parts
from app.storage.factory import open_storage
from app.storage.sources import Sources
from tests.app.api.house import Document, House, draw, open_house
from tests.app.api.test_parts import LAYERS, files_of, parts_of, ties
from tests.s3_proxy import S3Proxy, Traffic
from tests.servers import S3Bucket

MODEL_BYTES = 4 * 4 * 400 * 700
NAMES = ("base", "model-0", "model-1")


@pytest.fixture
def house(proxy: S3Proxy, s3_bucket: S3Bucket, tmp_path: Path) -> Iterator[House]:
    assert not proxy.is_cut
    with open_house(tmp_path / "house", store_url=f"{s3_bucket.url}/store") as house:
        yield house


def register_in_bucket(house: House, bucket: S3Bucket) -> None:
    """Register the models by URIs in the bucket."""
    client = bucket.client()
    for seed, name in enumerate(NAMES):
        house.write(name, draw(seed, LAYERS))
        client.upload_file(str(house.data / name / "model.safetensors"), bucket.name, f"{name}/model.safetensors")
        house.made("/v1/checkpoints", {"uri": f"{bucket.url}/{name}", "name": name})
    house.work()


def register_in_store(house: House) -> None:
    """Register the models as copies in the store, which lies in the bucket."""
    for seed, name in enumerate(NAMES):
        house.register(name, draw(seed, LAYERS), storage="copy")


def run_apart(house: House, proxy: S3Proxy, body: Document) -> tuple[Document, list[tuple[str, Traffic]]]:
    """Run a merge, each attempt with an empty cache; return it, and what each attempt moved, by kind."""
    job = house.made("/v1/merges", body)
    moved: list[tuple[str, Traffic]] = []
    while (claim := house.claim()) is not None:
        cache = house.folder / f"cache-{job['id']}-{len(moved)}"
        storage = open_storage(house.settings.store_url, cache, house.folder / "scratch")
        house.keepers = replace(house.keepers, storage=storage, sources=Sources([], cache))
        proxy.traffic = Traffic()
        house.run(claim)
        moved.append((str(claim.job.kind), proxy.traffic))
        if claim.job.parent is not None:
            parts.settle(house.wiring.sessions, house.wiring.queue, claim.job.parent)
    return house.read(f"/v1/jobs/{job['id']}"), moved


@pytest.mark.parametrize("place", ["bucket", "store"])
def test_each_part_moves_the_ranges_of_its_tensors(
    house: House, proxy: S3Proxy, s3_bucket: S3Bucket, place: str
) -> None:
    if place == "bucket":
        register_in_bucket(house, s3_bucket)
    else:
        register_in_store(house)
    made = {}
    for n in (4, 2):
        body = ties(method="task_arithmetic", parallelism=n, force=True)
        made[n], moved = run_apart(house, proxy, body)
        assert made[n]["state"] == "succeeded", made[n]["problem"]
        of_parts = [traffic for kind, traffic in moved if kind == "part"]
        assert len(of_parts) == n
        for traffic in of_parts:
            assert 0 <= traffic.n_down - 3 * MODEL_BYTES / n < 2000  # HEADs say sizes, and have no bodies
            assert traffic.requests["GET"] == 3  # neighbors in a file are one range
    whole, moved = run_apart(house, proxy, ties(method="task_arithmetic", parallelism=1, force=True))
    assert moved[0][1].n_down > 3 * MODEL_BYTES
    assert files_of(house, made[4]) == files_of(house, made[2]) == files_of(house, whole)


def test_statistics_of_all_tensors_are_found_without_reading_those_of_others(
    house: House, proxy: S3Proxy, s3_bucket: S3Bucket
) -> None:
    register_in_bucket(house, s3_bucket)
    split, moved = run_apart(house, proxy, ties(parallelism=2, force=True))
    assert split["state"] == "succeeded", split["problem"]
    n_tallies = 1_500_000  # bytes of samples and boundaries, of all parts
    assert max(traffic.n_down for kind, traffic in moved if kind == "part") < 3 * MODEL_BYTES / 2 + n_tallies
    whole = house.finish("/v1/merges", ties(parallelism=1, force=True))
    assert files_of(house, split) == files_of(house, whole)
    freeing.sweep(house.wiring.sessions, house.wiring.storage, grace_seconds=0.0)
    named = {*files_of(house, split).values(), *files_of(house, whole).values()}
    assert named == {sha256 for sha256, _ in house.wiring.storage.list_objects()}


def test_a_later_round_on_the_same_machine_moves_the_ranges_no_more(
    house: House, proxy: S3Proxy, s3_bucket: S3Bucket
) -> None:
    register_in_bucket(house, s3_bucket)
    house.wiring.sources.sweep(older_than_seconds=0.0)
    cache = house.folder / "cache-of-one"
    storage = open_storage(house.settings.store_url, cache, house.folder / "scratch")
    house.keepers = replace(house.keepers, storage=storage, sources=Sources([], cache))
    proxy.traffic = Traffic()
    job = house.finish("/v1/merges", ties(parallelism=2))
    assert job["state"] == "succeeded", job["problem"]
    assert len(parts_of(house, job)) == 2 * 5  # samples, boundaries, ties, majority, and the merge
    assert proxy.traffic.n_down < 3 * MODEL_BYTES * 1.5


def test_a_source_that_changed_between_two_parts_fails_the_merge_by_its_name(
    house: House, proxy: S3Proxy, s3_bucket: S3Bucket
) -> None:
    register_in_bucket(house, s3_bucket)
    job = house.made("/v1/merges", ties(method="task_arithmetic", parallelism=4))
    claim = house.claim()
    assert claim is not None
    house.run(claim)
    client = s3_bucket.client()
    client.upload_file(str(house.data / "base" / "model.safetensors"), s3_bucket.name, "model-1/model.safetensors")
    house.work()
    ended = house.read(f"/v1/jobs/{job['id']}")
    assert (ended["state"], ended["problem"]["code"]) == ("failed", "input_changed")
    assert "model-1" in ended["problem"]["detail"]
