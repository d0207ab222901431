"""Writes the weight files of a checkpoint: pre-sized, bytes in the order of their offsets, digests on the way.

Two threads hash what was written, one for files and one for tensors, while the next bytes are computed.
"""

import errno
import hashlib
import os
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.domain.checkpoints import FileEntry
from app.domain.errors import OutOfDisk
from app.domain.plans import PlannedTensor, WeightsPlan
from workers.checkpoints.writeback import EVERY_BYTES, start_writeback

QUEUE_LENGTH = 8
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class WeightsWriter:
    """Writes planned tensors one after the other; `finish` makes the bytes durable and gives the digests."""

    def __init__(self, plan: WeightsPlan, folder: Path) -> None:
        self._plan = plan
        self._folder = folder
        self._files = {file.path: file for file in plan.files}
        self._descriptor: int | None = None
        self._file: str | None = None
        self._begun: list[Path] = []
        self._sent = 0  # bytes of the open file that are on their way to the disk
        self._of_files = _Hasher()
        self._of_tensors = _Hasher()

    def write(self, tensor: PlannedTensor, offset: int, content: memoryview) -> None:
        """Write the tensor's bytes from byte `offset` on. Tensors and offsets come in the plan's order, without gaps.

        The content must not change afterwards: it is hashed later.
        Raises: OutOfDisk.
        """
        self._enter(tensor.file)
        self._put(content, tensor.begin + offset)
        self._of_files.update(tensor.file, content)
        self._of_tensors.update(tensor.name, content)

    def finish(self) -> tuple[list[FileEntry], dict[str, str]]:
        """Return the files, and tensor name -> sha256; all bytes are on the disk."""
        self._leave()
        of_files, of_tensors = self._of_files.finish(), self._of_tensors.finish()
        entries = [
            FileEntry(path=file.path, size_bytes=file.size_bytes, sha256=of_files[file.path])
            for file in self._plan.files
        ]
        return entries, {tensor.name: of_tensors[tensor.name] for tensor in self._plan.tensors}

    def abandon(self) -> None:
        """Stop hashing, close, and remove what was written."""
        self._of_files.finish()
        self._of_tensors.finish()
        if self._descriptor is not None:
            os.close(self._descriptor)
        for path in self._begun:
            path.unlink(missing_ok=True)

    def _enter(self, file: str) -> None:
        if file == self._file:
            return
        self._leave()
        path = self._folder / file
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._begun.append(path)
        self._file = file
        self._sent = 0
        with _clear_when_full(file, self._files[file].size_bytes):
            os.posix_fallocate(self._descriptor, 0, self._files[file].size_bytes)
        header = self._plan.header(file)
        self._put(memoryview(header), 0)
        self._of_files.update(file, memoryview(header))

    def _leave(self) -> None:
        if self._descriptor is None or self._file is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        try:
            with _clear_when_full(self._file, self._files[self._file].size_bytes):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _put(self, content: memoryview, position: int) -> None:
        if self._descriptor is None or self._file is None:
            raise ValueError("no file is open")
        with _clear_when_full(self._file, self._files[self._file].size_bytes):
            while len(content) > 0:
                n_bytes = os.pwrite(self._descriptor, content, position)
                content = content[n_bytes:]
                position += n_bytes
        if position - self._sent >= EVERY_BYTES:
            start_writeback(self._descriptor, self._sent, position - self._sent)
            self._sent = position


class _Hasher:
    """A thread that hashes byte runs under keys; runs of one key come in order."""

    def __init__(self) -> None:
        self._queue: queue.Queue[tuple[str, memoryview] | None] = queue.Queue(QUEUE_LENGTH)
        self._digests: dict[str, str] = {}
        self._thread = threading.Thread(target=self._run, name="hash", daemon=True)
        self._thread.start()

    def update(self, key: str, content: memoryview) -> None:
        """Take the next bytes of a key."""
        self._queue.put((key, content))

    def finish(self) -> dict[str, str]:
        """Wait for all that was given, and return key -> sha256 (hex)."""
        self._queue.put(None)
        self._thread.join()
        return self._digests

    def _run(self) -> None:
        key: str | None = None
        digest = hashlib.sha256()
        while (item := self._queue.get()) is not None:
            if item[0] != key:
                if key is not None:
                    self._digests[key] = digest.hexdigest()
                key, digest = item[0], hashlib.sha256()
            digest.update(item[1])
        if key is not None:
            self._digests[key] = digest.hexdigest()


@contextmanager
def _clear_when_full(file: str, size_bytes: int) -> Iterator[None]:
    """Turn the errors of a full disk, quota or file size limit into OutOfDisk."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        raise OutOfDisk(
            f"{file}: no room for its {size_bytes} bytes ({os.strerror(error.errno)}); free disk space, or point the "
            "service's data folder at a larger disk, and retry the job."
        ) from error
