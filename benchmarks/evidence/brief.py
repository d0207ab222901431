"""The suite with fewer test texts, for what is measured over many subsets of its models."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

from app.domain.tasks import DataFile, LocalTask
from benchmarks.suite.inputs import Suite

N_TEXTS = 128  # of each task's test split; classes take turns in it, so any beginning has them alike


def shorten(suite: Suite, folder: Path) -> Suite:
    """Return the suite whose tasks keep the first texts of their test splits alone. folder: keeps these."""
    folder.mkdir(parents=True, exist_ok=True)
    return replace(suite, tasks=tuple(_shorten(task, folder / f"{task.spec.name}.jsonl") for task in suite.tasks))


def _shorten(task: LocalTask, place: Path) -> LocalTask:
    content = b"".join(task.files["test"].read_bytes().splitlines(keepends=True)[:N_TEXTS])
    own = place.with_suffix(f".{os.getpid()}")  # processes that run at once write the same
    own.write_bytes(content)
    own.replace(place)
    file = DataFile(uri=place.resolve().as_uri(), sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
    spec = task.spec.model_copy(update={"dataset": {**task.spec.dataset, "test": file}})
    return task.model_copy(update={"spec": spec, "files": {**task.files, "test": place}})
