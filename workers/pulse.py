"""Keeps a claim alive from a thread of its own, and learns there why the attempt has to stop."""

import threading
import time
from enum import StrEnum

import structlog

from app.db.engine import Sessions
from app.domain.errors import Unavailable
from app.domain.jobs import Progress
from app.services import running
from app.services.running import Claim, LogLine

LEASE_MARGIN = 0.9  # of the lease: a worker that cannot renew stops before another may take over
log = structlog.get_logger(__name__)


class StopReason(StrEnum):
    """Why an attempt stops before its work is done."""

    CANCELED = "canceled"
    TIMED_OUT = "timed_out"
    DRAINED = "drained"
    LOST = "lost"


class Stopped(Exception):
    """The attempt was stopped before its work was done."""

    def __init__(self, reason: StopReason) -> None:
        super().__init__(reason)
        self.reason = reason


class Pulse:
    """Renews the lease and stores progress at every beat; `reason` says why to stop, once there is a reason."""

    def __init__(self, sessions: Sessions, claim: Claim, *, every_seconds: float) -> None:
        self._sessions = sessions
        self._claim = claim
        self._every_seconds = every_seconds
        self._lock = threading.Lock()
        self._progress: Progress | None = None
        self._entered: list[str] = []
        self._told: list[LogLine] = []
        self._stage = ""
        self._drain_at: float | None = None
        self._started_at = self._renewed_at = time.monotonic()
        self._stop = threading.Event()
        self._beaten = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"pulse-{claim.job.id}", daemon=True)
        self.reason: StopReason | None = None

    def __enter__(self) -> "Pulse":
        """Begin to beat."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop beating."""
        self._stop.set()
        self._thread.join()

    def note(self, progress: Progress) -> None:
        """Take the newest progress; it is stored with the next beat."""
        with self._lock:
            self._progress = progress
            if progress.stage and progress.stage != self._stage:
                self._stage = progress.stage
                self._entered.append(progress.stage)

    def enter(self, stage: str, fraction: float = 0.0) -> None:
        """Begin a stage of the supervisor's own."""
        self.note(Progress(stage=stage, fraction=fraction))

    def tell(self, line: LogLine) -> None:
        """Take a line for the job's log; it is stored with the next beat."""
        with self._lock:
            self._told.append(line)

    def flush(self) -> None:
        """Store the lines that wait for the next beat, if there are any. Raises: Unavailable."""
        with self._lock:
            is_waiting = bool(self._told)
        if is_waiting:
            self._beat()

    def look(self) -> None:
        """Return while the attempt may go on. Raises: Stopped."""
        if self.reason is not None:
            raise Stopped(self.reason)

    def drain(self, grace_seconds: float) -> None:
        """Let the attempt go on for this long, then stop it."""
        self._drain_at = time.monotonic() + grace_seconds

    def _run(self) -> None:
        while not self._stop.wait(self._every_seconds):
            try:
                self._beat()
            except Unavailable:
                log.warning("heartbeat_failed", job=self._claim.job.id, fence=self._claim.fence)
            except Exception:  # were this thread to end, nobody would see a cancel, the time limit or a lost lease
                log.exception("heartbeat_broken", job=self._claim.job.id, fence=self._claim.fence)
            self._judge()

    def _beat(self) -> None:
        with self._lock:
            progress, entered, told = self._progress, tuple(self._entered), tuple(self._told)
            self._progress = None
            self._entered.clear()
            self._told.clear()
        asked_at = time.monotonic()
        heard = running.heartbeat(self._sessions, self._claim, progress, entered=entered, told=told)
        self._renewed_at = asked_at
        if heard.is_lost:
            self._give(StopReason.LOST)
        elif heard.cancel_requested:
            self._give(StopReason.CANCELED)

    def _judge(self) -> None:
        now = time.monotonic()
        if now - self._renewed_at > LEASE_MARGIN * self._claim.lease_seconds:
            self._give(StopReason.LOST)
        elif now - self._started_at > self._claim.job.timeout_seconds:
            self._give(StopReason.TIMED_OUT)
        elif self._drain_at is not None and now > self._drain_at:
            self._give(StopReason.DRAINED)

    def _give(self, reason: StopReason) -> None:
        # That the claim is lost overrides everything: nothing may be written any more.
        if self.reason is None or reason is StopReason.LOST:
            self.reason = reason
