"""`amalgam jobs`: list, show, watch, events, cancel, retry."""

from typing import Annotated

import typer
from rich.text import Text

from app.cli.client import Client, Document
from app.cli.following import describe_progress, follow_one, report_end, run_seconds
from app.cli.options import DEFAULT_PLACE, AsJson, Limit, Url, Wait
from app.cli.output import out, print_fields, print_json, print_table, seconds_text

commands = typer.Typer(name="jobs", help="Look at jobs, watch them, cancel them.", no_args_is_help=True)

JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id (job_…).")]


@commands.command("list")
def list_jobs(
    state: Annotated[
        str | None, typer.Option(help="queued, running, canceling, succeeded, failed or canceled.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="import, finetune, merge, part, sweep, materialize, evaluate or analyze.")
    ] = None,
    limit: Limit = 20,
    url: Url = DEFAULT_PLACE,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with Client(url) as client:
        filters = {"state": state, "kind": kind, "order": "-created_at"}
        items = list(client.items("/v1/jobs", filters, limit=limit))
    if as_json:
        print_json({"items": items})
        return
    rows = [
        (job["id"], job["kind"], job["state"], describe_progress(job), seconds_text(run_seconds(job))) for job in items
    ]
    print_table(("id", "kind", "state", "progress", "run time"), rows, empty="No jobs.")


@commands.command()
def show(job: JobId, url: Url = DEFAULT_PLACE, as_json: AsJson = False) -> None:
    """Show one job: its state, its result or what went wrong."""
    with Client(url) as client:
        document = client.get(f"/v1/jobs/{job}")
    print_job(document, as_json=as_json)


@commands.command()
def watch(job: JobId, url: Url = DEFAULT_PLACE, as_json: AsJson = False) -> None:
    """Follow a job's events until it has ended, through lost connections; fails if the job does."""
    with Client(url, patience_seconds=60) as client:
        for event in client.events(job):
            _print_event(event, as_json)
        ended = client.get(f"/v1/jobs/{job}")
    leave_by_end(ended, as_json=as_json)


@commands.command()
def events(job: JobId, url: Url = DEFAULT_PLACE, as_json: AsJson = False) -> None:
    """Print the events so far."""
    with Client(url) as client:
        items = list(client.items(f"/v1/jobs/{job}/events"))
    if as_json:
        print_json({"items": items})
        return
    for event in items:
        _print_event(event, as_json=False)


@commands.command()
def cancel(job: JobId, url: Url = DEFAULT_PLACE, as_json: AsJson = False) -> None:
    """Cancel a job: at once if it is queued, within two seconds if it runs."""
    with Client(url) as client:
        document = client.post(f"/v1/jobs/{job}/cancel")
    print_json(document) if as_json else out.print(f"{job} is {document['state']}.")


@commands.command()
def retry(job: JobId, wait: Wait = False, url: Url = DEFAULT_PLACE, as_json: AsJson = False) -> None:
    """Run a job that ended once more, as a new job."""
    with Client(url) as client:
        document = client.post(f"/v1/jobs/{job}/retry")
        finish_submission(client, document, wait=wait, as_json=as_json)


def finish_submission(client: Client, job: Document, *, wait: bool, as_json: bool) -> None:
    """Print a job that was just accepted; with `wait`, follow it first and fail if it does."""
    if wait:
        job = follow_one(client, job["kind"], job["id"])
    print_job(job, as_json=as_json)
    if wait:
        leave_by_end(job, as_json=as_json, is_told=True)


def leave_by_end(job: Document, *, as_json: bool, is_told: bool = False) -> None:
    """Leave with status 1 unless the job succeeded. `is_told`: its problem was printed before."""
    if job["state"] == "succeeded":
        return
    if not is_told:
        report_end(job, as_json=as_json)
    raise typer.Exit(1)


def print_job(job: Document, *, as_json: bool) -> None:
    """Print one job."""
    if as_json:
        print_json(job)
        return
    result = job.get("result") or {}
    print_fields(
        [
            ("job", job["id"]),
            ("kind", job["kind"]),
            ("state", job["state"]),
            ("progress", describe_progress(job) if job["state"] == "running" else None),
            ("attempts", f"{job['attempts']} of {job['max_attempts']}"),
            ("run time", seconds_text(run_seconds(job))),
            ("deduplicated from", job.get("deduplicated_from")),
            ("retry of", job.get("retry_of")),
            ("checkpoint", result.get("checkpoint")),
            ("artifacts", ", ".join(result.get("artifacts") or [])),
            ("evaluations", ", ".join(result.get("evaluations") or [])),
        ]
    )
    if job["problem"]:
        report_end(job)


def _print_event(event: Document, as_json: bool) -> None:
    if as_json:
        print_json(event)
        return
    data = " ".join(
        f"{key}={_brief(value)}" for key, value in (event.get("data") or {}).items() if value not in (None, "")
    )
    out.print(Text(f"{event['seq']:>4}  {event['at']}  {event['type']}  {data}"))


def _brief(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
