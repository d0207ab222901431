"""Folders of a store on a local disk: objects by digest, and views that show objects under their files' paths.

An object appears by a hard link or a rename, so it is there whole or not at all. A shared lock is held while an object
or a view is found and touched, an exclusive one while an old one is removed: nothing goes between look and use.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from app.domain.checkpoints import FileEntry, digest_json
from app.domain.errors import ArtifactGone, OutOfDisk, Unavailable
from app.storage.base import CHUNK_BYTES, UNWATCHED, Watch, object_key

KEEP_SECONDS = 2 * 3600.0  # since a fetched folder was last fetched or touched; jobs touch theirs while they run
_NO_LINKS = {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EACCES}


class ObjectFolder:
    """Files named by the sha256 of their bytes, below `root/objects/sha256`; `root/temp` is for what comes in."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.temp = root / "temp"
        self._objects = root / "objects" / "sha256"

    def path(self, sha256: str) -> Path:
        """Return where an object lies or would lie. Raises: ValueError for what is no digest."""
        return self.root / object_key(sha256)

    def size(self, sha256: str) -> int | None:
        """Return an object's size in bytes, or None when it is not there."""
        try:
            return self.path(sha256).stat().st_size
        except FileNotFoundError:
            return None

    def touch(self, sha256: str) -> int | None:
        """Begin an object's age anew and return its size, or None when it is not there."""
        with self._lock(fcntl.LOCK_SH):
            return self._touch(self.path(sha256))

    def add(self, file: Path, sha256: str, watch: Watch = UNWATCHED) -> None:
        """Make a file an object; what is there already stays.

        The object is a link to the file, which becomes read-only; a file that has other links is copied and left alone.
        """
        target = self.path(sha256)
        status = file.stat()
        _sync(file)  # before the lock: it may take long
        with self._lock(fcntl.LOCK_SH):
            if self._touch(target) == status.st_size:
                return
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists() or status.st_nlink > 1 or not self._link(file, target):
                self._copy(file, target, watch)
            os.utime(target)
            _sync(target.parent)
            _sync(target.parent.parent)  # its folder may be new

    def remove(self, sha256: str, *, min_age_seconds: float, only_unlinked: bool = False) -> bool:
        """Remove an object not added for so long; `only_unlinked` spares those that a view shows."""
        target = self.path(sha256)
        with self._lock(fcntl.LOCK_EX):
            try:
                status = target.stat()
            except FileNotFoundError:
                return False
            if time.time() - status.st_mtime < min_age_seconds or (only_unlinked and status.st_nlink > 1):
                return False
            target.unlink()
            return True

    def list_objects(self) -> Iterator[tuple[str, float, int]]:
        """Yield (sha256, age in seconds, size in bytes) of every object."""
        for folder in sorted(self._objects.glob("[0-9a-f][0-9a-f]")):
            for path in sorted(folder.iterdir()):
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    yield path.name, max(0.0, time.time() - status.st_mtime), status.st_size

    def trim(self, max_bytes: int, *, unused_seconds: float) -> None:
        """Remove the objects longest unused, as long as all are larger than this; spares what was used lately."""
        found = sorted(self.list_objects(), key=lambda item: -item[1])
        excess = sum(size for _, _, size in found) - max_bytes
        for sha256, _, size in found:
            if excess <= 0:
                return
            if self.remove(sha256, min_age_seconds=unused_seconds, only_unlinked=True):
                excess -= size

    def fill(self, name: str, chunks: Iterable[bytes], watch: Watch) -> None:
        """Make an object of bytes as they come. Raises: what they and the watch raise; then there is none."""
        temp = self.new_temp_path()
        try:
            with temp.open("wb") as copy:
                for data in chunks:
                    copy.write(data)
                    watch.moved(len(data))
            self.add(temp, name, watch)
        finally:
            temp.unlink(missing_ok=True)

    def new_temp_path(self) -> Path:
        """Return a path in `temp` that nothing else uses."""
        self.temp.mkdir(parents=True, exist_ok=True)
        return self.temp / uuid.uuid4().hex

    def _link(self, file: Path, target: Path) -> bool:
        """Link an object to a file; False where the file system has no hard links."""
        try:
            file.chmod(0o444)
            os.link(file, target)
        except FileExistsError:
            return True  # another process published the same bytes
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return False
        return True

    def _copy(self, file: Path, target: Path, watch: Watch) -> None:
        temp = self.new_temp_path()
        try:
            copy_file(file, temp, watch)
            temp.chmod(0o444)
            _sync(temp)
            temp.replace(target)
        finally:
            temp.unlink(missing_ok=True)

    def _touch(self, target: Path) -> int | None:
        try:
            os.utime(target)
            return target.stat().st_size
        except FileNotFoundError:
            return None

    def _lock(self, mode: int) -> contextlib.AbstractContextManager[None]:
        return locked(self.root / "objects.lock", mode)


class Views:
    """Folders that show objects under files' paths, one per content, made once and kept while they are used."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def show(self, files: Sequence[FileEntry], locate: Callable[[str], Path], *, watch: Watch = UNWATCHED) -> Path:
        """Return the folder of these files; `locate` gives an object's path by its digest.

        Raises: ArtifactGone when an object is not there.
        """
        view = self.root / digest_json(sorted([file.path, file.sha256] for file in files))
        while not self._touch(view):
            building = self.root / f"{uuid.uuid4().hex}.building"
            try:
                self._build(building, files, locate, watch)
                building.rename(view)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # another process was faster
                    raise
            finally:
                shutil.rmtree(building, ignore_errors=True)
        watch.uses(view)
        return view

    def sweep(self, *, unused_seconds: float) -> int:
        """Remove views not shown for so long, and unfinished ones; return how many."""
        removed = 0
        for view in sorted(self.root.glob("*")) if self.root.exists() else []:
            if view.is_dir() and self._take_away(view, unused_seconds):
                removed += 1
        return removed

    def _build(self, building: Path, files: Sequence[FileEntry], locate: Callable[[str], Path], watch: Watch) -> None:
        building.mkdir(parents=True)
        for file in files:
            target = building / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            show_file(locate(file.sha256), target, path=file.path, watch=watch)

    def _touch(self, view: Path) -> bool:
        with locked(self.root / "views.lock", fcntl.LOCK_SH):
            try:
                os.utime(view)
            except FileNotFoundError:
                return False
            return True

    def _take_away(self, view: Path, unused_seconds: float) -> bool:
        with locked(self.root / "views.lock", fcntl.LOCK_EX):
            try:
                if time.time() - view.stat().st_mtime < unused_seconds:
                    return False
            except FileNotFoundError:
                return False
            gone = view if view.suffix == ".gone" else view.with_name(f"{uuid.uuid4().hex}.gone")
            view.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        return True


def show_file(source: Path, target: Path, *, path: str, watch: Watch = UNWATCHED) -> None:
    """Link an object to a path of a view; copied where the file system has no hard links.

    Raises: ArtifactGone when the object is not there.
    """
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise ArtifactGone(f"The bytes of {path!r} are not in the store any more; make or register it again.") from None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        copy_file(source, target, watch)


def copy_file(source: Path, target: Path, watch: Watch = UNWATCHED) -> None:
    """Copy a file's bytes, a piece at a time."""
    watch.expect(source.stat().st_size)
    with source.open("rb") as read, target.open("wb") as written:
        while data := read.read(CHUNK_BYTES):
            written.write(data)
            watch.moved(len(data))


@contextlib.contextmanager
def locked(path: Path, mode: int) -> Iterator[None]:
    """Hold a lock file (fcntl.LOCK_SH or LOCK_EX) within the block; the kernel releases it when the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, mode)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn what the disk says into our errors. Raises: OutOfDisk, Unavailable."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            detail = f"The disk is full: {doing} did not fit. Delete artifacts, or give the store more room."
            raise OutOfDisk(detail) from error
        detail = f"The store did not work while {doing}: {error.strerror}. Look at its folder and its rights."
        raise Unavailable(detail) from error


def sweep_files(folder: Path, *, older_than_seconds: float) -> int:
    """Remove the files of a folder last written so long ago; return how many."""
    removed = 0
    for path in sorted(folder.iterdir()) if folder.exists() else []:
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime >= older_than_seconds:
                path.unlink()
                removed += 1
    return removed


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
