"""Writes the weight files of a checkpoint: pre-sized, bytes from any thread, digests in the order of offsets.

Bytes are placed where they are computed, on several threads; the thread that collects them hashes them meanwhile. A
merge that computes little waits for that, so one of the two digests may be taken by a thread of its own.
"""

import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from blake3 import blake3

from app.domain.checkpoints import FileEntry
from app.domain.errors import JobInternal, OutOfDisk
from app.domain.plans import PlannedTensor, WeightsPlan
from workers.checkpoints.range_file import RangeFile

WORTH_BYTES = 1 << 17  # of a run, for another thread to be asked
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class WeightsWriter:
    """Writes planned tensors; `finish` gives the digests. Whoever keeps the files makes them durable: the store does.

    on_written: hears how many bytes of a file are as they will stay, headers included. by_several: whether several
    threads place bytes; then whoever places some may wait for the disk, and the digests of files and of tensors are
    taken at the same time.
    """

    def __init__(
        self,
        plan: WeightsPlan,
        folder: Path,
        on_written: Callable[[str, int], None] = lambda _path, _n_bytes: None,
        *,
        by_several: bool = False,
    ) -> None:
        self._plan = plan
        self._folder = folder
        self._on_written = on_written
        self._by_several = by_several
        self._sizes = {file.path: file.size_bytes for file in plan.files}
        self._opening = threading.Lock()
        self._open: dict[str, RangeFile] = {}
        self._begun: list[Path] = []
        self._of_files: dict[str, hashlib._Hash] = {}
        self._of_tensors: dict[str, blake3] = {}
        self._ready: dict[str, int] = {}
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="digest") if by_several else None

    def place(self, tensor: PlannedTensor, offset: int, content: memoryview) -> None:
        """Write the tensor's bytes from byte `offset` on; from any thread, in any order.

        Raises: OutOfDisk.
        """
        self._put(tensor.file, content, tensor.begin + offset)

    def digest(self, tensor: PlannedTensor, content: memoryview) -> None:
        """Hash the next bytes of a tensor, which were placed; they come in the plan's order, without gaps."""
        if tensor.file not in self._of_files:
            header = self._plan.header(tensor.file)
            self._put(tensor.file, memoryview(header), 0)
            self._of_files[tensor.file], self._ready[tensor.file] = hashlib.sha256(header), len(header)
        if tensor.name not in self._of_tensors:
            self._of_tensors[tensor.name] = blake3()
        of_file, of_tensor = self._of_files[tensor.file], self._of_tensors[tensor.name]
        aside = self._aside if len(content) >= WORTH_BYTES else None
        half = None if aside is None else aside.submit(of_tensor.update, content)
        of_file.update(content)
        if half is None:
            of_tensor.update(content)
        else:
            half.result()
        self._ready[tensor.file] += len(content)
        self._on_written(tensor.file, self._file(tensor.file).count_settled(self._ready[tensor.file]))

    def finish(self) -> tuple[list[FileEntry], dict[str, str]]:
        """Return the files, and tensor name -> digest. Raises: OutOfDisk; JobInternal where bytes are missing."""
        self._stop()
        for path, size in self._sizes.items():
            if self._ready.get(path) != size or not self._file(path).is_whole:
                raise JobInternal(f"{path}: not all of its {size} bytes were placed and hashed; report this fault.")
        while self._open:
            path, file = self._open.popitem()
            with _clear_when_full(path, self._sizes[path]):  # network file systems tell of a quota here
                file.close()
        entries = [
            FileEntry(path=file, size_bytes=size, sha256=self._of_files[file].hexdigest())
            for file, size in self._sizes.items()
        ]
        return entries, {name: digest.hexdigest() for name, digest in self._of_tensors.items()}

    def abandon(self) -> None:
        """Close, and remove what was written; nothing is placed any more."""
        self._stop()
        while self._open:
            self._open.popitem()[1].close()
        for path in self._begun:
            path.unlink(missing_ok=True)

    def _stop(self) -> None:
        if self._aside is not None:
            self._aside.shutdown()

    def _put(self, path: str, content: memoryview, position: int) -> None:
        with _clear_when_full(path, self._sizes[path]):
            self._file(path).write(content, position)

    def _file(self, path: str) -> RangeFile:
        with self._opening:
            if path not in self._open:
                self._open[path] = RangeFile(self._folder / path, self._sizes[path], past_cache=self._by_several)
                self._begun.append(self._folder / path)
            return self._open[path]


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
