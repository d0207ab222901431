"""Files that go up while they are made: in parts, under no key that anybody reads, and without a trace if they fail."""

import os
import threading
import time
from pathlib import Path

import pytest

from app.storage.base import Storage
from app.storage.factory import open_storage
from app.storage.local import LocalStorage
from tests.app.storage.contents import entry, read_folder, write_folder
from tests.s3_proxy import S3Proxy, Traffic
from tests.servers import S3Bucket
from tests.waiting import wait_until

LARGE = os.urandom(1 << 20) * 36  # three parts
PART = 16 << 20
BETWEEN_SECONDS = 4.0  # two parts; the clock of parts is cut to seconds
FILES = [entry("large.bin", LARGE), entry("small.txt", b"small")]


@pytest.fixture
def store(proxy: S3Proxy, s3_bucket: S3Bucket, tmp_path: Path) -> Storage:
    assert proxy.traffic.n_requests == 0
    return open_storage(f"{s3_bucket.url}/some/prefix", tmp_path / "cache", tmp_path / "scratch")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "output"
    folder.mkdir()
    (folder / "large.bin").write_bytes(bytes(len(LARGE)))  # of its final size, as a merge lays its files out
    (folder / "small.txt").write_bytes(b"small")
    return folder


def write(output: Path, n_bytes: int) -> None:
    with (output / "large.bin").open("r+b") as file:
        file.write(LARGE[:n_bytes])


def let_threads_end() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("bucket"):
            thread.join(30)


def left_in(store: Storage) -> int:
    """Return how much the sweep finds that is not an object: unfinished uploads, and what lies below `incoming/`."""
    let_threads_end()
    return store.sweep_temp(older_than_seconds=0.0)


def test_parts_go_up_before_the_file_is_complete(store: Storage, proxy: S3Proxy, output: Path) -> None:
    with store.follow(output) as growing:
        write(output, PART + 5)
        growing.grew("large.bin", PART + 5)
        wait_until(lambda: proxy.traffic.requests["UploadPart"] == 1, reason="the first part has gone up")
        assert list(store.list_objects()) == []
        write(output, len(LARGE))
        growing.publish(FILES)
    assert read_folder(store.fetch(FILES)) == {"large.bin": LARGE, "small.txt": b"small"}
    assert {sha256 for sha256, _ in store.list_objects()} == {file.sha256 for file in FILES}
    assert proxy.traffic.requests["UploadPart"] == 3
    assert proxy.traffic.n_up < len(LARGE) + 10_000  # once, and the small file and the list of parts
    assert left_in(store) == 0


def test_more_files_than_go_up_at_once_are_published_however_little_was_told_of_them(
    store: Storage, proxy: S3Proxy, tmp_path: Path
) -> None:
    contents = {f"{index}.bin": os.urandom(1 << 20) * 9 for index in range(5)}
    files = write_folder(tmp_path / "many", contents)
    with store.follow(tmp_path / "many") as growing:
        for file in files:
            growing.grew(file.path, 1)
        growing.publish(files)
    assert read_folder(store.fetch(files)) == contents
    assert proxy.traffic.requests["Copy"] == 5
    assert left_in(store) == 0


def test_files_that_are_complete_make_room_for_the_next_ones(store: Storage, proxy: S3Proxy, tmp_path: Path) -> None:
    contents = {f"{index}.bin": os.urandom(1 << 20) * 9 for index in range(4)}
    files = write_folder(tmp_path / "many", contents)
    with store.follow(tmp_path / "many") as growing:
        for file in files:
            growing.grew(file.path, file.size_bytes)
        wait_until(
            lambda: proxy.traffic.requests["CompleteUpload"] == 4, reason="all went up before they are published"
        )
        growing.publish(files)
    assert read_folder(store.fetch(files)) == contents
    assert left_in(store) == 0


def test_an_upload_that_somebody_aborts_is_begun_again(store: Storage, proxy: S3Proxy, output: Path) -> None:
    with store.follow(output) as growing:
        write(output, PART + 5)
        growing.grew("large.bin", PART + 5)
        wait_until(lambda: proxy.traffic.requests["UploadPart"] == 1, reason="the first part has gone up")
        assert store.sweep_temp(older_than_seconds=0.0) == 1
        write(output, len(LARGE))
        growing.publish(FILES)
    assert read_folder(store.fetch(FILES))["large.bin"] == LARGE
    assert left_in(store) == 0


def test_an_upload_that_grows_is_spared_however_old_it_is(store: Storage, proxy: S3Proxy, output: Path) -> None:
    with store.follow(output) as growing:
        write(output, PART + 5)
        growing.grew("large.bin", PART + 5)
        wait_until(lambda: proxy.traffic.requests["UploadPart"] == 1, reason="a part has gone up")
        begun_at = time.monotonic()
        wait_until(lambda: time.monotonic() > begun_at + BETWEEN_SECONDS, reason="the upload is old")
        write(output, 2 * PART + 5)
        growing.grew("large.bin", 2 * PART + 5)
        wait_until(lambda: proxy.traffic.requests["UploadPart"] == 2, reason="another part has gone up")
        assert store.sweep_temp(older_than_seconds=BETWEEN_SECONDS) == 0
        write(output, len(LARGE))
        growing.publish(FILES)
    assert proxy.traffic.requests["UploadPart"] == 3
    assert read_folder(store.fetch(FILES))["large.bin"] == LARGE


def test_a_file_that_was_swept_before_it_was_published_goes_up_once_more(
    store: Storage, proxy: S3Proxy, output: Path
) -> None:
    write(output, len(LARGE))
    with store.follow(output) as growing:
        growing.grew("large.bin", len(LARGE))
        wait_until(lambda: proxy.traffic.requests["CompleteUpload"] == 1, reason="all of it has gone up")
        assert store.sweep_temp(older_than_seconds=0.0) == 1
        growing.publish(FILES)
    assert proxy.traffic.requests["CompleteUpload"] == 2
    assert read_folder(store.fetch(FILES))["large.bin"] == LARGE
    assert left_in(store) == 0


def test_what_is_given_up_leaves_nothing(store: Storage, proxy: S3Proxy, output: Path) -> None:
    with pytest.raises(RuntimeError), store.follow(output) as growing:
        growing.grew("large.bin", PART + 5)
        wait_until(lambda: proxy.traffic.requests["UploadPart"] == 1, reason="the first part has gone up")
        raise RuntimeError("the merge has failed")
    assert left_in(store) == 0
    assert proxy.traffic.requests["AbortUpload"] == 1
    assert list(store.list_objects()) == []


def test_what_went_up_whole_and_is_not_published_leaves_nothing(store: Storage, proxy: S3Proxy, output: Path) -> None:
    with store.follow(output) as growing:
        growing.grew("large.bin", len(LARGE))
        wait_until(lambda: proxy.traffic.requests["CompleteUpload"] == 1, reason="all of it has gone up")
    assert left_in(store) == 0


def test_what_is_there_already_is_not_copied(store: Storage, proxy: S3Proxy, output: Path) -> None:
    write(output, len(LARGE))
    store.publish(output, FILES)
    proxy.traffic = Traffic()
    with store.follow(output) as growing:
        growing.grew("large.bin", PART + 5)
        wait_until(lambda: proxy.traffic.requests["UploadPart"] == 1, reason="the first part has gone up")
        growing.publish(FILES)
    let_threads_end()
    assert proxy.traffic.requests["UploadPart"] == 1  # it goes up no further
    assert proxy.traffic.requests["AbortUpload"] == 1
    assert proxy.traffic.requests["Copy"] == 0
    assert left_in(store) == 0


def test_a_file_whose_upload_failed_is_put_again(store: Storage, proxy: S3Proxy, output: Path) -> None:
    write(output, len(LARGE))
    proxy.is_cut = True
    with store.follow(output) as growing:
        growing.grew("large.bin", len(LARGE))
        (upload,) = growing._uploads.values()  # type: ignore[attr-defined]  # of GrowingFiles
        assert upload.done.exception(30) is not None
        proxy.is_cut = False
        growing.publish(FILES)
    assert read_folder(store.fetch(FILES))["large.bin"] == LARGE
    assert left_in(store) == 0


def test_a_file_that_is_gone_when_it_is_told_of_is_no_fault(store: Storage, output: Path) -> None:
    with store.follow(output) as growing:
        growing.grew("removed.bin", PART)
    assert left_in(store) == 0


def test_the_sweep_removes_what_a_killed_process_left(
    store: Storage, proxy: S3Proxy, output: Path, s3_bucket: S3Bucket
) -> None:
    growing = store.follow(output)
    growing.grew("large.bin", PART + 5)  # and never comes to its end
    wait_until(lambda: proxy.traffic.requests["UploadPart"] == 1, reason="the first part has gone up")
    bucket = open_storage(s3_bucket.url, output / "c", output / "s")
    assert bucket.sweep_temp(older_than_seconds=1e10) == 0
    assert store.sweep_temp(older_than_seconds=0.0) == 1
    assert proxy.traffic.requests["AbortUpload"] == 1
    growing.__exit__(None, None, None)
    let_threads_end()


def test_a_local_store_publishes_at_the_end(tmp_path: Path, output: Path) -> None:
    write(output, len(LARGE))
    store = LocalStorage(tmp_path / "store")
    with store.follow(output) as growing:
        growing.grew("large.bin", PART)
        assert list(store.list_objects()) == []
        growing.publish(FILES)
    assert store.size(FILES[0].sha256) == len(LARGE)
