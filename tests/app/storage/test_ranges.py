"""Ranges of objects: only they are moved, once; what is replaced is noticed; whole files make them needless."""

import os
from pathlib import Path

import pytest

from app.domain.checkpoints import FileEntry
from app.domain.errors import ArtifactGone, InputChanged, Unavailable
from app.domain.needs import FileRange
from app.storage.base import Storage, Watch, object_key
from app.storage.factory import open_storage
from app.storage.local import LocalStorage
from app.storage.sources import Sources
from tests.app.storage.contents import read_folder, write_folder
from tests.s3_proxy import S3Proxy, Traffic
from tests.servers import S3Bucket

CONTENT = os.urandom(100_000)
RANGES = [FileRange(path="a.bin", begin=100, end=5_000), FileRange(path="a.bin", begin=90_000, end=100_000)]
FOUND = {one.name: CONTENT[one.begin : one.end] for one in RANGES}


@pytest.fixture
def store(proxy: S3Proxy, s3_bucket: S3Bucket, tmp_path: Path) -> Storage:
    assert proxy.traffic.n_requests == 0
    return open_storage(s3_bucket.url, tmp_path / "cache", tmp_path / "scratch")


@pytest.fixture
def files(store: Storage, tmp_path: Path) -> list[FileEntry]:
    files = write_folder(tmp_path / "output", {"a.bin": CONTENT, "b.bin": b"not asked for"})
    store.publish(tmp_path / "output", files)
    return files


def replace_object(bucket: S3Bucket, key: str, content: bytes) -> None:
    client = bucket.client()
    client.put_object(Bucket=bucket.name, Key=key, Body=content)


def test_only_the_ranges_are_moved_and_only_once(store: Storage, files: list[FileEntry], proxy: S3Proxy) -> None:
    proxy.traffic = Traffic()
    folder = store.fetch_ranges(files[:1], RANGES)
    assert read_folder(folder) == FOUND
    assert proxy.traffic.n_down == sum(one.size_bytes for one in RANGES)
    assert proxy.traffic.requests == {"HEAD": 1, "GET": 2}
    assert store.fetch_ranges(files[:1], RANGES) == folder
    assert proxy.traffic.n_requests == 3


def test_where_the_whole_file_is_here_no_range_is_moved(store: Storage, files: list[FileEntry], proxy: S3Proxy) -> None:
    store.fetch(files)
    proxy.traffic = Traffic()
    assert read_folder(store.fetch_ranges(files[:1], RANGES)) == {"a.bin": CONTENT}
    assert proxy.traffic.n_requests == 0


def test_a_local_store_shows_whole_files(tmp_path: Path) -> None:
    store = LocalStorage(tmp_path / "store")
    files = write_folder(tmp_path / "output", {"a.bin": CONTENT})
    store.publish(tmp_path / "output", files)
    assert not store.is_remote
    assert read_folder(store.fetch_ranges(files, RANGES)) == {"a.bin": CONTENT}


def test_an_object_that_is_gone_or_has_another_size_is_refused(
    store: Storage, files: list[FileEntry], s3_bucket: S3Bucket
) -> None:
    replace_object(s3_bucket, object_key(files[0].sha256), b"short")
    with pytest.raises(ArtifactGone, match=r"'a.bin' has 5 bytes in the bucket, expected 100000"):
        store.fetch_ranges(files[:1], RANGES)
    store.delete([files[0].sha256], min_age_seconds=0)
    with pytest.raises(ArtifactGone, match="not in the store any more"):
        store.fetch_ranges(files[:1], RANGES)


def test_an_object_that_is_replaced_between_two_ranges_is_noticed(
    store: Storage, files: list[FileEntry], s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = type(store)._find_etag  # type: ignore[attr-defined]  # of S3Storage

    def look_and_replace(self: object, file: FileEntry, watch: Watch) -> object:
        found = look(self, file, watch)
        replace_object(s3_bucket, object_key(file.sha256), bytes(len(CONTENT)))
        return found

    monkeypatch.setattr(type(store), "_find_etag", look_and_replace)
    with pytest.raises(Unavailable, match="was replaced while ranges of it were read"):
        store.fetch_ranges(files[:1], RANGES)


def test_a_source_is_read_in_ranges_under_its_etag(
    store: Storage, files: list[FileEntry], s3_bucket: S3Bucket, tmp_path: Path, proxy: S3Proxy
) -> None:
    assert store.size(files[0].sha256) == len(CONTENT)
    replace_object(s3_bucket, "model/a.bin", CONTENT)
    sources, uri = Sources([], tmp_path / "elsewhere"), f"{s3_bucket.url}/model"
    listing = sources.look(uri)
    proxy.traffic = Traffic()
    assert read_folder(sources.fetch_ranges(uri, listing, RANGES)) == FOUND
    assert proxy.traffic.requests == {"GET": 2}
    replace_object(s3_bucket, "model/a.bin", CONTENT[::-1])
    other = [FileRange(path="a.bin", begin=0, end=7)]
    with pytest.raises(InputChanged, match=r"'a.bin' of .* changed or is gone"):
        sources.fetch_ranges(uri, listing, other)
    sources.fetch(uri, sources.look(uri))
    listing = sources.look(uri)
    assert read_folder(sources.fetch_ranges(uri, listing, other)) == {"a.bin": CONTENT[::-1]}
