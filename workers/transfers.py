"""What an attempt's bytes are told on their way in and out: to stop, and that somebody wants to see them move."""

import contextlib
import os
import time
from pathlib import Path

from app.domain.jobs import Progress
from app.storage.base import Watch
from workers.pulse import Pulse

NOTE_SECONDS = 0.2  # between two notes of progress
TOUCH_SECONDS = 60.0  # between two touches of a fetched folder, which is swept after hours without


class Transfers(Watch):
    """Stops bytes when the attempt must stop; shows how many of how many have moved; keeps what was fetched."""

    def __init__(self, pulse: Pulse) -> None:
        self._pulse = pulse
        self._folders: list[Path] = []
        self._stage = ""
        self._first = self._last = 0.0
        self._done = self._total = 0
        self._fraction = 0.0  # what was said last
        self._began_at = self._noted_at = self._touched_at = time.monotonic()

    def enter(self, stage: str, first: float, last: float) -> None:
        """Begin a stage, whose bytes take the job from one fraction to another."""
        self._stage, self._first, self._last = stage, first, last
        self._done = self._total = 0
        self._fraction = first
        self._began_at = time.monotonic()
        self._pulse.enter(stage, first)

    def after(self, progress: Progress) -> Progress:
        """Return the progress of the work as that of the whole job, which began with moving bytes, if it did."""
        return progress.model_copy(update={"fraction": self._fraction + (1.0 - self._fraction) * progress.fraction})

    def expect(self, n_bytes: int) -> None:
        """Count bytes that are going to move."""
        self._total += n_bytes

    def moved(self, n_bytes: int = 0) -> None:
        """Count bytes that have moved. Raises: Stopped."""
        self._pulse.look()
        now = time.monotonic()
        if now - self._touched_at >= TOUCH_SECONDS:
            self._touch(now)
        self._done += n_bytes
        if n_bytes and now - self._noted_at >= NOTE_SECONDS:
            self._note(now)

    def uses(self, folder: Path) -> None:
        """Keep a fetched folder as long as the attempt lasts."""
        self._folders.append(folder)

    def _note(self, now: float) -> None:
        self._noted_at = now
        total = max(self._total, self._done)
        rate = self._done / max(now - self._began_at, 1e-3)
        # Each input adds to the total when its turn comes; what was said before is not taken back.
        self._fraction = max(self._fraction, self._first + (self._last - self._first) * self._done / total)
        self._pulse.note(
            Progress(
                stage=self._stage,
                fraction=self._fraction,
                done=self._done,
                total=total,
                unit="bytes",
                bytes_per_second=rate,
                eta_seconds=(total - self._done) / rate,
            )
        )

    def _touch(self, now: float) -> None:
        self._touched_at = now
        for folder in self._folders:
            with contextlib.suppress(FileNotFoundError):
                os.utime(folder)
