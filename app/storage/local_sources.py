"""Local files below the file roots: found by resolving first and then walking from the root without following links.

A link that stays below the roots is followed (a Hugging Face cache is made of them); one that leads out is refused.
Messages carry the caller's URI, never a path of the server.
"""

import contextlib
import itertools
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from app.domain.errors import InputChanged, UriNotAllowed, UriNotFound
from app.domain.sources import SourceFile, SourceListing
from app.storage.base import CHUNK_BYTES
from app.storage.uris import FileUri

MAX_FILES = 2000
MAX_DEPTH = 8


class FileRoots:
    """The folders that `file:` URIs may lie in."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = tuple(roots)

    def look(self, uri: str, parsed: FileUri) -> SourceListing:
        """Return the files there. Raises: UriNotAllowed, UriNotFound."""
        path = self.locate(uri, parsed)
        with self._opened(uri, path) as descriptor:
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode):
                return SourceListing(is_file=True, files=(_describe(path.name, status),))
            if not stat.S_ISDIR(status.st_mode):
                raise UriNotAllowed(
                    f"{uri!r} is neither a file nor a folder; register a folder or a .safetensors file."
                )
        files = list(itertools.islice(self._walk(uri, path), MAX_FILES + 1))
        if len(files) > MAX_FILES:
            raise UriNotAllowed(f"{uri!r} holds more than {MAX_FILES} files; name the checkpoint's own folder.")
        return SourceListing(is_file=False, files=tuple(sorted(files, key=lambda file: file.path)))

    def locate(self, uri: str, parsed: FileUri) -> Path:
        """Return the real path, which lies below a root. Raises: UriNotAllowed, UriNotFound."""
        real = _real(Path(parsed.path))
        if not self._is_below_roots(real):
            raise UriNotAllowed(
                f"{uri!r} lies outside the folders that may be read. Move it below one of them, add its folder to"
                " AMALGAM_FILE_ROOTS, or upload the files."
            )
        if not real.exists():
            raise UriNotFound(
                f"Nothing lies at {uri!r}. Look at the spelling; the service's machine must see the file."
            )
        return real

    def read(self, uri: str, parsed: FileUri, *, below: str | None = None) -> Iterator[bytes]:
        """Yield the bytes of one file: the URI's, or the one listed `below` it.

        Raises: UriNotAllowed, UriNotFound, before the first byte.
        """
        path = self.locate(uri, parsed)
        real = path if below is None else _real(path / below)
        if not self._is_below_roots(real):
            raise UriNotAllowed(f"{below!r} of {uri!r} is a link out of the file roots; copy the file there instead.")
        descriptor = self._open(uri, real)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise UriNotAllowed(f"{uri!r} is not a file; name one file.")
        return _chunks(descriptor)

    def check(self, uri: str, parsed: FileUri, listing: SourceListing) -> None:
        """Return if the listed files are as they were. Raises: InputChanged naming the first that is not."""
        try:
            path = self.locate(uri, parsed)
        except (UriNotFound, UriNotAllowed):
            raise InputChanged(f"{uri!r} is not there any more; put it back, or register it again.") from None
        for file in listing.files:
            real = _real(path if listing.is_file else path / file.path)
            if not self._is_below_roots(real):
                raise InputChanged(f"{file.path!r} of {uri!r} leads out of the file roots now; register it again.")
            try:
                found = _describe(file.path, real.stat())
            except OSError:
                raise InputChanged(f"{file.path!r} of {uri!r} is not there any more; put it back.") from None
            if found != file:
                changed = ", ".join(
                    f"{name}: registered {getattr(file, name)}, found {getattr(found, name)}"
                    for name in ("size_bytes", "mtime_ns", "inode")
                    if getattr(file, name) != getattr(found, name)
                )
                raise InputChanged(f"{file.path!r} of {uri!r} changed ({changed}); register it again.")

    def _walk(self, uri: str, folder: Path, *, prefix: str = "", depth: int = 0) -> Iterator[SourceFile]:
        if depth > MAX_DEPTH:
            raise UriNotAllowed(f"{uri!r} has folders more than {MAX_DEPTH} deep; name the checkpoint's own folder.")
        for name in self._names(uri, folder):
            if name.startswith("."):
                continue  # .git, .cache and the like never belong to a checkpoint
            path, real = f"{prefix}{name}", _real(folder / name)
            if not self._is_below_roots(real):
                raise UriNotAllowed(
                    f"{path!r} of {uri!r} is a link out of the file roots; copy the file there instead."
                )
            with self._opened(uri, real) as descriptor:
                status = os.fstat(descriptor)
            if stat.S_ISDIR(status.st_mode):
                yield from self._walk(uri, real, prefix=f"{path}/", depth=depth + 1)
            elif stat.S_ISREG(status.st_mode):
                yield _describe(path, status)

    def _names(self, uri: str, folder: Path) -> list[str]:
        with self._opened(uri, folder) as descriptor, os.scandir(descriptor) as entries:
            names = sorted(entry.name for entry in entries)
        if not all(name.isprintable() for name in names):  # surrogates stand for bytes that are not UTF-8
            raise UriNotAllowed(f"{uri!r} holds names with characters that cannot be shown; rename those files.")
        return names

    def _is_below_roots(self, real: Path) -> bool:
        return any(real.is_relative_to(_real(root)) for root in self._roots)

    @contextlib.contextmanager
    def _opened(self, uri: str, real: Path) -> Iterator[int]:
        descriptor = self._open(uri, real)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _open(self, uri: str, real: Path) -> int:
        """Open a real path from its root, component by component, following no link that appeared meanwhile."""
        root = next(_real(root) for root in self._roots if real.is_relative_to(_real(root)))
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            for part in real.relative_to(root).parts:
                below = _open_below(part, flags, descriptor)
                descriptor = below
        except FileNotFoundError:
            raise UriNotFound(f"Nothing lies at {uri!r}, or it vanished while it was looked at.") from None
        except OSError as error:
            raise UriNotAllowed(f"{uri!r} cannot be read ({error.strerror}); look at its rights and links.") from None
        return descriptor


def _open_below(part: str, flags: int, folder: int) -> int:
    try:
        return os.open(part, flags, dir_fd=folder)
    finally:
        os.close(folder)


def _chunks(descriptor: int) -> Iterator[bytes]:
    with os.fdopen(descriptor, "rb") as file:
        while data := file.read(CHUNK_BYTES):
            yield data


def _describe(path: str, status: os.stat_result) -> SourceFile:
    return SourceFile(path=path, size_bytes=status.st_size, mtime_ns=status.st_mtime_ns, inode=status.st_ino)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))
