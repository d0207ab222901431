"""Bytes on their way into a store: written to a temporary file, hashed as they come."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from app.storage.base import UNWATCHED, Watch
from app.storage.folders import translated


class TempFile:
    """A base.TempObject over a local file; `keep(path, sha256)` puts the complete file into the store."""

    def __init__(self, path: Path, keep: Callable[[Path, str], None], watch: Watch = UNWATCHED) -> None:
        self._path = path
        self._keep = keep
        self._watch = watch
        self._hash = hashlib.sha256()
        self._size = 0
        with translated("an upload"):
            self._file = path.open("xb")

    @property
    def size_bytes(self) -> int:
        """Bytes written so far."""
        return self._size

    @property
    def sha256(self) -> str:
        """Digest (hex) of the bytes written so far."""
        return self._hash.hexdigest()

    def write(self, data: bytes) -> None:
        """Append bytes. Raises: OutOfDisk."""
        with translated("an upload"):
            self._file.write(data)
        self._hash.update(data)
        self._size += len(data)
        self._watch.moved(len(data))

    def publish(self) -> None:
        """Make the bytes an object of the store. Raises: OutOfDisk, Unavailable."""
        with translated("an upload"):
            self._file.close()
            self._keep(self._path, self.sha256)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove what was not published."""
        self._path.unlink(missing_ok=True)
        self._file.close()
