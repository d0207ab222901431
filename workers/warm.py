"""The supervisor's end of a warm process: start a job process, read its reports, kill it, learn how it ended.

Imports no torch: the modules to keep warm are named, and imported in the warm process (workers/forkserver.py).
"""

import contextlib
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from pathlib import Path

import structlog

from workers import forkserver

CANNOT_WARM_UP = 1  # exit code of a warm process that fails before it serves
STOP_SECONDS = 1.0
END_SECONDS = 10.0  # from a process's last word to its end
log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Exit:
    """How a job process ended: its exit code (negative: the signal), and its peak resident memory."""

    exit_code: int
    max_rss_bytes: int = 0
    is_server_lost: bool = False


class JobProcess:
    """One running job process."""

    def __init__(self, server: "WarmServer", reports: int) -> None:
        self._server = server
        self._reports = reports
        self._buffer = bytearray()
        self._is_at_end = False
        self.pid: Future[int] = Future()
        self.ended: Future[Exit] = Future()

    def read(self, timeout_seconds: float) -> list[bytes] | None:
        """Return the report lines that came within the time, maybe none; None once there will be no more."""
        readable, _, _ = select.select([self._reports], [], [], timeout_seconds)
        if not readable:
            return []
        data = os.read(self._reports, 1 << 20)
        if not data:
            self._is_at_end = True
            return None
        self._buffer += data
        if b"\n" not in data:
            return []
        *lines, rest = bytes(self._buffer).split(b"\n")
        self._buffer = bytearray(rest)
        return lines

    def kill(self) -> None:
        """Kill the process and whatever it started; returns once it is gone. One not forked yet will never be."""
        if not self.ended.done():
            self._server.kill(self)
        with contextlib.suppress(NotYet):
            self.ended.result(END_SECONDS)

    def end(self) -> Exit:
        """Make sure that it has ended, free its descriptor, and return how it ended. A last word leaves it a moment."""
        try:
            ended = self.ended.result(END_SECONDS if self._is_at_end else 0)
        except NotYet:
            self.kill()
            ended = self.ended.result(END_SECONDS)
        os.close(self._reports)
        return ended


class WarmServer:
    """A warm process, started when first needed and again when it has died."""

    def __init__(self, entry: str, modules: tuple[str, ...] = (), *, threads: int = 1) -> None:
        self._arguments = [entry, *modules]
        self._threads = threads
        self._lock = threading.Lock()
        self._channel: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._tickets = itertools.count(1)
        self._waiting: dict[int, JobProcess] = {}
        self._running: dict[int, JobProcess] = {}
        self.is_broken = False  # it cannot be warmed up: no job can run
        self._has_warmed_up = threading.Event()  # or ended: there is nothing to wait for

    def start(self) -> None:
        """Start the warm process if it does not run."""
        with self._lock:
            self._ensure()

    def wait_until_warm(self, timeout_seconds: float) -> bool:
        """Wait until the started process could run a job at once, or has ended; tell whether that came in time."""
        return self._has_warmed_up.wait(timeout_seconds)

    def launch(self, order: Path, *, memory_limit_bytes: int | None = None) -> JobProcess:
        """Fork a job process for a work order; its reports come by a pipe."""
        read, write = os.pipe()
        job = JobProcess(self, read)
        try:
            with self._lock:
                channel = self._ensure()
                ticket = next(self._tickets)
                self._waiting[ticket] = job
                message = {"order": str(order), "ticket": ticket, "memory_limit_bytes": memory_limit_bytes}
                with contextlib.suppress(OSError):  # it has just died: the listener tells the job
                    forkserver.send(channel, message, (write,))
        finally:
            os.close(write)
        return job

    def kill(self, job: JobProcess) -> None:
        """Kill a job process of this server, or forget one that it has not forked yet: it may still be warming up."""
        with self._lock:
            ticket = next((ticket for ticket, waiting in self._waiting.items() if waiting is job), None)
            if ticket is not None:
                del self._waiting[ticket]
                job.ended.set_result(Exit(-signal.SIGKILL))
            elif self._channel is not None and job in self._running.values():
                with contextlib.suppress(OSError):
                    forkserver.send(self._channel, {"kill": job.pid.result(0)})

    def stop(self) -> None:
        """End the warm process with all its children."""
        with self._lock:
            channel, process = self._channel, self._process
            self._channel = self._process = None
        if channel is not None:
            with contextlib.suppress(OSError):
                channel.shutdown(socket.SHUT_RDWR)
        if process is not None:
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:  # it is still importing; its children, if any, die with it
                process.kill()
                process.wait()

    def _ensure(self) -> socket.socket:
        if self._channel is not None:
            return self._channel
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "workers.forkserver", str(theirs.fileno()), *self._arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **_environment(self._threads)},
                start_new_session=True,
            )
        self._channel = ours
        threading.Thread(target=self._listen, args=(ours, self._process), name="warm-listener", daemon=True).start()
        return ours

    def _listen(self, channel: socket.socket, process: subprocess.Popen[bytes]) -> None:
        for message in _messages(channel):
            with self._lock:
                self._note(message)
        channel.close()
        process.wait()
        with self._lock:
            if self._channel is channel:
                self.is_broken = process.returncode == CANNOT_WARM_UP
                log.warning("warm_process_lost", exit_code=process.returncode, entry=self._arguments[0])
                self._channel = self._process = None
            lost = [*self._waiting.values(), *self._running.values()]
            self._waiting.clear()
            self._running.clear()
        self._has_warmed_up.set()
        for job in lost:
            if not job.pid.done():
                job.pid.set_result(0)
            job.ended.set_result(Exit(process.returncode, is_server_lost=True))

    def _note(self, message: dict[str, object]) -> None:
        if "warm" in message:
            self._has_warmed_up.set()
            return
        pid = message.get("pid")
        if isinstance(pid, int):
            job = self._waiting.pop(int(str(message["started"])), None)
            if job is not None:
                self._running[pid] = job
                job.pid.set_result(pid)
            elif self._channel is not None:  # forgotten while it was forked
                with contextlib.suppress(OSError):
                    forkserver.send(self._channel, {"kill": pid})
            return
        ended = self._running.pop(int(str(message["ended"])), None)
        if ended is not None:
            ended.ended.set_result(Exit(int(str(message["exit_code"])), int(str(message["max_rss_bytes"]))))


def _messages(channel: socket.socket) -> Iterator[dict[str, object]]:
    while True:
        try:
            message, _ = forkserver.receive(channel)
        except (OSError, json.JSONDecodeError):
            return
        if message is None:
            return
        yield message


def _environment(threads: int) -> dict[str, str]:
    """Variables that libraries read when they are imported: threads, and no network."""
    n = str(threads)
    return {
        "OMP_NUM_THREADS": n,
        "MKL_NUM_THREADS": n,
        "OPENBLAS_NUM_THREADS": "1",  # its threads would not survive the fork
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
