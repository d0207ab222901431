"""Parts of objects in a cache: a range is a file of its own, named for the object's version and the range.

Ranges are kept, shown and swept as whole objects are. Where the whole object is here, its ranges are not fetched.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.domain.checkpoints import FileEntry
from app.domain.needs import FileRange
from app.storage.base import Watch
from app.storage.folders import ObjectFolder, Views

ReadRange = Callable[[FileEntry, FileRange], Iterator[bytes]]


@dataclass(frozen=True)
class RangeCache:
    """Fetches ranges of objects into a cache."""

    cache: ObjectFolder
    views: Views
    read: ReadRange  # of the object that an entry names

    def fetch(self, files: Sequence[FileEntry], ranges: Sequence[FileRange], watch: Watch) -> Path:
        """Return a folder that shows, of each file, the whole, if it is here, or else these ranges of it.

        files: named as the cache names them. Raises: what `read` and the watch raise.
        """
        shown: list[FileEntry] = []
        missing: list[tuple[FileEntry, FileRange, str]] = []
        for file in files:
            if self.cache.touch(file.sha256) == file.size_bytes:
                shown.append(file)
                continue
            for one in (one for one in ranges if one.path == file.path):
                name = _name(file, one)
                shown.append(FileEntry(path=one.name, size_bytes=one.size_bytes, sha256=name))
                if self.cache.touch(name) != one.size_bytes:
                    missing.append((file, one, name))
        watch.expect(sum(one.size_bytes for _, one, _ in missing))
        for file, one, name in missing:
            self.cache.fill(name, self.read(file, one), watch)
        return self.views.show(shown, self.cache.path, watch=watch)


def _name(file: FileEntry, one: FileRange) -> str:
    return hashlib.sha256(f"{file.sha256}\0{one.begin}\0{one.end}".encode()).hexdigest()
