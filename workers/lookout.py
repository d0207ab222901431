"""Looks for work without a message: what a lost one, or a broker that is away, would leave lying.

Also tells when the worker cannot do its work as it is: it has become deaf, or its warm process cannot start.
"""

import os
import signal
import threading
import time
from collections.abc import Mapping

import structlog

from app.domain.errors import Unavailable
from app.services import running
from workers.runtime import Runtime
from workers.tasks import Supervisor
from workers.warm import WarmServer

DEAF_SECONDS = 90.0
DEAF_FINDS = 3
log = structlog.get_logger(__name__)


class Lookout:
    """Finds queued jobs while there is room; runs them in threads of its own."""

    def __init__(
        self, supervisor: Supervisor, runtime: Runtime, servers: Mapping[str, WarmServer], *, every_seconds: float
    ) -> None:
        self._supervisor = supervisor
        self._runtime = runtime
        self._servers = servers
        self._every_seconds = every_seconds
        self._threads: list[threading.Thread] = []
        self._heard_at = time.monotonic()
        self._n_found = 0  # since the last message
        self.is_broken = False

    def note_message(self) -> None:
        """Note that a message came: this worker hears."""
        self._heard_at = time.monotonic()
        self._n_found = 0

    def run(self, stop: threading.Event) -> None:
        """Look until told to stop."""
        while not stop.wait(self._every_seconds):
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            try:
                if self._supervisor.has_room and self._has_work():
                    self._n_found += 1
                    self._start()
            except Unavailable:
                log.warning("lookout_failed", reason="the database is away")
            except Exception:  # the next look may do better
                log.exception("lookout_broken")
            self._judge()

    def join(self) -> None:
        """Wait until the jobs that were found here have ended."""
        for thread in list(self._threads):
            thread.join()

    def _has_work(self) -> bool:
        return running.has_work(self._runtime.keepers.sessions, self._runtime.identity.classes)

    def _start(self) -> None:
        log.info("work_found_without_message")
        thread = threading.Thread(target=self._supervisor.run_available, name="found-work")
        self._threads.append(thread)
        thread.start()

    def _judge(self) -> None:
        """Stop a worker that had better be started anew."""
        if self.is_broken:
            return
        is_deaf = self._n_found >= DEAF_FINDS and time.monotonic() - self._heard_at > DEAF_SECONDS
        if is_deaf and self._runtime.queue.is_reachable():
            log.error("worker_deaf", found_without_message=self._n_found)
        elif any(server.is_broken for server in self._servers.values()):
            log.error("worker_cannot_warm_up")
        else:
            return
        self.is_broken = True
        os.kill(os.getpid(), signal.SIGTERM)
