"""One attempt of a job: prepare → work in a process of its own → publish → record; and every way it can end instead.

How an end without a last word is told: killed by signal 9 while the kernel's count of out-of-memory kills rose is
`out_of_memory`; anything else (kill -9 from outside, a crash, a lost warm process) is `worker_lost`, which is retried.
A job process that sees its own allocation fail says `out_of_memory` itself.
"""

import contextlib
import errno
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import structlog
from pydantic import TypeAdapter, ValidationError

from app.domain.errors import (
    AmalgamError,
    JobInternal,
    JobTimedOut,
    OutOfDisk,
    OutOfMemory,
    Unavailable,
    WorkerLost,
    from_json,
)
from app.domain.sweeps import POINT_EVENT
from app.domain.views.jobs import JobView
from app.domain.work import (
    Outcome,
    PointReport,
    ProgressReport,
    Report,
    Work,
    WorkFailed,
    WorkSucceeded,
    WrittenReport,
    files_of,
)
from app.services import jobs, running
from app.services.running import Claim, ClaimLost, HandedOver, JobSteps
from app.storage.base import Growing
from workers.memory import out_of_memory_kills
from workers.pulse import Pulse, Stopped, StopReason
from workers.runtime import Runtime
from workers.transfers import Transfers
from workers.warm import Exit, JobProcess, WarmServer

LOOK_SECONDS = 0.05  # between looks at whether to stop
DATABASE_RETRY_SECONDS = 0.5
PREPARED_FRACTION = 0.5  # of a job whose inputs had to be moved here first
REPORTS: TypeAdapter[Report] = TypeAdapter(Report)
Result = TypeVar("Result")
log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Place:
    """Where an attempt runs: its folder (not made yet), its warm process, its share of the cores."""

    scratch: Path
    server: WarmServer
    threads: int


class Attempt:
    """One attempt of a job under a claim."""

    def __init__(self, runtime: Runtime, claim: Claim, pulse: Pulse, place: Place) -> None:
        self._runtime = runtime
        self._transfers = Transfers(pulse)
        self._keepers = replace(runtime.keepers, watch=self._transfers)
        self._sessions = runtime.keepers.sessions
        self._claim = claim
        self._pulse = pulse
        self._place = place
        self._stages: list[tuple[str, float]] = []

    def run(self, steps: JobSteps) -> None:
        """Run the attempt and record how it ended. Raises: ClaimLost; Unavailable when the database stays away."""
        try:
            followers = self._succeed(steps)
        except ClaimLost:
            raise
        except Stopped as stopped:
            self._stop(stopped.reason)
        except AmalgamError as problem:
            self._fail(problem)
        except Exception as error:
            log.exception("job_broke")
            self._fail(_unforeseen(error))
        else:
            log.info("job_succeeded", seconds=round(sum(seconds for _, seconds in self._stages), 3))
            jobs.hint(self._runtime.queue, followers)

    def _succeed(self, steps: JobSteps) -> list[JobView]:
        with self._stage("preparing", 0.0, PREPARED_FRACTION):
            (self._place.scratch / "output").mkdir(parents=True)
            work = steps.prepare(self._keepers, self._claim, self._place.scratch)
        if isinstance(work, HandedOver):
            log.info("job_handed_over", n_jobs=len(work.jobs))
            return list(work.jobs)
        self._pulse.look()
        with self._keepers.storage.follow(self._place.scratch / "output", watch=self._transfers) as growing:
            outcome = self._perform(work, growing)
            files = files_of(outcome)
            if files:
                with self._stage("publishing", 1.0, 1.0):
                    running.check(self._sessions, self._claim)
                    growing.publish(files)
        self._pulse.look()
        record = steps.record
        return self._persist(
            lambda: running.finish(
                self._sessions, self._claim, lambda session: record(session, self._claim, outcome), self._stages
            )
        )

    def _perform(self, work: Work, growing: Growing) -> Outcome:
        order = self._place.scratch / "order.json"
        where = f'"device": "{self._runtime.device}", "threads": {self._place.threads}'
        order.write_text(f'{{"work": {work.model_dump_json()}, {where}}}', encoding="utf-8")
        kills_before = out_of_memory_kills()
        process = self._place.server.launch(order, memory_limit_bytes=self._runtime.job_memory_bytes)
        try:
            last = self._relay(process, growing)
        finally:
            ended = process.end()
        if last is None:
            raise lost(ended, has_oom_kill=out_of_memory_kills() > kills_before)
        if isinstance(last, WorkFailed):
            raise from_json(last.problem)
        self._stages += last.stages
        with contextlib.suppress(Unavailable):  # what the lines say is in the result, too
            self._pulse.flush()
        return last.outcome

    def _relay(self, process: JobProcess, growing: Growing) -> WorkSucceeded | WorkFailed | None:
        """Pass progress on until the last word; None when the process ended without one. Raises: Stopped."""
        while (lines := process.read(LOOK_SECONDS)) is not None:
            self._transfers.moved()
            for line in lines:
                report = _parse(line)
                if isinstance(report, ProgressReport):
                    self._pulse.note(self._transfers.after(report.progress))
                elif isinstance(report, PointReport):
                    self._pulse.tell((POINT_EVENT, report.point.model_dump(mode="json")))
                elif isinstance(report, WrittenReport):
                    growing.grew(report.path, report.n_bytes)
                else:
                    return report
        return None

    def _stop(self, reason: StopReason) -> None:
        log.info("job_stopped", reason=str(reason))
        if reason is StopReason.CANCELED:
            self._persist(lambda: running.confirm_canceled(self._sessions, self._claim, self._stages))
        elif reason is StopReason.DRAINED:
            self._persist(lambda: running.release(self._sessions, self._claim, "its worker was stopped"))
        elif reason is StopReason.TIMED_OUT:
            limit = self._claim.job.timeout_seconds
            self._fail(
                JobTimedOut(
                    f"The job ran longer than its limit of {limit} s and was stopped."
                    " Submit it again with a larger timeout_seconds."
                )
            )
        else:
            raise ClaimLost(self._claim.job.id)

    def _fail(self, problem: AmalgamError) -> None:
        log.warning("attempt_failed", code=problem.code, detail=problem.detail)
        self._persist(lambda: running.fail(self._sessions, self._claim, problem, self._stages))

    def _persist(self, write: Callable[[], Result]) -> Result:
        """Write how the attempt ended; while the database is away, go on trying as long as the claim can hold."""
        while True:
            try:
                return write()
            except Unavailable:
                if self._pulse.reason is StopReason.LOST:
                    raise
                time.sleep(DATABASE_RETRY_SECONDS)

    @contextlib.contextmanager
    def _stage(self, name: str, first: float, last: float) -> Iterator[None]:
        self._transfers.enter(name, first, last)
        began_at = time.monotonic()
        yield
        self._stages.append((name, time.monotonic() - began_at))


def lost(ended: Exit, *, has_oom_kill: bool) -> AmalgamError:
    """Return the problem of a job process that ended without a last word."""
    peak = f"its memory peaked at {ended.max_rss_bytes / 2**20:.0f} MiB"
    if ended.exit_code == -signal.SIGKILL and has_oom_kill:
        return OutOfMemory(
            f"The kernel killed the job process because memory ran out; {peak}. Give the worker more memory, run fewer"
            " jobs at a time (AMALGAM_CONCURRENCY), or use smaller batches."
        )
    if ended.is_server_lost:
        how = "went with the warm process that it was forked from"
    elif ended.exit_code < 0:
        how = f"was killed by signal {-ended.exit_code} ({signal.Signals(-ended.exit_code).name})"
    else:
        how = f"ended with exit code {ended.exit_code}"
    return WorkerLost(f"The job process {how} before it was done; {peak}. The worker's log may say more.")


def _unforeseen(error: Exception) -> AmalgamError:
    """Return the problem of an error on the supervisor's side; the log has its traceback."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutOfDisk("The worker's disk is full. Free space in its scratch folder, then retry the job.")
    return JobInternal(f"The job failed with {type(error).__name__}, which it should not. The worker's log says where.")


def _parse(line: bytes) -> Report:
    try:
        return REPORTS.validate_json(line)
    except ValidationError as error:
        raise JobInternal(f"The job process said something that is no report: {line[:200]!r}.") from error
