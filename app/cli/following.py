"""Jobs followed to their end: bars on a terminal, plain lines where the output is a file."""

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from app.cli.client import FINAL_STATES, Client, Document
from app.cli.output import bytes_text, err, print_problem, seconds_text

_POLL_SECONDS = 0.25
_LINE_SECONDS = 5.0  # a plain line at least so often while something runs


class _Display(Protocol):
    def show(self, label: str, job: Document) -> None: ...

    def close(self) -> None: ...


def follow(client: Client, jobs: Mapping[str, str], *, console: Console = err) -> dict[str, Document]:
    """Show the progress of jobs (label -> id) until all have ended; return them in their final state."""
    display: _Display = _Bars(console) if console.is_terminal else _Lines(console)
    ended: dict[str, Document] = {}
    try:
        while True:
            for label, job_id in jobs.items():
                if label not in ended:
                    job = client.get(f"/v1/jobs/{job_id}")
                    display.show(label, job)
                    if job["state"] in FINAL_STATES:
                        ended[label] = job
            if len(ended) == len(jobs):
                return {label: ended[label] for label in jobs}
            time.sleep(_POLL_SECONDS)
    finally:
        display.close()


def follow_one(client: Client, label: str, job_id: str) -> Document:
    """Follow one job; when the caller loses patience, say how to come back to it."""
    try:
        return follow(client, {label: job_id})[label]
    except KeyboardInterrupt:
        err.print(f"The job goes on without us. Come back with `amalgam jobs watch {job_id}`.")
        raise


def report_end(job: Document, *, as_json: bool = False) -> bool:
    """Say why a job did not succeed; return whether it did."""
    if job["state"] == "succeeded":
        return True
    if job["problem"]:
        print_problem(job["problem"], as_json=as_json)
    elif not as_json:
        err.print(f"Job {job['id']} was {job['state']}.")
    return False


def describe_progress(job: Document) -> str:
    """Return where a job stands in a few words: its stage with speed and remaining time, or its state."""
    if job["state"] != "running":
        return _describe_end(job)
    progress = job["progress"] or {}
    parts = [progress.get("stage") or "running"]
    if progress.get("bytes_per_second"):
        parts.append(f"{bytes_text(progress['bytes_per_second'])}/s")
    elif progress.get("total"):
        parts.append(f"{progress['done']}/{progress['total']} {progress.get('unit', '')}".rstrip())
    if progress.get("eta_seconds") is not None:
        parts.append(f"{seconds_text(progress['eta_seconds'])} left")
    return ", ".join(parts)


def run_seconds(job: Document) -> float | None:
    """Return how long the last attempt of a job ran; None before it has ended."""
    started, finished = job["timings"]["started_at"], job["timings"]["finished_at"]
    if started is None or finished is None:
        return None
    return (datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds()


def _describe_end(job: Document) -> str:
    state = str(job["state"])
    if state == "succeeded":
        return "done before" if job.get("deduplicated_from") else f"done in {seconds_text(run_seconds(job))}"
    if state == "queued" and job["attempts"]:
        return f"queued again after attempt {job['attempts']} of {job['max_attempts']}"
    return state


def _fraction(job: Document) -> float:
    return float((job["progress"] or {}).get("fraction", 0.0))


class _Bars:
    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("  {task.description}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f} %", table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[state]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
            console=console,
            expand=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._progress.start()

    def show(self, label: str, job: Document) -> None:
        """Update the job's bar."""
        if label not in self._tasks:
            self._tasks[label] = self._progress.add_task(label, total=1.0, state="")
        task = self._tasks[label]
        fraction = 1.0 if job["state"] == "succeeded" else _fraction(job)
        self._progress.update(task, completed=fraction, state=describe_progress(job))

    def close(self) -> None:
        """Leave the bars as they are."""
        self._progress.stop()


class _Lines:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._said: dict[str, tuple[str, float]] = {}

    def show(self, label: str, job: Document) -> None:
        """Print a line when the job's state changed, or when it was long silent while running."""
        state, now = str(job["state"]), time.monotonic()
        said = self._said.get(label)
        is_due = said is None or said[0] != state or (state == "running" and now - said[1] > _LINE_SECONDS)
        if is_due:
            self._said[label] = (state, now)
            percent = f"{_fraction(job):.0%}, " if state == "running" else ""
            self._console.print(Text(f"  {label}: {percent}{describe_progress(job)}"))

    def close(self) -> None:
        """Nothing is held."""
