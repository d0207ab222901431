"""States of a training on disk: one file, replaced as a whole, in a folder that outlives the attempt.

A state belongs to one training alone: its key covers all that decides the result. Whose folder it is, and when it is
removed, is the service's (app/services/running.py, workers/housekeeping.py).
"""

import os
import pickle
import time
from pathlib import Path
from typing import Any

import torch

STATE_FILE = "training.pt"
SHARE = 20  # saving takes at most a twentieth of the time
_UNREADABLE = (OSError, EOFError, RuntimeError, pickle.UnpicklingError)  # what torch.load makes of a torn file


class FileStates:
    """The states of one training, saved every so many seconds; 0: after every step, whatever it takes."""

    def __init__(self, folder: Path, key: str, *, every_seconds: float) -> None:
        self._path = folder / STATE_FILE
        self._key = key
        self._every_seconds = every_seconds
        self._saved_at = time.monotonic()
        self._pause_seconds = every_seconds

    def load(self) -> dict[str, Any] | None:
        """Return the last state of this very training; None where there is none, or none that can be read."""
        try:
            kept = torch.load(self._path, map_location="cpu", weights_only=True)
        except _UNREADABLE:
            return None
        is_ours = isinstance(kept, dict) and kept.get("key") == self._key
        return kept["state"] if is_ours else None

    def is_due(self) -> bool:
        """Whether it is time to save again."""
        return time.monotonic() - self._saved_at >= self._pause_seconds

    def save(self, state: dict[str, Any]) -> None:
        """Replace the state. Raises: OSError when the disk is full."""
        began_at = time.monotonic()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_suffix(f".{os.getpid()}")  # another attempt, if it is not dead yet, has its own
        with beside.open("wb") as file:
            torch.save({"key": self._key, "state": state}, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._path)
        self._saved_at = time.monotonic()
        if self._every_seconds > 0:
            self._pause_seconds = max(self._every_seconds, SHARE * (self._saved_at - began_at))
