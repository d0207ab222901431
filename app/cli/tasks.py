"""`amalgam tasks`: what models are measured on."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.client import Client, Document
from app.cli.options import DEFAULT_PLACE, AsJson, Limit, Url
from app.cli.output import out, print_fields, print_json, print_table

commands = typer.Typer(name="tasks", help="Make and look at tasks: data, head and metric.", no_args_is_help=True)


@commands.command()
def create(
    file: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="The body of POST /v1/tasks as a JSON file.")
    ],
    url: Url = DEFAULT_PLACE,
    as_json: AsJson = False,
) -> None:
    """Make a task from a task.json; data files that it names without a scheme lie beside it."""
    body = read_task_file(file)
    with Client(url) as client:
        task = client.post("/v1/tasks", body)
    print_json(task) if as_json else out.print(f"Task {task['name']} is {task['id']}.")


@commands.command("list")
def list_tasks(limit: Limit = 50, url: Url = DEFAULT_PLACE, as_json: AsJson = False) -> None:
    """List the tasks."""
    with Client(url) as client:
        items = list(client.items("/v1/tasks", limit=limit))
    if as_json:
        print_json({"items": items})
        return
    rows = [(task["name"], task["id"], task["kind"], len(task["classes"]), task["metric"]) for task in items]
    print_table(
        ("name", "id", "kind", "classes", "metric"), rows, empty="No tasks. Make one with `amalgam tasks create`."
    )


@commands.command()
def show(
    task: Annotated[str, typer.Argument(metavar="TASK", help="The task's name or id.")],
    url: Url = DEFAULT_PLACE,
    as_json: AsJson = False,
) -> None:
    """Show one task."""
    with Client(url) as client:
        document = client.get(f"/v1/tasks/{task}")
    if as_json:
        print_json(document)
        return
    print_fields(
        [
            ("task", document["name"]),
            ("id", document["id"]),
            ("kind", document["kind"]),
            ("metric", document["metric"]),
            ("splits", ", ".join(document["dataset"])),
            ("classes", ", ".join(document["classes"])),
            ("head", document["head"]["kind"]),
        ]
    )


def read_task_file(path: Path) -> Document:
    """Read a task.json; relative data files become file: URIs beside it.

    Raises: typer.BadParameter when the file is not a JSON object.
    """
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise typer.BadParameter(f"{path} is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise typer.BadParameter(
            f"{path} holds a {type(body).__name__}; expected a JSON object, the body of POST /v1/tasks"
        )
    dataset = body.get("dataset")
    if isinstance(dataset, dict):
        body["dataset"] = {split: _beside(path, place) for split, place in dataset.items()}
    return body


def _beside(path: Path, place: Any) -> Any:  # whatever the file holds: the service judges it
    if not isinstance(place, str) or ":" in place:
        return place
    return (path.resolve().parent / place).as_uri()
