"""The embedded service: an API process and a worker process, started, watched, restarted and drained by this one.

The listening socket is ours and the API inherits it: its port is known before it runs, and while it is restarted
callers wait instead of being refused. Both die with this process, however it ends.
"""

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import psutil
import structlog

_QUICK_DEATHS_LIMIT = 5  # a child that dies so often without living _STEADY_SECONDS in between is given up
_STEADY_SECONDS = 30.0
_LONGEST_BACKOFF_SECONDS = 8.0
_WATCH_SECONDS = 0.2
_KILL_MARGIN_SECONDS = 5.0

log = structlog.get_logger()


class CannotServe(Exception):
    """The embedded service cannot start, or a part of it does not stay up; the message says which and why."""


@dataclass
class _Child:
    """A part of the service: how it is started, and what became of it."""

    name: str
    command: Sequence[str]
    inherited_fds: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    n_quick_deaths: int = 0
    restart_at: float = 0.0
    descendants: list[psutil.Process] = field(default_factory=list)


class EmbeddedService:
    """API and worker of one machine. `logs`: a folder for their output; without it they write to ours."""

    def __init__(
        self, *, host: str, port: int, grace_seconds: float, environment: Mapping[str, str], logs: Path | None = None
    ) -> None:
        self._host = host
        self._grace_seconds = grace_seconds
        # A folder `app` where the user happens to be is not ours: the current folder is not searched for modules.
        self._environment = {**environment, "PYTHONSAFEPATH": "1"}
        self._logs = logs
        self._stop_requested = threading.Event()
        self._socket = _listen(host, port)
        self.port: int = self._socket.getsockname()[1]
        program = (sys.executable, "-m", "app.cli.main")
        supervisor = ("--supervisor", str(os.getpid()))
        fd = self._socket.fileno()
        api = (*program, "api", "--host", host, "--port", str(self.port), "--fd", str(fd), *supervisor)
        self._children = [
            _Child("api", api, inherited_fds=(fd,)),
            _Child("worker", (*program, "worker", *supervisor)),
        ]

    @property
    def url(self) -> str:
        """Where the API listens, as this machine reaches it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def start(self) -> None:
        """Start both processes."""
        for child in self._children:
            self._spawn(child)

    def wait_until_ready(self, deadline_seconds: float) -> None:
        """Return when /readyz says 200.

        Raises: CannotServe when it does not within the deadline, or when a process is given up before.
        """
        deadline = time.monotonic() + deadline_seconds
        while not self._stop_requested.is_set():
            if self._is_ready():
                return
            if time.monotonic() > deadline:
                raise CannotServe(f"the service did not become ready within {deadline_seconds:.0f} s; see its log")
            self._look_after_children()
            self._stop_requested.wait(0.05)

    def watch(self) -> None:
        """Restart what dies, until a stop is requested.

        Raises: CannotServe when a process dies again and again.
        """
        while not self._stop_requested.wait(_WATCH_SECONDS):
            self._look_after_children()

    def request_stop(self) -> None:
        """Let `watch` and `wait_until_ready` return; safe in a signal handler."""
        self._stop_requested.set()

    def stop(self) -> None:
        """Drain: ask both to end, give running jobs their grace, then leave no process behind."""
        self._stop_requested.set()
        running = [child for child in self._children if child.process is not None and child.process.poll() is None]
        for child in running:
            child.descendants = _descendants(child)
            _signal(child, signal.SIGTERM)
        deadline = time.monotonic() + self._grace_seconds + _KILL_MARGIN_SECONDS
        try:
            for child in running:
                _wait(child, deadline)
        except KeyboardInterrupt:  # a second Ctrl-C: no more patience
            log.warning("grace_cut_short")
        finally:
            for child in running:
                _kill_tree(child)
            self._socket.close()

    def _look_after_children(self) -> None:
        now = time.monotonic()
        for child in self._children:
            if child.process is not None and child.process.poll() is not None:
                self._note_death(child, now)
            if child.process is None and now >= child.restart_at:
                self._spawn(child)

    def _note_death(self, child: _Child, now: float) -> None:
        status = child.process.returncode if child.process is not None else None
        child.process = None
        is_quick = now - child.started_at < _STEADY_SECONDS
        child.n_quick_deaths = child.n_quick_deaths + 1 if is_quick else 1
        if child.n_quick_deaths >= _QUICK_DEATHS_LIMIT:
            where = "see its log above" if self._logs is None else f"see {self._logs / child.name}.log"
            raise CannotServe(
                f"the {child.name} process died {child.n_quick_deaths} times in a row (last status {status}); {where}"
            )
        pause = min(0.25 * 2**child.n_quick_deaths, _LONGEST_BACKOFF_SECONDS)
        child.restart_at = now + pause
        log.warning("child_died", child=child.name, status=status, restart_in_seconds=pause)

    def _spawn(self, child: _Child) -> None:
        output = None if self._logs is None else self._open_log(self._logs, child)
        try:
            child.process = subprocess.Popen(
                child.command,
                env=self._environment,
                pass_fds=child.inherited_fds,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C reaches this process alone, which then drains the children
            )
        finally:
            if output is not None:
                output.close()
        child.started_at = time.monotonic()
        log.info("child_started", child=child.name, pid=child.process.pid)

    def _open_log(self, folder: Path, child: _Child) -> BinaryIO:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / f"{child.name}.log").open("ab")

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=2)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket that children may inherit.

    Raises: CannotServe when the address cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CannotServe(f"cannot listen on {host}:{port}: {reason}. Choose another with --host or --port.") from error
    return listener


def _descendants(child: _Child) -> list[psutil.Process]:
    try:
        return psutil.Process(child.process.pid).children(recursive=True) if child.process else []
    except psutil.NoSuchProcess:
        return []


def _signal(child: _Child, number: int) -> None:
    if child.process is not None and child.process.poll() is None:
        child.process.send_signal(number)


def _wait(child: _Child, deadline: float) -> None:
    if child.process is None:
        return
    try:
        child.process.wait(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        log.warning("child_killed", child=child.name, reason="it did not end within its grace")


def _kill_tree(child: _Child) -> None:
    """Kill what is left of a child: itself, and the processes it had started (psutil guards against reused ids)."""
    for process in _descendants(child) + child.descendants:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    _signal(child, signal.SIGKILL)
    if child.process is not None:
        child.process.wait()
