"""`amalgam materialize` and `add-tasks`: what is made of merged artifacts."""

from typing import Annotated

import typer

from app.cli.client import Client, Document
from app.cli.jobs import finish_submission
from app.cli.options import DEFAULT_PLACE, AsJson, Tags, Url, Wait, read_models, read_tags

Artifact = Annotated[
    str, typer.Argument(metavar="ARTIFACT", help="A merged artifact's id (art_…), or the ref of its checkpoint.")
]
OutputName = Annotated[str | None, typer.Option("--name", "-n", help="The name that the result becomes a version of.")]


def materialize(
    artifact: Artifact,
    tasks: Annotated[list[str], typer.Argument(metavar="TASK...", help="Tasks that the artifact has patches for.")],
    name: OutputName = None,
    tags: Tags = None,
    wait: Wait = False,
    url: Url = DEFAULT_PLACE,
    as_json: AsJson = False,
) -> None:
    """Write the dense models of tasks of a multitask artifact: `amalgam materialize helpdesk tickets --wait`."""
    body: Document = {**({"tasks": tasks} if len(tasks) > 1 else {"task": tasks[0]}), "output": _output(name, tags)}
    with Client(url) as client:
        job = client.post(f"/v1/artifacts/{_id_of(client, artifact)}/materializations", body)
        finish_submission(client, job, wait=wait, as_json=as_json)


def add_tasks(
    artifact: Artifact,
    models: Annotated[list[str], typer.Argument(metavar="REF[=WEIGHT]...", help="The models to add, with weights.")],
    name: OutputName = None,
    evaluate: Annotated[list[str] | None, typer.Option("--evaluate", "-e", metavar="TASK", help="Measure it.")] = None,
    tags: Tags = None,
    wait: Wait = False,
    url: Url = DEFAULT_PLACE,
    as_json: AsJson = False,
) -> None:
    """Add models to a merged artifact, without those it was made of: `amalgam add-tasks helpdesk emoji-expert`."""
    body: Document = {"models": read_models(models), "output": _output(name, tags), "evaluate": evaluate or []}
    with Client(url) as client:
        job = client.post(f"/v1/artifacts/{_id_of(client, artifact)}/tasks", body)
        finish_submission(client, job, wait=wait, as_json=as_json)


def _output(name: str | None, tags: list[str] | None) -> Document:
    return {key: value for key, value in (("name", name), ("tags", read_tags(tags))) if value}


def _id_of(client: Client, artifact: str) -> str:
    if artifact.startswith("art_"):
        return artifact
    checkpoint = client.get(f"/v1/checkpoints/{artifact}")
    if checkpoint["artifact"] is None:
        raise typer.BadParameter(f"{artifact} lies where it was registered; name what a merge has made.")
    return str(checkpoint["artifact"])
