"""Turns units of work done into progress reports: fraction, speed and what is left, a few times a second."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.domain.jobs import Progress

INTERVAL_SECONDS = 0.2


class Share:
    """Units of one piece of work, counted as it says how far it is, on any thread."""

    def __init__(self, advance: Callable[[int], None], n: int) -> None:
        self._advance = advance
        self._n = n
        self._done = 0
        self._lock = threading.Lock()

    def tick(self, fraction: float) -> None:
        """Take the fraction, 0 to 1, of the work that is done; one that is behind an earlier one is passed over."""
        done = int(fraction * self._n)
        with self._lock:
            more, self._done = max(0, done - self._done), max(done, self._done)
        if more:
            self._advance(more)


class ProgressMeter:
    """Counts units of one job over all its stages; `advance` may be called from any thread."""

    def __init__(self, on_progress: Callable[[Progress], None], *, total: int, unit: str = "bytes") -> None:
        self._on_progress = on_progress
        self._total = total
        self._unit = unit
        self._done = 0
        self._stage = ""
        self._lock = threading.Lock()
        self._is_silent = False
        self._began_at = time.monotonic()  # with what the speed is measured on
        self._before = 0  # units done by then
        self._reported_at = float("-inf")

    @contextmanager
    def silence(self) -> Iterator[None]:
        """Report nothing meanwhile, while somebody else does; units are counted."""
        self._is_silent = True
        yield
        self._is_silent = False

    def enter(self, stage: str) -> None:
        """Begin a stage and say so at once."""
        with self._lock:
            self._stage = stage
            self._report()

    def expect(self, left: int) -> None:
        """Say how many units are left, now that it is known."""
        with self._lock:
            self._total = self._done + left

    def turn_to(self, stage: str, *, left: int) -> None:
        """Begin a stage of another kind of work, of `left` units: the speed is measured from here on."""
        with self._lock:
            self._stage, self._total = stage, self._done + left
            self._before, self._began_at = self._done, time.monotonic()
            self._report()

    def advance(self, n: int) -> None:
        """Count n more units; report if the last report is old enough."""
        with self._lock:
            self._done += n
            if time.monotonic() - self._reported_at >= INTERVAL_SECONDS:
                self._report()

    def share(self, n: int) -> "Share":
        """Return a share of n units, to be counted while they are worked on."""
        return Share(self.advance, n)

    def _report(self) -> None:
        if self._is_silent:
            return
        now = time.monotonic()
        self._reported_at = now
        elapsed = now - self._began_at
        done = self._done - self._before
        rate = done / elapsed if elapsed > 0 and done else None
        left = max(0, self._total - self._done)
        self._on_progress(
            Progress(
                stage=self._stage,
                fraction=min(1.0, self._done / self._total) if self._total else 0.0,
                done=self._done,
                total=max(self._total, self._done),
                unit=self._unit,
                bytes_per_second=rate if self._unit == "bytes" else None,
                eta_seconds=left / rate if rate else None,
            )
        )
