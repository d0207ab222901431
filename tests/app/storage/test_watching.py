"""Bytes that move are counted, and stop when their watch says so; on a local folder, on S3, on a network that hangs."""

import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.domain.checkpoints import FileEntry
from app.storage.base import Storage, Watch
from app.storage.buckets import Bucket
from app.storage.factory import open_storage
from app.storage.local import LocalStorage
from app.storage.sources import Sources
from tests.app.storage.contents import read_folder, write_folder
from tests.servers import S3Bucket

LARGE_BYTES = 40 << 20  # several parts
CONTENTS = {"large.bin": os.urandom(1 << 20) * (LARGE_BYTES >> 20), "small.txt": b"small"}
SIZE_BYTES = LARGE_BYTES + 5


class NoMore(Exception):
    pass


class Counting(Watch):
    """Counts; raises NoMore once so many bytes have moved, or after so many seconds."""

    def __init__(self, *, up_to_bytes: int | None = None, seconds: float = 1e9) -> None:
        self.n_expected = self.n_moved = 0
        self.folders: list[Path] = []
        self._up_to_bytes = up_to_bytes
        self._stop_at = time.monotonic() + seconds

    def expect(self, n_bytes: int) -> None:
        self.n_expected += n_bytes

    def moved(self, n_bytes: int = 0) -> None:
        self.n_moved += n_bytes
        if time.monotonic() > self._stop_at or (self._up_to_bytes is not None and self.n_moved > self._up_to_bytes):
            raise NoMore

    def uses(self, folder: Path) -> None:
        self.folders.append(folder)


@pytest.fixture
def files(tmp_path: Path) -> list[FileEntry]:
    return write_folder(tmp_path / "output", CONTENTS)


@pytest.fixture
def bucket_store(s3_bucket: S3Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    for name, value in s3_bucket.environment.items():
        monkeypatch.setenv(name, value)
    return open_storage(s3_bucket.url, tmp_path / "cache", tmp_path / "scratch")


@pytest.fixture
def copying_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStorage:
    """A store on a file system without hard links: everything is copied."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    return LocalStorage(tmp_path / "store")


def _rest(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.parametrize("name", ["bucket_store", "copying_store"])
def test_every_byte_is_announced_and_counted(
    request: pytest.FixtureRequest, name: str, files: list[FileEntry], tmp_path: Path
) -> None:
    store: Storage = request.getfixturevalue(name)
    put, got, again = Counting(), Counting(), Counting()
    store.publish(tmp_path / "output", files, watch=put)
    assert (put.n_expected, put.n_moved) == (SIZE_BYTES, SIZE_BYTES)
    folder = store.fetch(files, watch=got)
    assert (got.n_expected, got.n_moved, got.folders) == (SIZE_BYTES, SIZE_BYTES, [folder])
    assert read_folder(folder) == CONTENTS
    assert store.fetch(files, watch=again) == folder
    assert (again.n_expected, again.n_moved, again.folders) == (0, 0, [folder])


def test_what_is_published_into_a_bucket_stops_and_leaves_no_parts(
    bucket_store: Storage, files: list[FileEntry], tmp_path: Path, s3_bucket: S3Bucket
) -> None:
    with pytest.raises(NoMore):
        bucket_store.publish(tmp_path / "output", files, watch=Counting(up_to_bytes=0))
    client = s3_bucket.client()
    for thread in threading.enumerate():
        if thread.name.startswith("bucket"):
            thread.join(30)
    assert "Uploads" not in client.list_multipart_uploads(Bucket=s3_bucket.name)
    bucket_store.publish(tmp_path / "output", files)  # as good as new
    assert read_folder(bucket_store.fetch(files)) == CONTENTS


def test_what_is_fetched_from_a_bucket_stops_and_leaves_nothing(
    bucket_store: Storage, files: list[FileEntry], tmp_path: Path
) -> None:
    bucket_store.publish(tmp_path / "output", files)
    with pytest.raises(NoMore):
        bucket_store.fetch(files, watch=Counting(up_to_bytes=20 << 20))
    assert _rest(tmp_path / "cache") == []


def test_a_source_in_a_bucket_is_counted_and_stops(
    bucket_store: Storage, files: list[FileEntry], tmp_path: Path, s3_bucket: S3Bucket
) -> None:
    bucket_store.publish(tmp_path / "output", files)
    sources, uri = Sources([], tmp_path / "elsewhere"), f"{s3_bucket.url}/objects"
    listing = sources.look(uri)
    with pytest.raises(NoMore):
        sources.fetch(uri, listing, watch=Counting(up_to_bytes=20 << 20))
    assert _rest(tmp_path / "elsewhere" / "sources" / "temp") == []
    watch = Counting()
    folder = sources.fetch(uri, listing, watch=watch)
    assert watch.n_expected == watch.n_moved
    assert watch.folders == [folder]


def test_a_local_copy_stops_and_leaves_nothing(
    copying_store: LocalStorage, files: list[FileEntry], tmp_path: Path
) -> None:
    with pytest.raises(NoMore):
        copying_store.publish(tmp_path / "output", files, watch=Counting(up_to_bytes=5 << 20))
    assert _rest(tmp_path / "store") == []
    copying_store.publish(tmp_path / "output", files)
    with pytest.raises(NoMore):
        copying_store.fetch(files, watch=Counting(up_to_bytes=5 << 20))
    assert _rest(tmp_path / "store" / "views") == []


# --- a network that hangs -----------------------------------------------------------------------------------------


@pytest.fixture
def silent_bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A bucket behind a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
            monkeypatch.setenv(name, "none")
        yield Bucket("silent")


def test_reading_stops_though_no_byte_comes(silent_bucket: Bucket) -> None:
    began_at = time.monotonic()
    with pytest.raises(NoMore):
        next(silent_bucket.read("key", 0, 1000, watch=Counting(seconds=0.3)))
    assert time.monotonic() - began_at < 2.0


def test_asking_for_an_object_stops_though_no_answer_comes(silent_bucket: Bucket) -> None:
    began_at = time.monotonic()
    with pytest.raises(NoMore):
        silent_bucket.head("key", watch=Counting(seconds=0.3))
    assert time.monotonic() - began_at < 2.0


def test_putting_stops_though_no_byte_goes(silent_bucket: Bucket, files: list[FileEntry], tmp_path: Path) -> None:
    began_at = time.monotonic()
    with pytest.raises(NoMore):
        silent_bucket.put_file("key", tmp_path / "output" / "large.bin", watch=Counting(seconds=0.3))
    assert time.monotonic() - began_at < 2.0
