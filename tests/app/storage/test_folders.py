"""Objects appear whole or not at all; what is old goes, what is used stays; a full disk is said plainly."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app.domain.errors import ArtifactGone, OutOfDisk, Unavailable
from app.storage.folders import ObjectFolder, Views, sweep_files, translated
from app.storage.local import LocalStorage
from tests.app.storage.contents import entry, read_folder, write_folder

CONTENT = b"weights" * 100
FILE = entry("model.safetensors", CONTENT)


@pytest.fixture
def objects(tmp_path: Path) -> ObjectFolder:
    return ObjectFolder(tmp_path / "store")


def _file(tmp_path: Path, content: bytes = CONTENT) -> Path:
    path = tmp_path / "file"
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    return path


def _age(path: Path, seconds: float) -> None:
    at = time.time() - seconds
    os.utime(path, (at, at))


def test_an_object_is_a_link_not_a_copy(objects: ObjectFolder, tmp_path: Path) -> None:
    file = _file(tmp_path)
    objects.add(file, FILE.sha256)
    assert objects.path(FILE.sha256).samefile(file)
    assert objects.path(FILE.sha256).stat().st_mode & 0o222 == 0


def test_a_file_that_somebody_else_links_to_is_copied_and_left_as_it_is(objects: ObjectFolder, tmp_path: Path) -> None:
    theirs = _file(tmp_path)
    os.utime(theirs, ns=(1, 1))
    os.link(theirs, tmp_path / "ours")
    before = theirs.stat()
    objects.add(tmp_path / "ours", FILE.sha256)
    assert not objects.path(FILE.sha256).samefile(theirs)
    assert objects.path(FILE.sha256).read_bytes() == CONTENT
    assert (theirs.stat().st_mtime_ns, theirs.stat().st_mode) == (before.st_mtime_ns, before.st_mode)


def test_without_hard_links_an_object_is_copied(
    objects: ObjectFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "link", refuse)
    objects.add(_file(tmp_path), FILE.sha256)
    assert objects.path(FILE.sha256).read_bytes() == CONTENT
    assert list(objects.temp.iterdir()) == []
    view = Views(tmp_path / "views").show([FILE], objects.path)
    assert read_folder(view) == {"model.safetensors": CONTENT}


def test_a_damaged_object_of_another_size_is_replaced(objects: ObjectFolder, tmp_path: Path) -> None:
    target = objects.path(FILE.sha256)
    target.parent.mkdir(parents=True)
    target.write_bytes(b"short")
    objects.add(_file(tmp_path), FILE.sha256)
    assert target.read_bytes() == CONTENT


def test_killed_between_temp_and_rename_only_a_temp_is_left(tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from app.storage.local import LocalStorage
Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
os.link = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
with LocalStorage(Path({str(tmp_path / "store")!r})).new_temp() as temp:
    temp.write(b"half of it")
    temp.publish()
"""
    died = subprocess.run([sys.executable, "-c", program], check=False)
    assert died.returncode == -9
    store = LocalStorage(tmp_path / "store")
    assert list(store.list_objects()) == []
    assert len(list((tmp_path / "store" / "temp").iterdir())) == 1
    assert store.sweep_temp(older_than_seconds=0) == 1
    assert list((tmp_path / "store" / "temp").iterdir()) == []


def test_a_fresh_temp_is_not_swept(tmp_path: Path) -> None:
    store = LocalStorage(tmp_path / "store")
    with store.new_temp() as temp:
        temp.write(b"on its way")
        assert store.sweep_temp(older_than_seconds=60) == 0
        temp.publish()
    assert store.size(temp.sha256) == 10


def test_adding_again_makes_an_object_young(objects: ObjectFolder, tmp_path: Path) -> None:
    objects.add(_file(tmp_path), FILE.sha256)
    _age(objects.path(FILE.sha256), 5000)
    objects.add(_file(tmp_path), FILE.sha256)
    assert not objects.remove(FILE.sha256, min_age_seconds=3600)
    assert objects.size(FILE.sha256) == len(CONTENT)


def test_a_view_outlives_its_objects(objects: ObjectFolder, tmp_path: Path) -> None:
    objects.add(_file(tmp_path), FILE.sha256)
    views = Views(tmp_path / "views")
    view = views.show([FILE], objects.path)
    assert objects.remove(FILE.sha256, min_age_seconds=0)
    assert read_folder(views.show([FILE], objects.path)) == read_folder(view) == {"model.safetensors": CONTENT}


def test_a_view_of_what_is_gone_leaves_nothing_behind(objects: ObjectFolder, tmp_path: Path) -> None:
    with pytest.raises(ArtifactGone, match=r"'model\.safetensors' are not in the store"):
        Views(tmp_path / "views").show([FILE], objects.path)
    assert [path for path in (tmp_path / "views").iterdir() if path.is_dir()] == []


def test_views_are_swept_when_nobody_has_used_them(objects: ObjectFolder, tmp_path: Path) -> None:
    objects.add(_file(tmp_path), FILE.sha256)
    views = Views(tmp_path / "views")
    view = views.show([FILE], objects.path)
    assert views.sweep(unused_seconds=3600) == 0
    _age(view, 5000)
    assert views.show([FILE], objects.path) == view  # used again
    assert views.sweep(unused_seconds=3600) == 0
    _age(view, 5000)
    assert views.sweep(unused_seconds=3600) == 1
    assert not view.exists()
    assert objects.path(FILE.sha256).read_bytes() == CONTENT


def test_unfinished_views_are_swept(tmp_path: Path) -> None:
    views = Views(tmp_path / "views")
    write_folder(tmp_path / "views" / "abc.building", {"a": b"a"})
    write_folder(tmp_path / "views" / "def.gone", {"a": b"a"})
    assert views.sweep(unused_seconds=0) == 2
    assert [path for path in (tmp_path / "views").iterdir() if path.is_dir()] == []


def test_trimming_removes_the_longest_unused_first_and_spares_what_is_in_use(
    objects: ObjectFolder, tmp_path: Path
) -> None:
    files = {name: entry(name, name.encode() * 1000) for name in ("a", "b", "c", "d")}
    for age_seconds, (name, file) in zip((9000, 8000, 7000, 10), files.items(), strict=True):
        objects.add(_file(tmp_path, name.encode() * 1000), file.sha256)
        (tmp_path / "file").unlink()
        _age(objects.path(file.sha256), age_seconds)
    Views(tmp_path / "views").show([files["a"]], objects.path)
    objects.trim(2500, unused_seconds=3600)
    left = {name for name, file in files.items() if objects.size(file.sha256) is not None}
    assert left == {"a", "d"}  # a is shown by a view, d was used lately


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, OutOfDisk), (errno.EDQUOT, OutOfDisk), (errno.EIO, Unavailable)]
)
def test_what_the_disk_says_is_translated(number: int, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="publishing 'a'"), translated("publishing 'a'"):
        raise OSError(number, os.strerror(number))


def test_bytes_are_on_the_disk_before_they_are_an_object_and_its_name_before_it_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inode, done = _file(tmp_path).stat().st_ino, list[str]()
    sync, link = os.fsync, os.link

    def note_sync(descriptor: int) -> None:
        done.append("the file" if os.fstat(descriptor).st_ino == inode else "a folder")
        sync(descriptor)

    def note_link(source: Path, target: Path) -> None:
        done.append("linked")
        link(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "link", note_link)
    LocalStorage(tmp_path / "store").publish(tmp_path, [entry("file", CONTENT)])
    assert done == ["the file", "linked", "a folder", "a folder"]


def test_a_full_disk_ends_an_upload_with_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStorage(tmp_path / "store")

    def refuse(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutOfDisk, match="The disk is full"), store.new_temp() as temp:
        temp.write(b"some")
        monkeypatch.setattr(os, "fsync", refuse)
        temp.publish()
    assert list(store.list_objects()) == []
    assert list((tmp_path / "store" / "temp").iterdir()) == []


def test_a_store_that_cannot_be_written_is_not_ready(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where the folder should be")
    with pytest.raises(Unavailable, match="Look at its folder"):
        LocalStorage(tmp_path / "store").check()


def test_sweeping_files_passes_over_young_ones(tmp_path: Path) -> None:
    write_folder(tmp_path / "temp", {"old": b"", "young": b""})
    _age(tmp_path / "temp" / "old", 100)
    assert sweep_files(tmp_path / "temp", older_than_seconds=60) == 1
    assert [path.name for path in (tmp_path / "temp").iterdir()] == ["young"]
    assert sweep_files(tmp_path / "missing", older_than_seconds=60) == 0
