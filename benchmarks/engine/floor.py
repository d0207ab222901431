"""The floor of a merge: the seconds that it takes to read its inputs and to write and hash its result, and no more.

Measured right after a merge, in the same state of the page cache, with the engine's own ways of reading and writing:

- read: the weight files of the models that the merge reads, each once and whole, as many threads as there are cores,
  each into one buffer of 1 MiB that it uses again. Read twice: as the merge found them (cached, or cold), then at once
  again, which is what every further pass of the merge costs.
- write: files of the result's sizes, allocated first, written as a `RangeFile` from one buffer and synced, as
  `WeightsWriter` does; meanwhile another thread takes one SHA-256 of as many bytes. Both at once are timed.

The floor is the first reading, one more for each further pass that the merge made (its report says how many), and the
writing with its hashing. Reading is not overlapped with writing: a merge that does both at once can be at 1 or below.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workers.checkpoints.memory import lying_as
from workers.checkpoints.parallel import n_cores
from workers.checkpoints.range_file import RangeFile

BUFFER_BYTES = 1 << 20
RANGE_BYTES = 1 << 26  # of a file, that a thread reads at a time


@dataclass(frozen=True)
class Floor:
    """Seconds; of writing and hashing, that were done at once, also those of each thread."""

    read: float  # as the merge found the inputs
    read_again: float
    write_and_hash: float
    write: float
    hash: float

    def total(self, n_passes: int) -> float:
        """Return the floor of a merge that passed over its inputs as often."""
        return self.read + (n_passes - 1) * self.read_again + self.write_and_hash


def measure_floor(models: Iterable[Path], sizes: Sequence[int], folder: Path, settle: Callable[[Path], None]) -> Floor:
    """Read the weights of some models, then write files of some sizes [bytes] into a folder and remove them.

    settle: brings a model into the page cache, or drops it from there.
    """
    folders = list(models)
    for model in folders:
        settle(model)
    files = [file for model in folders for file in weight_files(model)]
    read, read_again = (_time(lambda: read_files(files)) for _ in range(2))
    scratch = folder / "floor"
    scratch.mkdir()
    os.sync()
    try:
        with ThreadPoolExecutor(2) as pool:
            began_at = time.perf_counter()
            writing = pool.submit(_time, lambda: _write(scratch, sizes))
            hashing = pool.submit(_time, lambda: _hash(sum(sizes)))
            write, hashed = writing.result(), hashing.result()
            both = time.perf_counter() - began_at
    finally:
        shutil.rmtree(scratch)
    return Floor(read, read_again, both, write, hashed)


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files below a folder."""
    return sorted(folder.rglob("*.safetensors"))


def read_once(folder: Path) -> None:
    """Read every weight below a folder, so that whoever comes next finds it in the page cache."""
    read_files(weight_files(folder))


def forget(folder: Path) -> None:
    """Drop every weight file below a folder from the page cache, so that whoever comes next reads the disk."""
    for path in weight_files(folder):
        sync(path)
        with path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def sync(path: Path) -> None:
    """Have a file on the disk."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def read_files(paths: Iterable[Path]) -> int:
    """Read files whole, in ranges, on as many threads as there are cores; return the number of bytes."""
    ranges = [(path, begin) for path in paths for begin in range(0, path.stat().st_size, RANGE_BYTES)]
    with ThreadPoolExecutor(n_cores()) as pool:
        return sum(pool.map(_read_range, ranges))


def _read_range(part: tuple[Path, int]) -> int:
    path, begin = part
    buffer = memoryview(bytearray(BUFFER_BYTES))
    done = 0
    with path.open("rb", buffering=0) as stream:
        while done < RANGE_BYTES and (n_bytes := os.preadv(stream.fileno(), [buffer], begin + done)):
            done += n_bytes
    return done


def _write(folder: Path, sizes: Sequence[int]) -> None:
    content = lying_as(0, BUFFER_BYTES)
    content[:] = np.frombuffer(os.urandom(BUFFER_BYTES), dtype=np.uint8)
    for index, size in enumerate(sizes):
        path = folder / str(index)
        with closing(RangeFile(path, size, past_cache=True)) as file:
            for begin in range(0, size, BUFFER_BYTES):
                file.write(content[: size - begin].data, begin)
        sync(path)


def _hash(n_bytes: int) -> None:
    content, digest = memoryview(os.urandom(BUFFER_BYTES)), hashlib.sha256()
    for begin in range(0, n_bytes, BUFFER_BYTES):
        digest.update(content[: n_bytes - begin])


def _time(work: Callable[[], object]) -> float:
    began_at = time.perf_counter()
    work()
    return time.perf_counter() - began_at
