"""A store in a local folder: objects appear by hard link, fetched folders are hard links too, nothing is copied.

`<root>/objects/sha256/ab/<digest>`, `<root>/views` (fetched folders), `<root>/temp`. The scratch folder should lie on
the same file system; elsewhere publishing copies.
"""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from app.domain.checkpoints import FileEntry
from app.domain.errors import ArtifactGone
from app.domain.needs import FileRange
from app.storage.base import CHUNK_BYTES, UNWATCHED, Growing, TempObject, Watch
from app.storage.folders import KEEP_SECONDS, ObjectFolder, Views, sweep_files, translated
from app.storage.incoming import TempFile


class LocalStorage:
    """A base.Storage over a folder."""

    is_remote = False

    def __init__(self, root: Path) -> None:
        self._root = root
        self._objects = ObjectFolder(root)
        self._views = Views(root / "views")

    def publish(self, directory: Path, files: Sequence[FileEntry], *, watch: Watch = UNWATCHED) -> None:
        """Put the files of a folder into the store."""
        for file in files:
            watch.moved()
            with translated(f"publishing {file.path!r}"):
                self._publish_file(directory / file.path, file, watch)

    def follow(self, directory: Path, *, watch: Watch = UNWATCHED) -> Growing:
        """Return what publishes the files of a folder: on the same disk nothing can be done ahead."""
        return _Still(self, directory, watch)

    def fetch(self, files: Sequence[FileEntry], *, watch: Watch = UNWATCHED) -> Path:
        """Return a folder of hard links to the objects."""
        with translated("fetching a checkpoint"):
            return self._views.show(files, self._objects.path, watch=watch)

    def fetch_ranges(
        self, files: Sequence[FileEntry], _ranges: Sequence[FileRange], *, watch: Watch = UNWATCHED
    ) -> Path:
        """Return a folder of hard links to the whole objects: that moves nothing."""
        return self.fetch(files, watch=watch)

    def read(self, sha256: str, *, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes [start, end) of an object."""
        path = self._objects.path(sha256)
        try:
            file = path.open("rb")
        except FileNotFoundError:
            raise ArtifactGone(f"The bytes sha256:{sha256} are not in the store any more.") from None
        return _chunks(file, start, path.stat().st_size if end is None else end)

    def size(self, sha256: str) -> int | None:
        """Return the size of an object in bytes, or None."""
        return self._objects.size(sha256)

    def delete(self, sha256s: Iterable[str], *, min_age_seconds: float) -> int:
        """Delete objects not published for so long."""
        with translated("deleting"):
            return sum(self._objects.remove(sha256, min_age_seconds=min_age_seconds) for sha256 in sha256s)

    def list_objects(self) -> Iterator[tuple[str, float]]:
        """Yield (sha256, age in seconds) of every object."""
        for sha256, age_seconds, _ in self._objects.list_objects():
            yield sha256, age_seconds

    def new_temp(self, *, watch: Watch = UNWATCHED) -> TempObject:
        """Return a place to write bytes whose digest is not known yet."""
        return TempFile(self._objects.new_temp_path(), self._objects.add, watch)

    def sweep_temp(self, *, older_than_seconds: float) -> int:
        """Remove what crashes left behind, and views nobody uses."""
        removed = sweep_files(self._objects.temp, older_than_seconds=older_than_seconds)
        return removed + self._views.sweep(unused_seconds=KEEP_SECONDS)

    def free_bytes(self) -> int | None:
        """Return the room left on the store's file system."""
        self._root.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self._root).free

    def check(self) -> None:
        """Return if the folder can be written."""
        with translated("looking whether it can be written"):
            probe = self._objects.new_temp_path()
            probe.touch()
            probe.unlink()

    def _publish_file(self, source: Path, file: FileEntry, watch: Watch) -> None:
        if self._objects.touch(file.sha256) == file.size_bytes:
            return
        if not source.is_file() or source.stat().st_size != file.size_bytes:
            found = f"{source.stat().st_size} bytes" if source.is_file() else "nothing"
            raise ValueError(f"{file.path!r}: found {found}, expected {file.size_bytes} bytes; it was not published")
        self._objects.add(source, file.sha256, watch)


@dataclass(frozen=True)
class _Still:
    """A base.Growing that waits until all is made."""

    storage: LocalStorage
    directory: Path
    watch: Watch

    def grew(self, path: str, n_bytes: int) -> None:
        """Do nothing."""

    def publish(self, files: Sequence[FileEntry]) -> None:
        """Put the files into the store."""
        self.storage.publish(self.directory, files, watch=self.watch)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is on its way."""


def _chunks(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    with file:
        file.seek(start)
        left = end - start
        while left > 0 and (data := file.read(min(CHUNK_BYTES, left))):
            left -= len(data)
            yield data
