"""`amalgam serve`, `api`, `worker`, `migrate` and `config`: the service itself."""

import ctypes
import gc
import importlib.util
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.output import err, out, print_json
from app.domain.hosts import is_loopback

if TYPE_CHECKING:
    from app.config import Settings

_READY_SECONDS = 60.0
_API_GRACE_SECONDS = 5
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>

Host = Annotated[str, typer.Option(help="The address to listen on.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0 takes a free one.")]
Supervisor = Annotated[int | None, typer.Option(hidden=True, help="End when this process does.")]


def serve(host: Host = "127.0.0.1", port: Port = 8000) -> None:
    """Run everything on this machine: migrations, the API and one worker."""
    # The client's commands do without these: they cost half a second.
    from app.cli.supervision import CannotServe, EmbeddedService  # noqa: PLC0415  see above
    from app.logging import set_up_logging  # noqa: PLC0415  see above

    settings = settings_in_force()
    refuse_open_host(host, settings)
    refuse_without_torch()
    set_up_logging(settings.log_format, settings.log_level)
    bring_to_head(settings)
    try:
        service = EmbeddedService(
            host=host, port=port, grace_seconds=settings.grace_seconds, environment=dict(os.environ)
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: service.request_stop())
        try:
            service.start()
            service.wait_until_ready(_READY_SECONDS)
            out.print(f"Amalgam is ready at {service.url} (docs: {service.url}/docs, data: {settings.home})")
            service.watch()
        finally:
            # A second signal ends the grace: the default handlers are back.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            service.stop()
    except CannotServe as error:
        raise stop(str(error)) from error


def api(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    fd: Annotated[int | None, typer.Option(hidden=True, help="A listening socket to inherit.")] = None,
    supervisor: Supervisor = None,
) -> None:
    """Run the REST API alone; workers run elsewhere."""
    gc.disable()  # what the start makes stays: looking through it for garbage takes a quarter of the time
    # The client's commands, and a machine with the worker alone, do without the web server.
    import uvicorn  # noqa: PLC0415  see above

    from app.logging import set_up_logging  # noqa: PLC0415  see above
    from app.main import create_app  # noqa: PLC0415  see above

    end_with(supervisor)
    settings = settings_in_force()
    refuse_open_host(host, settings)
    set_up_logging(settings.log_format, settings.log_level)
    app = create_app(settings, host)
    gc.freeze()
    gc.enable()
    configuration = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_API_GRACE_SECONDS,
    )
    inherited = None if fd is None else [socket.socket(fileno=fd)]
    uvicorn.Server(configuration).run(sockets=inherited)


def worker(
    queues: Annotated[str | None, typer.Option(help="Resource classes to serve: io, cpu, gpu, with commas.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Jobs at a time.")] = None,
    supervisor: Supervisor = None,
) -> None:
    """Run a worker alone: it takes jobs from the queue and runs each in a process of its own."""
    if queues is not None:
        os.environ["AMALGAM_QUEUES"] = queues
    if concurrency is not None:
        os.environ["AMALGAM_CONCURRENCY"] = str(concurrency)
    settings_in_force()
    refuse_without_torch()
    end_with(supervisor)
    os.environ["PYTHONSAFEPATH"] = "1"  # a folder `workers` where the user happens to be is not ours
    os.execv(sys.executable, [sys.executable, "-m", "workers.main"])  # `app` never imports the workers


def migrate() -> None:
    """Bring the database to the current schema."""
    settings = settings_in_force()
    bring_to_head(settings)
    out.print("The database is at the current schema.")


def config(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Print the settings in force, secrets masked."""
    described = settings_in_force().describe()
    if as_json:
        print_json(described)
        return
    for name, value in described.items():
        out.print(f"{name}={value}", markup=False)


def settings_in_force() -> "Settings":
    """Return the settings; a bad value stops the command with the variable's name."""
    # A fifth of a second that the client's commands do without.
    from app.config import SettingsInvalid, load_settings  # noqa: PLC0415  see above

    try:
        return load_settings()
    except SettingsInvalid as error:
        raise stop(f"a setting cannot be used:\n{error}", status=2) from error


def bring_to_head(settings: "Settings") -> None:
    """Run the migrations; make the home folder first."""
    # Alembic and SQLAlchemy cost half a second that the client's commands do without.
    from alembic.util import CommandError  # noqa: PLC0415  see above
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415  see above

    from app.db.migrate import SchemaBroken, upgrade  # noqa: PLC0415  see above

    try:
        settings.home.mkdir(parents=True, exist_ok=True)
        upgrade(settings.database_url)
    except OSError as error:
        raise stop(f"AMALGAM_HOME={settings.home}: this folder cannot be used: {error.strerror}") from error
    except (SchemaBroken, CommandError, SQLAlchemyError) as error:
        place = settings.describe()["AMALGAM_DATABASE_URL"]
        reason = str(error).splitlines()[0]
        raise stop(f"the database {place} cannot be brought to this release's schema: {reason}") from error


def refuse_open_host(host: str, settings: "Settings") -> None:
    """Refuse a host that other machines reach while no keys guard the API."""
    if settings.auth == "off" or is_loopback(host):
        return
    raise stop(
        f"--host {host} can be reached from other machines, and this version has no API keys yet. "
        "Serve on 127.0.0.1, or set AMALGAM_AUTH=off if the network itself keeps strangers out.",
        status=2,
    )


def refuse_without_torch() -> None:
    """Refuse to start a worker where its packages are not installed."""
    missing = [name for name in ("torch", "safetensors", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise stop(
            f"a worker needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed here. "
            "Install torch==2.13.0 and then 'amalgam[worker]', or run `make setup`."
        )


def end_with(supervisor: int | None) -> None:
    """Ask the kernel for SIGTERM when the supervising process dies, so that nothing outlives a killed `serve`."""
    if supervisor is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != supervisor:  # it died before we asked
        raise typer.Exit(1)


def stop(message: str, *, status: int = 1) -> typer.Exit:
    """Print why the command cannot go on; return what to raise."""
    err.print(f"Error: {message}", style="red", markup=False)
    return typer.Exit(status)
