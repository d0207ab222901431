"""The data files of tasks: hashed when a task is made, brought here when a job reads them."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from sqlalchemy.orm import Session

from app.db import tasks as task_rows
from app.db.tables import Task
from app.domain.catalog import EvaluatorCard
from app.domain.errors import AmalgamError, FieldProblem, InputChanged, UriNotAllowed
from app.domain.tasks import DataFile, LocalTask, TaskSpec
from app.services.running import Keepers
from app.storage.sources import Sources

UNREADABLE = {
    ".parquet": "Parquet",
    ".npz": "NumPy",
    ".csv": "CSV",
    ".tsv": "TSV",
    ".xlsx": "Excel",
    ".gz": "compressed",
    ".zip": "zip",
    ".zst": "compressed",
}

FORMATS = {
    "jsonl": "JSON lines (.jsonl), one object per line",
    "parquet": "Parquet (.parquet), by the worker's extra `parquet`",
    "npz": "NumPy archives (.npz) of x and y",
    "zip": "zipped image folders (.zip), one folder per class",
}


def describe(sources: Sources, uri: str, pointer: str) -> DataFile:
    """Return a data file as it is now, hashed.

    Raises: UriNotAllowed, UriNotFound with the pointer; Unavailable.
    """
    digest = hashlib.sha256()
    size_bytes = 0
    try:
        for chunk in sources.read_file(uri):
            digest.update(chunk)
            size_bytes += len(chunk)
    except AmalgamError as error:
        raise type(error)(error.detail, errors=error.errors or [FieldProblem(pointer, error.detail)]) from error
    return DataFile(uri=uri, sha256=digest.hexdigest(), size_bytes=size_bytes)


def refuse_unreadable(uri: str, pointer: str, card: EvaluatorCard) -> None:
    """Refuse a data file in a form that tasks of this kind do not read. Raises: UriNotAllowed."""
    suffix = Path(uri.split("?", 1)[0]).suffix.lower()
    if suffix in UNREADABLE and suffix.removeprefix(".") not in card.data_formats:
        form, read = UNREADABLE[suffix], ", ".join(FORMATS[form] for form in card.data_formats)
        message = f"{uri!r} looks like a {form} file; {card.name} tasks read {read}. Convert it."
        raise UriNotAllowed(message, errors=[FieldProblem(pointer, message)])


def fetch(keepers: Keepers, task_id: str, splits: Iterable[str]) -> LocalTask:
    """Return a task with the files of some of its splits on this machine, and those that its head is made with.

    Raises: InputChanged when the task was deleted, or a file is gone or has another size; who reads a file checks its
        digest.
    """
    with keepers.sessions.read() as session:
        spec = _read_spec(session, task_id)
    wanted = dict.fromkeys(read for split in splits for read in spec.splits_read(split) if read in spec.dataset)
    files = {split: _locate(keepers, spec, spec.dataset[split]) for split in wanted}
    head_weights = _locate(keepers, spec, spec.head_weights) if spec.head_weights is not None else None
    return LocalTask(id=task_id, spec=spec, files=files, head_weights=head_weights)


def _read_spec(session: Session, task_id: str) -> TaskSpec:
    row = session.get(Task, task_id)
    if row is None:
        raise InputChanged(
            f"Task {task_id} was deleted after this job was accepted. Make it again and submit the job anew."
        )
    return task_rows.spec(row)


def _locate(keepers: Keepers, spec: TaskSpec, file: DataFile) -> Path:
    listing = keepers.sources.look(file.uri)
    if not listing.is_file or listing.size_bytes != file.size_bytes:
        raise InputChanged(
            f"{file.uri} of task {spec.name!r} had {file.size_bytes} bytes when the task was made and has"
            f" {listing.size_bytes} now. Restore it, or make a task with the new file under another name."
        )
    return keepers.sources.fetch(file.uri, listing, watch=keepers.watch)
