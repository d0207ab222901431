"""The laws of a store, on a local folder and on S3."""

import functools
import hashlib
import multiprocessing
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from app.domain.checkpoints import FileEntry
from app.domain.errors import ArtifactGone
from app.storage import buckets
from app.storage.base import Storage
from app.storage.factory import open_storage
from tests.app.storage.contents import entry, read_folder, write_folder
from tests.servers import S3Bucket

CONTENTS = {"model.safetensors": b"w" * 3000, "config.json": b"{}", "tokenizer/vocab.txt": b"a\nb\n", "empty.txt": b""}


@pytest.fixture(params=["local", "s3"])
def open_store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Storage]:
    """Open the same store again and again, as several processes do."""
    if request.param == "local":
        url = (tmp_path / "store").as_uri()
    else:
        bucket: S3Bucket = request.getfixturevalue("s3_bucket")
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)
        url = f"{bucket.url}/some/prefix"
    return functools.partial(open_storage, url, tmp_path / "cache", tmp_path / "scratch")


@pytest.fixture
def store(open_store: Callable[[], Storage]) -> Storage:
    return open_store()


def test_fetch_gives_what_was_published(store: Storage, tmp_path: Path) -> None:
    files = write_folder(tmp_path / "output", CONTENTS)
    store.publish(tmp_path / "output", files)
    assert read_folder(store.fetch(files)) == CONTENTS


def test_fetch_gives_the_same_folder_for_the_same_files(store: Storage, tmp_path: Path) -> None:
    files = write_folder(tmp_path / "output", CONTENTS)
    store.publish(tmp_path / "output", files)
    assert store.fetch(files) == store.fetch(list(reversed(files)))


def test_another_process_fetches_what_was_published(open_store: Callable[[], Storage], tmp_path: Path) -> None:
    files = write_folder(tmp_path / "output", CONTENTS)
    open_store().publish(tmp_path / "output", files)
    assert read_folder(open_store().fetch(files)) == CONTENTS


def test_equal_content_is_one_object(store: Storage, tmp_path: Path) -> None:
    files = write_folder(tmp_path / "output", {"a.txt": b"same", "b.txt": b"same"})
    store.publish(tmp_path / "output", files)
    assert [sha256 for sha256, _ in store.list_objects()] == [files[0].sha256]
    assert read_folder(store.fetch(files)) == {"a.txt": b"same", "b.txt": b"same"}


def test_publishing_again_changes_nothing(store: Storage, tmp_path: Path) -> None:
    files = write_folder(tmp_path / "output", CONTENTS)
    store.publish(tmp_path / "output", files)
    store.publish(tmp_path / "output", files)
    assert {sha256 for sha256, _ in store.list_objects()} == {file.sha256 for file in files}


def test_publishing_goes_on_after_a_crash_that_lost_the_files(store: Storage, tmp_path: Path) -> None:
    files = write_folder(tmp_path / "output", CONTENTS)
    store.publish(tmp_path / "output", files)
    store.publish(tmp_path / "gone", files)
    assert read_folder(store.fetch(files)) == CONTENTS


def test_a_file_of_another_size_is_not_published(store: Storage, tmp_path: Path) -> None:
    files = write_folder(tmp_path / "output", {"a.txt": b"first"})
    (tmp_path / "output" / "a.txt").write_bytes(b"second")
    with pytest.raises(ValueError, match=r"'a.txt': found 6 bytes, expected 5"):
        store.publish(tmp_path / "output", files)
    assert list(store.list_objects()) == []


def test_a_missing_file_is_not_published(store: Storage, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'a.txt': found nothing, expected 5 bytes"):
        store.publish(tmp_path, [entry("a.txt", b"first")])


def test_read_gives_any_range(store: Storage, tmp_path: Path) -> None:
    content = bytes(range(256)) * 20
    (file,) = write_folder(tmp_path / "output", {"a.bin": content})
    store.publish(tmp_path / "output", [file])
    assert b"".join(store.read(file.sha256)) == content
    assert b"".join(store.read(file.sha256, start=7, end=1234)) == content[7:1234]
    assert b"".join(store.read(file.sha256, start=5000)) == content[5000:]
    assert b"".join(store.read(file.sha256, start=3, end=3)) == b""


def test_reading_holds_a_few_ranges_and_never_the_file(
    store: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "RANGE_BYTES", 1 << 20)
    content = bytes(range(256)) * (48 << 12)  # 48 MiB
    [file] = write_folder(tmp_path / "output", {"large.bin": content})
    store.publish(tmp_path / "output", [file])
    tracemalloc.start()
    try:
        n_bytes = sum(len(data) for data in store.read(file.sha256))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert n_bytes == len(content)
    assert peak < 20 << 20


def test_what_is_not_there_has_no_size_and_cannot_be_read(store: Storage) -> None:
    missing = entry("a.txt", b"missing")
    assert store.size(missing.sha256) is None
    with pytest.raises(ArtifactGone, match="not in the store any more"):
        store.read(missing.sha256)
    with pytest.raises(ArtifactGone, match=r"'a.txt' are not in the store any more"):
        store.fetch([missing])


def test_what_is_no_digest_is_refused(store: Storage) -> None:
    for text in ("../../etc/passwd", "", "A" * 64, "0" * 63, "0" * 63 + "/"):
        with pytest.raises(ValueError, match="is not a sha256"):
            store.size(text)


def test_delete_removes_only_old_objects(store: Storage, tmp_path: Path) -> None:
    files = write_folder(tmp_path / "output", {"a.txt": b"a", "b.txt": b"b"})
    store.publish(tmp_path / "output", files)
    assert store.delete([files[0].sha256], min_age_seconds=3600) == 0
    assert store.size(files[0].sha256) == 1
    assert store.delete([files[0].sha256], min_age_seconds=0) == 1
    assert store.size(files[0].sha256) is None
    assert store.size(files[1].sha256) == 1


def test_delete_passes_over_what_is_not_there(store: Storage) -> None:
    assert store.delete([entry("a", b"missing").sha256], min_age_seconds=0) == 0


def test_objects_are_listed_with_their_age(store: Storage, tmp_path: Path) -> None:
    files = write_folder(tmp_path / "output", {"a.txt": b"a"})
    store.publish(tmp_path / "output", files)
    ((sha256, age_seconds),) = list(store.list_objects())
    assert sha256 == files[0].sha256
    assert 0 <= age_seconds < 60


def test_a_temp_object_is_hashed_as_it_comes(store: Storage) -> None:
    with store.new_temp() as temp:
        temp.write(b"first ")
        temp.write(b"second")
        assert temp.size_bytes == 12
        assert temp.sha256 == hashlib.sha256(b"first second").hexdigest()
        temp.publish()
    assert b"".join(store.read(temp.sha256)) == b"first second"


def test_a_temp_object_that_is_not_published_leaves_nothing(store: Storage, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), store.new_temp() as temp:
        temp.write(b"half")
        raise RuntimeError("the client has gone")
    assert list(store.list_objects()) == []
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_the_store_is_ready_and_tells_its_room_where_that_can_be_seen(
    store: Storage, request: pytest.FixtureRequest
) -> None:
    store.check()
    room = store.free_bytes()
    is_local = request.node.callspec.params["open_store"] == "local"
    assert room is not None and room > 0 if is_local else room is None


def test_processes_that_publish_the_same_bytes_do_not_disturb_each_other(
    open_store: Callable[[], Storage], tmp_path: Path
) -> None:
    contents = {f"{index}.txt": b"x" * index * 1000 for index in range(12)}
    files = write_folder(tmp_path / "first", contents)
    write_folder(tmp_path / "second", contents)
    context = multiprocessing.get_context("spawn")
    publishers = [
        context.Process(target=_publish, args=(open_store, tmp_path / name, files)) for name in ("first", "second")
    ]
    for publisher in publishers:
        publisher.start()
    for publisher in publishers:
        publisher.join(60)
    assert [publisher.exitcode for publisher in publishers] == [0, 0]
    assert read_folder(open_store().fetch(files)) == contents


def _publish(open_store: Callable[[], Storage], folder: Path, files: list[FileEntry]) -> None:
    open_store().publish(folder, files)
