"""Celery's broker on a folder, with whole messages only.

kombu's own transport lets a reader take a message that is still being written, and keeps or misplaces what was read.
Here a message appears by a rename and is gone once read.
"""

import os
import time
import uuid
from pathlib import Path
from queue import Empty
from typing import Any

from kombu.transport import filesystem
from kombu.utils.json import dumps, loads

LISTEN_SECONDS = 0.25


class Channel(filesystem.Channel):
    """A channel whose messages are complete files named `<time>_<id>.<queue>.msg`."""

    def _put(self, queue: str, message: Any, **_options: Any) -> None:  # type: ignore[override]  # kombu's two differ
        folder = Path(self.data_folder_out)
        name = f"{time.time_ns():020d}_{uuid.uuid4().hex}.{queue}.msg"
        part = folder / f"{name}.part"
        part.write_text(dumps(message), encoding="utf-8")
        part.rename(folder / name)

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        folder, taken = Path(self.data_folder_in), Path(self.processed_folder)
        for name in sorted(os.listdir(folder)):  # noqa: PTH208 (names, not paths: this is polled)
            if name.partition(".")[2] != f"{queue}.msg":
                continue
            try:
                (folder / name).rename(taken / name)
            except FileNotFoundError:
                continue  # another worker was faster
            text = (taken / name).read_text(encoding="utf-8")
            (taken / name).unlink()
            return loads(text)
        raise Empty


class Transport(filesystem.Transport):
    """kombu's filesystem transport with our channel."""

    Channel = Channel

    def drain_events(self, connection: Any, timeout: float | None = None) -> None:  # type: ignore[override]
        """Wait for messages, but not long: a worker looks for a signal to stop only in between."""
        super().drain_events(connection, timeout=min(timeout or LISTEN_SECONDS, LISTEN_SECONDS))
