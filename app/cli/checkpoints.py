"""`amalgam checkpoints`: register, upload, list, show, wait for, delete."""

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from app.cli.client import FINAL_STATES, Client, Document
from app.cli.following import follow_one, report_end
from app.cli.options import DEFAULT_PLACE, AsJson, Limit, Tags, Url, Wait, place_of, read_tags
from app.cli.output import bytes_text, err, out, print_fields, print_json, print_problem, print_table, tags_text

commands = typer.Typer(name="checkpoints", help="Register, upload and look at checkpoints.", no_args_is_help=True)

_CHUNK_BYTES = 1 << 20

Reference = Annotated[str, typer.Argument(metavar="REF", help="An id, a name, name@3 or name@alias.")]
Name = Annotated[str, typer.Option("--name", "-n", help="The name that it becomes a version of.")]
Task = Annotated[str | None, typer.Option(help="The task it was fine-tuned on.")]
Base = Annotated[str | None, typer.Option("--base", metavar="REF", help="The checkpoint it was fine-tuned from.")]


@commands.command()
def register(
    source: Annotated[str, typer.Argument(metavar="PATH|URI", help="A folder or file that the service reaches.")],
    name: Name,
    task: Task = None,
    base: Base = None,
    storage: Annotated[str | None, typer.Option(help="reference (the default) or copy.")] = None,
    tags: Tags = None,
    wait: Wait = False,
    url: Url = DEFAULT_PLACE,
    as_json: AsJson = False,
) -> None:
    """Register a checkpoint where it lies: `amalgam checkpoints register ./minilm --name minilm --wait`."""
    body: Document = {"uri": place_of(source), "name": name, "storage": storage, **_about(task, base, tags)}
    with Client(url) as client:
        answer = client.post("/v1/checkpoints", {key: value for key, value in body.items() if value is not None})
        _finish_import(client, answer, wait=wait, as_json=as_json)


@commands.command()
def upload(
    source: Annotated[Path, typer.Argument(exists=True, metavar="PATH", help="A folder or file of this machine.")],
    name: Name,
    task: Task = None,
    base: Base = None,
    tags: Tags = None,
    wait: Wait = False,
    url: Url = DEFAULT_PLACE,
    as_json: AsJson = False,
) -> None:
    """Send a checkpoint's files to a service that does not see this machine's folders."""
    files = _files_of(source)
    with Client(url) as client:
        opened = client.post("/v1/checkpoints/uploads", {"name": name, **_about(task, base, tags)})
        _send_files(client, opened["id"], files)
        answer = client.post(f"/v1/checkpoints/uploads/{opened['id']}/complete")
        _finish_import(client, answer, wait=wait, as_json=as_json)


@commands.command("list")
def list_checkpoints(
    name: Annotated[str | None, typer.Option("--name", "-n", help="Only versions of this name.")] = None,
    state: Annotated[str | None, typer.Option(help="importing, ready or invalid.")] = None,
    limit: Limit = 50,
    url: Url = DEFAULT_PLACE,
    as_json: AsJson = False,
) -> None:
    """List checkpoints, newest first."""
    with Client(url) as client:
        filters = {"name": name, "state": state, "order": "-created_at"}
        items = list(client.items("/v1/checkpoints", filters, limit=limit))
    if as_json:
        print_json({"items": items})
        return
    rows = [
        (f"{item['name']}@{item['version']}", item["id"], item["state"], bytes_text(item["size_bytes"]), item["task"])
        for item in items
    ]
    empty = "No checkpoints. Register one with `amalgam checkpoints register`."
    print_table(("name", "id", "state", "size", "task"), rows, empty=empty)


@commands.command()
def show(reference: Reference, url: Url = DEFAULT_PLACE, as_json: AsJson = False) -> None:
    """Show one checkpoint."""
    with Client(url) as client:
        document = client.get(f"/v1/checkpoints/{reference}")
    _print_checkpoint(document, as_json=as_json)


@commands.command()
def delete(reference: Reference, url: Url = DEFAULT_PLACE, as_json: AsJson = False) -> None:
    """Delete a checkpoint that nothing needs any more."""
    with Client(url) as client:
        client.delete(f"/v1/checkpoints/{reference}")
    print_json({"deleted": reference}) if as_json else out.print(f"{reference} is deleted.")


@commands.command()
def wait(reference: Reference, url: Url = DEFAULT_PLACE, as_json: AsJson = False) -> None:
    """Wait until a checkpoint's import has ended; fails if it is invalid."""
    with Client(url) as client:
        document = client.get(f"/v1/checkpoints/{reference}")
        if document["state"] == "importing":
            follow_one(client, f"import {document['name']}", document["job"])
            document = client.get(f"/v1/checkpoints/{document['id']}")
    _print_checkpoint(document, as_json=as_json)
    if document["state"] != "ready":
        raise typer.Exit(1)


def _about(task: str | None, base: str | None, tags: list[str] | None) -> Document:
    facts: Document = {"task": task, "base_checkpoint": base, "tags": read_tags(tags) or None}
    return {key: value for key, value in facts.items() if value is not None}


def _finish_import(client: Client, answer: Document, *, wait: bool, as_json: bool) -> None:
    checkpoint, job = answer["checkpoint"], answer["job"]
    if not wait:
        if as_json:
            print_json(answer)
        else:
            out.print(f"{checkpoint['name']}@{checkpoint['version']} is {checkpoint['id']}, importing as {job['id']}.")
        return
    job = follow_one(client, f"import {checkpoint['name']}", job["id"])
    _print_checkpoint(client.get(f"/v1/checkpoints/{checkpoint['id']}"), as_json=as_json)
    if job["state"] in FINAL_STATES - {"succeeded"}:
        if as_json:
            report_end(job, as_json=True)
        raise typer.Exit(1)


def _print_checkpoint(document: Document, *, as_json: bool) -> None:
    if as_json:
        print_json(document)
        return
    parameters = document["n_parameters"]
    print_fields(
        [
            ("checkpoint", f"{document['name']}@{document['version']}"),
            ("id", document["id"]),
            ("state", document["state"]),
            ("kind", document["kind"]),
            ("architecture", document["architecture"]),
            ("parameters", None if parameters is None else f"{parameters:,} in {document['n_tensors']} tensors"),
            ("size", bytes_text(document["size_bytes"])),
            ("task", document["task"]),
            ("base checkpoint", document["base_checkpoint"]),
            ("weights digest", document["weights_digest"]),
            ("artifact", document["artifact"]),
            ("from", document["uri"]),
            ("tags", tags_text(document["tags"])),
        ]
    )
    if document["problem"]:
        print_problem(document["problem"])


def _files_of(source: Path) -> list[tuple[str, Path]]:
    """Return (path on the wire, file) of a folder's visible files, or of one file."""
    if source.is_file():
        return [(source.name, source)]
    found = sorted(path for path in source.rglob("*") if path.is_file())
    files = [(path.relative_to(source), path) for path in found]
    visible = [(name.as_posix(), path) for name, path in files if not any(part.startswith(".") for part in name.parts)]
    if not visible:
        raise typer.BadParameter(f"{source} holds no files; expected a folder with safetensors weights")
    return visible


def _send_files(client: Client, upload_id: str, files: list[tuple[str, Path]]) -> None:
    columns = (TextColumn("  {task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal) as progress:
        for name, path in files:
            task = progress.add_task(name, total=path.stat().st_size)
            headers = {"Content-Type": "application/octet-stream", "Content-Digest": _content_digest(path)}
            client.put_bytes(
                f"/v1/checkpoints/uploads/{upload_id}/files/{quote(name)}", _chunks(path, progress, task), headers
            )


def _content_digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    return f"sha-256=:{base64.b64encode(digest).decode()}:"


def _chunks(path: Path, progress: Progress, task: TaskID) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
            progress.advance(task, len(chunk))
