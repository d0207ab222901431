"""Keeps the worker's row fresh, and removes the folders that attempts without an owner left behind."""

import shutil
import threading
from pathlib import Path

import structlog

from app.domain.errors import Unavailable
from app.services import presence, reaping
from app.services.presence import WorkerFacts
from app.services.running import KEPT_SUFFIX
from workers.runtime import Runtime
from workers.tasks import Supervisor

EVERY_SECONDS = 5.0
log = structlog.get_logger(__name__)


class Housekeeping:
    """Small duties, every few seconds."""

    def __init__(self, supervisor: Supervisor, runtime: Runtime, facts: WorkerFacts) -> None:
        self._supervisor = supervisor
        self._runtime = runtime
        self._facts = facts

    def run(self, stop: threading.Event) -> None:
        """Do the duties until told to stop."""
        while not stop.wait(EVERY_SECONDS):
            try:
                presence.renew(
                    self._runtime.keepers.sessions,
                    self._facts,
                    is_draining=self._supervisor.is_draining,
                    load={"jobs": list(self._supervisor.running), "n_running": len(self._supervisor.running)},
                )
                self.sweep_scratch()
            except Unavailable:
                log.warning("housekeeping_failed", reason="the database is away")
            except Exception:  # the next round may do better; without any, the worker would seem dead
                log.exception("housekeeping_broken")

    def sweep_scratch(self) -> int:
        """Remove the folders of attempts that nobody holds any more, and what jobs kept that have ended.

        Returns how many were removed.
        """
        dead = [*self._dead_attempts(), *self._dead_jobs()]
        for folder in dead:
            shutil.rmtree(folder, ignore_errors=True)
        return len(dead)

    def _dead_attempts(self) -> list[Path]:
        folders = {}
        for folder in self._runtime.scratch.glob("job_*.*"):
            job_id, _, fence = folder.name.rpartition(".")
            if fence.isdigit():
                folders[job_id, int(fence)] = folder
        if not folders:
            return []
        live = reaping.live_attempts(self._runtime.keepers.sessions, folders)
        return [folder for attempt, folder in folders.items() if attempt not in live]

    def _dead_jobs(self) -> list[Path]:
        folders = {folder.stem: folder for folder in self._runtime.scratch.glob(f"job_*{KEPT_SUFFIX}")}
        if not folders:
            return []
        live = reaping.live_jobs(self._runtime.keepers.sessions, folders)
        return [folder for job_id, folder in folders.items() if job_id not in live]
