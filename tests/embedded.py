"""`amalgam serve` for tests: the real processes on a free port, ended with the block, none left behind."""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import psutil

from app.cli.main import run
from tests.waiting import wait_until

PROGRAM = (sys.executable, "-P", "-m", "app.cli.main")  # -P: as the script `amalgam` does
ROOT = Path(__file__).parents[1]


@dataclass
class Serve:
    """A running `amalgam serve` and what it said."""

    process: subprocess.Popen[bytes]
    log: Path
    home: Path
    url: str = ""

    @property
    def output(self) -> str:
        """Everything it and its children printed so far."""
        return self.log.read_text(errors="replace")

    def find_url(self) -> str | None:
        """Return the address that it says it is ready at; fails if it has ended."""
        found = re.search(r"ready at (http://\S+)", self.output)
        assert found or self.process.poll() is None, f"serve ended with {self.process.returncode}:\n{self.output}"
        return found[1] if found else None

    def child(self, name: str) -> psutil.Process | None:
        """Return the process of a part (`api` or `worker`), if it is there now."""
        wanted = {"api": "api", "worker": "workers.main"}[name]
        for process in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if wanted in process.cmdline():
                    return process
        return None

    def family(self) -> list[psutil.Process]:
        """Return this process and all that descend from it."""
        itself = psutil.Process(self.process.pid)
        return [itself, *itself.children(recursive=True)]

    def end(self, number: int = signal.SIGTERM, *, deadline_seconds: float = 40.0) -> int:
        """Send a signal, wait for the end, return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout=deadline_seconds)


def environment(home: Path, settings: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a service with its data in `home`; file: URIs may lie beside it."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AMALGAM_")}
    own = {
        "AMALGAM_HOME": str(home),
        "AMALGAM_FILE_ROOTS": str(home.parent),
        "AMALGAM_CONCURRENCY": "2",
        "AMALGAM_THREADS": "1",
        "AMALGAM_GRACE_SECONDS": "5",
        "NO_COLOR": "1",
    }
    return {**inherited, **own, **(settings or {})}


@contextlib.contextmanager
def start_serving(home: Path, settings: Mapping[str, str] | None = None, *, cwd: Path = ROOT) -> Iterator[Serve]:
    """Start `amalgam serve` and yield it at once, before it is ready; kill what is left of it at the end."""
    home.mkdir(parents=True, exist_ok=True)
    log = home / "serve.log"
    with log.open("wb") as output:
        command = (*PROGRAM, "serve", "--port", "0")
        process = subprocess.Popen(
            command, env=environment(home, settings), cwd=cwd, stdout=output, stderr=subprocess.STDOUT
        )
    serve = Serve(process, log, home)
    try:
        yield serve
    finally:
        family = serve.family() if process.poll() is None else []
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=30)
        for left in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        process.wait()


@contextlib.contextmanager
def serving(home: Path, settings: Mapping[str, str] | None = None, *, cwd: Path = ROOT) -> Iterator[Serve]:
    """Start `amalgam serve`, and yield it when it is ready."""
    with start_serving(home, settings, cwd=cwd) as serve:
        serve.url = wait_until(serve.find_url, deadline_seconds=60, every_seconds=0.05, reason="the service") or ""
        yield serve


def run_inside(*words: str, url: str) -> subprocess.CompletedProcess[str]:
    """Run a client's command line in this process, which saves the start of one: stdout and stderr are captured."""
    said, complained = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["amalgam", *words]),
        mock.patch.dict(os.environ, {"AMALGAM_URL": url, "NO_COLOR": "1", "COLUMNS": "200"}),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(complained),
    ):
        status = run()
    return subprocess.CompletedProcess(words, status, said.getvalue(), complained.getvalue())


def run_amalgam(
    *words: str, url: str | None = None, env: Mapping[str, str] | None = None, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run a command line to its end."""
    variables = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200", **(env or {})}
    if url is not None:
        variables["AMALGAM_URL"] = url
    return subprocess.run(
        (*PROGRAM, *words), env=variables, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )
