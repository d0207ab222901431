"""What a store of bytes is: content-addressed, so a name is the sha256 of what it names and never changes meaning.

Keys are `objects/sha256/ab/<digest>`. Equal bytes are stored once. Nothing here knows checkpoints or artifacts.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from app.domain.checkpoints import FileEntry
from app.domain.needs import FileRange

CHUNK_BYTES = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")


def object_key(sha256: str) -> str:
    """Return an object's key within a store. Raises: ValueError for what is no digest."""
    if _DIGEST.fullmatch(sha256) is None:
        raise ValueError(f"{sha256!r} is not a sha256 in hex")
    return f"objects/sha256/{sha256[:2]}/{sha256}"


class Watch:
    """Told of bytes on their way; what it raises stops them. This one lets everything pass."""

    def expect(self, n_bytes: int) -> None:
        """So many more bytes are going to move."""

    def moved(self, n_bytes: int = 0) -> None:
        """So many bytes have moved since the last call; asked several times a second, even while nothing moves."""

    def uses(self, folder: Path) -> None:
        """What was fetched lies in this folder, which is swept if it is not touched for two hours."""


UNWATCHED = Watch()


class TempObject(Protocol):
    """Bytes on their way in, hashed as they come. Leaving the context without `publish` leaves nothing behind."""

    @property
    def size_bytes(self) -> int:
        """Bytes written so far."""

    @property
    def sha256(self) -> str:
        """Digest (hex) of the bytes written so far."""

    def write(self, data: bytes) -> None:
        """Append bytes. Raises: OutOfDisk."""

    def publish(self) -> None:
        """Make the bytes an object of the store, under their digest. Raises: OutOfDisk, Unavailable."""

    def __enter__(self) -> Self:
        """Return itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove what was not published."""


class Growing(Protocol):
    """A folder whose files may go into the store while they are made. Leaving the context ends what is on its way."""

    def grew(self, path: str, n_bytes: int) -> None:
        """Hear that the first bytes of a file are as they will stay; the file has its final size already."""

    def publish(self, files: Sequence[FileEntry]) -> None:
        """Put the files into the store, as Storage.publish does."""

    def __enter__(self) -> Self:
        """Return itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove what was not published."""


class Storage(Protocol):
    """A content-addressed store."""

    def publish(self, directory: Path, files: Sequence[FileEntry], *, watch: Watch = UNWATCHED) -> None:
        """Put the files of a folder into the store; what is there already stays. Can be repeated after a crash.

        Raises: OutOfDisk, Unavailable; ValueError when a file is missing or does not have its size; what the watch
            raises.
        """

    def follow(self, directory: Path, *, watch: Watch = UNWATCHED) -> Growing:
        """Return what follows the files of a folder while they are made."""

    def fetch(self, files: Sequence[FileEntry], *, watch: Watch = UNWATCHED) -> Path:
        """Return a folder with these files under their paths; read it, do not write into it.

        The folder is kept for two hours after it was last fetched or touched (`Watch.uses`).
        Raises: ArtifactGone, OutOfDisk, Unavailable; what the watch raises.
        """

    def fetch_ranges(
        self, files: Sequence[FileEntry], ranges: Sequence[FileRange], *, watch: Watch = UNWATCHED
    ) -> Path:
        """Return a folder as `fetch` does; where files come from afar, it may hold these ranges of a file in its place.

        A range lies under its name. Its length is checked, and that all ranges of a file are of one object of the
        file's size; only a whole file can be checked against its digest.
        Raises: as `fetch`.
        """

    @property
    def is_remote(self) -> bool:
        """Whether fetching moves bytes."""

    def read(self, sha256: str, *, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes [start, end) of an object. Raises: ArtifactGone, Unavailable, before the first byte."""

    def size(self, sha256: str) -> int | None:
        """Return the size of an object in bytes, or None when it is not there. Raises: Unavailable."""

    def delete(self, sha256s: Iterable[str], *, min_age_seconds: float) -> int:
        """Delete objects that nothing has published again for `min_age_seconds`; return how many. Raises: Unavailable.

        The caller has looked that no row names them; a publish that has not committed yet is younger than the age.
        """

    def list_objects(self) -> Iterator[tuple[str, float]]:
        """Yield (sha256, age in seconds since it was last published) of every object. Raises: Unavailable."""

    def new_temp(self, *, watch: Watch = UNWATCHED) -> TempObject:
        """Return a place to write bytes whose digest is not known yet. Raises: OutOfDisk."""

    def sweep_temp(self, *, older_than_seconds: float) -> int:
        """Remove what crashes left behind and cached folders nobody uses; return how many things were removed."""

    def free_bytes(self) -> int | None:
        """Return the room left, or None where the store has no limit that can be seen."""

    def check(self) -> None:
        """Return if the store can be used. Raises: Unavailable saying what to look at."""
