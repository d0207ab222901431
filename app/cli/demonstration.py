"""The demonstration's story, told to any service over HTTP: base model, experts, merges, comparison, verdict.

Run twice, it finds what it made before: every checkpoint carries the digest of the request that it came from, and every
request its digest as Idempotency-Key.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from app.cli.client import Client, Document
from app.cli.comparing import Row, individual_row, percent, points, read_rows
from app.cli.comparisons import fetch_comparison
from app.cli.following import follow
from app.cli.tasks import read_task_file

PRETRAINED = "pre-trained"
LEAST_GAIN_POINTS = 5.0
INDIVIDUAL_MARGIN_POINTS = 0.5


class DemoFailed(Exception):
    """A job of the demonstration did not succeed; the message says which, and why."""


@dataclass(frozen=True)
class DemoRecipe:
    """One way to merge the experts."""

    method: str
    parameters: Mapping[str, str | float] = field(default_factory=dict)


@dataclass(frozen=True)
class DemoScript:
    """What is shown: a model's folder, task.json files, and merge recipes."""

    model_name: str
    model_folder: Path
    task_files: tuple[Path, ...]
    recipes: tuple[DemoRecipe, ...]
    finetune_parameters: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class DemoResult:
    """What came of it: rows to show, the merged ones among them by label, and their checkpoints."""

    tasks: tuple[str, ...]
    rows: tuple[Row, ...]
    merged: tuple[str, ...]
    checkpoints: Mapping[str, Document]  # label -> checkpoint

    def row(self, label: str) -> Row:
        """Return one row."""
        return next(row for row in self.rows if row.label == label)

    @property
    def individual(self) -> Row:
        """The row of specialists."""
        return next(row for row in self.rows if row.label.startswith("individual"))

    @property
    def best_merged(self) -> Row:
        """The merged model with the best mean."""
        return max((self.row(label) for label in self.merged), key=lambda row: row.average or 0.0)


@dataclass(frozen=True)
class Claim:
    """Something the result must show, in plain words with its numbers, and whether it does."""

    text: str
    holds: bool


# The coefficients are those that were best on the validation splits of the three tasks.
RECIPES = (
    DemoRecipe("average"),
    DemoRecipe("task_arithmetic", {"scaling_coefficient": 0.8}),
    DemoRecipe("ties", {"density": 0.2, "scaling_coefficient": 2.0}),
    DemoRecipe("breadcrumbs", {"density": 0.15, "outlier_fraction": 0.01, "scaling_coefficient": 2.0}),
)


def perform(client: Client, script: DemoScript, console: Console) -> DemoResult:
    """Play the script; what was made by an earlier run is found and not made again.

    Raises: DemoFailed, ServiceProblem, ServiceUnreachable.
    """
    tasks = [client.post("/v1/tasks", read_task_file(file))["name"] for file in script.task_files]
    console.print(f"\n[bold]1. A pre-trained model and {len(tasks)} tasks[/bold]: {', '.join(tasks)}")
    base = _ensure_base(client, script, console)

    console.print(f"\n[bold]2. One expert per task[/bold], fine-tuned from {script.model_name}")
    experts = _ensure_experts(client, script, base, tasks, console)

    console.print(f"\n[bold]3. Experts merged into one model[/bold], {len(script.recipes)} ways")
    merged = _ensure_merges(client, script, base, experts, tasks, console)

    console.print("\n[bold]4. Every model measured on every task[/bold]")
    checkpoints = {PRETRAINED: base, **{f"{task} expert": experts[task] for task in tasks}, **merged}
    _ensure_measured(client, checkpoints, tasks, console)
    return _compare(client, checkpoints, tasks, tuple(merged))


def check_claims(result: DemoResult) -> list[Claim]:
    """Hold the result against what merging promises, on the mean over the tasks."""
    best, average = result.best_merged, result.row("average")
    base, individual = result.row(PRETRAINED), result.individual
    gain, gap = points(best, base), points(individual, best)
    beats_average = points(best, average)
    return [
        Claim(
            f"The best merged model ({best.label}, {percent(best.average)} %) is {gain:.1f} points above the "
            f"pre-trained one ({percent(base.average)} %); expected at least {LEAST_GAIN_POINTS:.0f}.",
            gain >= LEAST_GAIN_POINTS,
        ),
        Claim(
            f"{best.label} is {beats_average:.1f} points above the plain average ({percent(average.average)} %); "
            "expected above.",
            beats_average > 0,
        ),
        Claim(
            f"The plain average is {points(average, base):.1f} points above the pre-trained model; expected above.",
            points(average, base) > 0,
        ),
        Claim(
            f"One merged model keeps {percent((best.average or 0) / (individual.average or 1))} % of the accuracy of "
            f"{len(result.tasks)} separate models ({percent(individual.average)} %), which are {gap:.1f} points ahead; "
            f"expected to be at most {INDIVIDUAL_MARGIN_POINTS} behind.",
            gap >= -INDIVIDUAL_MARGIN_POINTS,
        ),
    ]


def _ensure_base(client: Client, script: DemoScript, console: Console) -> Document:
    # A copy, so that the model stays whole when the package it comes from is removed.
    body: Document = {"uri": script.model_folder.resolve().as_uri(), "name": script.model_name, "storage": "copy"}
    label, digest = f"register {script.model_name}", _digest(body)
    found = _find(client, script.model_name, digest)
    if found is not None:
        console.print(f"  {label}: there already")
        return found
    job_id = submit_once(client, "/v1/checkpoints", {**body, "tags": {"demo": digest}})
    ended = _follow_all(client, {label: job_id}, console)
    return client.get(f"/v1/checkpoints/{ended[label]['result']['checkpoint']}")


def _ensure_experts(
    client: Client, script: DemoScript, base: Document, tasks: Sequence[str], console: Console
) -> dict[str, Document]:
    bodies = {
        task: {
            "base_model": base["id"],
            "task": task,
            "technique": "full",
            "parameters": dict(script.finetune_parameters),
            "seed": 0,
            "output": {"name": f"{task}-expert"},
        }
        for task in tasks
    }
    return _ensure_made(client, "/v1/finetunes", bodies, "fine-tune {}", console)


def _ensure_merges(
    client: Client,
    script: DemoScript,
    base: Document,
    experts: Mapping[str, Document],
    tasks: Sequence[str],
    console: Console,
) -> dict[str, Document]:
    bodies = {
        recipe.method: {
            "method": recipe.method,
            "base_model": base["id"],
            "models": [{"checkpoint": experts[task]["id"]} for task in tasks],
            "parameters": dict(recipe.parameters),
            "output": {"name": f"merged-{recipe.method.replace('_', '-')}"},
        }
        for recipe in script.recipes
    }
    return _ensure_made(client, "/v1/merges", bodies, "merge by {}", console)


def _ensure_made(
    client: Client, path: str, bodies: Mapping[str, Document], words: str, console: Console
) -> dict[str, Document]:
    """Return the checkpoint that each body makes, all that are missing made together."""
    made: dict[str, Document] = {}
    jobs: dict[str, str] = {}
    for key, body in bodies.items():
        digest = _digest(body)
        found = _find(client, body["output"]["name"], digest)
        if found is not None:
            console.print(f"  {words.format(key)}: there already")
            made[key] = found
        else:
            output = {**body["output"], "tags": {"demo": digest}}
            jobs[words.format(key)] = submit_once(client, path, {**body, "output": output})
    ended = _follow_all(client, jobs, console)
    for key in bodies:
        if key not in made:
            made[key] = client.get(f"/v1/checkpoints/{ended[words.format(key)]['result']['checkpoint']}")
    return {key: made[key] for key in bodies}


def _ensure_measured(client: Client, checkpoints: Mapping[str, Document], tasks: list[str], console: Console) -> None:
    comparison = fetch_comparison(client, [checkpoint["id"] for checkpoint in checkpoints.values()], tasks)
    jobs: dict[str, str] = {}
    for label, row in zip(checkpoints, comparison["rows"], strict=True):
        missing = [task for task in tasks if row["values"].get(task) is None]
        if missing:
            body = {"checkpoint": row["checkpoint"], "tasks": missing, "split": "test"}
            jobs[f"measure {label}"] = submit_once(client, "/v1/evaluations", body)
    if len(jobs) < len(checkpoints):
        console.print(f"  {len(checkpoints) - len(jobs)} of {len(checkpoints)} models were measured before")
    _follow_all(client, jobs, console)


def _compare(
    client: Client, checkpoints: Mapping[str, Document], tasks: list[str], merged: tuple[str, ...]
) -> DemoResult:
    experts = {task: f"{task} expert" for task in tasks}
    ids = {label: checkpoint["id"] for label, checkpoint in checkpoints.items()}
    individual = {task: ids[label] for task, label in experts.items()}
    comparison = fetch_comparison(client, list(ids.values()), tasks, individual=individual)
    rows = read_rows(comparison, {checkpoint_id: label for label, checkpoint_id in ids.items()})
    by_label = {row.label: row for row in rows}
    specialists = individual_row(by_label, tasks, experts)
    shown = [by_label[PRETRAINED], *(by_label[label] for label in merged), specialists]
    shown += [by_label[label] for label in experts.values()]
    return DemoResult(tuple(tasks), tuple(shown), merged, checkpoints)


def _find(client: Client, name: str, digest: str) -> Document | None:
    filters = {"name": name, "state": "ready", "tag.demo": digest, "order": "-created_at"}
    return next(client.items("/v1/checkpoints", filters, limit=1), None)


def submit_once(client: Client, path: str, body: Document) -> str:
    """Hand in work and return its job's id; what an interrupted run handed in is found by its key, unless it failed."""
    accepted = _job_of(client.post(path, body, idempotency_key=f"demo-{_digest(body)}"))
    job = client.get(f"/v1/jobs/{accepted['id']}")
    if job["state"] in ("failed", "canceled") or not _stands(client, job):
        job = _job_of(client.post(path, body))
    return str(job["id"])


def _job_of(answer: Document) -> Document:
    job: Document = answer.get("job", answer)
    return job


def _stands(client: Client, job: Document) -> bool:
    """Tell whether what a job made, if it has made something, is still there."""
    checkpoint = (job.get("result") or {}).get("checkpoint")
    return checkpoint is None or client.find(f"/v1/checkpoints/{checkpoint}") is not None


def _follow_all(client: Client, jobs: Mapping[str, str], console: Console) -> dict[str, Document]:
    ended = follow(client, jobs, console=console)
    for label, job in ended.items():
        if job["state"] != "succeeded":
            detail = (job["problem"] or {}).get("detail", "it was canceled")
            raise DemoFailed(f"{label} {job['state']}: {detail} (job {job['id']})")
    return ended


def _digest(body: Document) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]
