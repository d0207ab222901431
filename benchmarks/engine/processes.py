"""Runs a whole process and says what it took: wall and CPU seconds, peak anonymous memory, its last line of output."""

import hashlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SAMPLE_SECONDS = 0.02


@dataclass(frozen=True)
class Run:
    """What one process took."""

    wall_seconds: float
    cpu_seconds: float
    anonymous_bytes: int  # at its peak, sampled
    last_line: str


def run(
    command: Sequence[str | Path], *, environment: dict[str, str] | None = None, sample_seconds: float = SAMPLE_SECONDS
) -> Run:
    """Run a command to its end. sample_seconds: how often its memory is looked at.

    Raises: RuntimeError with the end of its output when it fails.
    """
    os.sync()  # what the run before left to write is not this one's to pay
    began_at = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **(environment or {})},
        text=True,
    )
    watch = _Watch(process.pid, sample_seconds)
    watch.start()
    lines = list(process.stdout or ())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall_seconds = time.perf_counter() - began_at
    watch.stop()
    if process.returncode:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}:\n{''.join(lines[-30:])}")
    cpu_seconds = usage.ru_utime + usage.ru_stime
    return Run(wall_seconds, cpu_seconds, watch.peak_bytes, lines[-1].strip() if lines else "")


def read_once(models: Path) -> None:
    """Read every weight below a folder, so that whoever comes next finds it in the page cache."""
    for _ in _read_parts(models):
        pass


def forget(models: Path) -> None:
    """Drop every weight file below a folder from the page cache, so that whoever comes next reads the disk."""
    for path in models.rglob("*.safetensors"):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@dataclass(frozen=True)
class Floor:
    """Seconds that no merge of some models can do without, one after the other, on one thread."""

    read: float  # all weights of the models
    write: float  # those of the result, until they lie on the disk
    hash: float  # one SHA-256 of them

    def total(self, n_passes: int) -> float:
        """Return their sum where the models are read as often."""
        return n_passes * self.read + self.write + self.hash


def measure_floor(models: Path, output: Path, prepare: Callable[[Path], None]) -> Floor:
    """Read the weights of the models once more, write those of an output again, and hash them.

    prepare: brings the models into the page cache, or drops them from it.
    """
    prepare(models)
    began_at = time.perf_counter()
    read_once(models)
    read, write, hashing = time.perf_counter() - began_at, 0.0, 0.0
    digest, target = hashlib.sha256(), output.with_name("floor.bytes")
    os.sync()
    with target.open("wb", buffering=0) as stream:
        for content in _read_parts(output):
            began_at = time.perf_counter()
            digest.update(content)
            hashed_at = time.perf_counter()
            stream.write(content)
            write, hashing = write + time.perf_counter() - hashed_at, hashing + hashed_at - began_at
        began_at = time.perf_counter()
        os.fsync(stream.fileno())
        write += time.perf_counter() - began_at
    target.unlink()
    return Floor(read, write, hashing)


def _read_parts(folder: Path) -> Iterator[bytes]:
    for path in sorted(folder.rglob("*.safetensors")):
        with path.open("rb", buffering=0) as stream:
            while content := stream.read(1 << 24):
                yield content


def anonymous_bytes(process: int | Literal["self"] = "self") -> int:
    """Return how much anonymous memory a process has; 0 once it has ended.

    Raises: OSError where there is no such process.
    """
    _, _, rest = Path(f"/proc/{process}/status").read_text(encoding="utf-8").partition("RssAnon:")
    return int(rest.split()[0]) * 1024 if rest else 0


class _Watch(threading.Thread):
    """Samples a process's anonymous memory."""

    def __init__(self, process_id: int, sample_seconds: float) -> None:
        super().__init__(daemon=True)
        self.peak_bytes = 0
        self._process_id = process_id
        self._sample_seconds = sample_seconds
        self._is_over = threading.Event()

    def run(self) -> None:
        while not self._is_over.wait(self._sample_seconds):
            try:
                self.peak_bytes = max(self.peak_bytes, anonymous_bytes(self._process_id))
            except OSError:
                return

    def stop(self) -> None:
        self._is_over.set()
        self.join()
