"""Runs a whole process and says what it took: wall and CPU seconds, peak anonymous memory, its last line of output."""

import os
import subprocess
import threading
import time
from collections.abc import Sequence
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
