"""Files and folders for the storage tests."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from app.domain.checkpoints import FileEntry


def entry(path: str, content: bytes) -> FileEntry:
    """Return the entry of a file with this content."""
    return FileEntry(path=path, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def write_folder(folder: Path, contents: Mapping[str, bytes]) -> list[FileEntry]:
    """Write files below a folder and return their entries."""
    for path, content in contents.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return [entry(path, content) for path, content in contents.items()]


def read_folder(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }
